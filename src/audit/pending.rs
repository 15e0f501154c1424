//! Changes of audited tables wait here until the part of the statement that made them ends, and are then written
//! together: one row of the log a changed row, in the order of the changes, as if each had been written at once.
//!
//! Id, time and author of a row are taken when the change is seen. A row is written in the subtransaction
//! that made the change, or a parent of it, and is dropped with it: what is rolled back leaves nothing, and a
//! trigger's block with EXCEPTION that fails takes no row of its surroundings along.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use fieldcrypt_audit::LogRow;
use pgrx::pg_sys::{Datum, SubTransactionId};

use super::{Details, mac_key, row, write};
use crate::error::Error;
use crate::events::Event;
use crate::keyring;
use crate::pg::client::{Author, Client};
use crate::pg::executor::{self, Keeper};
use crate::pg::json::{Jsonb, OwnedJsonb};
use crate::pg::log_insert::{LogInsert, Values};
use crate::pg::memory::Scratch;
use crate::pg::{clock, encoding, log_table, reserve, security, transaction};
use row::columns;

/// What a change is refused with that can't wait.
const NO_ROOM: Error = Error::OutOfMemory { what: "rows of the audit log" };

/// Rows that wait at most, in one part of a statement.
const MOST_ROWS: usize = 1000;
/// Bytes that they take at most, unless one row alone takes more.
const MOST_BYTES: usize = 1 << 20;

/// What rows of one table, event and author have in common.
pub struct Kind {
    event: Event,
    author: Author,
    client: Client,
    transaction_id: u64,
    table_name: Rc<[u8]>,
    partition_name: Option<Rc<[u8]>>,
    /// Whether there was a key for the log when its next id is dealt.
    has_key: Cell<bool>,
    /// A row of this kind, as it is sealed. The next one takes its place.
    sealed: RefCell<LogRow>,
}

/// Encrypted columns that changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed(pub Vec<Vec<u8>>);

/// A row that waits.
struct Waiting {
    subtransaction: SubTransactionId,
    kind: Rc<Kind>,
    changed: Rc<Changed>,
    id: i64,
    /// Whether there was a key for the log before it got its id: else it is written without a MAC, whatever
    /// there is by then (see [`write::key_and_ids`]).
    has_key: bool,
    at: i64,
    row_key: Option<OwnedJsonb>,
    old_row_key: Option<OwnedJsonb>,
    /// Where the row lies as it is sealed, in the queue's bytes.
    encoded: Range<usize>,
}

#[derive(Default)]
struct Queue {
    rows: Vec<Waiting>,
    bytes: Vec<u8>,
    kinds: Vec<Rc<Kind>>,
    encoded: Vec<u8>,
}

thread_local! {
    static QUEUE: RefCell<Queue> = RefCell::new(Queue::default());
    static WAITING: Cell<usize> = const { Cell::new(0) };
    /// Rows before this one are of those who are around what is going on now.
    static MARK: Cell<usize> = const { Cell::new(0) };
}

/// Is told of the ends of parts of statements.
pub fn init() {
    executor::keep(Keeper {
        keeps: || WAITING.get() > MARK.get(),
        enters: || MARK.replace(WAITING.get()),
        ends: write_own,
        leaves: |mark| MARK.set(mark.min(WAITING.get())),
    });
}

/// What a row is called.
pub struct RowKey<'a> {
    /// As it is stored.
    pub document: Jsonb<'a>,
    /// As `jsonb_out` writes that, in the database's encoding.
    pub text: Vec<u8>,
}

/// A change of a row.
pub struct Change<'a> {
    /// What happened.
    pub event: Event,
    /// The table at the top.
    pub table_name: &'a Rc<[u8]>,
    /// The partition, if it is another one.
    pub partition_name: Option<&'a Rc<[u8]>>,
    /// The row.
    pub row_key: Option<&'a RowKey<'a>>,
    /// What it was called before.
    pub old_row_key: Option<&'a RowKey<'a>>,
    /// Encrypted columns that changed.
    pub changed: &'a Rc<Changed>,
}

