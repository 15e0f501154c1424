//! The extension's own names. Its functions are called where it is not, or not any more: in the wrong database, by an
//! application that comes before its migration, after DROP EXTENSION. Such a statement fails, and is logged, with its values.

use fieldcrypt_sql_text::{Names, OutOfMemory, Place};

use crate::pg::schemas;

/// Every function and procedure that users call, by whatever search_path. The test of what is logged without the extension
/// tells which is missing.
const FUNCTIONS: &str = "
    acknowledge_audit_findings acknowledge_audit_fork apply_audit_retention approve audit_export audit_proof
    audit_status audit_table cancel_destroy_key check_alerts check_audit_log ciphertext_info ciphertext_text
    column_migration_run column_migration_step compliance_report compliance_report_html confirm_key_states context
    create_decrypted_view create_key create_loose_key decrypt_field decrypt_field_as decrypt_field_bytea
    decrypt_field_jsonb destroy_due_keys destroy_key drop_plaintext_column encrypt_column encrypt_field encrypt_field_as
    encrypt_field_bytea encrypt_field_jsonb export_keys fieldcrypt_stats_reset grant_access health import_keys
    is_protected is_sealed_as key_id key_states_status key_usage lock_tenant loosen mark_compromised master_key_status
    protect_column rebind_field reencrypt reencrypt_field request_approval resume_key retire_keys revoke_access
    rotate_key rotate_keys rotate_master_key schedule_alerts schedule_rotation set_column_context set_rotation_policy
    shred_tenant snapshot_access suspend_key try_decrypt_field unaudit_table undo_encrypt_column unprotect_column
    unschedule_alerts unschedule_rotation verify_audit_log verify_keys verify_values who_could withdraw_approval
    write_decrypted_view
";

/// Its types for users.
const TYPES: [&[u8]; 2] = [b"encrypted", b"encrypted_text"];

/// Adds them all.
pub fn add_to(names: &mut Names) -> Result<(), OutOfMemory> {
    for schema in schemas::ALL {
        names.add(schema.to_bytes(), Place::Anywhere)?;
    }
    for name in TYPES {
        names.add(name, Place::Code)?;
    }
    FUNCTIONS
        .split_ascii_whitespace()
        .try_for_each(|function| names.add(function.as_bytes(), Place::Call))
}
