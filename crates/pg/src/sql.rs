//! SQL types as they are declared in `sql/`, and what they are in Rust: the arguments and results of the
//! functions that [`sql_functions!`](crate::sql_functions) defines. A test compares the declarations.
#![allow(non_camel_case_types)]

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::call::Call;
use super::json::Jsonb;
use super::values::{CText, Varlena};

/// A type that an argument may have.
pub trait Argument {
    /// What the function is given.
    type Value<'c>;

    /// The argument at a place of a call, of a function that is declared so.
    fn of(call: &Call, index: usize) -> Self::Value<'_>;
}

/// A type that a result may have.
pub trait Answer {
    /// What the function gives.
    type Value;

    /// The result of a call; `None` is NULL.
    fn datum(value: Self::Value, call: &Call) -> Result<Option<Datum>, Error>;
}

/// Types of which an argument is an optional value in Rust.
macro_rules! arguments {
    ($($(#[$what:meta])* $name:ident: $value:ty = $read:expr;)*) => {$(
        $(#[$what])*
        pub struct $name;

        impl Argument for $name {
            type Value<'c> = Option<$value>;

            #[inline]
            fn of(call: &Call, index: usize) -> Self::Value<'_> {
                // SAFETY: a function that is declared with this type is called with it.
                unsafe { $read(call, index) }
            }
        }
    )*};
}

arguments! {
    /// Text in the database's encoding.
    text: &'c [u8] = Call::bytes;
    /// Bytes.
    bytea: &'c [u8] = Call::bytes;
    /// A value of type `fieldcrypt.encrypted`.
    encrypted: &'c [u8] = Call::bytes;
    /// A name, without its padding.
    name: &'c [u8] = Call::name;
    /// A C string without its end.
    cstring: &'c [u8] = Call::c_string;
    /// What is left of a binary message, the argument of a receive function.
    internal: &'c [u8] = Call::message_rest;
    /// A document.
    jsonb: Jsonb = Call::jsonb;
    /// A number of 64 bits.
    bigint: i64 = Call::bigint;
    /// Microseconds since 2000-01-01.
    timestamptz: i64 = Call::bigint;
    /// A number of 32 bits.
    integer: i32 = Call::integer;
    /// True or false.
    boolean: bool = Call::boolean;
    /// A relation.
    regclass: Oid = Call::oid;
    /// An object.
    oid: Oid = Call::oid;
}

/// A type of the caller's choice: as an argument it is the type, whatever the value; as a result, a value
/// of it.
pub struct anyelement;

impl Argument for anyelement {
    type Value<'c> = Oid;

    fn of(call: &Call, index: usize) -> Oid {
        call.argument_type(index)
    }
}

/// Types of which a result is one of Rust's, or none.
macro_rules! answers {
    ($($name:ident: $value:ty => $datum:expr;)*) => {$(
        impl Answer for $name {
            type Value = $value;

            #[inline]
            fn datum(value: $value, _: &Call) -> Result<Option<Datum>, Error> {
                $datum(value)
            }
        }
    )*};
}

fn varlena(value: Option<Varlena>) -> Result<Option<Datum>, Error> {
    Ok(value.map(Varlena::into_datum))
}

answers! {
    text: Option<Varlena> => varlena;
    bytea: Option<Varlena> => varlena;
    encrypted: Option<Varlena> => varlena;
    cstring: Option<CText> => |value: Option<CText>| Ok(value.map(CText::into_datum));
    jsonb: Option<Datum> => Ok;
    anyelement: Option<Datum> => Ok;
    bigint: Option<i64> => |value: Option<i64>| Ok(value.map(Datum::from));
    integer: i32 => |value| Ok(Some(Datum::from(value)));
    boolean: bool => |value| Ok(Some(Datum::from(value)));
    void: () => |()| Ok(Some(Datum::null()));
}

/// Nothing.
pub struct void;

/// Columns that the declaration names. A [`Record`] has as many.
pub struct record;

/// Values of a row, none of them NULL.
pub struct Record(Vec<Datum>);

impl Record {
    /// Of values that are of the declared types.
    pub fn of<const N: usize>(values: [Datum; N]) -> Self {
        Self(values.into())
    }
}

impl Answer for record {
    type Value = Record;

    fn datum(Record(mut values): Record, call: &Call) -> Result<Option<Datum>, Error> {
        composite(call, &mut values).map(Some)
    }
}

/// A composite of the row type that the call must return.
fn composite(call: &Call, values: &mut [Datum]) -> Result<Datum, Error> {
    // SAFETY: the descriptor comes from the call; its length is compared before it is filled.
    unsafe {
        let mut descriptor: pg_sys::TupleDesc = std::ptr::null_mut();
        let class = pg_sys::get_call_result_type(call.raw(), std::ptr::null_mut(), &mut descriptor);
        if class != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE
            || (*descriptor).natts as usize != values.len()
        {
            return Err(Error::Internal("the function's row type is not the library's".into()));
        }
        let descriptor = pg_sys::BlessTupleDesc(descriptor);
        let mut nulls = vec![false; values.len()];
        let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        Ok(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
    }
}

/// Defines the C symbols `fieldcrypt_…` of SQL functions, with the types that `sql/` declares: see
/// [`crate::sql`].
///
/// ```text
/// sql_functions! {
///     key_id(value: encrypted) -> bigint;      calls key_id(Option<&[u8]>) -> Result<Option<i64>, Error>
///     trigger refuse_change;                   calls refuse_change(&TriggerCall) -> Result<Option<Datum>, Error>
///     set audit_export(from: timestamptz);     calls audit_export(&TextSet, Option<i64>) -> Result<(), Error>
/// }
/// ```
#[macro_export]
macro_rules! sql_functions {
    () => {};
    (trigger $name:ident; $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            $name(&$crate::triggers::TriggerCall::from(call)?)
        });
        $crate::sql_functions!($($rest)*);
    };
    (set $name:ident($($argument:ident: $type:ident),*); $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            let set = $crate::set::TextSet::begin(call)?;
            $crate::sql_functions!(@arguments call, 0; $($argument: $type),*);
            $name(&set, $($argument),*)?;
            Ok(None)
        });
        $crate::sql_functions!($($rest)*);
    };
    ($name:ident($($argument:ident: $type:ident),*) -> $result:ident; $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            $crate::sql_functions!(@arguments call, 0; $($argument: $type),*);
            let value = $name($($argument),*)?;
            <$crate::sql::$result as $crate::sql::Answer>::datum(value, call)
        });
        $crate::sql_functions!($($rest)*);
    };
    (@arguments $call:ident, $index:expr;) => {};
    (@arguments $call:ident, $index:expr; $argument:ident: $type:ident $(, $more:ident: $more_type:ident)*) => {
        let $argument = <$crate::sql::$type as $crate::sql::Argument>::of($call, $index);
        $crate::sql_functions!(@arguments $call, $index + 1; $($more: $more_type),*);
    };
    (@symbols $name:ident, $body:expr) => {
        const _: () = {
            #[unsafe(export_name = concat!("pg_finfo_fieldcrypt_", stringify!($name)))]
            extern "C-unwind" fn info() -> &'static pgrx::pg_sys::Pg_finfo_record {
                const V1: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &V1
            }

            #[unsafe(export_name = concat!("fieldcrypt_", stringify!($name)))]
            unsafe extern "C-unwind" fn symbol(
                fcinfo: pgrx::pg_sys::FunctionCallInfo,
            ) -> pgrx::pg_sys::Datum {
                // SAFETY: Postgres calls this symbol as a version-1 function, with a valid call.
                unsafe { $crate::call::edge(fcinfo, $body) }
            }
        };
    };
}
