use super::*;

fn all_characters() -> impl Iterator<Item = char> {
    '\0'..=char::MAX
}

fn folded(text: &str) -> String {
    String::from_utf8(lower(text).to_vec()).unwrap()
}

/// Of the standard library this test makes no more than a witness: it is asked while it has the tables' version.
#[test]
fn lower_case_is_that_of_the_standard_library_of_the_same_version() {
    if char::UNICODE_VERSION != unicode_17::VERSION {
        return;
    }
    for character in all_characters().filter(|character| *character != '\u{130}') {
        assert!(character.to_lowercase().eq([mapped(character)]), "{character:?}");
    }
    assert!('\u{130}'.to_lowercase().eq(folded("\u{130}").chars()));
}

#[test]
fn a_text_and_its_upper_and_lower_case_fold_alike() {
    for text in ["Ada@Example.ORG", "ΝΊΚΟΣ Νίκος", "ÀÉÎÕÜ ẞß", "İI", "ǅ Ⱥ Ꙁ 𐐀 Ა"]
    {
        assert_eq!(folded(text), folded(&text.to_lowercase()), "{text}");
        assert_eq!(folded(text), folded(&folded(text)), "{text}");
    }
    assert_eq!(folded("Σς"), "σσ");
    assert_eq!(folded("İ"), "i\u{307}");
    // What lower case does not make equal.
    for (one, other) in [("ß", "SS"), ("é", "e\u{301}"), ("a", "a "), ("ı", "i"), ("ſ", "s")] {
        assert_ne!(folded(one), folded(other), "{one} {other}");
    }
}

#[test]
fn every_character_that_a_table_maps_is_mapped_once_and_for_good() {
    assert!(LOWER.is_sorted_by(|a, b| a.0 < b.0));
    assert!(LOWER.iter().all(|(_, lower)| mapped(*lower) == *lower));
    assert_eq!((LOWER.len(), ZEROS.len()), (1487, 77));
    assert_eq!(all_characters().filter(|it| mapped(*it) != *it).count(), 1487);
    assert_eq!(all_characters().filter(|it| digit(*it).is_some()).count(), 770);
}

/// No run of digits overlaps another one, and each is one of numbers, if the standard library is new enough to know it.
#[test]
fn digits_are_in_runs_of_ten() {
    assert!(ZEROS.windows(2).all(|pair| u32::from(pair[1]) - u32::from(pair[0]) >= 10));
    for zero in ZEROS {
        for value in 0..10 {
            let character = char::from_u32(u32::from(zero) + value).unwrap();
            assert_eq!(digit(character), Some(b'0' + value as u8));
            assert!(character.is_numeric() || char::UNICODE_VERSION < unicode_17::VERSION);
        }
    }
    for character in ['²', '½', 'Ⅳ', '一', '①', 'a', '-', '/', ':', '\u{1F100}'] {
        assert_eq!(digit(character), None, "{character}");
    }
}

#[test]
fn digits_of_all_scripts_are_compared_and_nothing_else_is() {
    for (text, expected) in [
        ("123-45-6789", "123456789"),
        ("123 45 6789", "123456789"),
        ("+49 (0)170/12", "49017012"),
        ("١٢٣ १२३ １２３ 𝟏", "1231231231"),
        ("A1", "1"),
        ("n/a", "n/a"),
        ("", ""),
        ("x²", "x²"),
    ] {
        assert_eq!(*digits(text), expected.as_bytes(), "{text}");
    }
}

#[test]
fn no_folding_outgrows_the_memory_that_it_asked_for() {
    let mapped = LOWER.iter().map(|(upper, _)| *upper).chain(['\u{130}', '\u{3C2}']);
    for character in mapped.chain(ZEROS) {
        let text = character.to_string().repeat(8);
        assert!(lower(&text).len() <= text.len() + text.len() / 2, "{character:?}");
        assert!(digits(&text).len() <= text.len(), "{character:?}");
    }
}

/// How the table of lower case was made, with a standard library of its version.
#[test]
#[ignore = "prints the table"]
fn print_the_table() {
    for character in all_characters() {
        let mut lower = character.to_lowercase();
        if let (Some(first), None) = (lower.next(), lower.next())
            && first != character
        {
            println!("    ({character:?}, {first:?}),");
        }
    }
}
