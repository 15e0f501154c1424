//! Declarations of protected columns: CHECK constraints that call `fieldcrypt.is_protected`, as the relation's cache has
//! them. There is no other register of them, so they follow renames, dumps and partitions.

use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;

use fieldcrypt_envelope::{Form, Part, place, place_into};
use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::heap::Table;
use super::key_values::{self, PartReader};
use super::known_relations::KnownRelations;
use super::triggers::TriggerCall;
use super::{encoding, schemas, values, version};

/// Bytes that a place may have: it names a column and a row.
const MAX_PLACE_BYTES: usize = 1 << 20;

/// A protected column.
#[derive(Clone)]
pub struct Declaration {
    /// The name of the constraint, in the database's encoding.
    pub constraint: Vec<u8>,
    /// The column's number.
    pub column: i16,
    /// The column's name of now, in the database's encoding.
    pub column_name: Vec<u8>,
    /// The name that was declared, in the database's encoding.
    pub name: Vec<u8>,
    /// The form of its plaintexts.
    pub form: Form,
    /// The column of the row that names the tenant, which is the first of the parts then.
    pub tenant: Option<i16>,
    /// The columns that, behind the name, make the place.
    parts: Vec<(i16, PartReader)>,
    /// Whether all rows are known to meet it, and those of partitions and children.
    pub is_believed: bool,
}

/// Those of a relation, by column.
pub type Declarations = Rc<[Declaration]>;

impl TriggerCall {
    /// The declarations of the relation.
    pub fn declarations(&self) -> Result<Declarations, Error> {
        // SAFETY: the relation is open while the trigger runs.
        unsafe { known(self.open_relation()) }
    }
}

impl Table {
    /// The declarations of the relation.
    pub fn declarations(&self) -> Result<Declarations, Error> {
        // SAFETY: an open relation.
        unsafe { known(self.relation()) }
    }
}

impl Declaration {
    /// The numbers of the columns that make the place.
    pub fn place_columns(&self) -> impl Iterator<Item = i16> {
        self.parts.iter().map(|(number, _)| *number)
    }

    /// The context of the place of a row, in UTF-8; `None` where a column of the key is NULL.
    pub fn place_of(&self, datum: impl Fn(i16) -> Option<Datum>) -> Result<Option<String>, Error> {
        let mut parts = Vec::with_capacity(self.parts.len() + 1);
        parts.push(Part::Text(&self.name));
        for (number, read) in &self.parts {
            let Some(datum) = datum(*number) else { return Ok(None) };
            parts.push(read.part(datum));
        }
        context(&parts).map(Some)
    }

    /// What the tenant's column says, in the database's encoding.
    pub fn tenant_of(
        &self,
        datum: impl Fn(i16) -> Option<Datum>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let (Some(_), Some((number, read))) = (self.tenant, self.parts.first()) else {
            return Ok(None);
        };
        let Some(datum) = datum(*number) else { return Ok(None) };
        Ok(place(&[read.part(datum)], MAX_PLACE_BYTES).map(|text| unescaped(&text)))
    }
}

/// The text of a place, in UTF-8.
fn context(parts: &[Part<'_>]) -> Result<String, Error> {
    let text = place(parts, MAX_PLACE_BYTES).ok_or(TOO_LONG)?;
    match encoding::to_utf8(&text)? {
        std::borrow::Cow::Borrowed(_) => String::from_utf8(text),
        std::borrow::Cow::Owned(text) => String::from_utf8(text),
    }
    .map_err(|_| Error::NotUtf8)
}

const TOO_LONG: Error = Error::TooLong { what: "a place", most: "1 MB" };

/// Calls `work` with the text of a place, in UTF-8. It is written where the last one was: a constraint asks for one each row.
pub fn with_context<R>(parts: &[Part<'_>], work: impl FnOnce(&str) -> R) -> Result<R, Error> {
    thread_local! { static LAST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) } }
    let mut text = LAST.take();
    if !place_into(&mut text, parts, MAX_PLACE_BYTES) {
        return Err(TOO_LONG);
    }
    let utf8 = encoding::to_utf8(&text)?;
    let result = work(str::from_utf8(&utf8).map_err(|_| Error::NotUtf8)?);
    drop(utf8);
    if text.capacity() <= MOST_KEPT {
        LAST.set(text);
    }
    Ok(result)
}

/// Bytes that are kept for the next place.
const MOST_KEPT: usize = 1 << 12;

/// A single part is a text with `%25` and `%2F` in it: the tenant's name is without.
fn unescaped(part: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len());
    let mut rest = part;
    while let [first, tail @ ..] = rest {
        (rest, _) = match rest {
            [b'%', b'2', b'5', tail @ ..] => (tail, out.push(b'%')),
            [b'%', b'2', b'F', tail @ ..] => (tail, out.push(b'/')),
            _ => (tail, out.push(*first)),
        };
    }
    out
}

/// # Safety
///
/// The relation is open.
unsafe fn known(relation: pg_sys::Relation) -> Result<Declarations, Error> {
    thread_local! {
        static KNOWN: RefCell<KnownRelations<[Declaration]>> = const { RefCell::new(KnownRelations::new()) }
    }
    // SAFETY: by the contract.
    let (oid, look_up) = unsafe { ((*relation).rd_id, || read(relation).map(Into::into)) };
    KnownRelations::of(&KNOWN, oid, look_up, drop)
}

