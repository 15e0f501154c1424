-- Two people for what can't be undone: one asks, another approves, and then the one who asked does it.
--
-- The setting fieldcrypt.require_approval says what needs it. Who is who is session_user, and the role
-- that logged in beside it: SET ROLE changes neither.

CREATE FUNCTION fieldcrypt_internal.needs_approval(operation text) RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'fieldcrypt_needs_approval';
COMMENT ON FUNCTION fieldcrypt_internal.needs_approval(text) IS
    'whether the configuration demands an approval for an operation (the setting itself could be shown wrong before the library is loaded)';

CREATE FUNCTION fieldcrypt_internal.login_role() RETURNS text
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'fieldcrypt_login_role';
COMMENT ON FUNCTION fieldcrypt_internal.login_role() IS 'the role that logged in, whatever SET SESSION AUTHORIZATION says';

-- Who approves must mean it: a trigger or a function of somebody else, run in the approver's session,
-- has the approver's name too.
CREATE FUNCTION fieldcrypt_internal.by_own_hand() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_by_own_hand';
CREATE FUNCTION fieldcrypt_internal.refuse_unless_own_hand() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_refuse_unless_own_hand';
COMMENT ON FUNCTION fieldcrypt_internal.by_own_hand() IS
    'notes, for the rest of the transaction, that a CALL of the session itself does this; an error in functions and triggers';
COMMENT ON FUNCTION fieldcrypt_internal.refuse_unless_own_hand() IS
    'an error unless by_own_hand was called in this transaction; granted to nobody';

CREATE SEQUENCE fieldcrypt_internal.approvals_id_seq AS bigint;

-- Not in a dump: an approval lasts for days, and one that a restore could bring could be forged. What
-- was asked, approved and done stays in the audit log.
CREATE TABLE fieldcrypt.approvals (
    id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('fieldcrypt_internal.approvals_id_seq'),
    operation text COLLATE "C" NOT NULL CHECK (operation IN ('rotate_master_key', 'shred_tenant', 'destroy_key')),
    subject text COLLATE "C" NOT NULL,
    reason text NOT NULL,
    requested_by text COLLATE "C" NOT NULL DEFAULT session_user,
    requested_role text COLLATE "C" NOT NULL DEFAULT fieldcrypt_internal.outer_role(),
    requested_login text COLLATE "C" NOT NULL DEFAULT fieldcrypt_internal.login_role(),
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    expires_at timestamptz NOT NULL,
    approved_by text COLLATE "C",
    approved_role text COLLATE "C",
    approved_login text COLLATE "C",
    approved_at timestamptz,
    used_by text COLLATE "C",
    used_role text COLLATE "C",
    used_at timestamptz,
    withdrawn_by text COLLATE "C",
    withdrawn_at timestamptz,
    CONSTRAINT two_people CHECK (approved_by OPERATOR(pg_catalog.<>) requested_by
        AND approved_login OPERATOR(pg_catalog.<>) requested_login),
    CONSTRAINT used_by_who_asked CHECK (used_by IS NULL OR approved_by IS NOT NULL AND used_by OPERATOR(pg_catalog.=) requested_by)
);
CREATE INDEX approvals_subject ON fieldcrypt.approvals (operation, subject);

-- ALWAYS: session_replication_role leaves them on.
CREATE TRIGGER refuse_change BEFORE INSERT OR UPDATE OR DELETE ON fieldcrypt.approvals
    FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fieldcrypt.approvals
    FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.refuse_change();
ALTER TABLE fieldcrypt.approvals ENABLE ALWAYS TRIGGER refuse_change;
ALTER TABLE fieldcrypt.approvals ENABLE ALWAYS TRIGGER refuse_truncate;

