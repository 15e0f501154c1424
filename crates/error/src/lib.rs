//! Every error of the library, and the one place that gives it SQLSTATE, message and hint. What statements of `sql/`
//! find out, they raise themselves; some codes (KF017, KF019, KF023, KF025, KF033) are theirs alone.
//!
//! No variant holds a key or a plaintext. `docs/errors.md` lists the codes of both; `make lint` compares them.
#![forbid(unsafe_code)]

mod report;

use fieldcrypt_envelope::tenant_name::TenantNameProblem;
use fieldcrypt_envelope::{Fingerprint, KeyId, Malformed, RandomnessUnavailable};

pub use report::{Report, SqlState};

/// What can go wrong.
#[derive(Debug)]
#[expect(missing_docs, reason = "fields say in their names what the message tells")]
pub enum Error {
    /// Not the form of an encrypted value.
    Malformed(Malformed),
    /// Tampered with, or bound to another context. Whether one was given, if anybody can tell.
    NotAuthentic { key: KeyId, has_context: Option<bool> },
    /// No row in `encryption_keys` has this id.
    UnknownKey(KeyId),
    /// The key is suspended.
    KeySuspended(KeyId),
    /// The key has been destroyed.
    KeyDestroyed(KeyId),
    /// `fieldcrypt.tenant` is set, and the value is another tenant's.
    OtherTenant(KeyId),
    /// `fieldcrypt.tenant` is set, and the value would be another tenant's.
    ForOtherTenant,
    /// `fieldcrypt.require_tenant` is on, and no tenant is named for what is to be done.
    TenantRequired { to: &'static str, is_locked: bool },
    /// `fieldcrypt.tenant` is locked until the transaction ends.
    TenantLocked,
    /// A tenant is locked where others may have left what stands in for tables and functions.
    LeftBehind,
    /// The tenant has keys, but none that may encrypt.
    NoActiveKey { tenant: String },
    /// The tenant never had a key, and none is made here.
    NoKeyYet { tenant: String, is_made_on_use: bool },
    /// The database has no key for loose values, so plaintext can't be taken in.
    NoLooseKey,
    /// A value is bound to another place than where it is written or looked for.
    NotOfThisPlace { key: KeyId, column: Option<String> },
    /// A value that is bound to its row is opened without its place.
    PlaceNotNamed(KeyId),
    /// A value that is in no row yet is looked for in a place.
    NotInPlace(KeyId),
    /// A loose value is not this session's, and its user may not both encrypt and decrypt.
    LooseOfOther(KeyId),
    /// A value that knows its place is to be moved by naming contexts.
    NotRebindable,
    /// A plaintext is no value of the form that its column has.
    NotOfForm { form: &'static str, column: Option<String> },
    /// A value of this type is no plaintext of a column.
    NotAPlaintext { type_name: String },
    /// A value that is bound to no row stands where one of its row has to.
    NotBound { key: KeyId, column: String },
    /// A row of a view was changed by others while a statement was at it.
    ChangedMeanwhile,
    /// A column can't be protected so.
    Declaration { problem: String, hint: &'static str },
    /// The column that was kept beside an encrypted one is written.
    TwinIsWritten { twin: String, column: String },
    /// What is written does not fit the column that is kept beside an encrypted one.
    NotOfTwin { twin: String },
    /// A column can't be encrypted where nothing can be written.
    NotWritable,
    /// A column that is being encrypted is not as its trigger needs it.
    TwinIsLost { twin: String, problem: &'static str },
    /// The owner of a table has not the right to what its trigger does for whoever writes.
    OwnerLacksRight { right: &'static str, table: String },
    /// No source of a master key is configured.
    NoMasterKey,
    /// The configured source gives no master key.
    MasterKeySource { problem: String, hint: &'static str },
    /// A key is wrapped by a master key that is not loaded.
    WrongMasterKey { needed: Vec<Fingerprint>, loaded: Vec<Fingerprint> },
    /// A row of `encryption_keys` was damaged, edited or moved.
    WrappedKeyNotAuthentic(KeyId),
    /// `encryption_keys` or `master_keys` holds what the extension never writes.
    KeyTable(String),
    /// A key is needed and can't be made here.
    CannotCreateKey(KeyCreationRefused),
    /// What this database has of the extension is of an earlier version than the library: a warning.
    CatalogIsOlder { catalog: String, library: &'static str },
    /// The keys of this database are made on another node.
    KeysComeFrom(KeysFrom),
    /// ANALYZE, an index build or a materialized view asked for plaintext.
    SecurityRestricted,
    /// What goes by the user of the session is asked for inside a security-restricted operation.
    PlantedCode,
    /// Code of one role, run in the session of another, wants to do what is recorded.
    BorrowedHands { problem: &'static str, hint: &'static str },
    /// Somebody who does not own a table says what its values are bound to.
    NotTableOwner { table: String },
    /// A superuser at a table whose triggers and expressions are not a superuser's.
    TableOfOther { table: String, owner: String },
    /// An argument that may be left out was given as NULL.
    NullArgument(&'static str),
    /// A tenant can't be called so.
    TenantName(TenantNameProblem),
    /// Somebody writes to a guarded table by hand.
    Guarded { table: String },
    /// A restore into a database that has keys or a log already.
    RestoreOverExisting { table: String },
    /// The master key can't be rotated now.
    MasterKeyRotation { problem: String, hint: &'static str },
    /// The text is not UTF-8 and the database has no encoding to convert it from.
    NotUtf8,
    /// The decrypted bytes are no text.
    NotText,
    /// The decrypted text can't be written in the database's encoding.
    Untranslatable,
    /// The decrypted text is no value of the type asked for.
    Conversion { type_name: String },
    /// The decrypted text could be several values of the type asked for.
    UnclearText { type_name: String, why: Unclear },
    /// An argument is longer than it may be.
    TooLong { what: &'static str, most: &'static str },
    /// The result would be longer than Postgres allows.
    TooLarge { bytes: usize },
    /// The operating system gave no random bytes.
    Randomness,
    /// The system gives no memory.
    OutOfMemory { what: &'static str },
    /// The library is loaded in a database without the extension.
    NotInstalled,
    /// The extension is there, and something of it has lost its name.
    Renamed { what: String },
    /// A key is newer than the snapshot of a REPEATABLE READ transaction that wants to change it.
    KeyChangedSinceSnapshot,
    /// A relation whose rows can't be read here.
    NotScannable { problem: &'static str },
    /// A relation that can't be updated here, though it can be read.
    NotUpdatable { problem: &'static str },
    /// A new value would move its row to another partition.
    PartitionKey,
    /// What was given as the context of a column is no expression over its row.
    ContextExpression,
    /// The context that a column's values are bound to is NULL for a row.
    ContextIsNull,
    /// The context that a column's values are bound to is another for the same row at another time.
    ContextNotOfRow { problem: &'static str, hint: &'static str },
    /// A part of a context is NULL.
    ContextPartIsNull,
    /// A value of this type has no form that is the same for ever.
    ContextPartType { type_name: String },
    /// A context is to be made of an array.
    ContextOfArray,
    /// A context begins with a name.
    ContextName,
    /// A value was written that is not authentic for its row.
    NotOfItsRow { key: KeyId, column: String },
    /// Something is asked of an encrypted value that only its plaintext has.
    Misuse(Misuse),
    /// The extension, or what of it holds keys, values or the log, is to be dropped while there are keys.
    KeysWouldBeLost,
    /// What is to be encrypted is ciphertext already.
    AlreadyEncrypted,
    /// A right is lacking besides that to call a function.
    LacksRight { right: &'static str },
    /// The key's state does not allow this.
    WrongState { problem: String, hint: &'static str },
    /// No key has such an id.
    NotAKeyId,
    /// No operation of that name needs an approval.
    UnknownOperation,
    /// No key has such a purpose.
    UnknownPurpose,
    /// There is no event of that name.
    UnknownEvent,
    /// A trigger function was called as an ordinary one.
    NotATrigger,
    /// The trigger is none that the extension makes.
    WrongTrigger { made_by: &'static str },
    /// The trigger that records changes fires before them.
    NotAnAfterTrigger,
    /// Nobody says which type is asked for.
    UnknownType,
    /// What is to be shown as a page is no compliance report.
    NotAReport,
    /// Not an export of keys, or one that was changed.
    KeyExport { problem: String },
    /// No loaded master key can check an export of keys, or one of its keys.
    KeyExportMasterKey { needed: Vec<Fingerprint>, loaded: Vec<Fingerprint> },
    /// An export of keys contradicts the keys that are here.
    KeyImportConflict { problem: String, hint: String },
    /// Keys are imported under a snapshot that may be older than the keys.
    NeedsReadCommitted,
    /// A procedure that commits is called where it can't.
    CannotCommit,
    /// The record of an event has no room, and `fieldcrypt.audit_on_overflow` refuses then.
    AuditFull,
    /// What seals the audit log does not allow this.
    AuditSeal { problem: String, hint: &'static str },
    /// The audit log can't be verified as asked, or does not prove what was asked.
    AuditVerification { problem: String, hint: &'static str },
    /// What Postgres itself raised inside a function of the extension.
    Postgres(Box<Report>),
    /// What should not happen.
    Internal(String),
}

/// What is asked of encrypted values in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misuse {
    /// `=` and its like.
    Comparison,
    /// LIKE and its like.
    Match,
    /// A member of a document.
    Member,
    /// The greatest or the least.
    Order,
    /// A cast to a text.
    Text,
    /// A b-tree index, also one of UNIQUE.
    Index,
}

/// Why a key can't be made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCreationRefused {
    /// The server is a standby.
    Standby,
    /// The transaction is READ ONLY.
    ReadOnlyTransaction,
    /// The query runs in parallel.
    ParallelMode,
}

/// Where the keys of a database come from that makes none itself. A second first key of a tenant, or a second next
/// version, is one that the other nodes don't have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysFrom {
    /// This is a worker of Citus: keys are made on the coordinator.
    Coordinator,
    /// A subscription brings the tables of keys.
    Publisher {
        /// Its name.
        subscription: String,
    },
}

impl std::fmt::Display for KeysFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Coordinator => f.write_str("this is a worker of Citus"),
            Self::Publisher { subscription } => {
                write!(f, "subscription \"{subscription}\" brings the keys of another database")
            }
        }
    }
}

/// What a text leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unclear {
    /// Whether the day, the month or the year comes first.
    Order,
    /// The day on which it was written.
    Clock,
    /// Which time zone a name means.
    Zone,
    /// What a sign is the sign of.
    Sign,
}

impl Unclear {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Order => (
                "a date begins with its year",
                "It was written as text in a session's own DateStyle: read it with decrypt_field and to_date or to_timestamp, and write it with encrypt_field_as.",
            ),
            Self::Clock => (
                "now, today, tomorrow and yesterday are other times each day",
                "decrypt_field gives the text. Write values with encrypt_field_as, which keeps the time that is meant.",
            ),
            Self::Zone => (
                "it has a word in it that may be a time zone, and zones are numbers, UTC, GMT or Z",
                "An abbreviation such as IST is that of several zones. decrypt_field gives the text; to_timestamp and AT TIME ZONE make a time of it. Write values with encrypt_field_as.",
            ),
            Self::Sign => (
                "a sign before an interval is one of its first part for some, of all its parts for others",
                "decrypt_field gives the text; read it under the IntervalStyle that it was written in. Write values with encrypt_field_as, or with a sign before each part.",
            ),
        }
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<RandomnessUnavailable> for Error {
    fn from(_: RandomnessUnavailable) -> Self {
        Self::Randomness
    }
}

impl Error {
    /// Whether the value itself is damaged or its key gone for good: what `try_decrypt_field`
    /// answers NULL for.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::NotAuthentic { .. }
                | Self::UnknownKey(_)
                | Self::KeyDestroyed(_)
        )
    }

    /// Whether somebody was refused what he may not do, or something was forged: what an auditor asks for.
    /// Values that don't decrypt are recorded apart from it.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::SecurityRestricted
                | Self::PlantedCode
                | Self::BorrowedHands { .. }
                | Self::NotTableOwner { .. }
                | Self::TableOfOther { .. }
                | Self::LacksRight { .. }
                | Self::OwnerLacksRight { .. }
                | Self::ForOtherTenant
                | Self::LooseOfOther(_)
                | Self::TenantLocked
                | Self::LeftBehind
                | Self::Guarded { .. }
                | Self::RestoreOverExisting { .. }
                | Self::KeysWouldBeLost
                | Self::KeyExport { .. }
                | Self::KeyExportMasterKey { .. }
        )
    }

    /// Whether the error tells of one value, its key or its row, not of the system: a run over many
    /// counts it and goes on.
    pub fn is_of_one_value(&self) -> bool {
        self.is_damage()
            || matches!(
                self,
                Self::KeySuspended(_)
                    | Self::OtherTenant(_)
                    | Self::NoKeyYet { .. }
                    | Self::NoActiveKey { .. }
                    | Self::KeysComeFrom(_)
                    | Self::WrappedKeyNotAuthentic(_)
                    | Self::ContextIsNull
                    | Self::NotOfThisPlace { .. }
                    | Self::PlaceNotNamed(_)
                    | Self::NotInPlace(_)
                    | Self::NotBound { .. }
                    | Self::TooLong { .. }
                    | Self::NotUtf8
            )
    }

    fn malformed(&self) -> Report {
        let why = match self {
            Self::Malformed(Malformed::Suite(suite)) => {
                return Report::new(
                    b"KF001",
                    format!(
                        "not an encrypted value: cipher suite {suite} is unknown to this version"
                    ),
                    "It was made by a later version of pg_fieldcrypt, if it was not damaged: update the extension here.",
                );
            }
            Self::Malformed(Malformed::TextPrefix) => "it does not start with \"fc1:\"",
            Self::Malformed(Malformed::Base64) => "invalid base64url",
            Self::Malformed(Malformed::TooShort) => "too short",
            _ => "invalid header",
        };
        Report::new(
            b"KF001",
            format!("not an encrypted value: {why}"),
            "Columns of type encrypted take ciphertext only: encrypt with fieldcrypt.encrypt_field(value). No plaintext is compared with them: see docs/querying.md.",
        )
    }

    /// SQLSTATE, message and hint. Own codes are of class KF.
    pub fn report(&self) -> Report {
        let (sqlstate, message, hint): (&[u8; 5], String, &str) = match self {
            Self::Postgres(report) => return Report::clone(report),
            Self::Malformed(_) => return self.malformed().without_context(),
            Self::NotAuthentic { .. } => (
                b"KF002",
                "encrypted value is not authentic".into(),
                "Either it was tampered with, or it was encrypted with another context: pass the context that encrypt_field was given.",
            ),
            Self::UnknownKey(key) => (
                b"KF003",
                format!("encryption key {key} does not exist in this database"),
                "A value of it comes from another database, or fieldcrypt.encryption_keys was not restored with it. That table lists the keys that are here.",
            ),
            Self::KeySuspended(key) => (
                b"KF004",
                format!("encryption key {key} is suspended"),
                "A suspended key neither encrypts nor decrypts until an administrator resumes it.",
            ),
            Self::KeyDestroyed(key) => (
                b"KF005",
                format!("encryption key {key} has been destroyed"),
                "Values encrypted with a destroyed key can't be decrypted any more. Where others are read beside them, try_decrypt_field gives NULL.",
            ),
            Self::OtherTenant(_) => (
                b"KF006",
                "encrypted value belongs to another tenant".into(),
                "It is not of the tenant that this transaction or session is for (SHOW fieldcrypt.tenant). If it should be read, then in a transaction of its own tenant: BEGIN; SELECT fieldcrypt.lock_tenant('...').",
            ),
            Self::ForOtherTenant => (
                b"KF006",
                "the value would belong to another tenant than this session's".into(),
                "The call names another tenant than this transaction or session is for (SHOW fieldcrypt.tenant): leave it out of the call, or do it in a transaction of that tenant: BEGIN; SELECT fieldcrypt.lock_tenant('...').",
            ),
            Self::TenantRequired { to, is_locked: true } => (
                b"KF029",
                format!("no tenant is locked to {to} for, and fieldcrypt.require_tenant is \"locked\""),
                "SELECT fieldcrypt.lock_tenant('...') in each transaction. What fieldcrypt.tenant was SET to for the session does not count: behind a pooler that may have been another client.",
            ),
            Self::TenantRequired { to, is_locked: false } => (
                b"KF029",
                format!("no tenant is named to {to} for, and fieldcrypt.require_tenant is on"),
                "Name the tenant in each transaction: SELECT fieldcrypt.lock_tenant('...'), or SET LOCAL fieldcrypt.tenant = '...'. An empty tenant names none: a setting that was SET LOCAL once reads '' in later transactions.",
            ),
            Self::TenantLocked => (
                b"KF030",
                "fieldcrypt.tenant is locked until the transaction ends".into(),
                "fieldcrypt.lock_tenant() was called in this transaction: another tenant's values are for another transaction.",
            ),
            Self::LeftBehind => (
                b"55000",
                "this session has temporary objects: no tenant is locked beside them".into(),
                "Behind a pooler they may be another client's, who reads what gets into them. Lock the tenant before anything else in the transaction; make temporary tables ON COMMIT DROP; DISCARD TEMP takes away what is there. A session that nobody shares needs no more than fieldcrypt.require_tenant = on. See docs/poolers.md.",
            ),
            Self::NoActiveKey { tenant } => (
                b"KF007",
                format!("tenant \"{tenant}\" has no active encryption key"),
                "Its keys are suspended, deactivated, compromised or destroyed. fieldcrypt.resume_key brings a suspended one back; CALL fieldcrypt.rotate_keys(tenant, force => true), outside a transaction block, makes a new one.",
            ),
            Self::NoKeyYet { tenant, is_made_on_use: true } => (
                b"KF007",
                format!("tenant \"{tenant}\" never had an encryption key"),
                "If the name is right: SELECT fieldcrypt.create_key(tenant). The first value that is encrypted for it makes one, too.",
            ),
            Self::NoKeyYet { tenant, is_made_on_use: false } => (
                b"KF007",
                format!("tenant \"{tenant}\" has no encryption key"),
                "fieldcrypt.create_keys_on_use is off. If the name is right, who has the privilege manage makes the first key: SELECT fieldcrypt.create_key(tenant).",
            ),
            Self::NoLooseKey => (
                b"KF036",
                "this database has no key yet to take plaintext in with".into(),
                "fieldcrypt.protect_column makes it. Where columns are declared and keys are not there, as after a restore of the schema alone: SELECT fieldcrypt.create_loose_key(), unless the dump's data are still to come, which have it.",
            ),
            Self::NotOfThisPlace { column: Some(column), .. } => (
                b"KF037",
                format!("the value that is written to column {column} belongs to another row"),
                "Each value is bound to its column and row. Write the plaintext, or take a copy along: fieldcrypt.loosen(value, place), with the place that it is bound to.",
            ),
            Self::NotOfThisPlace { column: None, .. } => (
                b"KF037",
                "the value belongs to another row".into(),
                "It is bound to another place than the one that was named: fieldcrypt.context(name, key) as the column's CHECK constraint says it, for the row that it is read from.",
            ),
            Self::PlaceNotNamed(_) => (
                b"KF037",
                "the value is bound to its row, and no place was named".into(),
                "Read it by the view of fieldcrypt.create_decrypted_view, or name its place: decrypt_field(value, fieldcrypt.context(name, key)), as the column's CHECK constraint says it.",
            ),
            Self::NotInPlace(_) => (
                b"KF037",
                "the value is bound to no row yet, and a place was named".into(),
                "Plaintext that stands in a column without a declaration stays so: fieldcrypt.protect_column binds it. To read it, name no context.",
            ),
            Self::NotBound { column, .. } => (
                b"KF037",
                format!("the value that is written to column {column} is bound to no row"),
                "It was made by encrypt_field. Write the plaintext, or take a copy along: fieldcrypt.loosen(value, context), with the context that it was encrypted with.",
            ),
            Self::LooseOfOther(_) => (
                b"KF038",
                "the plaintext was taken in by another session, and is in no row yet".into(),
                "A literal is sealed when it is read: in a DEFAULT or a view write ('...'::text), which is sealed when it is used. Who may encrypt and decrypt may use it all the same.",
            ),
            Self::NotRebindable => (
                b"22023",
                "this value is bound to a row, not to a context".into(),
                "fieldcrypt.loosen(value, place) gives a copy that the row to which it is written binds to itself.",
            ),
            Self::NotOfForm { form, column } => (
                b"22P02",
                match column {
                    Some(column) => format!("the value that is written to column {column} is not valid for plaintext {form}"),
                    None => format!("the value is not valid for plaintext {form}"),
                },
                "The column was declared with that form: see its CHECK constraint.",
            ),
            Self::NotAPlaintext { type_name } => (
                b"42804",
                format!("a value of type {type_name} is not taken as a plaintext"),
                "Plaintexts are texts, whole numbers, numeric, date, timestamptz, uuid, boolean and jsonb. Cast it to one of these, or to text.",
            ),
            Self::ChangedMeanwhile => (
                b"40001",
                "another transaction has changed the row since this statement began".into(),
                "Try again. An UPDATE of the table itself would have waited, and been computed anew.",
            ),
            Self::Declaration { problem, hint } => (b"42P17", problem.clone(), hint),
            Self::TwinIsWritten { twin, column } => (
                b"55000",
                format!("column {twin} follows column {column} and is not written by itself"),
                "Write the encrypted column. fieldcrypt.undo_encrypt_column gives the old one back, drop_plaintext_column ends with it. INSERT without a list of columns counts it, too: name the columns.",
            ),
            Self::NotOfTwin { twin } => (
                b"22023",
                format!("the value does not fit column {twin}, which is kept beside the encrypted one"),
                "It has another type or a limit of length. fieldcrypt.drop_plaintext_column ends with that column.",
            ),
            Self::NotWritable => (
                b"25006",
                "a column is encrypted where its table can be written".into(),
                "Connect to the primary, and leave READ ONLY.",
            ),
            Self::TwinIsLost { twin, problem } => (
                b"55000",
                format!("column {twin} can't be kept beside the encrypted one: {problem}"),
                "CALL fieldcrypt.undo_encrypt_column(..., verify => false) gives the column back as it was.",
            ),
            Self::OwnerLacksRight { right, table } => (
                b"42501",
                format!("the owner of table {table} has not the privilege {right}, with which one column is kept as the other"),
                "SELECT fieldcrypt.grant_access(owner, 'encrypt', 'decrypt'); or undo_encrypt_column, or drop_plaintext_column.",
            ),
            Self::NoMasterKey => (
                b"KF008",
                "no master key is configured".into(),
                "Set fieldcrypt.master_key_file in postgresql.conf to a file with 64 hex digits (for instance from: openssl rand -hex 32), mode 0600, and reload.",
            ),
            Self::MasterKeySource { problem, hint } => (b"KF009", problem.clone(), hint),
            Self::WrongMasterKey { needed, loaded } => (
                b"KF010",
                format!(
                    "keys in this database are wrapped by master key {}; loaded: {}",
                    fingerprints(needed),
                    fingerprints(loaded)
                ),
                "Load the master key that this database was used with; a second line in the key file adds it beside another.",
            ),
            Self::WrappedKeyNotAuthentic(key) => (
                b"KF011",
                format!("the wrapped encryption key {key} is not authentic"),
                "Its row in fieldcrypt.encryption_keys was damaged, edited or moved: restore that table from a backup.",
            ),
            Self::KeyTable(problem) => (
                b"KF012",
                problem.clone(),
                "The table was edited by hand or damaged: restore it from a backup.",
            ),
            Self::CannotCreateKey(reason) => (
                b"KF013",
                format!(
                    "a new encryption key is needed, and {} can't make one",
                    match reason {
                        KeyCreationRefused::Standby => "a standby",
                        KeyCreationRefused::ReadOnlyTransaction => "a READ ONLY transaction",
                        KeyCreationRefused::ParallelMode => "a parallel query",
                    }
                ),
                "Make it ahead of time, on the primary: SELECT fieldcrypt.create_key(tenant).",
            ),
            Self::CatalogIsOlder { catalog, library } => (
                b"KF035",
                format!("this database has pg_fieldcrypt {catalog}, and the library is of {library}"),
                "ALTER EXTENSION pg_fieldcrypt UPDATE; what is there works until then. See docs/operations.md.",
            ),
            Self::KeysComeFrom(from) => (
                b"KF034",
                format!("no encryption key is made here: {from}"),
                match from {
                    KeysFrom::Coordinator => "A key made here would be missing on the other nodes. Make it on the coordinator (fieldcrypt.create_key, rotate_keys), and bring it to every worker: fieldcrypt.export_keys() there, import_keys(document, apply_states => true) here. Keys that are here go on encrypting; suspend_key works on every node. See docs/more-than-one-node.md.",
                    KeysFrom::Publisher { .. } => "A key made here would stop the subscription for ever. Make it on the publisher (fieldcrypt.create_key, rotate_keys): it arrives by itself. Keys that are here go on encrypting. A database that is to make its own keys drops the subscription first. See docs/more-than-one-node.md.",
                },
            ),
            Self::SecurityRestricted => (
                b"KF014",
                "decryption is refused here: the result would be stored in plaintext".into(),
                "ANALYZE, index builds and materialized views must not hold decrypted values: take decrypt_field out of the statistics object, index or view.",
            ),
            Self::PlantedCode => (
                b"42501",
                "refused inside a security-restricted operation".into(),
                "Index expressions, constraints, triggers and contexts can't do this in the name of the user who has them computed.",
            ),
            Self::BorrowedHands { problem, hint } => (b"42501", (*problem).into(), hint),
            Self::NotTableOwner { table } => (
                b"42501",
                format!("must be owner of table {table}"),
                "What the table computes is computed with the rights of its owner: SET ROLE to that role.",
            ),
            Self::TableOfOther { table, owner } => {
                let message = format!(
                    "table {table} is not a superuser's: its triggers could run with the rights of one"
                );
                let hint = format!(
                    "Log in as {owner}, or as a member of that role that is no superuser: after SET ROLE alone a trigger could RESET ROLE. The owner needs the privileges encrypt and decrypt."
                );
                return Report::new(b"42501", message, &hint);
            }
            Self::NullArgument(name) => (
                b"22004",
                format!("{name} must not be NULL"),
                match *name {
                    // Not what leads to a key that nobody chose: '' and no argument mean the session's tenant.
                    "tenant" => "Pass the tenant's name. A NULL is often a setting that this transaction has not set, or a missing column: mend that. fieldcrypt.lock_tenant(name) says whose a transaction is.",
                    "context" => "Pass what the value is bound to; where values are bound to nothing, leave the argument out. A NULL is often a missing column or setting: mend that.",
                    _ => "A NULL is often a missing column or setting.",
                },
            ),
            Self::TenantName(problem) => {
                let (message, hint) = match problem {
                    TenantNameProblem::Length => {
                        ("a tenant's name has 1 to 1024 bytes", "Shorten it, for instance to an id.")
                    }
                    TenantNameProblem::Empty => (
                        "a tenant's name has 1 to 1024 bytes",
                        "An empty one is often a setting that was SET LOCAL in an earlier transaction of this connection: it reads '' since.",
                    ),
                    TenantNameProblem::Edge => (
                        "a tenant's name neither begins nor ends with a blank or an invisible character",
                        "It would be another tenant than the one without, with a key of its own. btrim() takes blanks away.",
                    ),
                    TenantNameProblem::Control => (
                        "a tenant's name has no control characters",
                        "Take line ends, tabs and the like out of it, and what turns the direction of writing.",
                    ),
                    TenantNameProblem::Reserved => (
                        "\"audit log\" is no tenant's name, nor is \"loose values\": keys of the database are called so",
                        "Name the tenant differently.",
                    ),
                };
                (b"22023", message.into(), hint)
            }
            Self::Guarded { table } => (
                b"KF015",
                format!("{table} is written by the functions of pg_fieldcrypt only"),
                "A key or a log entry changed by hand could not be trusted, or would lose data.",
            ),
            Self::RestoreOverExisting { table } => (
                b"KF016",
                format!("this database already has rows in {table}: nothing is restored over them"),
                "Restore into a new database, or one where CREATE EXTENSION pg_fieldcrypt has just been run.",
            ),
            Self::WrongState { problem, hint } => (b"KF018", problem.clone(), hint),
            Self::NotAKeyId => (
                b"22023",
                "a key id is a positive number".into(),
                "fieldcrypt.encryption_keys lists them.",
            ),
            Self::UnknownOperation => (
                b"22023",
                "there is no such operation to approve".into(),
                "Operations are: rotate_master_key, shred_tenant, destroy_key.",
            ),
            Self::UnknownPurpose => (
                b"22023",
                "there is no such purpose of keys".into(),
                "Purposes are: field, loose, search, audit.",
            ),
            Self::UnknownEvent => (
                b"22023",
                "there is no such event of the audit log".into(),
                "docs/audit.md lists them.",
            ),
            Self::MasterKeyRotation { problem, hint } => (b"KF020", problem.clone(), hint),
            Self::KeyExport { problem } => (
                b"KF021",
                format!("the key export can't be used: {problem}"),
                "Pass the document as fieldcrypt.export_keys() gave it. If it was changed, trust nothing in it: take an older one.",
            ),
            Self::KeyImportConflict { problem, hint } => {
                return Report::new(b"KF022", problem.clone(), hint);
            }
            Self::AuditFull => (
                b"KF026",
                "the audit queue is full: what can't be recorded is refused".into(),
                "The worker that empties it is busy or can't run: SELECT * FROM fieldcrypt.audit_status(). fieldcrypt.audit_on_overflow and audit_queue_size are settings of the administrator.",
            ),
            Self::AuditVerification { problem, hint } => (b"KF027", problem.clone(), hint),
            Self::AuditSeal { problem, hint } => (b"KF028", problem.clone(), hint),
            Self::NeedsReadCommitted => (
                b"25001",
                "this is done in a READ COMMITTED transaction only: it has to see what others commit".into(),
                "Call it on its own, outside a transaction block.",
            ),
            Self::CannotCommit => (
                b"2D000",
                "invalid transaction termination: this procedure commits what it does, and can't do so inside a transaction block or function".into(),
                "Call it by itself, with autocommit on (psycopg and SQLAlchemy: autocommit; JDBC: setAutoCommit(true); psql: not between BEGIN and COMMIT, nor in one -c with other statements). To rotate one tenant's key inside a transaction: SELECT fieldcrypt.rotate_key(tenant, reason).",
            ),
            Self::KeyExportMasterKey { needed, loaded } => (
                b"KF010",
                format!(
                    "the key export belongs to master key {}; loaded: {}",
                    fingerprints(needed),
                    fingerprints(loaded)
                ),
                "Load the master keys that wrap its keys, one a line in the key file, and reload.",
            ),
            Self::NotUtf8 => (
                b"22021",
                "the text is not valid UTF-8".into(),
                "Plaintext is stored as UTF-8. In an SQL_ASCII database use encrypt_field_bytea for other bytes.",
            ),
            Self::NotText => (
                b"22021",
                "the decrypted value is not a text".into(),
                "It was encrypted from bytes: use decrypt_field_bytea.",
            ),
            Self::Untranslatable => (
                b"22P05",
                "the decrypted text has a character that this database's encoding can't show"
                    .into(),
                "Use decrypt_field_bytea, which gives it in UTF-8.",
            ),
            Self::Conversion { type_name } => (
                b"22018",
                format!("the decrypted value is not valid for type {type_name}"),
                "Use decrypt_field to see it as text.",
            ),
            Self::UnclearText { type_name, why } => {
                let (message, hint) = why.words();
                (
                    b"22018",
                    format!("the decrypted text does not say which {type_name} it is: {message}"),
                    hint,
                )
            }
            Self::TooLarge { bytes } => (
                b"54000",
                format!("the result of {bytes} bytes is longer than a value may be"),
                "Postgres holds values of up to 1 GB; encryption adds 42 bytes, the text form a third.",
            ),
            Self::TooLong { what, most } => (
                b"54000",
                format!("{what} has at most {most}"),
                "It is words about something: name a place, such as table, column and row, or a reason, in a few of them.",
            ),
            Self::Randomness => (b"58000", "the operating system gave no random bytes".into(), ""),
            Self::OutOfMemory { what } => (
                b"53200",
                format!("out of memory for {what}"),
                "The system gave this server process no more: pass less at once, or look at its limits (vm.overcommit_memory, ulimit, the container's memory).",
            ),
            Self::NotInstalled => (
                b"55000",
                "the extension pg_fieldcrypt is not installed in this database".into(),
                "CREATE EXTENSION pg_fieldcrypt;",
            ),
            Self::NotScannable { problem } => (
                b"42809",
                format!("the relation can't be read here: it is {problem}"),
                "Tables, partitions and materialized views are read; temporary tables by their own session only.",
            ),
            Self::NotUpdatable { problem } => (
                b"42809",
                format!("values can't be re-encrypted here: it is {problem}"),
                "REFRESH MATERIALIZED VIEW takes the values that its tables have now.",
            ),
            Self::PartitionKey => (
                b"KF024",
                "the re-encrypted value would move its row to another partition".into(),
                "An encrypted column that is part of the partition key can't be re-encrypted: partition by another column.",
            ),
            Self::ContextExpression => (
                b"42601",
                "the context is not a single SQL expression that gives a text".into(),
                "Write it as in a CHECK constraint, over the columns of the row: 'patients.ssn/' || id.",
            ),
            Self::ContextIsNull => (
                b"22004",
                "the context that the column's values are bound to is NULL for this row".into(),
                "See fieldcrypt.column_contexts, and fieldcrypt.set_column_context().",
            ),
            Self::ContextNotOfRow { problem, hint } => (b"42P17", (*problem).into(), hint),
            Self::ContextPartIsNull => (
                b"22004",
                "a part of a context must not be NULL".into(),
                "A name and the values of the row's key make a context. A NULL is often a key that the database has not made yet: reserve it first, with nextval.",
            ),
            Self::ContextPartType { type_name } => (
                b"42804",
                format!("a value of type {type_name} can't be a part of a context"),
                "Parts are texts, whole numbers, numeric, boolean, uuid, date, timestamp and timestamptz: they have one form for ever. Use another key, or cast it to one of these.",
            ),
            Self::ContextOfArray => (
                b"42804",
                "a context is not made of an array".into(),
                "Pass its parts one by one, without the word VARIADIC: fieldcrypt.context('lines.note', order_id, line).",
            ),
            Self::ContextName => (
                b"22023",
                "a context begins with a name".into(),
                "Name the table and the column: fieldcrypt.context('patients.ssn', id).",
            ),
            Self::NotOfItsRow { column, .. } => (
                b"KF031",
                format!("the value is not authentic for the row that it is written to, column {column}"),
                "It was encrypted with another context, as in a row of another key, or was tampered with. Encrypt it for this row, or fieldcrypt.rebind_field(value, context, new_context); in ON CONFLICT DO UPDATE encrypt for the row that is there, not for EXCLUDED.",
            ),
            Self::KeysWouldBeLost => (
                b"KF032",
                "pg_fieldcrypt, its keys, its type and its log are not dropped while encryption keys exist".into(),
                "What they encrypted, also in columns of other types, could never be read again. Keep SELECT fieldcrypt.export_keys() first; then, as a superuser, in this session only: SET fieldcrypt.allow_drop = on. For pg_restore --clean: PGOPTIONS='-c fieldcrypt.allow_drop=on'.",
            ),
            Self::AlreadyEncrypted => (
                b"22023",
                "the value is an encrypted value already".into(),
                "Encrypted twice it would be opened to ciphertext. To re-encrypt use fieldcrypt.reencrypt_field; to encrypt ciphertext all the same, fieldcrypt.encrypt_field_bytea.",
            ),
            Self::Misuse(misuse) => return misuse.report(),
            Self::LacksRight { right } => (
                b"42501",
                format!("this needs the privilege {right}, too"),
                "SELECT fieldcrypt.grant_access(role, 'encrypt', 'decrypt');",
            ),
            Self::NotATrigger => (
                b"39P01",
                "this function is called by triggers only".into(),
                "For audit triggers: SELECT fieldcrypt.audit_table('a_table').",
            ),
            Self::WrongTrigger { made_by } => (
                b"39P01",
                format!("this function is called by the triggers that {made_by} makes only"),
                "SELECT fieldcrypt.protect_column(relation, column), fieldcrypt.create_decrypted_view(relation).",
            ),
            Self::NotAnAfterTrigger => (
                b"39P01",
                "this function is called by AFTER triggers only: before a change nobody knows whether it will be made".into(),
                "SELECT fieldcrypt.audit_table('a_table') makes the triggers.",
            ),
            Self::UnknownType => (
                b"42P18",
                "could not determine the type that is asked for".into(),
                "Call the function in SQL, with a value of that type: decrypt_field_as(dob, NULL::date).",
            ),
            Self::NotAReport => (
                b"22023",
                "the document is no compliance report of this version".into(),
                "Pass what fieldcrypt.compliance_report() gave, or call fieldcrypt.compliance_report_html().",
            ),
            Self::Renamed { what } => (
                b"55000",
                format!("{what} of the extension pg_fieldcrypt is not there: it was renamed, moved or dropped"),
                "Give it back its name (ALTER SCHEMA, ALTER TABLE, ALTER INDEX ... RENAME TO), or restore it from a backup.",
            ),
            Self::KeyChangedSinceSnapshot => (
                b"40001",
                "the key was made after this transaction's snapshot was taken".into(),
                "Try again in a new transaction, or in READ COMMITTED.",
            ),
            Self::Internal(problem) => (b"XX000", problem.clone(), ""),
        };
        let report = Report::new(sqlstate, message, hint);
        match self.of_which_key() {
            Some(detail) => report.with_detail(detail),
            None => report,
        }
    }

    /// What can be told of a value without telling what is in it: not in the message, so that errors of one kind read
    /// the same. Of a context nothing but whether there was one.
    fn of_which_key(&self) -> Option<String> {
        match self {
            Self::NotAuthentic { key, has_context } => Some(format!(
                "The value is of encryption key {key}{}",
                match has_context {
                    Some(true) => "; a context was given.",
                    Some(false) => "; no context was given.",
                    None => ".",
                }
            )),
            Self::OtherTenant(key)
            | Self::NotOfItsRow { key, .. }
            | Self::NotOfThisPlace { key, .. }
            | Self::PlaceNotNamed(key)
            | Self::NotInPlace(key)
            | Self::LooseOfOther(key)
            | Self::NotBound { key, .. } => Some(format!("The value is of encryption key {key}.")),
            _ => None,
        }
    }
}

impl Misuse {
    fn report(self) -> Report {
        let (message, hint) = match self {
            Self::Comparison => (
                "an encrypted value can't be compared by what is in it",
                "Two encryptions of one text differ, so = would find nothing. Compare what is decrypted, at best in a view: fieldcrypt.decrypt_field(value, context) = '...'. To find a row by an index, keep a keyed hash in a column beside it. Whether two values are the same ciphertext: a OPERATOR(fieldcrypt.*=) b. See docs/querying.md.",
            ),
            Self::Match => (
                "an encrypted value can't be matched by a pattern",
                "Match what is decrypted, at best in a view: fieldcrypt.decrypt_field(value, context) LIKE '...'. See docs/querying.md.",
            ),
            Self::Member => (
                "an encrypted value has no members to take out",
                "Decrypt the document first: fieldcrypt.decrypt_field_jsonb(value, context) ->> 'name'. See docs/querying.md.",
            ),
            Self::Order => (
                "encrypted values have no greatest and no least",
                "The order of their bytes says nothing of what is in them. Decrypt them first: max(fieldcrypt.decrypt_field_as(value, NULL::date, context)). See docs/querying.md.",
            ),
            Self::Text => (
                "an encrypted value is not made a text by a cast",
                "To read it: fieldcrypt.decrypt_field(value, context). The ciphertext as text: fieldcrypt.ciphertext_text(value). See docs/querying.md.",
            ),
            Self::Index => (
                "an index on an encrypted column would find nothing, and UNIQUE no duplicate",
                "Two encryptions of one text differ. Make the index, or UNIQUE, on a keyed hash in a column beside it. See docs/querying.md.",
            ),
        };
        Report::new(b"0A000", message.into(), hint)
    }
}

fn fingerprints(list: &[Fingerprint]) -> String {
    let names: Vec<String> = list.iter().map(|one| abbreviated(*one)).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// A fingerprint for a message, in ASCII, which every database encoding can show.
fn abbreviated(fingerprint: Fingerprint) -> String {
    fingerprint.to_string().replace('…', "...")
}
