//! Functions that change the state of keys.

use fieldcrypt_envelope::{KeyId, KeyState};
use pgrx::pg_sys::Datum;

use super::given;
use crate::error::Error;
use crate::keyring::states;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::Varlena;

sql_functions! {
    fieldcrypt_mark_compromised, pg_finfo_fieldcrypt_mark_compromised => mark_compromised;
    fieldcrypt_suspend_key, pg_finfo_fieldcrypt_suspend_key => suspend_key;
    fieldcrypt_resume_key, pg_finfo_fieldcrypt_resume_key => resume_key;
    fieldcrypt_set_key_state, pg_finfo_fieldcrypt_set_key_state => set_key_state;
    fieldcrypt_schedule_destruction, pg_finfo_fieldcrypt_schedule_destruction => schedule_destruction;
    fieldcrypt_cancel_destroy_key, pg_finfo_fieldcrypt_cancel_destroy_key => cancel_destroy_key;
    fieldcrypt_set_destroy_horizon, pg_finfo_fieldcrypt_set_destroy_horizon => set_destroy_horizon;
    fieldcrypt_erase_key, pg_finfo_fieldcrypt_erase_key => erase_key;
    fieldcrypt_shred_tenant, pg_finfo_fieldcrypt_shred_tenant => shred_tenant;
}

fn mark_compromised(call: &Call) -> Result<Option<Datum>, Error> {
    let active = states::mark_compromised(key_argument(call)?, given(call, 1, "reason")?)?;
    Ok(active.map(|key_id| Datum::from(key_id.as_i64())))
}

fn suspend_key(call: &Call) -> Result<Option<Datum>, Error> {
    states::suspend(key_argument(call)?, given(call, 1, "reason")?)?;
    Ok(Some(Datum::null()))
}

fn resume_key(call: &Call) -> Result<Option<Datum>, Error> {
    let state = states::resume(key_argument(call)?, given(call, 1, "reason")?)?;
    Ok(Some(Varlena::of(state.name().as_bytes())?.into_datum()))
}

fn set_key_state(call: &Call) -> Result<Option<Datum>, Error> {
    let state = KeyState::parse(given(call, 1, "state")?).ok_or_else(|| Error::WrongState {
        problem: "there is no such key state".into(),
        hint: "States are: deactivated, suspended, compromised, destroyed.",
    })?;
    states::set_state(key_argument(call)?, state, call.bytes(2))?;
    Ok(Some(Datum::null()))
}

fn schedule_destruction(call: &Call) -> Result<Option<Datum>, Error> {
    let seconds = call.bigint(1).ok_or(Error::NullArgument("delay"))?;
    states::schedule_destruction(key_argument(call)?, seconds, call.bytes(2))?;
    Ok(Some(Datum::null()))
}

fn cancel_destroy_key(call: &Call) -> Result<Option<Datum>, Error> {
    states::cancel_destruction(key_argument(call)?, given(call, 1, "reason")?)?;
    Ok(Some(Datum::null()))
}

fn set_destroy_horizon(call: &Call) -> Result<Option<Datum>, Error> {
    states::set_destroy_horizon(key_argument(call)?, given(call, 1, "horizon")?)?;
    Ok(Some(Datum::null()))
}

fn erase_key(call: &Call) -> Result<Option<Datum>, Error> {
    states::erase(key_argument(call)?, call.bytes(1))?;
    Ok(Some(Datum::null()))
}

fn shred_tenant(call: &Call) -> Result<Option<Datum>, Error> {
    let keys = states::shred(given(call, 0, "tenant")?, given(call, 1, "reason")?)?;
    Ok(Some(Datum::from(keys as i64)))
}

fn key_argument(call: &Call) -> Result<KeyId, Error> {
    let number = call.bigint(0).ok_or(Error::NullArgument("key_id"))?;
    KeyId::new(number).ok_or(Error::NotAKeyId)
}