COMMENT ON SEQUENCE fieldcrypt_internal.approvals_id_seq IS 'ids of fieldcrypt.approvals';
COMMENT ON TABLE fieldcrypt.approvals IS 'who asked for what, and who approved it: written by the extension only';
COMMENT ON COLUMN fieldcrypt.approvals.id IS 'what approve and withdraw_approval take';
COMMENT ON COLUMN fieldcrypt.approvals.operation IS 'rotate_master_key, shred_tenant or destroy_key';
COMMENT ON COLUMN fieldcrypt.approvals.subject IS 'the fingerprint of the new master key in hex, the tenant, or the key id';
COMMENT ON COLUMN fieldcrypt.approvals.reason IS 'why, in the words of the request';
COMMENT ON COLUMN fieldcrypt.approvals.requested_by IS 'session_user of who asked; only that one can use the approval';
COMMENT ON COLUMN fieldcrypt.approvals.requested_role IS 'the role chosen with SET ROLE by who asked';
COMMENT ON COLUMN fieldcrypt.approvals.requested_login IS 'the role that logged in, whatever SET SESSION AUTHORIZATION said';
COMMENT ON COLUMN fieldcrypt.approvals.requested_at IS 'when it was asked for';
COMMENT ON COLUMN fieldcrypt.approvals.expires_at IS 'until when it can be approved and used';
COMMENT ON COLUMN fieldcrypt.approvals.approved_by IS 'session_user of who approved; never who asked';
COMMENT ON COLUMN fieldcrypt.approvals.approved_role IS 'the role chosen with SET ROLE by who approved';
COMMENT ON COLUMN fieldcrypt.approvals.approved_login IS 'the role that logged in of who approved';
COMMENT ON COLUMN fieldcrypt.approvals.approved_at IS 'when it was approved';
COMMENT ON COLUMN fieldcrypt.approvals.used_by IS 'who did it';
COMMENT ON COLUMN fieldcrypt.approvals.used_role IS 'the role chosen with SET ROLE by who did it';
COMMENT ON COLUMN fieldcrypt.approvals.used_at IS 'when it was done: an approval is good for one time';
COMMENT ON COLUMN fieldcrypt.approvals.withdrawn_by IS 'who took it back';
COMMENT ON COLUMN fieldcrypt.approvals.withdrawn_at IS 'when it was taken back';

