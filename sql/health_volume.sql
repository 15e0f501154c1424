-- Health of use: who decrypts many times as much as he does otherwise.

-- By role, by subject, and by record: what an auditor asks of years of rows, and the check below every minute.
CREATE INDEX audit_log_volume ON fieldcrypt.audit_log (actor, at)
    WHERE event OPERATOR(pg_catalog.=) 'values_decrypted';
CREATE INDEX audit_log_subject ON fieldcrypt.audit_log (subject, at)
    WHERE subject IS NOT NULL;
CREATE INDEX audit_log_contexts ON fieldcrypt.audit_log USING gin (contexts)
    WHERE contexts IS NOT NULL;

-- By the index, one step for each role, as decrypting_addresses.
CREATE FUNCTION fieldcrypt_internal.decrypting_roles(since timestamptz) RETURNS TABLE (actor text)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    year_start timestamptz := date_trunc('year', since AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
BEGIN
    SELECT min(l.actor) INTO actor
      FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start;
    FOR place IN 1 .. 10000 LOOP
        EXIT WHEN actor IS NULL;
        RETURN NEXT;
        SELECT min(l.actor) INTO actor
          FROM fieldcrypt.audit_log AS l WHERE l.event = 'values_decrypted' AND l.at >= year_start AND l.actor > decrypting_roles.actor;
    END LOOP;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypting_roles(timestamptz) IS 'the login roles that decrypted values; granted to nobody';

-- Of the newest rows, so that it takes no longer with more of them: what they leave out makes a volume smaller than it
-- was in the last window, and is made up for by the time that they cover before it.
CREATE FUNCTION fieldcrypt_internal.decrypted_by(actor text, subject text, since timestamptz, upto timestamptz, span interval, most integer)
    RETURNS TABLE (total numeric, usual numeric)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    seconds numeric := greatest(EXTRACT(epoch FROM span), 1);
BEGIN
    -- Dynamic: the plan must know whether there is a subject.
    RETURN QUERY EXECUTE
        'SELECT coalesce(sum(d.value_count), 0),
                greatest(coalesce(sum(d.value_count), 0) / greatest(count(DISTINCT floor(EXTRACT(epoch FROM $4 - d.at) / $5)), 1),
                    CASE WHEN count(*) = $6 THEN sum(d.value_count) * $5 / greatest(EXTRACT(epoch FROM $4 - min(d.at)), 1) END)
           FROM (SELECT coalesce(l.value_count, 1) AS value_count, l.at
                   FROM fieldcrypt.audit_log AS l
                  WHERE l.event = ''values_decrypted'' AND l.actor = $1 AND l.at >= $3 AND l.at < $4'
                || CASE WHEN subject IS NULL THEN '' ELSE ' AND l.subject = $2' END
                || ' ORDER BY l.at DESC LIMIT $6) AS d'
        USING actor, subject, since, upto, seconds, most;
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.decrypted_by(text, text, timestamptz, timestamptz, interval, integer) IS
    'how many values a login role, or it for a subject, decrypted in some time, and how many in each span of it in which it decrypted at all: of at most so many rows of the log; granted to nobody';

CREATE FUNCTION fieldcrypt_internal.check_unusual_volume(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    most CONSTANT integer := 100000;
    span interval := fieldcrypt_internal.health_threshold('use_window');
    memory interval := fieldcrypt_internal.health_threshold('address_memory');
    factor integer := current_setting('fieldcrypt.health_volume_factor')::integer;
    least integer := current_setting('fieldcrypt.health_volume_least')::integer;
    upto timestamptz := clock_timestamp();
    found record;
BEGIN
    IF NOT fieldcrypt_internal.is_use_recorded() THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'not recorded: fieldcrypt.audit_decrypt is neither statements nor all');
    ELSIF NOT EXISTS (SELECT FROM fieldcrypt_internal.decrypting_roles(upto - memory) AS r
                       CROSS JOIN LATERAL fieldcrypt_internal.decrypted_by(r.actor, NULL, upto - memory, upto - span, span, 1) AS b WHERE b.total > 0) THEN
        RETURN fieldcrypt_internal.finding_of('ok', format('no volume is unusual yet: nothing was recorded before the last %s', span));
    END IF;
    WITH large AS MATERIALIZED (
        SELECT r.actor, n.total
          FROM fieldcrypt_internal.decrypting_roles(upto - span) AS r,
               LATERAL fieldcrypt_internal.decrypted_by(r.actor, NULL, upto - span, upto, span, most) AS n
         WHERE n.total >= least
    ), volumes AS (
        SELECT g.actor, NULL::text AS subject, g.total FROM large AS g
        UNION ALL
        SELECT g.actor, s.subject, s.total
          FROM large AS g,
               LATERAL (SELECT d.subject, sum(d.value_count) AS total
                          FROM (SELECT l.subject, coalesce(l.value_count, 1) AS value_count FROM fieldcrypt.audit_log AS l
                                 WHERE l.event = 'values_decrypted' AND l.actor = g.actor AND l.at >= upto - span AND l.at < upto
                                 ORDER BY l.at DESC LIMIT most) AS d
                         WHERE d.subject IS NOT NULL GROUP BY d.subject HAVING sum(d.value_count) >= least
                         ORDER BY 2 DESC LIMIT 100) AS s
    ), judged AS (
        SELECT v.actor, v.subject, v.total, b.usual,
               format('%s (%s values, usually %s)',
                   CASE WHEN v.subject IS NULL THEN 'login role ' || fieldcrypt_internal.quoted_name(v.actor)
                        ELSE format('%s as claimed by login role %s', fieldcrypt_internal.quoted_name(v.subject), fieldcrypt_internal.quoted_name(v.actor)) END,
                   v.total, ceil(b.usual)) AS name
          FROM volumes AS v,
               LATERAL fieldcrypt_internal.decrypted_by(v.actor, v.subject, upto - memory, upto - span, span, most / 5) AS b
         WHERE v.total > b.usual * factor
    )
    SELECT count(*) AS total, array_agg(j.name ORDER BY j.total DESC, j.actor, j.subject) AS names,
           array_agg(concat_ws(' for ', to_json(j.actor), to_json(j.subject))) AS items
      INTO found FROM judged AS j;
    IF found.total = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok',
            format('nobody decrypted more than %s times as many values in the last %s as usually', factor, span));
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('more than %s times as many values were decrypted in the last %s as usually, for %s', factor, span,
            fieldcrypt_internal.counted_names(found.names, found.total, 'reader')),
        'SELECT * FROM fieldcrypt.audit_trail WHERE event = ''values_decrypted'' tells who, from where and why. What goes on becomes usual by itself.',
        fieldcrypt_internal.finding_identity(found.items, found.total));
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_unusual_volume(jsonb) IS 'check: login roles, and subjects as claimed, that decrypted many times as much as usually';
