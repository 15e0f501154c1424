//! Sealing: rows of the log become leaves of a Merkle tree, whose checkpoints others sign.
//!
//! A row becomes a leaf when it is seen: what is committed and has no leaf gets the next numbers. So a
//! transaction that commits late is sealed late, and nothing depends on the order of transaction ids.
//! The tree's right edge is kept in this process; a transaction that rolls back drops it, and it is made
//! anew from the last checkpoint and the rows sealed since.

use std::cell::RefCell;

use fieldcrypt_audit::tree::Hash;
use fieldcrypt_audit::{Checkpoint, CompactRange, Frontier, LogRow, Note, Place};
use pgrx::pg_sys::BuiltinOid;

use super::notes;
use super::origin::{self, Origin};
use super::queue::QueuedEvent;
use super::row::{self, sealed_text, since_1970, since_2000};
use super::settings;
use crate::error::Error;
use crate::keyring;
use crate::pg::spi::{self, Parameter};
use crate::pg::{arrays, audit_memory, catalog, encoding, report, session};

/// What a step did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sealed {
    /// Rows that became leaves.
    pub rows: u64,
    /// Whether there may be more.
    pub has_more: bool,
    /// Whether a checkpoint is due.
    pub is_due: bool,
}

/// What is to be signed: the leaves since the last checkpoint.
pub struct Unsigned {
    /// The log.
    pub origin: Origin,
    /// The tree as of the last checkpoint that was stored.
    pub stored: Frontier,
    /// The hash of that checkpoint, if it is one of this origin.
    pub previous: Option<Hash>,
    /// The leaves since.
    pub range: CompactRange,
    /// The tree with them.
    pub frontier: Frontier,
    /// The signing key that the log knows: its row and its text.
    pub signer: Option<(i64, String)>,
}

/// Gives the next leaf numbers to committed rows that have none, at most `limit` of them. Nothing happens
/// in a database whose log is not to be sealed yet (see [`origin`]).
pub fn seal_step(limit: usize) -> Result<Sealed, Error> {
    with_tree(|tree| {
        let now = session::now();
        // Rows that commit late have low ids. To look for them among rows that were sealed lately is
        // dear as long as an old transaction keeps dead index entries, so it is done less often.
        let all = now >= tree.look_back_at;
        let after = if all { tree.looked_until } else { tree.highest_id };
        let mut rows: Vec<(i64, i64)> = Vec::new();
        let mut hashes = Vec::new();
        let mut encoded = Vec::new();
        with_index_scans(|| {
            spi::each_row(
                "SELECT l.* FROM fieldcrypt.audit_log AS l
                  WHERE l.leaf IS NULL AND l.id OPERATOR(pg_catalog.>) $1
                  ORDER BY l.id LIMIT $2",
                &[Parameter::BigInt(Some(after)), Parameter::BigInt(Some(limit as i64))],
                |found| {
                    let row = row::read(found)?;
                    row.encode(&mut encoded);
                    hashes.push(row.leaf_hash(&encoded));
                    rows.push((row.id, found.bigint(row::columns::AT)?));
                    Ok(())
                },
            )
        })?;
        let has_more = rows.len() == limit;
        tree.is_complete = false;
        if all {
            let end = rows.last().filter(|_| has_more).map_or(0, |(id, _)| *id);
            tree.looked_until = end;
            tree.is_complete = !has_more;
            if !has_more {
                let took = session::now() - now;
                tree.look_back_at = now + (20 * took).max(LOOK_BACK_PAUSE);
            }
        }
        let first = tree.frontier.size();
        for ((id, _), hash) in rows.iter().zip(&hashes) {
            tree.push(*hash);
            tree.highest_id = tree.highest_id.max(*id);
        }
        if !rows.is_empty() {
            let touched = with_index_scans(|| number(&rows, first))?;
            if touched != rows.len() as u64 {
                return Err(Error::Internal("rows to be sealed are gone".into()));
            }
        }
        Ok(tree.sealed(rows.len(), has_more))
    })
    .map(Option::unwrap_or_default)
}

/// Whether everything that was committed before the last step has a leaf. If not, the next step sees to
/// it: for who is about to leave.
pub fn is_complete() -> bool {
    TREE.with_borrow_mut(|tree| {
        tree.as_mut().is_none_or(|tree| {
            if !tree.is_complete {
                tree.look_back_at = 0;
            }
            tree.is_complete
        })
    })
}

