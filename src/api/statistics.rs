//! `fieldcrypt_stats`: what was counted, since when.

use serde_json::{Value, json};

use crate::error::Error;
use crate::pg::{clock, encoding, report, statistics_memory};

crate::pg::sql_functions! {
    statistics() -> text;
    statistics_reset() -> void;
}

/// The entries of this database, as JSON. With what this statement itself has counted so far.
fn statistics() -> Result<Value, Error> {
    let milliseconds = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    let rows = statistics_memory::read().into_iter().map(|shown| {
        let counters = shown.counters;
        json!({
            "tenant": shown.tenant.as_deref().map(encoding::lossy),
            "encrypt_statements": counters.encrypt_statements,
            "encrypt_values": counters.encrypt_values,
            "encrypt_bytes": counters.encrypt_bytes,
            "encrypt_time": milliseconds(counters.encrypt_time),
            "decrypt_statements": counters.decrypt_statements,
            "decrypt_values": counters.decrypt_values,
            "decrypt_bytes": counters.decrypt_bytes,
            "decrypt_time": milliseconds(counters.decrypt_time),
            "reencrypt_values": counters.reencrypt_values,
            "failures": counters.failures,
            "cache_hits": counters.cache_hits,
            "cache_misses": counters.cache_misses,
            "load_time": milliseconds(counters.load_time),
            "keys_made": counters.keys_made,
            "stats_since": clock::iso_time(shown.since),
        })
    });
    Ok(Value::Array(rows.collect()))
}

fn statistics_reset() -> Result<(), Error> {
    let outcome = if statistics_memory::reset() {
        "the statistics of this database begin anew"
    } else {
        "nothing to do: without pg_fieldcrypt in shared_preload_libraries there are none"
    };
    report::notice(format!("fieldcrypt_stats_reset: {outcome}"));
    Ok(())
}
