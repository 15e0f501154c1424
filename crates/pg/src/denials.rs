//! Calls that Postgres itself refuses, for want of a grant: the extension is never entered then, so they are
//! noticed where they go to the server log. What an exception block catches is not seen there.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::sync::OnceLock;

use pgrx::pg_sys;

use super::callbacks::{self, Listener};
use super::client::Client;
use super::{call, log_hook, shared_memory};

thread_local! {
    static NEXT_LOG: Cell<pg_sys::emit_log_hook_type> = const { Cell::new(None) };
    static NEXT_ANALYZE: Cell<pg_sys::post_parse_analyze_hook_type> = const { Cell::new(None) };
    /// A hook further on writes the record itself, and comes here again.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Who runs statements here. In a transaction that has failed nobody can be looked up.
    static CLIENT: RefCell<Option<(Roles, Client)>> = const { RefCell::new(None) };
}

type Roles = (pg_sys::Oid, pg_sys::Oid);

/// Is told Postgres's message, and whom it refused what. Called in a transaction that has failed.
pub type OnDenial = fn(&[u8], &Client);

static ON_DENIAL: OnceLock<OnDenial> = OnceLock::new();

/// Takes its place, if the library is being preloaded: otherwise there is no queue.
pub fn init(told: OnDenial) {
    ON_DENIAL.get_or_init(|| told);
    callbacks::listen(Listener { ended: transaction_ended, ..Listener::DEAF });
    if !shared_memory::is_preloading() {
        return;
    }
    // SAFETY: hooks are set as Postgres says: keep what was there, and call it.
    unsafe {
        NEXT_LOG.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(at_log);
        NEXT_ANALYZE.set(pg_sys::post_parse_analyze_hook);
        pg_sys::post_parse_analyze_hook = Some(at_analyze);
    }
}

/// A transaction ends, maybe by an error in the midst of a hook. Called where nothing may fail.
fn transaction_ended() {
    IS_INSIDE.set(false);
}

/// An error of what comes next passes through by `longjmp`: this frame holds nothing that needs dropping.
unsafe extern "C-unwind" fn at_analyze(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    // SAFETY: reads variables of the backend; a look-up where a statement is being analyzed, which reads
    // catalogs itself. ROLLBACK is analyzed in a transaction that has failed, too, and SET ROLE undone by
    // then. The rest hands on what came.
    unsafe {
        let roles = (pg_sys::GetSessionUserId(), pg_sys::GetOuterUserId());
        let is_known = CLIENT.with_borrow(|known| matches!(known, Some((of, _)) if *of == roles));
        if !is_known && log_hook::may_read_catalogs() {
            call::raising(|| {
                CLIENT.set(Some((roles, Client::now())));
                Ok(())
            });
        }
        if let Some(next) = NEXT_ANALYZE.get() {
            next(state, query, jumble);
        }
    }
}

unsafe extern "C-unwind" fn at_log(record: *mut pg_sys::ErrorData) {
    // SAFETY: Postgres passes the record that it is about to write; its texts are C strings or NULL.
    unsafe {
        let is_denial = !IS_INSIDE.get()
            && (*record).elevel >= pgrx::PgLogLevel::ERROR as i32
            && (*record).sqlerrcode
                == pg_sys::errcodes::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE as i32
            && !(*record).message.is_null()
            && !(*record).message_id.is_null();
        if is_denial {
            // In English, whatever the language of the message.
            let kind = CStr::from_ptr((*record).message_id).to_bytes();
            let message = CStr::from_ptr((*record).message).to_bytes();
            if is_of_call(kind) {
                call::raising(|| {
                    let _ = log_hook::without_panic(|| {
                        let Some(told) = ON_DENIAL.get() else { return };
                        CLIENT.with_borrow(|known| match known {
                            Some((_, client)) => told(message, client),
                            // The first statement of a session, refused before it is analyzed.
                            None => told(message, &Client::logged_in()),
                        });
                    });
                    Ok(())
                });
            }
        }
        if (*record).output_to_server
            && let Some(next) = NEXT_LOG.get()
        {
            let was_inside = IS_INSIDE.replace(true);
            next(record);
            IS_INSIDE.set(was_inside);
        }
    }
}

fn is_of_call(kind: &[u8]) -> bool {
    const KINDS: [&[u8]; 5] = [
        b"permission denied for function %s",
        b"permission denied for procedure %s",
        b"permission denied for table %s",
        b"permission denied for view %s",
        b"permission denied for schema %s",
    ];
    KINDS.contains(&kind)
}
