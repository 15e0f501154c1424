//! CSV with a header line: values are opened, each with its column's context.

use std::io::{Read, Write};
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, WriterBuilder};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::opener::{self, Opener};
use crate::{Escape, template, tokens};

/// How a file is written, and what its values are bound to.
pub struct Format<'a> {
    /// What separates the fields.
    pub delimiter: u8,
    /// The context of columns that have none of their own.
    pub context: &'a str,
    /// `column=template`.
    pub column_contexts: &'a [String],
}

/// Copies the file, with its values opened.
pub fn open(
    opener: &mut Opener<'_>,
    format: &Format<'_>,
    input: impl Read,
    output: impl Write,
    name: &Path,
) -> Result<(), Failure> {
    let problem = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => Failure::file(name, error),
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => Failure::usage(format!(
            "{}: {len} fields at line {}, and {expected_len} in the header",
            name.display(),
            pos.map_or(0, |pos| pos.line())
        )),
        _ => Failure::usage(format!("{}: not the CSV that this program reads", name.display())),
    };
    let mut reader = ReaderBuilder::new().delimiter(format.delimiter).from_reader(input);
    let mut writer = WriterBuilder::new().delimiter(format.delimiter).from_writer(output);
    let header = reader.byte_headers().map_err(problem)?.clone();
    let contexts = contexts(format, &header)?;
    let written = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => Failure::Output(error),
        _ => Failure::usage("can't write CSV"),
    };
    writer.write_byte_record(&header).map_err(written)?;
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(problem)? {
        for (field, context) in record.iter().zip(&contexts) {
            let context = context.of(&record);
            let replaced = match context {
                Some(context) => tokens::replace_in(field, |token| {
                    opener
                        .open(token, Some(&context))
                        .map(|plaintext| opener::escaped(&plaintext, Escape::None))
                })?,
                None => {
                    return Err(Failure::usage(format!(
                        "{}: a context is not in UTF-8",
                        name.display()
                    )));
                }
            };
            writer.write_field(replaced.as_slice()).map_err(written)?;
        }
        writer.write_record(None::<&[u8]>).map_err(written)?;
    }
    writer.flush().map_err(Failure::Output)
}

/// A context, with the places of other columns' values in it.
struct Template(Vec<Part>);

enum Part {
    Text(String),
    Column(usize),
}

impl Template {
    /// The context of a row; `None` if a value in it is not UTF-8.
    fn of(&self, record: &ByteRecord) -> Option<Zeroizing<String>> {
        let mut context = Zeroizing::new(String::new());
        for part in &self.0 {
            match part {
                Part::Text(text) => context.push_str(text),
                Part::Column(index) => {
                    context.push_str(str::from_utf8(record.get(*index).unwrap_or_default()).ok()?);
                }
            }
        }
        Some(context)
    }

    fn parse(text: &str, header: &ByteRecord) -> Result<Self, Failure> {
        let pieces = template::parse(text)
            .ok_or_else(|| Failure::usage(format!("a brace without its other in \"{text}\"")))?;
        let part = |piece| match piece {
            template::Piece::Text(text) => Ok(Part::Text(text)),
            template::Piece::Column(name) => column(&name, header).map(Part::Column),
        };
        pieces.into_iter().map(part).collect::<Result<_, _>>().map(Self)
    }
}

fn contexts(format: &Format<'_>, header: &ByteRecord) -> Result<Vec<Template>, Failure> {
    let mut contexts: Vec<Template> =
        header.iter().map(|_| Template(vec![Part::Text(format.context.to_owned())])).collect();
    for argument in format.column_contexts {
        let (name, template) = argument
            .split_once('=')
            .ok_or_else(|| Failure::usage("--column-context takes COLUMN=TEMPLATE"))?;
        contexts[column(name, header)?] = Template::parse(template, header)?;
    }
    Ok(contexts)
}

fn column(name: &str, header: &ByteRecord) -> Result<usize, Failure> {
    let mut found = header
        .iter()
        .enumerate()
        .filter_map(|(index, field)| (field == name.as_bytes()).then_some(index));
    match (found.next(), found.next()) {
        (Some(index), None) => Ok(index),
        (None, _) => Err(Failure::usage(format!("the header has no column \"{name}\""))),
        (Some(_), Some(_)) => Err(Failure::usage(format!("the header has \"{name}\" twice"))),
    }
}
