//! Contexts with the places of columns' values in them: `patients.ssn/{id}`.

/// A piece of a template.
pub enum Piece {
    Text(String),
    /// The value of a column.
    Column(String),
}

/// `{name}` is a column; `{{` and `}}` are braces. `None` if a brace is without its other.
pub fn parse(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            literal.push_str(brace);
            rest = after;
        } else if brace == "{" {
            let (name, after) = rest.split_once('}')?;
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
            pieces.push(Piece::Column(name.to_owned()));
            rest = after;
        } else {
            return None;
        }
    }
    literal.push_str(rest);
    pieces.push(Piece::Text(literal));
    Some(pieces)
}
