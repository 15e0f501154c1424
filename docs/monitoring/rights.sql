-- A role for the exporter: what queries.yaml reads, and no more. Run it in each database, as the owner of
-- pg_fieldcrypt. grant_access(..., 'audit') would do as well, but it also shows the whole audit log.
--
--     psql -d DATABASE -v exporter=ROLE -f rights.sql
--
-- The two functions of fieldcrypt_internal are called by views: the exporter needs no right to that schema.
--
-- The role is yours to create: CREATE ROLE fieldcrypt_exporter LOGIN CONNECTION LIMIT 3 PASSWORD '...';

GRANT USAGE ON SCHEMA fieldcrypt TO :"exporter";
GRANT SELECT ON fieldcrypt.fieldcrypt_stats TO :"exporter";
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.tenant_statistics() TO :"exporter";
GRANT SELECT ON fieldcrypt.reencryption_progress TO :"exporter";
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.live_runs() TO :"exporter";
GRANT EXECUTE ON FUNCTION fieldcrypt.audit_status() TO :"exporter";
GRANT EXECUTE ON FUNCTION fieldcrypt.health(boolean) TO :"exporter";
