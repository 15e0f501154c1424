//! What a value is bound to besides its key: the associated data of a ciphertext.

/// The context of a value: none, or some texts, in UTF-8 whatever the database's encoding.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    parts: &'a [&'a str],
}

impl<'a> Context<'a> {
    /// No context: the value opens anywhere under its key.
    pub const NONE: Context<'static> = Context { parts: &[] };

    /// A context of these parts, or `None` if there are more than 65,535 or one has 4 GiB.
    pub fn new(parts: &'a [&'a str]) -> Option<Self> {
        let fits = parts.len() <= u16::MAX as usize
            && parts.iter().all(|part| u32::try_from(part.len()).is_ok());
        fits.then_some(Self { parts })
    }

    /// Whether it is none.
    pub fn is_none(&self) -> bool {
        self.parts.is_empty()
    }

    /// Calls `use_it` with the associated data of a value with this header: the header, then
    /// [`canonical_parts`]. Short contexts are laid out on the stack.
    pub(crate) fn associated_data<R>(
        &self,
        header: &[u8; 10],
        use_it: impl FnOnce(&[u8]) -> R,
    ) -> R {
        const INLINE: usize = 256;
        let length = 12 + self.parts.iter().map(|part| 4 + part.len()).sum::<usize>();
        let mut inline = [0u8; INLINE];
        let mut heap = Vec::new();
        let out = if length <= INLINE {
            &mut inline[..length]
        } else {
            heap.resize(length, 0);
            heap.as_mut_slice()
        };
        out[..10].copy_from_slice(header);
        write_canonical(&mut out[10..], self.parts.iter().map(|part| part.as_bytes()));
        use_it(out)
    }
}

/// The canonical form of a list: u16 count, then each part as u32 length and bytes, all big-endian.
/// No two lists share a form.
pub(crate) fn canonical_parts(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![0; 2 + parts.iter().map(|part| 4 + part.len()).sum::<usize>()];
    write_canonical(&mut out, parts.iter().copied());
    out
}

fn write_canonical<'p>(out: &mut [u8], parts: impl ExactSizeIterator<Item = &'p [u8]>) {
    out[..2].copy_from_slice(&(parts.len() as u16).to_be_bytes());
    let mut at = 2;
    for part in parts {
        out[at..at + 4].copy_from_slice(&(part.len() as u32).to_be_bytes());
        out[at + 4..at + 4 + part.len()].copy_from_slice(part);
        at += 4 + part.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(parts: &[&str]) -> Vec<u8> {
        Context::new(parts).unwrap().associated_data(&[7; 10], <[u8]>::to_vec)
    }

    #[test]
    fn no_two_contexts_share_a_form() {
        let forms = [
            encode(&[]),
            encode(&[""]),
            encode(&["", ""]),
            encode(&["ab"]),
            encode(&["a", "b"]),
            encode(&["", "ab"]),
        ];
        for (i, a) in forms.iter().enumerate() {
            assert!(a.starts_with(&[7; 10]));
            assert!(forms.iter().skip(i + 1).all(|b| a != b));
        }
    }

    #[test]
    fn the_form_does_not_depend_on_where_it_is_laid_out() {
        let long = "x".repeat(1000);
        let form = encode(&[&long]);
        assert_eq!(form.len(), 12 + 4 + 1000);
        assert_eq!(&form[10..], canonical_parts(&[long.as_bytes()]));
    }

    #[test]
    fn too_many_parts_are_refused() {
        assert!(Context::new(&vec![""; 65_535]).is_some());
        assert!(Context::new(&vec![""; 65_536]).is_none());
    }
}
