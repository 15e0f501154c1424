//! What the session, its transaction and its user are.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use fieldcrypt_envelope::BlockScope;
use pgrx::pg_sys;

use super::callbacks;
use super::catalog;
use super::encoding;
use crate::error::{Error, KeyCreationRefused};

/// Two functions that only read a variable, without pgrx's guard against errors, which on the row path
/// would cost more than they do.
mod unguarded {
    unsafe extern "C" {
        pub fn GetCurrentStatementStartTimestamp() -> i64;
        pub fn InSecurityRestrictedOperation() -> bool;
    }
}

/// Processes the invalidation messages of other sessions that have committed by now. Without it a
/// session in a transaction would go on with a key that was destroyed meanwhile.
#[inline]
pub fn accept_invalidations() {
    // SAFETY: allowed wherever a transaction is in progress, as it is in any SQL function.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}

/// The process, transaction and client statement that a nonce block belongs to.
#[inline]
pub fn block_scope() -> BlockScope {
    // SAFETY: reads variables of the backend.
    let (process, statement) =
        unsafe { (pg_sys::MyProcPid, unguarded::GetCurrentStatementStartTimestamp()) };
    BlockScope { process: process as u32, transaction: callbacks::transaction_serial(), statement }
}

/// When the client's statement began, in Postgres's time: another one, another time.
#[inline]
pub fn statement_start() -> i64 {
    // SAFETY: reads a variable of the backend.
    unsafe { unguarded::GetCurrentStatementStartTimestamp() }
}

/// Tells every session, this one too, that a relation's contents have changed.
pub fn invalidate(relation: pg_sys::Oid) {
    // SAFETY: queues a message, sent at commit.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}

/// The innermost subtransaction in progress.
pub fn current_subtransaction() -> pg_sys::SubTransactionId {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// Refuses to show plaintext to ANALYZE, index builds and materialized views, which would store it.
#[inline]
pub fn refuse_if_security_restricted() -> Result<(), Error> {
    if is_restricted() {
        return Err(Error::SecurityRestricted);
    }
    Ok(())
}

/// Refuses what goes by who the user of the session is, in code that others planted: in an index
/// expression, a CHECK constraint or a trigger that a superuser's VACUUM, REINDEX or re-encryption runs
/// as the owner of a table.
pub fn refuse_for_planted_code() -> Result<(), Error> {
    if is_restricted() && !RESTRICTED_HERE.get() {
        return Err(Error::PlantedCode);
    }
    Ok(())
}

#[inline]
fn is_restricted() -> bool {
    // SAFETY: reads a variable of the backend.
    unsafe { unguarded::InSecurityRestrictedOperation() }
}

thread_local! {
    /// The restriction is that of [`as_owner`], and there was none around it.
    static RESTRICTED_HERE: Cell<bool> = const { Cell::new(false) };
}

/// The transaction is over, however it ended. Called where nothing may fail.
pub fn transaction_ended() {
    RESTRICTED_HERE.set(false);
}

/// Puts back what was, after an error too.
struct RestrictedHere(bool);

impl RestrictedHere {
    fn begin() -> Self {
        let before = RESTRICTED_HERE.get();
        RESTRICTED_HERE.set(before || !is_restricted());
        Self(before)
    }
}

impl Drop for RestrictedHere {
    fn drop(&mut self) {
        RESTRICTED_HERE.set(self.0);
    }
}

thread_local! {
    static OWN_HAND: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Notes that the rest of this transaction was called by CALL or DO of the client itself. A trigger, a
/// function and what they call are refused: they may be anybody's.
pub fn note_own_hand() -> Result<(), Error> {
    refuse_for_planted_code()?;
    // SAFETY: reads variables of the backend.
    if !unsafe { pg_sys::SPI_inside_nonatomic_context() } {
        return Err(NOT_BY_OWN_HAND);
    }
    OWN_HAND.set(Some(callbacks::transaction_serial()));
    Ok(())
}

/// Refuses what [`note_own_hand`] has not noted in this transaction.
pub fn refuse_unless_own_hand() -> Result<(), Error> {
    refuse_for_planted_code()?;
    if OWN_HAND.get() == Some(callbacks::transaction_serial()) {
        Ok(())
    } else {
        Err(NOT_BY_OWN_HAND)
    }
}

const NOT_BY_OWN_HAND: Error = Error::BorrowedHands {
    problem: "this is done by a CALL of its own only, not by a function or a trigger",
    hint: "CALL fieldcrypt.approve(id), shred_tenant(tenant, reason) or rotate_master_key(), as a statement of the session itself.",
};

/// Whether the role whose rights count now has those of another.
pub fn has_rights_of(role: pg_sys::Oid) -> bool {
    // SAFETY: reads a variable of the backend, and catalogs.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), role) }
}

/// Refuses to make a key where its row could not be written, or would be without having been allowed.
pub fn refuse_unless_writable() -> Result<(), Error> {
    // SAFETY: reads variables of the backend. `RecoveryInProgress` first: a standby's transactions
    // are read only as well, and the standby is the clearer reason.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            return Err(Error::CannotCreateKey(KeyCreationRefused::Standby));
        }
        if pg_sys::IsInParallelMode() {
            return Err(Error::CannotCreateKey(KeyCreationRefused::ParallelMode));
        }
        if pg_sys::XactReadOnly {
            return Err(Error::CannotCreateKey(KeyCreationRefused::ReadOnlyTransaction));
        }
    }
    Ok(())
}

/// Runs `work`, which concerns this process alone, as if no parallel query were under way.
pub fn outside_parallel_mode(work: impl FnOnce()) {
    let mut levels = 0;
    // SAFETY: as many levels are entered again as were left. If `work` raises an error the
    // transaction is over, and its parallel mode with it.
    unsafe {
        while pg_sys::IsTransactionState() && pg_sys::IsInParallelMode() && levels < 100 {
            pg_sys::ExitParallelMode();
            levels += 1;
        }
        work();
        for _ in 0..levels {
            pg_sys::EnterParallelMode();
        }
    }
}

/// Whether the server is a standby, or still recovers.
pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether this process works for somebody, and not for another process: no helper of a parallel query, no
/// worker of the audit log.
pub fn is_session() -> bool {
    // SAFETY: reads a variable of the process.
    let is_helper = unsafe { pg_sys::ParallelWorkerNumber >= 0 };
    !is_helper && !super::background::is_audit_process()
}

/// The name of a function, without its schema, in the database's encoding.
pub fn function_name(function: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: a catalog look-up that answers NULL if there is none; the name is copied.
    unsafe {
        let name = pg_sys::get_func_name(function);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}

/// This process.
pub fn process() -> i32 {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::MyProcPid }
}

/// The oid of the session's database.
pub fn database() -> u32 {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Postgres's time as microseconds since 1970.
pub fn unix_time(time: i64) -> i64 {
    const TO_2000: i64 = 946_684_800_000_000;
    time + TO_2000
}

/// Postgres's time in RFC 3339, UTC, with microseconds.
pub fn iso_time(time: i64) -> String {
    fieldcrypt_audit::time::to_text(unix_time(time)).unwrap_or_default()
}

/// When the configuration was last read: changes with every reload, whatever it changed.
#[inline]
pub fn configuration_time() -> i64 {
    // SAFETY: a plain variable of the backend.
    unsafe { pg_sys::PgReloadTime }
}

/// Microseconds since 2000-01-01, Postgres's own time.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Whether the transaction sees the database as it was when it began (REPEATABLE READ, SERIALIZABLE).
pub fn has_one_snapshot() -> bool {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as c_int }
}

/// Waits until a transaction has ended; deadlocks are detected.
pub fn wait_for(transaction: pg_sys::TransactionId) {
    // SAFETY: waits for a transaction of another session, without naming a row for the message.
    unsafe {
        pg_sys::XactLockTableWait(
            transaction,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            pg_sys::XLTW_Oper::XLTW_None,
        );
    }
}

/// Whether a transaction, or a subtransaction, is in progress.
pub fn is_in_progress(transaction: pg_sys::TransactionId) -> bool {
    // SAFETY: looks into shared memory.
    unsafe { pg_sys::TransactionIdIsInProgress(transaction) }
}

/// The id of the transaction, which it gets now if it had none.
pub fn transaction_id() -> u64 {
    // SAFETY: allowed in every transaction that may write.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

/// Lets a cancel or a shutdown through while waiting.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}
/// The data directory.
pub fn data_directory() -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: set by the postmaster before any backend exists, never freed.
    unsafe {
        (!pg_sys::DataDir.is_null()).then(|| {
            std::path::PathBuf::from(std::ffi::OsStr::from_bytes(
                CStr::from_ptr(pg_sys::DataDir).to_bytes(),
            ))
        })
    }
}

/// The role that the user has chosen with SET ROLE, whatever SECURITY DEFINER functions are running.
pub fn outer_role() -> Vec<u8> {
    // SAFETY: reads a variable of the backend.
    role_name(unsafe { pg_sys::GetOuterUserId() })
}

/// session_user: the role that logged in, or what a superuser's SET SESSION AUTHORIZATION made of it.
pub fn session_user() -> Vec<u8> {
    // SAFETY: reads a variable of the backend.
    role_name(unsafe { pg_sys::GetSessionUserId() })
}

/// The role that logged in, whatever SET SESSION AUTHORIZATION a superuser ran since.
pub fn login_role() -> Vec<u8> {
    // SAFETY: reads a variable of the backend.
    role_name(unsafe { pg_sys::GetAuthenticatedUserId() })
}

/// A role's name, in the database's encoding; empty if there is none.
fn role_name(role: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: looks a role up by oid; the name is copied out of the palloc'd string.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            Vec::new()
        } else {
            encoding::storable(CStr::from_ptr(name).to_bytes())
        }
    }
}

