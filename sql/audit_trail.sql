-- The log in sentences, for people: when, who, did what, to what, and why.

CREATE FUNCTION fieldcrypt_internal.shown_text(words text, most integer) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    -- Numbers of characters are Unicode's in UTF8 alone: elsewhere, what is the same in all encodings.
    SELECT regexp_replace(CASE WHEN length($1) <= $2 THEN $1
                               -- Its characters are bytes: none of UTF-8 is cut in two.
                               WHEN getdatabaseencoding() = 'SQL_ASCII' THEN regexp_replace(left($1, $2), '[\u00c0-\u00ff][\u0080-\u00bf]*$', '') || '...'
                               ELSE left($1, $2) || '...' END,
        CASE WHEN getdatabaseencoding() = 'UTF8' THEN '[\u0001-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+'
             ELSE '[\u0001-\u001f\u007f]+' END, ' ', 'g')
$$;
COMMENT ON FUNCTION fieldcrypt_internal.shown_text(text, integer) IS
    'words as a sentence has them: on one line, without what moves a cursor or turns the direction of writing, cut';

-- Of each event what was done, and what its value_count counts. tests/run/errors.pl tells which event has no sentence.
CREATE FUNCTION fieldcrypt_internal.event_words() RETURNS TABLE (event text, did text, counted text)
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    VALUES ('key_created', 'made a key', NULL),
           ('key_rotated', 'made a new version of a key', NULL),
           ('key_deactivated', 'made a key one that only decrypts', NULL),
           ('key_suspended', 'suspended a key', NULL),
           ('key_resumed', 'resumed a key', NULL),
           ('key_compromised', 'marked a key as compromised', NULL),
           ('key_destruction_scheduled', 'scheduled the destruction of a key', NULL),
           ('key_destruction_cancelled', 'cancelled the destruction of a key', NULL),
           ('key_destroyed', 'erased a key', NULL),
           ('tenant_shredded', 'erased all keys of a tenant', NULL),
           ('key_refused', 'tried to change a key, which was refused', NULL),
           ('rotation_policy_set', 'set how often keys are rotated', NULL),
           ('rotation_policy_removed', 'removed a rule of how often keys are rotated', NULL),
           ('master_key_rotation_started', 'began to wrap the keys by another master key', 'keys'),
           ('master_key_rotation_finished', 'finished to wrap the keys by another master key', 'keys'),
           ('reencryption_started', 'began a re-encryption', 'rows'),
           ('reencryption_finished', 'finished a re-encryption', 'rows'),
           ('reencryption_incomplete', 'ended a re-encryption with something left', 'rows'),
           ('column_context_set', 'set what the values of a column are bound to', NULL),
           ('column_protected', 'had plaintext of a column bound to its row', NULL),
           ('column_unprotected', 'took the protection of a column away', NULL),
           ('column_encryption_started', 'began to encrypt a column', NULL),
           ('column_encrypted', 'encrypted a column', NULL),
           ('column_encryption_undone', 'gave a column back as it was before it was encrypted', NULL),
           ('plaintext_column_dropped', 'dropped what a column was before it was encrypted', NULL),
           ('keys_exported', 'exported the keys', 'keys'),
           ('keys_imported', 'imported keys', 'keys'),
           ('key_states_confirmed', 'confirmed that the states of the keys are the newest', NULL),
           ('approval_requested', 'asked for an approval', NULL),
           ('approval_given', 'gave an approval', NULL),
           ('approval_used', 'did what was approved', NULL),
           ('approval_withdrawn', 'withdrew a request for an approval', NULL),
           ('approval_refused', 'tried what needs an approval, which was refused', NULL),
           ('row_inserted', 'inserted a row', NULL),
           ('row_updated', 'updated a row', NULL),
           ('row_deleted', 'deleted a row', NULL),
           ('table_truncated', 'emptied a table', NULL),
           ('table_audited', 'had changes of a table recorded from then on', NULL),
           ('table_detached', 'detached a partition, whose changes are recorded no more', NULL),
           ('table_unaudited', 'had changes of a table recorded no more', NULL),
           ('extension_updated', 'updated the extension', NULL),
           ('access_granted', 'granted access', NULL),
           ('access_revoked', 'revoked access', NULL),
           ('access_snapshot', 'found a change of who may do what', NULL),
           ('decrypt_failed', 'tried to decrypt, which failed', 'values'),
           ('call_refused', 'tried what was refused', NULL),
           ('master_key_loaded', 'loaded the master key', NULL),
           ('master_key_failed', 'could not load the master key', NULL),
           ('values_decrypted', 'decrypted', 'values'),
           ('audit_gap', 'found events that are not in the log', 'events'),
           ('audit_started', 'began to sign the log by a new key', NULL),
           ('audit_origin_begun', 'began the log under a new name', NULL),
           ('audit_fork_acknowledged', 'said why the log goes on elsewhere', NULL),
           ('audit_findings_acknowledged', 'said why verification finds something', 'rows sealed until then'),
           ('audit_retired', 'emptied a year of the log', 'rows'),
           ('alert_raised', 'raised an alert', NULL),
           ('alert_resolved', 'told that an alert is over', NULL)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.event_words() IS 'each event of the audit log as what somebody did, and what is counted of it';

