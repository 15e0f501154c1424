//! The context of a column, as somebody wrote it for `set_column_context`: the forms that people write. Anything else is
//! not guessed.

use fieldcrypt_envelope::{MAX_CONTEXT_BYTES, place};

use super::sql::{self, Cursor, Kind};
use super::values::{Field, Type, Value};
use crate::template;

/// How deep parentheses may go.
const DEEPEST: u32 = 50;
/// How many casts may follow on each other.
const MOST_CASTS: u32 = 10;
/// More than an expression has that somebody wrote.
const LONGEST: usize = 1 << 16;
/// How much all the steps of one row's context may write: some lines of a dump can ask for more than any memory has.
const MOST_WRITTEN: usize = 4 * MAX_CONTEXT_BYTES;

/// An expression over the columns of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression(Node);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Constant(Value),
    Null,
    Column(String),
    /// A column of the row, by its place.
    At(usize, Type),
    Joined(Vec<Node>),
    Cast(Box<Node>, Type),
    Context(Vec<Node>),
    Format(Vec<Piece>, Vec<Node>),
    Concat(Vec<Node>),
}

/// A piece of a format: as it is, or the argument of this number.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Argument(usize),
}

/// A row: what is in each of its columns.
pub type Row<'r> = &'r [Field];

impl Expression {
    /// The same text for all rows.
    pub fn constant(text: &str) -> Self {
        Self(Node::Constant(Value::text(text)))
    }

    /// `patients.ssn/{id}`: columns as they are written in the dump.
    pub fn of_template(text: &str) -> Option<Self> {
        let parts = template::parse(text)?.into_iter().map(|piece| match piece {
            template::Piece::Text(text) => Node::Constant(Value::text(text)),
            template::Piece::Column(name) => Node::Column(name),
        });
        // An argument of format() is as it is written.
        let arguments: Vec<Node> = parts.collect();
        let pieces = (0..arguments.len()).map(Piece::Argument).collect();
        Some(Self(Node::Format(pieces, arguments)))
    }

    /// Reads it; or what is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err("it is too long".into());
        }
        let tokens = sql::tokens(text.as_bytes()).ok_or("a quote has no end")?;
        let mut parser = Parser { cursor: Cursor::new(&tokens), depth: 0 };
        let node = parser.joined()?;
        match parser.cursor.peek() {
            None => Ok(Self(node)),
            Some(kind) => Err(format!("{} is not understood", shown(kind))),
        }
    }

    /// The same for rows with these columns.
    pub fn bound(&self, columns: &[String], types: &[Type]) -> Result<Self, String> {
        bound(&self.0, &|name| {
            let at = columns
                .iter()
                .position(|column| column == name)
                .ok_or_else(|| format!("the dump has no column \"{name}\" beside it"))?;
            Ok(Node::At(at, types.get(at).copied().unwrap_or(Type::Unknown)))
        })
        .map(Self)
    }

    /// Whether it needs the column in this place.
    pub fn needs(&self, index: usize) -> bool {
        needs(&self.0, index)
    }

    /// The context of a row. `None` if it is NULL, too long, or has a value whose form is not known.
    pub fn of(&self, row: Row<'_>) -> Option<String> {
        let mut evaluation = Evaluation { row, room: MOST_WRITTEN };
        let text = evaluation.value(&self.0)??.as_text()?;
        if text.len() > MAX_CONTEXT_BYTES {
            return None;
        }
        String::from_utf8(text).ok()
    }
}

fn needs(node: &Node, index: usize) -> bool {
    match node {
        Node::At(at, _) => *at == index,
        Node::Joined(nodes)
        | Node::Context(nodes)
        | Node::Format(_, nodes)
        | Node::Concat(nodes) => nodes.iter().any(|node| needs(node, index)),
        Node::Cast(node, _) => needs(node, index),
        Node::Constant(_) | Node::Null | Node::Column(_) => false,
    }
}