/// Settings for a while. An error puts the old ones back too, since it aborts the (sub)transaction.
pub struct TemporarySettings(c_int);

impl TemporarySettings {
    /// For running code of a table's owner: a search_path that nobody can plant things in, and no long wait
    /// for locks, below deadlock_timeout, so that a deadlock ends here and not in an application.
    pub const QUIET: &[(&CStr, &CStr)] =
        &[(c"search_path", c"pg_catalog, pg_temp"), (c"lock_timeout", c"200ms")];

    /// Begins a level of settings of its own.
    pub fn begin(settings: &[(&'static CStr, &'static CStr)]) -> Self {
        // SAFETY: names and values are static C strings.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            for (name, value) in settings {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            Self(level)
        }
    }

    /// Puts the settings back, whatever was changed meanwhile.
    pub fn end(self) {
        // SAFETY: the level that `begin` opened.
        unsafe { pg_sys::AtEOXact_GUC(false, self.0) }
    }
}

thread_local! {
    static OWNERS_CODE: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may be code of a table's owner. An error in it may be any that its author likes: he must
/// not be taken for the system.
#[inline]
pub fn owners_code<R>(work: impl FnOnce() -> R) -> R {
    OWNERS_CODE.set(true);
    let result = work();
    OWNERS_CODE.set(false);
    result
}

/// Whether an error came out of [`owners_code`] since [`forget_owners_code`].
pub fn failed_in_owners_code() -> bool {
    OWNERS_CODE.get()
}

/// Forgets earlier errors.
pub fn forget_owners_code() {
    OWNERS_CODE.set(false);
}

/// Runs `work` with the rights of a table's owner and no more, as Postgres runs ANALYZE and index
/// builds: security-restricted, so that the owner's code can't leave anything behind that would run
/// with the caller's rights. Row level security does not apply to the owner here.
pub fn as_table_owner<R>(
    owner: pg_sys::Oid,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    let restrictions = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_NOFORCE_RLS;
    as_user(owner, restrictions, work)
}

/// Runs `work` as the owner of the extension's tables, allowed past their guards.
///
/// Whoever uses a key has not asked to run code of that owner. A trigger that he put on the tables may run as
/// himself, but not at the end of the transaction, with the rights of the session.
pub fn as_owner<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    let owner = catalog::owner_of_keys()?;
    let guards = (callbacks::GuardsOpen::new(), RestrictedHere::begin());
    let result = as_user(owner, pg_sys::SECURITY_RESTRICTED_OPERATION, work);
    drop(guards);
    result
}

/// Runs `work` as another user, for the time of a call, with more restrictions than there are.
///
/// On an error Postgres itself restores the user, when it aborts the (sub)transaction.
fn as_user<R>(user: pg_sys::Oid, restrictions: u32, work: impl FnOnce() -> R) -> R {
    let mut before = pg_sys::InvalidOid;
    let mut context: c_int = 0;
    // SAFETY: the pair that SECURITY DEFINER functions are run with.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        let more = (pg_sys::SECURITY_LOCAL_USERID_CHANGE | restrictions) as c_int;
        pg_sys::SetUserIdAndSecContext(user, context | more);
    }
    let result = work();
    // SAFETY: restores what was read above.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
    result
}
