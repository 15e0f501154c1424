//! The settings `fieldcrypt.health_*` and `fieldcrypt.alert_*`. All of the configuration file: who
//! looks at the health of a database, or raises its alerts, does not choose what is healthy.

use std::ffi::{CStr, CString};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

use super::hours::Hours;
use crate::pg::setting::{self, Check, Text};

const HOUR: i32 = 3600;
const DAY: i32 = 24 * HOUR;

const DETAILS: &CStr = c"A threshold of fieldcrypt.health(), see docs/health.md.";

// Thresholds, which SQL reads by their names.
crate::pg::numbers! {
    /// So that a nightly rotation or destruction that is a few hours ahead is no finding, if wanted.
    DUE_GRACE = 0, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_due_grace",
        c"How long a rotation or a destruction that is due may wait for the job that does it.", DETAILS;
    MASTER_KEY_AGE = 365 * DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_master_key_age",
        c"How old the current master key may become.", DETAILS;
    FAILED_DECRYPTS = 3, 1, i32::MAX, GucFlags::default(), GucContext::Sighup,
        c"fieldcrypt.health_failed_decrypts",
        c"How many failed decryptions are a warning.", DETAILS;
    FAILED_DECRYPTS_CRITICAL = 100, 1, i32::MAX, GucFlags::default(), GucContext::Sighup,
        c"fieldcrypt.health_failed_decrypts_critical",
        c"How many failed decryptions are critical.", DETAILS;
    FAILED_DECRYPTS_WINDOW = HOUR, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_failed_decrypts_window",
        c"In what time failed decryptions are counted.", DETAILS;
    USE_WINDOW = DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_use_window",
        c"How far back unusual use is looked for.", DETAILS;
    ADDRESS_MEMORY = 30 * DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_address_memory",
        c"How long an address that decrypted is known.", DETAILS;
    VOLUME_FACTOR = 10, 1, 1_000_000, GucFlags::default(), GucContext::Sighup,
        c"fieldcrypt.health_volume_factor",
        c"How many times as many values as usually may be decrypted by one reader.", DETAILS;
    /// So that who read two values yesterday may read thirty today.
    VOLUME_LEAST = 1000, 1, i32::MAX, GucFlags::default(), GucContext::Sighup,
        c"fieldcrypt.health_volume_least",
        c"How many values may be decrypted by one reader in any case.", DETAILS;
    /// Re-encryption follows rotation in its own time, so that values lie on an old key for a while.
    REENCRYPTION_DELAY = DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_reencryption_delay",
        c"How long values may stay on a deactivated key.", DETAILS;
    REENCRYPTION_STALL = HOUR, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_reencryption_stall",
        c"How long a re-encryption may make no progress.", DETAILS;
    VERIFICATION_AGE = DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_verification_age",
        c"How long ago the audit log may have been verified.", DETAILS;
    SEAL_DELAY = 10 * 60, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_seal_delay",
        c"How long rows of the audit log may wait for their seal.", DETAILS;
    EVENT_MEMORY = 7 * DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_event_memory",
        c"How long gaps and unclean handovers of the audit log are reported.", DETAILS;
    KEY_EXPORT_AGE = 30 * DAY, 0, i32::MAX, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.health_key_export_age",
        c"How long ago the keys may have been exported.", DETAILS;
}

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
    define_numbers();
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
