//! Refused calls, recorded although they roll back.

use pgrx::pg_sys;

use super::Event;
use super::queue::{self, Surviving};
use crate::error::Error;
use crate::pg::client::{self, Client};
use crate::pg::{dependents, report};

/// A function of the extension, or a hook (of no function), gives an error. If it refuses somebody something, that is
/// recorded; gives the error to be raised.
pub fn called(function: pg_sys::Oid, error: Error) -> Error {
    if !error.is_refusal() {
        return error;
    }
    let report = error.report();
    let name = dependents::function(function).map_or_else(Vec::new, |(name, _)| name);
    let message = report::in_database_encoding(&report.message);
    let reason = if name.is_empty() { message } else { [&name, &b": "[..], &message].concat() };
    let details = Surviving {
        error_code: Some(report.sqlstate.as_str()),
        reason: Some(&reason),
        ..Surviving::default()
    };
    match queue::push(Event::CallRefused, &details) {
        Ok(()) => error,
        Err(not_recorded) => not_recorded,
    }
}

/// Postgres refused a call for want of a grant, in its own words. Called in a transaction that has failed.
pub fn denied(message: &[u8], client: &Client) {
    // The name is one of the words, at another place in another language; it is not qualified, and in ASCII.
    let is_part = |mark: char| mark.is_ascii_alphanumeric() || mark == '_';
    let message_text = String::from_utf8_lossy(message);
    let mut words = message_text.split(|mark| !is_part(mark)).filter(|word| !word.is_empty());
    if words.any(|word| OWN_OBJECTS.split_ascii_whitespace().any(|name| name == word)) {
        // Names of roles are as they were looked up; these change without a look-up.
        let (application, subject) = (client::application(), client::subject());
        let client = Client { application, subject, ..client.clone() };
        let details = Surviving {
            error_code: Some("42501"),
            reason: Some(message),
            client: Some(&client),
            ..Surviving::default()
        };
        // The call was refused already, and a full queue goes to the server log.
        let _ = queue::push(Event::CallRefused, &details);
    }
}

/// The schemas of the extension, every object in them that a privilege of `grant_access` is made of, and the
/// functions that make them. The test of the inventory tells which is missing.
const OWN_OBJECTS: &str = "
    access_words acknowledge_audit_findings acknowledge_audit_fork alert_jobs alert_step alerts
    apply_audit_retention approvals approve approve_step audit_change audit_checkpoints audit_export audit_log
    audit_origins audit_proof audit_retirements audit_signers audit_status audit_table audit_trail audit_triggers
    audit_verifications begin_master_key_rotation bind_values by_own_hand cancel_destroy_key carry_column
    change_access check_alerts check_audit_log ciphertext_info ciphertext_text column_contexts
    column_migration_run column_migration_step column_migrations compliance_report compliance_report_html
    confirm_key_states count_active_tenants create_decrypted_view create_key create_loose_key decrypt_field
    decrypt_field_as decrypt_field_bytea decrypt_field_jsonb destroy_due_keys destroy_key destroy_step
    drop_plaintext_column due_audit_key due_loose_key encrypt_column encrypt_field encrypt_field_as
    encrypt_field_bytea encrypt_field_jsonb encrypted_from_bytea encrypted_hash encrypted_hash_extended
    encrypted_less encrypted_less_or_same encrypted_more encrypted_more_or_same encrypted_not_same
    encrypted_order encrypted_same encrypted_text_from encryption_keys event_words export_keys fieldcrypt
    fieldcrypt_internal fieldcrypt_stats fieldcrypt_stats_reset finish_master_key_rotation grant_access
    has_audit_trigger health held_of held_privileges import_keys is_said_to_be_audited is_sealed_as key_id
    key_states_status key_usage keys_from keys_to_rewrap list_of live_runs lock_holders lock_tenant loosen
    mark_compromised master_key_status master_keys next_audit_partition next_tenant note_table_audit origins
    other_nodes privilege_objects problems_of_audited_table protect_column quiet_step quoted_name rebind_field
    record_event record_table_audit reencrypt reencrypt_begin reencrypt_end reencrypt_field reencrypt_step
    reencryption_failures reencryption_progress refuse_foreign refuse_unless_committable refuse_unless_made_here
    refuse_unless_writable refuse_without_cron request_approval resume_key retire_audit_step retire_keys
    revoke_access rewrap_step rotate_key rotate_keys rotate_master_key rotate_step rotation_log rotation_policies
    row_identity schedule_alerts schedule_jobs schedule_rotation schedule_step scheduled_jobs scheduled_keys
    set_column_context set_rotation_policy short_fingerprint shown_text shred_step shred_tenant snapshot_access
    suspend_key target_master_key tenant_statistics try_decrypt_field unaudit_table undo_encrypt_column
    unprotect_column unschedule_alerts unschedule_jobs unschedule_rotation value_failures value_verifications
    verification_step verify_audit_log verify_begin verify_keys verify_step verify_values who_could
    withdraw_approval write_decrypted_view
";
