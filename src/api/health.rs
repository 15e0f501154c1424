//! What the checks of health ask of the server. The checks themselves are SQL, in `sql/health*.sql`.

use serde_json::json;

use super::answer;
use crate::error::Error;
use crate::pg::values::Varlena;
use crate::{health, pg};

pg::sql_functions! {
    master_key_source() -> text;
    health_hours() -> text;
}

/// What is weak about the source of the master key, as JSON. Without paths: those are a superuser's
/// settings.
fn master_key_source() -> Result<Option<Varlena>, Error> {
    let (source, weaknesses) = health::weaknesses();
    let weaknesses: Vec<_> = weaknesses
        .iter()
        .map(
            |one| json!({ "is_critical": one.is_critical, "detail": one.detail, "hint": one.hint }),
        )
        .collect();
    answer(json!({ "source": source, "weaknesses": weaknesses }).to_string().as_bytes())
}

/// `fieldcrypt.health_hours` as JSON; NULL if it is empty.
fn health_hours() -> Result<Option<Varlena>, Error> {
    let Some(hours) = health::hours() else { return Ok(None) };
    let told = json!({
        "days": hours.days(), "start": hours.start, "end": hours.end, "zone": hours.zone,
    });
    answer(told.to_string().as_bytes())
}
