//! Where statements begin, looked at for the server log: what is about encrypted values, or can't be told, marks
//! its transaction, since what fails later need not say so: the text of COMMIT, or of FETCH, names nothing.
//!
//! In these hooks an error of what comes next passes through by `longjmp`, as if they were not there: a guard
//! of pgrx's would make another error of it, without its QUERY, position and names. They hold nothing that
//! needs dropping.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys::{self, Oid};

use super::log_hook::masker;
use super::{call, marks};

thread_local! {
    static IS_ACTIVE: Cell<bool> = const { Cell::new(false) };
    static NEXT_ANALYZE: Cell<pg_sys::post_parse_analyze_hook_type> = const { Cell::new(None) };
    static NEXT_START: Cell<pg_sys::ExecutorStart_hook_type> = const { Cell::new(None) };
}

/// The relations of a plan: those of views, too.
#[derive(Clone, Copy)]
pub struct Relations(*mut pg_sys::List);

impl Relations {
    /// None.
    pub const NONE: Self = Self(std::ptr::null_mut());

    /// # Safety
    ///
    /// The list is NULL, or one of numbers of relations that lives as long as this.
    pub(super) const unsafe fn of(list: *mut pg_sys::List) -> Self {
        Self(list)
    }

    /// Whether one of them is what is looked for.
    pub fn any(self, mut is: impl FnMut(Oid) -> bool) -> bool {
        // SAFETY: a list of numbers, or NULL, that lives as long as the plan does: until the hook is over.
        unsafe {
            let Some(list) = self.0.as_ref() else { return false };
            let cells = std::slice::from_raw_parts(list.elements, list.length as usize);
            cells.iter().any(|cell| is(cell.oid_value))
        }
    }
}

/// Takes its place, and asks to be told of changes of the catalogs.
pub(super) fn init() {
    IS_ACTIVE.set(true);
    // SAFETY: hooks are set as Postgres says: keep what was there, and call it. They and the callbacks live as
    // long as the library, which is never unloaded.
    unsafe {
        NEXT_ANALYZE.set(pg_sys::post_parse_analyze_hook);
        pg_sys::post_parse_analyze_hook = Some(at_analyze);
        NEXT_START.set(pg_sys::ExecutorStart_hook);
        pg_sys::ExecutorStart_hook = Some(at_start);
        pg_sys::CacheRegisterRelcacheCallback(Some(at_relation_change), pg_sys::Datum::null());
        use pg_sys::SysCacheIdentifier::{
            CASTSOURCETARGET, CONSTROID, OPEROID, PROCOID, STATEXTOID,
        };
        for cache in [PROCOID, OPEROID, CASTSOURCETARGET, STATEXTOID] {
            pg_sys::CacheRegisterSyscacheCallback(
                cache as c_int,
                Some(at_object_change),
                pg_sys::Datum::null(),
            );
        }
        pg_sys::CacheRegisterSyscacheCallback(
            CONSTROID as c_int,
            Some(at_constraint_change),
            pg_sys::Datum::null(),
        );
    }
}

unsafe extern "C-unwind" fn at_relation_change(_: pg_sys::Datum, relation: Oid) {
    relation_changed((relation != pg_sys::InvalidOid).then_some(relation));
}

unsafe extern "C-unwind" fn at_object_change(_: pg_sys::Datum, _: c_int, _: u32) {
    relation_changed(None);
}

// Every table with a primary key has one, also a temporary table: not each may cost reading all.
unsafe extern "C-unwind" fn at_constraint_change(_: pg_sys::Datum, _: c_int, _: u32) {
    if let Some(masker) = masker() {
        (masker.constraint_changed)();
    }
}

fn relation_changed(relation: Option<Oid>) {
    if let Some(masker) = masker() {
        (masker.relation_changed)(relation);
    }
}

unsafe extern "C-unwind" fn at_analyze(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    // SAFETY: Postgres's own structure, the text of which is a C string or NULL.
    unsafe { look_at((*state).p_sourcetext, Relations::NONE) };
    if let Some(next) = NEXT_ANALYZE.get() {
        // SAFETY: the hook that was there before, with what it is given.
        unsafe { next(state, query, jumble) }
    }
}

unsafe extern "C-unwind" fn at_start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: Postgres's own structures; of utility statements nothing is executed.
    unsafe { look_at((*query).sourceText, Relations((*(*query).plannedstmt).relationOids)) };
    let next = NEXT_START.get().unwrap_or(unguarded::standard_ExecutorStart);
    // SAFETY: the hook that was there before, or what Postgres calls without one.
    unsafe { next(query, flags) }
}

/// A utility statement begins.
///
/// # Safety
///
/// The text is a C string or NULL.
pub(super) unsafe fn utility(text: *const c_char) {
    // SAFETY: by the contract.
    unsafe { look_at(text, Relations::NONE) }
}

mod unguarded {
    unsafe extern "C-unwind" {
        pub fn standard_ExecutorStart(query: *mut pgrx::pg_sys::QueryDesc, flags: std::ffi::c_int);
    }
}

/// Marks the transaction, or notes that it was looked at.
#[inline]
unsafe fn look_at(text: *const c_char, relations: Relations) {
    if !IS_ACTIVE.get() || marks::is_transaction_marked() {
        return;
    }
    let Some(masker) = masker() else { return };
    if !(masker.looks)(is_logging()) {
        return marks::mark();
    }
    call::raising(|| {
        (masker.refresh)();
        // SAFETY: by the callers' contracts.
        let text = if text.is_null() { c"" } else { unsafe { CStr::from_ptr(text) } };
        if (masker.is_about_values)(text.to_bytes(), relations) {
            marks::mark();
        } else {
            marks::set_checked();
        }
        Ok(())
    });
}

/// Whether statements are written to the log when they end.
fn is_logging() -> bool {
    // SAFETY: reads settings of Postgres.
    unsafe { pg_sys::log_min_duration_statement >= 0 || pg_sys::log_min_duration_sample >= 0 }
}
