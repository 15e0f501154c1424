//! Settings of the queue, and of what all events say.

use std::ffi::{CStr, CString};

use fieldcrypt_envelope::tenant_name::{self, TenantNameProblem};
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use crate::pg::setting::{self, Check, Text};
use crate::pg::{client, encoding};

/// What happens to an event that finds no room in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum OnOverflow {
    /// It goes to the server log, and the log of the database tells how many did.
    #[name = c"log"]
    Log,
    /// What it tells of is refused, too.
    #[name = c"error"]
    Error,
}

/// Which sessions record that they loaded the master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum MasterKeyLoads {
    /// The first of the database since the server started, and whoever loads another one, or one after a failure.
    #[name = c"changes"]
    Changes,
    /// Each.
    #[name = c"sessions"]
    Sessions,
}

static MASTER_KEY_LOADS: GucSetting<MasterKeyLoads> =
    GucSetting::<MasterKeyLoads>::new(MasterKeyLoads::Changes);

/// For whom an application acts: the roles that it connects as are seldom those of its users. It claims it, and nobody
/// else can: whoever may run SQL in its name may set this, too.
static SUBJECT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Bytes that a subject may have: it stands in every row.
const MAX_SUBJECT_BYTES: usize = 256;

static ON_OVERFLOW: GucSetting<OnOverflow> = GucSetting::<OnOverflow>::new(OnOverflow::Log);

crate::pg::numbers! {
    QUEUE_SIZE = 4096, 64, 1 << 20, GucFlags::UNIT_KB, setting::at_start(),
        c"fieldcrypt.audit_queue_size",
        c"Shared memory for events of one database that are not written yet.",
        c"An event takes about 200 bytes. Needs pg_fieldcrypt in shared_preload_libraries.";
    QUEUES = 8, 1, 1000, GucFlags::default(), setting::at_start(),
        c"fieldcrypt.audit_queue_databases",
        c"How many databases can have an audit queue at a time.",
        c"Events of further ones count as overflow, and nobody looks there once a day who can do what.";
}

/// Defines the settings.
pub fn init() {
    // As the other settings are: the library may be loaded in a parallel query.
    setting::outside_parallel_mode(define);
}

fn define() {
    define_numbers();
    client::define_subject::<Subject>(Text {
        name: c"fieldcrypt.audit_subject",
        about: c"For whom the application acts: recorded with each event of the audit log, as claimed.",
        details: c"Set it in each transaction, with SET LOCAL or set_config(..., true). Whoever may run SQL may claim anything: the rows say who was connected, too.",
        value: &SUBJECT,
        context: GucContext::Userset,
    });
    GucRegistry::define_enum_guc(
        c"fieldcrypt.audit_on_overflow",
        c"What happens when an event finds no room in the audit queue.",
        c"log: the event goes to the server log and is counted in the audit log. error: what it tells of is refused, too.",
        &ON_OVERFLOW,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"fieldcrypt.audit_master_key_loads",
        c"Which loads of the master key the audit log records.",
        c"changes: the first of a database since the server started, and each of another key, from another source or after a failure. sessions: that of every session. Failures are recorded always. Without preload that of every session goes to the server log.",
        &MASTER_KEY_LOADS,
        GucContext::Suset,
        GucFlags::default(),
    );
}

struct Subject;

impl Check for Subject {
    const DETAIL: &'static CStr = c"A subject has at most 256 bytes, no control characters, and no blank or invisible character at either end.";

    fn is_valid(subject: &[u8]) -> bool {
        if subject.is_empty() {
            return true;
        }
        let checked = match str::from_utf8(subject) {
            Ok(subject) if encoding::is_known_to_be_utf8() => tenant_name::check(subject),
            Err(_) if encoding::is_known_to_be_utf8() => return false,
            _ => tenant_name::check_ascii(subject),
        };
        // What no tenant may be called is no matter here.
        matches!(checked, Ok(()) | Err(TenantNameProblem::Reserved))
            && subject.len() <= MAX_SUBJECT_BYTES
    }
}

/// `fieldcrypt.audit_master_key_loads`.
pub fn master_key_loads() -> MasterKeyLoads {
    MASTER_KEY_LOADS.get()
}

/// `fieldcrypt.audit_on_overflow`.
pub fn on_overflow() -> OnOverflow {
    ON_OVERFLOW.get()
}

/// `fieldcrypt.audit_queue_size` in bytes.
pub fn queue_bytes() -> usize {
    QUEUE_SIZE.get().unsigned_abs() as usize * 1024
}

/// `fieldcrypt.audit_queue_databases`.
pub fn queues() -> usize {
    QUEUES.get().unsigned_abs() as usize
}
