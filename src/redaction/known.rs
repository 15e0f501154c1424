//! The names that make a statement one about encrypted values: read from the catalogs where that is
//! allowed, kept for where it is not.

use std::cell::{Cell, RefCell};

use fieldcrypt_sql_text::{Names, OutOfMemory, Place};
use pgrx::pg_sys::Oid;

use super::own_names;
use crate::error::Error;
use crate::pg::dependents::{self, Dependent, Object};
use crate::pg::log_hook::{self, Relations};
use crate::pg::{apart, invalidations, report, reserve, schemas};

/// Objects that are followed. Beyond that every statement is one about encrypted values.
const OBJECTS: usize = 50_000;

/// Bytes of functions' sources that are looked into, so that a session's first line in the log is never
/// long in coming.
const SOURCES: usize = 8 << 20;

/// How often functions are looked through for calls of functions found before. Deeper than that, every statement
/// is one about encrypted values.
const PASSES: usize = 32;

/// Bytes that reading catalogs may need.
const READING: usize = 8 << 20;

/// Relations that changed since and can be looked at one by one.
const CHANGED: usize = 32;

/// Statements that are remembered, and how long they may be.
const CLEAN_TEXTS: usize = 8;
const LONGEST_CLEAN: usize = 2048;

struct Known {
    names: Names,
    /// Numbers of objects, sorted.
    objects: Vec<u64>,
    types: Vec<Oid>,
    domain_constraints: u64,
    is_everything: bool,
}

