//! Health and alerts: thresholds, a look at where the master key lies, and what alerts remember. The
//! checks themselves are SQL, in `sql/health*.sql`.

mod hours;
mod records;
mod settings;
mod source;

use pgrx::pg_sys::Datum;
use serde_json::json;

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::Varlena;

pub use settings::init;

sql_functions! {
    fieldcrypt_master_key_source, pg_finfo_fieldcrypt_master_key_source => master_key_source;
    fieldcrypt_health_hours, pg_finfo_fieldcrypt_health_hours => usual_hours;
}

/// What is weak about the source of the master key, as JSON. Without paths: those are a superuser's
/// settings.
fn master_key_source(_: &Call) -> Result<Option<Datum>, Error> {
    let (source, weaknesses) = source::weaknesses();
    let weaknesses: Vec<_> = weaknesses
        .iter()
        .map(
            |one| json!({ "is_critical": one.is_critical, "detail": one.detail, "hint": one.hint }),
        )
        .collect();
    let answer = json!({ "source": source, "weaknesses": weaknesses }).to_string();
    Ok(Some(Varlena::of(answer.as_bytes())?.into_datum()))
}

/// `fieldcrypt.health_hours` as JSON; NULL if it is empty.
fn usual_hours(_: &Call) -> Result<Option<Datum>, Error> {
    let Some(hours) = settings::hours() else { return Ok(None) };
    let answer = json!({
        "days": hours.days(), "start": hours.start, "end": hours.end, "zone": hours.zone,
    });
    Ok(Some(Varlena::of(answer.to_string().as_bytes())?.into_datum()))
}
