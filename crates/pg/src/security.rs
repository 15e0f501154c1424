//! Whose code runs, with whose rights, and what it may not do.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use fieldcrypt_error::Error;
use pgrx::pg_sys;

use super::callbacks::{self, Listener};
use super::relations;

/// A function that only reads a variable, without pgrx's guard against errors, which on the row path would
/// cost more than it does.
mod unguarded {
    unsafe extern "C" {
        pub fn InSecurityRestrictedOperation() -> bool;
        pub fn GetUserId() -> pgrx::pg_sys::Oid;
    }
}

/// Sees to it that nothing outlives a transaction.
pub fn init() {
    callbacks::listen(Listener { ended: transaction_ended, ..Listener::DEAF });
}

/// The transaction is over, however it ended. Called where nothing may fail.
fn transaction_ended() {
    RESTRICTED_HERE.set(false);
    GUARDS_OPEN.set(0);
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

/// Refuses whoever has no right to call a function, by its qualified name and types, too.
pub fn refuse_unless_executable(function: &CStr, right: &'static str) -> Result<(), Error> {
    if may(function) { Ok(()) } else { Err(Error::LacksRight { right }) }
}

/// Whether the user of the moment may call a function, by its qualified name and types.
pub fn may(function: &CStr) -> bool {
    // SAFETY: reads a variable of the backend.
    role_may(function, unsafe { pg_sys::GetUserId() })
}

/// The same of the user that the session has chosen, whosever functions and foreign keys are running.
pub fn outer_user_may(function: &CStr) -> bool {
    // SAFETY: reads a variable of the backend.
    role_may(function, unsafe { pg_sys::GetOuterUserId() })
}

/// The same of a role.
pub fn role_may(function: &CStr, role: pg_sys::Oid) -> bool {
    // SAFETY: the input function of `regprocedure` reads a C string and gives an oid; then a look-up of rights.
    unsafe {
        let oid = pgrx::direct_function_call::<pg_sys::Oid>(
            pg_sys::regprocedurein,
            &[Some(pg_sys::Datum::from(function.as_ptr()))],
        );
        oid.is_some_and(|oid| super::version::may_execute(oid, role))
    }
}

/// Whether a foreign key's action is running, which Postgres does with the rights of the table's owner.
pub fn is_by_foreign_key() -> bool {
    let mut user = pg_sys::InvalidOid;
    let mut context: c_int = 0;
    // SAFETY: reads variables of the backend.
    unsafe { pg_sys::GetUserIdAndSecContext(&mut user, &mut context) };
    context as u32 & pg_sys::SECURITY_NOFORCE_RLS != 0
}

/// The user whose rights count now, by number.
#[inline]
pub fn user() -> u32 {
    // SAFETY: reads a variable of the backend.
    unsafe { unguarded::GetUserId() }.to_u32()
}

#[inline]
fn is_restricted() -> bool {
    // SAFETY: reads a variable of the backend.
    unsafe { unguarded::InSecurityRestrictedOperation() }
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

thread_local! {
    static OWN_HAND: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `work` as the owner of the extension's tables, allowed past their guards.
///
/// Whoever uses a key has not asked to run code of that owner. A trigger that he put on the tables may run as
/// himself, but not at the end of the transaction, with the rights of the session.
pub fn as_owner<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    let owner = relations::owner_of_keys()?;
    let guards = AsOwner::begin();
    let result = as_user(owner, pg_sys::SECURITY_RESTRICTED_OPERATION, work);
    drop(guards);
    result
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

/// The same inside of [`as_owner`]: the guards are closed meanwhile, and code of the table's owner is what it is.
pub fn as_table_owner_again<R>(
    owner: pg_sys::Oid,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    let guards = Closed::begin();
    let result = as_table_owner(owner, work);
    drop(guards);
    result
}

/// Closes the guards while it lives.
struct Closed {
    was_restricted_here: bool,
    were_open: u32,
}

impl Closed {
    fn begin() -> Self {
        let was_restricted_here = RESTRICTED_HERE.replace(false);
        Self { was_restricted_here, were_open: GUARDS_OPEN.replace(0) }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        RESTRICTED_HERE.set(self.was_restricted_here);
        GUARDS_OPEN.set(self.were_open);
    }
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

thread_local! {
    /// The restriction is that of [`as_owner`], and there was none around it.
    static RESTRICTED_HERE: Cell<bool> = const { Cell::new(false) };
    static GUARDS_OPEN: Cell<u32> = const { Cell::new(0) };
}

/// Whether the extension itself is writing to its guarded tables.
pub fn guards_are_open() -> bool {
    GUARDS_OPEN.get() > 0
}

/// Lets writes through the guards of the extension's tables while it lives. Dropped by unwinding too, so an
/// error closes them again.
struct AsOwner {
    was_restricted_here: bool,
}

impl AsOwner {
    fn begin() -> Self {
        let was_restricted_here = RESTRICTED_HERE.get();
        RESTRICTED_HERE.set(was_restricted_here || !is_restricted());
        GUARDS_OPEN.set(GUARDS_OPEN.get() + 1);
        Self { was_restricted_here }
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        RESTRICTED_HERE.set(self.was_restricted_here);
        GUARDS_OPEN.set(GUARDS_OPEN.get().saturating_sub(1));
    }
}
