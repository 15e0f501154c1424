//! The manual page says of each command what its `--help` says: the same commands, options and arguments, in both directions.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

const MANUAL: &str = include_str!("../fieldcrypt.1");

#[test]
fn the_manual_names_each_command() {
    let listed: BTreeSet<String> = words_of(&help(&[]), "Commands:");
    let described: BTreeSet<String> = sections().map(|(name, _)| name).collect();
    assert_eq!(described, listed);
    assert!(listed.len() >= 6);
}

#[test]
fn the_manual_names_each_option_and_argument() {
    for (command, section) in sections().filter(|(name, _)| name != "help") {
        let help = help(&[&command]);
        let mut taken = words_of(&help, "Arguments:");
        taken.extend(words_of(&help, "Options:").into_iter().filter(|option| option != "--help"));
        let described: BTreeSet<String> = section
            .split(".TP\n")
            .skip(1)
            .map(|entry| word(entry.lines().next().unwrap().split_once(' ').unwrap().1))
            .collect();
        assert_eq!(described, taken, "{command}");
        assert!(!taken.is_empty(), "{command}");
    }
}

#[test]
fn the_manual_names_what_escape_takes() {
    let help = help(&["open"]);
    let values: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ")?.split_once(':'))
        .map(|(value, _)| value)
        .collect();
    assert_eq!(values.len(), 3, "{help}");
    let section = sections().find(|(name, _)| name == "open").unwrap().1;
    for value in values {
        assert!(
            section.contains(&format!(".B {value}\n"))
                || section.contains(&format!(".BR {value} ,\n")),
            "{value}"
        );
    }
}

/// The commands of the manual, each with what it says of it.
fn sections() -> impl Iterator<Item = (String, &'static str)> {
    let commands = MANUAL.split_once(".SH COMMANDS\n").unwrap().1.split_once(".SH ").unwrap().0;
    commands.split(".SS ").skip(1).map(|section| {
        let (name, text) = section.split_once('\n').unwrap();
        (word(name), text)
    })
}

fn help(command: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_fieldcrypt")).args(command).arg("--help").output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// The first word of each entry below a heading of the help: `-h, --help` is `--help`.
fn words_of(help: &str, heading: &str) -> BTreeSet<String> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    lines
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter(|line| {
            let indent = line.len() - line.trim_start().len();
            (1..=6).contains(&indent) && !line.trim_start().is_empty()
        })
        .map(|line| word(line.trim_start().trim_start_matches("-h, ")))
        .collect()
}

/// Of a line of the help or of the manual: `--export <PATH>`, `\-\-export\~ PATH`, `[INPUT]`.
fn word(text: &str) -> String {
    let text = text.replace("\\-", "-");
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "-<[".contains(c)))
        .unwrap_or(text.len());
    text[..end].trim_start_matches(['<', '[']).to_owned()
}
