//! Events that are recorded although their transaction is rolled back.

use serde_json::{Map, Value, json};

use super::Event;
use crate::error::Error;
use crate::pg::client::Client;
use crate::pg::{report, session};

/// An event that outlives its transaction. Texts are in the database's encoding.
#[derive(Default)]
pub struct Surviving<'a> {
    /// The tenant.
    pub tenant: Option<&'a [u8]>,
    /// The keys.
    pub key_ids: &'a [i64],
    /// How many values, or events, this stands for.
    pub value_count: Option<i64>,
    /// SQLSTATE of a failure or refusal.
    pub error_code: Option<&'a str>,
    /// Why, in the words of the error.
    pub reason: Option<&'a [u8]>,
    /// Who did it. `None` resolves it now, which reads catalogs: not in callbacks of transactions.
    pub client: Option<&'a Client>,
}

/// Queues an event. Reads no catalog if `client` is given, waits for no input or output.
///
/// Where there is no queue (no preload, a standby) the event goes to the server log.
pub fn push(event: Event, details: &Surviving<'_>) -> Result<(), Error> {
    let now;
    let client = match details.client {
        Some(client) => client,
        None => {
            now = Client::now();
            &now
        }
    };
    log_line(event, session::now(), client, details);
    Ok(())
}

/// One line of JSON in ASCII, whatever the database's encoding.
fn log_line(event: Event, at: i64, client: &Client, details: &Surviving<'_>) {
    let mut line = Map::new();
    line.insert("event".into(), json!(event.name()));
    line.insert("at".into(), json!(at));
    line.insert("actor".into(), text(&client.actor));
    line.insert("role".into(), text(&client.role));
    line.insert("client_address".into(), json!(client.address));
    line.insert("application".into(), text(&client.application));
    line.insert("backend_pid".into(), json!(client.process));
    line.insert("tenant".into(), details.tenant.map_or(Value::Null, text));
    line.insert("key_ids".into(), json!(details.key_ids));
    line.insert("value_count".into(), json!(details.value_count));
    line.insert("error_code".into(), json!(details.error_code));
    line.insert("reason".into(), details.reason.map_or(Value::Null, text));
    report::log(&format!("fieldcrypt audit: {}", in_ascii(&Value::Object(line).to_string())));
}

/// JSON with what is not ASCII escaped.
fn in_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => out.push(byte.into()),
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out
}

fn text(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}
