//! What the trigger of a table does with each row that is written: in each protected column stands a value that is bound
//! to its row, or the statement fails.

use fieldcrypt_envelope::{AnyCiphertext, BoundCiphertext, Expected, Header, Kind};
use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::fields;
use crate::pg::declarations::Declaration;
use crate::pg::triggers::{Operation, TriggerCall};
use crate::pg::values::Varlena;
use crate::pg::{encoding, plaintexts, security};
use crate::usage;

/// BEFORE INSERT and UPDATE, for each row. Where nothing is to do, headers are all that is read.
pub fn bind(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    if !trigger.is_before() || !trigger.is_for_each_row() {
        return Err(Error::WrongTrigger { made_by: "protect_column" });
    }
    let declarations = trigger.declarations()?;
    let kept = trigger.kept(RIGHTS + declarations.len() * Arrived::LENGTH);
    let (rights, arrived) = kept.split_at_mut(RIGHTS);
    let mut rights = Rights(rights);
    let mut changes = Vec::new();
    for (declaration, arrived) in declarations.iter().zip(arrived.chunks_mut(Arrived::LENGTH)) {
        let column =
            Column { trigger, declaration, rights: &mut rights, arrived: Arrived(arrived) };
        if let Some(value) = column.bound()? {
            changes.push((declaration.column, value.into_datum()));
        }
    }
    if changes.is_empty() {
        return Ok(trigger.row_datum());
    }
    Ok(trigger.row_with(&changes))
}

/// A protected column of the row that is written.
struct Column<'t, 'k> {
    trigger: &'t TriggerCall,
    declaration: &'t Declaration,
    rights: &'t mut Rights<'k>,
    arrived: Arrived<'k>,
}