/// # Safety
///
/// The relation is open.
unsafe fn read(relation: pg_sys::Relation) -> Result<Vec<Declaration>, Error> {
    let mut found = Vec::new();
    // SAFETY: the relation's cache has as many checks as it says, each with a name and an expression in Postgres's own
    // text form, which gives nodes of the kinds that their tags say.
    unsafe {
        let constraints = (*(*relation).rd_att).constr;
        if constraints.is_null() {
            return Ok(found);
        }
        for index in 0..usize::from((*constraints).num_check) {
            let check = (*constraints).check.add(index);
            let text = CStr::from_ptr((*check).ccbin);
            // Most constraints are something else: their nodes need not be made.
            if !text.to_bytes().starts_with(b"{FUNCEXPR") {
                continue;
            }
            let node = pg_sys::stringToNode(text.as_ptr()).cast::<pg_sys::Node>();
            let name = CStr::from_ptr((*check).ccname).to_bytes().to_vec();
            let name_of = |column| {
                let attribute = &*version::attribute((*relation).rd_att, column as usize - 1);
                CStr::from_ptr(attribute.attname.data.as_ptr()).to_bytes().to_vec()
            };
            if let Some(declaration) = declared(name, node, version::is_believed(check), name_of)? {
                found.push(declaration);
            }
        }
    }
    found.sort_by_key(|declaration| declaration.column);
    Ok(found)
}

/// # Safety
///
/// The node is the expression of a constraint, of a relation of whose columns `name_of` gives the names.
unsafe fn declared(
    constraint: Vec<u8>,
    node: *mut pg_sys::Node,
    is_believed: bool,
    name_of: impl Fn(i16) -> Vec<u8>,
) -> Result<Option<Declaration>, Error> {
    // SAFETY: nodes are cast after their tags were read; the relation has the columns that its constraints name.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_FuncExpr {
            return Ok(None);
        }
        let call = node.cast::<pg_sys::FuncExpr>();
        if !is_function((*call).funcid) {
            return Ok(None);
        }
        let arguments: Vec<_> =
            pgrx::PgList::<pg_sys::Node>::from_pg((*call).args).iter_ptr().collect();
        let [value, name, form, tenant, domain, parts @ ..] = &arguments[..] else {
            return Ok(None);
        };
        let (Some(column), Some(name), Some(form), Some(tenant)) =
            (column_of(*value), constant(*name), constant(*form), constant(*tenant))
        else {
            return Ok(None);
        };
        // Whatever else it were, it would be computed for each row.
        if constant(*domain).is_none_or(|domain| !domain.is_empty()) {
            return Ok(None);
        }
        let Some(form) = str::from_utf8(&form).ok().and_then(Form::of_name) else {
            return Ok(None);
        };
        let mut readers = Vec::new();
        for part in parts {
            let Some(number) = column_of(*part) else { return Ok(None) };
            let Some(reader) = key_values::part_reader(pg_sys::exprType(*part)) else {
                return Ok(None);
            };
            readers.push((number, reader));
        }
        Ok(Some(Declaration {
            constraint,
            column,
            column_name: name_of(column),
            name,
            form,
            tenant: readers.first().filter(|_| tenant == b"column").map(|(number, _)| *number),
            parts: readers,
            is_believed,
        }))
    }
}

/// The declaration that a row of `pg_constraint` is, as the catalog has it: without a lock on its table, and without waiting for
/// who has one.
///
/// # Errors
///
/// As of reading the relation's own. The expression must be the catalog's: who is asked for another might read anything.
pub fn of_catalog(
    relation: Oid,
    constraint: &[u8],
    expression: &[u8],
    is_believed: bool,
) -> Result<Option<Declaration>, Error> {
    if !expression.starts_with(b"{FUNCEXPR") {
        return Ok(None);
    }
    let text = std::ffi::CString::new(expression).map_err(|_| Error::NotText)?;
    // SAFETY: an expression of the catalog in Postgres's own text form, by the contract of the SQL function, which nobody else may call.
    unsafe {
        let node = pg_sys::stringToNode(text.as_ptr()).cast::<pg_sys::Node>();
        declared(constraint.to_vec(), node, is_believed, |column| column_name(relation, column))
    }
}

/// The name of a column, in the database's encoding; empty if it is gone.
pub fn column_name(relation: Oid, column: i16) -> Vec<u8> {
    // SAFETY: a catalog look-up that answers NULL if there is none; the string is copied.
    unsafe {
        let name = pg_sys::get_attname(relation, column, true);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}

fn is_function(function: Oid) -> bool {
    // SAFETY: catalog look-ups that answer NULL or InvalidOid if there is none.
    unsafe {
        let name = pg_sys::get_func_name(function);
        !name.is_null()
            && CStr::from_ptr(name) == c"is_protected"
            && Some(pg_sys::get_func_namespace(function)) == schemas::oid(schemas::USERS)
    }
}

/// The number of the column that an expression is, as it is or under another name of its type.
pub(super) unsafe fn column_of(node: *mut pg_sys::Node) -> Option<i16> {
    // SAFETY: a node, read as what its tag says it is.
    unsafe {
        let mut node = node;
        while (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        ((*node).type_ == pg_sys::NodeTag::T_Var)
            .then(|| (*node.cast::<pg_sys::Var>()).varattno)
            .filter(|number| *number > 0)
    }
}

/// A constant text.
pub(super) unsafe fn constant(node: *mut pg_sys::Node) -> Option<Vec<u8>> {
    // SAFETY: a node, read as what its tag says it is; a constant text is a varlena.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_Const {
            return None;
        }
        let constant = node.cast::<pg_sys::Const>();
        ((*constant).consttype == pg_sys::TEXTOID && !(*constant).constisnull)
            .then(|| values::detoasted((*constant).constvalue).to_vec())
    }
}
