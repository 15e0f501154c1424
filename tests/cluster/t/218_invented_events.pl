# A role with "manage" calls the steps of procedures by hand, in any order, with arguments of its own invention.
# Nothing that did not happen gets into the log.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('invented', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
value($node, <<'SQL');
CREATE ROLE manager LOGIN;
GRANT CREATE ON SCHEMA public TO manager;
SELECT fieldcrypt.grant_access('manager', 'manage', 'encrypt', 'audit');
SELECT fieldcrypt.create_key('tenant ' || i) FROM generate_series(1, 5) AS i;
CREATE TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO t SELECT i, fieldcrypt.encrypt_field('x', '', 'tenant 1') FROM generate_series(1, 20) AS i;
SQL
my @as = (user => 'manager');

# What there is of an event since the last look.
my $seen = 0;
sub recorded
{
	my ($events) = @_;
	my $found = value($node, "SELECT coalesce(string_agg(event || ': ' || coalesce(reason, ''), E'\\n' ORDER BY id), '') FROM fieldcrypt.audit_log WHERE id > $seen AND event = ANY ('{$events}')");
	$seen = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log');
	return $found;
}
recorded('x');

# A rotation of the master key that never began, and one whose numbers are invented.
{
	my $rotation = 'master_key_rotation_started,master_key_rotation_finished';
	value($node, 'SELECT fieldcrypt_internal.finish_master_key_rotation()', @as) foreach 1 .. 2;
	is(recorded($rotation), '', 'what never began is not finished');
	refused($node, q{SELECT fieldcrypt_internal.finish_master_key_rotation('\x00', 100000, 0)}, '42883', 'nobody tells how many keys were wrapped', @as);
	write_key_file($node->basedir . '/master.key', key_text(2), key_text(1));
	$node->reload;
	my $old = value($node, "SELECT encode(fingerprint, 'hex') FROM fieldcrypt.master_keys");
	my $new = value($node, "SELECT encode(fieldcrypt_internal.target_master_key(), 'hex')");
	refused($node, "SELECT fieldcrypt_internal.rewrap_step(decode('$new', 'hex'), 0, 10)", 'KF020', qr/has changed meanwhile/, 'nothing is wrapped by a key that is not current', @as);
	gives($node, "SELECT state FROM fieldcrypt_internal.begin_master_key_rotation(decode('$new', 'hex'))", 'switched', 'begun by hand', @as);
	like(recorded($rotation), qr/^master_key_rotation_started: from $old to $new, keys to wrap again: 6$/, 'recorded as it is');
	value($node, "SELECT fieldcrypt_internal.rewrap_step(decode('$new', 'hex'), 0, 2)", @as);
	value($node, 'SELECT fieldcrypt_internal.finish_master_key_rotation()', @as);
	is(recorded($rotation), "master_key_rotation_finished: to $new: 2 wrapped again, 0 failed, 4 left under other master keys", 'ended too early by hand: the log has what is so');
	value($node, 'SELECT fieldcrypt_internal.finish_master_key_rotation()', @as);
	is(recorded($rotation), '', 'and no second end');
	run_sql($node, 'CALL fieldcrypt.rotate_master_key()', @as);
	is(recorded($rotation), "master_key_rotation_finished: to $new: 4 wrapped again, 0 failed, 0 left under other master keys", 'the procedure goes on with the rest');
	run_sql($node, 'CALL fieldcrypt.rotate_master_key()', @as);
	is(recorded($rotation), '', 'where nothing is to be done nothing is recorded');
	refused($node, "SELECT fieldcrypt_internal.begin_master_key_rotation(decode('$old', 'hex'))", 'KF020', qr/not the first one/, 'nor to one that the source does not name first', @as);
	is(recorded($rotation), '', 'which is not recorded');
}

# Re-encryption.
{
	my $runs = 'reencryption_started,reencryption_finished,reencryption_incomplete';
	foreach my $call (q{reencrypt_end(4242)}, q{reencrypt_end(NULL)}, q{reencrypt_end(-1)}, q{reencrypt_end(0)}, q{reencrypt_step(4242, '{}', 10)}, q{reencrypt_step(-1, '{}', 10)}, q{reencrypt_step(NULL, NULL, 10)})
	{
		refused($node, "SELECT fieldcrypt_internal.$call", '55000', qr/not one that this session has begun/, "$call: no run of this session", @as);
	}
	refused($node, q{SELECT fieldcrypt_internal.reencrypt_end(4242, '{}', 999999)}, '42883', 'nobody tells how many rows were moved', @as);
	is(recorded($runs), '', 'nothing of it is recorded');
	value($node, q{CALL fieldcrypt.rotate_keys('tenant 1')}, @as);
	recorded($runs);
	my $session = session($node, @as);
	my ($run) = split /\|/, $session->value(q{SELECT run, relations FROM fieldcrypt_internal.reencrypt_begin('t')});
	like(recorded($runs), qr/^reencryption_started: run $run: 1 tables$/, 'begun by hand');
	refused($node, "SELECT fieldcrypt_internal.reencrypt_end($run)", '55000', 'another session does not end it', @as);
	refused($node, "SELECT fieldcrypt_internal.reencrypt_step($run, '{}', 10)", '55000', 'nor works for it', @as);
	# Tables that it was not begun over.
	$session->value("SELECT outcome FROM fieldcrypt_internal.reencrypt_step($run, ARRAY['pg_class'::regclass::oid], 10)");
	$session->value("SELECT fieldcrypt_internal.reencrypt_end($run)");
	like(recorded($runs), qr/^reencryption_incomplete: run $run: 0 rows re-encrypted, 0 tables done, 0 rows could not be re-encrypted; unfinished: public.t$/, 'ended at once by hand: the log has what is so');
	$session->refused("SELECT fieldcrypt_internal.reencrypt_end($run)", '55000', 'and no second end');
	$session->close;
	run_sql($node, q{CALL fieldcrypt.reencrypt('t', rows_per_second => 0)}, @as);
	like(recorded($runs), qr/^reencryption_started: .*\nreencryption_finished: run [0-9]+: 20 rows re-encrypted, 1 tables done, 0 rows could not be re-encrypted$/, 'the procedure tells what its steps did');
}