/// Records a change with its transaction.
pub fn add(change: &Change<'_>) -> Result<(), Error> {
    super::HAS_RECORDED.set(true);
    let kind = QUEUE
        .with_borrow(|queue| queue.kinds.iter().rev().find(|kind| kind.is_of(change)).cloned());
    let kind = match kind {
        Some(kind) => kind,
        None => {
            // First, since a key that is made now is recorded too.
            let has_key = mac_key::active().is_some();
            let kind = Rc::new(Kind::of(change, has_key));
            QUEUE.with_borrow_mut(|queue| queue.kinds.push(Rc::clone(&kind)));
            kind
        }
    };
    let (id, has_key) = kind.next_id()?;
    let at = clock::now();
    let subtransaction = transaction::current_subtransaction();
    let is_full = QUEUE.with_borrow_mut(|queue| {
        kind.seal_as(id, at, change).encode(&mut queue.encoded);
        let document =
            |key: Option<&RowKey<'_>>| key.map(|key| key.document.to_owned()).transpose();
        let (row_key, old_row_key) = (document(change.row_key)?, document(change.old_row_key)?);
        let Queue { bytes, encoded, .. } = queue;
        reserve::may_fail(|| bytes.try_reserve(encoded.len())).map_err(|_| NO_ROOM)?;
        let start = bytes.len();
        bytes.extend_from_slice(encoded);
        let encoded = start..bytes.len();
        reserve::may_fail(|| queue.rows.try_reserve(1)).map_err(|_| NO_ROOM)?;
        let changed = Rc::clone(change.changed);
        queue.rows.push(Waiting {
            subtransaction,
            kind,
            changed,
            id,
            has_key,
            at,
            row_key,
            old_row_key,
            encoded,
        });
        WAITING.set(queue.rows.len());
        Ok::<_, Error>(
            queue.rows.len().saturating_sub(MARK.get()) >= MOST_ROWS
                || queue.bytes.len() >= MOST_BYTES,
        )
    })?;
    if is_full || !executor::will_see_the_end() { write_own() } else { Ok(()) }
}

/// Writes what waits and was brought about by what is going on now, in this subtransaction.
fn write_own() -> Result<(), Error> {
    let subtransaction = transaction::current_subtransaction();
    let (rows, base, bytes) = QUEUE.with_borrow_mut(|queue| {
        let from = MARK.get().min(queue.rows.len());
        let others = queue.rows.iter().skip(from);
        let from = from + others.take_while(|row| row.subtransaction != subtransaction).count();
        queue.split_off(from)
    });
    store(&rows, &|place: &Range<usize>| &bytes[place.start - base..place.end - base])
}

/// A transaction is about to be committed or prepared. What is done outside of any statement still waits.
pub fn before_commit() -> Result<(), Error> {
    if WAITING.get() == 0 {
        return Ok(());
    }
    MARK.set(0);
    write_own()
}

/// Nothing waits any more. Called where nothing may fail.
pub fn transaction_ended() {
    MARK.set(0);
    WAITING.set(0);
    in_callback(|queue| {
        // A kind is of one transaction, also if no row of it came to wait.
        if !queue.kinds.is_empty() || !queue.rows.is_empty() {
            *queue = Queue::default();
        }
    });
}

/// Changes of a subtransaction are its parent's. Called where nothing may fail.
pub fn subtransaction_committed(child: SubTransactionId, parent: SubTransactionId) {
    if WAITING.get() > 0 {
        in_callback(|queue| {
            for row in queue.rows.iter_mut().rev().take_while(|row| row.subtransaction >= child) {
                row.subtransaction = parent;
            }
        });
    }
}

/// Changes of a subtransaction, and of those inside it, are gone. Called where nothing may fail.
pub fn subtransaction_gone(child: SubTransactionId) {
    if WAITING.get() > 0 {
        in_callback(|queue| {
            let is_left = |row: &Waiting| row.subtransaction < child;
            let left = queue.rows.iter().rposition(is_left).map_or(0, |last| last + 1);
            drop(queue.split_off(left));
        });
    }
}

/// Out of reach is the queue only while it is in use, in which nothing ends a transaction.
fn in_callback(work: impl FnOnce(&mut Queue)) {
    let _ = QUEUE.try_with(|queue| queue.try_borrow_mut().map(|mut queue| work(&mut queue)));
}

impl Queue {
    /// Takes the rows from this one on out of it: these, and their bytes, with the place where those began.
    fn split_off(&mut self, from: usize) -> (Vec<Waiting>, usize, Vec<u8>) {
        let base = self.rows.get(from).map_or(self.bytes.len(), |row| row.encoded.start);
        let taken = if from == 0 {
            self.kinds.clear();
            (std::mem::take(&mut self.rows), 0, std::mem::take(&mut self.bytes))
        } else {
            (self.rows.split_off(from), base, self.bytes.split_off(base))
        };
        WAITING.set(self.rows.len());
        taken
    }
}

impl Kind {
    fn of(change: &Change<'_>, has_key: bool) -> Self {
        let client = Client::now();
        let details = Details {
            table_name: Some(change.table_name),
            partition_name: change.partition_name.map(|name| &**name),
            changed_columns: Some(&[]),
            ..Details::default()
        };
        let transaction_id = transaction::transaction_id();
        let mut sealed = row::of(0, 0, change.event, &client, &details);
        sealed.transaction_id = Some(transaction_id);
        Self {
            event: change.event,
            author: Author::now(),
            client,
            transaction_id,
            table_name: Rc::clone(change.table_name),
            partition_name: change.partition_name.map(Rc::clone),
            has_key: Cell::new(has_key),
            sealed: RefCell::new(sealed),
        }
    }

