//! The text of master keys: what is taken, and the many things that only look like keys.

#![allow(clippy::unwrap_used)]

use base64ct::{Base64, Base64Unpadded, Base64Url, Base64UrlUnpadded, Encoding};
use fieldcrypt_envelope::master_key_text::{MAX_KEYS, MasterKeyTextError, Seen, parse, parse_each};
use fieldcrypt_envelope::{Fingerprint, MasterKey};

const KEY: [u8; 32] = [
    0xFB, 0xEF, 0xBE, 0xFF, 0xFF, 0xFF, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29, 30, 0xFF,
];

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

fn base64(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}

fn fingerprint(key: [u8; 32]) -> Fingerprint {
    MasterKey::derive(&key).fingerprint()
}

fn keys(text: impl AsRef<[u8]>) -> Result<Vec<Fingerprint>, MasterKeyTextError> {
    parse(text.as_ref()).map(|keys| keys.iter().map(MasterKey::fingerprint).collect())
}

/// Whether a text is refused for what it looks like.
#[track_caller]
fn refused(text: impl AsRef<[u8]>, expected_line: usize, looks: Seen) {
    let error = MasterKeyTextError::NotHexOrBase64 { line: expected_line, seen: looks };
    assert_eq!(keys(text), Err(error));
}

#[track_caller]
fn neither(text: impl AsRef<[u8]>) {
    let outcome = keys(text);
    assert!(
        matches!(outcome, Err(MasterKeyTextError::NotHexOrBase64 { line: 1, .. })),
        "{outcome:?}"
    );
}

#[track_caller]
fn taken(text: impl AsRef<[u8]>) {
    assert_eq!(keys(text), Ok(vec![fingerprint(KEY)]));
}

fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(unit).collect()
}

fn wrong_length(line: usize, bytes: usize) -> Result<Vec<Fingerprint>, MasterKeyTextError> {
    Err(MasterKeyTextError::WrongLength { line, bytes })
}

#[test]
fn hex_is_taken_in_either_case_and_mixed() {
    let mixed: String = (hex(&KEY).char_indices())
        .map(|(at, digit)| if at % 3 == 0 { digit.to_ascii_uppercase() } else { digit })
        .collect();
    for text in [hex(&KEY), hex(&KEY).to_uppercase(), mixed] {
        assert_eq!(keys(text), Ok(vec![fingerprint(KEY)]));
    }
}

#[test]
fn base64_is_taken() {
    assert!(base64(&KEY).contains('+') && base64(&KEY).contains('/'));
    assert_eq!(keys(base64(&KEY)), Ok(vec![fingerprint(KEY)]));
}

#[test]
fn line_ends_of_either_kind_blank_lines_indentation_and_comments_are_skipped() {
    let text = format!(
        "# the current key\r\n\r\n  {}\t# since May\r\n\n   \t\n#{}\n{}",
        hex(&KEY),
        hex(&[1; 32]),
        base64(&[2; 32])
    );
    assert_eq!(keys(text), Ok(vec![fingerprint(KEY), fingerprint([2; 32])]));
    assert_eq!(keys(format!("{}\r\n", base64(&KEY))), Ok(vec![fingerprint(KEY)]));
}

#[test]
fn keys_keep_their_order_and_a_second_copy_is_dropped() {
    let (one, two) = (fingerprint([1; 32]), fingerprint([2; 32]));
    let text = format!("{}\n{}\n{}\n", hex(&[2; 32]), hex(&[1; 32]), base64(&[2; 32]));
    assert_eq!(keys(text), Ok(vec![two, one]));
}

#[test]
fn sixteen_keys_are_taken_and_a_seventeenth_refuses_all() {
    let lines = |count: u8| -> String { (0..count).map(|n| hex(&[n; 32]) + "\n").collect() };
    assert_eq!(MAX_KEYS, 16);
    assert_eq!(keys(lines(16)).map(|keys| keys.len()), Ok(16));
    assert_eq!(keys(lines(17)), Err(MasterKeyTextError::TooMany));
    let doubled = lines(16) + &lines(16);
    assert_eq!(keys(doubled).map(|keys| keys.len()), Ok(16));
}

#[test]
fn a_text_without_a_key_is_empty() {
    for text in ["", "\n", "\r\n\r\n", "# only a comment", "   \t", "#\n#\n"] {
        assert_eq!(keys(text), Err(MasterKeyTextError::Empty), "{text:?}");
    }
}

#[test]
fn raw_bytes_are_never_a_key() {
    refused(KEY, 1, Seen::Bytes);
    refused([0; 32], 1, Seen::Utf16);
    refused([0xFF; 32], 1, Seen::Bytes);
    refused([b'='; 44], 1, Seen::Characters(44));
    // 32 letters are base64 of 24 bytes, and no key either.
    assert_eq!(keys([b'k'; 32]), wrong_length(1, 24));
}

