//! Arrays, taken apart and built.

use std::ffi::c_int;

use pgrx::pg_sys::{self, BuiltinOid, Datum, Oid};

use super::values::{Varlena, detoasted};
use fieldcrypt_error::Error;

/// How the elements of an array are stored.
#[derive(Clone, Copy)]
pub(super) struct Element {
    oid: Oid,
    length: i32,
    by_value: bool,
    alignment: u8,
}

impl Element {
    fn of(element: BuiltinOid) -> Self {
        let oid = Oid::from(element);
        match element {
            BuiltinOid::INT8OID | BuiltinOid::TIMESTAMPTZOID | BuiltinOid::XID8OID => {
                Self { oid, length: 8, by_value: true, alignment: b'd' }
            }
            BuiltinOid::INT4OID => Self { oid, length: 4, by_value: true, alignment: b'i' },
            _ => Self { oid, length: -1, by_value: false, alignment: b'i' },
        }
    }

    /// Of any type.
    pub(super) fn of_type(oid: Oid) -> Self {
        let (mut length, mut by_value, mut alignment) = (0, false, 0);
        // SAFETY: a catalog look-up that fills the three.
        unsafe { pg_sys::get_typlenbyvalalign(oid, &mut length, &mut by_value, &mut alignment) };
        Self { oid, length: length.into(), by_value, alignment: alignment as u8 }
    }
}

/// The elements of an array, `None` for NULL.
///
/// # Safety
///
/// A plain array of that element type.
pub(super) unsafe fn taken_apart(
    array: *mut pg_sys::ArrayType,
    element: Element,
) -> Vec<Option<Datum>> {
    let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: by the contract; the arrays that come back have a place for every element.
    unsafe {
        pg_sys::deconstruct_array(
            array,
            element.oid,
            element.length,
            element.by_value,
            element.alignment as _,
            &mut values,
            &mut nulls,
            &mut count,
        );
        (0..count as usize).map(|index| (!*nulls.add(index)).then(|| *values.add(index))).collect()
    }
}

/// An array of these elements, which are copied into the current memory context.
///
/// # Safety
///
/// The elements are of that type, as many as the dimensions say; each of these has its lower bound.
pub(super) unsafe fn put_together(
    element: Element,
    elements: &[Option<Datum>],
    dimensions: &mut [c_int],
    lower_bounds: &mut [c_int],
) -> Datum {
    let mut nulls: Vec<bool> = elements.iter().map(Option::is_none).collect();
    let mut values: Vec<Datum> = elements.iter().map(|one| one.unwrap_or(Datum::null())).collect();
    // SAFETY: by the contract.
    Datum::from(unsafe {
        pg_sys::construct_md_array(
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
            dimensions.len() as c_int,
            dimensions.as_mut_ptr(),
            lower_bounds.as_mut_ptr(),
            element.oid,
            element.length,
            element.by_value,
            element.alignment as _,
        )
    })
}

/// The elements of an array, and whether it is a plain list: of one dimension that begins at 1.
struct Elements {
    elements: Vec<Option<Datum>>,
    is_list: bool,
}

/// # Safety
///
/// `datum` must be a non-null array of that element type.
unsafe fn elements(datum: Datum, element: BuiltinOid) -> Elements {
    // SAFETY: by the contract.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr::<pg_sys::varlena>())
            .cast::<pg_sys::ArrayType>();
        let elements = taken_apart(array, Element::of(element));
        let dimensions = (*array).ndim;
        // The lower bounds follow the lengths, which follow the header.
        let first_bound = array.add(1).cast::<i32>().add(1);
        let is_list = dimensions == 0 || dimensions == 1 && first_bound.read() == 1;
        Elements { elements, is_list }
    }
}

/// What an array says that is not a list of texts: no text of Postgres holds a NUL.
const ODD_TEXT: &[u8] = b"\0";
/// What an array says that is not a list of ids: no id is negative.
const ODD_NUMBER: i64 = i64::MIN;

/// The texts of a `text[]`. NULL elements and further dimensions, which the extension never writes, make
/// another list than any that it does.
///
/// # Safety
///
/// `datum` must be a non-null `text[]` that outlives the result.
pub unsafe fn texts<'a>(datum: Datum) -> Vec<&'a [u8]> {
    // SAFETY: by the contract.
    let array = unsafe { elements(datum, BuiltinOid::TEXTOID) };
    // SAFETY: elements of the array, copied out of line only if it is detoasted.
    let text = |one: &Option<Datum>| one.map_or(ODD_TEXT, |datum| unsafe { detoasted(datum) });
    let odd = (!array.is_list).then_some(ODD_TEXT);
    array.elements.iter().map(text).chain(odd).collect()
}

/// The numbers of a `bigint[]`, with the same exceptions.
///
/// # Safety
///
/// `datum` must be a non-null `bigint[]`.
pub unsafe fn bigints(datum: Datum) -> Vec<i64> {
    // SAFETY: by the contract.
    let array = unsafe { elements(datum, BuiltinOid::INT8OID) };
    let odd = (!array.is_list).then_some(ODD_NUMBER);
    array
        .elements
        .iter()
        .map(|one| one.map_or(ODD_NUMBER, |datum| datum.value() as i64))
        .chain(odd)
        .collect()
}

/// A list as an array in the current memory context.
fn build(
    element: BuiltinOid,
    list: impl Iterator<Item = Result<Option<Datum>, Error>>,
) -> Result<Datum, Error> {
    let elements = list.collect::<Result<Vec<_>, _>>()?;
    // An array without elements has no dimension.
    let dimensions = usize::from(!elements.is_empty());
    let (mut lengths, mut bounds) = ([elements.len() as c_int], [1]);
    let (lengths, bounds) = (&mut lengths[..dimensions], &mut bounds[..dimensions]);
    // SAFETY: as many elements as the length says, of the type that was named.
    Ok(unsafe { put_together(Element::of(element), &elements, lengths, bounds) })
}

/// A `bigint[]`, `timestamptz[]`, `xid8[]` or `integer[]`.
pub fn of_numbers(
    element: BuiltinOid,
    list: impl Iterator<Item = Option<i64>>,
) -> Result<Datum, Error> {
    build(element, list.map(|number| Ok(number.map(Datum::from))))
}

/// A `text[]` or `bytea[]`.
pub fn of_bytes<'a>(
    element: BuiltinOid,
    list: impl Iterator<Item = Option<&'a [u8]>>,
) -> Result<Datum, Error> {
    build(
        element,
        list.map(|bytes| {
            bytes.map(Varlena::of).transpose().map(|made| made.map(Varlena::into_datum))
        }),
    )
}