impl<'t> Column<'t, '_> {
    /// The value that the row gets in place of the one that was written; `None` if that may stay.
    fn bound(mut self) -> Result<Option<Varlena>, Error> {
        let is_insert = self.trigger.operation() == Operation::Insert;
        if is_insert {
            self.arrived.forget();
        }
        let number = self.declaration.column;
        let Some(header) = self.trigger.beginning_after(number, Header::MAX_LENGTH) else {
            return Ok(None);
        };
        let header = match Header::parse(header) {
            Ok(header) => header,
            Err(_) => return self.not_bound().map(Some),
        };
        let is_loose = header.kind() == Kind::Loose;
        if !is_loose && !is_insert && self.is_untouched() {
            return Ok(None);
        }
        // A key that is NULL is refused by the column of the key; and no constraint takes a value without one.
        let Some(place) = self.declaration.place_of(|number| self.trigger.after(number))? else {
            return Ok(None);
        };
        if is_loose {
            return self.bind_loose(&place, is_insert);
        }
        if header.is_expected(Expected::Place(&place)) && header.form == self.declaration.form {
            return Ok(None);
        }
        if !is_insert {
            if self.arrived.is(&header) {
                let value = self.value();
                let tenant = self.tenant()?;
                let plaintext = fields::take_out(&parsed(value)?, Expected::Any)?;
                return self.seal(&tenant, &place, plaintext).map(Some);
            }
            let old_place = self.declaration.place_of(|number| self.trigger.before(number))?;
            if let Some(old_place) = old_place
                && old_place != place
                && header.is_expected(Expected::Place(&old_place))
                && header.form == self.declaration.form
            {
                return self.move_along(&old_place, &place).map(Some);
            }
        }
        Err(self.foreign(&header))
    }

    /// Whether an UPDATE leaves the value and the place as they are, of a row that is known to meet the declaration.
    fn is_untouched(&self) -> bool {
        self.declaration.is_believed
            && self.trigger.is_kept(self.declaration.column)
            && self.declaration.place_columns().all(|number| !self.trigger.is_changed(number))
    }

    /// Plaintext that came in is sealed for its row, which needs the right to encrypt. If the row has it already, its value
    /// stays as it is: who compares bytes sees no change then.
    fn bind_loose(&mut self, place: &str, is_insert: bool) -> Result<Option<Varlena>, Error> {
        self.rights.refuse_unless(ENCRYPT)?;
        let value = self.value();
        let loose = parsed(value)?;
        let mut plaintext = fields::take_out_loose(&loose, value)
            .map_err(|error| usage::decrypt_failed(value, error))?;
        let form = self.declaration.form;
        if loose.header().form != form {
            let converted = plaintexts::converted(
                loose.header().form,
                plaintext.bytes_mut(),
                form,
                Varlena::of,
            );
            plaintext.wipe();
            plaintext = converted.map_err(|error| self.named(error))?;
        }
        if !is_insert && let Some(old) = self.same_as_before(place, plaintext.bytes_mut())? {
            return Ok(Some(old));
        }
        let tenant = self.tenant()?;
        let sealed = self.seal(&tenant, place, plaintext)?;
        if is_insert {
            self.arrived.note(&sealed);
        }
        Ok(Some(sealed))
    }

    /// The value that the row had, if it is of the same plaintext. Who may not decrypt is not told so, by the same bytes.
    fn same_as_before(&mut self, place: &str, plaintext: &[u8]) -> Result<Option<Varlena>, Error> {
        let old_place = self.declaration.place_of(|number| self.trigger.before(number))?;
        if old_place.as_deref() != Some(place) || !self.rights.has(DECRYPT) {
            return Ok(None);
        }
        let Some(bytes) = self.trigger.bytes_before(self.declaration.column) else {
            return Ok(None);
        };
        let Ok(old) = BoundCiphertext::parse(bytes) else { return Ok(None) };
        if old.header().form != self.declaration.form || old.body().len() != plaintext.len() {
            return Ok(None);
        }
        // What does not open is not the same; and it is to be replaced just now.
        let mut before = match fields::take_out(&old, Expected::Place(place)) {
            Ok(before) => before,
            Err(error) if error.is_of_one_value() => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_same = before.bytes_mut() == plaintext;
        before.wipe();
        if is_same { Varlena::of(bytes).map(Some) } else { Ok(None) }
    }

    /// A row's key, or its tenant, is changed by this statement, and the value goes along. With the right to change keys
    /// alone three statements would give two people's values to each other.
    fn move_along(&mut self, old_place: &str, place: &str) -> Result<Varlena, Error> {
        // A foreign key's ON UPDATE runs with the rights of the table's owner. Who has changed the key that it follows is the
        // user outside.
        if security::is_by_foreign_key() {
            if !security::outer_user_may(fields::REENCRYPT) {
                for (function, right) in
                    [(fields::DECRYPT, "decrypt"), (fields::ENCRYPT, "encrypt")]
                {
                    if !security::outer_user_may(function) {
                        return Err(Error::LacksRight { right });
                    }
                }
            }
        } else if !self.rights.has(REENCRYPT) {
            self.rights.refuse_unless(DECRYPT)?;
            self.rights.refuse_unless(ENCRYPT)?;
        }
        let value = self.value();
        let bound = parsed(value)?;
        let plaintext = fields::take_out(&bound, Expected::Place(old_place))
            .map_err(|error| usage::decrypt_failed(value, error))?;
        let tenant = match self.declaration.tenant {
            Some(_) => self.tenant()?,
            None => fields::tenant_of(&bound)?,
        };
        self.seal(&tenant, place, plaintext)
    }

    fn seal(&self, tenant: &[u8], place: &str, mut plaintext: Varlena) -> Result<Varlena, Error> {
        let form = self.declaration.form;
        let sealed = fields::seal_bound(tenant, form, place, plaintext.bytes_mut());
        plaintext.wipe();
        sealed
    }

    /// What the row says of its tenant, else what the session does.
    fn tenant(&self) -> Result<Vec<u8>, Error> {
        let named = self.declaration.tenant_of(|number| self.trigger.after(number))?;
        if let Some(named) = &named
            && named.is_empty()
        {
            return Err(Error::TenantName(
                fieldcrypt_envelope::tenant_name::TenantNameProblem::Empty,
            ));
        }
        fields::tenant_of_call(named.as_deref().unwrap_or_default()).map(<[u8]>::to_vec)
    }

    fn value(&self) -> &'t [u8] {
        self.trigger.bytes_after(self.declaration.column).unwrap_or_default()
    }

    /// A value of `encrypt_field`, which no row can be known to be that of, or none at all.
    fn not_bound(&self) -> Result<Varlena, Error> {
        let value = self.value();
        let key = AnyCiphertext::parse(value)?.key_id();
        let error = Error::NotBound { key, column: self.name() };
        Err(usage::decrypt_failed(value, error))
    }

    fn foreign(&self, header: &Header) -> Error {
        let error = Error::NotOfThisPlace { key: header.key_id, column: Some(self.name()) };
        usage::decrypt_failed(self.value(), error)
    }

    fn named(&self, error: Error) -> Error {
        match error {
            Error::NotOfForm { form, .. } => Error::NotOfForm { form, column: Some(self.name()) },
            other => other,
        }
    }

    fn name(&self) -> String {
        encoding::lossy(&self.declaration.column_name)
    }
}