fn bound(node: &Node, at: &impl Fn(&str) -> Result<Node, String>) -> Result<Node, String> {
    let all = |nodes: &[Node]| nodes.iter().map(|node| bound(node, at)).collect::<Result<_, _>>();
    Ok(match node {
        Node::Column(name) => at(name)?,
        Node::Joined(nodes) => Node::Joined(all(nodes)?),
        Node::Cast(node, to) => Node::Cast(Box::new(bound(node, at)?), *to),
        Node::Context(nodes) => Node::Context(all(nodes)?),
        Node::Format(pieces, nodes) => Node::Format(pieces.clone(), all(nodes)?),
        Node::Concat(nodes) => Node::Concat(all(nodes)?),
        Node::Constant(_) | Node::Null | Node::At(..) => node.clone(),
    })
}

/// The computation of a row's context.
struct Evaluation<'r> {
    row: Row<'r>,
    /// What may still be written.
    room: usize,
}

impl Evaluation<'_> {
    /// A value, `Some(None)` for NULL, `None` for what is not known or is too long.
    fn value(&mut self, node: &Node) -> Option<Option<Value>> {
        Some(match node {
            Node::Constant(value) => {
                self.take(value.written.len())?;
                Some(value.clone())
            }
            Node::Null => None,
            Node::Column(_) => return None,
            Node::At(index, of) => match self.row.get(*index)? {
                Field::Unknown => return None,
                Field::Null => None,
                Field::Written(written) => {
                    self.take(written.len())?;
                    Some(Value { written: written.clone(), of: *of })
                }
            },
            Node::Joined(nodes) => {
                let mut text = Vec::new();
                for node in nodes {
                    match self.value(node)? {
                        Some(value) => self.append(&mut text, &value.as_text()?)?,
                        None => return Some(None),
                    }
                }
                Some(Value::text(text))
            }
            Node::Cast(node, to) => match self.value(node)? {
                Some(value) => {
                    self.take(value.written.len())?;
                    Some(value.cast(*to)?)
                }
                None => None,
            },
            Node::Context(nodes) => {
                let mut text = Vec::new();
                for (index, node) in nodes.iter().enumerate() {
                    let part = self
                        .value(node)??
                        .with_part(|part| place(&[part], MAX_CONTEXT_BYTES))??;
                    if index > 0 {
                        text.push(b'/');
                    }
                    self.append(&mut text, &part)?;
                }
                Some(Value::text(text))
            }
            Node::Format(pieces, nodes) => {
                // Each once, however often the pattern names it.
                let arguments = nodes
                    .iter()
                    .map(|node| self.value(node)?.map_or(Some(Vec::new()), as_output))
                    .collect::<Option<Vec<_>>>()?;
                let mut text = Vec::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(piece) => self.append(&mut text, piece)?,
                        Piece::Argument(index) => {
                            self.append(&mut text, arguments.get(*index)?)?;
                        }
                    }
                }
                Some(Value::text(text))
            }
            Node::Concat(nodes) => {
                let mut text = Vec::new();
                for node in nodes {
                    let value = self.value(node)?.map_or(Some(Vec::new()), as_output)?;
                    self.append(&mut text, &value)?;
                }
                Some(Value::text(text))
            }
        })
    }

    fn append(&mut self, text: &mut Vec<u8>, more: &[u8]) -> Option<()> {
        self.take(more.len())?;
        text.extend_from_slice(more);
        Some(())
    }

    fn take(&mut self, length: usize) -> Option<()> {
        self.room = self.room.checked_sub(length)?;
        Some(())
    }
}

/// What the type's output function writes: as the dump does, but for times with a zone.
fn as_output(value: Value) -> Option<Vec<u8>> {
    match value.of {
        Type::Timestamptz | Type::Unsettled => value.as_text(),
        _ => Some(value.written),
    }
}

struct Parser<'t> {
    cursor: Cursor<'t>,
    depth: u32,
}

