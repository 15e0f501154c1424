//! Values of a row's key, as parts of a context: types that have one form for ever.

use std::ffi::CStr;

use fieldcrypt_envelope::Part;
use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::call::Call;
use super::text_forms::type_name;
use super::values;

/// The arguments of a call, one part each.
pub struct KeyValues<'c> {
    call: &'c Call,
    first: usize,
}

impl<'c> KeyValues<'c> {
    pub(super) fn of(call: &'c Call, first: usize) -> Self {
        Self { call, first }
    }

    /// The parts behind a name that stands before them; `None` where one is NULL.
    ///
    /// # Errors
    ///
    /// As of [`parts`](Self::parts).
    pub fn behind(&self, name: Part<'c>) -> Result<Option<Vec<Part<'c>>>, Error> {
        if self.call.is_variadic_array() {
            return Err(Error::ContextOfArray);
        }
        let mut parts = Vec::with_capacity(self.call.count() - self.first + 1);
        parts.push(name);
        for index in self.first..self.call.count() {
            let Some(datum) = self.call.datum(index) else { return Ok(None) };
            parts.push(self.part(index, datum)?);
        }
        Ok(Some(parts))
    }

    /// The parts. The first is a name.
    ///
    /// # Errors
    ///
    /// A part that is NULL; a type of which a value could be written in another way one day; an array that was passed
    /// for the list.
    pub fn parts(&self) -> Result<Vec<Part<'c>>, Error> {
        if self.call.is_variadic_array() {
            return Err(Error::ContextOfArray);
        }
        (self.first..self.call.count())
            .map(|index| {
                let datum = self.call.datum(index).ok_or(Error::ContextPartIsNull)?;
                self.part(index, datum)
            })
            .collect()
    }

    fn part(&self, index: usize, datum: Datum) -> Result<Part<'c>, Error> {
        let type_oid = self.call.argument_type(index);
        part(datum, type_oid)
            .ok_or_else(|| Error::ContextPartType { type_name: type_name(type_oid) })
    }
}

/// Refuses what every call of `fieldcrypt.context` refuses that has a value of this type in this place; `value` is what
/// it has there, where that is a constant.
pub(super) fn refuse_unless_part(
    index: usize,
    type_oid: Oid,
    value: Option<Datum>,
) -> Result<(), Error> {
    let Some(read) = reader(type_oid) else {
        return Err(Error::ContextPartType { type_name: type_name(type_oid) });
    };
    let is_name = match value.map(read) {
        Some(Part::Text(name)) => !name.is_empty(),
        Some(_) => false,
        None => is_text(type_oid),
    };
    if index == 0 && !is_name { Err(Error::ContextName) } else { Ok(()) }
}

fn is_text(type_oid: Oid) -> bool {
    // SAFETY: a catalog look-up by type.
    let base = unsafe { pg_sys::getBaseType(type_oid) };
    matches!(
        base,
        pg_sys::TEXTOID
            | pg_sys::VARCHAROID
            | pg_sys::BPCHAROID
            | pg_sys::NAMEOID
            | pg_sys::UNKNOWNOID
    )
}

/// A value as a part of a context; `None` for types that are refused.
fn part<'c>(datum: Datum, type_oid: Oid) -> Option<Part<'c>> {
    reader(type_oid).map(|read| read(datum))
}

/// How values of a type are read as parts of a context; `None` for types that are refused. A domain is its base type.
fn reader<'c>(type_oid: Oid) -> Option<fn(Datum) -> Part<'c>> {
    // SAFETY: the datum is of the type, which says how it is stored; it lives as long as the call.
    let read: fn(Datum) -> Part<'c> = unsafe {
        match type_oid {
            pg_sys::TEXTOID | pg_sys::VARCHAROID => |datum| Part::Text(values::detoasted(datum)),
            // A literal, of which nothing says what it is.
            pg_sys::UNKNOWNOID => |datum| {
                Part::Text(CStr::from_ptr(datum.cast_mut_ptr::<std::ffi::c_char>()).to_bytes())
            },
            // Blanks at its end mean nothing: as in the cast to text, they are left out.
            pg_sys::BPCHAROID => |datum| Part::Text(without_blanks(values::detoasted(datum))),
            pg_sys::NAMEOID => |datum| {
                let name = datum.cast_mut_ptr::<pg_sys::NameData>();
                Part::Text(CStr::from_ptr((*name).data.as_ptr()).to_bytes())
            },
            pg_sys::INT2OID => |datum| Part::Integer((datum.value() as i16).into()),
            pg_sys::INT4OID => |datum| Part::Integer((datum.value() as i32).into()),
            pg_sys::INT8OID => |datum| Part::Integer(datum.value() as i64),
            pg_sys::BOOLOID => |datum| Part::Boolean(datum.value() & 1 == 1),
            pg_sys::NUMERICOID => |datum| {
                let text = pg_sys::OidOutputFunctionCall(pg_sys::F_NUMERIC_OUT.into(), datum);
                Part::Numeric(CStr::from_ptr(text).to_bytes())
            },
            pg_sys::UUIDOID => |datum| Part::Uuid(&*datum.cast_mut_ptr::<[u8; 16]>()),
            pg_sys::DATEOID => |datum| Part::Date(datum.value() as i32),
            pg_sys::TIMESTAMPOID => |datum| Part::Timestamp(datum.value() as i64),
            pg_sys::TIMESTAMPTZOID => |datum| Part::Timestamptz(datum.value() as i64),
            other => {
                let base = pg_sys::getBaseType(other);
                return if base == other { None } else { reader(base) };
            }
        }
    };
    Some(read)
}

/// How values of the type of a column are read, looked up once.
#[derive(Clone, Copy)]
pub(super) struct PartReader(fn(Datum) -> Part<'static>);

impl PartReader {
    /// A value as a part, which must not outlive it.
    pub(super) fn part<'d>(&self, datum: Datum) -> Part<'d> {
        (self.0)(datum)
    }
}

/// How values of a type are read; `None` for types that are refused.
pub(super) fn part_reader(type_oid: Oid) -> Option<PartReader> {
    reader(type_oid).map(PartReader)
}

fn without_blanks(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &text[..end]
}
