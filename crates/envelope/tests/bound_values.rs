//! Values of suites 0x02 and 0x03: nothing opens but what was sealed, where it belongs, under a key that is for it.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::bound::{OpenError, SealError, header_length, overhead, seal_in_place};
use fieldcrypt_envelope::{
    AnyCiphertext, Binding, BoundCiphertext, Ciphertext, Context, DataKey, Domain, Expected, Form,
    Header, Kind, Malformed, Place, Purpose, SearchTag, Session, Stamp, WrongKey, from_any_text,
};
use support::{data_key_for, key_id, message_key, nonce, seal, seal_bound};

const PLAINTEXT: &[u8] = b"078-05-1120, and some more than one block of AES";
const CONTEXT: &str = "public.patients.ssn/17";
const STAMP: Stamp = Stamp { database: 5, process: 4711, sealed_at: 1_000 };
const SESSION: Session = Session { database: 5, process: 4711, started_at: 1_000 };
const KINDS: [Kind; 3] = [Kind::Loose, Kind::Bound, Kind::Searchable];
const PURPOSES: [&str; 5] = ["field", "loose", "search", "audit", "of a later version"];

fn key_for(kind: Kind) -> DataKey {
    data_key_for(kind.purpose().name(), [0x0D; 32])
}

fn place() -> Place {
    Place::new(*b"salt", CONTEXT)
}

fn tag() -> SearchTag {
    let domain = Domain::named("public.patients.ssn", Form::Digits).unwrap();
    data_key_for("search", [0x0E; 32])
        .tag_key(key_id(9), domain)
        .unwrap()
        .tag_of(PLAINTEXT)
        .unwrap()
}

fn header(kind: Kind) -> Header {
    let binding = match kind {
        Kind::Loose => Binding::Loose(STAMP),
        Kind::Bound => Binding::Bound(place()),
        Kind::Searchable => Binding::Searchable(place(), tag()),
    };
    Header {
        key_id: key_id(0x0102_0304_0506_0708),
        nonce: nonce(*b"ABCDEFGHIJKLMNOP"),
        form: Form::Digits,
        binding,
    }
}

fn value(kind: Kind) -> Vec<u8> {
    seal_bound(&key_for(kind), &header(kind), PLAINTEXT)
}

fn home(kind: Kind) -> Expected<'static> {
    match kind {
        Kind::Loose => Expected::Session(&SESSION),
        Kind::Bound | Kind::Searchable => Expected::Place(CONTEXT),
    }
}

#[derive(Debug, PartialEq)]
enum Refusal {
    Malformed(Malformed),
    Open(OpenError),
}

/// Opens a value under the key that it names, as if every id named the same data key.
fn open(key: &DataKey, bytes: &[u8], expected: Expected<'_>) -> Result<Vec<u8>, Refusal> {
    let value = BoundCiphertext::parse(bytes).map_err(Refusal::Malformed)?;
    let key = message_key(key, value.header()).map_err(|it| Refusal::Open(it.into()))?;
    let mut out = value.body().to_vec();
    value.open_in_place(&key, expected, &mut out).map_err(Refusal::Open)?;
    Ok(out)
}

#[test]
fn an_untouched_value_opens_at_home_and_anywhere() {
    for kind in KINDS {
        let value = value(kind);
        assert_eq!(open(&key_for(kind), &value, home(kind)).as_deref(), Ok(PLAINTEXT));
        assert_eq!(open(&key_for(kind), &value, Expected::Any).as_deref(), Ok(PLAINTEXT));
        assert_eq!(value.len(), PLAINTEXT.len() + overhead(kind));
        assert_eq!(value[1], kind.suite());
        assert_eq!(value[26], if kind == Kind::Loose { 0x83 } else { 0x03 });
    }
    assert_eq!(KINDS.map(overhead), [59, 59, 91]);
    assert_eq!(KINDS.map(|kind| kind.suite()), [2, 2, 3]);
}

