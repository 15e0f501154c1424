//! Between the database's encoding and UTF-8, in which plaintexts and contexts are sealed.
//!
//! Nothing here quotes the bytes it can't convert, as Postgres's own errors would.

use std::borrow::Cow;
use std::cell::OnceCell;

use pgrx::pg_sys;

use super::reserve;
use fieldcrypt_error::Error;

const UTF8: i32 = pg_sys::pg_enc::PG_UTF8 as i32;
const SQL_ASCII: i32 = pg_sys::pg_enc::PG_SQL_ASCII as i32;

/// A text of the database in UTF-8.
#[inline]
pub fn to_utf8(text: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    match database_encoding() {
        UTF8 => Ok(Cow::Borrowed(text)),
        SQL_ASCII => match str::from_utf8(text) {
            Ok(_) => Ok(Cow::Borrowed(text)),
            Err(_) => Err(Error::NotUtf8),
        },
        encoding => convert(text, encoding, UTF8)?.map(Cow::Owned).ok_or(Error::NotUtf8),
    }
}

/// The same as a Rust string.
pub fn to_string(text: &[u8]) -> Result<String, Error> {
    let owned = match to_utf8(text)? {
        Cow::Owned(converted) => converted,
        Cow::Borrowed(text) => {
            reserve::room(text.len(), "a text")?;
            text.to_vec()
        }
    };
    String::from_utf8(owned).map_err(|_| Error::NotUtf8)
}

/// At most so many bytes of a text of the database, with no character cut in two.
pub fn clipped(text: &[u8], limit: usize) -> &[u8] {
    let limit = limit.min(text.len());
    let (Ok(length), Ok(most)) = (i32::try_from(text.len()), i32::try_from(limit)) else {
        return &[];
    };
    // SAFETY: reads at most `length` bytes of the text, in the encoding of the database.
    let clipped = unsafe { pg_sys::pg_mbcliplen(text.as_ptr().cast(), length, most) };
    text.get(..clipped.unsigned_abs() as usize).unwrap_or_default()
}

/// UTF-8 bytes as a text of the database. Refuses what is not UTF-8, has a NUL, or can't be written
/// in the database's encoding.
#[inline]
pub fn from_utf8(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    if str::from_utf8(bytes).is_err() || bytes.contains(&0) {
        return Err(Error::NotText);
    }
    match database_encoding() {
        UTF8 | SQL_ASCII => Ok(Cow::Borrowed(bytes)),
        encoding => convert(bytes, UTF8, encoding)?.map(Cow::Owned).ok_or(Error::Untranslatable),
    }
}

/// A text of the database in the form in which the audit log is sealed: UTF-8, where it can be that.
/// Otherwise its bytes one by one, each as the character of its number, behind a NUL, which no text of
/// Postgres holds: different texts stay different.
pub fn as_utf8(text: &[u8]) -> Cow<'_, str> {
    match to_utf8(text) {
        Ok(Cow::Borrowed(utf8)) => match str::from_utf8(utf8) {
            Ok(utf8) => Cow::Borrowed(utf8),
            Err(_) => Cow::Owned(byte_by_byte(text)),
        },
        Ok(Cow::Owned(utf8)) => {
            Cow::Owned(String::from_utf8(utf8).unwrap_or_else(|_| byte_by_byte(text)))
        }
        Err(_) => Cow::Owned(byte_by_byte(text)),
    }
}

fn byte_by_byte(text: &[u8]) -> String {
    std::iter::once('\0').chain(text.iter().map(|byte| char::from(*byte))).collect()
}

/// A name of the cluster, which may have been given in a database of another encoding, as a text of this
/// one: what it can't be is written in hex. A row with other bytes could not be restored from a dump.
pub fn storable(name: &[u8]) -> Vec<u8> {
    let length = i32::try_from(name.len()).unwrap_or(0);
    // SAFETY: reads so many bytes; with `noError` it says whether they are a text of the database.
    if unsafe { pg_sys::pg_verify_mbstr(database_encoding(), name.as_ptr().cast(), length, true) } {
        return name.to_vec();
    }
    name.iter()
        .flat_map(|byte| match byte {
            b' '..=b'~' => vec![*byte],
            _ => format!("\\x{byte:02x}").into_bytes(),
        })
        .collect()
}

/// A text of the database as a Rust string, for names in messages.
pub fn lossy(text: &[u8]) -> String {
    match to_utf8(text) {
        Ok(utf8) => String::from_utf8_lossy(&utf8).into_owned(),
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    }
}

/// Whether texts of the database are UTF-8, as far as that is known yet: a setting is checked before there is a
/// database, too.
pub fn is_known_to_be_utf8() -> bool {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::GetDatabaseEncoding() == UTF8 }
}

/// Whether a text of the database reaches the client as it is, or surely can be converted for it. Looks up nothing,
/// so that it can be asked outside a transaction.
pub fn is_client_able_to_read(text: &std::ffi::CStr) -> bool {
    // SAFETY: reads variables of the backend.
    let (client, database) =
        unsafe { (pg_sys::pg_get_client_encoding(), pg_sys::GetDatabaseEncoding()) };
    text.to_bytes().is_ascii() || client == database || client == SQL_ASCII
}

fn database_encoding() -> i32 {
    thread_local! { static ENCODING: OnceCell<i32> = const { OnceCell::new() } }
    // SAFETY: reads a variable that is set once a backend's life, before any SQL runs.
    ENCODING.with(|known| *known.get_or_init(|| unsafe { pg_sys::GetDatabaseEncoding() }))
}

fn convert(text: &[u8], from: i32, to: i32) -> Result<Option<Vec<u8>>, Error> {
    // `MAX_CONVERSION_GROWTH` of `pg_wchar.h`, and the NUL that the conversion writes.
    let capacity = text.len().saturating_mul(4).saturating_add(1);
    let (Ok(source_length), Ok(capacity_i32)) =
        (i32::try_from(text.len()), i32::try_from(capacity))
    else {
        return Err(Error::TooLarge { bytes: capacity });
    };
    let mut out = Vec::new();
    reserve::may_fail(|| out.try_reserve_exact(capacity))
        .map_err(|_| Error::OutOfMemory { what: "a text in another encoding" })?;
    out.resize(capacity, 0u8);
    // SAFETY: source and destination are valid for the lengths given; the conversion writes at most
    // `capacity` bytes, the last of them NUL, and with `noError` stops where it can't go on.
    let converted = unsafe {
        let procedure = pg_sys::FindDefaultConversionProc(from, to);
        if procedure == pg_sys::InvalidOid {
            return Ok(None);
        }
        pg_sys::pg_do_encoding_conversion_buf(
            procedure,
            from,
            to,
            text.as_ptr().cast_mut(),
            source_length,
            out.as_mut_ptr(),
            capacity_i32,
            true,
        )
    };
    let length = out.iter().position(|byte| *byte == 0);
    Ok(match length {
        Some(length) if converted == source_length => {
            out.truncate(length);
            Some(out)
        }
        _ => None,
    })
}