/// How long stragglers may wait at least, in microseconds.
const LOOK_BACK_PAUSE: i64 = 2_000_000;

fn number(rows: &[(i64, i64)], first: u64) -> Result<u64, Error> {
    let ids = arrays::of_numbers(BuiltinOid::INT8OID, rows.iter().map(|(id, _)| Some(*id)))?;
    let times = rows.iter().map(|(_, at)| Some(*at));
    let times = arrays::of_numbers(BuiltinOid::TIMESTAMPTZOID, times)?;
    spi::execute(
        "UPDATE fieldcrypt.audit_log AS l
            SET leaf = $3 OPERATOR(pg_catalog.+) u.place OPERATOR(pg_catalog.-) 1
           FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) WITH ORDINALITY AS u (id, at, place)
          WHERE l.id OPERATOR(pg_catalog.=) u.id AND l.at OPERATOR(pg_catalog.=) u.at",
        &[
            Parameter::Made(BuiltinOid::INT8ARRAYOID, Some(ids)),
            Parameter::Made(BuiltinOid::TIMESTAMPTZARRAYOID, Some(times)),
            Parameter::BigInt(Some(first as i64)),
        ],
    )
}

/// Runs what must go by indexes, whatever the statistics of a log that was just begun say.
fn with_index_scans<R>(work: impl FnOnce() -> R) -> R {
    let settings = session::TemporarySettings::begin(&[
        (c"enable_seqscan", c"off"),
        (c"enable_hashjoin", c"off"),
        (c"enable_mergejoin", c"off"),
        (c"enable_material", c"off"),
        (c"enable_bitmapscan", c"off"),
        (c"jit", c"off"),
    ]);
    let result = work();
    settings.end();
    result
}

/// Writes events that outlived their transactions: with id, MAC and, where the log is sealed, leaf.
pub fn write_events(events: &[QueuedEvent]) -> Result<Sealed, Error> {
    if events.is_empty() {
        return Ok(Sealed::default());
    }
    let sealed = with_tree(|tree| {
        let first = tree.frontier.size();
        let ids = insert(events, Some(first), |hash| tree.push(hash))?;
        tree.highest_id = ids.into_iter().fold(tree.highest_id, i64::max);
        Ok(tree.sealed(events.len(), false))
    })?;
    match sealed {
        Some(sealed) => Ok(sealed),
        None => session::as_owner(|| insert(events, None, |_| ())).map(|_| Sealed::default()),
    }
}

fn insert(
    events: &[QueuedEvent],
    first_leaf: Option<u64>,
    mut leaf: impl FnMut(Hash),
) -> Result<Vec<i64>, Error> {
    let mac_key = keyring::active_audit_key();
    let mut ids = Vec::with_capacity(events.len());
    let mut macs: Vec<Option<[u8; 32]>> = Vec::with_capacity(events.len());
    let mut encoded = Vec::new();
    let text = |bytes: &[u8]| encoding::as_utf8(bytes).into_owned();
    for event in events {
        let id = catalog::next_log_id()?;
        let key_ids = (event.key_ids.len() > 1).then(|| event.key_ids.clone());
        let mut row = LogRow {
            id,
            at: since_1970(event.at),
            event: event.event.clone(),
            actor: text(&event.client.actor),
            role: text(&event.client.role),
            client_address: event.client.address.clone(),
            application: Some(text(&event.client.application)),
            backend_pid: event.client.process,
            tenant: sealed_text(event.tenant.as_deref()),
            key_id: event.key_id(),
            reason: sealed_text(event.reason.as_deref()),
            error_code: event.error_code.clone(),
            value_count: event.value_count,
            key_ids,
            ..LogRow::default()
        };
        row.encode(&mut encoded);
        let mac = super::authenticate(mac_key, &encoded);
        row.mac = mac.map(|(_, mac)| mac.to_vec());
        row.mac_key_id = mac.map(|(key_id, _)| key_id.as_i64());
        leaf(row.leaf_hash(&encoded));
        ids.push(id);
        macs.push(mac.map(|(_, mac)| mac));
    }
    store(events, &ids, &macs, mac_key.map(|key_id| key_id.as_i64()), first_leaf)?;
    Ok(ids)
}

