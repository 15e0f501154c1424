# An error leaves a function by a jump. Nothing that belonged to it may stay behind: a session that catches errors all
# day must not grow. Each kind of error is raised and caught 20,000 times in one session, beside one of Postgres's own.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

use constant {
	TIMES => 20_000,
	# What a session may grow by, besides what it grows by where Postgres raises the error: 13 bytes an error.
	SLACK_KB => 256,
};

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.require_approval = ''
fieldcrypt.audit_signing = off
log_min_messages = fatal
CONF

value($node, <<'SQL');
CREATE TABLE vals (name text PRIMARY KEY, sealed fieldcrypt.encrypted);
INSERT INTO vals VALUES ('plain', fieldcrypt.encrypt_field('secret', 'here')), ('bytes', fieldcrypt.encrypt_field_bytea('\xff00')),
    ('number', fieldcrypt.encrypt_field('x')), ('suspended', fieldcrypt.encrypt_field('x', '', 'suspended')),
    ('destroyed', fieldcrypt.encrypt_field('x', '', 'destroyed')), ('damaged', fieldcrypt.encrypt_field('x', '', 'damaged'));
-- Another key's id, in bytes 2 to 9.
INSERT INTO vals SELECT 'unknown', (set_byte(sealed::bytea, 9, 1 - sign(get_byte(sealed::bytea, 9))::int))::fieldcrypt.encrypted FROM vals WHERE name = 'plain';
SELECT fieldcrypt.suspend_key(key_id, 'x') FROM fieldcrypt.encryption_keys WHERE tenant = 'suspended';
CREATE FUNCTION val(text) RETURNS fieldcrypt.encrypted LANGUAGE sql STABLE AS 'SELECT sealed FROM vals WHERE name = $1';
CREATE FUNCTION key_of(text) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = $1';
CREATE TABLE other (id int, sealed fieldcrypt.encrypted, PRIMARY KEY (id));
SQL
value($node, q{CALL fieldcrypt.shred_tenant('destroyed', 'x')});
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 40, 255 - get_byte(wrapped_key, 40)) WHERE tenant = 'damaged'});

