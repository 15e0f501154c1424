//! Texts that claim to be statements, messages and plans: masked, and masked again.

#![no_main]

use fieldcrypt_sql_text::messages::{
    Record, mask_context, mask_lock_numbers, mask_memory_context, mask_processes,
};
use fieldcrypt_sql_text::{
    Kind, Names, Place, Text, Tokens, executes, mask, mask_audit, mask_job, mask_plan,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let tokens: Vec<_> = Tokens::of(data).collect();
    let mut end = 0;
    for token in &tokens {
        assert_eq!(token.range.start, end);
        assert!(token.range.start <= token.content.start && token.content.end <= token.range.end);
        end = token.range.end;
    }
    assert_eq!(end, data.len());

    let once = masked(data);
    assert_eq!(masked(&once), once);
    for token in Tokens::of(&once) {
        match token.kind {
            Kind::String => assert_eq!(&once[token.range], b"'***'"),
            Kind::Number => assert_eq!(&once[token.range], b"0"),
            Kind::Comment | Kind::OpenIdentifier => panic!("{:?} is left", token.kind),
            _ => {}
        }
    }

    // Whatever it is, it is found where it stands as a name.
    let mut names = Names::new();
    names.add(b"fieldcrypt", Place::Anywhere).unwrap();
    names.add(b"ssn", Place::Code).unwrap();
    names.add(b"encrypt_field", Place::Call).unwrap();
    let mentions = names.are_mentioned_in(data);
    let has_name = tokens.iter().any(|token| {
        token.kind == Kind::Word
            && [&b"fieldcrypt"[..], b"ssn"]
                .iter()
                .any(|name| data[token.range.clone()].eq_ignore_ascii_case(name))
    });
    assert!(mentions || !has_name);
    executes(data, &mut |name, _| {
        assert_eq!(name[63], 0);
        false
    });

    let (format, text) = data.split_at(data.len() / 3);
    let record =
        Record { message_format: Some(format), statement: text, ..Record::default() };
    let mut out = Text::new();
    record.message(text, &mut out).unwrap();
    record.detail(text, &mut out).unwrap();
    record.hint(text, &mut out).unwrap();
    mask_context(text, &mut out).unwrap();
    mask_lock_numbers(text, &mut out).unwrap();
    mask_memory_context(text, &mut out).unwrap();
    mask_processes(text, &mut out).unwrap();
    mask_plan(data, b"", true, &mut out).unwrap();
    // As if it were the client's statement, and as if it were none of its.
    for running in [data.split(|byte| *byte == b'\n').next().unwrap_or_default(), format, b""] {
        mask_plan(data, running.strip_prefix(b"Query Text: ").unwrap_or(running), false, &mut out).unwrap();
        mask_audit(data, running, &mut out).unwrap();
    }
    mask_job(data, &mut out).unwrap();
});

fn masked(text: &[u8]) -> Vec<u8> {
    let mut out = Text::new();
    mask(text, &mut out).unwrap();
    out.as_bytes().to_vec()
}
