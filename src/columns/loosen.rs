//! A copy of a value that the next row which it is written to binds to itself.

use fieldcrypt_envelope::{AnyCiphertext, Expected, Form, Kind};

use crate::error::Error;
use crate::fields;
use crate::pg::values::Varlena;
use crate::pg::{encoding, security};

/// A loose copy of a value, for who may both decrypt and encrypt. `place` is what it is bound to: a place, or for a value
/// of `encrypt_field` a context. It shows nothing.
pub fn loosen(bytes: &[u8], place: &[u8]) -> Result<Varlena, Error> {
    security::refuse_unless_executable(fields::DECRYPT, "decrypt")?;
    security::refuse_unless_executable(fields::ENCRYPT, "encrypt")?;
    let (form, mut plaintext) = match AnyCiphertext::parse(bytes)? {
        AnyCiphertext::Field(value) => {
            let mut plaintext = Varlena::of(value.body())?;
            fields::with_context(place, |context| {
                fields::open(&value, context, place, plaintext.bytes_mut())
            })?;
            (Form::Text, plaintext)
        }
        AnyCiphertext::Bound(value) => {
            let header = value.header();
            let place = encoding::to_string(place)?;
            let expected = match header.kind() {
                Kind::Loose if place.is_empty() => Expected::Any,
                _ => Expected::Place(&place),
            };
            let mut plaintext = Varlena::of(value.body())?;
            fields::open_bound(&value, expected, place.as_bytes(), plaintext.bytes_mut())?;
            (header.form, plaintext)
        }
    };
    // Bytes that are no text would open nowhere any more.
    let loose = match form {
        Form::Text if str::from_utf8(plaintext.bytes()).is_err() => Err(Error::NotUtf8),
        form => fields::seal_loose(form, plaintext.bytes_mut()),
    };
    plaintext.wipe();
    loose
}
