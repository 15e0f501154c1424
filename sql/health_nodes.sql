-- Health of more than one node: subscriptions that bring keys, publications that send more than is meant, nodes that lack
-- keys, values that are elsewhere.

-- A subscription that fails starts anew every few seconds, and is seen between two failures as well as in one. So one
-- that is at work counts as failing while it began a moment ago and has failed before.
CREATE FUNCTION fieldcrypt_internal.check_key_subscriptions(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    item record;
    errors bigint;
    total bigint := 0;
    problem text;
    problems text[] := '{}';
    names text[] := '{}';
    is_critical boolean := false;
BEGIN
    PERFORM pg_stat_clear_snapshot();
    FOR item IN
        SELECT s.oid, s.subname, s.subenabled, bool_and(r.srsubstate IN ('r', 's')) AS is_copied,
               EXISTS (SELECT FROM pg_stat_subscription AS w WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) AS is_at_work,
               (SELECT min(a.backend_start) FROM pg_stat_subscription AS w JOIN pg_stat_activity AS a ON a.pid = w.pid
                 WHERE w.subid = s.oid AND w.relid IS NULL) AS began,
               (SELECT max(w.last_msg_receipt_time) FROM pg_stat_subscription AS w
                 WHERE w.subid = s.oid AND w.relid IS NULL) AS heard
          FROM pg_subscription AS s
          JOIN pg_subscription_rel AS r ON r.srsubid = s.oid
         -- A database that was copied tells of the other's, too.
         WHERE s.subdbid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
           AND r.srrelid IN ('fieldcrypt.encryption_keys'::regclass, 'fieldcrypt.master_keys'::regclass)
         GROUP BY s.oid, s.subname, s.subenabled
         ORDER BY s.subname
    LOOP
        total := total + 1;
        errors := 0;
        -- From PostgreSQL 15 on.
        IF to_regclass('pg_catalog.pg_stat_subscription_stats') IS NOT NULL THEN
            EXECUTE 'SELECT e.apply_error_count + e.sync_error_count FROM pg_catalog.pg_stat_subscription_stats AS e WHERE e.subid = $1'
               INTO errors USING item.oid;
        END IF;
        problem := CASE
            WHEN NOT item.subenabled THEN 'is disabled'
            WHEN pg_is_in_recovery() THEN NULL
            WHEN NOT item.is_at_work OR errors > 0 AND item.began > clock_timestamp() - interval '15 seconds'
            THEN format('is not at work: its publisher is away, no worker is free, or what it brings can''t be applied (%s errors so far)', errors)
            -- Without the timeout nobody asks a publisher that has nothing to say.
            WHEN item.heard < clock_timestamp() - greatest(current_setting('wal_receiver_timeout')::interval, interval '5 minutes')
                 AND current_setting('wal_receiver_timeout')::interval > '0'
            THEN format('has heard nothing from the publisher, the last time %s', fieldcrypt_internal.time_ago(item.heard))
            WHEN NOT item.is_copied THEN CASE WHEN errors > 0 THEN format('can''t copy the tables of keys (%s errors)', errors) ELSE 'is copying the tables of keys still' END
        END;
        CONTINUE WHEN problem IS NULL;
        is_critical := is_critical OR problem NOT LIKE 'is copying%';
        problems := problems || format('%s %s', fieldcrypt_internal.quoted_name(item.subname), problem);
        names := names || format('%s %s', item.subname, regexp_replace(problem, '[:,(].*', ''));
    END LOOP;
    IF total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no subscription brings keys from another database');
    ELSIF problems = '{}' THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('keys come from another database by %s subscription(s), which work', total));
    END IF;
    RETURN fieldcrypt_internal.finding_of(CASE WHEN is_critical THEN 'critical' ELSE 'warning' END,
        format('keys that are rotated, suspended or destroyed on the publisher do not get here: %s',
            fieldcrypt_internal.counted_names(problems, cardinality(problems), 'subscription')),
        'The server log says why: mostly a key that was made here, too, or a publisher that is away. Until it works suspend_key stops a key here. See docs/more-than-one-node.md.',
        fieldcrypt_internal.finding_identity(names, cardinality(names)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_key_subscriptions(jsonb) IS 'check: subscriptions that bring keys and are stuck';

CREATE FUNCTION fieldcrypt_internal.check_published_tables(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text[];
    shown text[];
BEGIN
    SELECT array_agg(p.name), array_agg(fieldcrypt_internal.quoted_name(p.name))
      INTO names, shown
      FROM (SELECT DISTINCT t.pubname::text AS name
              FROM pg_publication_tables AS t
             WHERE t.schemaname IN ('fieldcrypt', 'fieldcrypt_internal')
               -- What keeps its own where replication applies.
               AND EXISTS (SELECT FROM pg_trigger AS g
                            WHERE g.tgrelid = to_regclass(format('%I.%I', t.schemaname, t.tablename)) AND g.tgname = 'keep_own_truncate')
             ORDER BY name) AS p;
    IF names IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no publication sends the audit log, or what else is this database''s own');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the audit log, approvals and progress of this database are sent to every subscriber, which has its own and takes none of it: %s',
            fieldcrypt_internal.counted_names(shown, cardinality(shown), 'publication')),
        'Who may read the publication reads the log. Publish tables of your own and those of keys and policies: docs/more-than-one-node.md has the statement.',
        fieldcrypt_internal.finding_identity(names, cardinality(names)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_published_tables(jsonb) IS 'check: publications that send what is one database''s own';

CREATE FUNCTION fieldcrypt_internal.check_missing_keys(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_keys boolean := EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.purpose = 'field');
    from_elsewhere text := fieldcrypt_internal.keys_from('field');
    missing record;
BEGIN
    IF used IS NOT NULL THEN
        SELECT count(*) AS total, array_agg(format('%s (%s)', u.key_id, fieldcrypt_internal.use_of_key(used, u.key_id::bigint)) ORDER BY u.key_id) AS names,
               array_agg(u.key_id) AS ids
          INTO missing
          FROM jsonb_object_keys(used) AS u(key_id)
         WHERE NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.key_id = u.key_id::bigint);
        IF missing.total > 0 AND (has_keys OR from_elsewhere IS NOT NULL) THEN
            RETURN fieldcrypt_internal.finding_of('critical',
                format('values can''t be read: this database has not %s', fieldcrypt_internal.counted_names(missing.names, missing.total, 'key')),
                'They were encrypted on another node, or before a restore: SELECT fieldcrypt.import_keys(document, apply_states => true) with what export_keys() gives there.',
                fieldcrypt_internal.finding_identity(missing.ids, missing.total));
        ELSIF missing.total > 0 THEN
            RETURN fieldcrypt_internal.finding_of('ok', 'there are values and no keys: values are encrypted and decrypted on another node');
        END IF;
        RETURN fieldcrypt_internal.finding_of('ok', 'every value''s key is here');
    ELSIF NOT has_keys AND from_elsewhere IS NOT NULL AND EXISTS (SELECT FROM fieldcrypt_internal.encrypted_columns()) THEN
        RETURN fieldcrypt_internal.finding_of('warning',
            format('there are encrypted columns and no keys here: %s', from_elsewhere),
            'Until they are here, what is encrypted or decrypted on this node fails: SELECT fieldcrypt.import_keys(document, apply_states => true) with what export_keys() gives where they are made.',
            '{}');
    END IF;
    RETURN fieldcrypt_internal.finding_of('ok', CASE WHEN has_keys THEN 'whether every value''s key is here tells health(thorough => true)'
        ELSE 'there are no keys here' END);
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_missing_keys(jsonb) IS 'check: values whose keys are not in this database';

CREATE FUNCTION fieldcrypt_internal.check_values_elsewhere(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := fieldcrypt_internal.uncountable('-infinity');
    keys record;
BEGIN
    IF problem IS NULL THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'all that can hold values of this database''s keys is counted here, as far as is known');
    END IF;
    SELECT count(*) AS total, array_agg(format('%s (tenant %s, version %s, %s)', k.key_id, fieldcrypt_internal.quoted_name(k.tenant), k.version,
               CASE WHEN k.destroy_after IS NULL THEN k.state ELSE 'to be destroyed' END) ORDER BY k.tenant, k.version) AS names,
           array_agg(k.key_id::text) AS ids
      INTO keys
      FROM fieldcrypt.encryption_keys AS k
     WHERE k.purpose = 'field' AND k.state <> 'destroyed' AND (k.state = 'compromised' OR k.destroy_after IS NOT NULL);
    IF keys.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'what is said of values here speaks for this node only: ' || problem);
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('%s; so it is not known here whether values are left on %s', problem, fieldcrypt_internal.counted_names(keys.names, keys.total, 'key')),
        'On each node that has such values: CALL fieldcrypt.reencrypt(), then SELECT * FROM fieldcrypt.key_usage(exact => true). If none is left anywhere: CALL fieldcrypt.destroy_due_keys(ignore_uncountable => true).',
        fieldcrypt_internal.finding_identity(keys.ids, keys.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_values_elsewhere(jsonb) IS 'check: keys that are to end, of which values may be where nothing here counts them';