my $functions = <<'SQL';
CREATE SCHEMA probe;
GRANT USAGE ON SCHEMA probe TO PUBLIC;
-- Of this process alone, written to: memory that is shared with others, or only reserved, does not count.
CREATE FUNCTION probe.own_kb() RETURNS bigint LANGUAGE sql SECURITY DEFINER
AS $$ SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/smaps_rollup') FROM 'Private_Dirty:\s+(\d+) kB')::bigint $$;
CREATE FUNCTION probe.repeated(statement text, times int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    seen text := '00000';
BEGIN
    FOR time IN 1 .. times LOOP
        BEGIN
            EXECUTE statement;
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            seen := SQLSTATE;
        END;
    END LOOP;
    RETURN seen;
END $$;
CREATE FUNCTION probe.contexts() RETURNS bigint LANGUAGE sql SECURITY DEFINER
AS $$ SELECT sum(used_bytes)::bigint / 1024 FROM pg_backend_memory_contexts WHERE name IN ('TopMemoryContext', 'CacheMemoryContext', 'ErrorContext') $$;
-- "SQLSTATE kB kB": what the process grew by, and what its lasting memory contexts did.
CREATE FUNCTION probe.growth(statement text, times int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    kb bigint;
    contexts bigint;
    seen text;
BEGIN
    PERFORM probe.repeated(statement, times / 4), probe.own_kb(), probe.contexts();
    contexts := probe.contexts();
    kb := probe.own_kb();
    seen := probe.repeated(statement, times);
    kb := probe.own_kb() - kb;
    RETURN format('%s %s %s', seen, kb, probe.contexts() - contexts);
END $$;
SQL
value($node, $functions);

my $control;

# A test: a statement fails with this SQLSTATE each time, and the session does not grow.
sub stays
{
	my ($on, $statement, $sqlstate, %options) = @_;
	my $times = $options{times} // TIMES;
	my $setup = "SET client_min_messages = error; SET jit = off; " . ($options{setup} // '');
	my $growth = "SELECT probe.growth(\$probe\$$statement\$probe\$, $times);";
	my $most = ($control // 0) + SLACK_KB;
	my ($seen, $kb, $contexts);
	# What leaks, leaks each time; a heap that has just found its size does not grow again.
	foreach my $rounds (1, 2)
	{
		my $result = run_sql($on, "$setup\n" . $growth x $rounds, %options);
		($seen, $kb, $contexts) = $result->{out} =~ /(\w{5}) (-?\d+) (-?\d+)\s*\z/;
		diag $result->{err} unless defined $seen;
		last if $options{rough} || ($kb // 1e9) < $most;
	}
	is($seen, $sqlstate, "$sqlstate: $statement");
	# Large texts, and rows written in thousands of subtransactions, leave the heap in pieces whoever raises the error.
	cmp_ok($kb // 1e9, '<', $most, "$sqlstate leaves nothing in the session ($times times)")
	  unless $options{rough};
	cmp_ok($contexts // 1e9, '<', 64, "$sqlstate leaves nothing in memory contexts");
	return $kb;
}

$control = stays($node, 'SELECT 1/0', '22012');
$control = 0 if $control < 0;

note 'values';
stays($node, q{SELECT 'fc1:AAAA'::fieldcrypt.encrypted}, 'KF001');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('plain'), 'there')}, 'KF002');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('unknown'), 'here')}, 'KF003');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('suspended'))}, 'KF004');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('destroyed'))}, 'KF005');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('plain'), 'here')}, 'KF006', setup => q{SET fieldcrypt.tenant = 'acme';});
stays($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'suspended')}, 'KF007');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('damaged'))}, 'KF011');
stays($node, q{SELECT fieldcrypt.encrypt_field('x', '', 'new')}, 'KF013', setup => 'SET default_transaction_read_only = on;');
stays($node, q{SELECT fieldcrypt.encrypt_field('x', NULL)}, '22004');
stays($node, q{SELECT fieldcrypt.encrypt_field('x', '', repeat('t', 2000))}, '22023');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('bytes'))}, '22021');
stays($node, q{SELECT fieldcrypt.decrypt_field_as(val('number'), 1)}, '22018');
stays($node, q{SELECT fieldcrypt.decrypt_field_jsonb(val('number'))}, '22018');
stays($node, q{SELECT fieldcrypt.decrypt_field(val('plain'), repeat('x', 1100000))}, '54000', times => 500);

note 'keys';
stays($node, q{UPDATE fieldcrypt.encryption_keys SET state = 'active'}, 'KF015');
stays($node, q{INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys}, 'KF016');
stays($node, q{SELECT fieldcrypt.resume_key(key_of('default'), 'x')}, 'KF018');
stays($node, q{SELECT fieldcrypt.suspend_key(1, 'x')}, 'KF003');
stays($node, q{SELECT fieldcrypt.suspend_key(-1, 'x')}, '22023');
stays($node, q{SELECT fieldcrypt.suspend_key(key_of('default'), repeat('x', 10000))}, '54000', rough => 1);
stays($node, q{SELECT fieldcrypt.import_keys('{}')}, 'KF021');
stays($node, q{SELECT fieldcrypt.import_keys('{}')}, '25006', setup => 'SET default_transaction_read_only = on;');
stays($node, q{SELECT fieldcrypt.set_column_context('other', 'sealed', expression => 'id +')}, '42601', times => 5000);
stays($node, q{SELECT fieldcrypt.set_column_context('other', 'id', 'x')}, '42703', times => 5000);
stays($node, q{SELECT fieldcrypt_internal.needs_approval('x')}, '22023');

note 'the log';
stays($node, q{SELECT fieldcrypt.verify_audit_log(anchor => 'x')}, 'KF027', times => 5000);
stays($node, q{SELECT fieldcrypt.audit_proof(-1)}, 'KF027', times => 5000);
stays($node, q{SELECT fieldcrypt_internal.record_event('x', NULL, NULL, NULL, NULL)}, '22023');

