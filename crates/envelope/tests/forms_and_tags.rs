//! Plaintext forms, folding and search tags.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::forms::{Form, NotOfForm, Value};
use fieldcrypt_envelope::{Domain, SearchTag};
use support::{data_key_for, key_id};

fn tag(name: &str, form: Form, plaintext: &[u8]) -> [u8; 16] {
    let key = data_key_for("search", [0x0E; 32]);
    let key = key.tag_key(key_id(9), Domain::named(name, form).unwrap()).unwrap();
    key.tag_of(plaintext).unwrap().tag
}

#[test]
fn numbers_and_names_of_forms_are_what_they_were() {
    let names = [
        "text",
        "lower-17.0",
        "digits-17.0",
        "integer",
        "numeric",
        "date",
        "timestamptz",
        "uuid",
        "boolean",
        "jsonb",
    ];
    for (number, (form, name)) in (1..).zip(Form::ALL.into_iter().zip(names)) {
        assert_eq!((form.number(), form.name()), (number, name));
        assert_eq!((Form::of_number(number), Form::of_name(name)), (Some(form), Some(form)));
    }
    assert_eq!(
        (Form::of_name("lower"), Form::of_name("digits")),
        (Some(Form::Lower), Some(Form::Digits))
    );
    assert!([0, 11, 0x81, 0xFF].iter().all(|number| Form::of_number(*number).is_none()));
    for name in ["", "Text", "lower-16.0", "lower-17", "bytea", "float", "varchar", "json"] {
        assert_eq!(Form::of_name(name), None, "{name}");
    }
}

#[test]
fn what_is_no_plaintext_of_a_form_is_refused() {
    let refused: [(Form, &[&[u8]]); 10] = [
        (Form::Text, &[b"\xff", b"a\0", b"\xed\xa0\x80"]),
        (Form::Lower, &[b"\xc3", b"\0"]),
        (Form::Digits, &[b"1\xfe", b"1\0"]),
        (Form::Integer, &[b"", b"17", &[0; 7], &[0; 9], &[0; 16]]),
        (
            Form::Numeric,
            &[
                b"",
                b"-",
                b".",
                b"1.",
                b".5",
                b"01",
                b"00",
                b"-0",
                b"-0.00",
                b"+1",
                b"1e5",
                b"1.5.0",
                b" 1",
                b"1 ",
                b"1,5",
                b"nan",
                b"-NaN",
                b"inf",
                b"+Infinity",
                b"--1",
                b"\xd9\xa1",
                b"1\0",
                b"\xff",
            ],
        ),
        (
            Form::Date,
            &[
                b"",
                &[0; 3],
                &[0; 8],
                &(-2_451_546i32).to_be_bytes(),
                &2_145_031_949i32.to_be_bytes(),
                b"2001-03-04",
            ],
        ),
        (
            Form::Timestamptz,
            &[
                b"",
                &[0; 4],
                &(-211_813_488_000_000_001i64).to_be_bytes(),
                &9_223_371_331_200_000_000i64.to_be_bytes(),
            ],
        ),
        (Form::Uuid, &[b"", &[0; 15], &[0; 17], b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        (Form::Boolean, &[b"", &[2], &[0xff], &[0, 0], b"true", b"t"]),
        (Form::Jsonb, &[b"\"\xff\"", b"\"\0\""]),
    ];
    for (form, plaintexts) in refused {
        for plaintext in plaintexts {
            assert!(form.decode(plaintext).is_err(), "{form:?} {plaintext:?}");
            assert!(form.fold(plaintext).is_err(), "{form:?} {plaintext:?}");
        }
    }
}

#[test]
fn a_value_of_another_type_or_out_of_range_is_not_encoded() {
    let values = [
        Value::Text("1"),
        Value::Integer(1),
        Value::Numeric("1"),
        Value::Date(1),
        Value::Timestamptz(1),
        Value::Uuid([1; 16]),
        Value::Boolean(true),
        Value::Jsonb("1"),
    ];
    let mut encoded = 0;
    for form in Form::ALL {
        for value in &values {
            encoded += u32::from(form.encode(value).is_ok());
        }
        assert_eq!(values.iter().filter(|value| form.encode(value).is_ok()).count(), 1, "{form:?}");
    }
    assert_eq!(encoded, 10);
    for (form, value) in [
        (Form::Numeric, Value::Numeric("1e5")),
        (Form::Text, Value::Text("\0")),
        (Form::Date, Value::Date(i32::MIN + 1)),
        (Form::Timestamptz, Value::Timestamptz(i64::MAX - 1)),
    ] {
        assert!(form.encode(&value).is_err(), "{form:?}");
    }
}

#[test]
fn the_length_of_a_plaintext_tells_nothing_of_a_value_of_fixed_size() {
    for (form, one, other) in [
        (Form::Integer, Value::Integer(0), Value::Integer(i64::MIN)),
        (Form::Date, Value::Date(i32::MAX), Value::Date(0)),
        (Form::Timestamptz, Value::Timestamptz(i64::MIN), Value::Timestamptz(0)),
        (Form::Boolean, Value::Boolean(false), Value::Boolean(true)),
    ] {
        let length = |value| form.encode(&value).ok().unwrap().as_bytes().len();
        assert_eq!(length(one), length(other), "{form:?}");
    }
}

#[test]
fn equal_values_have_equal_tags_and_others_have_others() {
    for (form, one, other) in [
        (Form::Lower, "Ada@Example.org", "ADA@EXAMPLE.ORG"),
        (Form::Lower, "ΝΊΚΟΣ", "νίκος"),
        (Form::Digits, "123-45-6789", "123 45 6789"),
        (Form::Numeric, "1.50", "1.5"),
        (Form::Numeric, "0.00", "0"),
        (Form::Numeric, "100.0", "100"),
    ] {
        assert_eq!(tag("d", form, one.as_bytes()), tag("d", form, other.as_bytes()), "{one}");
    }
    for (form, one, other) in [
        (Form::Text, "a", "A"),
        (Form::Text, "a", "a "),
        (Form::Lower, "a", "b"),
        (Form::Digits, "12", "21"),
        (Form::Digits, "n/a", "unknown"),
        (Form::Digits, "n/a", ""),
        (Form::Numeric, "1", "10"),
        (Form::Numeric, "100", "1"),
        (Form::Numeric, "1", "-1"),
    ] {
        assert_ne!(tag("d", form, one.as_bytes()), tag("d", form, other.as_bytes()), "{one}");
    }
}

#[test]
fn tags_of_other_domains_forms_and_keys_can_not_be_compared() {
    let same = tag("d", Form::Text, b"123");
    assert_ne!(same, tag("e", Form::Text, b"123"));
    assert_ne!(same, tag("d", Form::Digits, b"123"));
    assert_ne!(same, tag("d", Form::Numeric, b"123"));
    let domain = Domain::named("d", Form::Text).unwrap();
    let by = |bytes, id| {
        data_key_for("search", bytes).tag_key(key_id(id), domain).unwrap().tag_of(b"123").unwrap()
    };
    assert_eq!(by([0x0E; 32], 9).tag, same);
    assert_ne!(by([0x0E; 32], 10).tag, same);
    assert_ne!(by([0x0F; 32], 9).tag, same);
    let ids: Vec<_> =
        Form::ALL.iter().filter_map(|form| Domain::named("d", *form)).map(|it| *it.id()).collect();
    assert_eq!(ids.len(), 7);
    assert!(ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)));
}

