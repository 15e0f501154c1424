//! Proofs that a leaf is in a tree, and that a tree is the beginning of a larger one: RFC 6962
//! sections 2.1.1 and 2.1.2, verified as RFC 9162 sections 2.1.3.2 and 2.1.4.2 say.

use std::ops::Range;

use crate::tree::{Frontier, Hash, node_hash};

/// Makes a proof from leaves that pass by once, from number 0, and holds no more than the proof.
#[derive(Debug, Clone)]
pub struct ProofBuilder {
    size: u64,
    seen: u64,
    /// Up to where leaves are needed by none but whole nodes of an edge that ends before.
    first_needed: u64,
    /// The leaves under each node of the proof, with its place in the proof; from left to right.
    nodes: Vec<(Range<u64>, usize, Frontier)>,
    current: usize,
}

impl ProofBuilder {
    /// That leaf `index` is in the tree of `size` leaves: the audit path PATH(m, D[n]) of RFC 6962
    /// section 2.1.1. `None` unless `index < size`.
    pub fn inclusion(index: u64, size: u64) -> Option<Self> {
        (index < size).then(|| Self::new(size, index, inclusion_ranges(index, size)))
    }

    /// That the tree of `old` leaves begins the one of `size`: PROOF(m, D[n]) of RFC 6962 section
    /// 2.1.2. `None` unless `0 < old <= size`.
    pub fn consistency(old: u64, size: u64) -> Option<Self> {
        (0 < old && old <= size).then(|| Self::new(size, 0, consistency_ranges(old, size)))
    }

    fn new(size: u64, first_needed: u64, ranges: Vec<Range<u64>>) -> Self {
        let mut nodes: Vec<_> = ranges
            .into_iter()
            .enumerate()
            .map(|(place, range)| (range, place, Frontier::new()))
            .collect();
        nodes.sort_by_key(|(range, ..)| range.start);
        Self { size, seen: 0, first_needed, nodes, current: 0 }
    }

    /// Begins with the edge of the tree over the leaves that come before the one to be proven, instead of with leaf 0. Before any leaf; one that
    /// does not serve is passed over.
    pub fn begin(&mut self, edge: &Frontier) {
        if self.seen > 0 || edge.size() > self.first_needed {
            return;
        }
        for (start, level, hash) in edge.subtrees() {
            let node = self.nodes.iter_mut().find(|(range, ..)| range.contains(&start));
            if let Some((.., frontier)) = node {
                frontier.append_subtree(level, hash);
            }
        }
        self.seen = edge.size();
        let passed = self.nodes.iter().take_while(|(range, ..)| range.end <= self.seen).count();
        self.current = passed;
    }

    /// The number of the next leaf.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The next leaf; those behind the tree's end are of no interest.
    pub fn push(&mut self, leaf: Hash) {
        if self.nodes.get(self.current).is_some_and(|(range, ..)| range.end == self.seen) {
            self.current += 1;
        }
        if let Some((range, _, frontier)) = self.nodes.get_mut(self.current)
            && range.contains(&self.seen)
        {
            frontier.append(leaf);
        }
        self.seen += 1;
    }

    /// The proof; `None` while leaves are missing.
    pub fn finish(mut self) -> Option<Vec<Hash>> {
        if self.seen < self.size {
            return None;
        }
        self.nodes.sort_by_key(|(_, place, _)| *place);
        Some(self.nodes.iter().map(|(.., frontier)| frontier.root()).collect())
    }
}

/// The audit path of leaf `index` in the tree of these leaves.
pub fn inclusion_proof(leaves: &[Hash], index: u64) -> Option<Vec<Hash>> {
    let mut builder = ProofBuilder::inclusion(index, leaves.len() as u64)?;
    leaves.iter().for_each(|leaf| builder.push(*leaf));
    builder.finish()
}

/// The proof that the first `old` of these leaves begin the tree of all.
pub fn consistency_proof(leaves: &[Hash], old: u64) -> Option<Vec<Hash>> {
    let mut builder = ProofBuilder::consistency(old, leaves.len() as u64)?;
    leaves.iter().for_each(|leaf| builder.push(*leaf));
    builder.finish()
}

/// Whether `proof` shows that `leaf` is number `index` of the tree with this size and root: RFC 9162
/// section 2.1.3.2.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let mut hash = *leaf;
    let is_root = climb(index, size - 1, proof.iter(), |sibling, is_left| {
        hash = if is_left { node_hash(sibling, &hash) } else { node_hash(&hash, sibling) };
    });
    is_root && hash == *root
}

/// Calls `join` with each sibling on the way from node `index`, of which `last` is the rightmost of its level, up to
/// the root, and whether it is the left one. Whether the root is reached with the last of them.
fn climb<'p>(
    mut index: u64,
    mut last: u64,
    siblings: impl Iterator<Item = &'p Hash>,
    mut join: impl FnMut(&Hash, bool),
) -> bool {
    for sibling in siblings {
        if last == 0 {
            return false;
        }
        let is_left = index & 1 == 1 || index == last;
        join(sibling, is_left);
        while is_left && index & 1 == 0 && index != 0 {
            index >>= 1;
            last >>= 1;
        }
        index >>= 1;
        last >>= 1;
    }
    last == 0
}

/// Whether `proof` shows that the tree of `old` leaves with root `old_root` begins the one of `size`
/// with `root`: RFC 9162 section 2.1.4.2.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    size: u64,
    root: &Hash,
    proof: &[Hash],
) -> bool {
    if old == 0 || old > size {
        return false;
    }
    if old == size {
        return proof.is_empty() && old_root == root;
    }
    // The old root itself begins the proof, but for a complete old tree, where it is left out.
    let mut nodes = proof.iter();
    let first = if old.is_power_of_two() { Some(old_root) } else { nodes.next() };
    let Some(first) = first else { return false };
    let (mut index, mut last) = (old - 1, size - 1);
    while index & 1 == 1 {
        index >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut hash) = (*first, *first);
    let is_root = climb(index, last, nodes, |node, is_left| {
        if is_left {
            old_hash = node_hash(node, &old_hash);
            hash = node_hash(node, &hash);
        } else {
            hash = node_hash(&hash, node);
        }
    });
    is_root && old_hash == *old_root && hash == *root
}

/// The leaves under each node of PATH(m, D[n]), from the bottom up.
fn inclusion_ranges(index: u64, size: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut tree = 0..size;
    while tree.end - tree.start > 1 {
        let middle = tree.start + split(tree.end - tree.start);
        let (inside, beside) = if index < middle {
            (tree.start..middle, middle..tree.end)
        } else {
            (middle..tree.end, tree.start..middle)
        };
        ranges.push(beside);
        tree = inside;
    }
    ranges.reverse();
    ranges
}

/// The leaves under each node of PROOF(m, D[n]), from the bottom up.
fn consistency_ranges(old: u64, size: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut tree = 0..size;
    // The right edge of the old tree is in `tree`, until `tree` ends with it.
    while tree.end != old {
        let middle = tree.start + split(tree.end - tree.start);
        if old <= middle {
            ranges.push(middle..tree.end);
            tree = tree.start..middle;
        } else {
            ranges.push(tree.start..middle);
            tree = middle..tree.end;
        }
    }
    // A whole old tree is known to who verifies.
    if tree.start != 0 {
        ranges.push(tree);
    }
    ranges.reverse();
    ranges
}

/// The largest power of two below `size`, which is above 1.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}
