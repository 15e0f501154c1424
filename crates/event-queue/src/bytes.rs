//! Bytes that processes share: rings of records, and short texts.

use std::fmt;

use crate::sync::{AtomicU8, AtomicU32, Ordering};

/// Before each record: its length, big-endian.
pub const RECORD_HEADER: usize = 4;

/// A ring of bytes. Positions count bytes since it began, never go back, and are taken modulo its size.
#[derive(Clone, Copy)]
pub struct Ring<'m>(pub &'m [AtomicU8]);

impl<'m> Ring<'m> {
    /// Its bytes.
    pub fn len(self) -> u64 {
        self.0.len() as u64
    }

    /// Bytes that a record takes.
    pub fn needed(record: &[u8]) -> u64 {
        (RECORD_HEADER + record.len()) as u64
    }

    /// Writes a record, which must not be longer than the ring.
    pub fn put(self, position: u64, record: &[u8]) {
        let header = (record.len() as u32).to_be_bytes();
        for (byte, to) in header.iter().chain(record).zip(self.from(position)) {
            to.store(*byte, Ordering::Relaxed);
        }
    }

    /// The record at a position and the position behind it; `None` if what is there does not end at `end`
    /// or before.
    pub fn record(self, position: u64, end: u64) -> Option<(Vec<u8>, u64)> {
        let longest =
            end.checked_sub(position)?.min(self.len()).checked_sub(RECORD_HEADER as u64)?;
        let mut bytes = self.from(position).map(|byte| byte.load(Ordering::Relaxed));
        let mut header = [0; RECORD_HEADER];
        header.iter_mut().zip(&mut bytes).for_each(|(to, byte)| *to = byte);
        let length = u32::from_be_bytes(header);
        if u64::from(length) > longest {
            return None;
        }
        let record = bytes.take(length as usize).collect();
        Some((record, position + RECORD_HEADER as u64 + u64::from(length)))
    }

    /// The bytes from a position on, once around.
    fn from(self, position: u64) -> impl Iterator<Item = &'m AtomicU8> {
        let start = position.checked_rem(self.len()).unwrap_or(0);
        let (before, after) = self.0.split_at(start as usize);
        after.iter().chain(before)
    }
}

/// A text of at most `N` bytes. Only under a lock: its length and its bytes belong together.
pub struct Text<const N: usize> {
    length: AtomicU32,
    bytes: [AtomicU8; N],
}

/// The text is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl<const N: usize> Text<N> {
    /// An empty one.
    pub fn new() -> Self {
        Self { length: AtomicU32::new(0), bytes: std::array::from_fn(|_| AtomicU8::new(0)) }
    }

    /// Sets it. A text that is too long changes nothing.
    pub fn set(&self, text: &[u8]) -> Result<(), TooLong> {
        if text.len() > N {
            return Err(TooLong);
        }
        for (to, byte) in self.bytes.iter().zip(text) {
            to.store(*byte, Ordering::Relaxed);
        }
        self.length.store(text.len() as u32, Ordering::Relaxed);
        Ok(())
    }

    /// Empties it.
    pub fn clear(&self) {
        self.length.store(0, Ordering::Relaxed);
    }

    /// What it is.
    pub fn read(&self) -> Vec<u8> {
        let length = self.length.load(Ordering::Relaxed) as usize;
        self.bytes.iter().take(length).map(|byte| byte.load(Ordering::Relaxed)).collect()
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(out)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{AtomicU8, Ring, Text, TooLong};
    use proptest::prelude::*;

    fn ring(bytes: usize, of: u8) -> Vec<AtomicU8> {
        (0..bytes).map(|_| AtomicU8::new(of)).collect()
    }

    proptest! {
        #[test]
        fn a_record_comes_back_from_wherever_it_lies(
            position in 0..u64::MAX - 400,
            record in prop::collection::vec(any::<u8>(), 0..200),
            spare in 0usize..100,
            dirt: u8,
        ) {
            let bytes = ring(record.len() + 4 + spare, dirt);
            let ring = Ring(&bytes);
            ring.put(position, &record);
            let end = position + Ring::needed(&record);
            prop_assert_eq!(ring.record(position, end), Some((record.clone(), end)));
            prop_assert_eq!(ring.record(position, end + 1), Some((record, end)));
            // Half of it is none.
            prop_assert_eq!(ring.record(position, end - 1), None);
            // Nothing else was written to.
            let touched = (position..end).map(|at| (at % ring.len()) as usize);
            let rest: Vec<usize> = (0..bytes.len()).collect();
            let touched: Vec<usize> = touched.collect();
            for at in rest.into_iter().filter(|at| !touched.contains(at)) {
                prop_assert_eq!(bytes[at].load(super::Ordering::Relaxed), dirt);
            }
        }

        #[test]
        fn records_lie_one_behind_the_other(
            position in 0..u64::MAX - 400,
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..9),
        ) {
            let bytes = ring(9 * 24, 0xff);
            let ring = Ring(&bytes);
            let mut end = position;
            for record in &records {
                ring.put(end, record);
                end += Ring::needed(record);
            }
            let (mut at, mut read) = (position, Vec::new());
            while let Some((record, next)) = ring.record(at, end) {
                read.push(record);
                at = next;
            }
            prop_assert_eq!(at, end);
            prop_assert_eq!(read, records);
        }

        #[test]
        fn damage_is_no_record_or_a_wrong_one(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            position: u64,
            end: u64,
        ) {
            let bytes: Vec<AtomicU8> = bytes.into_iter().map(AtomicU8::new).collect();
            if let Some((record, next)) = Ring(&bytes).record(position, end) {
                prop_assert!(record.len() + 4 <= bytes.len() && next <= end);
                prop_assert_eq!(next - position, Ring::needed(&record));
            }
        }

        #[test]
        fn a_text_is_what_it_was_set_to_last(texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..5)) {
            let text = Text::<4>::new();
            let mut last = Vec::new();
            for one in texts {
                match text.set(&one) {
                    Ok(()) => last = one,
                    Err(TooLong) => prop_assert!(one.len() > 4),
                }
                prop_assert_eq!(text.read(), last.clone());
            }
            text.clear();
            prop_assert!(text.read().is_empty());
        }
    }
}
