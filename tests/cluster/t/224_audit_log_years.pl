# The partitions of the audit log: a statement whose rows belong to several, what somebody put on one of them, and
# rows that a wrong clock dates before the first year or after the last.
use strict;
use warnings;
use lib 'lib';

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('years', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_seal_interval = 200\nfieldcrypt.audit_retention = '2 years'\n");
my $year = value($node, 'SELECT extract(year FROM now() AT TIME ZONE $$UTC$$)');
value($node, <<'SQL');
SELECT fieldcrypt.create_key();
CREATE TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('t');
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$;
SQL

sub sealed
{
	my (%options) = @_;
	return $node->poll_query_until($options{db} // 'postgres', <<'SQL');
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
}

# Where the rows of the last statement are: their number in each partition, in order.
my $where = <<'SQL';
SELECT string_agg(part || ' ' || n, ', ' ORDER BY part) FROM (SELECT l.tableoid::regclass AS part, count(*) AS n FROM fieldcrypt.audit_log AS l
 WHERE l.transaction_id = (SELECT max(transaction_id) FROM fieldcrypt.audit_log WHERE event LIKE 'row%') AND l.mac IS NOT NULL GROUP BY 1) AS p
SQL
value($node, 'INSERT INTO t SELECT generate_series(1, 2500)');
gives($node, $where, "fieldcrypt_internal.audit_log_$year 2500", 'a statement of more rows than wait at a time');

# No place for this year: the default partition has one.
value($node, "ALTER TABLE fieldcrypt.audit_log DETACH PARTITION fieldcrypt_internal.audit_log_$year; ALTER TABLE fieldcrypt_internal.audit_log_$year RENAME TO before");
value($node, 'UPDATE t SET v = fieldcrypt.encrypt_field($$x$$)');
gives($node, $where, 'fieldcrypt_internal.audit_log_default 2500', 'a year without a partition');
value($node, 'CREATE TABLE aside AS SELECT * FROM fieldcrypt_internal.audit_log_default; SET session_replication_role = replica; DELETE FROM fieldcrypt_internal.audit_log_default');

# The year turns in the middle of a statement.
value($node, <<SQL);
DO \$\$
DECLARE
    turn timestamptz := clock_timestamp() + interval '1.5 s';
BEGIN
    EXECUTE format('CREATE TABLE fieldcrypt_internal.a_old PARTITION OF fieldcrypt.audit_log FOR VALUES FROM (%L) TO (%L)', '$year-01-01 00:00:00+00', turn);
    EXECUTE format('CREATE TABLE fieldcrypt_internal.b_new PARTITION OF fieldcrypt.audit_log FOR VALUES FROM (%L) TO (%L)', turn, '@{[ $year + 1 ]}-01-01 00:00:00+00');
END \$\$;
CREATE TRIGGER zz_slowly AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION slowly();
UPDATE t SET id = id WHERE id <= 60;
SQL
like(value($node, $where), qr/^fieldcrypt_internal\.a_old (\d+), fieldcrypt_internal\.b_new (\d+)$/, 'rows of one statement before and after the turn of a year');
gives($node, q{SELECT count(*), count(DISTINCT id), count(DISTINCT row_key), bool_and(mac IS NOT NULL), max(at) - min(at) > '2 s' FROM fieldcrypt.audit_log WHERE event = 'row_updated'}, '60|60|60|t|t', 'each once');
gives($node, q{SELECT count(*) FROM (SELECT at, lag(at) OVER (ORDER BY id) AS before FROM fieldcrypt.audit_log WHERE event = 'row_updated') AS l WHERE at < before}, '0', 'in the order in which they happened');
value($node, 'DROP TRIGGER zz_slowly ON t');

# What somebody put on the log runs for each row, as for any INSERT.
# The worker writes other events meanwhile.
my $rows = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_updated'};
value($node, <<'SQL');
CREATE TABLE heard (id bigint, who text);
CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.event = 'row_updated' THEN INSERT INTO public.heard VALUES (NEW.id, current_user); END IF; RETURN NULL; END $$;
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
SQL
foreach my $case (
	[ 'a trigger on the partition', 'CREATE TRIGGER hear AFTER INSERT ON fieldcrypt_internal.b_new FOR EACH ROW EXECUTE FUNCTION hear()', 'DROP TRIGGER hear ON fieldcrypt_internal.b_new' ],
	[ 'a trigger on the log', 'CREATE TRIGGER hear AFTER INSERT ON fieldcrypt.audit_log FOR EACH ROW EXECUTE FUNCTION hear()', 'DROP TRIGGER hear ON fieldcrypt.audit_log' ],
	[ 'a deferred one', 'CREATE CONSTRAINT TRIGGER hear AFTER INSERT ON fieldcrypt_internal.b_new FOR EACH ROW EXECUTE FUNCTION hear()', 'DROP TRIGGER hear ON fieldcrypt_internal.b_new' ],
	[ 'a rule', 'CREATE RULE hear AS ON INSERT TO fieldcrypt.audit_log WHERE NEW.event = $$row_updated$$ DO ALSO INSERT INTO public.heard VALUES (NEW.id, NULL)', 'DROP RULE hear ON fieldcrypt.audit_log' ])
{
	my ($name, $put, $take) = @$case;
	value($node, "TRUNCATE heard; $put");
	my $before = value($node, $rows);
	value($node, 'UPDATE t SET id = id WHERE id <= 50');
	gives($node, "SELECT (SELECT count(*) FROM heard), (SELECT count(DISTINCT id) FROM heard), ($rows) - $before", '50|50|50', $name);
	value($node, $take);
}
foreach my $case (
	[ 'a trigger that swallows rows', 'CREATE TRIGGER swallow BEFORE INSERT ON fieldcrypt_internal.b_new FOR EACH ROW EXECUTE FUNCTION swallow()', 'DROP TRIGGER swallow ON fieldcrypt_internal.b_new', 'KF012' ],
	[ 'a constraint', 'ALTER TABLE fieldcrypt.audit_log ADD CONSTRAINT never CHECK (event <> $$row_updated$$) NOT VALID', 'ALTER TABLE fieldcrypt.audit_log DROP CONSTRAINT never', '23514' ],
	[ 'a column that may not be empty', 'ALTER TABLE fieldcrypt.audit_log ADD more int, ADD CONSTRAINT filled CHECK (more IS NOT NULL) NOT VALID', 'ALTER TABLE fieldcrypt.audit_log DROP more', '23514' ])
{
	my ($name, $put, $take, $sqlstate) = @$case;
	value($node, $put);
	my $before = value($node, $rows);
	refused($node, 'UPDATE t SET v = NULL WHERE id <= 50', $sqlstate, "$name: the change is refused");
	gives($node, "SELECT (SELECT count(*) FROM t WHERE v IS NULL), ($rows) - $before", '0|0', "$name: it has not happened");
	value($node, $take);
}
value($node, 'UPDATE t SET id = id WHERE id <= 50');
gives($node, $where, 'fieldcrypt_internal.b_new 50', 'a column that was dropped again');
refused($node, 'BEGIN READ ONLY; UPDATE t SET id = id WHERE id = 1', '25006', 'a READ ONLY transaction changes nothing');
refused($node, 'CREATE TEMP TABLE own (id int PRIMARY KEY); SELECT fieldcrypt.audit_table($$own$$); BEGIN READ ONLY; INSERT INTO own VALUES (1); COMMIT', '25006', 'nor a temporary table that is audited');

# Clocks that were wrong, and a database that was idle for years.
my $first = $node;
$node = new_cluster('clocks', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_seal_interval = 200\nfieldcrypt.audit_retention = '2 years'\n");
value($node, 'SELECT fieldcrypt.create_key()');
sub dated
{
	my ($at, $count, %options) = @_;
	value($node, <<SQL, %options);
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid)
SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), '$at', 'row_inserted', 'x', 'x', 1 FROM generate_series(1, $count);
SQL
	value($node, q{SELECT fieldcrypt.create_key('of ' || gen_random_uuid())}, %options);
	return ok(sealed(%options), "rows of $at are sealed");
}
dated('1970-01-01 00:00:10+00', 3);
dated(($year + 3) . '-01-01 00:00:00+00', 2);
dated('2055-12-31 23:59:59.999999+00', 2);
dated('2056-01-01 00:00:00+00', 4);
dated(($year + 10) . '-05-05 12:00:00+00', 2);
dated("$year-01-02 12:00:00+00", 2);
my $outside = 'SELECT count(*) FROM fieldcrypt_internal.audit_log_default';
gives($node, $outside, '7', 'what is outside of the years is in the default partition');
my $critical = q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'};
gives($node, $critical, '0', 'and verified');
my $dump = dump_database($node, 'postgres', PostgreSQL::Test::Utils::tempdir() . '/years.dump', '-Fc');
create_database($node, 'copy', extension => 0);
is(restore_database($node, 'copy', $dump)->{code}, 0, 'dumped and restored');
gives($node, $outside, '7', 'with what is outside', db => 'copy');

my $apply = 'CALL fieldcrypt.apply_audit_retention()';
like(run_sql($node, $apply)->{err}, qr/\b0 partitions retired/, 'nothing is retired as long as one row of them is not old enough');
gives($node, $outside, '7', 'all of it is there');
refused($node, q{SELECT fieldcrypt_internal.retire_audit_step('audit_log_default')}, 'KF028', qr/not the next one/, 'nor by hand');

# A server that began without a clock.
create_database($node, 'old');
value($node, 'SELECT fieldcrypt.create_key()', db => 'old');
dated('1970-01-01 00:00:10+00', 3, db => 'old');
my $retired = run_sql($node, $apply, db => 'old');
like($retired->{err}, qr/3 rows of audit_log_default retired/, 'rows that are all old enough are retired');
gives($node, $outside, '0', 'and gone', db => 'old');
gives($node, q{SELECT table_name FROM fieldcrypt.audit_log WHERE event = 'audit_retired'}, 'audit_log_default', 'on the record', db => 'old');
dated("$year-03-04 00:00:00+00", 2, db => 'old');
gives($node, $critical, '0', 'what is left is proved', db => 'old');
no_crash($_) foreach $first, $node;
done_testing();
