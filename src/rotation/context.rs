//! What a column's values are bound to, as its owner says.

use pgrx::pg_sys::Oid;

use crate::error::Error;
use crate::pg::expression::{Expression, Nature};
use crate::pg::heap::{Access, Table};
use crate::pg::setting::TemporarySettings;
use crate::pg::spi::{self, Parameter};
use crate::pg::{roles, security};

/// Sets it. The rights of the moment count, which those of the session may exceed.
pub fn set_context(
    relation: Oid,
    column: &[u8],
    constant: &[u8],
    expression: &[u8],
    enforce: bool,
) -> Result<(), Error> {
    security::refuse_for_planted_code()?;
    roles::refuse_unless_owner(relation)?;
    let nature = match expression {
        b"" => None,
        expression => Some(check_context(relation, expression, enforce)?),
    };
    let part = |part: fn(&Nature) -> &[u8]| Parameter::Text(nature.as_ref().map(part));
    security::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.remember_column_context($1::pg_catalog.oid, $2, $3, $4,
                        $5 OPERATOR(pg_catalog.<>) 0, $6 OPERATOR(pg_catalog.<>) 0, $7, $8)",
            &[
                Parameter::BigInt(Some(i64::from(relation.to_u32()))),
                Parameter::Text(Some(column)),
                Parameter::Text(Some(constant)),
                Parameter::Text(Some(expression)),
                Parameter::BigInt(Some(nature.as_ref().is_some_and(|of| of.is_mutable).into())),
                Parameter::BigInt(Some(enforce.into())),
                part(|nature| &nature.of_new),
                part(|nature| &nature.of_old),
            ],
        )
    })?;
    Ok(())
}

/// The expression of a table whose names have changed, with those of now. It is analysed as the table's owner, and not
/// computed.
pub fn renamed_expression(
    relation: Oid,
    expression: &[u8],
    old_table: &[u8],
    old_columns: &[u8],
) -> Result<Vec<u8>, Error> {
    let guard = TemporarySettings::begin(TemporarySettings::QUIET);
    let Some(table) = Table::open(relation, Access::Read) else {
        return Err(Error::NotScannable { problem: "gone" });
    };
    let renamed = security::as_table_owner(table.owner(), || {
        Expression::with_names_of_now(&table, expression, old_table, old_columns)
    })?;
    table.close();
    guard.end();
    Ok(renamed)
}

/// Compiles an expression as a batch will, and throws it away. It must give one row one text for ever: what changes
/// from call to call is refused, and what goes by settings is computed under the same ones for all, but never while a
/// row is written, where those of the session count.
fn check_context(relation: Oid, expression: &[u8], enforce: bool) -> Result<Nature, Error> {
    let guard = TemporarySettings::begin(TemporarySettings::QUIET);
    let Some(table) = Table::open(relation, Access::Update) else {
        return Err(Error::NotScannable { problem: "gone" });
    };
    let nature =
        security::as_table_owner(table.owner(), || Expression::nature(&table, expression))?;
    table.close();
    guard.end();
    let problem = if nature.is_volatile {
        "the context expression is volatile: it gives the same row another text each time"
    } else if let Some(flaw) = nature.flaw {
        flaw
    } else if nature.is_mutable && !nature.has_columns {
        "the context expression goes by the time or the session, and by no column of the row"
    } else if nature.is_mutable && enforce {
        "a context that is enforced must be immutable: this one goes by settings or tables"
    } else {
        return Ok(nature);
    };
    Err(Error::ContextNotOfRow {
        problem,
        hint: "fieldcrypt.context('patients.ssn', id) is the same for ever: a name, and the columns of the row's key.",
    })
}
