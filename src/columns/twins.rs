//! Columns of which one takes over from the other: what the trigger does that keeps them alike, and the steps by which one
//! column is encrypted into another.
//!
//! The trigger asks for no right of who writes: the table's owner, who has them, has said that what is written to one column
//! is to be in the other, too.

use std::cell::Cell;

use fieldcrypt_envelope::{BoundCiphertext, Expected, Form, Header};
use pgrx::pg_sys::{Datum, Oid};
use serde_json::json;

use crate::error::Error;
use crate::fields;
use crate::pg::declarations::Declaration;
use crate::pg::spi::{self, Parameter};
use crate::pg::text_forms::AnyValue;
use crate::pg::triggers::{self, TriggerCall};
use crate::pg::twins::{Step, Twins, is_replica};
use crate::pg::values::Varlena;
use crate::pg::{callbacks, encoding, json, plaintexts, roles, security, transaction};

thread_local! {
    static LAST_STEP: Cell<Option<LastStep>> = const { Cell::new(None) };
}

/// What this session did last of a migration.
#[derive(Clone, Copy)]
struct LastStep {
    transaction: u64,
    relation: Oid,
    /// Whether it said that values are to be verified: only then are they compared.
    is_to_verify: bool,
}

impl LastStep {
    /// That of this transaction.
    fn current() -> Option<Self> {
        LAST_STEP.get().filter(|step| step.transaction == callbacks::transaction_serial())
    }
}

/// Does a step for the table's owner; gives what it has to say, as JSON.
pub fn step(relation: Oid, name: &[u8], arguments: &[u8]) -> Result<String, Error> {
    security::refuse_for_planted_code()?;
    if transaction::is_read_only() {
        return Err(Error::NotWritable);
    }
    // Who has only the table may be rid of the old column, and have it back.
    if matches!(name, b"drop" | b"undo" | b"lock") {
        roles::refuse_unless_owner(relation)?;
    } else {
        roles::refuse_unless_owner_by_himself(relation)?;
        security::refuse_unless_executable(fields::ENCRYPT, "encrypt")?;
        security::refuse_unless_executable(fields::DECRYPT, "decrypt")?;
    }
    let told = security::as_owner(|| {
        spi::text(
            "SELECT fieldcrypt_internal.migration_step($1::pg_catalog.oid, $2, $3::pg_catalog.jsonb)::pg_catalog.text",
            &[
                Parameter::BigInt(Some(i64::from(relation.to_u32()))),
                Parameter::Text(Some(name)),
                Parameter::Text(Some(arguments)),
            ],
        )
    })?;
    let told = told.unwrap_or_else(|| "null".into());
    let transaction = callbacks::transaction_serial();
    let is_to_verify = is_to_verify(name, &told);
    LAST_STEP.set(Some(LastStep { transaction, relation, is_to_verify }));
    Ok(told)
}

fn is_to_verify(step: &[u8], told: &str) -> bool {
    step == b"next"
        && serde_json::from_str::<serde_json::Value>(told).is_ok_and(|told| told["do"] == "verify")
}

/// Whether a value opens in its place and holds what is given. Who asks could as well guess, and so it is granted with
/// decrypt, is recorded as any decryption is, and is answered only where a step has just said that values are to be verified.
pub fn is_sealed_as(
    value: Option<&[u8]>,
    place: Option<&[u8]>,
    plaintext: &AnyValue,
    modifier: Option<i32>,
) -> Result<bool, Error> {
    if !LastStep::current().is_some_and(|step| step.is_to_verify) {
        return Err(Error::BorrowedHands {
            problem: "this is asked while a column is being encrypted, and by nobody else",
            hint: "CALL fieldcrypt.encrypt_column(...) verifies each value itself.",
        });
    }
    let Some(value) = value else { return Ok(plaintext.is_null()) };
    let place = encoding::to_string(place.ok_or(Error::NullArgument("place"))?)?;
    if plaintext.is_null() {
        return Ok(false);
    }
    let Ok(bound) = BoundCiphertext::parse(value) else { return Ok(false) };
    let mut opened = Varlena::of(bound.body())?;
    match fields::open_recorded(
        &bound,
        Expected::Place(&place),
        place.as_bytes(),
        opened.bytes_mut(),
    ) {
        Ok(()) => {}
        Err(error) if error.is_of_one_value() => return Ok(false),
        Err(error) => return Err(error),
    }
    let is_same = is_plaintext(bound.header().form, opened.bytes(), plaintext, modifier);
    opened.wipe();
    is_same
}

