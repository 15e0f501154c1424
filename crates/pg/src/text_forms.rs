//! Values as texts and back, whatever the session has set: a text that is sealed in one session is opened in another.
//!
//! Output functions go by DateStyle, TimeZone, extra_float_digits and more, and so do input functions. A date that
//! was written as `04/03/2001` by one client is another day for the next, without an error. So both directions run
//! under fixed settings, as those of pg_dump, which `docs/format.md` lists.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Datum, Oid};

use super::setting::TemporarySettings;
use super::shape::Shape;
use super::triggers::same_bytes;
use super::{encoding, relations, values};
use fieldcrypt_error::Error;

/// A value of any type.
pub struct AnyValue {
    /// Its type.
    pub type_oid: Oid,
    /// The value; `None` is NULL.
    pub(super) datum: Option<Datum>,
}

/// A type's name, for messages.
pub(super) fn type_name(type_oid: Oid) -> String {
    // SAFETY: a catalog look-up, which gives a palloc'd string; of no type it says so.
    encoding::lossy(unsafe { CStr::from_ptr(pg_sys::format_type_be(type_oid)) }.to_bytes())
}

impl AnyValue {
    /// Its text in the database's encoding, as its output function writes it; `None` for NULL.
    pub fn text<'a>(&self) -> Option<&'a [u8]> {
        // SAFETY: the datum is of the type.
        self.datum.map(|datum| unsafe { output(datum, self.type_oid) })
    }

    /// Calls `visit` with the bytes of every encrypted value in it, in whichever way its type holds them.
    pub fn visit_encrypted(
        &self,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(datum) = self.datum else { return Ok(()) };
        if relations::value_types()?.contains(&self.type_oid) {
            // SAFETY: a value of the type is a varlena.
            return visit(unsafe { values::detoasted(datum) });
        }
        match Shape::of(self.type_oid)? {
            Some(shape) => shape.visit(datum, visit),
            None => Ok(()),
        }
    }

    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        self.datum.is_none()
    }

    /// Whether both are the same bytes, of types that hold encrypted values.
    pub fn is_same(&self, other: &Self) -> bool {
        self.type_oid == other.type_oid && same_bytes(self.datum, other.datum)
    }
}

/// What of a session's settings the texts of a type can depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dependence {
    /// Nothing.
    None,
    /// [`Variables`] and no others. No code of users runs in between.
    Variables,
    /// Anything.
    Settings,
}

impl Dependence {
    fn of(type_oid: Oid) -> Self {
        match type_oid {
            pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::INT2OID
            | pg_sys::TEXTOID
            | pg_sys::VARCHAROID
            | pg_sys::BPCHAROID
            | pg_sys::NAMEOID
            | pg_sys::CHAROID
            | pg_sys::UUIDOID
            | pg_sys::BOOLOID
            | pg_sys::NUMERICOID
            | pg_sys::OIDOID
            | pg_sys::JSONBOID
            | pg_sys::JSONOID
            | pg_sys::INETOID
            | pg_sys::CIDROID
            | pg_sys::MACADDROID
            | pg_sys::MACADDR8OID
            | pg_sys::BITOID
            | pg_sys::VARBITOID => Self::None,
            pg_sys::DATEOID
            | pg_sys::TIMEOID
            | pg_sys::TIMETZOID
            | pg_sys::TIMESTAMPOID
            | pg_sys::TIMESTAMPTZOID
            | pg_sys::INTERVALOID
            | pg_sys::FLOAT4OID
            | pg_sys::FLOAT8OID => Self::Variables,
            other => Self::of_others(other),
        }
    }

    fn of_others(type_oid: Oid) -> Self {
        // SAFETY: catalog look-ups by type.
        let (kind, base) =
            unsafe { (pg_sys::get_typtype(type_oid) as u8, pg_sys::getBaseType(type_oid)) };
        match kind {
            pg_sys::TYPTYPE_ENUM => Self::None,
            // A domain's constraints are code of its owner.
            pg_sys::TYPTYPE_DOMAIN if Self::of(base) == Self::None => Self::None,
            _ => Self::Settings,
        }
    }
}

/// Whether settings have a say in how a type's values are written.
pub(super) fn depends_on_settings(type_oid: Oid) -> bool {
    Dependence::of(type_oid) != Dependence::None
}

/// What output functions go by: as pg_dump sets it, and what it leaves to the names that it writes.
const OUTPUT: &[(&CStr, &CStr)] = &[
    (c"datestyle", c"ISO, YMD"),
    (c"intervalstyle", c"postgres"),
    (c"timezone", c"UTC"),
    (c"bytea_output", c"hex"),
    (c"extra_float_digits", c"1"),
    (c"lc_monetary", c"C"),
    (c"xmlbinary", c"base64"),
    // Names of tables, functions and types are qualified then.
    (c"search_path", c"pg_catalog"),
    (c"quote_all_identifiers", c"off"),
];

/// What input functions go by where a text leaves something open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    order: (&'static CStr, u32),
    intervals: (&'static CStr, u32),
}

