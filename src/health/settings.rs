//! The settings `fieldcrypt.health_*` and `fieldcrypt.alert_*`. All of the configuration file: who
//! looks at the health of a database, or raises its alerts, does not choose what is healthy.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys::{self, GucSource};

use super::hours::Hours;
use crate::pg;

const HOUR: i32 = 3600;
const DAY: i32 = 24 * HOUR;

/// A threshold that is a number or a time; SQL reads it by its name.
struct Threshold {
    name: &'static CStr,
    about: &'static CStr,
    value: GucSetting<i32>,
    least: i32,
    unit: GucFlags,
}

const fn time(name: &'static CStr, seconds: i32, about: &'static CStr) -> Threshold {
    Threshold {
        name,
        about,
        value: GucSetting::<i32>::new(seconds),
        least: 0,
        unit: GucFlags::UNIT_S,
    }
}

const fn count(name: &'static CStr, number: i32, about: &'static CStr) -> Threshold {
    Threshold {
        name,
        about,
        value: GucSetting::<i32>::new(number),
        least: 1,
        unit: GucFlags::from_bits_retain(0),
    }
}

static THRESHOLDS: [Threshold; 13] = [
    // So that a nightly rotation or destruction that is a few hours ahead is no finding, if wanted.
    time(
        c"fieldcrypt.health_due_grace",
        0,
        c"How long a rotation or a destruction that is due may wait for the job that does it.",
    ),
    time(
        c"fieldcrypt.health_master_key_age",
        365 * DAY,
        c"How old the current master key may become.",
    ),
    count(c"fieldcrypt.health_failed_decrypts", 3, c"How many failed decryptions are a warning."),
    count(
        c"fieldcrypt.health_failed_decrypts_critical",
        100,
        c"How many failed decryptions are critical.",
    ),
    time(
        c"fieldcrypt.health_failed_decrypts_window",
        HOUR,
        c"In what time failed decryptions are counted.",
    ),
    time(c"fieldcrypt.health_use_window", DAY, c"How far back unusual use is looked for."),
    time(
        c"fieldcrypt.health_address_memory",
        30 * DAY,
        c"How long an address that decrypted is known.",
    ),
    // Re-encryption follows rotation in its own time, so that values lie on an old key for a while.
    time(
        c"fieldcrypt.health_reencryption_delay",
        DAY,
        c"How long values may stay on a deactivated key.",
    ),
    time(
        c"fieldcrypt.health_reencryption_stall",
        HOUR,
        c"How long a re-encryption may make no progress.",
    ),
    time(
        c"fieldcrypt.health_verification_age",
        DAY,
        c"How long ago the audit log may have been verified.",
    ),
    time(
        c"fieldcrypt.health_seal_delay",
        10 * 60,
        c"How long rows of the audit log may wait for their seal.",
    ),
    time(
        c"fieldcrypt.health_event_memory",
        7 * DAY,
        c"How long gaps and unclean handovers of the audit log are reported.",
    ),
    time(
        c"fieldcrypt.health_key_export_age",
        30 * DAY,
        c"How long ago the keys may have been exported.",
    ),
];

/// When values are usually decrypted: only the administrator knows.
static HOURS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Warnings that were judged and are to be silent, so that the others are heard.
static ACCEPTED: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Where listeners hear of alerts. Any role of the database can listen, so that it can be switched off.
static ALERT_CHANNEL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"fieldcrypt_alerts"));

/// Defines the settings.
pub fn init() {
    pg::session::outside_parallel_mode(define);
}

fn define() {
    for threshold in &THRESHOLDS {
        GucRegistry::define_int_guc(
            threshold.name,
            threshold.about,
            c"A threshold of fieldcrypt.health(), see docs/health.md.",
            &threshold.value,
            threshold.least,
            i32::MAX,
            GucContext::Sighup,
            threshold.unit,
        );
    }
    GucRegistry::define_string_guc(
        c"fieldcrypt.health_accepted",
        c"Checks of fieldcrypt.health() whose warnings are accepted.",
        c"A list of names. Such a check is ok instead of a warning, and says so; what is critical stays critical.",
        &ACCEPTED,
        GucContext::Sighup,
        GucFlags::default(),
    );
    // SAFETY: hooks are C functions that live as long as the library and never raise.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"fieldcrypt.health_hours",
            c"The hours in which values are usually decrypted, such as: Mon-Fri 07:00-19:00 Europe/Berlin.",
            c"Without days it is every day, without a time zone log_timezone's. Empty: hours are not judged.",
            &HOURS,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_hours),
            None,
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"fieldcrypt.alert_channel",
            c"The channel on which check_alerts() notifies.",
            c"Any role of the database can listen. Empty: no notifications, only the server log and the audit log.",
            &ALERT_CHANNEL,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_channel),
            None,
            None,
        );
    }
}

/// `fieldcrypt.health_hours`, if it is set.
pub fn hours() -> Option<Hours<'static>> {
    // SAFETY: Postgres keeps a valid C string, or NULL, in the variable, which a reload alone changes:
    // not before the call that asked is over.
    let text: &'static CStr = unsafe {
        let value = *HOURS.as_ptr();
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value)
    };
    Hours::parse(text.to_str().ok()?)
}

unsafe extern "C-unwind" fn check_hours(
    value: *mut *mut c_char,
    _: *mut *mut c_void,
    _: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to a C string or to NULL.
    unsafe {
        let is_known = (*value).is_null()
            || CStr::from_ptr(*value)
                .to_str()
                .is_ok_and(|text| text.is_empty() || Hours::parse(text).is_some());
        if !is_known {
            pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(
                c"It is days, hours and a time zone, such as: Mon-Fri 07:00-19:00 Europe/Berlin."
                    .as_ptr(),
            );
        }
        is_known
    }
}

unsafe extern "C-unwind" fn check_channel(
    value: *mut *mut c_char,
    _: *mut *mut c_void,
    _: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to a C string or to NULL.
    unsafe {
        let fits = (*value).is_null()
            || CStr::from_ptr(*value).count_bytes() < pg_sys::NAMEDATALEN as usize;
        if !fits {
            pg_sys::GUC_check_errdetail_string =
                pg_sys::pstrdup(c"A channel's name has at most 63 bytes.".as_ptr());
        }
        fits
    }
}
