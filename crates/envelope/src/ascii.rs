//! Documents that every encoding can hold.

/// JSON with what is not ASCII escaped: every database encoding, mail and printer keeps it as it is.
pub fn to_ascii(json: &str) -> String {
    if json.is_ascii() {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len() + json.len() / 8);
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => out.push(byte.into()),
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out
}