impl Parser<'_> {
    /// `a || b || c`
    fn joined(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("it is nested too deeply".into());
        }
        let first = self.cast()?;
        let mut nodes = vec![first];
        while self.cursor.take_two(*b"||") {
            nodes.push(self.cast()?);
        }
        self.depth -= 1;
        Ok(match nodes.len() {
            1 => nodes.remove(0),
            _ => Node::Joined(nodes),
        })
    }

    /// `a::text`
    fn cast(&mut self) -> Result<Node, String> {
        let mut node = self.primary()?;
        let mut casts = 0;
        while self.cursor.take_two(*b"::") {
            casts += 1;
            if casts > MOST_CASTS {
                return Err("it has too many casts".into());
            }
            node = self.cast_to(node)?;
        }
        Ok(node)
    }

    fn cast_to(&mut self, node: Node) -> Result<Node, String> {
        let (names, has_length) = Type::read(&mut self.cursor).ok_or("a cast has no type")?;
        let name = names.join(" ");
        match Type::of(&names) {
            Some(to @ (Type::Text | Type::Integer | Type::Uuid | Type::Date)) if !has_length => {
                Ok(Node::Cast(Box::new(node), to))
            }
            _ => Err(format!("the cast to {name} is not computed here")),
        }
    }

    fn primary(&mut self) -> Result<Node, String> {
        match self.cursor.next() {
            Some(Kind::Mark(b'(')) => {
                let node = self.joined()?;
                if self.cursor.take(b')') {
                    Ok(node)
                } else {
                    Err(self.stuck("a parenthesis is open"))
                }
            }
            Some(Kind::Text(text)) => Ok(Node::Constant(Value::text(text.clone()))),
            Some(Kind::Number(number)) if number.bytes().all(|it| it.is_ascii_digit()) => {
                Ok(Node::Constant(Value { written: number.clone().into(), of: Type::Integer }))
            }
            Some(Kind::Word(word))
                if matches!(word.as_str(), "null" | "true" | "false" | "cast") =>
            {
                match word.as_str() {
                    "null" => Ok(Node::Null),
                    "cast" => self.written_cast(),
                    word => {
                        Ok(Node::Constant(Value { written: word[..1].into(), of: Type::Boolean }))
                    }
                }
            }
            Some(Kind::Word(_) | Kind::Quoted(_)) => {
                self.cursor.at -= 1;
                let names = self.cursor.names().ok_or("a name is not complete")?;
                if self.cursor.take(b'(') {
                    let arguments = self.arguments()?;
                    return call(&names, arguments);
                }
                names.last().map(|name| Node::Column(name.clone())).ok_or("a name is empty".into())
            }
            Some(kind) => Err(format!("{} is not understood", shown(kind))),
            None => Err("it is not complete".into()),
        }
    }

    /// `CAST(a AS text)`
    fn written_cast(&mut self) -> Result<Node, String> {
        let incomplete = "a cast is not complete";
        if !self.cursor.take(b'(') {
            return Err(incomplete.into());
        }
        let node = self.joined()?;
        if !self.cursor.word("as") {
            return Err(incomplete.into());
        }
        let node = self.cast_to(node)?;
        if self.cursor.take(b')') { Ok(node) } else { Err(incomplete.into()) }
    }

    /// Why it does not go on here.
    fn stuck(&self, at_end: &str) -> String {
        let next = self.cursor.peek();
        next.map_or(at_end.into(), |kind| format!("{} is not understood", shown(kind)))
    }

    fn arguments(&mut self) -> Result<Vec<Node>, String> {
        let mut arguments = Vec::new();
        if self.cursor.take(b')') {
            return Ok(arguments);
        }
        loop {
            if self.cursor.peek().is_some_and(|it| it.is_word("variadic")) {
                return Err("VARIADIC is not computed here".into());
            }
            arguments.push(self.joined()?);
            if self.cursor.take(b')') {
                return Ok(arguments);
            }
            if !self.cursor.take(b',') {
                return Err(self.stuck("a call is not complete"));
            }
        }
    }
}

