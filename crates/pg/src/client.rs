//! Who is connected, from where: what a row of the log says of it.

use std::cell::OnceCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use pgrx::guc::GucSetting;
use pgrx::pg_sys::{self, Datum};

use super::network::Inet;
use super::setting::{self, Check, Text};
use super::{encoding, roles};

/// Who did something. Made where catalogs can be read; afterwards good anywhere, also in the callbacks
/// of a transaction that failed. Names are in the database's encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// session_user: who logged in.
    pub actor: Vec<u8>,
    /// The role chosen with SET ROLE; the actor, if none was.
    pub role: Vec<u8>,
    /// Where the client connected from; `None` for a local socket and for processes of the server.
    pub address: Option<String>,
    /// application_name, which the client chooses.
    pub application: Vec<u8>,
    /// Process id of the session; for a parallel worker, its leader's.
    pub process: i32,
    /// For whom, as the client claims.
    pub subject: Option<Vec<u8>>,
}

impl Client {
    /// Of this session, now. Reads catalogs.
    pub fn now() -> Self {
        Self {
            actor: roles::session_user(),
            role: roles::outer_role(),
            address: address(),
            application: application(),
            process: process(),
            subject: subject(),
        }
    }

    /// Of a session in which nothing was looked up yet, where nothing can be: by the name that logged in.
    pub fn logged_in() -> Self {
        // SAFETY: a setting that shows a variable; its text is copied at once.
        let name = unsafe {
            let name = pg_sys::GetConfigOption(c"session_authorization".as_ptr(), true, false);
            if name.is_null() {
                Vec::new()
            } else {
                encoding::storable(CStr::from_ptr(name).to_bytes())
            }
        };
        let (role, address, application) = (name.clone(), address(), application());
        let (process, subject) = (process(), subject());
        Self { actor: name, role, address, application, process, subject }
    }

    /// Where nothing can be looked up any more.
    pub fn unknown() -> Self {
        let (actor, role, application) = (Vec::new(), Vec::new(), Vec::new());
        let (process, subject) = (process(), subject());
        Self { actor, role, address: None, application, process, subject }
    }
}

/// What tells clients of a session apart, without reading catalogs: who is who may have changed since a
/// [`Client`] was made if this has.
#[derive(Debug)]
pub struct Author {
    session_user: pg_sys::Oid,
    outer_role: pg_sys::Oid,
    application: Vec<u8>,
    subject: Option<Vec<u8>>,
}

impl Author {
    /// Of this session, now.
    pub fn now() -> Self {
        let (session_user, outer_role) = roles::session_oids();
        let (application, subject) = (application(), subject());
        Self { session_user, outer_role, application, subject }
    }

    /// Whether it is that of the session, now.
    pub fn is_now(&self) -> bool {
        (self.session_user, self.outer_role) == roles::session_oids()
            && with_application(|name| name == self.application)
            && claimed() == self.subject.as_deref()
    }
}

static SUBJECT: OnceLock<&GucSetting<Option<CString>>> = OnceLock::new();
static SUBJECTS: AtomicUsize = AtomicUsize::new(1);

/// Defines the setting in which a client says for whom it acts.
pub fn define_subject<C: Check>(text: Text) {
    let _ = SUBJECT.set(text.value);
    setting::define_watched::<C>(text, count_subject);
}

unsafe extern "C-unwind" fn count_subject(_: *const c_char, _: *mut c_void) {
    SUBJECTS.fetch_add(1, Relaxed);
}

/// Another number after each change of that setting. Never 0.
#[inline]
pub fn subjects() -> usize {
    SUBJECTS.load(Relaxed)
}

/// For whom the client says that it acts, now. Reads no catalog.
pub fn subject() -> Option<Vec<u8>> {
    claimed().map(encoding::storable)
}

fn claimed<'a>() -> Option<&'a [u8]> {
    SUBJECT.get().and_then(|setting| setting::text(setting))
}

fn address() -> Option<String> {
    thread_local! { static ADDRESS: OnceCell<Option<String>> = const { OnceCell::new() } }
    ADDRESS.with(|known| {
        known
            .get_or_init(|| {
                // SAFETY: functions of Postgres without arguments but the call itself; the first answers
                // NULL for a local socket and where there is no client.
                unsafe {
                    let address =
                        pgrx::direct_function_call::<Datum>(pg_sys::inet_client_addr, &[])?;
                    Some(Inet::new(address).to_text())
                }
            })
            .clone()
    })
}

/// application_name as it is now. Reads no catalog.
pub fn application() -> Vec<u8> {
    with_application(<[u8]>::to_vec)
}

fn with_application<R>(read: impl FnOnce(&[u8]) -> R) -> R {
    // SAFETY: a setting of Postgres, a C string or NULL, which `read` does not change.
    unsafe {
        if pg_sys::application_name.is_null() {
            return read(&[]);
        }
        read(CStr::from_ptr(pg_sys::application_name).to_bytes())
    }
}

/// Process id of the session; for a parallel worker, its leader's.
pub fn process() -> i32 {
    // SAFETY: the process's own entry, whose lock group's leader does not change while it is in one.
    unsafe {
        let own = pg_sys::MyProc;
        if own.is_null() || (*own).lockGroupLeader.is_null() {
            pg_sys::MyProcPid
        } else {
            (*(*own).lockGroupLeader).pid
        }
    }
}
