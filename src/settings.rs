//! The settings `fieldcrypt.*`, each with the reason why it exists.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use fieldcrypt_envelope::tenant_name::{self, TenantNameProblem};
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::error::Error;
use crate::pg::setting::{self, Check, Grades, Secret, Switch, Text, Words};
use crate::pg::{encoding, setting_lock, shared_memory, statistics_memory, temporary};

/// Bytes that a tenant's name may have: what a b-tree entry holds with room to spare.
pub const MAX_TENANT_BYTES: usize = statistics_memory::MAX_NAME_BYTES;

/// The session's tenant, so that an application names it once a connection, not once a call.
static TENANT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Whether a missing tenant is an error: where there are many, the one that a request forgot to name is not `default`.
/// Behind a pooler the tenant that the session has may be another client's, so that only a locked one counts.
static REQUIRE_TENANT: GucSetting<i32> = GucSetting::<i32>::new(REQUIRE_NONE);
const REQUIRE_NONE: i32 = 0;
const REQUIRE_LOCKED: i32 = 2;
static REQUIREMENTS: Words = Words::off_on_and(c"locked");

/// Whether a tenant gets its first key by encrypting for it: a name that was mistyped is a new tenant, too.
static CREATE_KEYS_ON_USE: GucSetting<bool> = GucSetting::<bool>::new(true);

/// Whether the extension may be dropped with its keys: a restore that makes it anew does, and a slip must not.
static ALLOW_DROP: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Where the master key comes from: a file, for most servers.
static MASTER_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Where the master key comes from: a command, for key management services.
static MASTER_KEY_COMMAND: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));

/// The master key itself, for platforms that pass secrets as settings. Weaker than the others: it
/// stands in the configuration file.
static MASTER_KEY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Which operations need two people. Of the configuration file, so that none of the two can switch it
/// off in a session.
static REQUIRE_APPROVAL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"shred_tenant"));

/// The same, where somebody has set it before the library was loaded: if that came from the
/// configuration file it is taken over now, otherwise it is refused, and then everything needs an
/// approval. Without that, a client's PGOPTIONS would leave the file's value aside.
static REQUIRE_APPROVAL_OR_ALL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"rotate_master_key, shred_tenant, destroy_key"));

crate::pg::numbers! {
    /// How long the command may take, so that a key service that hangs does not hang every session.
    MASTER_KEY_COMMAND_TIMEOUT = 10_000, 100, 300_000, GucFlags::UNIT_MS, GucContext::Sighup,
        c"fieldcrypt.master_key_command_timeout",
        c"How long fieldcrypt.master_key_command may run.",
        c"A command that takes longer is killed, and the statement that needed the key fails.";
    /// How many keys a session keeps unwrapped, so that millions of tenants don't take its memory.
    KEY_CACHE_SIZE = 10_000, 1, 10_000_000, GucFlags::default(), GucContext::Suset,
        c"fieldcrypt.key_cache_size",
        c"How many encryption keys a session keeps unwrapped in memory.",
        c"Each takes less than 1 kB. With more keys in use, those used longest ago are unwrapped again when needed.";
}

/// What `fieldcrypt.require_approval` may name.
pub const APPROVED_OPERATIONS: [&[u8]; 3] = [b"rotate_master_key", b"shred_tenant", b"destroy_key"];

thread_local! {
    static MASTER_KEY_PLACEHOLDER: Cell<bool> = const { Cell::new(false) };
    static APPROVAL_PLACEHOLDER: Cell<bool> = const { Cell::new(false) };
}

/// Defines the settings.
pub fn init() {
    // Where a parallel query is what loads the library first, Postgres would refuse to take the
    // values over: "cannot be set during a parallel operation".
    setting::outside_parallel_mode(define);
}