#[test]
fn no_flipped_bit_opens_and_each_is_named_for_what_it_changes() {
    for kind in KINDS {
        let value = value(kind);
        for at in 0..value.len() {
            for bit in 0..8 {
                let mut flipped = value.clone();
                flipped[at] ^= 1 << bit;
                let place = format!("{kind:?}, byte {at}, bit {bit}");
                let at_home = open(&key_for(kind), &flipped, home(kind)).unwrap_err();
                let anywhere = open(&key_for(kind), &flipped, Expected::Any).unwrap_err();
                match (at, kind) {
                    (0, _) => assert_eq!(anywhere, Refusal::Malformed(Malformed::Format)),
                    // The two suites are a bit apart: what is after the place is read otherwise then.
                    (1, _) if bit > 0 => {
                        let suite = Refusal::Malformed(Malformed::Suite(flipped[1]));
                        assert_eq!(anywhere, suite, "{place}");
                    }
                    (26, _) if bit == 7 => assert!(
                        anywhere
                            == match kind {
                                Kind::Searchable => Refusal::Malformed(Malformed::LooseTag),
                                _ => Refusal::Open(OpenError::WrongKey),
                            }
                    ),
                    (26, _) if bit >= 4 => {
                        let number = flipped[26] & 0x7F;
                        let form = Refusal::Malformed(Malformed::Form(number));
                        assert_eq!(anywhere, form, "{place}");
                    }
                    (27..43, Kind::Bound | Kind::Searchable) | (27..35, Kind::Loose) => {
                        assert_eq!(at_home, Refusal::Open(OpenError::Misplaced), "{place}");
                        assert_eq!(anywhere, Refusal::Open(OpenError::NotAuthentic), "{place}");
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn no_replaced_byte_of_a_header_opens() {
    for kind in KINDS {
        let value = value(kind);
        for at in 0..header_length(kind) {
            for byte in (0..=u8::MAX).filter(|byte| *byte != value[at]).step_by(7) {
                let mut replaced = value.clone();
                replaced[at] = byte;
                let opened = open(&key_for(kind), &replaced, Expected::Any);
                assert!(opened.is_err(), "{kind:?}, byte {at} as {byte}");
            }
        }
    }
}

#[test]
fn no_truncation_or_extension_opens() {
    for kind in KINDS {
        let value = value(kind);
        for length in 0..value.len() {
            let refusal = open(&key_for(kind), &value[..length], Expected::Any).unwrap_err();
            let too_short = refusal == Refusal::Malformed(Malformed::TooShort);
            assert_eq!(too_short, length < overhead(kind), "{kind:?}, {length} bytes");
            assert!(open(&key_for(kind), &value[value.len() - length..], Expected::Any).is_err());
        }
        for extra in 1..=40 {
            let extended = [value.as_slice(), &vec![0; extra]].concat();
            assert!(open(&key_for(kind), &extended, Expected::Any).is_err());
        }
    }
}

#[test]
fn a_header_is_read_from_the_first_bytes_alone() {
    for kind in KINDS {
        let value = value(kind);
        for length in 0..value.len() {
            let read = Header::parse(&value[..length]);
            let is_there = length >= header_length(kind);
            let expected = if is_there { Ok(header(kind)) } else { Err(Malformed::TooShort) };
            assert_eq!(read, expected, "{kind:?}, {length} bytes");
        }
        assert!(header_length(kind) <= Header::MAX_LENGTH);
        assert!(header(kind).is_expected(home(kind)));
    }
    assert_eq!(Header::MAX_LENGTH, 75);
}

#[test]
fn what_is_no_header_is_named_for_what_is_wrong_with_it() {
    let changed = |kind: Kind, changes: &[(usize, u8)]| {
        let mut value = value(kind);
        for (at, byte) in changes {
            value[*at] = *byte;
        }
        BoundCiphertext::parse(&value).err()
    };
    for suite in [0x00, 0x01, 0x04, 0x05, 0x82, 0xFF] {
        assert_eq!(changed(Kind::Bound, &[(1, suite)]), Some(Malformed::Suite(suite)));
    }
    for form in (11..=0x7F).chain([0]) {
        for kind in KINDS {
            for loose in [0, 0x80] {
                let refusal = changed(kind, &[(26, form | loose)]);
                assert_eq!(refusal, Some(Malformed::Form(form)), "{kind:?}");
            }
        }
    }
    for form in Form::ALL {
        let number = form.number();
        let loose = changed(Kind::Searchable, &[(26, number | 0x80)]);
        assert_eq!(loose, Some(Malformed::LooseTag));
        let expected = (!form.is_searchable()).then_some(Malformed::TagOfForm(number));
        assert_eq!(changed(Kind::Searchable, &[(26, number)]), expected);
        assert_eq!(changed(Kind::Bound, &[(26, number)]), None);
        assert_eq!(changed(Kind::Loose, &[(26, number | 0x80)]), None);
    }
    let zeros = |start: usize| (start..start + 8).map(|at| (at, 0)).collect::<Vec<_>>();
    for kind in KINDS {
        assert_eq!(changed(kind, &zeros(2)), Some(Malformed::KeyId));
        assert_eq!(changed(kind, &[(2, 0x80)]), Some(Malformed::KeyId));
    }
    assert_eq!(changed(Kind::Searchable, &zeros(43)), Some(Malformed::KeyId));
    assert_eq!(changed(Kind::Searchable, &[(43, 0xFF)]), Some(Malformed::KeyId));
    assert_eq!(BoundCiphertext::parse(b"").err(), Some(Malformed::TooShort));
    assert_eq!(BoundCiphertext::parse(b"078-05-1120").err(), Some(Malformed::Format));
}

#[test]
fn no_suite_is_taken_for_another_one() {
    let field = seal(
        &data_key_for("field", [0x0D; 32]),
        key_id(7),
        &nonce([1; 16]),
        &Context::NONE,
        PLAINTEXT,
    );
    assert_eq!(BoundCiphertext::parse(&field).err(), Some(Malformed::Suite(0x01)));
    assert!(matches!(AnyCiphertext::parse(&field), Ok(AnyCiphertext::Field(_))));
    for kind in KINDS {
        let value = value(kind);
        // What a library says that knows suite 0x01 alone.
        assert_eq!(Ciphertext::parse(&value).err(), Some(Malformed::Suite(kind.suite())));
        assert!(matches!(AnyCiphertext::parse(&value), Ok(AnyCiphertext::Bound(_))));
        let text = fieldcrypt_envelope::ciphertext::to_text(&value);
        assert_eq!(from_any_text(text.as_bytes()).as_ref(), Ok(&value));
        let older = fieldcrypt_envelope::ciphertext::from_text(text.as_bytes());
        assert_eq!(older, Err(Malformed::Suite(kind.suite())));
        for suite in [1, 2, 3].into_iter().filter(|suite| *suite != kind.suite()) {
            let mut other = value.clone();
            other[1] = suite;
            if suite == 1 {
                let parsed = Ciphertext::parse(&other).ok().unwrap();
                let key = key_for(kind).suite_key(parsed.key_id()).message_key(parsed.nonce());
                assert!(parsed.open(&key, &Context::NONE).is_err());
            } else {
                assert!(open(&key_for(kind), &other, Expected::Any).is_err(), "{kind:?} {suite}");
            }
        }
    }
}

#[test]
fn each_kind_of_value_is_under_a_key_of_one_purpose_alone() {
    for kind in KINDS {
        let value = value(kind);
        for purpose in PURPOSES {
            let key = data_key_for(purpose, [0x0D; 32]);
            let is_its = purpose == kind.purpose().name();
            assert_eq!(key.bound_key(key_id(1), kind).is_ok(), is_its, "{kind:?}, {purpose}");
            let expected = if is_its { Ok(PLAINTEXT.to_vec()) } else { Err(OpenError::WrongKey) };
            let opened = open(&key, &value, Expected::Any);
            assert_eq!(opened, expected.map_err(Refusal::Open), "{kind:?}, {purpose}");
        }
    }
    // A key that was not stored yet has no purpose that anything vouches for.
    let fresh = DataKey::generate().unwrap();
    assert!(KINDS.iter().all(|kind| fresh.bound_key(key_id(1), *kind).err() == Some(WrongKey)));
    let domain = Domain::named("d", Form::Text).unwrap();
    assert!(fresh.tag_key(key_id(1), domain).is_err());
    for purpose in PURPOSES {
        let key = data_key_for(purpose, [0x0D; 32]);
        assert_eq!(key.tag_key(key_id(1), domain).is_ok(), purpose == "search", "{purpose}");
    }
    assert_eq!(KINDS.map(|it| it.purpose()), [Purpose::Loose, Purpose::Field, Purpose::Field]);
}

#[test]
fn a_key_of_another_kind_id_or_nonce_neither_opens_nor_seals() {
    for kind in KINDS {
        let bytes = value(kind);
        let parsed = BoundCiphertext::parse(&bytes).ok().unwrap();
        let others = [
            Header { key_id: key_id(9), ..header(kind) },
            Header { nonce: nonce([7; 16]), ..header(kind) },
        ];
        let kinds = KINDS.into_iter().filter(|other| *other != kind).map(header);
        for other in others.into_iter().chain(kinds) {
            let key = message_key(&key_for(other.kind()), &other).unwrap();
            let mut buffer = parsed.body().to_vec();
            let opened = parsed.open_in_place(&key, Expected::Any, &mut buffer);
            assert_eq!(opened, Err(OpenError::WrongKey));
            assert_eq!(buffer, parsed.body());
            let mut buffer = vec![0x77; 200];
            let sealed = seal_in_place(&key, &header(kind), &mut buffer);
            assert_eq!(sealed, Err(SealError::WrongKey));
            assert_eq!(buffer, [0x77; 200]);
        }
        let bound_key = key_for(kind).bound_key(key_id(1), kind).unwrap();
        assert!(bound_key.message_key(kind, key_id(2), &nonce([1; 16])).is_err());
        let other = if kind == Kind::Loose { Kind::Bound } else { Kind::Loose };
        assert!(bound_key.message_key(other, key_id(1), &nonce([1; 16])).is_err());
    }
}

#[test]
fn a_value_is_not_opened_where_it_does_not_belong() {
    let elsewhere = [
        "",
        "public.patients.ssn/18",
        "public.patients.ssn",
        "public.patients.ssn/17/",
        "PUBLIC.patients.ssn/17",
        "public.patients.ssn/17\0",
        "saltpublic.patients.ssn/17",
    ];
    for kind in [Kind::Bound, Kind::Searchable] {
        for context in elsewhere {
            let opened = open(&key_for(kind), &value(kind), Expected::Place(context));
            assert_eq!(opened, Err(Refusal::Open(OpenError::Misplaced)), "{context}");
        }
        let opened = open(&key_for(kind), &value(kind), Expected::Session(&SESSION));
        assert_eq!(opened, Err(Refusal::Open(OpenError::Misplaced)));
    }
    let opened = open(&key_for(Kind::Loose), &value(Kind::Loose), Expected::Place(CONTEXT));
    assert_eq!(opened, Err(Refusal::Open(OpenError::Misplaced)));
}

#[test]
fn a_loose_value_is_of_the_session_that_sealed_it() {
    for (session, is_own) in [
        (SESSION, true),
        (Session { started_at: 999, ..SESSION }, true),
        (Session { started_at: i64::MIN, ..SESSION }, true),
        // The process id was used again.
        (Session { started_at: 1_001, ..SESSION }, false),
        (Session { started_at: i64::MAX, ..SESSION }, false),
        (Session { process: 4712, ..SESSION }, false),
        (Session { database: 6, ..SESSION }, false),
        (Session { database: 4711, process: 5, ..SESSION }, false),
    ] {
        assert_eq!(session.sealed(&STAMP), is_own, "{session:?}");
        let opened = open(&key_for(Kind::Loose), &value(Kind::Loose), Expected::Session(&session));
        assert_eq!(opened.is_ok(), is_own);
    }
    assert_eq!(Stamp::from_bytes(&STAMP.to_bytes()), STAMP);
}

#[test]
fn swapped_places_tags_forms_and_nonces_do_not_open() {
    let one = value(Kind::Searchable);
    let other = Header {
        nonce: nonce(*b"ABCDEFGHIJKLMNOQ"),
        form: Form::Lower,
        binding: Binding::Searchable(
            Place::new(*b"SALT", "public.patients.ssn/18"),
            SearchTag { key_id: key_id(10), domain: [1; 8], tag: [2; 16] },
        ),
        ..header(Kind::Searchable)
    };
    let two = seal_bound(&key_for(Kind::Searchable), &other, b"219-09-9999");
    for part in [10..26, 26..27, 27..43, 27..31, 43..51, 51..59, 59..75, 43..75, 26..75] {
        let mut swapped = one.clone();
        swapped[part.clone()].copy_from_slice(&two[part.clone()]);
        let opened = open(&key_for(Kind::Searchable), &swapped, Expected::Any);
        assert_eq!(opened, Err(Refusal::Open(OpenError::NotAuthentic)), "{part:?}");
    }
}

#[test]
fn the_salt_hides_that_two_values_are_of_one_place() {
    let (one, two) = (Place::new([1; 4], CONTEXT), Place::new([2; 4], CONTEXT));
    assert!(one.is_of(CONTEXT) && two.is_of(CONTEXT) && !one.is_of("public.patients.ssn/1"));
    assert_ne!(one.to_bytes()[4..], two.to_bytes()[4..]);
    assert_eq!(Place::from_bytes(&one.to_bytes()), one);
}

#[test]
fn re_encryption_keeps_all_but_key_and_nonce() {
    for kind in KINDS {
        let bytes = value(kind);
        let parsed = BoundCiphertext::parse(&bytes).ok().unwrap();
        let old = message_key(&key_for(kind), parsed.header()).unwrap();
        let new_data_key = data_key_for(kind.purpose().name(), [0x1D; 32]);
        let fresh = parsed.header().under(key_id(77), nonce([3; 16]));
        let new = message_key(&new_data_key, &fresh).unwrap();
        let mut out = vec![0; bytes.len()];
        parsed.reencrypt_into(&old, &new, fresh.nonce, &mut out).unwrap();
        assert_eq!(out[26..header_length(kind)], bytes[26..header_length(kind)], "{kind:?}");
        assert_eq!((out[..2].to_vec(), fresh), (bytes[..2].to_vec(), Header::parse(&out).unwrap()));
        assert_eq!(open(&new_data_key, &out, home(kind)).as_deref(), Ok(PLAINTEXT));
        assert!(open(&key_for(kind), &out, Expected::Any).is_err());

        // Keys that are not for it, another length, a value that was changed: no plaintext stays behind.
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        let changed = BoundCiphertext::parse(&changed).ok().unwrap();
        let stranger = message_key(&data_key_for(kind.purpose().name(), [0x2D; 32]), &header(kind));
        let other_kind = if kind == Kind::Bound { Kind::Searchable } else { Kind::Bound };
        let other = header(other_kind).under(key_id(77), nonce([3; 16]));
        let other = message_key(&key_for(other_kind), &other).unwrap();
        let (tampered, wrong_key) = (OpenError::NotAuthentic, OpenError::WrongKey);
        for (value, old, new, length, expected) in [
            (&changed, &old, &new, bytes.len(), tampered),
            (&parsed, &stranger.unwrap(), &new, bytes.len(), tampered),
            (&parsed, &new, &new, bytes.len(), wrong_key),
            (&parsed, &old, &other, bytes.len(), wrong_key),
            (&parsed, &old, &new, bytes.len() - 1, tampered),
            (&parsed, &old, &new, bytes.len() + 1, tampered),
            (&parsed, &old, &new, 0, tampered),
        ] {
            let mut out = vec![0; length];
            let moved = value.reencrypt_into(old, new, fresh.nonce, &mut out);
            assert_eq!(moved, Err(expected), "{kind:?}");
            assert!(!out.windows(4).any(|it| PLAINTEXT.windows(4).any(|text| text == it)));
        }
    }
}

#[test]
fn a_refused_value_leaves_no_plaintext_in_the_buffer() {
    for kind in KINDS {
        let mut bytes = value(kind);
        *bytes.last_mut().unwrap() ^= 1;
        let parsed = BoundCiphertext::parse(&bytes).ok().unwrap();
        let key = message_key(&key_for(kind), parsed.header()).unwrap();
        for expected in [Expected::Any, Expected::Place("elsewhere"), home(kind)] {
            let mut buffer = parsed.body().to_vec();
            assert!(parsed.open_in_place(&key, expected, &mut buffer).is_err());
            assert_eq!(buffer, parsed.body());
        }
    }
}

#[test]
fn a_buffer_without_room_or_a_tag_of_a_form_that_has_none_is_not_sealed() {
    for kind in KINDS {
        let header = header(kind);
        let key = message_key(&key_for(kind), &header).unwrap();
        for length in 0..overhead(kind) {
            let mut buffer = vec![0x77; length];
            assert_eq!(seal_in_place(&key, &header, &mut buffer), Err(SealError::Length));
            assert!(buffer.iter().all(|byte| *byte == 0x77));
        }
        for form in Form::ALL {
            let header = Header { form, ..header };
            let sealed = seal_in_place(&key, &header, &mut [0; 200]);
            let is_sealed = kind != Kind::Searchable || form.is_searchable();
            assert_eq!(sealed.is_ok(), is_sealed, "{kind:?}, {form:?}");
        }
    }
}
