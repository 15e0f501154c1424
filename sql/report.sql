-- The compliance report: what is known of keys, access, use and the log, for who reads it without a database.
-- docs/compliance-report.md says what each figure is; report_figures.sql and report_audit.sql make them.

CREATE FUNCTION fieldcrypt_internal.report_requirements() RETURNS TABLE (standard text, section text, title text, figures text[], note text)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    VALUES
    ('HIPAA', '164.312(a)(2)(iv)', 'Encryption and decryption',
        '{cryptography,keys,master_keys,rotation,reencryption,destruction}'::text[],
        'Fields are encrypted with authenticated encryption under keys of their own for each tenant; the figures show which keys there are, how old they are and what is still on old ones.'),
    ('HIPAA', '164.312(b)', 'Audit controls',
        '{access,use,approvals,exports,audit_log,verification,health}',
        'Use of keys, failures, refusals and changes of rights are recorded and can be examined here.'),
    ('HIPAA', '164.312(c)(1)', 'Integrity',
        '{cryptography,audit_log,verification}',
        'A changed value does not decrypt; a changed record of the log is found by its seal.'),
    ('PCI DSS v4', '3.6.1.1', 'Description of the cryptographic architecture: algorithms, keys, their use and expiry', '{cryptography,keys,master_keys}',
        'The inventory of keys and algorithms.'),
    ('PCI DSS v4', '3.6.1.2', 'Keys are stored encrypted by a key-encrypting key that is stored apart', '{cryptography,master_keys}',
        'Each encryption key is wrapped by a master key that is not in the database. Where that one is stored is outside of this report.'),
    ('PCI DSS v4', '3.6.1.3', 'Access to keys is restricted to the fewest custodians necessary', '{access,exports}',
        'Who holds which privilege, and who is above all of them.'),
    ('PCI DSS v4', '3.7.1', 'Generation of strong keys', '{cryptography}', 'Algorithms, lengths, and where random bytes come from.'),
    ('PCI DSS v4', '3.7.4', 'Keys are changed at the end of their cryptoperiod', '{keys,master_keys,rotation}',
        'Ages of keys against the policy of rotation, and what was rotated.'),
    ('PCI DSS v4', '3.7.5', 'Retirement, replacement and destruction of keys', '{keys,reencryption,destruction,approvals}',
        'Keys that are suspended, compromised or destroyed, and values that are still on keys to be replaced.'),
    ('PCI DSS v4', '3.7.7', 'Prevention of unauthorized substitution of keys', '{access,approvals,exports,verification}',
        'A wrapped key is bound to its row; imports, approvals and changes of rights are recorded.'),
    ('GDPR', 'Art. 32(1)(a)', 'Encryption of personal data', '{cryptography,keys,reencryption}', 'Which fields are encrypted, and by which keys.'),
    ('GDPR', 'Art. 32(1)(b)', 'Ongoing confidentiality and integrity', '{access,use,audit_log,verification}', 'Who can decrypt, who did, and whether the record holds.'),
    ('GDPR', 'Art. 32(1)(c)', 'Restoring availability and access after an incident', '{exports}',
        'When the keys were last exported, and whether their states are confirmed since the last restore.'),
    ('GDPR', 'Art. 32(1)(d)', 'Regular testing and evaluation of the measures', '{verification,health}', 'Verification of the log, and the checks of health().')
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_requirements() IS 'which requirement each figure of the compliance report supports; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_cryptography() RETURNS jsonb
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object('algorithms', jsonb_agg(jsonb_build_object('use', a.use, 'algorithm', a.algorithm, 'key_bits', a.bits, 'standard', a.standard) ORDER BY a.place))
      FROM (VALUES
        (1, 'Encryption of fields', 'XAES-256-GCM (authenticated), a key for each tenant and version', 256, 'C2SP XAES-256-GCM, NIST SP 800-38D'),
        (2, 'Wrapping of encryption keys by the master key', 'XAES-256-GCM, bound to tenant, key id, version, purpose and master key', 256, 'C2SP XAES-256-GCM'),
        (3, 'Derivation of keys', 'HKDF-SHA256: no key serves two algorithms', 256, 'RFC 5869'),
        (4, 'Authentication of key exports and of rows of the audit log', 'HMAC-SHA256', 256, 'RFC 2104, FIPS 198-1'),
        (5, 'Sealing of the audit log', 'Merkle tree with SHA-256', NULL, 'RFC 6962, section 2.1'),
        (6, 'Signatures of checkpoints', 'Ed25519', 256, 'RFC 8032, C2SP signed-note and tlog-checkpoint'),
        (7, 'Random bytes', 'the operating system''s generator, drawn in each server process', NULL, 'getrandom(2)')
      ) AS a (place, use, algorithm, bits, standard)
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_cryptography() IS 'the algorithms in use; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_limits() RETURNS text[]
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY[
        'This report shows what the database records. Whether an installation meets a requirement is for its assessor; the mapping says what a figure can be evidence for, not that a requirement is met.',
        'A superuser of the database, and whoever is root or the server''s user, can read the master key through the server, load code, and change what the database says. They are listed under access, not kept out. Only a checkpoint of the audit log that was stored outside, before, contradicts them.',
        'Whoever has the master key and a copy of the database can decrypt elsewhere; nothing here would show it.',
        'Plaintext is outside of the extension in applications, their logs and caches, in query results, in temporary files of queries that decrypt, and in copies that users make. Nothing here shows them.',
        'Decryptions are in the log only as far as fieldcrypt.audit_decrypt had them recorded at the time. A figure of zero can mean that none was recorded.',
        'Changes of rights are in the log as far as they were made with grant_access and revoke_access. A plain GRANT is shown in the table of rights as it is now, and not when or by whom it was made. Membership of roles likewise.',
        'Inventory, ages, access and coverage are of the time at which the report was made, not of the end of the period.',
        'Values on old keys are counted in columns of type fieldcrypt.encrypted (also in domains, arrays and composites); ciphertext copied into other types, files or other systems is not seen. Estimates are marked as such.',
        'Destroyed keys live on in old backups, key exports, archived WAL and standbys until those are gone.',
        'Where the master key is stored, who can read it there, and how backups are kept, is outside of the database.']
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_limits() IS 'what the compliance report does not show; granted to nobody';

