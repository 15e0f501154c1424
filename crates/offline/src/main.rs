//! `fieldcrypt`: the proof that nobody is locked in. Opens what pg_fieldcrypt encrypted with the
//! master key and an export of the keys (`fieldcrypt.export_keys()`), and no Postgres. It also checks
//! what the audit log claims, for who does not trust the server that it comes from.
//!
//! Exit status: 0 all well; 1 something does not open, or was tampered with; 2 it could not be tried.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod check;
mod csv_file;
mod dump;
mod failure;
mod keys;
mod master_key;
mod opener;
mod template;
mod tokens;
mod verify_log;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use dump::{Dump, Opening};
use failure::Failure;
use keys::Keys;
use opener::Opener;

/// Opens what pg_fieldcrypt encrypted, and verifies its audit log, without Postgres
#[derive(Parser)]
#[command(name = "fieldcrypt", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a file with a new master key (never overwrites one)
    NewMasterKey {
        /// The file to make
        path: PathBuf,
    },
    /// Show the fingerprints of the master keys in a file
    Fingerprint {
        /// The file
        path: PathBuf,
    },
    /// Check a key export: authentic, and every key opens
    Check {
        /// The file that holds what `export_keys()` gave
        export: PathBuf,
        /// A file of master keys (may be given more than once)
        #[arg(long, value_name = "PATH", required = true)]
        master_key: Vec<PathBuf>,
    },
    /// Replace encrypted values (fc1:...) in a text, a dump or a CSV file by what they hold
    Open(Open),
    /// Verify an export of the audit log (what `fieldcrypt.audit_export()` gave)
    VerifyLog(verify_log::VerifyLog),
    /// Verify that a row is in an audit log (what `fieldcrypt.audit_proof()` gave)
    VerifyProof(verify_log::VerifyProof),
}

#[derive(clap::Args)]
struct Open {
    /// The file that holds what `export_keys()` gave
    #[arg(long, value_name = "PATH")]
    export: PathBuf,
    /// A file of master keys (may be given more than once)
    #[arg(long, value_name = "PATH", required = true)]
    master_key: Vec<PathBuf>,
    /// The context of values whose column has none of its own. A plain dump has those that were set with
    /// set_column_context, and no other opens the values of such a column. Values of encrypted_text open without one; if
    /// it is given, only those of that place do
    #[arg(long, value_name = "TEXT")]
    context: Option<String>,
    /// The input is CSV with a header line
    #[arg(long)]
    csv: bool,
    /// The context of one column's values (of a dump: SCHEMA.TABLE.COLUMN); {name} is that column's value in the row
    #[arg(long, value_name = "COLUMN=TEMPLATE")]
    column_context: Vec<String>,
    /// With --csv: what separates the fields
    #[arg(long, value_name = "CHARACTER")]
    delimiter: Option<char>,
    /// How opened values are written into other text than CSV
    #[arg(long, value_enum)]
    escape: Option<Escape>,
    /// The file to read; standard input if left out
    input: Option<PathBuf>,
}

/// How an opened value is written, so that what is around it stays readable.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Escape {
    /// As it is
    None,
    /// For a plain dump: as in the data of COPY
    Copy,
    /// For a dump with INSERT commands: inside a quoted string
    Sql,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Who reads our output has seen enough.
        Err(failure) if failure.is_closed_pipe() => ExitCode::from(2),
        Err(failure) => {
            eprintln!("fieldcrypt: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Whether all was well.
fn run(command: Command) -> Result<bool, Failure> {
    match command {
        Command::NewMasterKey { path } => master_key::make(&path),
        Command::Fingerprint { path } => master_key::show_fingerprints(&path),
        Command::Check { export, master_key } => check::check(&Keys::read(&export, &master_key)?),
        Command::Open(arguments) => open(&arguments),
        Command::VerifyLog(arguments) => verify_log::verify_log(&arguments),
        Command::VerifyProof(arguments) => verify_log::verify_proof(&arguments),
    }
}

fn open(arguments: &Open) -> Result<bool, Failure> {
    if !arguments.csv && arguments.delimiter.is_some() {
        return Err(Failure::usage("--delimiter needs --csv"));
    }
    if arguments.csv && arguments.escape.is_some() {
        return Err(Failure::usage("--escape is not for --csv, which quotes by itself"));
    }
    let keys = Keys::read(&arguments.export, &arguments.master_key)?;
    let mut opener = Opener::new(&keys);
    let input: Box<dyn Read> = match &arguments.input {
        Some(path) => Box::new(File::open(path).map_err(|error| Failure::file(path, error))?),
        None => Box::new(io::stdin().lock()),
    };
    let name = arguments.input.as_deref().unwrap_or(Path::new("standard input"));
    let output = io::BufWriter::new(io::stdout().lock());
    let mut is_sound = true;
    if arguments.csv {
        let format = csv_file::Format {
            delimiter: arguments.delimiter.map_or(Ok(b','), ascii)?,
            context: arguments.context.as_deref().unwrap_or_default(),
            column_contexts: &arguments.column_context,
        };
        csv_file::open(&mut opener, &format, input, output, name)?;
    } else {
        is_sound = open_text(arguments, &mut opener, input, output, name)?;
    }
    eprintln!("fieldcrypt: {}", opener.summary());
    Ok(is_sound && opener.all_opened())
}

/// A plain dump, or any other text. Whether each value that opened was of its place.
fn open_text(
    arguments: &Open,
    opener: &mut Opener<'_>,
    input: impl Read,
    output: impl Write,
    name: &Path,
) -> Result<bool, Failure> {
    let reader = |input| BufReader::with_capacity(1 << 16, input);
    let (context, escape) = (
        arguments.context.as_deref().unwrap_or_default(),
        arguments.escape.unwrap_or(Escape::None),
    );
    let mut dump = Dump::new(&arguments.column_context)?;
    // What can be read twice is: contexts may come after the values.
    let path = arguments.input.as_deref().filter(|path| path.is_file());
    if let Some(path) = path {
        let input = File::open(path).map_err(|error| Failure::file(path, error))?;
        dump.learn(BufReader::with_capacity(1 << 16, input), name)?;
    }
    if path.is_some() && !dump.is_one() {
        tokens::replace(reader(input), output, name, |token| {
            opener.open(token, Some(context)).map(|plaintext| opener::escaped(&plaintext, escape))
        })?;
        return Ok(true);
    }
    dump.open(
        reader(input),
        output,
        name,
        &mut Opening { opener, context, is_given: arguments.context.is_some(), escape },
    )?;
    for problem in dump.problems() {
        eprintln!("fieldcrypt: {problem}");
    }
    Ok(dump.is_sound())
}

fn ascii(character: char) -> Result<u8, Failure> {
    u8::try_from(character)
        .ok()
        .filter(u8::is_ascii)
        .ok_or_else(|| Failure::usage("--delimiter takes one ASCII character"))
}
