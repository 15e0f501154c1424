//! SQL that the extension runs itself: only to write keys and audit rows, never per value.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, BuiltinOid, Datum};
use pgrx::spi::Spi;

use super::values::Varlena;
use crate::error::Error;

/// A parameter of a statement. Texts are bytes in the database's encoding.
pub enum Parameter<'a> {
    /// `text`, or NULL.
    Text(Option<&'a [u8]>),
    /// `bytea`.
    Bytea(&'a [u8]),
    /// `bigint`, or NULL.
    BigInt(Option<i64>),
    /// `integer`.
    Integer(i32),
}

/// Runs a statement that writes; returns the rows it touched.
pub fn execute(statement: &str, parameters: &[Parameter<'_>]) -> Result<u64, Error> {
    let arguments = parameters.iter().map(argument).collect::<Result<Vec<_>, _>>()?;
    Spi::connect_mut(|client| {
        client.update(statement, None, &arguments).map(|table| table.len() as u64)
    })
    .map_err(|error| Error::Internal(format!("SPI: {error}")))
}

fn argument<'a>(parameter: &Parameter<'_>) -> Result<DatumWithOid<'a>, Error> {
    let (datum, oid) = match parameter {
        Parameter::Text(text) => {
            (text.map(Varlena::of).transpose()?.map(Varlena::into_datum), BuiltinOid::TEXTOID)
        }
        Parameter::Bytea(bytes) => (Some(Varlena::of(bytes)?.into_datum()), BuiltinOid::BYTEAOID),
        Parameter::BigInt(number) => (number.map(Datum::from), BuiltinOid::INT8OID),
        Parameter::Integer(number) => (Some(Datum::from(*number)), BuiltinOid::INT4OID),
    };
    let oid = pg_sys::Oid::from(oid);
    // SAFETY: each datum was made for the type it is paired with; the varlenas live in the current
    // memory context, which outlives the statement.
    Ok(match datum {
        Some(datum) => unsafe { DatumWithOid::new(datum, oid) },
        None => DatumWithOid::null_oid(oid),
    })
}
