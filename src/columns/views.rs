//! Views that show what is encrypted.

use pgrx::pg_sys::Oid;

use crate::error::Error;
use crate::pg::setting::TemporarySettings;
use crate::pg::spi::{self, Parameter};
use crate::pg::{encoding, json, roles, security};

/// Makes a view over a table that shows its protected columns decrypted, or makes it anew. What it is made of is read with
/// the extension's rights; it is made with the caller's, and belongs to the table's owner.
pub fn create_view(
    relation: Oid,
    name: Option<&[u8]>,
    columns: Option<&[&[u8]]>,
) -> Result<(), Error> {
    security::refuse_for_planted_code()?;
    roles::refuse_unless_owner(relation)?;
    let columns = columns.map(json::of_names).transpose()?;
    let statements = security::as_owner(|| {
        spi::rows(
            "SELECT s FROM pg_catalog.unnest(fieldcrypt_internal.decrypted_view($1::pg_catalog.oid, $2, $3::pg_catalog.jsonb)) AS s",
            &[
                Parameter::BigInt(Some(i64::from(relation.to_u32()))),
                Parameter::Text(name),
                Parameter::Text(columns.as_deref()),
            ],
            |row| encoding::to_string(row.bytes(1)?),
        )
    })?;
    let guard = TemporarySettings::begin(&[
        (c"search_path", c"pg_catalog"),
        (c"standard_conforming_strings", c"on"),
    ]);
    for statement in &statements {
        spi::execute_once(statement)?;
    }
    guard.end();
    Ok(())
}
