//! What secrets leave on the stack. The stack looked at is memory of the test's own, lent to a thread.

#![allow(clippy::unwrap_used)]

use std::ffi::c_void;
use std::hint::black_box;
use std::panic::{catch_unwind, resume_unwind};
use std::ptr;

use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};

const STACK: usize = 1 << 20;
const CANARY: u64 = 0xD15E_A5ED_CAFE_F00D;

/// Leaves 8 KiB of canaries, twice where nothing is optimised, on the stack.
#[inline(never)]
fn handle_a_secret() -> u64 {
    let secret = black_box([CANARY; 1024]);
    black_box(&secret).iter().fold(0, |sum, word| sum ^ word)
}

/// Whether a thread that runs `work` leaves a canary anywhere on its stack.
fn leaves_canary(work: extern "C" fn(*mut c_void) -> *mut c_void) -> bool {
    let mut stack = vec![0u64; STACK / 8 + 4096];
    let offset = stack.as_ptr().cast::<u8>().align_offset(4096) / 8;
    // SAFETY: the thread gets STACK bytes, page-aligned, within `stack`, which nobody touches until
    // the thread is joined.
    unsafe {
        let mut attributes = std::mem::zeroed();
        assert_eq!(libc::pthread_attr_init(&raw mut attributes), 0);
        let base = stack.as_mut_ptr().add(offset).cast::<c_void>();
        assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, base, STACK), 0);
        let mut thread = std::mem::zeroed();
        assert_eq!(
            libc::pthread_create(&raw mut thread, &raw const attributes, work, ptr::null_mut()),
            0
        );
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_attr_destroy(&raw mut attributes), 0);
    }
    black_box(&mut stack).contains(&CANARY)
}

extern "C" fn unscrubbed(_: *mut c_void) -> *mut c_void {
    black_box(handle_a_secret());
    ptr::null_mut()
}

extern "C" fn scrubbed(_: *mut c_void) -> *mut c_void {
    black_box(with_scrubbed_stack::<DEEP, _>(handle_a_secret));
    ptr::null_mut()
}

extern "C" fn unscrubbed_panic(_: *mut c_void) -> *mut c_void {
    let outcome = catch_unwind(|| {
        black_box(handle_a_secret());
        resume_unwind(Box::new(()));
    });
    assert!(outcome.is_err());
    ptr::null_mut()
}

extern "C" fn scrubbed_panic(_: *mut c_void) -> *mut c_void {
    let outcome = catch_unwind(|| {
        with_scrubbed_stack::<DEEP, _>(|| {
            black_box(handle_a_secret());
            resume_unwind(Box::new(()));
        })
    });
    assert!(outcome.is_err());
    ptr::null_mut()
}

#[test]
fn a_scrubbed_stack_keeps_no_canary() {
    assert!(leaves_canary(unscrubbed), "the test sees what is left");
    assert!(!leaves_canary(scrubbed));
}

#[test]
fn a_stack_is_scrubbed_after_a_panic_too() {
    assert!(leaves_canary(unscrubbed_panic), "the test sees what is left");
    assert!(!leaves_canary(scrubbed_panic));
}

#[test]
fn the_result_of_the_work_comes_through() {
    assert_eq!(with_scrubbed_stack::<DEEP, _>(|| vec![1, 2, 3]), [1, 2, 3]);
}
