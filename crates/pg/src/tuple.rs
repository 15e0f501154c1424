//! A heap tuple, taken apart.

use std::marker::PhantomData;

use pgrx::pg_sys::{self, Datum};

use super::json::Jsonb;
use super::network::Inet;
use super::{arrays, encoding, values, version};
use fieldcrypt_error::Error;

/// The columns of a tuple, by attribute number (the first is 1).
pub struct Row<'t> {
    tuple: pg_sys::HeapTuple,
    values: Vec<Datum>,
    nulls: Vec<bool>,
    descriptor: pg_sys::TupleDesc,
    of: PhantomData<&'t ()>,
}

impl Row<'_> {
    /// Takes a tuple apart.
    ///
    /// # Safety
    ///
    /// The tuple must be valid, be described by `descriptor`, and outlive the row.
    pub unsafe fn deform(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Self {
        // SAFETY: by the contract; the arrays have a place for every attribute.
        unsafe {
            let columns = (*descriptor).natts as usize;
            let mut values = vec![Datum::null(); columns];
            let mut nulls = vec![true; columns];
            pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            Self { tuple, values, nulls, descriptor, of: PhantomData }
        }
    }

    /// A column, `None` if it is NULL.
    pub fn datum(&self, column: i16) -> Option<Datum> {
        let index = usize::try_from(column).ok()?.checked_sub(1)?;
        let is_null = *self.nulls.get(index)?;
        if is_null { None } else { self.values.get(index).copied() }
    }

    /// An `oid` column.
    pub(super) fn oid(&self, column: i16) -> Option<pg_sys::Oid> {
        self.datum(column).map(|datum| pg_sys::Oid::from_u32(datum.value() as u32))
    }

    /// A column of the extension's own tables, or of a query over them, which has one of these types unless a
    /// superuser has given it another.
    fn typed(&self, column: i16, types: &[pg_sys::Oid]) -> Result<Option<Datum>, Error> {
        let Some(datum) = self.datum(column) else { return Ok(None) };
        // SAFETY: `datum` has found the column; the descriptor outlives the row.
        let attribute = unsafe { &*version::attribute(self.descriptor, column as usize - 1) };
        if types.contains(&attribute.atttypid) {
            return Ok(Some(datum));
        }
        // SAFETY: a name ends with a zero byte.
        let name = unsafe { std::ffi::CStr::from_ptr(attribute.attname.data.as_ptr()) };
        Err(Error::KeyTable(format!(
            "column {} of a table of pg_fieldcrypt no longer has the type that it was made with",
            encoding::lossy(name.to_bytes())
        )))
    }

    /// A `text` (or what is one in the memory) or `bytea` column, detoasted.
    pub fn optional_bytes(&self, column: i16) -> Result<Option<&[u8]>, Error> {
        let datum = self.typed(column, &[pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::BYTEAOID])?;
        // SAFETY: a varlena; the tuple outlives the row.
        Ok(datum.map(|datum| unsafe { values::detoasted(datum) }))
    }

    /// A varlena column that is never NULL.
    pub fn bytes(&self, column: i16) -> Result<&[u8], Error> {
        self.optional_bytes(column)?.ok_or_else(unexpected_null)
    }

    /// A `text[]` column.
    pub fn texts(&self, column: i16) -> Result<Option<Vec<&[u8]>>, Error> {
        let datum = self.typed(column, &[pg_sys::TEXTARRAYOID])?;
        // SAFETY: of that type; the tuple outlives the row.
        Ok(datum.map(|datum| unsafe { arrays::texts(datum) }))
    }

    /// A `bigint[]` column.
    pub fn bigints(&self, column: i16) -> Result<Option<Vec<i64>>, Error> {
        let datum = self.typed(column, &[pg_sys::INT8ARRAYOID])?;
        // SAFETY: of that type.
        Ok(datum.map(|datum| unsafe { arrays::bigints(datum) }))
    }

    /// A `jsonb` column.
    pub fn jsonb(&self, column: i16) -> Result<Option<Jsonb<'_>>, Error> {
        let datum = self.typed(column, &[pg_sys::JSONBOID])?;
        // SAFETY: of that type.
        Ok(datum.map(|datum| unsafe { Jsonb::new(datum) }))
    }

    /// An `inet` column.
    pub fn inet(&self, column: i16) -> Result<Option<Inet<'_>>, Error> {
        let datum = self.typed(column, &[pg_sys::INETOID])?;
        // SAFETY: of that type.
        Ok(datum.map(|datum| unsafe { Inet::new(datum) }))
    }

    /// A `bytea` column of 16 bytes.
    pub fn sixteen_bytes(&self, column: i16) -> Result<[u8; 16], Error> {
        self.bytes(column)?
            .try_into()
            .map_err(|_| Error::KeyTable("a fingerprint or check value is not 16 bytes".into()))
    }

    /// A `bigint`, `timestamptz` or `xid8` column that is never NULL.
    pub fn bigint(&self, column: i16) -> Result<i64, Error> {
        self.optional_bigint(column)?.ok_or_else(unexpected_null)
    }

    /// The same, where it may be.
    pub fn optional_bigint(&self, column: i16) -> Result<Option<i64>, Error> {
        const TYPES: &[pg_sys::Oid] = &[pg_sys::INT8OID, pg_sys::TIMESTAMPTZOID, pg_sys::XID8OID];
        Ok(self.typed(column, TYPES)?.map(|datum| datum.value() as i64))
    }

    /// An `integer` column.
    pub fn integer(&self, column: i16) -> Result<i32, Error> {
        let datum = self.typed(column, &[pg_sys::INT4OID])?.ok_or_else(unexpected_null)?;
        Ok(datum.value() as i32)
    }

    /// A `boolean` column.
    pub fn boolean(&self, column: i16) -> Result<bool, Error> {
        let datum = self.typed(column, &[pg_sys::BOOLOID])?.ok_or_else(unexpected_null)?;
        Ok(datum.value() & 1 == 1)
    }

    /// Whether the current transaction, or a subtransaction of it, wrote this version of the row.
    pub fn is_of_current_transaction(&self) -> bool {
        // SAFETY: the tuple is valid; its header is read as HeapTupleHeaderGetXmin does. A frozen
        // xmin is of a transaction long gone, whatever number it shows.
        unsafe {
            let header = (*self.tuple).t_data;
            let frozen = pg_sys::HEAP_XMIN_FROZEN as u16;
            if (*header).t_infomask & frozen == frozen {
                return false;
            }
            pg_sys::TransactionIdIsCurrentTransactionId((*header).t_choice.t_heap.t_xmin)
        }
    }
}

fn unexpected_null() -> Error {
    Error::KeyTable("a column that is never NULL is NULL".into())
}