note 'what Postgres raises in the midst of a function';
# The cancel is pending when the function begins. What it needs of Postgres's caches is there by then: they are left
# half made where building them is cancelled, and that is not ours.
my $warm = q{SELECT fieldcrypt.create_key('warm'), fieldcrypt_internal.keys_from('field'), fieldcrypt.export_keys(), fieldcrypt_internal.count_keys('vals'::regclass); SELECT * FROM fieldcrypt.verify_audit_log();};
my $cancel = 'SELECT pg_cancel_backend(pg_backend_pid()), ';
stays($node, $cancel . q{fieldcrypt.create_key('cancelled')}, '57014', setup => $warm);
stays($node, $cancel . q{fieldcrypt.export_keys()}, '57014', times => 5000, setup => $warm);
stays($node, $cancel . q{fieldcrypt.verify_audit_log()}, '57014', times => 2000, setup => $warm);
stays($node, $cancel . q{fieldcrypt_internal.count_keys('vals'::regclass)}, '57014', times => 5000, setup => $warm);
{
	my $holder = session($node);
	$holder->value('BEGIN; LOCK TABLE fieldcrypt.encryption_keys');
	stays($node, q{SELECT fieldcrypt.create_key('locked')}, '55P03', setup => q{SET lock_timeout = '1ms';}, times => 2000);
	$holder->value('ROLLBACK');
	$holder->close;
}
value($node, <<'SQL');
CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'P0001', MESSAGE = 'of a trigger'; END $$;
ALTER TABLE fieldcrypt.audit_log DISABLE TRIGGER ALL;
CREATE TRIGGER a_raises BEFORE INSERT ON fieldcrypt.audit_log FOR EACH ROW EXECUTE FUNCTION raises();
SQL
stays($node, q{SELECT fieldcrypt.create_key('triggered')}, 'P0001', times => 5000, rough => 1);
value($node, 'DROP TRIGGER a_raises ON fieldcrypt.audit_log; ALTER TABLE fieldcrypt.audit_log ENABLE TRIGGER ALL');

note 'rights, places';
value($node, q{CREATE ROLE reader LOGIN; SELECT fieldcrypt.grant_access('reader', 'decrypt'); GRANT SELECT ON vals TO reader; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA probe TO reader});
stays($node, q{SELECT fieldcrypt.encrypt_field('x')}, '42501', user => 'reader');
stays($node, q{ANALYZE indexed}, 'KF014', times => 2000, rough => 1, setup => q{
	CREATE TEMP TABLE indexed AS SELECT * FROM vals WHERE name = 'number';
	CREATE FUNCTION pg_temp.opened(fieldcrypt.encrypted) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT fieldcrypt.decrypt_field($1)';
	CREATE STATISTICS s ON (pg_temp.opened(sealed)), name FROM indexed;});

note 'master keys';
{
	my $other = new_cluster('other', keys => [ key_text(2) ], conf => "log_min_messages = fatal\n");
	value($other, $functions);
	my $path = $other->basedir . '/master.key';
	my $encrypt = q{SELECT fieldcrypt.encrypt_field('x')};
	write_key_file($path, 'no key');
	stays($other, $encrypt, 'KF009', times => 5000);
	unlink $path;
	stays($other, $encrypt, 'KF009', times => 5000);
	write_key_file($path, key_text(2));
	value($other, $encrypt);
	write_key_file($path, key_text(3));
	stays($other, $encrypt, 'KF010', times => 5000);
	$other->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''");
	$other->restart;
	stays($other, $encrypt, 'KF008', times => 5000);
	no_crash($other);
}

note 'encodings';
{
	create_database($node, 'latin', with => q{TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'});
	value($node, $functions, db => 'latin');
	value($node, q{CREATE TABLE vals AS SELECT fieldcrypt.encrypt_field_bytea('\xe282ac') AS sealed}, db => 'latin');
	stays($node, 'SELECT fieldcrypt.decrypt_field(sealed) FROM vals', '22P05', db => 'latin');
}

no_crash($node);
done_testing();
