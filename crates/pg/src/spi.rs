//! SQL that the extension runs itself: to write keys, and to write and read the audit log; never per value.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, BuiltinOid, Datum, PgOid};
use pgrx::spi::{OwnedPreparedStatement, Spi, SpiClient, SpiTupleTable};

use super::memory::Scratch;
use super::setting::TemporarySettings;
use super::tuple::Row;
use super::values::Varlena;
use super::{encoding, transaction};
use fieldcrypt_error::Error;

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
    /// `timestamptz`, in Postgres's own time, or NULL.
    Time(Option<i64>),
    /// A datum of this type in the current memory context, or NULL.
    Made(BuiltinOid, Option<Datum>),
}

impl Parameter<'_> {
    fn type_oid(&self) -> BuiltinOid {
        match self {
            Self::Text(_) => BuiltinOid::TEXTOID,
            Self::Bytea(_) => BuiltinOid::BYTEAOID,
            Self::BigInt(_) => BuiltinOid::INT8OID,
            Self::Integer(_) => BuiltinOid::INT4OID,
            Self::Time(_) => BuiltinOid::TIMESTAMPTZOID,
            Self::Made(made_type, _) => *made_type,
        }
    }

    fn datum(&self) -> Result<Option<Datum>, Error> {
        Ok(match self {
            Self::Text(text) => text.map(Varlena::of).transpose()?.map(Varlena::into_datum),
            Self::Bytea(bytes) => Some(Varlena::of(bytes)?.into_datum()),
            Self::BigInt(number) | Self::Time(number) => number.map(Datum::from),
            Self::Integer(number) => Some(Datum::from(*number)),
            Self::Made(_, datum) => *datum,
        })
    }

    fn argument<'d>(&self) -> Result<DatumWithOid<'d>, Error> {
        let oid = pg_sys::Oid::from(self.type_oid());
        Ok(match self.datum()? {
            // SAFETY: the datum was made for this type; a varlena lives in the current memory
            // context, which outlives the statement.
            Some(datum) => unsafe { DatumWithOid::new(datum, oid) },
            None => DatumWithOid::null_oid(oid),
        })
    }
}

struct Plan {
    statement: &'static str,
    only_reads: bool,
    prepared: &'static OwnedPreparedStatement,
}

thread_local! {
    static PLANS: RefCell<Vec<Plan>> = const { RefCell::new(Vec::new()) };
}

/// Runs a statement that writes, planned once a session; returns the rows it touched.
pub fn execute(statement: &'static str, parameters: &[Parameter<'_>]) -> Result<u64, Error> {
    run(statement, parameters, |table| Ok(table.len() as u64))
}

/// A statement that was planned. Who has it gives it back.
#[derive(Clone, Copy)]
pub struct Prepared(pg_sys::SPIPlanPtr);

/// Plans a statement, which is in UTF-8. Whatever the session says of them, backslashes in its texts mean nothing.
pub fn prepare(statement: &str, types: &[pg_sys::Oid]) -> Result<Prepared, Error> {
    let text = c_statement(statement)?;
    let mut types = types.to_vec();
    let guard = TemporarySettings::begin(&[(c"standard_conforming_strings", c"on")]);
    let plan = Spi::connect_mut(|_| {
        // SAFETY: inside of a connection; a plan that is kept lives until it is freed.
        unsafe {
            let plan = pg_sys::SPI_prepare(text.as_ptr(), types.len() as i32, types.as_mut_ptr());
            if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
                return Err(Error::Internal("SPI has no plan for a statement".into()));
            }
            Ok(plan)
        }
    })?;
    guard.end();
    Ok(Prepared(plan))
}

impl Prepared {
    /// Gives it back. Nobody runs it any more.
    pub fn free(self) {
        // SAFETY: kept by `prepare`, freed once.
        unsafe { pg_sys::SPI_freeplan(self.0) };
    }

