-- What an enforced context costs (docs/reencryption.md): psql -X -f bench/enforced.sql, in a database with the
-- extension and a master key. Leaves nothing behind but a tenant's key.
\set QUIET on
\pset format unaligned
\pset tuples_only on
SET client_min_messages = warning;
BEGIN;
CREATE TABLE bench_enforced (id bigint PRIMARY KEY, note text, ssn fieldcrypt.encrypted);
CREATE TEMP TABLE source ON COMMIT DROP AS
    SELECT i AS id, fieldcrypt.encrypt_field('123-45-' || lpad(i::text, 11, '0'), fieldcrypt.context('bench.ssn', i)) AS ssn
      FROM generate_series(1, 200000) AS i;
CREATE FUNCTION pg_temp.best(what text, statement text, emptied boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE began timestamptz; best numeric;
BEGIN
    FOR try IN 1 .. 5 LOOP
        IF emptied THEN TRUNCATE bench_enforced; END IF;
        began := clock_timestamp();
        EXECUTE statement;
        best := least(best, EXTRACT(epoch FROM clock_timestamp() - began) * 1e6 / 200000);
    END LOOP;
    RETURN format('%-40s %s us a row', what, round(best, 2));
END $$;
SELECT pg_temp.best('INSERT', 'INSERT INTO bench_enforced (id, ssn) SELECT id, ssn FROM source', true);
SELECT pg_temp.best('UPDATE of another column', $$UPDATE bench_enforced SET note = 'x'$$, false);
SELECT fieldcrypt.set_column_context('bench_enforced', 'ssn', expression => $$fieldcrypt.context('bench.ssn', id)$$, enforce => true);
SELECT pg_temp.best('INSERT, enforced', 'INSERT INTO bench_enforced (id, ssn) SELECT id, ssn FROM source', true);
SELECT pg_temp.best('UPDATE of another column, enforced', $$UPDATE bench_enforced SET note = 'x'$$, false);
SELECT pg_temp.best('decrypt_field', $$SELECT count(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('bench.ssn', id))) FROM bench_enforced$$, false);
ROLLBACK;
