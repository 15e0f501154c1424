//! Functions that change the state of keys.

use fieldcrypt_envelope::KeyState;

use super::{answer, given, given_key};
use crate::error::Error;
use crate::lifecycle::states;
use crate::pg;
use crate::pg::values::Varlena;

pg::sql_functions! {
    mark_compromised(key_id: bigint, reason: text) -> bigint;
    suspend_key(key_id: bigint, reason: text) -> void;
    resume_key(key_id: bigint, reason: text) -> text;
    set_key_state(key_id: bigint, state: text, reason: text) -> void;
    schedule_destruction(key_id: bigint, seconds: bigint, reason: text) -> void;
    cancel_destroy_key(key_id: bigint, reason: text) -> void;
    set_destroy_horizon(key_id: bigint, horizon: text) -> void;
    erase_key(key_id: bigint, reason: text) -> void;
    shred_tenant(tenant: text, reason: text) -> bigint;
}

type Text<'c> = Option<&'c [u8]>;

fn mark_compromised(key_id: Option<i64>, reason: Text) -> Result<Option<i64>, Error> {
    let active = states::mark_compromised(given_key(key_id)?, given(reason, "reason")?)?;
    Ok(active.map(|key_id| key_id.as_i64()))
}

fn suspend_key(key_id: Option<i64>, reason: Text) -> Result<(), Error> {
    states::suspend(given_key(key_id)?, given(reason, "reason")?)
}

fn resume_key(key_id: Option<i64>, reason: Text) -> Result<Option<Varlena>, Error> {
    let state = states::resume(given_key(key_id)?, given(reason, "reason")?)?;
    answer(state.name().as_bytes())
}

fn set_key_state(key_id: Option<i64>, state: Text, reason: Text) -> Result<(), Error> {
    let state = KeyState::parse(given(state, "state")?).ok_or_else(|| Error::WrongState {
        problem: "there is no such key state".into(),
        hint: "States are: deactivated, suspended, compromised, destroyed.",
    })?;
    states::set_state(given_key(key_id)?, state, reason)
}

fn schedule_destruction(
    key_id: Option<i64>,
    seconds: Option<i64>,
    reason: Text,
) -> Result<(), Error> {
    let seconds = given(seconds, "delay")?;
    states::schedule_destruction(given_key(key_id)?, seconds, reason)
}

fn cancel_destroy_key(key_id: Option<i64>, reason: Text) -> Result<(), Error> {
    states::cancel_destruction(given_key(key_id)?, given(reason, "reason")?)
}

fn set_destroy_horizon(key_id: Option<i64>, horizon: Text) -> Result<(), Error> {
    states::set_destroy_horizon(given_key(key_id)?, given(horizon, "horizon")?)
}

fn erase_key(key_id: Option<i64>, reason: Text) -> Result<(), Error> {
    states::erase(given_key(key_id)?, reason)
}

fn shred_tenant(tenant: Text, reason: Text) -> Result<Option<i64>, Error> {
    states::shred(given(tenant, "tenant")?, given(reason, "reason")?).map(|keys| Some(keys as i64))
}