fn define() {
    define_numbers();
    setting::define_lockable::<TenantName>(Text {
        name: c"fieldcrypt.tenant",
        about: c"The session's tenant, used where a call names none.",
        details: c"Unset or empty it means \"default\", or an error with fieldcrypt.require_tenant. While it is set, other tenants' values are refused.",
        value: &TENANT,
        context: GucContext::Userset,
    });
    setting::define_grades(Grades {
        name: c"fieldcrypt.require_tenant",
        about: c"Refuses to encrypt without a tenant, and to decrypt without fieldcrypt.tenant.",
        details: c"For databases with many tenants, where \"default\" is a slip. \"locked\": only lock_tenant() names one, or the argument of a call. Re-encryption, rotation and the management of keys need no tenant.",
        value: &REQUIRE_TENANT,
        words: &REQUIREMENTS,
        strictest: REQUIRE_LOCKED,
    });
    setting::define_switch(Switch {
        name: c"fieldcrypt.create_keys_on_use",
        about: c"Whether encrypting for a tenant that never had a key makes its first one.",
        details: c"Off, create_key(tenant) makes it, which takes the privilege manage: then a mistyped name is an error, and no new tenant.",
        value: &CREATE_KEYS_ON_USE,
        strict: false,
    });
    setting::define_switch_of_session(Switch {
        name: c"fieldcrypt.allow_drop",
        about: c"Lets this session drop pg_fieldcrypt, its type, its keys or its log while there are keys.",
        details: c"Only a superuser turns it on, in the session itself or by PGOPTIONS. What the keys encrypted can then be read only by a copy of them: export_keys() makes one.",
        value: &ALLOW_DROP,
        strict: false,
    });
    GucRegistry::define_string_guc(
        c"fieldcrypt.master_key_file",
        c"File that holds the master key: 64 hex digits or base64 of 32 bytes, one key a line.",
        c"An absolute path outside the data directory; the file is the server user's with mode 0600, or root's with 0640. The first key wraps, the others only unwrap.",
        &MASTER_KEY_FILE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"fieldcrypt.master_key_command",
        c"Command that prints the master key, run by the server.",
        c"Only settable in the configuration file. What it prints has the form of the key file.",
        &MASTER_KEY_COMMAND,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY | GucFlags::DISALLOW_IN_AUTO_FILE,
    );
    define_require_approval();
    define_master_key();
}

fn define_require_approval() {
    let is_set = setting::is_placeholder(c"fieldcrypt.require_approval");
    APPROVAL_PLACEHOLDER.set(is_set);
    setting::define_checked::<Operations>(Text {
        name: c"fieldcrypt.require_approval",
        about: c"Operations that one role must ask for and another approve.",
        details: c"A list of: rotate_master_key, shred_tenant, destroy_key. Empty for none.",
        value: if is_set { &REQUIRE_APPROVAL_OR_ALL } else { &REQUIRE_APPROVAL },
        context: GucContext::Sighup,
    });
}

/// `fieldcrypt.master_key` can be protected only where the postmaster defines it: in a session it
/// would have been an ordinary placeholder until now, readable by every role.
fn define_master_key() {
    if !shared_memory::is_preloading() {
        MASTER_KEY_PLACEHOLDER.set(setting::is_placeholder(c"fieldcrypt.master_key"));
        return;
    }
    setting::define_secret::<MasterKeySetting>(Text {
        name: c"fieldcrypt.master_key",
        about: c"The master key itself. Prefer fieldcrypt.master_key_file.",
        details: c"Needs pg_fieldcrypt in shared_preload_libraries. Never shown.",
        value: &MASTER_KEY,
        context: GucContext::Postmaster,
    });
}

struct TenantName;

impl Check for TenantName {
    const DETAIL: &'static CStr = c"A tenant's name has at most 1024 bytes, no control characters, and no blank or invisible character at either end; \"audit log\" and \"loose values\" are names of the database's own keys.";

    fn is_valid(name: &[u8]) -> bool {
        if name.is_empty() {
            return true;
        }
        let checked = match str::from_utf8(name) {
            Ok(name) if encoding::is_known_to_be_utf8() => tenant_name::check(name),
            _ => tenant_name::check_ascii(name),
        };
        checked.is_ok() && name.len() <= MAX_TENANT_BYTES
    }
}

struct Operations;

impl Check for Operations {
    const DETAIL: &'static CStr = c"It is a list of: rotate_master_key, shred_tenant, destroy_key.";

    fn is_valid(list: &[u8]) -> bool {
        operations(list).all(|name| APPROVED_OPERATIONS.contains(&name))
    }
}

