-- How the queue, the worker and the seals of the audit log stand.

CREATE FUNCTION fieldcrypt_internal.audit_queue_status() RETURNS text
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_audit_status';
COMMENT ON FUNCTION fieldcrypt_internal.audit_queue_status() IS 'what shared memory tells of this database''s audit queue';

CREATE FUNCTION fieldcrypt.audit_status(
        OUT is_preloaded boolean, OUT is_standby boolean, OUT ring_bytes bigint, OUT ring_used bigint,
        OUT queued_events bigint, OUT gap_events bigint, OUT worker_pid integer, OUT last_written_at timestamptz,
        OUT unsealed_rows bigint, OUT last_checkpoint_at timestamptz, OUT last_checkpoint_size bigint,
        OUT last_problem text)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.is_preloaded, pg_is_in_recovery(), s.ring_bytes, s.ring_used, s.queued_events, s.gap_events, s.worker_pid,
           s.last_written_at,
           (SELECT count(*) FROM fieldcrypt.audit_log AS l WHERE l.leaf IS NULL),
           s.last_checkpoint_at, s.last_checkpoint_size, s.last_problem
      FROM jsonb_to_record(fieldcrypt_internal.audit_queue_status()::jsonb) AS s (
           is_preloaded boolean, ring_bytes bigint, ring_used bigint, queued_events bigint, gap_events bigint,
           worker_pid integer, last_written_at timestamptz, last_checkpoint_at timestamptz,
           last_checkpoint_size bigint, last_problem text)
$$;
COMMENT ON FUNCTION fieldcrypt.audit_status() IS
    'how the audit log of this database is written: is_preloaded (otherwise events that outlive their transaction go to the server log), the queue (bytes; events since the server started; gap_events: that found no room), the worker (NULL: none runs now, one starts when needed), rows without a seal, and the last checkpoint and problem since the server started';