CREATE FUNCTION fieldcrypt_internal.list_of(items text[], most integer) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_to_string(ARRAY(SELECT fieldcrypt_internal.quoted_name(i.item) FROM unnest($1[1:$2]) AS i (item)), ', ')
           || CASE WHEN cardinality($1) > $2 THEN format(' and %s more', cardinality($1) - $2) ELSE '' END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.list_of(text[], integer) IS 'some names in a sentence, the first of them, and how many more';

-- Of access_snapshot: the reason says it to a machine.
CREATE FUNCTION fieldcrypt_internal.access_words(snapshot text) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    document jsonb;
BEGIN
    document := snapshot::jsonb;
    RETURN format('%s: %s%s',
        document ->> 'privilege',
        coalesce(nullif(fieldcrypt_internal.list_of(ARRAY(
            SELECT format('%s (%s)', e.entry ->> 0, e.entry ->> 1) FROM jsonb_array_elements(document -> 'roles') AS e (entry)), 20), ''), 'nobody'),
        CASE WHEN document ->> 'parts' <> '1' THEN format(', part %s of %s', document ->> 'part', document ->> 'parts') ELSE '' END);
EXCEPTION WHEN data_exception THEN
    -- Somebody else wrote it.
    RETURN 'what: ' || fieldcrypt_internal.quoted_name(snapshot);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.access_words(text) IS 'which roles a privilege reaches, as a sentence says it';

CREATE VIEW fieldcrypt.audit_trail AS
    SELECT t.id, t.at, t.event, t.who, t.did, t.to_what, t.why,
           pg_catalog.concat_ws(' ', t.who, pg_catalog.concat_ws(': ', t.did, t.to_what), '(' OPERATOR(pg_catalog.||) pg_catalog.to_json(t.why)::pg_catalog.text OPERATOR(pg_catalog.||) ')')
               OPERATOR(pg_catalog.||) '.' AS sentence
      FROM (
        SELECT l.id, l.at, l.event,
               pg_catalog.concat_ws(', ',
                   pg_catalog.concat_ws(' as ', fieldcrypt_internal.quoted_name(l.actor),
                       CASE WHEN l.role OPERATOR(pg_catalog.<>) l.actor THEN fieldcrypt_internal.quoted_name(l.role) END),
                   'from ' OPERATOR(pg_catalog.||) pg_catalog.host(l.client_address),
                   'for ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.subject) OPERATOR(pg_catalog.||) ', as claimed') AS who,
               coalesce(w.did, 'did ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.event)) AS did,
               nullif(CASE WHEN l.event OPERATOR(pg_catalog.=) 'access_snapshot' THEN fieldcrypt_internal.access_words(l.reason)
               ELSE pg_catalog.concat_ws(', ',
                   l.value_count OPERATOR(pg_catalog.||) (' ' OPERATOR(pg_catalog.||) coalesce(w.counted, 'things')),
                   fieldcrypt_internal.shown_text(l.row_key::pg_catalog.text, 300),
                   'which was ' OPERATOR(pg_catalog.||) fieldcrypt_internal.shown_text(l.old_row_key::pg_catalog.text, 300),
                   'of ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.table_name),
                   'in ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.partition_name),
                   'with ' OPERATOR(pg_catalog.||) nullif(fieldcrypt_internal.list_of(l.changed_columns, 20), ''),
                   'key ' OPERATOR(pg_catalog.||) l.key_id,
                   'keys ' OPERATOR(pg_catalog.||) nullif(fieldcrypt_internal.list_of(l.key_ids::pg_catalog.text[], 3), ''),
                   'of tenant ' OPERATOR(pg_catalog.||) fieldcrypt_internal.quoted_name(l.tenant),
                   'bound to ' OPERATOR(pg_catalog.||) nullif(fieldcrypt_internal.list_of(l.contexts, 20), '')) END, '') AS to_what,
               nullif(CASE WHEN l.event OPERATOR(pg_catalog.<>) 'access_snapshot' THEN pg_catalog.concat_ws(': ',
                   fieldcrypt_internal.shown_text(l.error_code, 20), fieldcrypt_internal.shown_text(nullif(l.reason, ''), 1000)) END, '') AS why
          FROM fieldcrypt.audit_log AS l
          LEFT JOIN fieldcrypt_internal.event_words() AS w ON w.event OPERATOR(pg_catalog.=) l.event) AS t;
COMMENT ON VIEW fieldcrypt.audit_trail IS
    'the audit log in sentences, a row each: when, who did what, to what, and why. Names are quoted and cut; audit_log has all of them';
COMMENT ON COLUMN fieldcrypt.audit_trail.id IS 'as in audit_log';
COMMENT ON COLUMN fieldcrypt.audit_trail.at IS 'when it happened, by the clock';
COMMENT ON COLUMN fieldcrypt.audit_trail.event IS 'as in audit_log';
COMMENT ON COLUMN fieldcrypt.audit_trail.who IS 'who logged in, as which role, from where; and for whom, which is a claim';
COMMENT ON COLUMN fieldcrypt.audit_trail.did IS 'what was done';
COMMENT ON COLUMN fieldcrypt.audit_trail.to_what IS 'which values, rows, tables, keys, tenants and contexts';
COMMENT ON COLUMN fieldcrypt.audit_trail.why IS 'in the words of who did it; of what failed or was refused, those of the error';
COMMENT ON COLUMN fieldcrypt.audit_trail.sentence IS 'all of it';
