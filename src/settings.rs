//! The settings `fieldcrypt.*`, each with the reason why it exists.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys::{self, GucSource};

use crate::pg;

/// Bytes that a tenant's name may have: what a b-tree entry holds with room to spare.
pub const MAX_TENANT_BYTES: usize = 1024;

/// The session's tenant, so that an application names it once a connection, not once a call.
static TENANT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Where the master key comes from: a file, for most servers.
static MASTER_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Where the master key comes from: a command, for key management services.
static MASTER_KEY_COMMAND: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));

/// How long the command may take, so that a key service that hangs does not hang every session.
static MASTER_KEY_COMMAND_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// The master key itself, for platforms that pass secrets as settings. Weaker than the others: it
/// stands in the configuration file.
static MASTER_KEY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// How many keys a session keeps unwrapped, so that millions of tenants don't take its memory.
static KEY_CACHE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// Which operations need two people. Of the configuration file, so that none of the two can switch it
/// off in a session.
static REQUIRE_APPROVAL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"shred_tenant"));

/// The same, where somebody has set it before the library was loaded: if that came from the
/// configuration file it is taken over now, otherwise it is refused, and then everything needs an
/// approval. Without that, a client's PGOPTIONS would leave the file's value aside.
static REQUIRE_APPROVAL_OR_ALL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"rotate_master_key, shred_tenant, destroy_key"));

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
    pg::session::outside_parallel_mode(define);
}

fn define() {
    // SAFETY: hooks are C functions that live as long as the library and never raise.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"fieldcrypt.tenant",
            c"The session's tenant, used where a call names none.",
            c"Unset it means \"default\". While it is set, decrypt_field and reencrypt_field refuse values of other tenants.",
            &TENANT,
            GucContext::Userset,
            GucFlags::default(),
            Some(check_tenant),
            None,
            None,
        );
    }
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
    GucRegistry::define_int_guc(
        c"fieldcrypt.master_key_command_timeout",
        c"How long fieldcrypt.master_key_command may run.",
        c"A command that takes longer is killed, and the statement that needed the key fails.",
        &MASTER_KEY_COMMAND_TIMEOUT,
        100,
        300_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"fieldcrypt.key_cache_size",
        c"How many encryption keys a session keeps unwrapped in memory.",
        c"Each takes less than 1 kB. With more keys in use, those used longest ago are unwrapped again when needed.",
        &KEY_CACHE_SIZE,
        1,
        10_000_000,
        GucContext::Suset,
        GucFlags::default(),
    );
    define_require_approval();
    define_master_key();
    pg::version::reserve_setting_prefix();
}

fn define_require_approval() {
    // SAFETY: a look-up by name whose result is only compared; hooks are C functions that live as long
    // as the library and never raise.
    unsafe {
        let is_set = !pg_sys::process_shared_preload_libraries_in_progress
            && !pg_sys::GetConfigOption(c"fieldcrypt.require_approval".as_ptr(), true, false)
                .is_null();
        APPROVAL_PLACEHOLDER.set(is_set);
        GucRegistry::define_string_guc_with_hooks(
            c"fieldcrypt.require_approval",
            c"Operations that one role must ask for and another approve.",
            c"A list of: rotate_master_key, shred_tenant, destroy_key. Empty for none.",
            if is_set { &REQUIRE_APPROVAL_OR_ALL } else { &REQUIRE_APPROVAL },
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_operations),
            None,
            None,
        );
    }
}

