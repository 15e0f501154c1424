//! Texts into values of their types, where a text says which value it is.
//!
//! What `encrypt_field_as` wrote is what the type's output function gives for the value that it is read as: nothing is
//! asked of such a text. Any other text was written by somebody else, under settings that nobody knows. Where it has a
//! date, a time or an interval in it, it is read in every way in which it can be meant, and refused if that matters.

use std::ffi::CStr;

use pgrx::pg_sys::Datum;
use pgrx::pg_sys::{self, Oid};

use super::text_forms::{self, Reading};
use super::values;
use super::{encoding, moments, report};
use fieldcrypt_error::{Error, Unclear};
use moments::Moments;

/// A text that is decrypted, and what it is to be read as.
struct Text<'t> {
    bytes: &'t [u8],
    c_string: Datum,
    type_oid: Oid,
    type_name: Vec<u8>,
}

/// Runs a type's input function over a text in the server's encoding.
///
/// Input functions quote the text in their errors, so whatever they raise is swallowed whole. The
/// caller must raise an error of its own then: nothing rolled back what the function did. Cancels,
/// lock conflicts and lack of memory keep their SQLSTATE, and are not quoted either.
pub fn text_in_type(bytes: &[u8], type_oid: Oid) -> Result<Datum, Error> {
    // The name before anything can fail: in an error state the catalogs must not be read.
    // SAFETY: a catalog look-up; the name is copied out of the palloc'd string.
    let type_name = unsafe { CStr::from_ptr(pg_sys::format_type_be(type_oid)).to_bytes().to_vec() };
    let text = Text { bytes, c_string: values::c_string(bytes)?, type_oid, type_name };
    let moments = Moments::of(type_oid);
    let Some(value) = text.read(Reading::FIXED)? else {
        // It would be a date in another order.
        let is_date = moments.is_plain && moments::begins_with_day_or_month(bytes);
        return Err(if is_date { text.unclear(Unclear::Order) } else { text.is_no_value() });
    };
    if moments.has_any() {
        text.refuse_if_unclear(value, &moments)?;
    }
    Ok(value)
}

/// The value that a text is in this session, as a column of the type takes it; `None` if it is none. No error quotes it.
pub fn in_session(bytes: &[u8], type_oid: Oid) -> Result<Option<Datum>, Error> {
    in_column(bytes, type_oid, -1)
}

/// The same, with the modifier of a column's type.
pub fn in_column(bytes: &[u8], type_oid: Oid, modifier: i32) -> Result<Option<Datum>, Error> {
    let text = Text { bytes, c_string: values::c_string(bytes)?, type_oid, type_name: Vec::new() };
    // SAFETY: catalog look-ups by type oid, then a call of the type's input function with the arguments that every input
    // function takes.
    text.attempt(|| unsafe {
        let mut function = pg_sys::InvalidOid;
        let mut io_parameter = pg_sys::InvalidOid;
        pg_sys::getTypeInputInfo(type_oid, &mut function, &mut io_parameter);
        let text = text.c_string.cast_mut_ptr();
        pg_sys::OidInputFunctionCall(function, text, io_parameter, modifier)
    })
}

impl Text<'_> {
    fn refuse_if_unclear(&self, value: Datum, moments: &Moments) -> Result<(), Error> {
        let written = self.written(value)?;
        if written == self.bytes {
            return Ok(());
        }
        if moments.has_time
            && let Some(unclear) = moments::unclear_word(self.bytes, moments.is_plain)
        {
            return Err(self.unclear(unclear));
        }
        if moments.has_time {
            for reading in Reading::OTHER_ORDERS {
                self.refuse_if_other(written, reading, Unclear::Order)?;
            }
        }
        // Without units it is of the style sql_standard, which no other style writes so.
        if moments.has_interval && self.bytes.iter().any(u8::is_ascii_alphabetic) {
            self.refuse_if_other(written, Reading::OTHER_INTERVALS, Unclear::Sign)?;
        }
        Ok(())
    }

    fn refuse_if_other(&self, written: &[u8], reading: Reading, why: Unclear) -> Result<(), Error> {
        match self.read(reading)? {
            Some(other) if self.written(other)? == written => Ok(()),
            _ => Err(self.unclear(why)),
        }
    }

    /// The value; `None` if the type has none for the text.
    fn read(&self, reading: Reading) -> Result<Option<Datum>, Error> {
        // SAFETY: catalog look-ups by type oid, then a call of the type's input function with the
        // arguments that every input function takes.
        self.attempt(|| unsafe {
            let mut function = pg_sys::InvalidOid;
            let mut io_parameter = pg_sys::InvalidOid;
            pg_sys::getTypeInputInfo(self.type_oid, &mut function, &mut io_parameter);
            text_forms::read_as(self.type_oid, reading, || {
                let text = self.c_string.cast_mut_ptr::<std::ffi::c_char>();
                pg_sys::OidInputFunctionCall(function, text, io_parameter, -1)
            })
        })
    }

    /// A value that was read, as `encrypt_field_as` writes it.
    fn written<'a>(&self, value: Datum) -> Result<&'a [u8], Error> {
        // SAFETY: a value of the type.
        let written = self.attempt(|| unsafe { text_forms::output(value, self.type_oid) })?;
        written.ok_or_else(|| self.is_no_value())
    }

    /// Runs a function of the type; `None` if it raises an error that may quote the text.
    fn attempt<R>(&self, work: impl FnOnce() -> R) -> Result<Option<R>, Error> {
        pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(|| Ok(Some(work()))))
            .catch_others(|caught| {
                match report::of_the_system(
                    &caught,
                    "the conversion of a decrypted value was stopped",
                ) {
                    Some(report) if report.sqlstate.0 == *b"53200" => {
                        Err(Error::OutOfMemory { what: "the conversion of a decrypted value" })
                    }
                    Some(report) => Err(Error::Postgres(Box::new(report))),
                    None => Ok(None),
                }
            })
            .execute()
    }

    fn is_no_value(&self) -> Error {
        Error::Conversion { type_name: encoding::lossy(&self.type_name) }
    }

    fn unclear(&self, why: Unclear) -> Error {
        Error::UnclearText { type_name: encoding::lossy(&self.type_name), why }
    }
}
