//! A text that grows only if memory lets it.

/// There was not enough memory. What was being masked must not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

/// Bytes being written.
#[derive(Debug, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// An empty one.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), OutOfMemory> {
        self.0.try_reserve(bytes.len()).map_err(|_| OutOfMemory)?;
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How much was written.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes back what was written after the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    pub(crate) fn last(&self) -> Option<u8> {
        self.0.last().copied()
    }
}
