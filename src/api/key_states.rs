//! Functions that change the state of keys.

use fieldcrypt_envelope::{KeyId, KeyState};

use crate::error::Error;
use crate::lifecycle::states;
use crate::pg::report;

crate::pg::sql_functions! {
    mark_compromised(key_id: key_id!, reason: words!) -> bigint = states::mark_compromised;
    suspend_key(key_id: key_id!, reason: words!) -> void;
    resume_key(key_id: key_id!, reason: words!) -> text;
    set_key_state(key_id: key_id!, state: words!, reason: words) -> void;
    schedule_destruction(key_id: key_id!, delay: bigint!, reason: words) -> void = states::schedule_destruction;
    cancel_destroy_key(key_id: key_id!, reason: words!) -> void;
    set_destroy_horizon(key_id: key_id!, horizon: words!) -> void = states::set_destroy_horizon;
    erase_key(key_id: key_id!, reason: words) -> void = states::erase;
    shred_tenant(tenant: words!, reason: words!) -> bigint = states::shred;
}

fn suspend_key(key_id: KeyId, reason: &[u8]) -> Result<(), Error> {
    states::suspend(key_id, reason)?;
    report::notice(format!(
        "suspend_key: encryption key {key_id} neither encrypts nor decrypts until resume_key"
    ));
    Ok(())
}

fn cancel_destroy_key(key_id: KeyId, reason: &[u8]) -> Result<(), Error> {
    states::cancel_destruction(key_id, reason)?;
    report::notice(format!("cancel_destroy_key: encryption key {key_id} stays"));
    Ok(())
}

fn resume_key(key_id: KeyId, reason: &[u8]) -> Result<&'static str, Error> {
    states::resume(key_id, reason).map(KeyState::name)
}

fn set_key_state(key_id: KeyId, state: &[u8], reason: Option<&[u8]>) -> Result<(), Error> {
    let state = KeyState::parse(state).ok_or_else(|| Error::WrongState {
        problem: "there is no such key state".into(),
        hint: "States are: deactivated, suspended, compromised, destroyed.",
    })?;
    states::set_state(key_id, state, reason)
}