# Rotation of data keys: when a run began is not the caller's to say.
{
	refused($node, q{SELECT fieldcrypt_internal.rotate_step('tenant 2', 'x', true, NULL, '1999-01-01')}, '42883', 'nobody tells when a run began', @as);
	value($node, q{SELECT fieldcrypt_internal.rotate_step('tenant 2', 'x', true, NULL)}, @as);
	gives($node, q{SELECT count(*), bool_and(run_started_at BETWEEN now() - interval '1 minute' AND now()), bool_and(run_started_at <= started_at) FROM fieldcrypt.rotation_log WHERE tenant = 'tenant 2'}, '1|t|t', 'a step by hand is a run of its own');
	value($node, q{CALL fieldcrypt.rotate_keys(force => true)}, @as);
	gives($node, q{SELECT count(DISTINCT run_started_at) FROM fieldcrypt.rotation_log WHERE tenant LIKE 'tenant _' AND reason IS NULL AND tenant <> 'tenant 1'}, '1', 'the rows of a run have one time');
	# A failure tells of the key that is active, not of one that was named.
	run_sql($node, q{SELECT fieldcrypt_internal.rotate_step(repeat('x', 2000), 'x', true, 4242)}, @as);
	gives($node, q{SELECT count(*) FROM fieldcrypt.rotation_log WHERE old_key_id = 4242}, '0', 'a key that is not there is in no row');
}

# Audited tables.
{
	my $tables = 'table_audited,table_unaudited';
	value($node, 'CREATE TABLE own (id int PRIMARY KEY, v fieldcrypt.encrypted); CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (100)', @as);
	foreach my $sql (
		q{SELECT fieldcrypt_internal.record_table_audit('own', false)}, q{SELECT fieldcrypt_internal.record_table_audit('own', true)},
		q{SELECT fieldcrypt_internal.note_table_audit('own'); SELECT fieldcrypt_internal.record_table_audit('own', false)},
		q{BEGIN; SELECT fieldcrypt_internal.note_table_audit('own'), fieldcrypt_internal.record_table_audit('own', false)},
		q{BEGIN; SELECT fieldcrypt_internal.note_table_audit('own'), fieldcrypt_internal.record_table_audit('own', true)})
	{
		refused($node, $sql, '42501', qr/only what audit_table and unaudit_table have done/, $sql, @as);
	}
	is(recorded($tables), '', 'nothing of it is recorded');
	value($node, q{SELECT fieldcrypt.audit_table('own'); SELECT fieldcrypt.audit_table('own'); SELECT fieldcrypt.audit_table('parts')}, @as);
	is(recorded($tables), "table_audited: rows are named by id integer\ntable_audited: rows are named by id integer", 'what was done is, once');
	refused($node, $_, '42501', $_, @as)
	  foreach q{SELECT fieldcrypt_internal.record_table_audit('own', true)},
	  q{BEGIN; SELECT fieldcrypt_internal.note_table_audit('own'), fieldcrypt_internal.record_table_audit('own', true)},
	  # Of what a savepoint took back nothing is left to be recorded.
	  q{BEGIN; SELECT fieldcrypt_internal.note_table_audit('own'); SAVEPOINT a; DROP TRIGGER fieldcrypt_audit_change ON own; ROLLBACK TO a; SELECT fieldcrypt_internal.record_table_audit('own', false)};
	is(recorded($tables), '', 'not again');
	value($node, 'ALTER TABLE own DISABLE TRIGGER fieldcrypt_audit_change; SELECT fieldcrypt.audit_table($$own$$)', @as);
	is(recorded($tables), 'table_audited: rows are named by id integer', 'a trigger that was disabled is made anew, which is recorded');
	value($node, q{SELECT fieldcrypt.unaudit_table('own'); SELECT fieldcrypt.unaudit_table('own'); SELECT fieldcrypt.unaudit_table('parts')}, @as);
	is(recorded($tables), "table_unaudited: \ntable_unaudited: ", 'and no more, once');
}

# The trigger, where nothing has happened yet.
{
	value($node, 'CREATE TABLE odd (id int PRIMARY KEY); CREATE VIEW seen AS SELECT 1 AS id', @as);
	my $trigger = 'EXECUTE FUNCTION fieldcrypt_internal.audit_change()';
	foreach my $kind ('BEFORE INSERT ON odd FOR EACH ROW', 'AFTER INSERT ON odd FOR EACH STATEMENT', 'BEFORE INSERT ON odd FOR EACH STATEMENT', 'INSTEAD OF INSERT ON seen FOR EACH ROW')
	{
		my ($on) = $kind =~ /ON (\w+)/;
		refused($node, "BEGIN; CREATE TRIGGER x $kind $trigger; INSERT INTO $on SELECT 1", '39P01', $kind, @as);
	}
	refused($node, "BEGIN; CREATE TRIGGER x BEFORE TRUNCATE ON odd FOR EACH STATEMENT $trigger; TRUNCATE odd", '39P01', 'BEFORE TRUNCATE', @as);
	is(recorded('row_inserted,table_truncated'), '', 'nothing of it is recorded');
}

no_crash($node);
$node->stop;
done_testing();