-- What a check found, or why it did not run: a failing check is a finding, not the end of the report.
CREATE FUNCTION fieldcrypt_internal.report_verified(
        tenant text, from_time timestamptz, to_time timestamptz, verify boolean, most integer) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found jsonb;
    began timestamptz := clock_timestamp();
BEGIN
    IF NOT verify THEN
        RETURN jsonb_build_object('status', 'not run', 'summary', 'verify was false');
    END IF;
    -- A finding may name rows of others; for one tenant's report it is enough that there is one.
    SELECT jsonb_build_object(
               'status', min(v.status) FILTER (WHERE v.finding = 'summary'),
               'summary', CASE WHEN tenant IS NULL THEN min(v.detail) FILTER (WHERE v.finding = 'summary') END,
               'from', fieldcrypt_internal.utc_text(from_time), 'to', fieldcrypt_internal.utc_text(to_time),
               'findings', jsonb_build_object(
                   'total', count(*) FILTER (WHERE v.finding <> 'summary'),
                   'rows', coalesce(jsonb_agg(jsonb_build_object('status', v.status, 'finding', v.finding, 'leaf', v.leaf, 'log_id', v.log_id::text,
                               'detail', CASE WHEN tenant IS NULL THEN v.detail END) ORDER BY v.place)
                           FILTER (WHERE v.finding <> 'summary' AND v.place <= most + 1), '[]')))
      INTO found
      FROM fieldcrypt.verify_audit_log(from_time, to_time)
           WITH ORDINALITY AS v(status, finding, leaf, log_id, detail, place);
    RETURN found || jsonb_build_object('seconds', round(EXTRACT(epoch FROM clock_timestamp() - began), 1));
EXCEPTION
WHEN out_of_memory THEN
    RAISE;
WHEN OTHERS THEN
    RETURN jsonb_build_object('status', 'failed', 'summary', format('%s (%s)', SQLERRM, SQLSTATE));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_verified(text, timestamptz, timestamptz, boolean, integer) IS
    'what verify_audit_log() says, or why it could not; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.report_verification(
        tenant text, from_time timestamptz, to_time timestamptz, since timestamptz, until timestamptz, verify boolean, most integer) RETURNS jsonb
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT fieldcrypt_internal.report_verified($1, $2, $3, $6, $7) || jsonb_build_object('stored', jsonb_build_object(
        'total', (SELECT count(*) FROM fieldcrypt.audit_verifications AS v WHERE v.ended_at >= $4 AND v.ended_at < $5),
        'rows', coalesce((
            SELECT jsonb_agg(jsonb_build_object('at', fieldcrypt_internal.utc_text(v.ended_at), 'status', v.status, 'findings', v.findings, 'actor', v.actor,
                       'detail', CASE WHEN $1 IS NULL THEN v.detail END) ORDER BY v.id DESC)
              FROM (SELECT v.* FROM fieldcrypt.audit_verifications AS v WHERE v.ended_at >= $4 AND v.ended_at < $5 ORDER BY v.id DESC LIMIT $7) AS v), '[]')))
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_verification(text, timestamptz, timestamptz, timestamptz, timestamptz, boolean, integer) IS
    'the audit log verified now, and the verifications of the period; granted to nobody';

