//! Protected columns: their declaration, and the trigger that binds what is written to them.

use fieldcrypt_envelope::{Binding, Form, Header, Part};
use pgrx::pg_sys::{Datum, Oid};

use crate::columns::{self, Wanted, note_declarations};
use crate::error::Error;
use crate::fields;
use crate::pg::declarations::with_context;
use crate::pg::key_values::KeyValues;
use crate::pg::triggers::TriggerCall;

crate::pg::sql_functions! {
    is_protected(value: encrypted_header, name: text!, plaintext: text!, tenant: text!, domain: text!, key: any!) -> boolean;
    protect_column(relation: regclass!, column_name: name!, key: texts, tenant: name, name: text, plaintext: text!) -> void;
    unprotect_column(relation: regclass!, column_name: name!) -> void = columns::unprotect;
    declarations(relation: oid!) -> text = columns::declarations;
    declared(relation: oid!, name: text!, expression: text!, is_believed: boolean!) -> text = columns::declared;
    on_table(relation: oid!, statement: text!) -> text = columns::on_table;
    trigger bind_values;
    event_trigger note_declarations;
}

/// What a CHECK constraint asks of each row. It needs no key, and so it can be asked before there are any.
fn is_protected(
    header: Option<&[u8]>,
    name: &[u8],
    plaintext: &[u8],
    _tenant: &[u8],
    _domain: &[u8],
    key: KeyValues<'_>,
) -> Result<bool, Error> {
    let Some(header) = header else { return Ok(true) };
    let Ok(Header { binding: Binding::Bound(place), form, .. }) = Header::parse(header) else {
        return Ok(false);
    };
    let is_form = form.name().as_bytes() == plaintext
        || str::from_utf8(plaintext).ok().and_then(Form::of_name) == Some(form);
    match key.behind(Part::Text(name))? {
        Some(parts) if is_form => {
            with_context(&parts, |context| fields::is_place_of(&place, context))
        }
        _ => Ok(false),
    }
}

fn protect_column(
    relation: Oid,
    column: &[u8],
    key: Option<Vec<&[u8]>>,
    tenant: Option<&[u8]>,
    name: Option<&[u8]>,
    plaintext: &[u8],
) -> Result<(), Error> {
    let form = str::from_utf8(plaintext).ok().and_then(Form::of_name);
    let form = form.ok_or(Error::Declaration {
        problem: "there is no such form of plaintexts".into(),
        hint: "Forms are: text, lower, digits, integer, numeric, date, timestamptz, uuid, boolean, jsonb.",
    })?;
    columns::protect(relation, &Wanted { column, key: key.as_deref(), tenant, name, form })
}

/// BEFORE INSERT and UPDATE, for each row, the last by its name.
fn bind_values(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    columns::bind(trigger)
}
