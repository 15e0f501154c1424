//! Signed notes and keys: the examples of C2SP and of Go's package `sumdb/note`, and what is refused.

#![allow(clippy::unwrap_used)]

use fieldcrypt_audit::{
    Checkpoint, KeyError, Malformed, NotSigned, Note, SigningKey, VerifyingKey, sign_note,
};

/// Go, package sumdb/note: its key, text and signed note.
const GO_SEED: [u8; 32] = [
    0x81, 0x0A, 0x14, 0x02, 0xD5, 0x14, 0x6C, 0x8D, 0x84, 0xF2, 0x44, 0x33, 0x30, 0xF5, 0x40, 0x80,
    0xEB, 0xF9, 0x8E, 0xE1, 0x7D, 0x9C, 0x74, 0xF6, 0x25, 0x2F, 0xC5, 0xD5, 0xC7, 0x28, 0x31, 0x73,
];
const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const GO_TEXT: &str = "If you think cryptography is the answer to your problem,\n\
                       then you don't know what your problem is.\n";
const GO_SIGNATURE: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuG\
                            UgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const GO_OTHER_KEY: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const GO_OTHER_SIGNATURE: &str = "\u{2014} EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5\
                                  n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

/// C2SP signed-note, section "Example".
const C2SP_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const C2SP_NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2V\
                         YRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

/// C2SP tlog-checkpoint; its key is not published.
const C2SP_CHECKPOINT: &str = "example.com/behind-the-sofa\n20852163\n\
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\u{2014} example.com/behind-the-sofa Az3grlgtzPI\
    Ca5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";

#[test]
fn the_published_notes_verify() {
    for (key, note) in [
        (GO_KEY, format!("{GO_TEXT}\n{GO_SIGNATURE}")),
        (GO_KEY, format!("{GO_TEXT}\n{GO_SIGNATURE}{GO_OTHER_SIGNATURE}")),
        (GO_OTHER_KEY, format!("{GO_TEXT}\n{GO_SIGNATURE}{GO_OTHER_SIGNATURE}")),
        (C2SP_KEY, C2SP_NOTE.to_owned()),
    ] {
        let key = VerifyingKey::parse(key).unwrap();
        let parsed = Note::parse(&note).unwrap();
        assert_eq!(parsed.verify(&key), Ok(()), "{note}");
        assert_eq!(parsed.to_string(), note);
    }
}

#[test]
fn the_published_note_is_signed_to_the_same_bytes() {
    let key = SigningKey::from_seed("PeterNeumann", &GO_SEED).ok().unwrap();
    assert_eq!(key.verifying_key().to_string(), GO_KEY);
    assert_eq!(sign_note(GO_TEXT, &key), Ok(format!("{GO_TEXT}\n{GO_SIGNATURE}")));
}

#[test]
fn the_published_checkpoint_is_read() {
    let note = Note::parse(C2SP_CHECKPOINT).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    assert_eq!(checkpoint.origin, "example.com/behind-the-sofa");
    assert_eq!(checkpoint.size, 20_852_163);
    assert_eq!(checkpoint.root[..4], [0x0A, 0xC5, 0x18, 0x6A]);
    assert!(checkpoint.extensions.is_empty());
    assert_eq!(checkpoint.to_text(), note.text());
}

#[test]
fn a_text_of_empty_lines_and_dashes_is_a_text() {
    let key = SigningKey::generate("example.com/log").ok().unwrap();
    for text in ["a\n", "a\n\nb\n", "\n\na\n", "\u{2014} a b\n\n\u{2014} c\n", "\u{2003}\u{FEFF}\n"]
    {
        let note = sign_note(text, &key).unwrap();
        let parsed = Note::parse(&note).unwrap();
        assert_eq!(parsed.text(), text);
        assert_eq!(parsed.verify(key.verifying_key()), Ok(()));
    }
    for text in ["", "\n", "a", "a\tb\n", "a\r\n", "a\0\n", "a\x1b[1m\n"] {
        assert_eq!(sign_note(text, &key), Err(Malformed), "{text:?}");
    }
}

#[test]
fn malformed_notes_are_refused() {
    let note = format!("{GO_TEXT}\n{GO_SIGNATURE}");
    let bad = [
        GO_TEXT.to_owned(),
        format!("{GO_TEXT}\n"),
        format!("\n{GO_SIGNATURE}"),
        note[..note.len() - 1].to_owned(),
        format!("{note}\n"),
        format!("{note}Unexpected line.\n"),
        format!("\x01{note}"),
        note.replace('\n', "\r\n"),
        note.replace("\u{2014} ", "-- "),
        note.replace("\u{2014} ", "\u{2014}\u{A0}"),
        note.replace("PeterNeumann ", "PeterNeumann  "),
        note.replace("PeterNeumann", "Peter\u{2003}Neumann"),
        note.replace("PeterNeumann", "Peter+Neumann"),
        note.replace("PeterNeumann ", ""),
        note.replace("JnAM=", "JnAM"),
        note.replace("JnAM=", "JnAN="),
        note.replace("JnAM=", "JnAM= "),
        format!("{GO_TEXT}\n\u{2014} PeterNeumann x08gow==\n"),
        format!("{GO_TEXT}\n{}", GO_SIGNATURE.repeat(101)),
        format!("{}\n{GO_SIGNATURE}", "a".repeat(70_000)),
    ];
    for note in bad {
        assert_eq!(Note::parse(&note), Err(Malformed), "{note:?}");
    }
}