impl Known {
    const fn nothing() -> Self {
        Self {
            names: Names::new(),
            objects: Vec::new(),
            types: Vec::new(),
            domain_constraints: 0,
            is_everything: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Unread,
    Fresh,
    /// So many relations changed.
    Changed(usize),
    Stale,
}

thread_local! {
    static KNOWN: RefCell<Known> = const { RefCell::new(Known::nothing()) };
    static AGE: Cell<Age> = const { Cell::new(Age::Unread) };
    static CHANGED_RELATIONS: RefCell<[Oid; CHANGED]> = const { RefCell::new([Oid::INVALID; CHANGED]) };
    static CONSTRAINTS_CHANGED: Cell<bool> = const { Cell::new(false) };
    static WANTED: Cell<bool> = const { Cell::new(false) };
    /// Statements that mentioned none when so much had changed.
    static CLEAN: RefCell<[(u64, Vec<u8>); CLEAN_TEXTS]> = const { RefCell::new([const { (0, Vec::new()) }; CLEAN_TEXTS]) };
    static NEXT_CLEAN: Cell<usize> = const { Cell::new(0) };
    static CHANGES: Cell<u64> = const { Cell::new(1) };
    static IS_READING: Cell<bool> = const { Cell::new(false) };
    /// Whether reading came to its end once, and did not fail since.
    static HAS_READ: Cell<bool> = const { Cell::new(false) };
    /// Whether it failed, and nothing has changed since.
    static HAS_FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a text mentions, a name is, or a relation is one that is known. `true` if what is known is not up to
/// date.
pub fn mention(texts: &[&[u8]], names: &[&[u8]], relations: Relations) -> bool {
    if !is_fresh() {
        return true;
    }
    let mentions = KNOWN.try_with(|known| {
        let known = known.try_borrow().ok()?;
        Some(
            known.is_everything
                || texts.iter().any(|text| known.names.are_mentioned_in(text))
                || names.iter().any(|name| known.names.contain(name))
                || relations.any(|oid| {
                    known.objects.binary_search(&Object::Relation(oid).number()).is_ok()
                }),
        )
    });
    // At the exit of the process there is nothing known any more.
    mentions.ok().flatten().unwrap_or(true)
}

/// Whether a statement that begins mentions one, or a relation of its plan is one. Statements come again, at
/// the least when they are run after they were read.
pub fn begins(text: &[u8], relations: Relations) -> bool {
    if !is_fresh() {
        return true;
    }
    let is_clean = CLEAN.with(|clean| {
        clean
            .try_borrow()
            .is_ok_and(|clean| clean.iter().any(|(at, kept)| *at == CHANGES.get() && kept == text))
    });
    let is_known =
        mention(if is_clean { &[] } else { std::slice::from_ref(&text) }, &[], relations);
    if !is_known && !is_clean && text.len() <= LONGEST_CLEAN {
        CLEAN.with(|clean| {
            let Ok(mut clean) = clean.try_borrow_mut() else { return };
            let next = NEXT_CLEAN.replace(NEXT_CLEAN.get().wrapping_add(1)) % CLEAN_TEXTS;
            let Some((at, kept)) = clean.get_mut(next) else { return };
            kept.clear();
            if kept.try_reserve(text.len()).is_ok() {
                kept.extend_from_slice(text);
                *at = CHANGES.get();
            }
        });
    }
    is_known
}

/// Whether what is known is up to date, as far as this session has been told.
pub fn is_fresh() -> bool {
    AGE.get() == Age::Fresh && !IS_READING.get()
}

/// Says that the log needs to know.
pub fn want() {
    WANTED.set(true);
}

/// Whether the log needed to know before, or will.
#[inline]
pub fn is_wanted(will: bool) -> bool {
    will || WANTED.get()
}

/// A relation changed, or any may have. Called in callbacks of Postgres: nothing here can fail.
pub fn relation_changed(relation: Option<Oid>) {
    HAS_FAILED.set(false);
    CHANGES.set(CHANGES.get() + 1);
    let changed = match AGE.get() {
        Age::Unread | Age::Stale => return,
        Age::Fresh => 0,
        Age::Changed(changed) => changed,
    };
    let noted = relation.and_then(|relation| {
        CHANGED_RELATIONS
            .with(|all| all.try_borrow_mut().ok()?.get_mut(changed).map(|place| *place = relation))
    });
    AGE.set(if noted.is_some() { Age::Changed(changed + 1) } else { Age::Stale });
}

/// A constraint changed, of a table or a domain. Called in callbacks of Postgres, too.
pub fn constraint_changed() {
    CHANGES.set(CHANGES.get() + 1);
    CONSTRAINTS_CHANGED.set(true);
    if AGE.get() == Age::Fresh {
        AGE.set(Age::Changed(0));
    }
}

/// Where catalogs are to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// At the begin of a statement, where an error can be caught.
    Statement,
    /// In a line of the log that tells of one: an error would be one of the statement. So nothing is read there
    /// that was not read before without one.
    Line,
}

/// Brings what is known up to date with what any session has committed. Only where catalogs may be read; the
/// statement never fails by it but for want of memory, and is never held up by somebody who has locked a catalog. `false` if it can't be
/// told whether it is up to date.
pub fn refresh(at: ReadAt) -> bool {
    if IS_READING.get() || !log_hook::may_read_catalogs() || !reserve::has_cushion() {
        return false;
    }
    invalidations::accept_invalidations();
    if AGE.get() == Age::Fresh {
        return true;
    }
    if HAS_FAILED.get() {
        return false;
    }
    let outcome = match at {
        ReadAt::Statement if apart::is_possible() => apart::run(read_changes),
        // Where memory is short the line is masked: there an error would be one of the statement.
        ReadAt::Line if HAS_READ.get() && reserve::room(READING, "names").is_ok() => {
            apart::undisturbed(read_changes);
            Ok(())
        }
        _ => return false,
    };
    if let Err(state) = outcome {
        HAS_FAILED.set(true);
        report::log(&format!(
            "the names for fieldcrypt.redact_logs can't be read (SQLSTATE {}): all statements are masked",
            state.as_str()
        ));
    }
    is_fresh()
}

fn read_changes() {
    let reading = Reading::begin();
    let Some(locks) = dependents::lock_without_waiting() else { return };
    dependents::in_own_context(|| {
        // What changes while this reads makes another round.
        for _ in 0..3 {
            let constraints_changed = CONSTRAINTS_CHANGED.replace(false);
            let age = AGE.replace(Age::Fresh);
            let read_all = match age {
                Age::Fresh => break,
                Age::Changed(changed) => may_concern(changed, constraints_changed),
                Age::Unread | Age::Stale => true,
            };
            if read_all && read().is_err() {
                AGE.set(Age::Stale);
                return;
            }
        }
        HAS_READ.set(true);
    });
    dependents::unlock(locks);
    drop(reading);
}

fn may_concern(changed: usize, constraints_changed: bool) -> bool {
    let relations = CHANGED_RELATIONS.with(|all| all.try_borrow().map(|all| *all));
    let Ok(relations) = relations else { return true };
    let constraints = constraints_changed.then(dependents::domain_constraints);
    let Ok(constraints) = constraints.transpose() else { return true };
    KNOWN.with(|known| match known.try_borrow() {
        Ok(known) => {
            !known.objects.is_empty()
                && (constraints.is_some_and(|now| now != known.domain_constraints)
                    || relations
                        .iter()
                        .take(changed)
                        .any(|relation| dependents::may_concern(*relation, &known.types)))
        }
        Err(_) => true,
    })
}

/// Set while catalogs are read; an error makes what is known stale.
struct Reading;

impl Reading {
    fn begin() -> Self {
        IS_READING.set(true);
        Self
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        IS_READING.set(false);
        if std::thread::panicking() {
            AGE.set(Age::Stale);
            HAS_FAILED.set(true);
            // The next time only where an error is caught.
            HAS_READ.set(false);
        }
    }
}

/// Follows everything that depends on the extension, or that names it where it is not. Names stay known as long as the session
/// lives: it may have prepared a statement with one that something no longer has, and goes on after DROP EXTENSION.
fn read() -> Result<(), Unreadable> {
    let mut search = Search {
        known: Known::nothing(),
        waiting: Vec::new(),
        schemas: schemas::ALL.map(|name| schemas::oid(name).unwrap_or(Oid::INVALID)),
    };
    search.known.domain_constraints = dependents::domain_constraints()?;
    own_names::add_to(&mut search.known.names)?;
    if let Some(extension) = dependents::extension() {
        let mut members = Vec::new();
        let mut result = Ok(());
        dependents::of(
            Object::Extension(extension),
            &mut |dependent| match members.try_reserve(1) {
                Ok(()) => members.push(dependent),
                Err(_) => result = Err(OutOfMemory),
            },
        )?;
        result?;
        for member in members {
            search.member(member)?;
        }
        search.follow()?;
    }
    search.read_sources()?;
    KNOWN.with(|place| {
        let Ok(mut place) = place.try_borrow_mut() else { return Err(Unreadable) };
        search.known.names.add_all(&place.names)?;
        *place = search.known;
        Ok(())
    })
}

/// What depends on the extension can't be told: memory is short, or a catalog is not as it should be.
struct Unreadable;

impl From<OutOfMemory> for Unreadable {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self
    }
}

impl From<Error> for Unreadable {
    fn from(_: Error) -> Self {
        Self
    }
}

struct Search {
    known: Known,
    waiting: Vec<Object>,
    /// The extension's own schemas, which are known by their names: the users', and that of internals.
    schemas: [Oid; 2],
}

impl Search {
    fn follow(&mut self) -> Result<(), Unreadable> {
        while let Some(object) = self.waiting.pop() {
            let mut result = Ok(());
            let mut found = Vec::new();
            let mut find = |dependent| match found.try_reserve(1) {
                Ok(()) => found.push(dependent),
                Err(_) => result = Err(OutOfMemory),
            };
            dependents::of(object, &mut find)?;
            if let Object::Relation(relation) = object {
                dependents::parents(relation, &mut find)?;
                // A composite type is a relation that depends on its type, the other way round than a table.
                if let Some(row) = dependents::row_type(relation) {
                    find(Dependent::Type(row));
                }
            }
            result?;
            for dependent in found {
                self.found(dependent)?;
            }
        }
        Ok(())
    }

