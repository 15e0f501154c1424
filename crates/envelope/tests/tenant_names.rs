//! Names of new tenants: what only looks like another name is refused.

use fieldcrypt_envelope::tenant_name::{self, TenantNameProblem, check, check_ascii};

#[test]
fn names_of_people_and_companies_are_accepted() {
    for name in [
        "default",
        "acme",
        "Acme GmbH & Co. KG",
        "4711",
        "müller",
        "Ünal",
        "東京",
        "שלום",
        "a",
        "é",
        "e\u{301}",
        "0b9f6f2e-7f0c-4a53-9d43-1f1c6f3d7d1e",
        "x'; DROP TABLE keys; --",
        "a  b",
        "audit",
        "audit log 2",
        "Audit log",
        "می\u{200C}خواهم",
        "👩\u{200D}👩\u{200D}👧",
        "❤\u{FE0F}",
        "a\u{00A0}b",
        "\"quoted\"",
        "..",
        "\\",
    ] {
        assert_eq!(check(name), Ok(()), "{name:?}");
    }
}

#[test]
fn a_blank_or_an_unseen_character_at_either_end_is_refused() {
    for unseen in [
        ' ',
        '\u{00A0}',
        '\u{1680}',
        '\u{2000}',
        '\u{2003}',
        '\u{200A}',
        '\u{202F}',
        '\u{205F}',
        '\u{3000}',
        '\u{200B}',
        '\u{200C}',
        '\u{200D}',
        '\u{200E}',
        '\u{200F}',
        '\u{00AD}',
        '\u{034F}',
        '\u{061C}',
        '\u{180E}',
        '\u{2060}',
        '\u{2063}',
        '\u{206A}',
        '\u{2800}',
        '\u{3164}',
        '\u{115F}',
        '\u{FFA0}',
        '\u{FEFF}',
        '\u{FFF9}',
        '\u{E0001}',
        '\u{E0020}',
        '\u{E007F}',
    ] {
        for name in [format!("{unseen}acme"), format!("acme{unseen}"), unseen.to_string()] {
            assert_eq!(check(&name), Err(TenantNameProblem::Edge), "{name:?}");
        }
    }
}

#[test]
fn a_control_character_anywhere_is_refused() {
    let controls = (0..=0x1F)
        .chain(0x7F..=0x9F)
        .chain([0x2028, 0x2029])
        .chain(0x202A..=0x202E)
        .chain(0x2066..=0x2069);
    for control in controls.filter_map(char::from_u32) {
        for name in [format!("{control}acme"), format!("ac{control}me"), format!("acme{control}")] {
            assert_eq!(check(&name), Err(TenantNameProblem::Control), "{name:?}");
        }
    }
}

#[test]
fn the_name_of_the_logs_own_key_and_no_name_are_refused() {
    assert_eq!(check(tenant_name::AUDIT_LOG), Err(TenantNameProblem::Reserved));
    assert_eq!(check(tenant_name::LOOSE_VALUES), Err(TenantNameProblem::Reserved));
    assert_eq!(check(""), Err(TenantNameProblem::Empty));
}

#[test]
fn what_is_ascii_is_refused_in_every_encoding() {
    assert_eq!(check_ascii(b"m\xFCller"), Ok(()));
    assert_eq!(check_ascii(b"\xC2\xAD"), Ok(()), "a letter in EUC_JP");
    assert_eq!(check_ascii(b" m\xFCller"), Err(TenantNameProblem::Edge));
    assert_eq!(check_ascii(b"m\xFCller "), Err(TenantNameProblem::Edge));
    assert_eq!(check_ascii(b"m\xFC\nller"), Err(TenantNameProblem::Control));
    assert_eq!(check_ascii(b"audit log"), Err(TenantNameProblem::Reserved));
}