/// Byte by byte what the column has, or, for one that was written as the encrypted one, what it makes of it: it may have a
/// length or a precision.
fn is_plaintext(
    form: Form,
    opened: &[u8],
    column: &AnyValue,
    modifier: Option<i32>,
) -> Result<bool, Error> {
    let is = |value: &AnyValue, bytes: &[u8]| {
        Ok(plaintexts::of_column(value, form, |plaintext| Ok(plaintext == bytes))? == Some(true))
    };
    let (false, Some(modifier)) = (is(column, opened)?, modifier) else {
        return is(column, opened);
    };
    let made = plaintexts::as_in_column(form, opened, column, modifier)?;
    let is_same = plaintexts::of_column(&made, form, |plaintext| is(column, plaintext))?;
    Ok(is_same == Some(true))
}

/// BEFORE INSERT and UPDATE, for each row: before values are bound to it, or, if the new column is the one that is written,
/// after that.
pub fn carry(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    let Some(twins) = trigger.twins() else { return Err(Error::NotATrigger) };
    trigger.once_of_twins(|| refuse_unless_owner_may(trigger, twins.step))?;
    let declarations = trigger.declarations()?;
    let declaration = declarations.iter().find(|declared| declared.column == twins.value);
    let row = Row { trigger, twins };
    let declaration =
        declaration.ok_or_else(|| row.lost("the declaration of the encrypted column is gone"))?;
    // A key that is NULL is refused by the column of the key.
    let Some(place) = declaration.place_of(|number| trigger.after(number))? else {
        return Ok(trigger.row_datum());
    };
    let old_place = declaration.place_of(|number| trigger.before(number))?;
    let row = Keyed { row, declaration, has_moved: old_place.as_ref() != Some(&place), place };
    match twins.step {
        Step::Encrypt => row.encrypt(),
        Step::Mark => row.mark(),
        Step::Decrypt => row.decrypt(),
        Step::Forget => row.forget(),
    }
}

/// The trigger does for whoever writes what the table's owner has the right to: who lost it, or made the trigger without it,
/// gets nothing done.
fn refuse_unless_owner_may(trigger: &TriggerCall, step: Step) -> Result<(), Error> {
    let (function, right) = match step {
        Step::Encrypt | Step::Mark => (fields::ENCRYPT, "encrypt"),
        Step::Decrypt | Step::Forget => (fields::DECRYPT, "decrypt"),
    };
    if security::role_may(function, trigger.owner()) {
        return Ok(());
    }
    Err(Error::OwnerLacksRight { right, table: encoding::lossy(&trigger.relation_name()) })
}

struct Row<'t> {
    trigger: &'t TriggerCall,
    twins: Twins,
}

impl Row<'_> {
    fn name(&self, column: i16) -> String {
        encoding::lossy(&self.trigger.name_of(column))
    }

    fn lost(&self, problem: &'static str) -> Error {
        Error::TwinIsLost { twin: self.name(self.twins.plaintext), problem }
    }

    /// Whether this is the write of a step, which has made the value for the row as it is.
    fn is_of_step(&self) -> bool {
        LastStep::current().is_some_and(|step| step.relation == self.trigger.root())
    }
}

/// A row, its place and whether that is another one than before.
struct Keyed<'t> {
    row: Row<'t>,
    declaration: &'t Declaration,
    place: String,
    has_moved: bool,
}