struct MasterKeySetting;

impl Secret for MasterKeySetting {
    fn is_set() -> bool {
        master_key().is_some()
    }
}

/// The session's tenant in the database's encoding, if it is set: the locked one, whatever became of the setting.
///
/// The bytes are Postgres's and change with the setting: use them before anything else runs.
#[inline]
pub fn tenant<'a>() -> Option<&'a [u8]> {
    setting_lock::value().or_else(|| setting::text(&TENANT))
}

/// Makes this the tenant until the transaction ends. Nothing else in the transaction can be, whoever asks for it.
///
/// Where a connection is shared, what an earlier client has left in the temporary schema would be found before the
/// tables and types that are meant, and get this tenant's plaintext.
pub fn lock_tenant(name: &[u8]) -> Result<(), Error> {
    refuse_as_tenant(name)?;
    let is_first = setting_lock::value().is_none();
    if is_first && requires_lock() && temporary::has_objects()? {
        return Err(Error::LeftBehind);
    }
    setting_lock::lock(name)
}

/// Whether only a locked tenant counts: others may have had the connection before.
fn requires_lock() -> bool {
    setting::grade(&REQUIRE_TENANT) == REQUIRE_LOCKED
}

/// Refuses what no new tenant may be called.
pub fn refuse_as_tenant(name: &[u8]) -> Result<(), Error> {
    if name.len() > MAX_TENANT_BYTES {
        return Err(Error::TenantName(TenantNameProblem::Length));
    }
    let utf8 = encoding::to_utf8(name)?;
    tenant_name::check(str::from_utf8(&utf8).map_err(|_| Error::NotUtf8)?)
        .map_err(Error::TenantName)
}

/// Whether `fieldcrypt.require_tenant` wants a tenant of the session, and it has none that counts.
#[inline]
pub fn lacks_tenant() -> bool {
    match setting::grade(&REQUIRE_TENANT) {
        REQUIRE_NONE => false,
        REQUIRE_LOCKED => setting_lock::value().is_none(),
        _ => tenant().is_none(),
    }
}

/// What is said then to who wants to encrypt, for instance.
#[cold]
pub fn tenant_required(to: &'static str) -> Error {
    Error::TenantRequired { to, is_locked: requires_lock() }
}

/// `fieldcrypt.create_keys_on_use`.
pub fn creates_keys_on_use() -> bool {
    setting::is_on(&CREATE_KEYS_ON_USE)
}

/// `fieldcrypt.allow_drop`.
pub fn allows_drop() -> bool {
    setting::is_on(&ALLOW_DROP)
}

/// `fieldcrypt.master_key_file`.
pub fn master_key_file<'a>() -> Option<&'a [u8]> {
    setting::text(&MASTER_KEY_FILE)
}

/// `fieldcrypt.master_key_command`.
pub fn master_key_command<'a>() -> Option<&'a [u8]> {
    setting::text(&MASTER_KEY_COMMAND)
}

/// `fieldcrypt.master_key_command_timeout`.
pub fn master_key_command_timeout() -> std::time::Duration {
    std::time::Duration::from_millis(MASTER_KEY_COMMAND_TIMEOUT.get().unsigned_abs().into())
}

/// `fieldcrypt.master_key`, if the postmaster defined it.
pub fn master_key<'a>() -> Option<&'a [u8]> {
    setting::text(&MASTER_KEY)
}

/// Whether somebody set `fieldcrypt.master_key` on a server that does not preload the library.
pub fn master_key_is_unprotected() -> bool {
    MASTER_KEY_PLACEHOLDER.get()
}

/// Whether `fieldcrypt.require_approval` names an operation.
pub fn requires_approval(operation: &[u8]) -> bool {
    let list =
        if APPROVAL_PLACEHOLDER.get() { &REQUIRE_APPROVAL_OR_ALL } else { &REQUIRE_APPROVAL };
    operations(setting::text(list).unwrap_or_default()).any(|name| name == operation)
}

fn operations(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

/// `fieldcrypt.key_cache_size`.
#[inline]
pub fn key_cache_size() -> usize {
    KEY_CACHE_SIZE.get().unsigned_abs() as usize
}
