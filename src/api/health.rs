//! What the checks of health ask of the server. The checks themselves are SQL, in `sql/health*.sql`.

use serde_json::{Value, json};

use crate::error::Error;
use crate::health;

crate::pg::sql_functions! {
    master_key_source() -> text;
    health_hours() -> text;
}

/// What is weak about the source of the master key, as JSON. Without paths: those are a superuser's
/// settings.
fn master_key_source() -> Result<Value, Error> {
    let (source, weaknesses) = health::weaknesses();
    let weaknesses: Vec<_> = weaknesses
        .iter()
        .map(
            |one| json!({ "is_critical": one.is_critical, "detail": one.detail, "hint": one.hint }),
        )
        .collect();
    Ok(json!({ "source": source, "weaknesses": weaknesses }))
}

/// `fieldcrypt.health_hours` as JSON; NULL if it is empty. The first that all versions of `health` ask for.
fn health_hours() -> Result<Option<Value>, Error> {
    health::version::warn_of_older_catalog()?;
    Ok(health::hours().map(|hours| {
        json!({
            "days": hours.days(), "start": hours.start, "end": hours.end, "zone": hours.zone,
        })
    }))
}