    /// Runs it with values of the types that it was planned for. Gives the number of its rows, and of the first that it
    /// returns what `make` makes of it, a tuple, in the caller's memory.
    pub fn run_for_row(
        self,
        values: &[Option<Datum>],
        make: impl FnOnce(&Row<'_>) -> Option<Datum>,
    ) -> Result<(u64, Option<Datum>), Error> {
        let nulls: Vec<std::ffi::c_char> =
            values.iter().map(|value| if value.is_none() { b'n' } else { b' ' } as _).collect();
        let mut values: Vec<Datum> =
            values.iter().map(|value| value.unwrap_or(Datum::null())).collect();
        Spi::connect_mut(|_| {
            // SAFETY: as many values as the plan has parameters, of their types, by the contract of who has them from a row.
            // What the statement has set lives until the end of the connection; what is made is copied to where the
            // caller's memory is.
            unsafe {
                let outcome =
                    pg_sys::SPI_execute_plan(self.0, values.as_mut_ptr(), nulls.as_ptr(), false, 0);
                if outcome < 0 {
                    return Err(Error::Internal(format!("SPI: {outcome}")));
                }
                let (rows, table) = (pg_sys::SPI_processed, pg_sys::SPI_tuptable);
                if table.is_null() || rows == 0 || (*(*table).tupdesc).natts == 0 {
                    return Ok((rows, None));
                }
                let made = make(&Row::deform(*(*table).vals, (*table).tupdesc));
                Ok((rows, made.map(|tuple| pg_sys::SPI_copytuple(tuple.cast_mut_ptr()).into())))
            }
        })
    }
}

/// Runs a statement, in UTF-8, that is not run again.
pub fn execute_once(statement: &str) -> Result<(), Error> {
    let text = c_statement(statement)?;
    Spi::connect_mut(|_| {
        // SAFETY: inside of a connection.
        match unsafe { pg_sys::SPI_execute(text.as_ptr(), false, 0) } {
            outcome if outcome < 0 => Err(Error::Internal(format!("SPI: {outcome}"))),
            _ => Ok(()),
        }
    })
}

/// The same; gives the text in the first column of its first row, if it gives any.
pub fn text_once(statement: &str) -> Result<Option<String>, Error> {
    let text = c_statement(statement)?;
    Spi::connect_mut(|_| {
        // SAFETY: inside of a connection, of which the table of rows is; the string is copied.
        unsafe {
            match pg_sys::SPI_execute(text.as_ptr(), false, 0) {
                outcome if outcome < 0 => return Err(Error::Internal(format!("SPI: {outcome}"))),
                _ => {}
            }
            let table = pg_sys::SPI_tuptable;
            if table.is_null() || pg_sys::SPI_processed == 0 {
                return Ok(None);
            }
            let value = pg_sys::SPI_getvalue(*(*table).vals, (*table).tupdesc, 1);
            if value.is_null() {
                return Ok(None);
            }
            encoding::to_string(CStr::from_ptr(value).to_bytes()).map(Some)
        }
    })
}

/// A statement in the database's encoding.
fn c_statement(statement: &str) -> Result<CString, Error> {
    let text = encoding::from_utf8(statement.as_bytes())?.into_owned();
    CString::new(text).map_err(|_| Error::NotText)
}

/// Runs a statement and returns the text in the first column of its first row, in UTF-8 databases only
/// if it is UTF-8.
pub fn text(
    statement: &'static str,
    parameters: &[Parameter<'_>],
) -> Result<Option<String>, Error> {
    run(statement, parameters, |table| table.first().get::<String>(1))
}

/// What `read` makes of the first row of a query, which is meant to give one; `None` if it gives none.
pub fn first_row<T>(
    statement: &'static str,
    parameters: &[Parameter<'_>],
    read: impl FnMut(&Row<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    rows(statement, parameters, read).map(|rows| rows.into_iter().next())
}

/// What `read` makes of the rows of a query, which are few.
pub fn rows<T>(
    statement: &'static str,
    parameters: &[Parameter<'_>],
    mut read: impl FnMut(&Row<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut rows = Vec::new();
    each_row(statement, parameters, |row| {
        rows.push(read(row)?);
        Ok(())
    })?;
    Ok(rows)
}

/// Calls `visit` with each row of a query, in memory that does not grow with their number. What `visit`
/// keeps must not point into the row. It may run statements itself.
pub fn each_row(
    statement: &'static str,
    parameters: &[Parameter<'_>],
    mut visit: impl FnMut(&Row<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    const BATCH: usize = 1000;
    let arguments = parameters.iter().map(Parameter::argument).collect::<Result<Vec<_>, _>>()?;
    // A standby takes statements that only read. Elsewhere they are run as if they wrote, so that each sees
    // what is committed now.
    let only_reads = transaction::is_standby();
    Spi::connect_mut(|client| {
        let plan = planned(client, statement, parameters, only_reads).map_err(internal)?;
        let mut cursor = if only_reads {
            client.try_open_cursor(plan, &arguments)
        } else {
            client.try_open_cursor_mut(plan, &arguments)
        }
        .map_err(internal)?;
        let scratch = Scratch::new();
        loop {
            let count = cursor.fetch(BATCH as _).map_err(internal)?.len();
            // SAFETY: what the fetch has just set; each row is one of the table's and described by it, and
            // used before the table is freed. `visit` may change the variable, not the table.
            unsafe {
                let table = pg_sys::SPI_tuptable;
                if table.is_null() {
                    break;
                }
                let outcome = scratch.run(|| {
                    (0..count).try_for_each(|index| {
                        visit(&Row::deform(*(*table).vals.add(index), (*table).tupdesc))
                    })
                });
                pg_sys::SPI_freetuptable(table);
                outcome?;
            }
            if count < BATCH {
                break;
            }
            transaction::check_for_interrupts();
        }
        scratch.end();
        Ok(())
    })
}

fn run<R>(
    statement: &'static str,
    parameters: &[Parameter<'_>],
    read: impl FnOnce(SpiTupleTable<'_>) -> Result<R, pgrx::spi::Error>,
) -> Result<R, Error> {
    let arguments = parameters.iter().map(Parameter::argument).collect::<Result<Vec<_>, _>>()?;
    Spi::connect_mut(|client| {
        let plan = planned(client, statement, parameters, false)?;
        read(client.update(plan, None, &arguments)?)
    })
    .map_err(internal)
}

fn planned(
    client: &mut SpiClient<'_>,
    statement: &'static str,
    parameters: &[Parameter<'_>],
    only_reads: bool,
) -> Result<&'static OwnedPreparedStatement, pgrx::spi::Error> {
    let known = PLANS.with_borrow(|plans| {
        let is_known = |plan: &&Plan| plan.statement == statement && plan.only_reads == only_reads;
        plans.iter().find(is_known).map(|plan| plan.prepared)
    });
    if let Some(plan) = known {
        return Ok(plan);
    }
    let types: Vec<PgOid> = parameters.iter().map(|one| PgOid::BuiltIn(one.type_oid())).collect();
    // Leaked: a plan lives as long as its session, and freeing it when the process exits would call
    // into a Postgres that is gone.
    let prepared = if only_reads {
        client.prepare(statement, &types)?.keep()
    } else {
        client.prepare_mut(statement, &types)?.keep()
    };
    let prepared: &'static _ = Box::leak(Box::new(prepared));
    PLANS.with_borrow_mut(|plans| plans.push(Plan { statement, only_reads, prepared }));
    Ok(prepared)
}

fn internal(error: pgrx::spi::Error) -> Error {
    Error::Internal(format!("SPI: {error}"))
}
