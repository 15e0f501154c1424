-- Health of columns that are being encrypted, or were.

CREATE FUNCTION fieldcrypt_internal.check_plaintext_columns(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET citus.override_table_visibility = off SET quote_all_identifiers = off
AS $$
DECLARE
    kept text[];
    standing text[];
    silent text[];
BEGIN
    -- Partitions have copies of the trigger: one that is disabled there is as bad.
    SELECT coalesce(array_agg(t.plaintext_place ORDER BY t.plaintext_place COLLATE "C") FILTER (WHERE t.step IN ('decrypt', 'forget') AND NOT t.is_copy), '{}'),
           coalesce(array_agg(t.place ORDER BY t.place COLLATE "C") FILTER (WHERE NOT t.is_copy AND NOT t.is_at_rest AND t.pid IS NULL), '{}'),
           coalesce(array_agg(t.plaintext_place ORDER BY t.plaintext_place COLLATE "C") FILTER (WHERE NOT t.fires), '{}')
      INTO kept, standing, silent
      FROM (
        SELECT w.step, w.is_copy, w.fires, coalesce(m.state, CASE WHEN w.step IN ('decrypt', 'forget') THEN 'swapped' END) IS NOT DISTINCT FROM 'swapped' AS is_at_rest, l.pid,
               format('%s.%I', w.relation::regclass, w.plaintext_column) AS plaintext_place,
               format('%s.%I', w.relation::regclass, CASE WHEN w.step IN ('decrypt', 'forget') THEN w.value_column ELSE w.plaintext_column END) AS place
          FROM fieldcrypt_internal.column_twins() AS w
          LEFT JOIN fieldcrypt_internal.column_migrations AS m ON m.relation = w.relation AND m.attnum = w.attnum
          LEFT JOIN fieldcrypt_internal.live_runs() AS l ON l.run = m.run
      ) AS t;
    IF cardinality(kept) + cardinality(standing) + cardinality(silent) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'no column has its plaintext beside it, and none is half encrypted');
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        concat_ws('; ',
            'a trigger that keeps two columns alike is disabled for ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(s)) FROM unnest(silent[1:3]) AS s), cardinality(silent), 'column'),
            'the encryption stands still of ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(s)) FROM unnest(standing[1:3]) AS s), cardinality(standing), 'column'),
            'kept beside an encrypted column is ' ||
                fieldcrypt_internal.counted_names((SELECT array_agg(fieldcrypt_internal.quoted_name(k)) FROM unnest(kept[1:3]) AS k), cardinality(kept), 'column')),
        CASE WHEN cardinality(silent) > 0 THEN 'ALTER TABLE ... ENABLE ALWAYS TRIGGER "~fieldcrypt_...", then write once more what was written meanwhile.'
             WHEN cardinality(standing) > 0 THEN 'CALL fieldcrypt.encrypt_column(...) again: it goes on. CALL fieldcrypt.undo_encrypt_column(...) ends it. See fieldcrypt.column_migrations.'
             ELSE 'When the application is known to work: SELECT fieldcrypt.drop_plaintext_column(relation, column).' END,
        fieldcrypt_internal.finding_identity(silent || standing || kept, cardinality(silent) + cardinality(standing) + cardinality(kept)));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_plaintext_columns(jsonb) IS 'check: columns whose plaintext is kept beside them, and encryptions of columns that stand still';
