//! Plaintexts of bound and loose values, between the values of Postgres's types and the bytes that are sealed.

use std::borrow::Cow;
use std::ffi::CStr;

use fieldcrypt_envelope::Form;
use fieldcrypt_envelope::forms::{NotOfForm, Value};
use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::json::Jsonb;
use super::text_forms::AnyValue;
use super::values::{self, Varlena};
use super::{encoding, text_forms, text_input};

/// The type whose values have plaintexts of a form.
pub fn type_of(form: Form) -> Oid {
    match form {
        Form::Text | Form::Lower | Form::Digits => pg_sys::TEXTOID,
        Form::Integer => pg_sys::INT8OID,
        Form::Numeric => pg_sys::NUMERICOID,
        Form::Date => pg_sys::DATEOID,
        Form::Timestamptz => pg_sys::TIMESTAMPTZOID,
        Form::Uuid => pg_sys::UUIDOID,
        Form::Boolean => pg_sys::BOOLOID,
        Form::Jsonb => pg_sys::JSONBOID,
    }
}

/// The form in which values of a type come in; `None` for types that are taken as texts, or not at all.
fn form_of(type_oid: Oid) -> Option<Form> {
    Some(match type_oid {
        pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => Form::Integer,
        pg_sys::NUMERICOID => Form::Numeric,
        pg_sys::DATEOID => Form::Date,
        pg_sys::TIMESTAMPTZOID => Form::Timestamptz,
        pg_sys::UUIDOID => Form::Uuid,
        pg_sys::BOOLOID => Form::Boolean,
        pg_sys::JSONBOID => Form::Jsonb,
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::NAMEOID => Form::Text,
        _ => return None,
    })
}

/// Whether values of a type become plaintexts by their output function: texts of all kinds, and words of a list. Others have
/// texts that go by settings, or are not one value.
pub fn is_written_as_text(type_oid: Oid) -> bool {
    // SAFETY: catalog look-ups by type.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        matches!(base, pg_sys::UNKNOWNOID | pg_sys::CSTRINGOID)
            || matches!(
                pg_sys::TypeCategory(base) as u8,
                pg_sys::TYPCATEGORY_STRING | pg_sys::TYPCATEGORY_ENUM
            )
    }
}

/// What is said of a value of another type.
pub fn not_one(type_oid: Oid) -> Error {
    Error::NotAPlaintext { type_name: text_forms::type_name(type_oid) }
}

impl AnyValue {
    /// Calls `work` with the form and the plaintext of a value; `None` for NULL.
    ///
    /// # Errors
    ///
    /// A type that no form is for.
    pub fn with_plaintext<R>(
        &self,
        work: impl FnOnce(Form, &[u8]) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        let Some(datum) = self.datum else { return Ok(None) };
        let (base, form) = match form_of(self.type_oid) {
            Some(form) => (self.type_oid, form),
            None => {
                // SAFETY: a catalog look-up by type. A domain is its base type.
                let base = unsafe { pg_sys::getBaseType(self.type_oid) };
                (base, form_of(base).ok_or_else(|| not_one(self.type_oid))?)
            }
        };
        // SAFETY: a value of the type, which is brought to the one that the form is of.
        let datum = unsafe {
            match base {
                pg_sys::INT2OID => Datum::from(i64::from(datum.value() as i16)),
                pg_sys::INT4OID => Datum::from(i64::from(datum.value() as i32)),
                pg_sys::BPCHAROID => {
                    let text = values::detoasted(datum);
                    let end =
                        text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
                    return with_text(&text[..end], |text| work(form, text)).map(Some);
                }
                pg_sys::NAMEOID => {
                    let name = datum.cast_mut_ptr::<pg_sys::NameData>();
                    let name = CStr::from_ptr((*name).data.as_ptr()).to_bytes();
                    return with_text(name, |text| work(form, text)).map(Some);
                }
                _ => datum,
            }
        };
        // SAFETY: as above.
        unsafe { encoded(form, datum, |plaintext| work(form, plaintext)) }.map(Some)
    }
}

/// Calls `work` with a column's value as a plaintext of a form; `None` for NULL. Documents of type json are read as texts are.
///
/// # Errors
///
/// A type that no form is for; a value that is none of the form.
pub fn of_column<R>(
    value: &AnyValue,
    form: Form,
    work: impl FnOnce(&[u8]) -> Result<R, Error>,
) -> Result<Option<R>, Error> {
    // SAFETY: a catalog look-up by type.
    let type_oid = unsafe { pg_sys::getBaseType(value.type_oid) };
    if type_oid == pg_sys::JSONOID {
        let Some(datum) = value.datum else { return Ok(None) };
        // SAFETY: a value of type json is a text.
        let text = unsafe { values::detoasted(datum) };
        return with_text(text, |text| converted(Form::Text, text, form, work)).map(Some);
    }
    let value = AnyValue { type_oid, datum: value.datum };
    value.with_plaintext(|from, plaintext| converted(from, plaintext, form, work))
}

/// A plaintext as a column takes it that has the type of a value, and this modifier.
pub fn as_in_column(
    form: Form,
    plaintext: &[u8],
    like: &AnyValue,
    modifier: i32,
) -> Result<AnyValue, Error> {
    // SAFETY: a catalog look-up by type.
    let type_oid = unsafe { pg_sys::getBaseType(like.type_oid) };
    Ok(AnyValue { type_oid, datum: for_column(form, plaintext, type_oid, modifier)? })
}