CREATE FUNCTION fieldcrypt_internal.insert_approval(id bigint, operation text, subject text, reason text, seconds bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_insert_approval';
CREATE FUNCTION fieldcrypt_internal.mark_approved(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_approved';
CREATE FUNCTION fieldcrypt_internal.mark_used(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_used';
CREATE FUNCTION fieldcrypt_internal.mark_withdrawn(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'fieldcrypt_mark_withdrawn';
COMMENT ON FUNCTION fieldcrypt_internal.insert_approval(bigint, text, text, text, bigint) IS 'writes a request of session_user; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.mark_approved(bigint) IS 'approves as session_user what another asked for and is open; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.mark_used(bigint) IS 'spends an approval of session_user; granted to nobody';
COMMENT ON FUNCTION fieldcrypt_internal.mark_withdrawn(bigint) IS 'takes an unused approval back; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.record_approval(event text, operation text, subject text, reason text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt_internal.record_event($1,
        CASE $2 WHEN 'shred_tenant' THEN $3
                WHEN 'destroy_key' THEN (SELECT k.tenant FROM fieldcrypt.encryption_keys AS k WHERE k.key_id::text = $3) END,
        CASE WHEN $2 = 'destroy_key' THEN (SELECT k.key_id FROM fieldcrypt.encryption_keys AS k WHERE k.key_id::text = $3) END,
        format('%s %s: %s', $2, $3, $4), NULL)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.record_approval(text, text, text, text) IS 'an audit row about an approval; granted to nobody';

CREATE FUNCTION fieldcrypt.request_approval(
        operation text, subject text, reason text, expires_in interval DEFAULT '24 hours') RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    new_id bigint;
BEGIN
    IF operation IS NULL OR subject IS NULL OR reason IS NULL OR expires_in IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'operation, subject, reason and expires_in must not be NULL';
    END IF;
    PERFORM fieldcrypt_internal.needs_approval(operation);
    IF NOT (CASE operation
            WHEN 'rotate_master_key' THEN subject ~ '^[0-9a-f]{32}$'
            WHEN 'destroy_key' THEN subject ~ '^[1-9][0-9]{0,18}$'
            ELSE octet_length(subject) BETWEEN 1 AND 1024 END) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('"%s" is nothing that %s can be about', left(subject, 64), operation),
            HINT = 'The subject of rotate_master_key is the new master key''s fingerprint (32 hex digits), of shred_tenant the tenant, of destroy_key the key id.';
    END IF;
    IF btrim(reason) = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a request needs a reason',
            HINT = 'Whoever approves reads it, and so does the auditor.';
    END IF;
    IF expires_in <= interval '0' OR expires_in > interval '7 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a request expires after 7 days at most',
            HINT = 'Leave expires_in out for 24 hours.';
    END IF;
    new_id := nextval('fieldcrypt_internal.approvals_id_seq');
    PERFORM fieldcrypt_internal.insert_approval(new_id, operation, subject, reason,
        ceil(EXTRACT(epoch FROM expires_in))::bigint);
    PERFORM fieldcrypt_internal.record_approval('approval_requested', operation, subject,
        format('request %s: %s', new_id, reason));
    RETURN new_id;
END
$$;
COMMENT ON FUNCTION fieldcrypt.request_approval(text, text, text, interval) IS
    'asks for rotate_master_key, shred_tenant or destroy_key; another role approves with CALL fieldcrypt.approve(id)';

CREATE FUNCTION fieldcrypt.withdraw_approval(id bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    request fieldcrypt.approvals;
BEGIN
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a WHERE a.id = id;
    IF NOT coalesce(fieldcrypt_internal.mark_withdrawn(id), false) THEN
        RAISE EXCEPTION USING ERRCODE = 'KF019',
            MESSAGE = format('there is no request %s that could be withdrawn', id),
            HINT = 'SELECT * FROM fieldcrypt.approvals shows all: used and withdrawn ones stay as they are. (KF019, see docs/errors.md)';
    END IF;
    PERFORM fieldcrypt_internal.record_approval('approval_withdrawn', request.operation, request.subject, format('request %s', id));
    RAISE NOTICE 'withdraw_approval: request % is withdrawn: % "%"', id, request.operation, request.subject;
END
$$;
COMMENT ON FUNCTION fieldcrypt.withdraw_approval(bigint) IS 'takes a request, approved or not, back: anybody with manage can';

-- A refusal is given back, not raised: so the record of it stays.
CREATE FUNCTION fieldcrypt_internal.approve_step(id bigint, OUT message text, OUT hint text, OUT done text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    request fieldcrypt.approvals;
BEGIN
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a WHERE a.id = id;
    IF fieldcrypt_internal.mark_approved(id) THEN
        PERFORM fieldcrypt_internal.record_approval('approval_given', request.operation, request.subject,
            format('request %s of %s: %s', id, request.requested_by, request.reason));
        done := format('request %s is approved: %s may %s "%s" until %s', id, request.requested_by, request.operation, request.subject,
            date_trunc('second', request.expires_at));
        RETURN;
    END IF;
    -- Anew: it may have been somebody else who was faster.
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a WHERE a.id = id;
    hint := 'SELECT * FROM fieldcrypt.approvals shows all requests; fieldcrypt.request_approval makes a new one. (KF019, see docs/errors.md)';
    IF request.id IS NULL THEN
        message := format('there is no request %s', id);
    ELSIF request.withdrawn_by IS NOT NULL THEN
        message := format('request %s was withdrawn by %s', id, request.withdrawn_by);
    ELSIF request.used_by IS NOT NULL THEN
        message := format('request %s was approved and used already', id);
    ELSIF request.approved_by IS NOT NULL THEN
        message := format('request %s was approved already, by %s', id, request.approved_by);
    ELSIF request.expires_at <= clock_timestamp() THEN
        message := format('request %s has expired', id);
    ELSE
        message := format('request %s is your own', id);
        hint := 'Another person approves it, who logs in with a role of their own: SET ROLE and SET SESSION AUTHORIZATION don''t count. (KF019, see docs/errors.md)';
    END IF;
    PERFORM fieldcrypt_internal.record_approval('approval_refused', coalesce(request.operation, 'approve'),
        coalesce(request.subject, '?'), message);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.approve_step(bigint) IS
    'approves a request; a refusal is recorded and given back, not raised';

CREATE PROCEDURE fieldcrypt.approve(id bigint)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    step pg_catalog.record;
BEGIN
    -- In a transaction block this is refused (2D000) before anything has happened.
    PERFORM fieldcrypt_internal.refuse_unless_committable();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM fieldcrypt_internal.refuse_unless_writable();
    PERFORM fieldcrypt_internal.by_own_hand();
    SELECT s.message, s.hint, s.done INTO step FROM fieldcrypt_internal.approve_step(id) AS s;
    COMMIT;
    IF step.message IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'KF019', MESSAGE = step.message, HINT = step.hint;
    END IF;
    RAISE NOTICE 'approve: %', step.done;
END
$$;
COMMENT ON PROCEDURE fieldcrypt.approve(bigint) IS
    'approves what another role asked for with request_approval; a refusal is an error and a row of the audit log';

-- For procedures: what is refused is recorded and given back, and they commit before they raise it.
CREATE FUNCTION fieldcrypt_internal.spend_approval(operation text, subject text, OUT message text, OUT hint text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    request fieldcrypt.approvals;
BEGIN
    IF NOT fieldcrypt_internal.needs_approval(operation) THEN
        RETURN;
    END IF;
    -- destroy_key is only scheduled, and retire_keys is a function.
    IF operation <> 'destroy_key' THEN
        PERFORM fieldcrypt_internal.refuse_unless_own_hand();
    END IF;
    FOR request IN
        SELECT a.* FROM fieldcrypt.approvals AS a
         WHERE a.operation = operation AND a.subject = subject AND a.requested_by = session_user
           AND a.approved_by IS NOT NULL AND a.used_by IS NULL AND a.withdrawn_by IS NULL
           AND a.expires_at > clock_timestamp()
         ORDER BY a.expires_at, a.id
    LOOP
        -- Holds the same conditions: another session may have been faster.
        IF fieldcrypt_internal.mark_used(request.id) THEN
            PERFORM fieldcrypt_internal.record_approval('approval_used', operation, subject,
                format('request %s, approved by %s: %s', request.id, request.approved_by, request.reason));
            RETURN;
        END IF;
    END LOOP;
    -- The nearest miss is the best reason: what this user asked for, what is still open, what was approved,
    -- the latest.
    SELECT a.* INTO request FROM fieldcrypt.approvals AS a
     WHERE a.operation = operation AND a.subject = subject
     ORDER BY a.requested_by = session_user DESC,
              (a.used_by IS NULL AND a.withdrawn_by IS NULL AND a.expires_at > clock_timestamp()) DESC,
              (a.approved_by IS NOT NULL) DESC, a.id DESC
     LIMIT 1;
    message := format('%s "%s" needs an approval: ', operation, subject) || CASE
        WHEN request.id IS NULL THEN 'nobody has asked for it'
        WHEN request.requested_by <> session_user THEN format('request %s is of %s, who alone can use it', request.id, request.requested_by)
        WHEN request.withdrawn_by IS NOT NULL THEN format('request %s was withdrawn by %s', request.id, request.withdrawn_by)
        WHEN request.used_by IS NOT NULL THEN format('request %s has been used', request.id)
        WHEN request.expires_at <= clock_timestamp() THEN format('request %s has expired', request.id)
        ELSE format('request %s waits for another role', request.id) END;
    hint := format(
        'SELECT fieldcrypt.request_approval(%L, %L, reason); then another role: CALL fieldcrypt.approve(id). What needs it is in fieldcrypt.require_approval. (KF019, see docs/errors.md)',
        operation, subject);
    PERFORM fieldcrypt_internal.record_approval('approval_refused', operation, subject, message);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.spend_approval(text, text) IS
    'spends the approval that an operation needs by the configuration; without one, records and gives back why; granted to nobody';
