//! Types that hold encrypted values: the type itself, domains, arrays and composites over it, to any
//! depth.

use std::ffi::c_int;

use pgrx::pg_sys::{self, Datum, Oid};

use super::arrays::{self, Element};
use super::owners_code::owners_code;
use super::{relations, reserve, values, version};
use fieldcrypt_error::Error;

/// How a type holds encrypted values.
#[derive(Debug, Clone)]
pub struct Shape {
    kind: Kind,
    /// The domain whose constraints a new value must meet.
    domain: Option<Oid>,
}

#[derive(Debug, Clone)]
enum Kind {
    Value,
    Array {
        element: Box<Shape>,
        element_type: Oid,
    },
    /// Numbers of the attributes that hold values, and how.
    Composite(Vec<(i16, Shape)>),
}

/// Gives the value that takes a value's place, or none.
pub type Replace<'r> = dyn FnMut(&[u8]) -> Result<Option<Datum>, Error> + 'r;

/// What memory is wanted for.
const ELEMENTS: &str = "the elements of an array";

/// Types within types that are followed; a type can't hold itself, but a long chain can be built.
const MAX_DEPTH: usize = 16;

impl Shape {
    /// How a type holds encrypted values; `None` if it does not.
    pub fn of(type_oid: Oid) -> Result<Option<Self>, Error> {
        Self::at_depth(type_oid, relations::value_types()?, 0)
    }

    fn at_depth(type_oid: Oid, encrypted: [Oid; 2], depth: usize) -> Result<Option<Self>, Error> {
        if encrypted.contains(&type_oid) {
            return Ok(Some(Self { kind: Kind::Value, domain: None }));
        }
        if depth > MAX_DEPTH {
            return Err(Error::NotScannable { problem: "of types that are nested too deep" });
        }
        // SAFETY: catalog look-ups by type; the descriptor is released after its last use.
        let kind = unsafe {
            let base = pg_sys::getBaseType(type_oid);
            if encrypted.contains(&base) {
                Some(Kind::Value)
            } else if let element_type @ 1.. = pg_sys::get_element_type(base).to_u32() {
                let element_type = Oid::from(element_type);
                Self::at_depth(element_type, encrypted, depth + 1)?
                    .map(|element| Kind::Array { element: Box::new(element), element_type })
            } else if pg_sys::get_typtype(base) as u8 == pg_sys::TYPTYPE_COMPOSITE {
                let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(base, -1);
                let mut attributes = Vec::new();
                for index in 0..(*descriptor).natts as usize {
                    let attribute = &*version::attribute(descriptor, index);
                    if !attribute.attisdropped
                        && let Some(shape) =
                            Self::at_depth(attribute.atttypid, encrypted, depth + 1)?
                    {
                        attributes.push((attribute.attnum, shape));
                    }
                }
                (!attributes.is_empty()).then_some(Kind::Composite(attributes))
            } else {
                None
            }
        };
        // SAFETY: a catalog look-up.
        let is_domain = unsafe { pg_sys::get_typtype(type_oid) as u8 == pg_sys::TYPTYPE_DOMAIN };
        Ok(kind.map(|kind| Self { kind, domain: is_domain.then_some(type_oid) }))
    }

    /// Whether values lie inside arrays or composites.
    pub fn is_nested(&self) -> bool {
        !matches!(self.kind, Kind::Value)
    }

