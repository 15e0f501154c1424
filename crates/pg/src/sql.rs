//! SQL types as they are declared in `sql/`, and what they are in Rust: the arguments and results of the
//! functions that [`sql_functions!`](crate::sql_functions) defines. A test compares the declarations.
#![allow(non_camel_case_types)]

use std::convert::Infallible;

use fieldcrypt_envelope::{Header, KeyId};
use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};
use serde_json::Value;

use super::call::Call;
use super::encoding;
use super::json::{self, Jsonb};
use super::key_values::KeyValues;
use super::text_forms::AnyValue;
use super::values::{CText, Varlena};

/// A type that an argument may have.
pub trait Argument {
    /// What it is in Rust.
    type Value<'c>;

    /// The argument at a place of a call, of a function that is declared so; `None` if it is NULL.
    fn of<'c>(
        call: &'c Call,
        index: usize,
        name: &'static str,
    ) -> Result<Option<Self::Value<'c>>, Error>;

    /// The same, where it must not be NULL.
    #[inline]
    fn given<'c>(
        call: &'c Call,
        index: usize,
        name: &'static str,
    ) -> Result<Self::Value<'c>, Error> {
        Self::of(call, index, name)?.ok_or(Error::NullArgument(name))
    }
}

macro_rules! arguments {
    ($($(#[$what:meta])* $name:ident: $value:ty = $read:expr;)*) => {$(
        $(#[$what])*
        pub enum $name {}

        impl Argument for $name {
            type Value<'c> = $value;

            #[inline]
            fn of<'c>(
                call: &'c Call,
                index: usize,
                _: &'static str,
            ) -> Result<Option<Self::Value<'c>>, Error> {
                // SAFETY: a function that is declared with this type is called with it.
                Ok(unsafe { $read(call, index) })
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
    /// The same, of the domain that the right sides of operators have.
    any_encrypted: &'c [u8] = Call::bytes;
    /// A value of type `fieldcrypt.encrypted_text`.
    encrypted_text: &'c [u8] = Call::bytes;
    /// A binary message that is a text, the argument of a receive function.
    internal_text: &'c [u8] = Call::message_text;
    /// Texts, none of them NULL.
    texts: Vec<&'c [u8]> = Call::texts;
    /// A name, without its padding.
    name: &'c [u8] = Call::name;
    /// A C string without its end.
    cstring: &'c [u8] = Call::c_string;
    /// What is left of a binary message, the argument of a receive function.
    internal: &'c [u8] = Call::message_rest;
    /// A document.
    jsonb: Jsonb<'c> = Call::jsonb;
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

/// A value of type `fieldcrypt.encrypted_text`, of which its header is read alone.
pub enum encrypted_header {}

impl Argument for encrypted_header {
    type Value<'c> = &'c [u8];

    #[inline]
    fn of<'c>(call: &'c Call, index: usize, _: &'static str) -> Result<Option<&'c [u8]>, Error> {
        // SAFETY: a function that is declared with this type is called with it.
        Ok(unsafe { call.beginning(index, Header::MAX_LENGTH) })
    }
}

/// The argument of an input function, and the type of what it was made of.
pub enum input_text {}

impl Argument for input_text {
    type Value<'c> = (&'c [u8], Option<Oid>);

    #[inline]
    fn of<'c>(
        call: &'c Call,
        index: usize,
        name: &'static str,
    ) -> Result<Option<(&'c [u8], Option<Oid>)>, Error> {
        Ok(cstring::of(call, index, name)?.map(|text| (text, call.cast_from())))
    }
}

/// An `internal` of which nothing is read: what the planner asks of a function's support function.
pub enum planner_request {}

impl Argument for planner_request {
    type Value<'c> = ();

    fn of(_: &Call, _: usize, _: &'static str) -> Result<Option<()>, Error> {
        Ok(Some(()))
    }
}

/// A type of the caller's choice: as an argument it is the type, whatever the value; as a result, a value
/// of it.
pub enum anyelement {}

impl Argument for anyelement {
    type Value<'c> = Oid;

    fn of(call: &Call, index: usize, _: &'static str) -> Result<Option<Oid>, Error> {
        // Who calls past the parser, by the protocol's fast path, names no type.
        match call.argument_type(index) {
            pg_sys::InvalidOid => Err(Error::UnknownType),
            known => Ok(Some(known)),
        }
    }
}

/// A `text` that is words for people, or a name: what is longer is refused before anything is made of it, and keeps
/// neither memory nor the log busy.
pub enum words {}

impl Argument for words {
    type Value<'c> = &'c [u8];

    fn of<'c>(call: &'c Call, index: usize, name: &'static str) -> Result<Option<&'c [u8]>, Error> {
        match text::of(call, index, name)? {
            Some(words) if words.len() > MAX_WORDS => {
                Err(Error::TooLong { what: name, most: "8 kB" })
            }
            words => Ok(words),
        }
    }
}

/// How long [`words`] are at most, in bytes.
const MAX_WORDS: usize = 8 << 10;

/// The same `anyelement`, with its value.
pub enum any_value {}

impl Argument for any_value {
    type Value<'c> = AnyValue;

    fn of(call: &Call, index: usize, _: &'static str) -> Result<Option<AnyValue>, Error> {
        let type_oid = anyelement::of(call, index, "")?.unwrap_or(pg_sys::InvalidOid);
        Ok(Some(AnyValue { type_oid, datum: call.datum(index) }))
    }
}

/// A value of any type at all, "any".
pub enum anything {}

impl Argument for anything {
    type Value<'c> = AnyValue;

    fn of(call: &Call, index: usize, name: &'static str) -> Result<Option<AnyValue>, Error> {
        any_value::of(call, index, name)
    }
}

/// The arguments of a function that is declared VARIADIC "any", all of them.
pub enum any {}

impl Argument for any {
    type Value<'c> = KeyValues<'c>;

    fn of<'c>(
        call: &'c Call,
        index: usize,
        _: &'static str,
    ) -> Result<Option<KeyValues<'c>>, Error> {
        Ok(Some(KeyValues::of(call, index)))
    }
}

/// A `bigint` that is the id of a key; `None` also if it can't be one.
pub enum key_id {}

impl Argument for key_id {
    type Value<'c> = KeyId;

    fn of(call: &Call, index: usize, name: &'static str) -> Result<Option<KeyId>, Error> {
        Ok(bigint::of(call, index, name)?.and_then(KeyId::new))
    }

    fn given(call: &Call, index: usize, name: &'static str) -> Result<KeyId, Error> {
        KeyId::new(bigint::given(call, index, name)?).ok_or(Error::NotAKeyId)
    }
}

/// Nothing.
pub enum void {}

/// Columns that the declaration names. A [`Record`] has as many.
pub enum record {}

/// A type that a result may have, and what a function gives for it.
pub trait Answer<T> {
    /// The result of a call; `None` is NULL.
    fn datum(value: T, call: &Call) -> Result<Option<Datum>, Error>;
}

macro_rules! answers {
    ($($name:ident: $value:ty => $datum:expr;)*) => {$(
        impl Answer<$value> for $name {
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

fn bytes(value: impl AsRef<[u8]>) -> Result<Option<Datum>, Error> {
    varlena(Some(Varlena::of(value.as_ref())?))
}

/// Of functions that only refuse.
fn never(value: Infallible) -> Result<Option<Datum>, Error> {
    match value {}
}

fn number(value: impl Into<Datum>) -> Result<Option<Datum>, Error> {
    Ok(Some(value.into()))
}

answers! {
    encrypted: Option<Varlena> => varlena;
    encrypted_text: Option<Varlena> => varlena;
    text: Option<Varlena> => varlena;
    text: Vec<u8> => bytes;
    text: &'static str => bytes;
    text: String => |value: String| bytes(encoding::from_utf8(value.as_bytes())?);
    text: Option<String> => |value: Option<String>| value.map_or(Ok(None), |value| bytes(encoding::from_utf8(value.as_bytes())?));
    text: Value => |value: Value| varlena(Some(json::to_text(&value)?));
    text: Option<Value> => |value: Option<Value>| varlena(value.map(|value| json::to_text(&value)).transpose()?);
    bytea: Option<Varlena> => varlena;
    bytea: Vec<u8> => bytes;
    cstring: Option<CText> => |value: Option<CText>| Ok(value.map(CText::into_datum));
    jsonb: Option<Datum> => Ok;
    anyelement: Option<Datum> => Ok;
    bigint: i64 => number;
    bigint: KeyId => |key: KeyId| number(key.as_i64());
    bigint: Option<KeyId> => |key: Option<KeyId>| Ok(key.map(|key| key.as_i64().into()));
    bigint: u64 => |value: u64| number(value as i64);
    boolean: bool => number;
    boolean: Infallible => never;
    text: Infallible => never;
    name: Infallible => never;
    encrypted: Infallible => never;
    internal: Infallible => never;
    void: () => |()| number(Datum::null());
    void: u64 => |_| number(Datum::null());
}

/// Values of a row, none of them NULL.
pub struct Record(Vec<Datum>);

impl Record {
    /// Of values that are of the declared types.
    pub fn of<const N: usize>(values: [Datum; N]) -> Self {
        Self(values.into())
    }
}

impl Answer<Record> for record {
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
///     report_page(report: jsonb) -> text;          calls report_page(Option<Jsonb>) -> Result<Option<String>, Error>
///     suspend_key(key: key_id!, why: text!) -> void = states::suspend;
///                                                  calls states::suspend(KeyId, &[u8]) -> Result<(), Error>
///     trigger refuse_change;                       calls refuse_change(&TriggerCall) -> Result<Option<Datum>, Error>
///     set audit_export(from: timestamptz) = export;
///                                                  calls export(&TextSet, Option<i64>) -> Result<(), Error>
/// }
/// ```
///
/// An argument with `!` may be left out where the declaration has a default, but not be NULL: NULL is more often
/// a slip than a wish.
#[macro_export]
macro_rules! sql_functions {
    () => {};
    (trigger $name:ident; $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            $name(&$crate::triggers::TriggerCall::from(call)?)
        });
        $crate::sql_functions!($($rest)*);
    };
    (event_trigger $name:ident; $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            $name(&$crate::drops::EventTriggerCall::from(call)?).map(|()| None)
        });
        $crate::sql_functions!($($rest)*);
    };
    (set $name:ident($($argument:ident: $type:ident $(! $(@$given:tt)?)?),*) = $body:path; $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            let set = $crate::set::TextSet::begin(call)?;
            let mut index = 0..;
            $(let $argument = $crate::sql_functions!(@argument call, index, $argument: $type $(! $(@$given)?)?);)*
            $body(&set, $($argument),*)?;
            Ok(None)
        });
        $crate::sql_functions!($($rest)*);
    };
    ($name:ident($($argument:ident: $type:ident $(! $(@$given:tt)?)?),*) -> $result:ident; $($rest:tt)*) => {
        $crate::sql_functions!($name($($argument: $type $(! $(@$given)?)?),*) -> $result = $name; $($rest)*);
    };
    ($name:ident($($argument:ident: $type:ident $(! $(@$given:tt)?)?),*) -> $result:ident = $body:path; $($rest:tt)*) => {
        $crate::sql_functions!(@symbols $name, |call| {
            #[allow(unused_mut, unused_variables)]
            let mut index = 0..;
            $(let $argument = $crate::sql_functions!(@argument call, index, $argument: $type $(! $(@$given)?)?);)*
            <$crate::sql::$result as $crate::sql::Answer<_>>::datum($body($($argument),*)?, call)
        });
        $crate::sql_functions!($($rest)*);
    };
    (@argument $call:ident, $index:ident, $argument:ident: $type:ident) => {
        <$crate::sql::$type as $crate::sql::Argument>::of(
            $call,
            $index.next().unwrap_or(usize::MAX),
            stringify!($argument),
        )?
    };
    (@argument $call:ident, $index:ident, $argument:ident: $type:ident !) => {
        <$crate::sql::$type as $crate::sql::Argument>::given(
            $call,
            $index.next().unwrap_or(usize::MAX),
            stringify!($argument),
        )?
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