    /// What the extension itself has. Its operators and aggregates have names of everyday (`=`, `max`) and take an
    /// encrypted value: the statement names where it has that from.
    fn member(&mut self, member: Dependent) -> Result<(), OutOfMemory> {
        match member {
            Dependent::Operator(oid) => self.is_new(Object::Operator(oid)).map(|_| ()),
            Dependent::Function(oid) if dependents::is_aggregate(oid) => {
                self.is_new(Object::Function(oid)).map(|_| ())
            }
            other => self.found(other),
        }
    }

    fn found(&mut self, dependent: Dependent) -> Result<(), OutOfMemory> {
        match dependent {
            Dependent::Column(relation, column) => {
                if self.relation(relation)?
                    && let Some(name) = dependents::column(relation, column)
                {
                    self.known.names.add(&name, Place::Code)?;
                }
            }
            Dependent::Relation(relation) => {
                self.relation(relation)?;
            }
            Dependent::Type(oid) => {
                if self.is_new(Object::Type(oid))? {
                    self.known.types.try_reserve(1).map_err(|_| OutOfMemory)?;
                    self.known.types.push(oid);
                    if let Some(name) = dependents::type_name(oid) {
                        self.known.names.add(&name, Place::Code)?;
                    }
                }
            }
            Dependent::Function(oid) => {
                // Internals take no values, and have names that applications may have for their own; who calls
                // one names its schema.
                if self.is_new(Object::Function(oid))?
                    && let Some((name, schema)) = dependents::function(oid)
                    && schema != self.schemas[1]
                {
                    self.known.names.add(&name, Place::Call)?;
                }
            }
            Dependent::Operator(oid) => {
                if self.is_new(Object::Operator(oid))?
                    && let Some(name) = dependents::operator(oid)
                {
                    self.known.names.add(&name, Place::Operator)?;
                }
            }
            // Nameless in statements: what matters is what depends on them.
            Dependent::OperatorClass(oid) => {
                self.is_new(Object::OperatorClass(oid))?;
            }
            Dependent::OperatorFamily(oid) => {
                self.is_new(Object::OperatorFamily(oid))?;
            }
            Dependent::Anything => self.known.is_everything = true,
        }
        Ok(())
    }