#[test]
fn a_note_that_was_changed_does_not_verify() {
    let key = VerifyingKey::parse(GO_KEY).unwrap();
    let note = format!("{GO_TEXT}\n{GO_SIGNATURE}");
    let verdict = |note: &str| Note::parse(note).map(|note| note.verify(&key));
    for at in 0..GO_TEXT.len() - 1 {
        let mut changed = note.clone().into_bytes();
        changed[at] ^= 1;
        let changed = String::from_utf8(changed).unwrap();
        assert_ne!(verdict(&changed), Ok(Ok(())), "{changed}");
    }
    // Every character of the signature but its name.
    for at in note.len() - GO_SIGNATURE.len() + 17..note.len() - 1 {
        for byte in *b"A/z9" {
            let mut changed = note.clone().into_bytes();
            if changed[at] != byte {
                changed[at] = byte;
                let changed = String::from_utf8(changed).unwrap();
                assert_ne!(verdict(&changed), Ok(Ok(())), "{changed}");
            }
        }
    }
    // Another key's name or id: not this key's signature, whatever it is.
    let renamed = note.replace("PeterNeumann", "CarmenSandiego");
    assert_eq!(verdict(&renamed), Ok(Err(NotSigned::ByThisKey)));
    assert_eq!(verdict(&note.replace("x08g", "xxxx")), Ok(Err(NotSigned::ByThisKey)));
    // A good signature does not make up for a bad one of the same key.
    let bad = GO_SIGNATURE.replace("ZJku", "ZJkv");
    assert_eq!(verdict(&format!("{note}{bad}")), Ok(Err(NotSigned::Invalid)));
    assert_eq!(verdict(&format!("{GO_TEXT}\n{bad}{GO_SIGNATURE}")), Ok(Err(NotSigned::Invalid)));
}

#[test]
fn other_texts_are_no_verifying_keys() {
    for start in 0..GO_KEY.len() {
        for end in start..=GO_KEY.len() {
            if end - start < GO_KEY.len() {
                assert!(VerifyingKey::parse(&GO_KEY[start..end]).is_err());
            }
        }
        let mut changed = GO_KEY.to_owned().into_bytes();
        changed[start] += 1;
        let changed = String::from_utf8(changed).unwrap();
        assert!(VerifyingKey::parse(&changed).is_err(), "{changed}");
    }
    for key in [
        // Another length, and another algorithm, with the ids that belong to them (from Go's tests).
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n",
        " PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ] {
        assert_eq!(VerifyingKey::parse(key), Err(Malformed), "{key}");
    }
}

#[test]
fn keys_under_which_anything_verifies_are_refused() {
    let mut identity = [0; 32];
    identity[0] = 1;
    for weak in [[0; 32], identity] {
        assert!(VerifyingKey::from_bytes("example.com/log", &weak).is_none());
    }
    // No point of the curve.
    assert!(VerifyingKey::from_bytes("example.com/log", &[2; 32]).is_none());
}

#[test]
fn no_key_has_a_name_that_breaks_a_line() {
    for name in ["", "a b", "a+b", "a\nb", "a\u{2003}b", "a\u{85}b", "a\tb", "a\0b"] {
        assert!(matches!(SigningKey::generate(name), Err(KeyError::Name)), "{name:?}");
    }
}

#[test]
fn malformed_checkpoints_are_refused() {
    let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
    assert!(Checkpoint::parse(&format!("o\n0\n{root}\n")).is_ok());
    assert!(Checkpoint::parse(&format!("o\n18446744073709551615\n{root}\nx\n")).is_ok());
    for text in [
        String::new(),
        "o\n".into(),
        "o\n0\n".into(),
        format!("o\n0\n{root}"),
        format!("\n0\n{root}\n"),
        format!("o\n\n{root}\n"),
        format!("o\n00\n{root}\n"),
        format!("o\n01\n{root}\n"),
        format!("o\n+1\n{root}\n"),
        format!("o\n-1\n{root}\n"),
        format!("o\n 1\n{root}\n"),
        format!("o\n0x1\n{root}\n"),
        format!("o\n18446744073709551616\n{root}\n"),
        format!("o\n0\n{root}\n\n"),
        format!("o\n0\n{root}\n\nx\n"),
        format!("o\n0\n{}\n", &root[4..]),
        format!("o\n0\nAAAA{root}\n"),
        format!("o\n0\n{} \n", root),
        format!("o\n0\n{}\n", root.replace("I=", "J=")),
        format!("o\n0\n{}\n", root.replace('+', "-").replace('/', "_")),
    ] {
        assert_eq!(Checkpoint::parse(&text), Err(Malformed), "{text:?}");
    }
}