-- What health() knows from bookkeeping alone, the report may have counted: then that is told, and not two things.
CREATE FUNCTION fieldcrypt_internal.report_health(tenant text, counted jsonb) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- In all tables, and each row: of a sample without a value of a key it is not known whether there is one.
    is_counted boolean := coalesce(tenant IS NULL AND counted ->> 'problem' IS NULL
        AND (counted #>> '{totals,is_exact}')::boolean AND (counted #>> '{totals,columns_not_counted}')::bigint = 0
        AND fieldcrypt_internal.uncountable('-infinity') IS NULL
        AND NOT EXISTS (SELECT FROM fieldcrypt_internal.encrypted_columns() AS c WHERE c.problem IS NOT NULL)
        -- As key_usage() has it.
        AND (SELECT coalesce(sum(pg_table_size(t.relation)), 0) <= 536870912
               FROM (SELECT DISTINCT c.relation FROM fieldcrypt_internal.encrypted_columns() AS c) AS t), false);
BEGIN
    RETURN (SELECT jsonb_build_object(
                'status', CASE WHEN count(*) FILTER (WHERE h.status = 'critical') > 0 THEN 'critical'
                               WHEN count(*) FILTER (WHERE h.status <> 'ok') > 0 THEN 'warning' ELSE 'ok' END,
                'ok', count(*) FILTER (WHERE h.status = 'ok'), 'warning', count(*) FILTER (WHERE h.status = 'warning'),
                'critical', count(*) FILTER (WHERE h.status = 'critical'),
                -- What a check says may name tenants.
                'checks', coalesce(jsonb_agg(jsonb_build_object('check', h."check", 'status', h.status,
                              'detail', CASE WHEN tenant IS NULL THEN h.detail END, 'hint', CASE WHEN tenant IS NULL THEN h.hint END)
                          ORDER BY array_position('{critical,warning,ok}'::text[], h.status), h.place), '[]'))
              FROM (SELECT h."check", h.place,
                           CASE WHEN c.is_none THEN 'ok' ELSE h.status END AS status,
                           CASE WHEN c.is_none THEN format('no values are on %s keys: they were counted for this report', c.state) ELSE h.detail END AS detail,
                           CASE WHEN NOT c.is_none THEN h.hint END AS hint
                      FROM fieldcrypt.health() WITH ORDINALITY AS h("check", status, detail, hint, place)
                     CROSS JOIN LATERAL (
                        SELECT s.state, is_counted AND h.status <> 'ok' AND h."check" IN ('compromised_keys', 'suspended_keys')
                                        AND h.detail LIKE 'values may be%' AND coalesce((counted #>> ARRAY['totals', s.state])::bigint, 0) = 0 AS is_none
                          FROM (SELECT replace(h."check", '_keys', '') AS state) AS s) AS c) AS h);
EXCEPTION
WHEN out_of_memory THEN
    RAISE;
WHEN OTHERS THEN
    RETURN jsonb_build_object('status', 'failed', 'problem', format('%s (%s)', SQLERRM, SQLSTATE), 'checks', jsonb '[]');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.report_health(text, jsonb) IS 'what health() says, and the report''s own counts instead of its guesses, or why it could not; granted to nobody';

CREATE FUNCTION fieldcrypt.compliance_report(
        tenant text DEFAULT NULL, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL,
        verify boolean DEFAULT true, count_values boolean DEFAULT true) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    -- Nobody waits long for what a check or a count can't read now: it says so.
    SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET jit = off SET lock_timeout = '5s'
AS $$
#variable_conflict use_variable
DECLARE
    most CONSTANT integer := 50;
    made_at timestamptz := clock_timestamp();
    until timestamptz := coalesce(to_time, made_at);
    since timestamptz;
    figures jsonb;
BEGIN
    IF verify IS NULL OR count_values IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'verify and count_values must not be NULL';
    END IF;
    IF NOT isfinite(until) OR NOT isfinite(coalesce(from_time, until)) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the period of a report must not be infinite',
            HINT = 'Leave from_time or to_time out: that is the last 365 days.';
    END IF;
    since := coalesce(from_time, until - interval '365 days');
    IF since >= until OR since < until - interval '100 years' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'the period of a report must begin before it ends, and be at most 100 years long',
            HINT = format('This one is from %s to %s.', since, until);
    END IF;
    IF tenant IS NOT NULL AND NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.tenant = tenant AND k.purpose = 'field') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('tenant "%s" has no keys in this database', tenant),
            HINT = 'Leave the tenant out for a report about all.';
    END IF;
    figures := jsonb_build_object(
        'cryptography', fieldcrypt_internal.report_cryptography(),
        'keys', fieldcrypt_internal.report_keys(tenant, since, until, most),
        'master_keys', fieldcrypt_internal.report_master_keys(tenant, since, until, most),
        'rotation', fieldcrypt_internal.report_rotation(tenant, since, until, most),
        'reencryption', fieldcrypt_internal.report_reencryption(tenant, count_values, most),
        'destruction', fieldcrypt_internal.report_destruction(tenant, since, until, most),
        'access', fieldcrypt_internal.report_access(since, until, most),
        'use', fieldcrypt_internal.report_use(tenant, since, until, most),
        'approvals', fieldcrypt_internal.report_approvals(tenant, since, until, most),
        'exports', fieldcrypt_internal.report_exports(since, until, most),
        'audit_log', fieldcrypt_internal.report_log(tenant, since, until, most),
        'verification', fieldcrypt_internal.report_verification(tenant, from_time, to_time, since, until, verify, most));
    figures := figures || jsonb_build_object('health', fieldcrypt_internal.report_health(tenant, figures -> 'reencryption'));
    RETURN jsonb_build_object(
            'format', 'pg_fieldcrypt compliance report',
            'version', 1,
            'generated', jsonb_build_object(
                'at', fieldcrypt_internal.utc_text(made_at), 'by', session_user, 'role', fieldcrypt_internal.outer_role(),
                'database', current_database(), 'system_identifier', (SELECT h.system_identifier::text FROM fieldcrypt_internal.origin_here() AS h),
                'is_standby', pg_is_in_recovery(),
                'extension_version', (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'pg_fieldcrypt'),
                'server_version', current_setting('server_version')),
            'period', jsonb_build_object('from', fieldcrypt_internal.utc_text(since), 'to', fieldcrypt_internal.utc_text(until)),
            'scope', jsonb_build_object('tenant', tenant),
            'rows_listed_at_most', most,
            'requirements', (SELECT jsonb_agg(jsonb_build_object('standard', r.standard, 'section', r.section, 'title', r.title,
                                        'figures', to_jsonb(r.figures), 'note', r.note)) FROM fieldcrypt_internal.report_requirements() AS r),
            'limits', to_jsonb(fieldcrypt_internal.report_limits()))
        || (SELECT jsonb_object_agg(f.name, f.contents || jsonb_build_object('supports', (
                       SELECT coalesce(jsonb_agg(r.standard || ' ' || r.section), '[]')
                         FROM fieldcrypt_internal.report_requirements() AS r WHERE f.name = ANY (r.figures))))
              FROM jsonb_each(figures) AS f(name, contents));
END
$$;
COMMENT ON FUNCTION fieldcrypt.compliance_report(text, timestamptz, timestamptz, boolean, boolean) IS
    'what is known of keys, rotation, access, use and the audit log, as one document: of a tenant or of all, for a period (the last 365 days); verify: runs verify_audit_log() over the times given; count_values: looks which values are on old keys. See docs/compliance-report.md';

CREATE FUNCTION fieldcrypt_internal.report_page(report jsonb) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'fieldcrypt_report_page';
COMMENT ON FUNCTION fieldcrypt_internal.report_page(jsonb) IS 'a compliance report as a page of HTML, in ASCII; granted to nobody';

CREATE FUNCTION fieldcrypt.compliance_report_html(
        tenant text DEFAULT NULL, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL,
        verify boolean DEFAULT true, count_values boolean DEFAULT true) RETURNS text
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT fieldcrypt_internal.report_page(fieldcrypt.compliance_report($1, $2, $3, $4, $5)) $$;
COMMENT ON FUNCTION fieldcrypt.compliance_report_html(text, timestamptz, timestamptz, boolean, boolean) IS
    'compliance_report() as one self-contained page: no script, no request, printable. psql -XAt -o report.html -c ''SELECT fieldcrypt.compliance_report_html()''';
