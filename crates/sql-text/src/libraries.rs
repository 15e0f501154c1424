//! Lines of libraries that write statements to the log themselves.

use crate::mask::mask;
use crate::messages::VALUE;
use crate::text::{OutOfMemory, Text};

/// What pgaudit writes, up to the first value.
const AUDIT: &[u8] = b"AUDIT: ";

/// Kind, two numbers, class and command of the statement; kind and name of an object; the statement, its parameters. Then
/// the rows, if they are counted.
const FIELDS: usize = 9;

/// What stands for parameters where there are none to be seen.
const NO_VALUES: [&[u8]; 3] = [b"<none>", b"<not logged>", b"<previously logged>"];

/// Masks a line of pgaudit, which is CSV: of a statement that is the client's own, literals; of any other, which may have
/// been put together from values, all that pgaudit does not say in words of its own; with values of parameters, everything.
pub fn mask_audit(message: &[u8], running: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    out.push(AUDIT)?;
    let line = message.strip_prefix(AUDIT).unwrap_or_default();
    let mut fields = [&b""[..]; FIELDS + 1];
    let count = split(line, &mut fields);
    let [own @ .., object_kind, object, statement, values, rows] = fields;
    let has_values = !NO_VALUES.contains(&values) || !rows.iter().all(u8::is_ascii_digit);
    if count.is_none_or(|count| count < FIELDS) || has_values {
        return out.push(VALUE);
    }
    for field in own {
        out.push(field)?;
        out.push(b",")?;
    }
    let Some(running) =
        [running, without_end(running)].into_iter().find(|own| says(statement, own))
    else {
        return out.push(VALUE);
    };
    for field in [object_kind, object] {
        out.push(field)?;
        out.push(b",")?;
    }
    let mut masked = Text::new();
    mask(running, &mut masked)?;
    push_csv(masked.as_bytes(), out)?;
    out.push(b",")?;
    out.push(values)?;
    if count > Some(FIELDS) {
        out.push(b",")?;
        out.push(rows)?;
    }
    Ok(())
}

/// Masks a line of pg_cron: the command of a job that starts, and whatever else it says of one, since that may be what the
/// job was told.
pub fn mask_job(message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    const JOB: &[u8] = b"cron job ";
    const STARTING: &[u8] = b" starting: ";
    let Some(rest) = message.strip_prefix(JOB) else { return out.push(VALUE) };
    let number = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    out.push(JOB)?;
    out.push(rest.get(..number).unwrap_or_default())?;
    let rest = rest.get(number..).unwrap_or_default();
    if let Some(command) = rest.strip_prefix(STARTING) {
        out.push(STARTING)?;
        return mask(command, out);
    }
    out.push(b": ")?;
    // How bad it is.
    let level = rest.strip_prefix(b": ").unwrap_or_default();
    let length = level.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    if length > 0 && level.get(length..).is_some_and(|rest| rest.starts_with(b": ")) {
        out.push(level.get(..length + 2).unwrap_or_default())?;
    }
    out.push(VALUE)
}

/// A statement without the semicolon that ends it and what is blank around it, as pgaudit for PostgreSQL 18 writes it.
fn without_end(statement: &[u8]) -> &[u8] {
    let statement = statement.trim_ascii();
    statement.strip_suffix(b";").unwrap_or(statement).trim_ascii_end()
}

/// Whether this is what a field of CSV says.
fn says(field: &[u8], text: &[u8]) -> bool {
    let [b'"', quoted @ .., b'"'] = field else { return field == text };
    let mut bytes = quoted.iter();
    let undoubled = std::iter::from_fn(|| {
        let byte = bytes.next()?;
        if *byte == b'"' {
            bytes.next();
        }
        Some(byte)
    });
    undoubled.eq(text)
}

/// How many fields there are. `None` if there are too many, or one has no end.
fn split<'t>(line: &'t [u8], fields: &mut [&'t [u8]]) -> Option<usize> {
    let mut rest = line;
    let mut count = 0;
    loop {
        let end = field_end(rest)?;
        *fields.get_mut(count)? = rest.get(..end)?;
        count += 1;
        match rest.get(end..)? {
            [] => return Some(count),
            [_, next @ ..] => rest = next,
        }
    }
}

/// Where the comma stands behind the first field, or the end.
fn field_end(text: &[u8]) -> Option<usize> {
    let comma = |from: usize| {
        let rest = text.get(from..)?;
        Some(from + rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len()))
    };
    if text.first() != Some(&b'"') {
        return comma(0);
    }
    let mut at = 1;
    loop {
        at += text.get(at..)?.iter().position(|byte| *byte == b'"')? + 1;
        match text.get(at) {
            Some(b'"') => at += 1,
            None | Some(b',') => return Some(at),
            Some(_) => return None,
        }
    }
}

fn push_csv(text: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    if !text.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        return out.push(text);
    }
    out.push(b"\"")?;
    for byte in text {
        out.push(if *byte == b'"' { b"\"\"" } else { std::slice::from_ref(byte) })?;
    }
    out.push(b"\"")
}