fn store(
    events: &[QueuedEvent],
    ids: &[i64],
    macs: &[Option<[u8; 32]>],
    mac_key_id: Option<i64>,
    first_leaf: Option<u64>,
) -> Result<(), Error> {
    fn texts<'a>(
        events: &'a [QueuedEvent],
        of: impl Fn(&'a QueuedEvent) -> Option<&'a [u8]>,
    ) -> Result<Parameter<'static>, Error> {
        let array = arrays::of_bytes(BuiltinOid::TEXTOID, events.iter().map(of))?;
        Ok(Parameter::Made(BuiltinOid::TEXTARRAYOID, Some(array)))
    }
    let bigints = |list: &mut dyn Iterator<Item = Option<i64>>| {
        arrays::of_numbers(BuiltinOid::INT8OID, list)
            .map(|array| Parameter::Made(BuiltinOid::INT8ARRAYOID, Some(array)))
    };
    let times =
        arrays::of_numbers(BuiltinOid::TIMESTAMPTZOID, events.iter().map(|one| Some(one.at)))?;
    let processes = events.iter().map(|one| Some(i64::from(one.client.process)));
    let processes = arrays::of_numbers(BuiltinOid::INT4OID, processes)?;
    let macs = arrays::of_bytes(
        BuiltinOid::BYTEAOID,
        macs.iter().map(|mac| mac.as_ref().map(|mac| &mac[..])),
    )?;
    // An array of arrays is not taken apart by unnest.
    let lists: Vec<Option<String>> = events
        .iter()
        .map(|one| {
            let list: Vec<String> = one.key_ids.iter().map(i64::to_string).collect();
            (list.len() > 1).then(|| format!("{{{}}}", list.join(",")))
        })
        .collect();
    let lists = arrays::of_bytes(
        BuiltinOid::TEXTOID,
        lists.iter().map(|list| list.as_ref().map(String::as_bytes)),
    )?;
    let written = spi::execute(
        "INSERT INTO fieldcrypt.audit_log
                (id, at, event, actor, role, client_address, application, backend_pid, tenant, key_id,
                 reason, error_code, value_count, key_ids, mac, mac_key_id, leaf)
         SELECT u.id, u.at, u.event, u.actor, u.role, u.client_address::pg_catalog.inet, u.application,
                u.backend_pid, u.tenant, u.key_id, u.reason, u.error_code, u.value_count,
                u.key_ids::pg_catalog.int8[], u.mac, CASE WHEN u.mac IS NOT NULL THEN $15 END,
                $16 OPERATOR(pg_catalog.+) u.place OPERATOR(pg_catalog.-) 1
           FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),
                           pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), pg_catalog.unnest($12), pg_catalog.unnest($13), pg_catalog.unnest($14), pg_catalog.unnest($17))
                WITH ORDINALITY
                AS u (id, at, event, actor, role, client_address, application, backend_pid, tenant, key_id,
                      reason, error_code, value_count, key_ids, mac, place)",
        &[
            bigints(&mut ids.iter().copied().map(Some))?,
            Parameter::Made(BuiltinOid::TIMESTAMPTZARRAYOID, Some(times)),
            texts(events, |one| Some(one.event.as_bytes()))?,
            texts(events, |one| Some(&one.client.actor))?,
            texts(events, |one| Some(&one.client.role))?,
            texts(events, |one| one.client.address.as_deref().map(str::as_bytes))?,
            texts(events, |one| Some(&one.client.application))?,
            Parameter::Made(BuiltinOid::INT4ARRAYOID, Some(processes)),
            texts(events, |one| one.tenant.as_deref())?,
            bigints(&mut events.iter().map(QueuedEvent::key_id))?,
            texts(events, |one| one.reason.as_deref())?,
            texts(events, |one| one.error_code.as_deref().map(str::as_bytes))?,
            bigints(&mut events.iter().map(|one| one.value_count))?,
            Parameter::Made(BuiltinOid::TEXTARRAYOID, Some(lists)),
            Parameter::BigInt(mac_key_id),
            Parameter::BigInt(first_leaf.map(|leaf| leaf as i64)),
            Parameter::Made(BuiltinOid::BYTEAARRAYOID, Some(macs)),
        ],
    )?;
    if written == ids.len() as u64 {
        Ok(())
    } else {
        Err(Error::Internal("not every event was written".into()))
    }
}

