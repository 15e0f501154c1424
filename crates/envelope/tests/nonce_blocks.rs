//! What must never happen: one nonce twice under one key.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;

use fieldcrypt_envelope::{BlockScope, Entropy, NonceBlock, RandomnessUnavailable, SystemEntropy};
use support::{SCOPE, Starts};

const GIB: u64 = 1 << 30;

/// Starts that are all different: the number of the block in every byte.
struct Counting(u8);

impl Entropy for Counting {
    fn block_start(&mut self, _: BlockScope) -> Result<[u8; 16], RandomnessUnavailable> {
        self.0 = self.0.checked_add(1).ok_or(RandomnessUnavailable)?;
        Ok([self.0; 16])
    }
}

/// The nonces of one whole block that starts at `start`.
fn whole_block(start: [u8; 16]) -> Vec<[u8; 16]> {
    let mut block = NonceBlock::ENDED;
    let mut entropy = Starts(vec![start]);
    (0..NonceBlock::MAX_VALUES)
        .map(|_| *block.next(SCOPE, 10, &mut entropy).unwrap().as_bytes())
        .collect()
}

/// A start with this prefix byte and counter.
fn start(prefix: u8, counter: u32) -> [u8; 16] {
    let mut out = [prefix; 16];
    out[12..].copy_from_slice(&counter.to_be_bytes());
    out
}

#[test]
fn no_nonce_of_a_block_repeats_and_all_share_the_prefix() {
    let nonces = whole_block(*b"ABCDEFGHIJKLMNOP");
    assert_eq!(nonces.iter().collect::<HashSet<_>>().len(), 65_536);
    assert!(nonces.iter().all(|nonce| nonce.starts_with(b"ABCDEFGHIJKL")));
    assert_eq!(nonces[0], *b"ABCDEFGHIJKLMNOP");
}

#[test]
fn the_counter_wraps_within_its_four_bytes() {
    for first in [u32::MAX, u32::MAX - 1, u32::MAX - 65_534, 0x00FF_FFFF] {
        let nonces = whole_block(start(0xFF, first));
        for (i, nonce) in (0u32..).zip(&nonces) {
            assert_eq!(nonce[..12], [0xFF; 12], "no carry into the prefix");
            assert_eq!(nonce[12..], first.wrapping_add(i).to_be_bytes());
        }
        assert_eq!(nonces.iter().collect::<HashSet<_>>().len(), 65_536);
    }
}

#[test]
fn a_block_ends_after_65_536_values() {
    let mut block = NonceBlock::ENDED;
    let mut entropy = Counting(0);
    for _ in 0..65_536 {
        block.next(SCOPE, 0, &mut entropy).unwrap();
    }
    assert_eq!(entropy.0, 1);
    let nonce = block.next(SCOPE, 0, &mut entropy).unwrap();
    assert_eq!((entropy.0, nonce.as_bytes()), (2, &[2; 16]));
}

#[test]
fn a_block_ends_before_it_would_seal_more_than_64_gib() {
    let mut entropy = Counting(0);
    let mut block = NonceBlock::ENDED;
    for _ in 0..64 {
        block.next(SCOPE, GIB, &mut entropy).unwrap();
    }
    assert_eq!(entropy.0, 1, "64 GiB are allowed");
    block.next(SCOPE, 1, &mut entropy).unwrap();
    assert_eq!(entropy.0, 2, "and not a byte more");

    block.next(SCOPE, 63 * GIB, &mut entropy).unwrap();
    block.next(SCOPE, GIB, &mut entropy).unwrap();
    assert_eq!(entropy.0, 3, "a value that does not fit starts a block");
}

#[test]
fn a_value_beyond_every_limit_has_a_block_to_itself() {
    let mut entropy = Counting(0);
    let mut block = NonceBlock::ENDED;
    block.next(SCOPE, u64::MAX, &mut entropy).unwrap();
    block.next(SCOPE, 1, &mut entropy).unwrap();
    assert_eq!(entropy.0, 2);
}

#[test]
fn a_block_ends_with_the_process_the_transaction_and_the_statement() {
    for other in [
        BlockScope { process: 9, ..SCOPE },
        BlockScope { transaction: 9, ..SCOPE },
        BlockScope { statement: 9, ..SCOPE },
    ] {
        let mut entropy = Counting(0);
        let mut block = NonceBlock::ENDED;
        block.next(SCOPE, 1, &mut entropy).unwrap();
        let in_other = *block.next(other, 1, &mut entropy).unwrap().as_bytes();
        let back = *block.next(SCOPE, 1, &mut entropy).unwrap().as_bytes();
        assert_eq!((in_other, back), ([2; 16], [3; 16]), "{other:?}");
    }
}

