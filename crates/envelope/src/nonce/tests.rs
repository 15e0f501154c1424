//! The stock of random bytes, which only this module sees.

use super::*;

fn scope(statement: i64) -> BlockScope {
    BlockScope { process: 1, transaction: 2, statement }
}

fn stocked(entropy: &SystemEntropy) -> usize {
    let held = entropy.stock.iter().filter(|bytes| **bytes != [0; 32]).count();
    assert_eq!(held, entropy.stocked, "what is used up is wiped");
    held
}

#[test]
fn a_statement_with_one_block_stocks_nothing() {
    let mut entropy = SystemEntropy::NEW;
    for statement in 0..100 {
        entropy.block_start(scope(statement)).unwrap();
        assert_eq!(stocked(&entropy), 0);
    }
}

#[test]
fn a_statement_with_many_blocks_stocks_no_more_than_it_has_used_and_no_more_than_64() {
    let mut entropy = SystemEntropy::NEW;
    let mut largest = 0;
    for block in 1..=1_000 {
        entropy.block_start(scope(1)).unwrap();
        assert!(stocked(&entropy) <= block.min(64));
        largest = largest.max(stocked(&entropy));
    }
    assert_eq!(largest, 63);
}

#[test]
fn the_stock_is_thrown_away_with_the_scope() {
    for other in
        [scope(2), BlockScope { transaction: 9, ..scope(1) }, BlockScope { process: 9, ..scope(1) }]
    {
        let mut entropy = SystemEntropy::NEW;
        while stocked(&entropy) < 20 {
            entropy.block_start(scope(1)).unwrap();
        }
        let stock = entropy.stock;
        entropy.block_start(other).unwrap();
        assert_eq!(stocked(&entropy), 0, "{other:?}");
        assert!(entropy.stock.iter().all(|now| *now == [0; 32] || !stock.contains(now)));
    }
}

#[test]
fn random_bytes_are_used_once() {
    let mut entropy = SystemEntropy::NEW;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..300 {
        assert!(seen.insert(*entropy.random_32(scope(1)).unwrap()));
    }
}

#[test]
fn equal_random_bytes_still_give_other_starts() {
    // A machine cloned with its random state: time, process and serial are hashed too.
    let mut entropy = SystemEntropy::NEW;
    let mut starts = std::collections::HashSet::new();
    for _ in 0..100 {
        entropy.scope = scope(1);
        entropy.stock[0] = [7; 32];
        entropy.stocked = 1;
        assert!(starts.insert(entropy.block_start(scope(1)).unwrap()));
    }
}
