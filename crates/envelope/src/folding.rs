//! Folding: what of a text is compared. Frozen tables of one Unicode version; no locale, no library's idea of the day.

mod unicode_17;

use zeroize::Zeroizing;

use unicode_17::{LOWER, ZEROS};

/// A text in lower case: each character by itself, as Unicode's `UnicodeData.txt` maps it, whatever the language. But
/// U+0130 (İ) becomes `i` U+0307, and U+03C2 (final ς) becomes U+03C3, since lower case would choose between these two
/// by what is around them. Nothing is composed, decomposed or trimmed.
pub fn lower(text: &str) -> Zeroizing<Vec<u8>> {
    // Two bytes may become three: a buffer that grew would leave copies of the plaintext behind.
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() + text.len() / 2));
    for character in text.chars() {
        match character {
            '\u{130}' => out.extend_from_slice("i\u{307}".as_bytes()),
            '\u{3C2}' => push(&mut out, '\u{3C3}'),
            character if character.is_ascii() => push(&mut out, character.to_ascii_lowercase()),
            character => push(&mut out, mapped(character)),
        }
    }
    out
}

/// The decimal digits (general category Nd) of a text, of whatever script, as `0` to `9`; everything else is left out. A
/// text without digits is itself, so that `unknown` is not `n/a`.
pub fn digits(text: &str) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    out.extend(text.chars().filter_map(digit));
    if out.is_empty() {
        out.extend_from_slice(text.as_bytes());
    }
    out
}

fn mapped(character: char) -> char {
    match LOWER.binary_search_by_key(&character, |(upper, _)| *upper) {
        Ok(at) => LOWER[at].1,
        Err(_) => character,
    }
}

fn digit(character: char) -> Option<u8> {
    let before = ZEROS.partition_point(|zero| *zero <= character);
    let zero = ZEROS.get(before.checked_sub(1)?)?;
    let value = u8::try_from(u32::from(character) - u32::from(*zero)).ok()?;
    (value < 10).then(|| b'0' + value)
}

fn push(out: &mut Vec<u8>, character: char) {
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests;
