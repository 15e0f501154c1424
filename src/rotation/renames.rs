//! Contexts are remembered by name, so that a dump restores them; when something is called otherwise, they follow.
//!
//! What the names mean is looked up before the statement and kept in the session until its end: nothing is written, and
//! nobody's lock waited for, but about the tables that the statement itself has locked.

use std::cell::RefCell;

use crate::error::Error;
use crate::pg::alterations::Altered;
use crate::pg::drops::EventTriggerCall;
use crate::pg::spi::{self, Parameter};
use crate::pg::{relations, schemas, security};

thread_local! {
    /// What was found before statements that have not ended: the statement, and a JSON document.
    static BEFORE: RefCell<Vec<(usize, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
}

/// Statements inside statements that are known at a time. One that fails is forgotten only when there are more.
const DEPTH: usize = 64;

/// At the start and at the end of each ALTER.
pub fn note_alter(trigger: &EventTriggerCall) -> Result<(), Error> {
    // Where the extension's own have other names, one of them may be just about to get back its name.
    if !trigger.alters() || !schemas::hold(c"column_contexts") {
        return Ok(());
    }
    let statement = trigger.statement();
    let known = BEFORE.with_borrow_mut(|before| {
        // At a start this forgets what is left of a statement that failed and had the same place: one each is known.
        before.iter().position(|(of, _)| *of == statement).map(|at| before.remove(at))
    });
    if !trigger.is_at_start() {
        let Some((_, found)) = known else { return Ok(()) };
        security::as_owner(|| {
            spi::execute(
                "SELECT fieldcrypt_internal.after_alter($1)",
                &[Parameter::Text(Some(&found))],
            )
        })?;
        return Ok(());
    }
    let (what, object) = match trigger.altered() {
        None => return Ok(()),
        // What the extension itself takes away, it means to.
        Some(Altered::Relation(oid)) if security::guards_are_open() => {
            (b"our relation".as_slice(), oid.to_u32())
        }
        Some(Altered::Relation(oid)) => (b"relation".as_slice(), oid.to_u32()),
        Some(Altered::Schema(oid)) => (b"schema".as_slice(), oid.to_u32()),
        Some(Altered::Extension) => (b"extension".as_slice(), 0),
        Some(Altered::Leaves(oid)) => (b"leaves".as_slice(), oid.to_u32()),
    };
    if relations::owner_of_keys().is_err() {
        return Ok(());
    }
    let found = security::as_owner(|| {
        spi::first_row(
            "SELECT fieldcrypt_internal.before_alter($1, $2::pg_catalog.oid)",
            &[Parameter::Text(Some(what)), Parameter::BigInt(Some(object.into()))],
            |row| row.bytes(1).map(<[u8]>::to_vec),
        )
    })?;
    if let Some(found) = found.filter(|found| !found.is_empty()) {
        BEFORE.with_borrow_mut(|before| {
            if before.len() >= DEPTH {
                before.remove(0);
            }
            before.push((statement, found));
        });
    }
    Ok(())
}