impl Keyed<'_> {
    /// What is written to the old column is sealed for its row. A value that was written to the new one is not looked at.
    fn encrypt(&self) -> Result<Option<Datum>, Error> {
        let (trigger, Twins { plaintext, value, .. }) = (self.row.trigger, self.row.twins);
        if trigger.after(plaintext).is_none() {
            return Ok(trigger.row_with_one(value, None));
        }
        if !trigger.is_insert()
            && !self.has_moved
            && !trigger.is_changed(plaintext)
            && let Some(old) = trigger.bytes_before(value)
            && self.is_in_place(old)
        {
            if !trigger.is_changed(value) {
                return Ok(trigger.row_datum());
            }
            return Ok(trigger.row_with_one(value, Some(Varlena::of(old)?.into_datum())));
        }
        let form = self.declaration.form;
        let tenant = self.tenant()?;
        let given = trigger.value_after(plaintext);
        let sealed = plaintexts::of_column(&given, form, |bytes| {
            fields::seal_bound(&tenant, form, &self.place, bytes)
        });
        Ok(trigger.row_with_one(value, sealed?.map(Varlena::into_datum)))
    }

    /// Only who has called encrypt_column can read the old column: the row comes to him.
    fn mark(&self) -> Result<Option<Datum>, Error> {
        let (trigger, Twins { plaintext, value, .. }) = (self.row.trigger, self.row.twins);
        if !trigger.is_insert() {
            if self.row.is_of_step() && !trigger.changes_another_than(value) {
                return Ok(trigger.row_datum());
            }
            if !self.has_moved && !trigger.changes_another_than(value) {
                let old = trigger.bytes_before(value).map(Varlena::of).transpose()?;
                return Ok(trigger.row_with_one(value, old.map(Varlena::into_datum)));
            }
        }
        if trigger.after(plaintext).is_some() {
            self.note()?;
        }
        Ok(trigger.row_with_one(value, None))
    }

    /// What is written to the new column, bound to its row by now, is opened for the old one.
    fn decrypt(&self) -> Result<Option<Datum>, Error> {
        let (trigger, Twins { plaintext, .. }) = (self.row.trigger, self.row.twins);
        if !trigger.is_insert() {
            self.refuse_if_twin_is_written()?;
        }
        match self.new_plaintext()? {
            None => Ok(trigger.row_datum()),
            Some(None) => {
                self.refuse_if_twin_is_written()?;
                Ok(trigger.row_with_one(plaintext, None))
            }
            Some(Some(opened)) => {
                let (type_oid, modifier) = trigger.type_of(plaintext);
                let form = self.declaration.form;
                // A row that moves to another partition is inserted there with both.
                let is_twin =
                    plaintexts::of_column(&trigger.value_after(plaintext), form, |bytes| {
                        Ok(trigger.is_insert() && bytes == opened.bytes())
                    });
                let datum = plaintexts::for_column(form, opened.bytes(), type_oid, modifier);
                opened.wipe();
                if is_twin? == Some(true) {
                    return Ok(trigger.row_datum());
                }
                self.refuse_if_twin_is_written()?;
                let twin = self.row.name(plaintext);
                let datum = datum?.ok_or(Error::NotOfTwin { twin })?;
                Ok(trigger.row_with_one(plaintext, Some(datum)))
            }
        }
    }

    /// Only who undoes it can write the old column.
    fn forget(&self) -> Result<Option<Datum>, Error> {
        let (trigger, Twins { plaintext, value, .. }) = (self.row.trigger, self.row.twins);
        if self.row.is_of_step() && !trigger.is_insert() && !trigger.is_changed(value) {
            return Ok(trigger.row_datum());
        }
        if !trigger.is_insert() {
            self.refuse_if_twin_is_written()?;
        }
        match self.new_plaintext()? {
            None => Ok(trigger.row_datum()),
            Some(None) => {
                self.refuse_if_twin_is_written()?;
                Ok(trigger.row_with_one(plaintext, None))
            }
            // Also of a row that moves to another partition: what it had there can't be known to be the same.
            Some(Some(opened)) => {
                opened.wipe();
                self.note()?;
                Ok(trigger.row_with_one(plaintext, None))
            }
        }
    }

    /// The plaintext that the new column has now; `None` if it is the one that it had. What is the same under another key,
    /// or for a key of the row that was changed, changes nothing.
    fn new_plaintext(&self) -> Result<Option<Option<Varlena>>, Error> {
        let (trigger, value) = (self.row.trigger, self.row.twins.value);
        if !trigger.is_insert() && !trigger.is_changed(value) {
            return Ok(None);
        }
        let Some(bytes) = trigger.bytes_after(value) else { return Ok(Some(None)) };
        let opened =
            fields::take_out(&BoundCiphertext::parse(bytes)?, Expected::Place(&self.place))?;
        let before = trigger.bytes_before(value).map(BoundCiphertext::parse);
        if let Some(Ok(before)) = before
            && trigger.before(self.row.twins.plaintext).is_some()
        {
            match fields::take_out(&before, Expected::Any) {
                Ok(before) => {
                    let is_same = before.bytes() == opened.bytes();
                    before.wipe();
                    if is_same {
                        return Ok(None);
                    }
                }
                Err(error) if error.is_of_one_value() => {}
                Err(error) => return Err(error),
            }
        }
        let value = BoundCiphertext::parse(bytes)?;
        if fields::is_just_bound(value.header()) {
            return Ok(Some(Some(opened)));
        }
        // What stands in the old column then is seen by who reads it: as any decryption it needs a tenant, and is recorded.
        opened.wipe();
        let mut shown = Varlena::of(value.body())?;
        let place = &self.place;
        fields::open_bound(&value, Expected::Place(place), place.as_bytes(), shown.bytes_mut())?;
        Ok(Some(Some(shown)))
    }

    fn refuse_if_twin_is_written(&self) -> Result<(), Error> {
        let (trigger, Twins { plaintext, value, .. }) = (self.row.trigger, self.row.twins);
        if !trigger.is_changed(plaintext) {
            return Ok(());
        }
        Err(Error::TwinIsWritten { twin: self.row.name(plaintext), column: self.row.name(value) })
    }

    fn is_in_place(&self, value: &[u8]) -> bool {
        Header::parse(value).is_ok_and(|header| {
            header.is_expected(Expected::Place(&self.place)) && header.form == self.declaration.form
        })
    }

    /// What the row says of its tenant, else what the session does.
    fn tenant(&self) -> Result<Vec<u8>, Error> {
        let trigger = self.row.trigger;
        let named = self.declaration.tenant_of(|number| trigger.after(number))?;
        if let Some(b"") = named.as_deref() {
            return Err(Error::TenantName(
                fieldcrypt_envelope::tenant_name::TenantNameProblem::Empty,
            ));
        }
        fields::tenant_of_call(named.as_deref().unwrap_or_default()).map(<[u8]>::to_vec)
    }

    /// Notes the row's key. A table of ours takes nothing from where other servers' changes are applied.
    fn note(&self) -> Result<(), Error> {
        if is_replica() {
            return Err(self.row.lost("session_replication_role is replica here"));
        }
        let trigger = self.row.trigger;
        let tenants = usize::from(self.declaration.tenant.is_some());
        let key = self
            .declaration
            .place_columns()
            .skip(tenants)
            .filter_map(|number| {
                let datum = trigger.after(number)?;
                Some(encoding::lossy(&triggers::output(datum, trigger.type_of(number).0)))
            })
            .collect::<Vec<_>>();
        let key = json::in_database_encoding(&json!(key))?;
        security::as_owner(|| {
            spi::execute(
                "INSERT INTO fieldcrypt_internal.migration_marks (relation, place_name, row_key) VALUES ($1::pg_catalog.oid, $2, $3)",
                &[
                    Parameter::BigInt(Some(i64::from(trigger.root().to_u32()))),
                    Parameter::Text(Some(&self.declaration.name)),
                    Parameter::Text(Some(&key)),
                ],
            )
        })?;
        Ok(())
    }
}