impl Reading {
    /// For all sessions: what [`OUTPUT`] gives is read for what it is. Dates that do not begin with the year are
    /// mostly none in the order YMD; under sql_standard a sign is one of all that follows, as sessions of that style write.
    pub(super) const FIXED: Self = Self {
        order: (c"ISO, YMD", pg_sys::DATEORDER_YMD),
        intervals: (c"sql_standard", pg_sys::INTSTYLE_SQL_STANDARD),
    };
    /// What other orders of day, month and year make of a text.
    pub(super) const OTHER_ORDERS: [Self; 2] = [
        Self { order: (c"ISO, MDY", pg_sys::DATEORDER_MDY), ..Self::FIXED },
        Self { order: (c"ISO, DMY", pg_sys::DATEORDER_DMY), ..Self::FIXED },
    ];
    /// A sign is one of the part that it stands before.
    pub(super) const OTHER_INTERVALS: Self =
        Self { intervals: (c"postgres", pg_sys::INTSTYLE_POSTGRES), ..Self::FIXED };

    fn settings(self) -> [(&'static CStr, &'static CStr); 6] {
        [
            (c"datestyle", self.order.0),
            (c"intervalstyle", self.intervals.0),
            (c"timezone", c"UTC"),
            (c"lc_monetary", c"C"),
            (c"xmloption", c"content"),
            (c"array_nulls", c"on"),
        ]
    }
}

/// The settings of [`OUTPUT`] and of a [`Reading`] for the types that are written most often, as Postgres's own variables:
/// a level of settings for each row would cost several times what the encryption does.
struct Variables {
    date_style: c_int,
    date_order: c_int,
    interval_style: c_int,
    float_digits: c_int,
    time_zone: *mut pg_sys::pg_tz,
}

impl Variables {
    /// The session's.
    fn read() -> Self {
        // SAFETY: variables of the backend.
        unsafe {
            Self {
                date_style: pg_sys::DateStyle,
                date_order: pg_sys::DateOrder,
                interval_style: pg_sys::IntervalStyle,
                float_digits: pg_sys::extra_float_digits,
                time_zone: pg_sys::session_timezone,
            }
        }
    }

    fn write(&self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::DateStyle = self.date_style;
            pg_sys::DateOrder = self.date_order;
            pg_sys::IntervalStyle = self.interval_style;
            pg_sys::extra_float_digits = self.float_digits;
            pg_sys::session_timezone = self.time_zone;
        }
    }

    fn fixed(date_order: u32, interval_style: u32) -> Self {
        Self {
            date_style: pg_sys::USE_ISO_DATES as c_int,
            date_order: date_order as c_int,
            interval_style: interval_style as c_int,
            float_digits: 1,
            time_zone: utc(),
        }
    }
}

/// Time zone UTC. Postgres keeps it for good.
fn utc() -> *mut pg_sys::pg_tz {
    thread_local! { static UTC: std::cell::Cell<*mut pg_sys::pg_tz> = const { std::cell::Cell::new(std::ptr::null_mut()) } }
    if UTC.get().is_null() {
        // SAFETY: "UTC" is built in: the look-up never fails.
        UTC.set(unsafe { pg_sys::pg_tzset(c"UTC".as_ptr()) });
    }
    UTC.get()
}

/// Puts the session's variables back when it is dropped, on an error too: those are panics here.
struct Restored(Variables);

impl Restored {
    fn after(fixed: &Variables) -> Self {
        let restored = Self(Variables::read());
        fixed.write();
        restored
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        self.0.write();
    }
}

/// Runs an output or input function of a type with the settings that count for all sessions.
fn fixed<R>(
    type_oid: Oid,
    variables: impl FnOnce() -> Variables,
    settings: &[(&'static CStr, &'static CStr)],
    work: impl FnOnce() -> R,
) -> R {
    match Dependence::of(type_oid) {
        Dependence::None => work(),
        Dependence::Variables => {
            let _restored = Restored::after(&variables());
            work()
        }
        Dependence::Settings => with_settings(settings, work),
    }
}

/// Runs a type's input function under the settings of a reading.
pub(super) fn read_as<R>(type_oid: Oid, reading: Reading, work: impl FnOnce() -> R) -> R {
    let variables = || Variables::fixed(reading.order.1, reading.intervals.1);
    fixed(type_oid, variables, &reading.settings(), work)
}

/// Runs `work`, which may run anybody's code, under what [`OUTPUT`] says of dates, times and numbers.
pub fn under_fixed_settings<R>(work: impl FnOnce() -> R) -> R {
    let but_names = OUTPUT.len() - 2;
    with_settings(&OUTPUT[..but_names], work)
}

fn with_settings<R>(settings: &[(&'static CStr, &'static CStr)], work: impl FnOnce() -> R) -> R {
    // An error puts them back when it aborts the (sub)transaction.
    let level = TemporarySettings::begin(settings);
    let result = work();
    level.end();
    result
}

/// A value as its type's output function writes it, in the database's encoding and the current memory context.
///
/// # Safety
///
/// The datum is a non-null value of the type.
pub(super) unsafe fn output<'a>(datum: Datum, type_oid: Oid) -> &'a [u8] {
    let variables = || Variables::fixed(pg_sys::DATEORDER_YMD, pg_sys::INTSTYLE_POSTGRES);
    // SAFETY: by the contract.
    fixed(type_oid, variables, OUTPUT, || unsafe { output_here(datum, type_oid) })
}

/// The same under the session's own settings.
///
/// # Safety
///
/// The datum is a non-null value of the type.
pub(super) unsafe fn output_here<'a>(datum: Datum, type_oid: Oid) -> &'a [u8] {
    // SAFETY: by the contract; output functions give a C string in the current memory context.
    unsafe {
        let mut function = pg_sys::InvalidOid;
        let mut is_varlena = false;
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena);
        CStr::from_ptr(pg_sys::OidOutputFunctionCall(function, datum)).to_bytes()
    }
}