/// A plaintext as a column of a type takes it, with its limits of length and precision; `None` if it does not. No error
/// quotes it.
pub fn for_column(
    form: Form,
    plaintext: &[u8],
    type_oid: Oid,
    modifier: i32,
) -> Result<Option<Datum>, Error> {
    text_input::in_column(&as_text(form, plaintext)?, type_oid, modifier)
}

fn with_text<R>(text: &[u8], work: impl FnOnce(&[u8]) -> Result<R, Error>) -> Result<R, Error> {
    work(&encoding::to_utf8(text)?)
}

/// Calls `work` with the bytes that are sealed of a value.
///
/// # Safety
///
/// The datum is of [`type_of`] the form.
unsafe fn encoded<R>(
    form: Form,
    datum: Datum,
    work: impl FnOnce(&[u8]) -> Result<R, Error>,
) -> Result<R, Error> {
    let written: Cow<'_, [u8]>;
    // SAFETY: by the contract.
    let value = unsafe {
        match form {
            Form::Text | Form::Lower | Form::Digits => {
                written = encoding::to_utf8(values::detoasted(datum))?;
                Value::Text(utf8(&written)?)
            }
            Form::Jsonb => {
                written = encoding::to_utf8(Jsonb::new(datum).to_text())?;
                Value::Jsonb(utf8(&written)?)
            }
            Form::Numeric => {
                written = Cow::Borrowed(text_forms::output(datum, pg_sys::NUMERICOID));
                Value::Numeric(utf8(&written)?)
            }
            Form::Integer => Value::Integer(datum.value() as i64),
            Form::Date => Value::Date(datum.value() as i32),
            Form::Timestamptz => Value::Timestamptz(datum.value() as i64),
            Form::Uuid => Value::Uuid(*datum.cast_mut_ptr::<[u8; 16]>()),
            Form::Boolean => Value::Boolean(datum.value() & 1 == 1),
        }
    };
    let plaintext = form.encode(&value).map_err(|error| not_of(form, error))?;
    work(plaintext.as_bytes())
}

/// The value that the bytes are, of [`type_of`] the form, in the current memory context.
pub fn decoded(form: Form, plaintext: &[u8]) -> Result<Datum, Error> {
    // What was sealed is authentic: another form would be a fault of this library's, or of another version's.
    let value = form.decode(plaintext).map_err(|_| Error::NotText)?;
    Ok(match value {
        Value::Text(text) => Varlena::of(&encoding::from_utf8(text.as_bytes())?)?.into_datum(),
        Value::Jsonb(text) => Jsonb::parse(&encoding::from_utf8(text.as_bytes())?)?.datum(),
        Value::Numeric(text) => text_input::text_in_type(text.as_bytes(), pg_sys::NUMERICOID)?,
        Value::Integer(number) | Value::Timestamptz(number) => Datum::from(number),
        Value::Date(days) => Datum::from(days),
        Value::Boolean(value) => Datum::from(value),
        Value::Uuid(bytes) => {
            // SAFETY: 16 bytes of the current memory context.
            unsafe {
                let memory = pg_sys::palloc(16).cast::<u8>();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, 16);
                Datum::from(memory.cast::<std::ffi::c_void>())
            }
        }
    })
}

/// The text of a plaintext in the database's encoding, the same in all sessions.
pub fn as_text(form: Form, plaintext: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    match form {
        Form::Text | Form::Lower | Form::Digits | Form::Jsonb | Form::Numeric => {
            encoding::from_utf8(plaintext)
        }
        _ => {
            let datum = decoded(form, plaintext)?;
            // SAFETY: of that type.
            Ok(Cow::Borrowed(unsafe { text_forms::output(datum, type_of(form)) }))
        }
    }
}

/// A plaintext as a value of any type: of its own as it is, of others by its text.
pub fn in_type(form: Form, plaintext: &[u8], type_oid: Oid) -> Result<Datum, Error> {
    if type_oid == type_of(form) {
        return decoded(form, plaintext);
    }
    text_input::text_in_type(&as_text(form, plaintext)?, type_oid)
}

/// Calls `work` with a plaintext of another form, as an assignment to a column of that type makes it: a text is read as this
/// session reads one.
pub fn converted<R>(
    from: Form,
    plaintext: &[u8],
    to: Form,
    work: impl FnOnce(&[u8]) -> Result<R, Error>,
) -> Result<R, Error> {
    let is_text = |form| type_of(form) == pg_sys::TEXTOID;
    if from == to || is_text(from) && is_text(to) {
        return work(plaintext);
    }
    if is_text(to) {
        return with_text(&as_text(from, plaintext)?, work);
    }
    let text = if is_text(from) {
        encoding::from_utf8(plaintext)?
    } else {
        let datum = decoded(from, plaintext)?;
        // SAFETY: of that type.
        Cow::Borrowed(unsafe { text_forms::output_here(datum, type_of(from)) })
    };
    let datum = text_input::in_session(&text, type_of(to))?
        .ok_or(Error::NotOfForm { form: to.name(), column: None })?;
    // SAFETY: of that type.
    unsafe { encoded(to, datum, work) }
}

fn utf8(text: &[u8]) -> Result<&str, Error> {
    str::from_utf8(text).map_err(|_| Error::NotUtf8)
}

fn not_of(form: Form, NotOfForm: NotOfForm) -> Error {
    Error::NotOfForm { form: form.name(), column: None }
}