#[test]
fn passphrases_are_never_a_key() {
    for passphrase in [
        "password",
        "correct horse battery staple",
        "correct horse battery staple correct horse b",
        "correct-horse-battery-staple-correct-horse-battery-staple-abcdef",
        "a passphrase that is sixty-four bytes long, exactly 64 of them!!",
        "Tr0ub4dor&3",
        "\u{fc}ber-geheimes Kennwort",
        // Of the length that a key has without its padding, and in the alphabet for addresses.
        "correcthorsebatterystapleandfourwordsmoreok",
        "correct-horse-battery-staple-in-a-row-again",
        "CORRECT_HORSE_BATTERY_STAPLE_IN_A_ROW_AGAIN=",
        "PASSWORD=correct-horse-battery-staple",
    ] {
        assert!(
            matches!(
                keys(passphrase),
                Err(MasterKeyTextError::NotHexOrBase64 { line: 1, .. }
                    | MasterKeyTextError::WrongLength { line: 1, .. })
            ),
            "{passphrase}"
        );
    }
    refused("correct-horse-battery-staple-in-a-row-agais", 1, Seen::Letters);
}

#[test]
fn keys_of_other_lengths_are_refused_by_their_length() {
    for length in [1, 16, 24, 31, 33, 34, 35, 36, 48, 64] {
        let bytes = vec![0xEF; length];
        assert_eq!(keys(base64(&bytes)), wrong_length(1, length), "base64 of {length}");
        if length != 32 && length != 24 {
            assert_eq!(keys(hex(&bytes)), wrong_length(1, length), "hex of {length}");
        }
    }
    assert_eq!(keys(hex(&[7; 24])), wrong_length(1, 24));
    assert_eq!(keys(&hex(&KEY)[..63]), wrong_length(1, 32), "an odd digit is missing");
}

#[test]
fn two_keys_on_a_line_are_refused() {
    assert_eq!(keys(hex(&KEY) + &hex(&KEY)), wrong_length(1, 64));
    refused(format!("{} {}", hex(&KEY), hex(&KEY)), 1, Seen::Words);
    neither(format!("{},{}", base64(&KEY), base64(&KEY)));
}

#[test]
fn base64_is_taken_without_padding_and_in_the_alphabet_for_addresses() {
    assert!(
        Base64Url::encode_string(&KEY).contains('-')
            && Base64Url::encode_string(&KEY).contains('_')
    );
    taken(Base64Unpadded::encode_string(&KEY));
    taken(Base64Url::encode_string(&KEY));
    taken(Base64UrlUnpadded::encode_string(&KEY));
    // One alphabet, not both.
    neither(base64(&KEY).replacen('+', "-", 1));
    // Other lengths want their padding: words are base64, too.
    for length in [4, 7, 31, 33, 34, 35, 64] {
        assert!(keys(Base64Unpadded::encode_string(&vec![0xEF; length])).is_err(), "{length}");
        assert!(keys(Base64UrlUnpadded::encode_string(&vec![0xEF; length])).is_err(), "{length}");
    }
}

#[test]
fn what_editors_shells_and_secret_stores_put_around_a_key_is_taken_off() {
    for key in [hex(&KEY), base64(&KEY), Base64UrlUnpadded::encode_string(&KEY)] {
        for text in [
            format!("\u{feff}{key}\n"),
            format!("\u{feff}  {key} # the key\r\n"),
            format!("# a comment\n\u{feff}{key}"),
            format!("\"{key}\""),
            format!("'{key}'\r\n"),
            format!("\" {key} \" # quoted"),
            format!("FIELDCRYPT_MASTER_KEY={key}"),
            format!("export FIELDCRYPT_MASTER_KEY=\"{key}\"\n"),
            format!("master_key = '{key}'"),
        ] {
            taken(&text);
            let text = text.replace('\u{feff}', "");
            taken([b"\xFF\xFE".to_vec(), utf16(&text, u16::to_le_bytes)].concat());
            taken([b"\xFE\xFF".to_vec(), utf16(&text, u16::to_be_bytes)].concat());
        }
    }
    taken(format!("0x{}", hex(&KEY)));
    taken(format!("0X{}", hex(&KEY).to_uppercase()));
    taken(format!("KEY='\\x{}'", hex(&KEY)));
}

#[test]
fn what_may_mean_something_else_stays() {
    for text in [
        format!("\"{}", hex(&KEY)),
        format!("{}'", hex(&KEY)),
        format!("\"{}'", hex(&KEY)),
        format!("\"\"{}\"\"", hex(&KEY)),
        format!("1KEY={}", hex(&KEY)),
        format!("a key={}", hex(&KEY)),
        format!("KEY=OTHER={}", hex(&KEY)),
        format!("KEY={} {}", hex(&KEY), hex(&[1; 32])),
        format!("KEY: {}", hex(&KEY)),
        format!("0x0x{}", hex(&KEY)),
        format!("0x{}", base64(&KEY)),
        format!("\\x\\x{}", hex(&KEY)),
        format!("{}\0", hex(&KEY)),
        format!("\u{feff}\u{feff}{}", hex(&KEY)),
    ] {
        assert!(keys(&text).is_err(), "{text}");
    }
    for text in ["KEY=", "KEY==", "=", "\"\"=", "KEY=\"\"", "export KEY="] {
        assert!(keys(text).is_err(), "{text}");
    }
}