    /// Whether the relation is one that statements name.
    fn relation(&mut self, oid: Oid) -> Result<bool, OutOfMemory> {
        let Some((name, kind, schema)) = dependents::relation(oid) else { return Ok(false) };
        if b"iI".contains(&kind) {
            // Writing to its table computes what is in it.
            if let Some(table) = dependents::indexed_table(oid) {
                self.relation(table)?;
            }
            return Ok(false);
        }
        if self.schemas.contains(&schema) || !b"rpvmfc".contains(&kind) {
            return Ok(false);
        }
        self.known.names.add(&name, Place::Anywhere)?;
        self.is_new(Object::Relation(oid))?;
        Ok(true)
    }

    fn is_new(&mut self, object: Object) -> Result<bool, OutOfMemory> {
        let Err(place) = self.known.objects.binary_search(&object.number()) else {
            return Ok(false);
        };
        if self.known.objects.len() >= OBJECTS {
            self.known.is_everything = true;
            return Ok(false);
        }
        self.known.objects.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.waiting.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.known.objects.insert(place, object.number());
        self.waiting.push(object);
        Ok(true)
    }

    /// Functions whose source names what is known, and what depends on them.
    fn read_sources(&mut self) -> Result<(), Unreadable> {
        for _ in 0..PASSES {
            let (names, schemas) = (&self.known.names, self.schemas);
            let mut found = Vec::new();
            let mut left = SOURCES;
            let mut result = Ok(());
            dependents::function_sources(&mut |oid, of, source| {
                if schemas.contains(&of) || left < source.len() {
                    return;
                }
                left -= source.len();
                if self.known.objects.binary_search(&Object::Function(oid).number()).is_err()
                    && names.are_mentioned_in_body(source)
                {
                    match found.try_reserve(1) {
                        Ok(()) => found.push(Dependent::Function(oid)),
                        Err(_) => result = Err(OutOfMemory),
                    }
                }
            })?;
            result?;
            if found.is_empty() {
                return Ok(());
            }
            for function in found {
                self.found(function)?;
            }
            self.follow()?;
        }
        self.known.is_everything = true;
        Ok(())
    }
}