fn call(names: &[String], mut arguments: Vec<Node>) -> Result<Node, String> {
    let name = names.join(".");
    match name.as_str() {
        "fieldcrypt.context" | "context" if !arguments.is_empty() => Ok(Node::Context(arguments)),
        "concat" | "pg_catalog.concat" if !arguments.is_empty() => Ok(Node::Concat(arguments)),
        "format" | "pg_catalog.format" if !arguments.is_empty() => {
            let mut pattern = arguments.remove(0);
            while let Node::Cast(inner, Type::Text) = pattern {
                pattern = *inner;
            }
            match pattern {
                Node::Constant(pattern) => format(&pattern.written, arguments),
                _ => Err("format() has no constant pattern".into()),
            }
        }
        _ => Err(format!("the function {name}() is not computed here")),
    }
}

/// `%s`, `%2$s` and `%%`.
fn format(pattern: &[u8], arguments: Vec<Node>) -> Result<Node, String> {
    let unknown = || "format() is computed here with %s and %% only".to_owned();
    let mut pieces = Vec::new();
    let mut text = Vec::new();
    let mut next = 0;
    let mut at = 0;
    while let Some(&byte) = pattern.get(at) {
        at += 1;
        if byte != b'%' {
            text.push(byte);
            continue;
        }
        let digits = pattern[at..].iter().take_while(|it| it.is_ascii_digit()).count();
        let number =
            str::from_utf8(&pattern[at..at + digits]).ok().and_then(|it| it.parse::<usize>().ok());
        let index = match (pattern.get(at), pattern.get(at + digits), number) {
            (Some(b'%'), ..) => {
                text.push(b'%');
                at += 1;
                continue;
            }
            (Some(b's'), ..) => {
                at += 1;
                next
            }
            (_, Some(b'$'), Some(number)) if pattern.get(at + digits + 1) == Some(&b's') => {
                at += digits + 2;
                number.checked_sub(1).ok_or_else(unknown)?
            }
            _ => return Err(unknown()),
        };
        if index >= arguments.len() {
            return Err("format() has too few arguments".into());
        }
        next = index + 1;
        pieces.push(Piece::Text(std::mem::take(&mut text)));
        pieces.push(Piece::Argument(index));
    }
    pieces.push(Piece::Text(text));
    Ok(Node::Format(pieces, arguments))
}