    /// The next row's id, and whether there was a key before it was dealt.
    fn next_id(&self) -> Result<(i64, bool), Error> {
        let id = log_table::next_log_id()?;
        if self.has_key.get() {
            return Ok((id, true));
        }
        if mac_key::active().is_none() {
            return Ok((id, false));
        }
        self.has_key.set(true);
        Ok((log_table::next_log_id()?, true))
    }

    fn is_of(&self, change: &Change<'_>) -> bool {
        self.event == change.event
            && Rc::ptr_eq(&self.table_name, change.table_name)
            && match (&self.partition_name, change.partition_name) {
                (Some(one), Some(other)) => Rc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            }
            && self.author.is_now()
    }

    /// A row of this kind, as it is sealed.
    fn seal_as(&self, id: i64, at: i64, change: &Change<'_>) -> std::cell::RefMut<'_, LogRow> {
        fn replace(text: &mut Option<String>, by: Option<&RowKey<'_>>) {
            match by {
                None => *text = None,
                Some(by) => {
                    let text = text.get_or_insert_default();
                    text.clear();
                    text.push_str(&encoding::as_utf8(&by.text));
                }
            }
        }
        let mut row = self.sealed.borrow_mut();
        row.id = id;
        row.at = clock::unix_time(at);
        replace(&mut row.row_key, change.row_key);
        replace(&mut row.old_row_key, change.old_row_key);
        let names = row.changed_columns.get_or_insert_default();
        let changed = change.changed.0.iter().map(|name| encoding::as_utf8(name));
        if !names.iter().map(String::as_str).eq(changed.clone()) {
            *names = changed.map(std::borrow::Cow::into_owned).collect();
        }
        row
    }

    /// The columns that its rows have in common.
    fn values(&self) -> Result<Values, Error> {
        let details = Details {
            table_name: Some(&self.table_name),
            partition_name: self.partition_name.as_deref(),
            ..Details::default()
        };
        let mut values = write::values_of(self.event, &self.client, &details)?;
        write::set(&mut values, columns::TRANSACTION_ID, Datum::from(self.transaction_id));
        Ok(values)
    }
}

/// Writes rows, whose bytes are found by `at`.
fn store<'b>(rows: &[Waiting], at: &dyn Fn(&Range<usize>) -> &'b [u8]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mac_key = mac_key::active();
    let macs = mac_key.and_then(|key_id| {
        let macs = keyring::with_audit_key(key_id, |key| {
            let mac = |row: &Waiting| row.has_key.then(|| key.mac(at(&row.encoded)));
            rows.iter().map(mac).collect::<Vec<_>>()
        });
        macs.ok().map(|macs| (key_id, macs))
    });
    security::as_owner(|| {
        let mut insert = LogInsert::begin()?;
        if let Some(insert) = &mut insert {
            let times = || rows.iter().map(|row| row.at);
            if let (Some(earliest), Some(latest)) = (times().min(), times().max()) {
                insert.expect(earliest, latest);
            }
        }
        let mut common: Option<(&Rc<Kind>, Values)> = None;
        let mut names: Option<(&Rc<Changed>, Datum)> = None;
        let scratch = Scratch::new();
        for (index, row) in rows.iter().enumerate() {
            let mut values = match common {
                Some((kind, values)) if Rc::ptr_eq(kind, &row.kind) => values,
                _ => common.insert((&row.kind, row.kind.values()?)).1,
            };
            let changed = match names {
                Some((changed, datum)) if Rc::ptr_eq(changed, &row.changed) => datum,
                _ => names.insert((&row.changed, write::texts(&row.changed.0)?)).1,
            };
            scratch.run(|| {
                let mut set = |column, datum| write::set(&mut values, column, datum);
                set(columns::ID, Datum::from(row.id));
                set(columns::AT, Datum::from(row.at));
                set(columns::CHANGED_COLUMNS, changed);
                if let Some(key) = &row.row_key {
                    set(columns::ROW_KEY, key.borrow().datum());
                }
                if let Some(key) = &row.old_row_key {
                    set(columns::OLD_ROW_KEY, key.borrow().datum());
                }
                if let Some((key_id, macs)) = &macs
                    && let Some(mac) = &macs[index]
                {
                    write::set_mac(&mut values, *key_id, mac)?;
                }
                let is_written = match &mut insert {
                    Some(insert) => insert.add(&values)?,
                    None => false,
                };
                if is_written { Ok(()) } else { write::by_statement(&values) }
            })?;
        }
        scratch.end();
        if let Some(insert) = insert {
            insert.finish();
        }
        Ok(())
    })
}
