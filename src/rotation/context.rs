//! What a column's values are bound to, as its owner says.

use pgrx::pg_sys::Oid;

use crate::error::Error;
use crate::pg::expression::Expression;
use crate::pg::heap::{Access, Table};
use crate::pg::setting::TemporarySettings;
use crate::pg::spi::{self, Parameter};
use crate::pg::{encoding, roles, security};

/// Sets it. The rights of the moment count, which those of the session may exceed.
pub fn set_context(
    relation: Oid,
    column: &[u8],
    constant: &[u8],
    expression: &[u8],
) -> Result<(), Error> {
    security::refuse_for_planted_code()?;
    refuse_unless_owner(relation)?;
    if !expression.is_empty() {
        check_context(relation, expression)?;
    }
    security::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.remember_column_context($1::pg_catalog.oid, $2, $3, $4)",
            &[
                Parameter::BigInt(Some(i64::from(relation.to_u32()))),
                Parameter::Text(Some(column)),
                Parameter::Text(Some(constant)),
                Parameter::Text(Some(expression)),
            ],
        )
    })?;
    Ok(())
}

/// Refuses whoever has not the rights of a relation's owner.
fn refuse_unless_owner(relation: Oid) -> Result<(), Error> {
    let Some(table) = Table::open(relation, Access::Read) else {
        return Err(Error::NotScannable { problem: "gone" });
    };
    let (owner, name) = (table.owner(), table.name());
    table.close();
    if roles::has_rights_of(owner) {
        return Ok(());
    }
    Err(Error::NotTableOwner { table: encoding::lossy(&name) })
}

/// Compiles an expression as a batch will, and throws it away.
fn check_context(relation: Oid, expression: &[u8]) -> Result<(), Error> {
    let guard = TemporarySettings::begin(TemporarySettings::QUIET);
    let Some(table) = Table::open(relation, Access::Update) else {
        return Err(Error::NotScannable { problem: "gone" });
    };
    security::as_table_owner(table.owner(), || Expression::check(&table, expression))?;
    table.close();
    guard.end();
    Ok(())
}