fn shown(kind: &Kind) -> String {
    match kind {
        Kind::Word(word) | Kind::Number(word) => word.clone(),
        Kind::Quoted(name) => format!("\"{name}\""),
        Kind::Text(_) => "a text".into(),
        Kind::Mark(byte) => format!("\"{}\"", char::from(*byte).escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(written: Option<&str>) -> Field {
        written.map_or(Field::Null, |written| Field::Written(written.into()))
    }

    /// A row of a table with columns of most types.
    fn of(expression: &str) -> Result<Option<String>, String> {
        let columns = [
            "id", "code", "born", "seen", "Odd Name", "flag", "gone", "amount", "pad", "raw",
            "uid", "host", "net", "price",
        ];
        let types = [
            Type::Integer,
            Type::Text,
            Type::Date,
            Type::Timestamptz,
            Type::Text,
            Type::Boolean,
            Type::Text,
            Type::Numeric,
            Type::Padded,
            Type::Composed,
            Type::Uuid,
            Type::Inet,
            Type::Inet,
            Type::Unsettled,
        ];
        let row = [
            Some("17"),
            Some("a/b"),
            Some("2001-03-04"),
            Some("2001-03-04 05:06:07+02"),
            Some("x y"),
            Some("t"),
            None,
            Some("1.50"),
            Some("ab  "),
            Some("{1}"),
            Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            Some("10.0.0.1"),
            Some("fe80::1/64"),
            Some("$1.00"),
        ];
        let row: Vec<Field> = row.iter().map(|it| field(*it)).collect();
        let columns = columns.map(str::to_owned);
        Ok(Expression::parse(expression)?.bound(&columns, &types)?.of(&row))
    }

    #[test]
    fn the_forms_that_people_write_are_computed() {
        for (expression, context) in [
            ("fieldcrypt.context('patients.ssn', id)", "patients.ssn/17"),
            ("context('patients.ssn', id)", "patients.ssn/17"),
            ("fieldcrypt.context('patients.ssn'::text, VARIADIC_is_a_name)", ""),
            (
                "FIELDCRYPT.context ( 'p' , id , code, born , seen)",
                "p/17/a%2Fb/2001-03-04/2001-03-04T03:06:07.000000Z",
            ),
            (
                "fieldcrypt.context('p', flag, amount, pad, uid)",
                "p/true/1.5/ab/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            ("fieldcrypt.context('p', 5, true, 'x', id::text, (id)::bigint)", "p/5/true/x/17/17"),
            ("'patients.ssn/' || id", "patients.ssn/17"),
            ("('patients.ssn/'::text || (id)::text)", "patients.ssn/17"),
            ("(('patients.ssn/'::text || id) || '/'::text) || code", "patients.ssn/17/a/b"),
            ("'it''s ' || id || E'\\t' || \"Odd Name\"", "it's 17\tx y"),
            (
                "'a/' || id::int::text || '/' || cast(id AS text) || '/' || cast(id as character varying)",
                "a/17/17/17",
            ),
            ("'p/' || patients.id", "p/17"),
            (
                "'p/' || flag || '/' || amount || '/' || pad || '/' || born || '/' || seen",
                "p/true/1.50/ab/2001-03-04/2001-03-04 03:06:07+00",
            ),
            ("format('patients.ssn/%s', id)", "patients.ssn/17"),
            ("pg_catalog.format('%2$s/%1$s/%s%%'::text, id, code)", "a/b/17/a/b%"),
            ("format('%s|%s|%s', flag, gone, pad)", "t||ab  "),
            ("concat('p/', id, gone, '/', code)", "p/17/a/b"),
            ("'p/' || host || net", "p/10.0.0.1/32fe80::1/64"),
            ("concat('p/', host, format('%s', net))", "p/10.0.0.1fe80::1/64"),
            ("'constant'", "constant"),
            ("code", "a/b"),
            (
                "'p/' || 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid",
                "p/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
        ] {
            if context.is_empty() {
                assert!(of(expression).is_err(), "{expression}");
            } else {
                assert_eq!(of(expression), Ok(Some(context.to_owned())), "{expression}");
            }
        }
    }

    #[test]
    fn anything_else_is_not_guessed() {
        for (expression, why) in [
            ("", "not complete"),
            ("'open", "no end"),
            ("lower(code)", "the function lower() is not computed here"),
            ("other.context('p', id)", "the function other.context()"),
            ("md5(id::text)", "md5()"),
            ("'p/' || id + 1", "\"+\""),
            ("id::text || now()", "now()"),
            ("code::varchar(3)", "the cast to varchar"),
            ("id::money", "the cast to money"),
            ("code COLLATE \"C\"", "collate"),
            ("CASE WHEN flag THEN 'a' ELSE 'b' END", "when is not understood"),
            ("fieldcrypt.context(VARIADIC ARRAY['p'])", "VARIADIC"),
            ("format('%I', id)", "%s and %%"),
            ("format('%s')", "too few"),
            ("format(code, id)", "no constant pattern"),
            ("'p/' || missing", "no column \"missing\""),
            ("'p' || (SELECT 1)", "not understood"),
            ("('p'", "parenthesis"),
        ] {
            let said = of(expression).expect_err(expression).to_ascii_lowercase();
            assert!(said.contains(&why.to_ascii_lowercase()), "{expression}: {said}");
        }
        assert!(Expression::parse(&"(".repeat(100_000)).is_err());
    }

    #[test]
    fn what_is_null_or_has_no_known_form_gives_no_context() {
        for expression in [
            "'p/' || gone",
            "fieldcrypt.context('p', gone)",
            "'p/' || raw",
            "context('p', raw)",
            "context('p', host)",
            "'p/' || price",
            "concat('p/', price)",
            "NULL",
        ] {
            assert_eq!(of(expression), Ok(None), "{expression}");
        }
    }

    /// Each of these is some lines, and asked for more memory or time than there is.
    #[test]
    fn what_grows_without_end_ends() {
        let nested = |open: &str, inner: &str, close: &str, times| {
            format!("{}{inner}{}", open.repeat(times), close.repeat(times))
        };
        let doubled = nested("format('%1$s%1$s',", "code", ")", 45);
        let many = vec![nested("format('%1$s%1$s',", "code", ")", 18); 100].join(",");
        for expression in [
            doubled.clone(),
            format!("format('x', {doubled})"),
            format!("format('x', {many})"),
            format!("concat({many})"),
            format!("context({many})"),
        ] {
            assert_eq!(of(&expression), Ok(None));
        }
        for expression in [
            nested("format('%1$s%1$s',", "code", ")", 60),
            nested("concat(", "code", ")", 60),
            nested("cast(", "code", " as text)", 60),
            format!("code{}", "::text".repeat(10_000)),
            format!("'{}'", "x".repeat(LONGEST)),
        ] {
            assert!(of(&expression).is_err());
        }
        assert_eq!(of("format('%1$s%1$s%1$s', code)"), Ok(Some("a/ba/ba/b".into())));
    }

    #[test]
    fn templates_take_columns_as_they_are_written() {
        let expression = Expression::of_template("p/{id}/{{x}}").unwrap();
        let bound = expression.bound(&["id".into()], &[Type::Integer]).unwrap();
        assert_eq!(bound.of(&[field(Some("7"))]).as_deref(), Some("p/7/{x}"));
        assert!(Expression::of_template("p/{id").is_none());
    }

    /// The frozen vectors, by their parts as literals and columns.
    #[test]
    fn the_frozen_vectors_come_out() {
        let vectors: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../../../tests/vectors/contexts.json")).unwrap();
        let mut tried = 0;
        for vector in &vectors {
            let parts = vector["parts"].as_array().unwrap();
            let columns: Vec<String> = (0..parts.len()).map(|it| format!("c{it}")).collect();
            let mut types = Vec::new();
            let mut row = Vec::new();
            for part in parts {
                let (of, written) = match (part["type"].as_str().unwrap(), part["value"].as_str()) {
                    ("text", Some(text)) => (Type::Text, text),
                    ("integer", Some(text)) => (Type::Integer, text),
                    ("numeric", Some(text)) => (Type::Numeric, text),
                    ("uuid", Some(text)) => (Type::Uuid, text),
                    _ => break,
                };
                types.push(of);
                row.push(field(Some(written)));
            }
            if row.len() < parts.len() {
                continue;
            }
            let expression =
                Expression::parse(&format!("context({})", columns.join(", "))).unwrap();
            let context = expression.bound(&columns, &types).unwrap().of(&row);
            assert_eq!(context.as_deref(), vector["context"].as_str(), "{}", vector["name"]);
            tried += 1;
        }
        assert!(tried >= 20, "{tried}");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".{0,200}") {
            let _ = of(&text);
        }

        #[test]
        fn nor_do_pieces_of_what_it_knows(words in prop::collection::vec(
            prop::sample::select(vec!["fieldcrypt", ".", "context", "(", ")", ",", "'p'", "'%s%2$s%'", "||", "::", "text", "int",
                "timestamp", "with", "[", "]", "id", "format", "concat", "cast", "as", "null", "true", "E'\\x", "'", "\"", "1", "%"]), 0..40)) {
            let _ = of(&words.concat());
            let _ = of(&words.join(" "));
        }
    }
}