/// What the next checkpoint is to state. `None` where the log is not sealed. It may be that nothing is
/// new: whoever asks knows whether another checkpoint of the same size is wanted.
pub fn unsigned() -> Result<Option<Unsigned>, Error> {
    with_tree(|tree| {
        Ok(Unsigned {
            origin: tree.origin.clone(),
            stored: tree.stored.clone(),
            previous: tree.previous,
            range: tree.range.clone(),
            frontier: tree.frontier.clone(),
            signer: tree.signer.clone(),
        })
    })
}

/// Stores a signed checkpoint of this log, of the tree as it is or was since the last one.
pub fn store_checkpoint(note: &str, signer_id: i64) -> Result<(), Error> {
    let malformed = || Error::Internal("the signed checkpoint is none of this log".into());
    let text = Note::parse(note).map_err(|_| malformed())?;
    let checkpoint = Checkpoint::parse(text.text()).map_err(|_| malformed())?;
    let stored = with_tree(|tree| {
        let frontier = tree.at(checkpoint.size)?.ok_or_else(malformed)?;
        if checkpoint.log_id() != Some(tree.origin.log) || frontier.root() != checkpoint.root {
            return Err(malformed());
        }
        let now = session::now();
        spi::execute(
            "INSERT INTO fieldcrypt.audit_checkpoints
                    (id, size, at, root, frontier, signer_id, origin_id, is_final, note)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8 OPERATOR(pg_catalog.=) 1, $9)",
            &[
                Parameter::BigInt(Some(catalog::next_log_id()?)),
                Parameter::BigInt(Some(checkpoint.size as i64)),
                Parameter::Time(Some(now)),
                Parameter::Bytea(&checkpoint.root),
                Parameter::Bytea(&frontier.to_bytes()),
                Parameter::BigInt(Some(signer_id)),
                Parameter::BigInt(Some(tree.origin.id)),
                Parameter::Integer(i32::from(checkpoint.is_final())),
                Parameter::Text(Some(&notes::to_database(note))),
            ],
        )?;
        if frontier.size() == tree.frontier.size() {
            tree.range = CompactRange::new(frontier.size());
        } else {
            tree.range = leaves_from(frontier.size(), |_| ())?;
        }
        tree.stored = frontier;
        tree.previous = Some(checkpoint.hash());
        tree.since = now;
        Ok(())
    })?;
    stored.ok_or_else(malformed)
}

/// Stores a new signing key of this log, and gives its row's id.
pub fn store_signer(signer: &NewSigner<'_>) -> Result<i64, Error> {
    let stored = with_tree(|tree| {
        let id = catalog::next_log_id()?;
        spi::execute(
            "INSERT INTO fieldcrypt.audit_signers
                    (id, origin_id, public_key, introduced_at, introduced_by, from_size, is_clean, proof)
             VALUES ($1, $2, $3, $4, $5, $6, $7 OPERATOR(pg_catalog.=) 1, $8)",
            &[
                Parameter::BigInt(Some(id)),
                Parameter::BigInt(Some(tree.origin.id)),
                Parameter::Text(Some(signer.public_key.as_bytes())),
                Parameter::Time(Some(since_2000(signer.at))),
                Parameter::Text(Some(signer.introduced_by.as_bytes())),
                Parameter::BigInt(Some(signer.from_size as i64)),
                Parameter::Integer(i32::from(signer.is_clean)),
                Parameter::Text(Some(&notes::to_database(signer.proof))),
            ],
        )?;
        tree.signer = Some((id, signer.public_key.to_owned()));
        Ok(id)
    })?;
    stored.ok_or_else(|| Error::Internal("the log of this database is not sealed yet".into()))
}

/// A signing key that is new to the log.
pub struct NewSigner<'a> {
    /// Its text form.
    pub public_key: &'a str,
    /// Who vouches for it: `successor`, `mac` or `itself`.
    pub introduced_by: &'static str,
    /// When, in microseconds since 1970: it may have waited long for something to sign.
    pub at: i64,
    /// Leaves when it was introduced.
    pub from_size: u64,
    /// Whether everything before was sealed.
    pub is_clean: bool,
    /// The statement that introduces it.
    pub proof: &'a str,
}

/// The tree, as far as this process has it.
struct Tree {
    origin: Origin,
    frontier: Frontier,
    stored: Frontier,
    previous: Option<Hash>,
    range: CompactRange,
    signer: Option<(i64, String)>,
    since: i64,
    highest_id: i64,
    /// When rows with low ids are looked for again, and up to which id that was done by now.
    look_back_at: i64,
    looked_until: i64,
    /// Whether the last step has looked at all rows without a leaf.
    is_complete: bool,
}

