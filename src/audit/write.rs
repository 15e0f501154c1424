//! Rows of the log are written here: one with the transaction that it tells of, or many whose transactions
//! are over. Each has its id, its time, and a MAC if a key for that can be had.

use fieldcrypt_audit::tree::Hash;
use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::{BuiltinOid, Datum};

use super::row::{self, columns};
use super::seal::Sealed;
use super::{Details, mac_key, tree};
use crate::error::Error;
use crate::events::{Event, QueuedEvent};
use crate::keyring;
use crate::pg::client::Client;
use crate::pg::json::Jsonb;
use crate::pg::log_insert::{COLUMNS, Values};
use crate::pg::network::Inet;
use crate::pg::spi::{self, Parameter};
use crate::pg::values::Varlena;
use crate::pg::{arrays, clock, log_table, security, transaction};

/// Writes a row, authenticated if a key for that can be had, as the log's owner: whoever did it needs no
/// right on the log.
pub fn record(event: Event, details: &Details<'_>) -> Result<(), Error> {
    super::HAS_RECORDED.set(true);
    // First, since a key that is made now is recorded too.
    let (mac_key, ids) = key_and_ids(1)?;
    let id = ids.first().copied().ok_or_else(|| Error::Internal("a row has no id".into()))?;
    let client = Client::now();
    let at = details.at.unwrap_or_else(clock::now);
    let transaction_id = transaction::transaction_id();
    // As the table gives them back.
    let row_key = details.row_key.map(Jsonb::parse).transpose()?;
    let old_row_key = details.old_row_key.map(Jsonb::parse).transpose()?;
    let mut row = row::of(id, at, event, &client, details);
    row.transaction_id = Some(transaction_id);
    row.row_key = row_key.map(row::document);
    row.old_row_key = old_row_key.map(row::document);
    let mut encoded = Vec::with_capacity(512);
    row.encode(&mut encoded);
    let mut values = values_of(event, &client, details)?;
    set(&mut values, columns::ID, Datum::from(id));
    set(&mut values, columns::AT, Datum::from(at));
    set(&mut values, columns::TRANSACTION_ID, Datum::from(transaction_id));
    for (column, key) in [(columns::ROW_KEY, row_key), (columns::OLD_ROW_KEY, old_row_key)] {
        if let Some(key) = key {
            set(&mut values, column, key.datum());
        }
    }
    if let Some((key_id, mac)) = authenticate(mac_key, &encoded) {
        set_mac(&mut values, key_id, &mac)?;
    }
    security::as_owner(|| by_statement(&values))
}

/// Gives a row a value in a column.
pub fn set(values: &mut Values, column: i16, value: Datum) {
    values[column as usize - 1] = Some(value);
}

/// Gives a row its MAC.
pub fn set_mac(values: &mut Values, key_id: KeyId, mac: &[u8; 32]) -> Result<(), Error> {
    set(values, columns::MAC, Varlena::of(mac)?.into_datum());
    set(values, columns::MAC_KEY_ID, Datum::from(key_id.as_i64()));
    Ok(())
}

/// A `text[]` in the current memory context.
pub fn texts(list: &[Vec<u8>]) -> Result<Datum, Error> {
    arrays::of_bytes(BuiltinOid::TEXTOID, list.iter().map(|one| Some(one.as_slice())))
}

