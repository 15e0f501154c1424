//! Finds values in a text of any kind and size, and replaces them. Holds one value at a time.

use std::io::{BufRead, Write};
use std::path::Path;

use fieldcrypt_envelope::ciphertext::TEXT_PREFIX;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Copies `input` to `output`; what `open` makes of a value takes its place, unless it is `None`.
pub fn replace(
    mut input: impl BufRead,
    mut output: impl Write,
    name: &Path,
    mut open: impl FnMut(&[u8]) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<(), Failure> {
    let mut scanner = Scanner::default();
    loop {
        let chunk = input.fill_buf().map_err(|error| Failure::file(name, error))?;
        if chunk.is_empty() {
            break;
        }
        let length = chunk.len();
        scanner.scan(chunk, &mut output, &mut open)?;
        input.consume(length);
    }
    scanner.finish(&mut output, &mut open)?;
    output.flush().map_err(Failure::Output)
}

/// The same for a text in memory.
pub fn replace_in(
    text: &[u8],
    mut open: impl FnMut(&[u8]) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut scanner = Scanner::default();
    scanner.scan(text, &mut *out, &mut open)?;
    scanner.finish(&mut *out, &mut open)?;
    Ok(out)
}

/// What may be the start of a value, carried from one piece of the input to the next.
#[derive(Default)]
struct Scanner {
    token: Vec<u8>,
    /// The byte before could be part of a longer word, in which no value starts.
    in_word: bool,
}

impl Scanner {
    fn scan(
        &mut self,
        mut rest: &[u8],
        output: &mut impl Write,
        open: &mut impl FnMut(&[u8]) -> Option<Zeroizing<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let prefix = TEXT_PREFIX.as_bytes();
        while !rest.is_empty() {
            if self.token.len() >= prefix.len() {
                let length = rest.iter().position(|byte| !is_word(*byte)).unwrap_or(rest.len());
                self.token.extend_from_slice(&rest[..length]);
                rest = &rest[length..];
                if !rest.is_empty() {
                    self.end_token(output, open)?;
                }
            } else if prefix[self.token.len()] == rest[0]
                && !(self.token.is_empty() && self.in_word)
            {
                self.token.push(rest[0]);
                rest = &rest[1..];
            } else if self.token.is_empty() {
                // Up to where the next value could start.
                let mut length = 1;
                self.in_word = is_word(rest[0]);
                while length < rest.len() && (self.in_word || rest[length] != prefix[0]) {
                    self.in_word = is_word(rest[length]);
                    length += 1;
                }
                write(output, &rest[..length])?;
                rest = &rest[length..];
            } else {
                // A beginning that was none: a word goes on, or ended with it.
                write(output, &self.token)?;
                self.in_word = self.token.last().copied().is_some_and(is_word);
                self.token.clear();
            }
        }
        Ok(())
    }

    fn end_token(
        &mut self,
        output: &mut impl Write,
        open: &mut impl FnMut(&[u8]) -> Option<Zeroizing<Vec<u8>>>,
    ) -> Result<(), Failure> {
        match open(&self.token) {
            Some(plaintext) => write(output, &plaintext)?,
            None => write(output, &self.token)?,
        }
        self.token.clear();
        self.in_word = true;
        Ok(())
    }

    fn finish(
        &mut self,
        output: &mut impl Write,
        open: &mut impl FnMut(&[u8]) -> Option<Zeroizing<Vec<u8>>>,
    ) -> Result<(), Failure> {
        if self.token.len() >= TEXT_PREFIX.len() {
            return self.end_token(output, open);
        }
        write(output, &self.token)
    }
}

fn write(output: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    output.write_all(bytes).map_err(Failure::Output)
}

/// The characters of base64url, which are also those that a word goes on with.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}
