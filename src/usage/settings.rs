//! The settings of key use, each with the reason why it exists.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use crate::pg;
use crate::pg::setting::{self, Amount};

/// Which decryptions the audit log tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum AuditDecrypt {
    /// None.
    #[name = c"off"]
    Off,
    /// Those that fail.
    #[name = c"failures"]
    Failures,
    /// Those that fail, and a row a statement and tenant.
    #[name = c"statements"]
    Statements,
    /// A row each.
    #[name = c"all"]
    All,
}

/// What the audit log tells of decryption: from nothing to a row a call, for what an auditor asks and a
/// disk can bear.
static AUDIT_DECRYPT: GucSetting<AuditDecrypt> =
    GucSetting::<AuditDecrypt>::new(AuditDecrypt::Failures);

/// The same, where somebody has set it before the library was loaded: if that came from the configuration
/// file it is taken over now, otherwise it is refused, and then everything is recorded. Without that, a
/// client's PGOPTIONS would leave the file's value aside.
static AUDIT_DECRYPT_OR_ALL: GucSetting<AuditDecrypt> =
    GucSetting::<AuditDecrypt>::new(AuditDecrypt::All);

/// How many contexts of decrypted values a transaction names in the audit log: what an auditor wants who asks which
/// records somebody saw. None by default, since a context may tell of a person.
static CONTEXTS: GucSetting<i32> = GucSetting::<i32>::new(0);

crate::pg::numbers! {
    /// How many tenants the statistics tell apart, so that millions don't take the server's memory.
    STATS_MAX = 5000, 100, 100_000, GucFlags::default(), setting::at_start(),
        c"fieldcrypt.stats_max",
        c"How many tenants fieldcrypt_stats tells apart, of all databases together.",
        c"Those beyond it are counted in one row. Needs pg_fieldcrypt in shared_preload_libraries.";
}

/// Defines the settings.
pub fn init() {
    // As the other settings are: the library may be loaded in a parallel query.
    setting::outside_parallel_mode(define);
}

fn define() {
    define_numbers();
    setting::define_amount(Amount {
        name: c"fieldcrypt.audit_decrypt_contexts",
        about: c"How many contexts of decrypted values the records of a transaction name; 0: none.",
        details: c"With fieldcrypt.audit_decrypt = statements: values beyond are counted. With all: any number but 0 names the context of each call.",
        value: &CONTEXTS,
    });
    let was_set = pg::setting::is_placeholder(c"fieldcrypt.audit_decrypt");
    WAS_SET.store(was_set, std::sync::atomic::Ordering::Relaxed);
    GucRegistry::define_enum_guc(
        c"fieldcrypt.audit_decrypt",
        c"Which decryptions the audit log tells of.",
        c"off; failures; statements: also one row for each statement and tenant; all: a row for each call.",
        if was_set { &AUDIT_DECRYPT_OR_ALL } else { &AUDIT_DECRYPT },
        GucContext::Suset,
        GucFlags::default(),
    );
}

/// `fieldcrypt.audit_decrypt_contexts`.
#[inline]
pub fn contexts() -> usize {
    pg::setting::grade(&CONTEXTS).unsigned_abs() as usize
}

static WAS_SET: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// `fieldcrypt.audit_decrypt`.
#[inline]
pub fn audit_decrypt() -> AuditDecrypt {
    let setting = if WAS_SET.load(std::sync::atomic::Ordering::Relaxed) {
        &AUDIT_DECRYPT_OR_ALL
    } else {
        &AUDIT_DECRYPT
    };
    match pg::setting::ordinal(setting) {
        0 => AuditDecrypt::Off,
        1 => AuditDecrypt::Failures,
        2 => AuditDecrypt::Statements,
        _ => AuditDecrypt::All,
    }
}

/// `fieldcrypt.stats_max`.
pub fn stats_max() -> usize {
    STATS_MAX.get().unsigned_abs() as usize
}
