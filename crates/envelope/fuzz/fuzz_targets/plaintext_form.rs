//! Bytes that claim to be a plaintext of a form, which the first of them chooses: read, written again, folded.

#![no_main]

use fieldcrypt_envelope::forms::{Form, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, plaintext)) = data.split_first() else { return };
    let form = Form::ALL[usize::from(*choice) % Form::ALL.len()];
    let Ok(value) = form.decode(plaintext) else {
        assert!(form.fold(plaintext).is_err());
        return;
    };
    assert!(form.encode(&value).is_ok_and(|again| again.as_bytes() == plaintext));
    let others = Form::ALL.iter().filter(|other| other.encode(&value).is_ok()).count();
    assert_eq!(others, if matches!(value, Value::Text(_)) { 3 } else { 1 });

    let Ok(folded) = form.fold(plaintext) else {
        assert!(!form.is_searchable());
        return;
    };
    // What is folded is of the form, and folds to itself.
    let folded = folded.as_bytes();
    assert!(form.fold(folded).is_ok_and(|again| again.as_bytes() == folded));
    match (form, value) {
        (Form::Lower, Value::Text(text)) => {
            let lower = text.to_lowercase();
            assert!(form.fold(lower.as_bytes()).is_ok_and(|again| again.as_bytes() == folded));
            assert!(folded.len() <= plaintext.len() + plaintext.len() / 2);
        }
        (Form::Digits, _) => {
            assert!(folded.iter().all(u8::is_ascii_digit) || folded == plaintext);
        }
        (Form::Numeric, _) => assert!(plaintext.starts_with(folded)),
        _ => assert_eq!(folded, plaintext),
    }
});