thread_local! {
    static TREE: RefCell<Option<Tree>> = const { RefCell::new(None) };
}

/// A transaction rolled back that may have sealed. Called where nothing may fail.
pub fn transaction_gone() {
    let _ = TREE.try_with(|tree| tree.try_borrow_mut().map(|mut tree| *tree = None));
}

/// Calls `work` with the tree, as the only one who seals and the owner of the tables; `None` where the log
/// is not to be sealed yet. After an error the tree is made anew.
fn with_tree<R>(work: impl FnOnce(&mut Tree) -> Result<R, Error>) -> Result<Option<R>, Error> {
    session::as_owner(|| {
        catalog::lock_sealing()?;
        let current = origin::current().and_then(|origin| {
            let Some(origin) = origin else { return Ok(None) };
            let known = TREE.take().filter(|tree| tree.origin.id == origin.id);
            known.map_or_else(|| Tree::load(origin), Ok).map(Some)
        });
        let mut tree = match current {
            Ok(Some(tree)) => tree,
            Ok(None) => return Ok(None),
            // Nothing can be sealed any more; but what happens is recorded.
            Err(Error::KeyTable(problem)) => {
                tell_of_damage(&problem);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let result = work(&mut tree)?;
        TREE.set(Some(tree));
        Ok(Some(result))
    })
}

/// Once, until something else is wrong.
fn tell_of_damage(problem: &str) {
    if let Some(queue) = audit_memory::of_database(session::database())
        && queue.status().problem.as_deref() != Some(problem)
    {
        queue.set_problem(Some(problem));
        report::log(&format!("pg_fieldcrypt: the audit log is not sealed: {problem}"));
    }
}

/// The tree over all leaves that the tables tell of, and the hash of its last checkpoint.
pub fn loaded_frontier() -> Result<Frontier, Error> {
    let mut frontier = last_checkpoint()?.map(|(_, frontier, ..)| frontier).unwrap_or_default();
    let range = leaves_from(frontier.size(), |_| ())?;
    frontier.append_range(&range).map_err(|_| {
        Error::KeyTable("the leaves of the audit log do not follow its last checkpoint".into())
    })?;
    Ok(frontier)
}

impl Tree {
    fn load(origin: Origin) -> Result<Self, Error> {
        let (stored, previous, since) = match last_checkpoint()? {
            Some((origin_id, frontier, note, at)) if origin_id == origin.id => {
                let hash = Note::parse(&note)
                    .ok()
                    .and_then(|note| Checkpoint::parse(note.text()).ok())
                    .map(|checkpoint| checkpoint.hash());
                (frontier, hash, at)
            }
            // The first key of an origin vouches for all that it goes on from.
            before => {
                let frontier = before.map(|(_, frontier, ..)| frontier).unwrap_or_default();
                (frontier_between(frontier, origin.old_size)?, None, origin.at)
            }
        };
        let mut highest_id = 0;
        let range = leaves_from(stored.size(), |id| highest_id = highest_id.max(id))?;
        let mut frontier = stored.clone();
        frontier.append_range(&range).map_err(|_| {
            Error::KeyTable("the leaves of the audit log do not follow its last checkpoint".into())
        })?;
        let signer = last_signer(origin.id)?;
        Ok(Self {
            origin,
            frontier,
            stored,
            previous,
            range,
            signer,
            since,
            highest_id,
            look_back_at: 0,
            looked_until: 0,
            is_complete: false,
        })
    }

    fn push(&mut self, leaf: Hash) {
        self.frontier.append(leaf);
        self.range.push(leaf);
    }

    fn sealed(&self, rows: usize, has_more: bool) -> Sealed {
        let unsigned = self.frontier.size() - self.stored.size();
        let waited = session::now() - self.since >= settings::seal_interval();
        Sealed {
            rows: rows as u64,
            has_more,
            is_due: unsigned >= settings::SEAL_ROWS || unsigned > 0 && waited,
        }
    }

    /// The tree when it had this many leaves, if that was not before the last checkpoint.
    fn at(&self, size: u64) -> Result<Option<Frontier>, Error> {
        if size == self.frontier.size() {
            return Ok(Some(self.frontier.clone()));
        }
        if size < self.stored.size() || size > self.frontier.size() {
            return Ok(None);
        }
        frontier_between(self.stored.clone(), size).map(Some)
    }
}

/// Leaves numbers that are missing before the log counts as ending there: a number that somebody forged.
pub const LARGEST_GAP: u64 = 1 << 20;

/// The leaves from a number on; `see` is called with each row's id. A leaf whose row is gone is one of
/// zero bytes: sealing goes on, and verification finds what is missing.
fn leaves_from(size: u64, mut see: impl FnMut(i64)) -> Result<CompactRange, Error> {
    let mut range = CompactRange::new(size);
    let mut encoded = Vec::new();
    each_leaf(size, i64::MAX as u64, |row| {
        let leaf = row.leaf.unwrap_or_default() as u64;
        if leaf < range.end() || leaf - range.end() > LARGEST_GAP {
            return;
        }
        while range.end() < leaf {
            range.push([0; 32]);
        }
        row.encode(&mut encoded);
        range.push(row.leaf_hash(&encoded));
        see(row.id);
    })?;
    Ok(range)
}

/// A tree with further leaves, up to `size`; of those that are missing no more than [`LARGEST_GAP`] are made
/// up.
pub fn frontier_between(mut frontier: Frontier, size: u64) -> Result<Frontier, Error> {
    let mut encoded = Vec::new();
    let mut missing = 0;
    let mut fill = |frontier: &mut Frontier, until: u64| {
        missing = u64::saturating_add(missing, until.saturating_sub(frontier.size()));
        if missing <= LARGEST_GAP {
            while frontier.size() < until {
                frontier.append([0; 32]);
            }
        }
    };
    each_leaf(frontier.size(), size, |row| {
        let leaf = row.leaf.unwrap_or_default() as u64;
        fill(&mut frontier, leaf);
        if leaf == frontier.size() {
            row.encode(&mut encoded);
            frontier.append(row.leaf_hash(&encoded));
        }
    })?;
    fill(&mut frontier, size);
    if frontier.size() < size {
        return Err(Error::KeyTable(format!(
            "the audit log has no rows for most of the {size} leaves that it should have"
        )));
    }
    Ok(frontier)
}

fn each_leaf(from: u64, to: u64, mut visit: impl FnMut(&LogRow)) -> Result<(), Error> {
    with_index_scans(|| {
        spi::each_row(
            "SELECT l.* FROM fieldcrypt.audit_log AS l
              WHERE l.leaf OPERATOR(pg_catalog.>=) $1 AND l.leaf OPERATOR(pg_catalog.<) $2
              ORDER BY l.leaf",
            &[Parameter::BigInt(Some(from as i64)), Parameter::BigInt(Some(to as i64))],
            |found| {
                visit(&row::read(found)?);
                Ok(())
            },
        )
    })
}

/// The last checkpoint: its origin, tree, note and time.
fn last_checkpoint() -> Result<Option<(i64, Frontier, String, i64)>, Error> {
    let mut found = None;
    spi::each_row(
        "SELECT c.origin_id, c.frontier, c.note, c.at FROM fieldcrypt.audit_checkpoints AS c
          ORDER BY c.size DESC, c.id DESC LIMIT 1",
        &[],
        |row| {
            let frontier = Frontier::from_bytes(row.bytes(2)?)
                .map_err(|_| Error::KeyTable("a checkpoint of the audit log was damaged".into()))?;
            let note = notes::from_database(row.bytes(3)?);
            found = Some((row.bigint(1)?, frontier, note, row.bigint(4)?));
            Ok(())
        },
    )?;
    Ok(found)
}

fn last_signer(origin_id: i64) -> Result<Option<(i64, String)>, Error> {
    let mut found = None;
    spi::each_row(
        "SELECT s.id, s.public_key FROM fieldcrypt.audit_signers AS s
          WHERE s.origin_id OPERATOR(pg_catalog.=) $1 ORDER BY s.id DESC LIMIT 1",
        &[Parameter::BigInt(Some(origin_id))],
        |row| {
            found = Some((row.bigint(1)?, encoding::lossy(row.bytes(2)?)));
            Ok(())
        },
    )?;
    Ok(found)
}

/// Where this database is.
pub fn place(system_identifier: i64, database: i64, timeline: i64) -> Place {
    Place {
        system_identifier: system_identifier as u64,
        database: database as u32,
        timeline: timeline as u32,
    }
}
