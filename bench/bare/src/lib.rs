//! The baselines of the benchmark, as lean as a function of PostgreSQL's can be: no guard around the
//! body, one allocation, the plaintext copied once and encrypted where it lies, the key ready.
//!
//! Not for use: one key for all, a nonce that starts at zero in every session.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::LazyLock;
use std::{process, slice};

use aes::Aes256Enc;
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use pgrx::pg_sys::{self, Datum, FunctionCallInfo, Pg_finfo_record};
use pgrx::{set_varsize_4b, varlena};

pgrx::pg_module_magic!();

type Cipher = aes_gcm::AesGcm<Aes256Enc, U12>;

const NONCE: usize = 12;
const TAG: usize = 16;

static CIPHER: LazyLock<Cipher> = LazyLock::new(|| Cipher::new(&[7; 32].into()));

thread_local! { static COUNTER: Cell<u64> = const { Cell::new(0) } }

/// `text or bytea → integer`: fetches its argument, from the TOAST table too, and no more.
fn fetch(argument: &[u8]) -> Datum {
    Datum::from(argument.len() as i32)
}

/// `text or bytea → the same`: copies its argument.
fn copy(argument: &[u8]) -> Datum {
    let (result, bytes) = varlena_of(argument.len());
    bytes.copy_from_slice(argument);
    result
}

/// `text → bytea`: nonce, ciphertext and tag, without associated data.
fn gcm_seal(plaintext: &[u8]) -> Datum {
    let (result, bytes) = varlena_of(NONCE + plaintext.len() + TAG);
    let (nonce, rest) = bytes.split_at_mut(NONCE);
    let (body, tag) = rest.split_at_mut(plaintext.len());
    let mut number = [0; NONCE];
    number[4..].copy_from_slice(&COUNTER.replace(COUNTER.get() + 1).to_be_bytes());
    nonce.copy_from_slice(&number);
    body.copy_from_slice(plaintext);
    match CIPHER.encrypt_inout_detached(&number.into(), &[], body.into()) {
        Ok(computed) => tag.copy_from_slice(&computed),
        Err(_) => process::abort(),
    }
    result
}

/// `bytea → text`: what `gcm_seal` made. Anything else is a mistake of the benchmark's.
fn gcm_open(sealed: &[u8]) -> Datum {
    let Some((nonce, rest)) = sealed.split_first_chunk::<NONCE>() else { process::abort() };
    let Some((body, tag)) = rest.split_last_chunk::<TAG>() else { process::abort() };
    let (result, bytes) = varlena_of(body.len());
    bytes.copy_from_slice(body);
    if CIPHER.decrypt_inout_detached(nonce.into(), &[], bytes.into(), tag.into()).is_err() {
        process::abort();
    }
    result
}

/// A new varlena in the current memory context, and its bytes, which the caller overwrites.
#[inline]
fn varlena_of<'a>(length: usize) -> (Datum, &'a mut [u8]) {
    // SAFETY: palloc gives the memory or raises; the bytes behind the header belong to nobody else.
    unsafe {
        let memory = pg_sys::palloc(length + pg_sys::VARHDRSZ).cast::<pg_sys::varlena>();
        set_varsize_4b(memory, (length + pg_sys::VARHDRSZ) as i32);
        let bytes = memory.cast::<u8>().add(pg_sys::VARHDRSZ);
        (Datum::from(memory.cast::<c_void>()), slice::from_raw_parts_mut(bytes, length))
    }
}

/// The argument's bytes, detoasted.
///
/// # Safety
///
/// The call must be of a STRICT function with one varlena argument.
#[inline]
unsafe fn argument<'a>(fcinfo: FunctionCallInfo) -> &'a [u8] {
    // SAFETY: by the contract.
    unsafe {
        let stored = (*fcinfo).args.as_slice(1)[0].value.cast_mut_ptr::<pg_sys::varlena>();
        let is_plain = varlena::varatt_is_1b(stored) && !varlena::varatt_is_1b_e(stored)
            || varlena::varatt_is_4b_u(stored);
        let plain = if is_plain { stored } else { pg_sys::pg_detoast_datum_packed(stored) };
        slice::from_raw_parts(
            varlena::vardata_any(plain).cast::<u8>(),
            varlena::varsize_any_exhdr(plain),
        )
    }
}

#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_finfo_bare_trigger() -> &'static Pg_finfo_record {
    const V1: Pg_finfo_record = Pg_finfo_record { api_version: 1 };
    &V1
}

/// A trigger BEFORE INSERT or UPDATE of each row, which lets it pass.
///
/// # Safety
///
/// Only the trigger manager calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn bare_trigger(fcinfo: FunctionCallInfo) -> Datum {
    // SAFETY: by the contract.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        let new = (*data).tg_newtuple;
        Datum::from(if new.is_null() { (*data).tg_trigtuple } else { new })
    }
}

macro_rules! sql_functions {
    ($($symbol:ident, $info:ident => $body:path;)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $info() -> &'static Pg_finfo_record {
            const V1: Pg_finfo_record = Pg_finfo_record { api_version: 1 };
            &V1
        }

        /// # Safety
        ///
        /// Only Postgres calls it, declared as `setup.sql` does.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $symbol(fcinfo: FunctionCallInfo) -> Datum {
            // SAFETY: declared STRICT, with one varlena argument.
            $body(unsafe { argument(fcinfo) })
        }
    )*};
}

sql_functions! {
    bare_fetch, pg_finfo_bare_fetch => fetch;
    bare_copy, pg_finfo_bare_copy => copy;
    bare_gcm_seal, pg_finfo_bare_gcm_seal => gcm_seal;
    bare_gcm_open, pg_finfo_bare_gcm_open => gcm_open;
}