#[test]
fn a_failing_source_leaves_the_block_ended() {
    let mut block = NonceBlock::ENDED;
    block.next(SCOPE, 1, &mut Counting(0)).unwrap();
    let other = BlockScope { statement: 9, ..SCOPE };
    let failed = block.next(other, 1, &mut Starts(vec![]));
    assert_eq!(failed, Err(RandomnessUnavailable));
    // Neither the scope that failed nor the old one goes on with the old block.
    for scope in [other, SCOPE] {
        assert_eq!(block.next(scope, 1, &mut Starts(vec![])), Err(RandomnessUnavailable));
    }
    let mut entropy = Counting(50);
    assert_eq!(block.next(SCOPE, 1, &mut entropy).unwrap().as_bytes(), &[51; 16]);
}

#[test]
fn a_failing_source_gives_no_nonce_to_a_full_block() {
    let mut block = NonceBlock::ENDED;
    block.next(SCOPE, 64 * GIB, &mut Counting(0)).unwrap();
    assert!(block.next(SCOPE, 1, &mut Starts(vec![])).is_err());
    assert!(block.next(SCOPE, 0, &mut Starts(vec![])).is_err());
}

#[test]
fn an_ended_block_is_ended_for_the_scope_that_it_shows_too() {
    let zero = BlockScope { process: 0, transaction: 0, statement: 0 };
    let mut block = NonceBlock::ENDED;
    assert!(block.next(zero, 0, &mut Starts(vec![])).is_err());
    assert_eq!(block.next(zero, 0, &mut Counting(6)).unwrap().as_bytes(), &[7; 16]);
}

#[test]
fn a_nonce_is_used_up_whatever_becomes_of_the_value() {
    // Nothing gives a nonce back: between two calls there is no other state than the block's.
    let mut block = NonceBlock::ENDED;
    let mut entropy = Counting(0);
    let given = block.next(SCOPE, 1, &mut entropy).unwrap();
    let next = block.next(SCOPE, 1, &mut entropy).unwrap();
    assert_ne!(given.as_bytes(), next.as_bytes());
}

#[test]
fn blocks_with_one_prefix_collide_only_where_their_ranges_overlap() {
    for (first, second, expected) in [
        (0, 65_536, 0),
        (0, 65_535, 1),
        (1_000, 1_000, 65_536),
        (1_000, 33_768, 32_768),
        (u32::MAX, 65_535, 0),
        (u32::MAX, 65_534, 1),
        (u32::MAX - 65_535, 0, 0),
        (0x8000_0000, 0, 0),
    ] {
        let one: HashSet<_> = whole_block(start(7, first)).into_iter().collect();
        let two = whole_block(start(7, second));
        let collisions = two.iter().filter(|nonce| one.contains(*nonce)).count();
        assert_eq!(collisions, expected, "{first} and {second}");
    }
}

#[test]
fn blocks_with_other_prefixes_never_collide() {
    let one: HashSet<_> = whole_block(start(7, 0)).into_iter().collect();
    assert!(whole_block(start(8, 0)).iter().all(|nonce| !one.contains(nonce)));
}

#[test]
fn starts_spread_evenly() {
    const BLOCKS: u32 = 8_192;
    let mut entropy = SystemEntropy::NEW;
    let mut seen = HashSet::new();
    // Counts of the first byte of the prefix, and of the top byte of the counter.
    let mut counts = [[0u32; 256]; 2];
    for statement in 0..i64::from(BLOCKS) {
        // Some scopes of one block, some of many: with and without the stock.
        let scope = BlockScope { statement: statement / 37 * (statement % 2), ..SCOPE };
        let start = entropy.block_start(scope).unwrap();
        assert!(seen.insert(start));
        counts[0][usize::from(start[0])] += 1;
        counts[1][usize::from(start[12])] += 1;
    }
    for counts in counts {
        let expected = f64::from(BLOCKS) / 256.0;
        let chi_square: f64 =
            counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        // 255 degrees of freedom: mean 255, standard deviation 22.6. Eight of them either way.
        assert!((75.0..435.0).contains(&chi_square), "{chi_square}");
    }
}