/// The columns that say what happened and who did it, in the current memory context: all but id, time,
/// transaction, the keys of a row, and seals.
pub fn values_of(event: Event, client: &Client, details: &Details<'_>) -> Result<Values, Error> {
    let text = |bytes: &[u8]| Varlena::of(bytes).map(Varlena::into_datum);
    let address = client.address.as_deref().map(Inet::parse).transpose()?;
    let bigints =
        |list: &[i64]| arrays::of_numbers(BuiltinOid::INT8OID, list.iter().copied().map(Some));
    let mut values: Values = [None; COLUMNS];
    let columns: [(i16, Option<Datum>); 17] = [
        (columns::EVENT, Some(text(event.name().as_bytes())?)),
        (columns::ACTOR, Some(text(&client.actor)?)),
        (columns::ROLE, Some(text(&client.role)?)),
        (columns::CLIENT_ADDRESS, address.map(Inet::datum)),
        (columns::APPLICATION, Some(text(&client.application)?)),
        (columns::BACKEND_PID, Some(Datum::from(client.process))),
        (columns::TENANT, details.tenant.map(text).transpose()?),
        (columns::KEY_ID, details.key_id.map(|key_id| Datum::from(key_id.as_i64()))),
        (columns::REASON, details.reason.map(text).transpose()?),
        (columns::TABLE_NAME, details.table_name.map(text).transpose()?),
        (columns::PARTITION_NAME, details.partition_name.map(text).transpose()?),
        (columns::CHANGED_COLUMNS, details.changed_columns.map(texts).transpose()?),
        (columns::ERROR_CODE, details.error_code.map(|code| text(code.as_bytes())).transpose()?),
        (columns::VALUE_COUNT, details.value_count.map(Datum::from)),
        (columns::KEY_IDS, details.key_ids.map(bigints).transpose()?),
        (columns::SUBJECT, client.subject.as_deref().map(text).transpose()?),
        (columns::CONTEXTS, details.contexts.map(texts).transpose()?),
    ];
    for (column, value) in columns {
        values[column as usize - 1] = value;
    }
    Ok(values)
}

/// Writes one row by an INSERT, as the log's owner.
pub fn by_statement(values: &Values) -> Result<(), Error> {
    let parameters: Vec<_> =
        TYPES.iter().zip(values).map(|(of, value)| Parameter::Made(*of, *value)).collect();
    let written = spi::execute(
        "INSERT INTO fieldcrypt.audit_log
                (id, at, event, actor, role, client_address, application, backend_pid,
                 transaction_id, tenant, key_id, reason, table_name, partition_name, row_key,
                 old_row_key, changed_columns, error_code, value_count, key_ids, mac, mac_key_id, leaf,
                 subject, contexts)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                 $19, $20, $21, $22, $23, $24, $25)",
        &parameters,
    )?;
    if written == 1 {
        Ok(())
    } else {
        // A trigger that somebody put on the log.
        Err(Error::KeyTable("the audit log did not take a row".into()))
    }
}

/// The types of the log's columns. A leaf is given by who seals.
const TYPES: [BuiltinOid; COLUMNS] = {
    use BuiltinOid::*;
    [
        INT8OID,
        TIMESTAMPTZOID,
        TEXTOID,
        TEXTOID,
        TEXTOID,
        INETOID,
        TEXTOID,
        INT4OID,
        XID8OID,
        TEXTOID,
        INT8OID,
        TEXTOID,
        TEXTOID,
        TEXTOID,
        JSONBOID,
        JSONBOID,
        TEXTARRAYOID,
        TEXTOID,
        INT8OID,
        INT8ARRAYOID,
        BYTEAOID,
        INT8OID,
        INT8OID,
        TEXTOID,
        TEXTARRAYOID,
    ]
};

/// Writes events that outlived their transactions: with id, MAC and, where the log is sealed, leaf.
pub fn write_events(events: &[QueuedEvent], may_seal: bool) -> Result<Sealed, Error> {
    if events.is_empty() {
        return Ok(Sealed::default());
    }
    let sealed = if may_seal { seal_events(events)? } else { None };
    match sealed {
        Some(sealed) => Ok(sealed),
        None => security::as_owner(|| insert(events, None, |_| ())).map(|_| Sealed::default()),
    }
}

fn seal_events(events: &[QueuedEvent]) -> Result<Option<Sealed>, Error> {
    tree::with_tree(|tree| {
        let first = tree.frontier.size();
        let ids = insert(events, Some(first), |hash| tree.push(hash))?;
        tree.highest_id = ids.into_iter().fold(tree.highest_id, i64::max);
        Ok(tree.sealed(events.len(), false))
    })
}

