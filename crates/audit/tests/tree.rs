//! The Merkle tree: Certificate Transparency's well-known vectors, and a naive implementation of
//! RFC 6962 section 2.1, word for word, on whatever proptest makes up.

#![allow(clippy::unwrap_used)]

use fieldcrypt_audit::tree::{empty_root, node_hash};
use fieldcrypt_audit::{
    CompactRange, Frontier, Hash, NotAdjacent, ProofBuilder, consistency_proof, inclusion_proof,
    verify_consistency, verify_inclusion,
};
use fieldcrypt_envelope::sha256;
use proptest::prelude::*;

/// The inputs of the reference tree of Certificate Transparency, in hex.
const INPUTS: [&str; 8] = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
];

/// Its roots for 1 to 8 leaves.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

#[test]
fn the_reference_tree_has_its_roots() {
    let leaves = reference_leaves();
    let mut tree = Frontier::new();
    assert_eq!(
        tree.root(),
        hash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    );
    for (leaf, root) in leaves.iter().zip(ROOTS) {
        tree.append(*leaf);
        assert_eq!(tree.root(), hash(root), "{} leaves", tree.size());
    }
}

#[test]
fn the_reference_tree_has_its_inclusion_proofs() {
    let leaves = reference_leaves();
    // (leaf counted from 1, size, path), as in the tests of Certificate Transparency.
    let vectors: [(u64, usize, &[&str]); 4] = [
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (3, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (
            2,
            5,
            &[
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    for (leaf, size, path) in vectors {
        let proof = inclusion_proof(&leaves[..size], leaf - 1).unwrap();
        assert_eq!(proof, hashes(path), "leaf {leaf} of {size}");
        let (leaf, root) = (leaf - 1, hash(ROOTS[size - 1]));
        assert!(verify_inclusion(&leaves[leaf as usize], leaf, size as u64, &root, &proof));
    }
}

#[test]
fn the_reference_tree_has_its_consistency_proofs() {
    let leaves = reference_leaves();
    let vectors: [(u64, usize, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    for (old, size, path) in vectors {
        let proof = consistency_proof(&leaves[..size], old).unwrap();
        assert_eq!(proof, hashes(path), "{old} of {size}");
        let (old_root, root) = (hash(ROOTS[old as usize - 1]), hash(ROOTS[size - 1]));
        assert!(verify_consistency(old, &old_root, size as u64, &root, &proof));
    }
}

#[test]
fn there_is_no_proof_of_nothing() {
    let leaves = reference_leaves();
    assert!(inclusion_proof(&leaves, 8).is_none());
    assert!(inclusion_proof(&[], 0).is_none());
    assert!(consistency_proof(&leaves, 0).is_none());
    assert!(consistency_proof(&leaves, 9).is_none());
    let root = hash(ROOTS[7]);
    assert!(!verify_inclusion(&leaves[0], 0, 0, &empty_root(), &[]));
    assert!(!verify_inclusion(&leaves[0], 8, 8, &root, &[]));
    assert!(!verify_consistency(0, &empty_root(), 8, &root, &[]));
    assert!(!verify_consistency(9, &root, 8, &root, &[]));
    assert!(!verify_consistency(8, &root, 8, &root, &[root]));
    assert!(!verify_consistency(4, &hash(ROOTS[3]), 8, &root, &[]));
    assert!(!verify_consistency(3, &hash(ROOTS[2]), 8, &root, &[]));
}

#[test]
fn a_range_that_does_not_follow_is_refused() {
    let mut tree = Frontier::new();
    tree.append([1; 32]);
    for start in [0, 2, 3] {
        let mut range = CompactRange::new(start);
        range.push([2; 32]);
        assert_eq!(tree.append_range(&range), Err(NotAdjacent));
    }
    assert_eq!(tree.append_range(&CompactRange::new(0)), Err(NotAdjacent));
    assert_eq!(tree.append_range(&CompactRange::new(1)), Ok(()));
    assert_eq!(tree.size(), 1);
}

#[test]
fn bytes_that_are_no_edge_are_refused() {
    let mut tree = Frontier::new();
    (0..5).for_each(|leaf| tree.append([leaf; 32]));
    let bytes = tree.to_bytes();
    assert_eq!(bytes.len(), 1 + 8 + 2 * 32);
    for length in 0..bytes.len() {
        assert!(Frontier::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    assert!(Frontier::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    assert!(Frontier::from_bytes(&[bytes.as_slice(), &[0; 32]].concat()).is_err());
    let with = |at: usize, byte: u8| {
        let mut changed = bytes.clone();
        changed[at] = byte;
        Frontier::from_bytes(&changed)
    };
    assert!(with(0, 2).is_err());
    assert!(with(8, 4).is_err());
    assert!(with(8, 6).is_ok(), "as many subtrees, another tree");
    let beyond = [&[1u8, 0x80, 0, 0, 0, 0, 0, 0, 0], [0; 32].as_slice()].concat();
    assert!(Frontier::from_bytes(&beyond).is_err());

    let mut range = CompactRange::new(5);
    (0..6).for_each(|leaf| range.push([leaf; 32]));
    let bytes = range.to_bytes();
    for length in 0..bytes.len() {
        assert!(CompactRange::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    assert!(CompactRange::from_bytes(&[bytes.as_slice(), &[0; 32]].concat()).is_err());
    let mut swapped = bytes.clone();
    swapped[1..9].copy_from_slice(&bytes[9..17]);
    swapped[9..17].copy_from_slice(&bytes[1..9]);
    assert!(CompactRange::from_bytes(&swapped).is_err());
    let beyond = [[1u8].as_slice(), &[0; 8], &[0xFF; 8], &[0; 64 * 32]].concat();
    assert!(CompactRange::from_bytes(&beyond).is_err());
}

proptest! {
    #[test]
    fn the_root_is_the_naive_one(leaves in leaves(200)) {
        let mut tree = Frontier::new();
        for (size, leaf) in leaves.iter().enumerate() {
            prop_assert_eq!(tree.root(), naive_root(&leaves[..size]));
            tree.append(*leaf);
        }
        prop_assert_eq!(tree.root(), naive_root(&leaves));
        prop_assert_eq!(Frontier::from_bytes(&tree.to_bytes()), Ok(tree));
    }

    #[test]
    fn ranges_append_as_their_leaves_do(leaves in leaves(300), cuts in cuts()) {
        let mut one_by_one = Frontier::new();
        let mut by_range = Frontier::new();
        let mut at = 0;
        for end in cuts.into_iter().map(|cut| cut % (leaves.len() + 1)).chain([leaves.len()]) {
            if end < at {
                continue;
            }
            let mut range = CompactRange::new(at as u64);
            for leaf in &leaves[at..end] {
                range.push(*leaf);
                one_by_one.append(*leaf);
            }
            let range = CompactRange::from_bytes(&range.to_bytes()).unwrap();
            prop_assert!(range.hashes().len() <= 2 * (end - at + 1).ilog2() as usize + 1);
            prop_assert_eq!(by_range.append_range(&range), Ok(()));
            prop_assert_eq!(&by_range, &one_by_one);
            at = end;
        }
        prop_assert_eq!(by_range.root(), naive_root(&leaves));
    }

    #[test]
    fn inclusion_proofs_are_the_naive_ones(leaves in leaves(130), index: prop::sample::Index) {
        prop_assume!(!leaves.is_empty());
        let (index, size) = (index.index(leaves.len()), leaves.len());
        let proof = inclusion_proof(&leaves, index as u64).unwrap();
        prop_assert_eq!(&proof, &naive_path(index, &leaves));
        // The same from any edge of the tree that does not hold the leaf yet.
        for start in 0..=size {
            let mut edge = Frontier::new();
            leaves[..start].iter().for_each(|leaf| edge.append(*leaf));
            let mut builder = ProofBuilder::inclusion(index as u64, size as u64).unwrap();
            builder.begin(&edge);
            prop_assert_eq!(builder.seen(), if start <= index { start as u64 } else { 0 });
            leaves[builder.seen() as usize..].iter().for_each(|leaf| builder.push(*leaf));
            let from_edge = builder.finish();
            prop_assert_eq!(from_edge.as_ref(), Some(&proof));
        }
        let root = naive_root(&leaves);
        let verifies = |leaf: &Hash, index: usize, size: usize, root: &Hash, proof: &[Hash]| {
            verify_inclusion(leaf, index as u64, size as u64, root, proof)
        };
        prop_assert!(verifies(&leaves[index], index, size, &root, &proof));
        // Nothing else verifies.
        for other in 0..size + 2 {
            prop_assert!(other == index || !verifies(&leaves[index], other, size, &root, &proof));
        }
        prop_assert!(!verifies(&[0xEE; 32], index, size, &root, &proof));
        prop_assert!(!verifies(&leaves[index], index, size, &[0xEE; 32], &proof));
        let longer = [proof.as_slice(), &[[0xEE; 32]]].concat();
        prop_assert!(!verifies(&leaves[index], index, size, &root, &longer));
        for at in 0..proof.len() {
            let mut changed = proof.clone();
            changed[at][7] ^= 1;
            prop_assert!(!verifies(&leaves[index], index, size, &root, &changed));
            changed.remove(at);
            prop_assert!(!verifies(&leaves[index], index, size, &root, &changed));
        }
    }

    #[test]
    fn consistency_proofs_are_the_naive_ones(leaves in leaves(130), old: prop::sample::Index) {
        prop_assume!(!leaves.is_empty());
        let (old, size) = (old.index(leaves.len()) + 1, leaves.len());
        let proof = consistency_proof(&leaves, old as u64).unwrap();
        prop_assert_eq!(&proof, &naive_consistency(old, &leaves, true));
        let (old_root, root) = (naive_root(&leaves[..old]), naive_root(&leaves));
        let verifies = |old: usize, old_root: &Hash, size: usize, root: &Hash, proof: &[Hash]| {
            verify_consistency(old as u64, old_root, size as u64, root, proof)
        };
        prop_assert!(verifies(old, &old_root, size, &root, &proof));
        prop_assert!(!verifies(old, &[0xEE; 32], size, &root, &proof));
        prop_assert!(!verifies(old, &old_root, size, &[0xEE; 32], &proof));
        let longer = [proof.as_slice(), &[[0xEE; 32]]].concat();
        prop_assert!(!verifies(old, &old_root, size, &root, &longer));
        for at in 0..proof.len() {
            let mut changed = proof.clone();
            changed[at][7] ^= 1;
            prop_assert!(!verifies(old, &old_root, size, &root, &changed));
            changed.remove(at);
            prop_assert!(!verifies(old, &old_root, size, &root, &changed));
        }
        for other in (1..size).filter(|other| *other != old) {
            prop_assert!(!verifies(other, &old_root, size, &root, &proof));
        }
    }
}

fn leaves(most: usize) -> impl Strategy<Value = Vec<Hash>> {
    prop::collection::vec(any::<Hash>(), 0..most)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 0..12).prop_map(|mut cuts| {
        cuts.iter_mut().for_each(|cut| *cut %= 300);
        cuts.sort_unstable();
        cuts
    })
}

/// MTH(D[n]), RFC 6962 section 2.1.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => sha256(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

/// PATH(m, D[n]), RFC 6962 section 2.1.1.
fn naive_path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    if index < k {
        [naive_path(index, left), vec![naive_root(right)]].concat()
    } else {
        [naive_path(index - k, right), vec![naive_root(left)]].concat()
    }
}

/// SUBPROOF(m, D[n], b), RFC 6962 section 2.1.2.
fn naive_consistency(old: usize, leaves: &[Hash], is_whole: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if is_whole { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    if old <= k {
        [naive_consistency(old, left, is_whole), vec![naive_root(right)]].concat()
    } else {
        [naive_consistency(old - k, right, false), vec![naive_root(left)]].concat()
    }
}

fn split(size: usize) -> usize {
    size.next_power_of_two() / 2
}

fn reference_leaves() -> Vec<Hash> {
    INPUTS.iter().map(|input| sha256(&[&[0], &bytes(input)])).collect()
}

fn hashes(hex: &[&str]) -> Vec<Hash> {
    hex.iter().map(|hex| hash(hex)).collect()
}

fn hash(hex: &str) -> Hash {
    bytes(hex).try_into().unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(hex).unwrap()
}