    /// Calls `visit` with the bytes of every value in a datum of this type.
    pub fn visit(
        &self,
        datum: Datum,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match &self.kind {
            // SAFETY: a datum of the type, or of a domain over it, is a varlena.
            Kind::Value => visit(unsafe { values::detoasted(datum) }),
            Kind::Array { element, element_type } => {
                let parts = ArrayParts::of(datum, *element_type)?;
                for value in parts.elements.iter().flatten() {
                    element.visit(*value, visit)?;
                }
                Ok(())
            }
            Kind::Composite(attributes) => {
                let parts = CompositeParts::of(datum);
                for (number, shape) in attributes {
                    if let Some(value) = parts.attribute(*number) {
                        shape.visit(value, visit)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// The same datum with every value replaced for which `replace` gives another; `None` if it gives
    /// none. Checks the constraints of domains, which runs code of their owners.
    pub fn rebuild(&self, datum: Datum, replace: &mut Replace<'_>) -> Result<Option<Datum>, Error> {
        let rebuilt = match &self.kind {
            // SAFETY: as in `visit`.
            Kind::Value => replace(unsafe { values::detoasted(datum) })?,
            Kind::Array { element, element_type } => {
                let mut parts = ArrayParts::of(datum, *element_type)?;
                let mut is_new = false;
                for value in parts.elements.iter_mut() {
                    if let Some(old) = *value
                        && let Some(new) = element.rebuild(old, replace)?
                    {
                        *value = Some(new);
                        is_new = true;
                    }
                }
                is_new.then(|| parts.into_datum(*element_type)).transpose()?
            }
            Kind::Composite(attributes) => {
                let mut parts = CompositeParts::of(datum);
                let mut is_new = false;
                for (number, shape) in attributes {
                    if let Some(old) = parts.attribute(*number)
                        && let Some(new) = shape.rebuild(old, replace)?
                    {
                        parts.replace(*number, new);
                        is_new = true;
                    }
                }
                is_new.then(|| parts.into_datum())
            }
        };
        if let (Some(new), Some(domain)) = (rebuilt, self.domain) {
            // SAFETY: a datum of the domain's base type; no cache of the look-up is kept.
            owners_code(|| unsafe {
                pg_sys::domain_check(
                    new,
                    false,
                    domain,
                    std::ptr::null_mut(),
                    pg_sys::CurrentMemoryContext,
                );
            });
        }
        Ok(rebuilt)
    }
}

struct ArrayParts {
    elements: Vec<Option<Datum>>,
    dimensions: Vec<c_int>,
    lower_bounds: Vec<c_int>,
}

impl ArrayParts {
    /// Of elements that take a bit each where they are NULL, and much more when they are taken apart.
    fn of(datum: Datum, element_type: Oid) -> Result<Self, Error> {
        // SAFETY: a datum of an array type, detoasted; its header is followed by `ndim` dimensions and
        // as many lower bounds.
        unsafe {
            let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let dimensions = (*array).ndim as usize;
            let numbers = array.cast::<u8>().add(size_of::<pg_sys::ArrayType>()).cast::<c_int>();
            let count = pg_sys::ArrayGetNItems((*array).ndim, numbers).unsigned_abs() as usize;
            reserve::room(count.saturating_mul(size_of::<Option<Datum>>()), ELEMENTS)?;
            Ok(Self {
                elements: arrays::taken_apart(array, Element::of_type(element_type)),
                dimensions: (0..dimensions).map(|index| *numbers.add(index)).collect(),
                lower_bounds: (dimensions..2 * dimensions)
                    .map(|index| *numbers.add(index))
                    .collect(),
            })
        }
    }

    fn into_datum(mut self, element_type: Oid) -> Result<Datum, Error> {
        let element = Element::of_type(element_type);
        let for_each = size_of::<Datum>() + size_of::<bool>();
        reserve::room(self.elements.len().saturating_mul(for_each), ELEMENTS)?;
        // SAFETY: the elements are as many as the dimensions say.
        Ok(unsafe {
            arrays::put_together(
                element,
                &self.elements,
                &mut self.dimensions,
                &mut self.lower_bounds,
            )
        })
    }
}

struct CompositeParts {
    descriptor: pg_sys::TupleDesc,
    values: Vec<Datum>,
    nulls: Vec<bool>,
}

impl CompositeParts {
    fn of(datum: Datum) -> Self {
        // SAFETY: a composite datum, detoasted, carries its row type in its header; a tuple structure
        // on the stack lets it be taken apart, as record functions do.
        unsafe {
            let header = pg_sys::pg_detoast_datum(datum.cast_mut_ptr())
                .cast::<pg_sys::HeapTupleHeaderData>();
            let fields = (*header).t_choice.t_datum;
            let descriptor =
                pg_sys::lookup_rowtype_tupdesc_copy(fields.datum_typeid, fields.datum_typmod);
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pgrx::varlena::varsize_any(header.cast()) as u32,
                t_data: header,
                ..Default::default()
            };
            let columns = (*descriptor).natts as usize;
            let mut values = vec![Datum::null(); columns];
            let mut nulls = vec![true; columns];
            pg_sys::heap_deform_tuple(
                &raw mut tuple,
                descriptor,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            Self { descriptor, values, nulls }
        }
    }

    fn attribute(&self, number: i16) -> Option<Datum> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        if *self.nulls.get(index)? { None } else { self.values.get(index).copied() }
    }

    fn replace(&mut self, number: i16, value: Datum) {
        if let Some(place) = self.values.get_mut(number as usize - 1) {
            *place = value;
        }
    }

    fn into_datum(mut self) -> Datum {
        // SAFETY: values and nulls have a place for each attribute of the descriptor.
        unsafe {
            let tuple = pg_sys::heap_form_tuple(
                self.descriptor,
                self.values.as_mut_ptr(),
                self.nulls.as_mut_ptr(),
            );
            pg_sys::heap_copy_tuple_as_datum(tuple, self.descriptor)
        }
    }
}