fn parsed(bytes: &[u8]) -> Result<BoundCiphertext<'_>, Error> {
    Ok(BoundCiphertext::parse(bytes)?)
}

/// What arrived loose in this column in the statement's last INSERT of a row, and what it was sealed as. `ON CONFLICT DO
/// UPDATE` names it as EXCLUDED, sealed for a row that was proposed and is not made. Of one row only: whatever is kept longer
/// lets a statement copy a value that it has not brought.
struct Arrived<'k>(&'k mut [u8]);

impl Arrived<'_> {
    const LENGTH: usize = 1 + Header::MAX_LENGTH;

    fn forget(&mut self) {
        self.0[0] = 0;
    }

    fn note(&mut self, sealed: &Varlena) {
        let header = sealed.bytes();
        let length = header.len().min(Header::MAX_LENGTH);
        self.0[1..=length].copy_from_slice(&header[..length]);
        self.0[0] = 1;
    }

    fn is(&self, header: &Header) -> bool {
        self.0[0] == 1 && Header::parse(&self.0[1..]) == Ok(*header)
    }
}

/// Rights that the statement's user was found to have: looked up once, not once a row. The user is part of it, since one
/// statement may run code of several.
struct Rights<'k>(&'k mut [u8]);

/// Bytes of it: the user, and two bits for each right.
const RIGHTS: usize = 5;

struct Right {
    function: &'static std::ffi::CStr,
    name: &'static str,
    bits: u32,
}

const ENCRYPT: Right = Right { function: fields::ENCRYPT, name: "encrypt", bits: 0 };
const DECRYPT: Right = Right { function: fields::DECRYPT, name: "decrypt", bits: 2 };
const REENCRYPT: Right = Right { function: fields::REENCRYPT, name: "reencrypt", bits: 4 };

impl Rights<'_> {
    fn has(&mut self, right: Right) -> bool {
        const KNOWN: u8 = 1;
        const HELD: u8 = 2;
        let user = security::user().to_ne_bytes();
        if self.0[..4] != user {
            self.0[..4].copy_from_slice(&user);
            self.0[4] = 0;
        }
        if (self.0[4] >> right.bits) & KNOWN == 0 {
            let held = if security::may(right.function) { HELD } else { 0 };
            self.0[4] |= (KNOWN | held) << right.bits;
        }
        (self.0[4] >> right.bits) & HELD != 0
    }

    fn refuse_unless(&mut self, right: Right) -> Result<(), Error> {
        let name = right.name;
        if self.has(right) { Ok(()) } else { Err(Error::LacksRight { right: name }) }
    }
}
