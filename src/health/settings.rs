//! The settings `fieldcrypt.health_*` and `fieldcrypt.alert_*`. All of the configuration file: who
//! looks at the health of a database, or raises its alerts, does not choose what is healthy.

use std::ffi::{CStr, CString};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

use super::hours::Hours;
use crate::pg::setting::{self, Check, Text};

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
    setting::outside_parallel_mode(define);
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
    setting::define_checked::<UsualHours>(Text {
        name: c"fieldcrypt.health_hours",
        about: c"The hours in which values are usually decrypted, such as: Mon-Fri 07:00-19:00 Europe/Berlin.",
        details: c"Without days it is every day, without a time zone log_timezone's. Empty: hours are not judged.",
        value: &HOURS,
        context: GucContext::Sighup,
    });
    setting::define_checked::<Channel>(Text {
        name: c"fieldcrypt.alert_channel",
        about: c"The channel on which check_alerts() notifies.",
        details: c"Any role of the database can listen. Empty: no notifications, only the server log and the audit log.",
        value: &ALERT_CHANNEL,
        context: GucContext::Sighup,
    });
}

/// `fieldcrypt.health_hours`, if it is set.
pub fn hours() -> Option<Hours<'static>> {
    Hours::parse(str::from_utf8(setting::text(&HOURS)?).ok()?)
}

struct UsualHours;

impl Check for UsualHours {
    const DETAIL: &'static CStr =
        c"It is days, hours and a time zone, such as: Mon-Fri 07:00-19:00 Europe/Berlin.";

    fn is_valid(hours: &[u8]) -> bool {
        str::from_utf8(hours).is_ok_and(|text| text.is_empty() || Hours::parse(text).is_some())
    }
}

struct Channel;

impl Check for Channel {
    const DETAIL: &'static CStr = c"A channel's name has at most 63 bytes.";

    fn is_valid(name: &[u8]) -> bool {
        name.len() < pgrx::pg_sys::NAMEDATALEN as usize
    }
}
