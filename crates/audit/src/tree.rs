//! The Merkle tree of RFC 6962 section 2.1, in the forms that never hold all of it.

use std::fmt;

use fieldcrypt_envelope::sha256;

/// A node of the tree.
pub type Hash = [u8; 32];

/// More leaves than Postgres's `bigint` can number.
const MAX_SIZE: u64 = i64::MAX as u64;
const FRONTIER_VERSION: u8 = 0x01;
const RANGE_VERSION: u8 = 0x01;

/// The parent of two nodes: `SHA-256(0x01 ‖ left ‖ right)`, RFC 6962 section 2.1.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[0x01], left, right])
}

/// The root of no leaves at all: `SHA-256("")`, RFC 6962 section 2.1.
pub fn empty_root() -> Hash {
    sha256(&[])
}

/// The right edge of a tree: the roots of its maximal complete subtrees, largest first. All that is
/// needed to append leaves and to state the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// Of a tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf (see [`crate::leaf_hash`]).
    pub fn append(&mut self, leaf: Hash) {
        self.append_subtree(0, leaf);
    }

    /// Appends the leaves of a range that begins where this tree ends.
    pub fn append_range(&mut self, range: &CompactRange) -> Result<(), NotAdjacent> {
        if range.start != self.size || range.end > MAX_SIZE {
            return Err(NotAdjacent);
        }
        for (level, hash) in levels(range.start, range.end).zip(&range.hashes) {
            self.append_subtree(level, *hash);
        }
        Ok(())
    }

    /// Appends a complete subtree of `1 << level` leaves; the size is a multiple of that.
    pub(crate) fn append_subtree(&mut self, level: u32, mut hash: Hash) {
        let mut index = self.size >> level;
        while index & 1 == 1 {
            if let Some(left) = self.subtrees.pop() {
                hash = node_hash(&left, &hash);
            }
            index >>= 1;
        }
        self.subtrees.push(hash);
        self.size += 1 << level;
    }

    /// The maximal complete subtrees: first leaf, level and root of each, from left to right.
    pub(crate) fn subtrees(&self) -> impl Iterator<Item = (u64, u32, Hash)> {
        let mut start = 0;
        levels(0, self.size).zip(&self.subtrees).map(move |(level, hash)| {
            let first = start;
            start += 1 << level;
            (first, level, *hash)
        })
    }

    /// The Merkle tree hash of all leaves, RFC 6962 section 2.1.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        match subtrees.next() {
            None => empty_root(),
            Some(smallest) => subtrees.fold(*smallest, |right, left| node_hash(left, &right)),
        }
    }

    /// `0x01 ‖ size (8 bytes, big-endian) ‖ the subtrees' roots, largest first`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + 32 * self.subtrees.len());
        out.push(FRONTIER_VERSION);
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(self.subtrees.as_flattened());
        out
    }

    /// Reads what [`Self::to_bytes`] writes, and nothing else. That the hashes are those of a tree is
    /// known only when [`Self::root`] is one that was signed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAFrontier> {
        let (&[FRONTIER_VERSION], rest) = bytes.split_first_chunk().ok_or(NotAFrontier)? else {
            return Err(NotAFrontier);
        };
        let (size, rest) = rest.split_first_chunk::<8>().ok_or(NotAFrontier)?;
        let size = u64::from_be_bytes(*size);
        let (subtrees, trailing) = rest.as_chunks::<32>();
        let is_complete = trailing.is_empty() && subtrees.len() == size.count_ones() as usize;
        if size > MAX_SIZE || !is_complete {
            return Err(NotAFrontier);
        }
        Ok(Self { size, subtrees: subtrees.to_vec() })
    }
}

/// The leaves `start..end` of a tree as the fewest complete subtrees that cover them: what is sent
/// to who keeps the [`Frontier`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactRange {
    start: u64,
    end: u64,
    hashes: Vec<Hash>,
}

impl CompactRange {
    /// No leaves yet; the first one pushed is number `start`.
    pub fn new(start: u64) -> Self {
        Self { start, end: start, hashes: Vec::new() }
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let (mut hash, mut index, mut level) = (leaf, self.end, 0);
        // A right child whose left sibling lies in the range has that sibling before it.
        while index & 1 == 1 && (index - 1) << level >= self.start {
            if let Some(left) = self.hashes.pop() {
                hash = node_hash(&left, &hash);
            }
            index >>= 1;
            level += 1;
        }
        self.hashes.push(hash);
        self.end += 1;
    }

    /// The number of the first leaf.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The number behind the last leaf.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether no leaf was pushed.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The subtrees' roots, from left to right.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// `0x01 ‖ start ‖ end (8 bytes each, big-endian) ‖ the subtrees' roots from left to right`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17 + 32 * self.hashes.len());
        out.push(RANGE_VERSION);
        out.extend_from_slice(&self.start.to_be_bytes());
        out.extend_from_slice(&self.end.to_be_bytes());
        out.extend_from_slice(self.hashes.as_flattened());
        out
    }

    /// Reads what [`Self::to_bytes`] writes, and nothing else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAFrontier> {
        let (&[RANGE_VERSION], rest) = bytes.split_first_chunk().ok_or(NotAFrontier)? else {
            return Err(NotAFrontier);
        };
        let (start, rest) = rest.split_first_chunk::<8>().ok_or(NotAFrontier)?;
        let (end, rest) = rest.split_first_chunk::<8>().ok_or(NotAFrontier)?;
        let (start, end) = (u64::from_be_bytes(*start), u64::from_be_bytes(*end));
        if start > end || end > MAX_SIZE {
            return Err(NotAFrontier);
        }
        let (hashes, trailing) = rest.as_chunks::<32>();
        if !trailing.is_empty() || hashes.len() != levels(start, end).count() {
            return Err(NotAFrontier);
        }
        Ok(Self { start, end, hashes: hashes.to_vec() })
    }
}

/// The levels of the fewest complete subtrees that cover the leaves `start..end`, from left to right.
fn levels(start: u64, end: u64) -> impl Iterator<Item = u32> {
    let mut at = start;
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        // Aligned, and not beyond the end.
        let level = at.trailing_zeros().min(left.ilog2());
        at += 1 << level;
        Some(level)
    })
}

/// A range of leaves that does not begin where the tree ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAdjacent;

impl fmt::Display for NotAdjacent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the leaves do not follow those of the tree")
    }
}

/// Bytes that are no frontier, or no range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAFrontier;

impl fmt::Display for NotAFrontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no edge of a Merkle tree")
    }
}
