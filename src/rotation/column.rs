//! The columns of a table that hold encrypted values.

use crate::error::Error;
use crate::pg::heap::{Column, Look, Table};
use crate::pg::shape::Shape;

/// A column that holds encrypted values.
pub struct Holder {
    /// The column.
    pub column: Column,
    /// How it holds them.
    pub shape: Shape,
}

/// The columns of a table that hold encrypted values.
pub fn holders(table: &Table) -> Result<Vec<Holder>, Error> {
    let mut holders = Vec::new();
    for column in table.columns() {
        if let Some(shape) = Shape::of(column.type_oid)? {
            holders.push(Holder { column, shape });
        }
    }
    Ok(holders)
}

impl Holder {
    /// What a scan looks at of it.
    pub fn look(&self) -> Look {
        Look { column: self.column.number, is_nested: self.shape.is_nested() }
    }
}
