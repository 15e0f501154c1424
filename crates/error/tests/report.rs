//! What is told about errors.

#![allow(clippy::unwrap_used)]

use fieldcrypt_envelope::KeyId;
use fieldcrypt_error::{Error, Report};

#[test]
fn a_code_of_the_extension_is_in_the_hint() {
    let hint = |code, hint| Report::new(code, "no".into(), hint).hint;
    assert_eq!(hint(b"KF099", "Do.").as_deref(), Some("Do. (KF099, see docs/errors.md)"));
    assert_eq!(hint(b"KF099", "").as_deref(), Some("See KF099 in docs/errors.md."));
    assert_eq!(hint(b"22023", "Do.").as_deref(), Some("Do."));
    assert_eq!(hint(b"22023", ""), None);
}

#[test]
fn errors_about_a_value_name_its_key_and_no_more() {
    let key = KeyId::new(4711).unwrap();
    let detail = |error: Error| error.report().detail;
    for (has_context, said) in [
        (Some(true), "The value is of encryption key 4711; a context was given."),
        (Some(false), "The value is of encryption key 4711; no context was given."),
        (None, "The value is of encryption key 4711."),
    ] {
        assert_eq!(detail(Error::NotAuthentic { key, has_context }).as_deref(), Some(said));
    }
    let said = Some("The value is of encryption key 4711.");
    assert_eq!(detail(Error::OtherTenant(key)).as_deref(), said);
    assert_eq!(detail(Error::NotOfItsRow { key, column: "t.c".into() }).as_deref(), said);
    assert_eq!(detail(Error::TenantLocked), None);
}
