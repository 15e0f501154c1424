//! Varlena values: read in place, built in place.

use std::ffi::c_void;
use std::ptr;

use pgrx::pg_sys::{self, Datum};
use pgrx::{set_varsize_4b, varlena};

use fieldcrypt_error::Error;

/// The bytes of a varlena datum. What was compressed or stored out of line is fetched into the
/// current memory context, which Postgres empties after the row.
///
/// # Safety
///
/// `datum` must be a non-null varlena datum that outlives the result.
#[inline]
pub unsafe fn detoasted<'a>(datum: Datum) -> &'a [u8] {
    let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: by the contract; `pg_detoast_datum_packed` gives a plain or short varlena.
    unsafe {
        let plain = if varlena::varatt_is_1b(stored) && !varlena::varatt_is_1b_e(stored)
            || varlena::varatt_is_4b_u(stored)
        {
            stored
        } else {
            pg_sys::pg_detoast_datum_packed(stored)
        };
        std::slice::from_raw_parts(
            varlena::vardata_any(plain).cast::<u8>(),
            varlena::varsize_any_exhdr(plain),
        )
    }
}

/// The first bytes of a varlena datum, so many if it has them. Of what is stored out of line no more is fetched.
///
/// # Safety
///
/// As for [`detoasted`].
#[inline]
pub unsafe fn beginning<'a>(datum: Datum, length: usize) -> &'a [u8] {
    let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: by the contract; a slice is a plain varlena in the current memory context.
    unsafe {
        let is_plain = varlena::varatt_is_1b(stored) && !varlena::varatt_is_1b_e(stored)
            || varlena::varatt_is_4b_u(stored);
        let plain = if is_plain {
            stored
        } else {
            pg_sys::pg_detoast_datum_slice(stored, 0, length as i32)
        };
        let bytes = varlena::vardata_any(plain).cast::<u8>();
        std::slice::from_raw_parts(bytes, varlena::varsize_any_exhdr(plain).min(length))
    }
}

/// A varlena datum as it is stored, header and all: what lies out of line is a pointer.
///
/// # Safety
///
/// As for [`detoasted`].
#[inline]
pub unsafe fn stored<'a>(datum: Datum) -> &'a [u8] {
    let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: by the contract.
    unsafe { std::slice::from_raw_parts(stored.cast::<u8>(), varlena::varsize_any(stored)) }
}

/// A varlena under construction in the current memory context.
pub struct Varlena {
    memory: *mut pg_sys::varlena,
    length: usize,
}

impl Varlena {
    const HEADER: usize = pg_sys::VARHDRSZ;
    /// `MaxAllocSize` of `memutils.h`: what a value may take, its header included.
    const MAX: usize = 0x3FFF_FFFF;

    /// Memory for a value of `length` bytes, of which all outside `copied` are zero and those from
    /// `at` on are `copied`.
    // Where the places are constants, clearing what is around them takes no call.
    #[inline(always)]
    pub fn around(length: usize, at: usize, copied: &[u8]) -> Result<Self, Error> {
        let end = at + copied.len();
        if length > Self::MAX - Self::HEADER {
            return Err(Error::TooLarge { bytes: length });
        }
        assert!(end <= length, "the copied bytes fit");
        // SAFETY: the size was checked, palloc never returns null; all of the memory is initialised:
        // the header by `set_varsize_4b`, the rest by the three writes.
        unsafe {
            let memory = pg_sys::palloc(length + Self::HEADER).cast::<pg_sys::varlena>();
            set_varsize_4b(memory, (length + Self::HEADER) as i32);
            let data = memory.cast::<u8>().add(Self::HEADER);
            ptr::write_bytes(data, 0, at);
            ptr::copy_nonoverlapping(copied.as_ptr(), data.add(at), copied.len());
            ptr::write_bytes(data.add(end), 0, length - end);
            Ok(Self { memory, length })
        }
    }

    /// A value of zero bytes.
    #[inline]
    pub fn zeroed(length: usize) -> Result<Self, Error> {
        Self::around(length, 0, &[])
    }

    /// A value of these bytes.
    pub fn of(bytes: &[u8]) -> Result<Self, Error> {
        Self::around(bytes.len(), 0, bytes)
    }

    /// Its bytes.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `around` initialised `length` bytes behind the header.
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.cast::<u8>().add(Self::HEADER), self.length)
        }
    }

    /// The same, to be read.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts(self.memory.cast::<u8>().add(Self::HEADER), self.length)
        }
    }

    /// The finished datum.
    #[inline]
    pub fn into_datum(self) -> Datum {
        Datum::from(self.memory.cast::<c_void>())
    }

    /// Overwrites it, and gives its memory back: what held a plaintext.
    pub fn wipe(mut self) {
        self.bytes_mut().fill(0);
        self.discard();
    }

    /// Gives its memory back.
    pub fn discard(self) {
        // SAFETY: palloc'd by `around`, and nobody else's.
        unsafe { pg_sys::pfree(self.memory.cast()) }
    }
}

/// A NUL-terminated string in the current memory context, for calls into input functions.
pub(super) fn c_string(text: &[u8]) -> Result<Datum, Error> {
    CText::filled(text.len(), |out| out.copy_from_slice(text)).map(CText::into_datum)
}

/// A NUL-terminated string in the current memory context, what output functions give.
pub struct CText(*mut u8);

impl CText {
    /// Of `length` bytes that `fill` writes.
    pub fn filled(length: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self, Error> {
        if length >= Varlena::MAX {
            return Err(Error::TooLarge { bytes: length });
        }
        // SAFETY: one byte more than the text, all of them zero before `fill` sees them.
        unsafe {
            let memory = pg_sys::palloc0(length + 1).cast::<u8>();
            fill(std::slice::from_raw_parts_mut(memory, length));
            Ok(Self(memory))
        }
    }

    /// The finished datum.
    pub fn into_datum(self) -> Datum {
        Datum::from(self.0.cast::<c_void>())
    }
}
