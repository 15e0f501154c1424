//! Functions that return sets of texts.

use pgrx::pg_sys;

use super::call::Call;
use super::values::Varlena;
use fieldcrypt_error::Error;

/// The rows that a call returns, in a store that goes to disk when it grows.
pub struct TextSet {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
}

impl TextSet {
    /// Begins the result of a function declared `RETURNS SETOF text`, which then returns NULL itself.
    pub fn begin(call: &Call) -> Result<Self, Error> {
        let unfit = || Error::Internal("a set was returned where none is taken".into());
        // SAFETY: Postgres passes a valid call; what takes a set says so in `resultinfo`. Store and
        // descriptor are made in the memory of the query, which outlives the call and the store's reader.
        unsafe {
            let info = (*call.raw()).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            if info.is_null() || (*info).type_ != pg_sys::NodeTag::T_ReturnSetInfo {
                return Err(unfit());
            }
            let modes = (*info).allowedModes as u32;
            if modes & pg_sys::SetFunctionReturnMode::SFRM_Materialize == 0
                || (*info).expectedDesc.is_null()
            {
                return Err(unfit());
            }
            let random = modes & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random != 0;
            let outer = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
            let descriptor = pg_sys::CreateTupleDescCopy((*info).expectedDesc);
            let store = pg_sys::tuplestore_begin_heap(random, false, pg_sys::work_mem);
            pg_sys::MemoryContextSwitchTo(outer);
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = descriptor;
            Ok(Self { store, descriptor })
        }
    }

    /// One more row, in the database's encoding. The text is copied; what is made on the way stays in
    /// the current memory context.
    pub fn push(&self, text: &[u8]) -> Result<(), Error> {
        let mut value = Varlena::of(text)?.into_datum();
        let mut is_null = false;
        // SAFETY: the descriptor has the one column that the declaration says, of type text.
        unsafe {
            pg_sys::tuplestore_putvalues(
                self.store,
                self.descriptor,
                &raw mut value,
                &raw mut is_null,
            );
        }
        Ok(())
    }
}