fn insert(
    events: &[QueuedEvent],
    first_leaf: Option<u64>,
    mut leaf: impl FnMut(Hash),
) -> Result<Vec<i64>, Error> {
    let (mac_key, ids) = key_and_ids(events.len())?;
    let mut macs: Vec<Option<[u8; 32]>> = Vec::with_capacity(events.len());
    let mut encoded = Vec::new();
    for (event, id) in events.iter().zip(ids.iter().copied()) {
        let details = Details {
            tenant: event.tenant.as_deref(),
            key_id: event.key_id().and_then(KeyId::new),
            reason: event.reason.as_deref(),
            error_code: event.error_code.as_deref(),
            value_count: event.value_count,
            key_ids: (event.key_ids.len() > 1).then_some(event.key_ids.as_slice()),
            contexts: (!event.contexts.is_empty()).then_some(event.contexts.as_slice()),
            ..Details::default()
        };
        let mut row = row::of(id, event.at, event.event, &event.client, &details);
        row.encode(&mut encoded);
        let mac = authenticate(mac_key, &encoded);
        row.mac = mac.map(|(_, mac)| mac.to_vec());
        row.mac_key_id = mac.map(|(key_id, _)| key_id.as_i64());
        leaf(row.leaf_hash(&encoded));
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
    let all = events.iter().flat_map(|one| &one.contexts);
    let contexts = arrays::of_bytes(BuiltinOid::TEXTOID, all.map(|one| Some(one.as_slice())))?;
    let ends = events.iter().scan(0, |end, one| {
        *end += one.contexts.len() as i64;
        Some(Some(*end))
    });
    let ends = bigints(&mut ends.into_iter())?;
    let counts = bigints(
        &mut events.iter().map(|one| Some(one.contexts.len() as i64).filter(|count| *count > 0)),
    )?;
    let written = spi::execute(
        "INSERT INTO fieldcrypt.audit_log
                (id, at, event, actor, role, client_address, application, backend_pid, tenant, key_id,
                 reason, error_code, value_count, key_ids, mac, mac_key_id, leaf,
                 subject, contexts)
         SELECT u.id, u.at, u.event, u.actor, u.role, u.client_address::pg_catalog.inet, u.application,
                u.backend_pid, u.tenant, u.key_id, u.reason, u.error_code, u.value_count,
                u.key_ids::pg_catalog.int8[], u.mac, CASE WHEN u.mac IS NOT NULL THEN $15 END,
                $16 OPERATOR(pg_catalog.+) u.place OPERATOR(pg_catalog.-) 1, u.subject,
                CASE WHEN u.contexts IS NOT NULL THEN
                    ($19::pg_catalog.text[])[u.last_context OPERATOR(pg_catalog.-) u.contexts OPERATOR(pg_catalog.+) 1 : u.last_context] END
           FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),
                           pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), pg_catalog.unnest($12), pg_catalog.unnest($13), pg_catalog.unnest($14), pg_catalog.unnest($17),
                           pg_catalog.unnest($18), pg_catalog.unnest($20), pg_catalog.unnest($21))
                WITH ORDINALITY
                AS u (id, at, event, actor, role, client_address, application, backend_pid, tenant, key_id,
                      reason, error_code, value_count, key_ids, mac, subject, contexts, last_context, place)",
        &[
            bigints(&mut ids.iter().copied().map(Some))?,
            Parameter::Made(BuiltinOid::TIMESTAMPTZARRAYOID, Some(times)),
            texts(events, |one| Some(one.event.name().as_bytes()))?,
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
            texts(events, |one| one.client.subject.as_deref())?,
            Parameter::Made(BuiltinOid::TEXTARRAYOID, Some(contexts)),
            counts,
            ends,
        ],
    )?;
    if written == ids.len() as u64 {
        Ok(())
    } else {
        Err(Error::Internal("not every event was written".into()))
    }
}

/// The key for new rows, and their ids: dealt after the look-up that found the key, or before one that found
/// none. So no row without a MAC has a higher id than one of whoever had a key before it, and verification knows
/// by the ids which rows were written before there was one, however long a transaction lasts.
pub fn key_and_ids(count: usize) -> Result<(Option<KeyId>, Vec<i64>), Error> {
    let deal = || (0..count).map(|_| log_table::next_log_id()).collect::<Result<Vec<_>, _>>();
    if let Some(key_id) = mac_key::active() {
        return Ok((Some(key_id), deal()?));
    }
    let ids = deal()?;
    match mac_key::active() {
        None => Ok((None, ids)),
        Some(key_id) => Ok((Some(key_id), deal()?)),
    }
}

/// The MAC of an encoded row under this key, if it can be used.
fn authenticate(key_id: Option<KeyId>, encoded: &[u8]) -> Option<(KeyId, [u8; 32])> {
    let key_id = key_id?;
    Some((key_id, keyring::with_audit_key(key_id, |key| key.mac(encoded)).ok()?))
}