/// `fieldcrypt.master_key` can be protected only where the postmaster defines it: in a session it
/// would have been an ordinary placeholder until now, readable by every role.
fn define_master_key() {
    // SAFETY: a plain variable; and a look-up by name whose result is only compared.
    unsafe {
        if !pg_sys::process_shared_preload_libraries_in_progress {
            let placeholder =
                pg_sys::GetConfigOption(c"fieldcrypt.master_key".as_ptr(), true, false);
            MASTER_KEY_PLACEHOLDER.set(!placeholder.is_null());
            return;
        }
        GucRegistry::define_string_guc_with_hooks(
            c"fieldcrypt.master_key",
            c"The master key itself. Prefer fieldcrypt.master_key_file.",
            c"Needs pg_fieldcrypt in shared_preload_libraries. Never shown.",
            &MASTER_KEY,
            GucContext::Postmaster,
            GucFlags::SUPERUSER_ONLY | GucFlags::DISALLOW_IN_AUTO_FILE | GucFlags::NO_SHOW_ALL,
            None,
            None,
            Some(show_masked),
        );
    }
}

/// The session's tenant in the database's encoding, if it is set.
///
/// The bytes are Postgres's and change with the setting: use them before anything else runs.
#[inline]
pub fn tenant<'a>() -> Option<&'a [u8]> {
    string(&TENANT)
}

/// `fieldcrypt.master_key_file`.
pub fn master_key_file<'a>() -> Option<&'a [u8]> {
    string(&MASTER_KEY_FILE)
}

/// `fieldcrypt.master_key_command`.
pub fn master_key_command<'a>() -> Option<&'a [u8]> {
    string(&MASTER_KEY_COMMAND)
}

/// `fieldcrypt.master_key_command_timeout`.
pub fn master_key_command_timeout() -> std::time::Duration {
    std::time::Duration::from_millis(MASTER_KEY_COMMAND_TIMEOUT.get().unsigned_abs().into())
}

/// `fieldcrypt.master_key`, if the postmaster defined it.
pub fn master_key<'a>() -> Option<&'a [u8]> {
    string(&MASTER_KEY)
}

/// Whether somebody set `fieldcrypt.master_key` on a server that does not preload the library.
pub fn master_key_is_unprotected() -> bool {
    MASTER_KEY_PLACEHOLDER.get()
}

/// Whether `fieldcrypt.require_approval` names an operation.
pub fn requires_approval(operation: &[u8]) -> bool {
    let setting =
        if APPROVAL_PLACEHOLDER.get() { &REQUIRE_APPROVAL_OR_ALL } else { &REQUIRE_APPROVAL };
    operations(string(setting).unwrap_or_default()).any(|name| name == operation)
}

fn operations(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

/// `fieldcrypt.key_cache_size`.
#[inline]
pub fn key_cache_size() -> usize {
    KEY_CACHE_SIZE.get().unsigned_abs() as usize
}

#[inline]
fn string<'a>(setting: &GucSetting<Option<CString>>) -> Option<&'a [u8]> {
    // SAFETY: Postgres keeps a valid C string, or NULL, in the variable; backends have one thread.
    unsafe {
        let value = *setting.as_ptr();
        if value.is_null() || *value == 0 { None } else { Some(CStr::from_ptr(value).to_bytes()) }
    }
}

unsafe extern "C-unwind" fn check_tenant(
    value: *mut *mut c_char,
    _: *mut *mut c_void,
    _: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to a C string or to NULL.
    unsafe {
        let fits = (*value).is_null() || CStr::from_ptr(*value).count_bytes() <= MAX_TENANT_BYTES;
        if !fits {
            pg_sys::GUC_check_errdetail_string =
                pg_sys::pstrdup(c"A tenant's name has at most 1024 bytes.".as_ptr());
        }
        fits
    }
}

unsafe extern "C-unwind" fn check_operations(
    value: *mut *mut c_char,
    _: *mut *mut c_void,
    _: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to a C string or to NULL.
    unsafe {
        let is_known = (*value).is_null()
            || operations(CStr::from_ptr(*value).to_bytes())
                .all(|name| APPROVED_OPERATIONS.contains(&name));
        if !is_known {
            pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(
                c"It is a list of: rotate_master_key, shred_tenant, destroy_key.".as_ptr(),
            );
        }
        is_known
    }
}

unsafe extern "C-unwind" fn show_masked() -> *const c_char {
    if master_key().is_some() { c"********".as_ptr() } else { c"".as_ptr() }
}