#[test]
fn what_was_seen_instead_of_a_key_is_said() {
    refused("-----BEGIN PRIVATE KEY-----\nMC4CAQ\n", 1, Seen::Pem);
    refused("{\"key\": \"00\"}", 1, Seen::Json);
    refused(utf16(&hex(&KEY), u16::to_le_bytes), 1, Seen::Utf16);
    refused("no key at all", 1, Seen::Words);
    refused("no_key!", 1, Seen::Characters(7));
    refused(format!("{}\n\u{fc}\u{e4}", hex(&KEY)), 2, Seen::Bytes);
    for seen in [
        Seen::Bytes,
        Seen::Utf16,
        Seen::Pem,
        Seen::Json,
        Seen::Words,
        Seen::Letters,
        Seen::Characters(3),
    ] {
        let error = MasterKeyTextError::NotHexOrBase64 { line: 3, seen };
        assert!(error.to_string().starts_with("neither hex digits nor base64 in line 3, but "));
    }
}

#[test]
fn base64_that_is_not_canonical_is_refused() {
    let text = base64(&KEY);
    let (digits, padding) = text.split_at(42);
    assert_eq!(padding, "8=");
    for last in ["9=", "+=", "/="] {
        neither(format!("{digits}{last}"));
        neither(format!("{digits}{}", last.trim_end_matches('=')));
    }
    for text in [format!("{text}="), format!("={text}"), text.replace('=', "A=")] {
        assert!(keys(text).is_err());
    }
}

#[test]
fn whitespace_and_other_marks_inside_a_key_are_refused() {
    for mark in [" ", "\t", "\r", "\0", "-", ":", "_", "\u{a0}"] {
        for text in [hex(&KEY), base64(&KEY)] {
            let broken = format!("{}{mark}{}", &text[..20], &text[20..]);
            neither(broken);
        }
    }
    assert!(keys(hex(&KEY).replace('f', "g")).is_err());
}

#[test]
fn a_comment_in_the_middle_of_a_key_leaves_no_key() {
    let text = hex(&KEY);
    assert_eq!(keys(format!("{}#{}", &text[..32], &text[32..])), wrong_length(1, 16));
}

#[test]
fn text_that_is_no_utf8_is_refused_like_any_other() {
    let marked = |units: &[u8]| [b"\xFF\xFE", units].concat();
    neither(marked(b"k\x00e\x00y\x00"));
    neither(marked(&utf16(&hex(&KEY), u16::to_be_bytes)));
    neither(marked(&utf16(&hex(&KEY), u16::to_le_bytes)[1..]));
    neither(marked(&utf16(&format!("\u{e4}{}", hex(&KEY)), u16::to_le_bytes)));
    neither([&[0xC3; 44][..], b"\n", hex(&KEY).as_bytes()].concat());
    assert_eq!(keys(marked(b"")), Err(MasterKeyTextError::Empty));
}

#[test]
fn keys_handed_over_one_by_one_are_the_same_and_stop_at_an_error() {
    let text = format!("{}\n{}\n{}\n", hex(&[2; 32]), hex(&[1; 32]), base64(&[2; 32]));
    let mut taken = Vec::new();
    assert_eq!(parse_each(text.as_bytes(), |key| taken.push(key.fingerprint())), Ok(()));
    assert_eq!(Ok(taken), keys(&text));

    let text = format!("{}\nno key\n{}\n", hex(&[2; 32]), hex(&[1; 32]));
    let mut taken = Vec::new();
    let outcome = parse_each(text.as_bytes(), |key| taken.push(key.fingerprint()));
    assert_eq!(outcome, Err(MasterKeyTextError::NotHexOrBase64 { line: 2, seen: Seen::Words }));
    assert_eq!(taken, [fingerprint([2; 32])]);
}

#[test]
fn an_error_names_the_line_and_shows_nothing_of_the_text() {
    let text = format!("# comment\n\n{}\nsecret-passphrase\n", hex(&KEY));
    let error = parse(text.as_bytes()).err().unwrap();
    assert_eq!(error, MasterKeyTextError::NotHexOrBase64 { line: 4, seen: Seen::Characters(17) });
    assert!(!format!("{error:?} {error}").contains("secret"));
    // One bad line refuses the good ones too.
    let text = format!("{}\n{}\n", hex(&KEY), hex(&KEY[..31]));
    assert_eq!(keys(text), wrong_length(2, 31));
}
