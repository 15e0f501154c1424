//! The transaction: what it is, what it may, who waits for it.

use std::ffi::c_int;

use fieldcrypt_envelope::BlockScope;
use fieldcrypt_error::{Error, KeyCreationRefused};
use pgrx::pg_sys;

use super::{callbacks, clock, executor, session};

/// The process, transaction and client statement that a nonce block belongs to.
#[inline]
pub fn block_scope() -> BlockScope {
    BlockScope {
        process: session::process() as u32,
        transaction: callbacks::transaction_serial(),
        statement: clock::statement_start(),
    }
}

/// The innermost subtransaction in progress.
pub fn current_subtransaction() -> pg_sys::SubTransactionId {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// The id of the transaction, which it gets now if it had none.
pub fn transaction_id() -> u64 {
    // SAFETY: allowed in every transaction that may write.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

/// Whether a statement of the session's own is all that there is of the transaction, which ends with it.
pub fn ends_with_statement() -> bool {
    // SAFETY: reads variables of the backend.
    unsafe { !pg_sys::IsTransactionBlock() && executor::depth() <= 1 }
}

/// The id of the transaction, if it has one.
pub fn transaction_id_if_any() -> Option<u64> {
    // SAFETY: reads a variable of the backend.
    let id = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
    (id != 0).then_some(id)
}

/// When the transaction began, in Postgres's time: its snapshot, if it has one for all of it, is no older.
pub fn start() -> i64 {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// Sleeps for a moment; a cancel or a shutdown ends it.
pub fn nap(time: std::time::Duration) {
    check_for_interrupts();
    std::thread::sleep(time);
}

/// Whether the transaction sees the database as it was when it began (REPEATABLE READ, SERIALIZABLE).
pub fn has_one_snapshot() -> bool {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as c_int }
}

/// Whether the server is a standby, or still recovers.
pub fn is_standby() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether nothing can be written: on a standby, or in a READ ONLY transaction.
pub fn is_read_only() -> bool {
    // SAFETY: reads variables of the backend and shared memory.
    unsafe { pg_sys::XactReadOnly || pg_sys::RecoveryInProgress() }
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

/// Refuses what is called so where nothing may be written, in the words of Postgres.
pub fn prevent_if_read_only(command: &std::ffi::CStr) {
    // SAFETY: reads a variable of the backend; its error quotes the string.
    unsafe { pg_sys::PreventCommandIfReadOnly(command.as_ptr()) }
}

/// Refuses to go on in a procedure that could not commit: one that is called in a transaction block, by a function, or
/// where an error would be caught. The caller is a procedure in PL/pgSQL.
pub fn refuse_unless_committable() -> Result<(), Error> {
    // SAFETY: both read variables of the backend.
    let can_commit = unsafe {
        pg_sys::SPI_inside_nonatomic_context() && pg_sys::GetCurrentTransactionNestLevel() == 1
    };
    if can_commit { Ok(()) } else { Err(Error::CannotCommit) }
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

/// Lets a cancel or a shutdown through while waiting.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}
