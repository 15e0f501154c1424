//! What the kernel was really asked for, read back from /proc/self/smaps.

#![allow(clippy::unwrap_used)]

use std::ptr;

use fieldcrypt_locked_memory::LockedSlab;

/// The VmFlags of the mapping that holds `address`.
fn flags_of(address: usize) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let bound = |text| usize::from_str_radix(text, 16).unwrap();
            inside = (bound(from)..bound(to)).contains(&address);
        } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("no mapping holds the address");
}

#[test]
fn every_chunk_has_the_protection_that_is_claimed() {
    let mut slab = LockedSlab::new();
    let indexes: Vec<u32> = (0..5_000).map(|_| slab.insert([7u8; 48]).unwrap()).collect();
    let protection = slab.protection();
    for index in indexes.into_iter().step_by(500) {
        let address = ptr::from_mut(slab.get_mut(index).unwrap()).addr();
        let flags = flags_of(address);
        let has = |flag: &str| flags.iter().any(|found| found == flag);
        assert!(!protection.undumped || has("dd"), "{flags:?}");
        assert!(!protection.wiped_on_fork || has("wf"), "{flags:?}");
        assert!(!protection.locked || has("lo"), "{flags:?}");
    }
}

#[test]
fn this_kernel_grants_what_linux_has_had_since_4_14() {
    let mut slab = LockedSlab::new();
    slab.insert([7u8; 48]).unwrap();
    assert!(slab.protection().undumped);
    assert!(slab.protection().wiped_on_fork);
}

#[test]
fn ordinary_memory_has_none_of_these_flags() {
    let ordinary = vec![0u8; 1 << 20];
    let flags = flags_of(ordinary.as_ptr().addr());
    assert!(!flags.iter().any(|flag| flag == "dd" || flag == "wf"));
}
