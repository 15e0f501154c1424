-- Health of the tenants: values that nobody named a tenant for.

CREATE FUNCTION fieldcrypt_internal.check_default_tenant(used jsonb) RETURNS fieldcrypt_internal.health_finding
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys bigint[] := ARRAY(
        SELECT k.key_id FROM fieldcrypt.encryption_keys AS k
         WHERE k.tenant = 'default' AND k.purpose = 'field' AND k.state <> 'destroyed');
    others bigint := (
        SELECT count(*) FROM (
            SELECT FROM fieldcrypt.encryption_keys AS k
             WHERE k.purpose = 'field' AND k.state = 'active' AND k.tenant <> 'default' LIMIT 10001) AS k);
    places text;
BEGIN
    IF cardinality(keys) = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'the tenant "default" has no keys');
    ELSIF others = 0 THEN
        RETURN fieldcrypt_internal.finding_of('ok', 'there is no tenant but "default"');
    END IF;
    IF used IS NOT NULL THEN
        places := (SELECT string_agg(fieldcrypt_internal.use_of_key(used, k.key_id), ', ') FROM unnest(keys) AS k(key_id));
        IF places IS NULL THEN
            RETURN fieldcrypt_internal.finding_of('ok', 'the tenant "default" has keys, and no values');
        END IF;
    END IF;
    RETURN fieldcrypt_internal.finding_of('warning',
        format('the tenant "default" has %s beside %s: it is whose values those are that were encrypted without the name of a tenant',
            coalesce(places, 'keys'),
            CASE WHEN others > 10000 THEN 'more than 10000 other tenants' WHEN others = 1 THEN 'one other tenant' ELSE format('%s other tenants', others) END),
        'If they should be other tenants'' values: turn fieldcrypt.require_tenant on, and encrypt them anew. See docs/poolers.md. If not: fieldcrypt.health_accepted = ''default_tenant''.',
        '{default}');
END
$$;
COMMENT ON FUNCTION fieldcrypt_internal.check_default_tenant(jsonb) IS 'check: values of the tenant default beside other tenants';
