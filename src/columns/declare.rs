//! How a column is protected. The declaration itself is a CHECK constraint, and a trigger does the work: `sql/` makes both.

use fieldcrypt_envelope::{Form, KeyId};
use pgrx::pg_sys::Oid;
use serde_json::{Value, json};

use crate::error::Error;
use crate::pg::declarations::{self, Declaration};
use crate::pg::drops::EventTriggerCall;
use crate::pg::heap::{Access, Table};
use crate::pg::spi::{self, Parameter};
use crate::pg::{encoding, json, relations, roles, security, transaction};
use crate::{fields, lifecycle};

/// What a column is to be.
pub struct Wanted<'a> {
    /// The column.
    pub column: &'a [u8],
    /// The columns of the row's key; `None` for those of the primary key.
    pub key: Option<&'a [&'a [u8]]>,
    /// The column that names the tenant; `None` for the session's.
    pub tenant: Option<&'a [u8]>,
    /// The name that, with the key, is the place of a value for ever.
    pub name: Option<&'a [u8]>,
    /// The form of plaintexts.
    pub form: Form,
}

/// Declares a column, and binds the loose values that it has.
pub fn protect(relation: Oid, wanted: &Wanted<'_>) -> Result<(), Error> {
    transaction::prevent_if_read_only(c"protect_column");
    security::refuse_for_planted_code()?;
    let owner = roles::refuse_unless_owner(relation)?;
    security::refuse_unless_executable(fields::ENCRYPT, "encrypt")?;
    create_loose_key()?;
    let key = wanted.key.map(json::of_names).transpose()?;
    let relation_number = Parameter::BigInt(Some(i64::from(relation.to_u32())));
    let rows = security::as_owner(|| {
        spi::first_row(
            "SELECT fieldcrypt_internal.declare_protection($1::pg_catalog.oid, $2, $3::pg_catalog.jsonb, $4, $5, $6)",
            &[
                relation_number,
                Parameter::Text(Some(wanted.column)),
                Parameter::Text(key.as_deref()),
                Parameter::Text(wanted.tenant),
                Parameter::Text(wanted.name),
                Parameter::Text(Some(wanted.form.name().as_bytes())),
            ],
            |row| row.optional_bytes(1)?.map(encoding::to_string).transpose(),
        )
    })?
    .flatten();
    refuse_unless_read(relation, wanted.column)?;
    // With the caller's rights and in the caller's name; but what fires on the way is the table owner's code.
    if let Some(update) = rows {
        if roles::is_superuser_at(owner) {
            security::as_table_owner(owner, || spi::execute_once(&update))?;
        } else {
            spi::execute_once(&update)?;
        }
    }
    security::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.believe_protection($1::pg_catalog.oid, $2)",
            &[
                Parameter::BigInt(Some(i64::from(relation.to_u32()))),
                Parameter::Text(Some(wanted.column)),
            ],
        )
    })?;
    Ok(())
}

/// The declaration must be one that the trigger can read: a part of the place may have a type that has no form for ever.
fn refuse_unless_read(relation: Oid, column: &[u8]) -> Result<(), Error> {
    let Some(table) = Table::open(relation, Access::Read) else { return Ok(()) };
    let is_read = table.declarations()?.iter().any(|declaration| declaration.column_name == column);
    table.close();
    if is_read {
        return Ok(());
    }
    Err(Error::Declaration {
        problem: "a column of the key, or that of the tenant, has a type whose values have no form that is the same for ever".into(),
        hint: "Keys are texts, whole numbers, numeric, boolean, uuid, date, timestamp and timestamptz: see fieldcrypt.context.",
    })
}

/// Takes a declaration away. The values stay as they are.
pub fn unprotect(relation: Oid, column: &[u8]) -> Result<(), Error> {
    transaction::prevent_if_read_only(c"unprotect_column");
    security::refuse_for_planted_code()?;
    roles::refuse_unless_owner(relation)?;
    security::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.withdraw_protection($1::pg_catalog.oid, $2)",
            &[Parameter::BigInt(Some(i64::from(relation.to_u32()))), Parameter::Text(Some(column))],
        )
    })?;
    Ok(())
}

/// The key that plaintext is taken in with, made if there never was one.
pub fn create_loose_key() -> Result<KeyId, Error> {
    lifecycle::ensure_loose()
}

/// Runs a statement on a table as its owner and no more, inside of what is done as the extension's: what the statement plans or
/// computes may be code of that owner. Gives the text in the first column of its first row.
pub fn on_table(relation: Oid, statement: &[u8]) -> Result<Option<String>, Error> {
    let Some(table) = Table::open(relation, Access::Read) else { return Ok(None) };
    let owner = table.owner();
    table.close();
    let statement = encoding::to_string(statement)?;
    security::as_table_owner_again(owner, || spi::text_once(&statement))
}

/// At the end of DDL: nobody declares a column by another owner's name. A superuser may: a restore does.
pub fn note_declarations(_: &EventTriggerCall) -> Result<(), Error> {
    if roles::is_superuser() || relations::owner_of_keys().is_err() {
        return Ok(());
    }
    security::as_owner(|| spi::execute("SELECT fieldcrypt_internal.refuse_taken_names()", &[]))?;
    Ok(())
}

/// The declarations of a relation, as JSON.
pub fn declarations(relation: Oid) -> Result<Value, Error> {
    let Some(table) = Table::open(relation, Access::Read) else { return Ok(json!([])) };
    let columns = table.columns();
    let name_of = |number: i16| {
        columns
            .iter()
            .find(|column| column.number == number)
            .map(|column| encoding::lossy(&column.name))
    };
    let declared = table.declarations()?.iter().map(|one| as_json(one, name_of)).collect();
    table.close();
    Ok(Value::Array(declared))
}

/// The declaration that a row of `pg_constraint` is, as JSON; `None` if it is none.
pub fn declared(
    relation: Oid,
    constraint: &[u8],
    expression: &[u8],
    is_believed: bool,
) -> Result<Option<Value>, Error> {
    let found = declarations::of_catalog(relation, constraint, expression, is_believed)?;
    let name_of = |number| Some(encoding::lossy(&declarations::column_name(relation, number)));
    Ok(found.map(|declaration| as_json(&declaration, name_of)))
}

fn as_json(declaration: &Declaration, name_of: impl Fn(i16) -> Option<String>) -> Value {
    let tenants = usize::from(declaration.tenant.is_some());
    json!({
        "attnum": declaration.column,
        "column_name": encoding::lossy(&declaration.column_name),
        "constraint_name": encoding::lossy(&declaration.constraint),
        "place_name": encoding::lossy(&declaration.name),
        "plaintext": declaration.form.name(),
        "tenant": declaration.tenant.and_then(&name_of),
        "key": declaration.place_columns().skip(tenants).filter_map(&name_of).collect::<Vec<_>>(),
        "is_believed": declaration.is_believed,
    })
}