#[test]
fn forms_without_an_equality_worth_it_have_no_domain_and_no_fold() {
    for (form, plaintext) in
        [(Form::Timestamptz, vec![0; 8]), (Form::Boolean, vec![1]), (Form::Jsonb, b"{}".to_vec())]
    {
        assert!(form.decode(&plaintext).is_ok());
        assert_eq!(form.fold(&plaintext).err(), Some(NotOfForm));
        assert!(Domain::named("d", form).is_none() && Domain::of([1; 8], form).is_none());
    }
}

#[test]
fn what_is_no_plaintext_of_the_domains_form_has_no_tag() {
    let key = data_key_for("search", [0x0E; 32]);
    for (form, plaintext) in
        [(Form::Integer, &b"17"[..]), (Form::Text, b"\xff"), (Form::Numeric, b"1e5")]
    {
        let key = key.tag_key(key_id(9), Domain::named("d", form).unwrap()).unwrap();
        assert_eq!(key.tag_of(plaintext).err(), Some(NotOfForm));
    }
}

#[test]
fn a_search_tag_is_read_back_from_its_bytes() {
    let tag =
        SearchTag { key_id: key_id(0x0102_0304_0506_0708), domain: [0xDD; 8], tag: [0xEE; 16] };
    let mut bytes = tag.to_bytes();
    assert_eq!(SearchTag::parse(&bytes), Ok(tag));
    assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
    bytes[0] = 0x80;
    assert!(SearchTag::parse(&bytes).is_err());
    assert!(SearchTag::parse(&[0; 32]).is_err());
}
