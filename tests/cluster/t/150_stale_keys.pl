# A key that another session suspends, destroys or marks is so for every session at its next use of
# it, wherever that is: no restart, no poll, no matter what is cached.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE TABLE kept (tenant text, id int, value fieldcrypt.encrypted);
CREATE FUNCTION read_one(tenant text) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE result text;
BEGIN
    SELECT fieldcrypt.decrypt_field(k.value) INTO STRICT result FROM kept AS k WHERE k.tenant = $1 AND id = 1;
    RETURN result;
END $$;
CREATE FUNCTION write_one(tenant text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', $1));
END $$;
-- Reads in a loop, and lets the test act between two rounds: waits for the advisory lock it holds.
CREATE FUNCTION read_in_loop(tenant text, writing boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    FOR i IN 1 .. 2 LOOP
        BEGIN
            IF writing THEN PERFORM write_one(tenant); ELSE PERFORM read_one(tenant); END IF;
            result := concat_ws(' ', result, 'ok');
        EXCEPTION WHEN OTHERS THEN
            result := concat_ws(' ', result, SQLSTATE);
        END;
        IF i = 1 THEN
            PERFORM pg_advisory_lock(1);
            PERFORM pg_advisory_unlock(1);
        END IF;
    END LOOP;
    RETURN result;
END $$;
SQL

my $serial = 0;

sub tenant
{
	my $tenant = 'tenant ' . ++$serial;
	value($node, "INSERT INTO kept SELECT '$tenant', g, fieldcrypt.encrypt_field('kept', '', '$tenant') FROM generate_series(1, 5) AS g");
	return $tenant;
}

# As a superuser who goes past the guard, in two ways.
sub set_state
{
	my ($tenant, $state, $way) = @_;
	my $set = "state = '$state'" . ($state eq 'destroyed' ? ', wrapped_key = NULL' : '');
	my $update = "UPDATE fieldcrypt.encryption_keys SET $set WHERE tenant = '$tenant'";
	value($node, $way
		? "SET session_replication_role = replica; $update"
		: "BEGIN; ALTER TABLE fieldcrypt.encryption_keys DISABLE TRIGGER refuse_change; $update; ALTER TABLE fieldcrypt.encryption_keys ENABLE TRIGGER refuse_change; COMMIT");
	return;
}

my %reading = (suspended => 'KF004', destroyed => 'KF005', compromised => undef, deactivated => undef);

# How a session comes to use the key a second time: what it does first, then what it does after.
my @ways = (
	[ 'autocommit', '', 'SELECT OP' ],
	[ 'the same transaction, READ COMMITTED', 'BEGIN; SELECT OP', 'SELECT OP' ],
	[ 'the same transaction, REPEATABLE READ', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT OP', 'SELECT OP' ],
	[ 'the same transaction, SERIALIZABLE', 'BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT OP', 'SELECT OP' ],
	[ 'a savepoint', 'BEGIN; SAVEPOINT a; SELECT OP; RELEASE a; SAVEPOINT b', 'SELECT OP' ],
	[ 'a prepared statement', 'PREPARE use AS SELECT OP; EXECUTE use; EXECUTE use; EXECUTE use; EXECUTE use; EXECUTE use; EXECUTE use', 'EXECUTE use' ],
	[ 'a prepared statement with a generic plan, in a transaction', 'SET plan_cache_mode = force_generic_plan; PREPARE use AS SELECT OP; BEGIN; EXECUTE use', 'EXECUTE use' ],
	[ 'a PL/pgSQL function', 'BEGIN; SELECT FN', 'SELECT FN' ],
	[ 'parallel workers', force_parallel() . q{SELECT OP}, 'SELECT OP' ]);

my %operations = (
	reading => [ q{fieldcrypt.decrypt_field((SELECT value FROM kept WHERE tenant = 'TENANT' AND id = 1))}, q{read_one('TENANT')} ],
	writing => [ q{fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'TENANT')) > 0}, q{write_one('TENANT') > 0} ]);

foreach my $way (@ways)
{
	my ($name, $first, $second) = @$way;
	foreach my $operation (sort keys %operations)
	{
		next if $name eq 'parallel workers' && $operation eq 'writing';
		my ($op, $fn) = @{ $operations{$operation} };
		foreach my $state (sort keys %reading)
		{
			my $tenant = tenant();
			my ($warm, $begin, $use) = map { s/OP/$op/gr =~ s/FN/$fn/gr =~ s/TENANT/$tenant/gr } 'SELECT OP', $first, $second;
			my $session = session($node);
			$session->value($warm);
			$session->value($begin) if $begin;
			set_state($tenant, $state, $serial % 2);
			my $expected = $operation eq 'writing' ? 'KF007' : $reading{$state};
			my $test = "$operation, $state: $name";
			defined $expected ? $session->refused($use, $expected, $test) : $session->gives($use, 'kept', $test);
			# And back: what was suspended works again in the same session.
			if ($state eq 'suspended')
			{
				$session->run('ROLLBACK');
				set_state($tenant, 'active', $serial % 2);
				$session->gives($use, $operation eq 'writing' ? 't' : 'kept', "$test, and resumed");
			}
			$session->close;
		}
	}
}

# Within one statement: a loop in a function, from one round to the next.
foreach my $state (sort keys %reading)
{
	foreach my $writing (0, 1)
	{
		my $tenant = tenant();
		my $lock = session($node);
		my $session = session($node);
		$lock->value('SELECT pg_advisory_lock(1)');
		$session->send("SELECT read_in_loop('$tenant', '$writing')");
		$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) or die;
		set_state($tenant, $state, 1);
		$lock->value('SELECT pg_advisory_unlock(1)');
		my $result = $session->run('SELECT 1');
		my $expected = $writing ? 'KF007' : $reading{$state} // 'ok';
		like($result->{out}, qr/^ok $expected$/m, "a loop in a function, $state, " . ($writing ? 'writing' : 'reading'));
		$_->close foreach $lock, $session;
	}
}

# A cursor that is open, and a statement that is going on row by row.
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ')
{
	foreach my $state (sort keys %reading)
	{
		my $tenant = tenant();
		my $session = session($node);
		$session->value("BEGIN ISOLATION LEVEL $isolation; DECLARE c CURSOR FOR SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = '$tenant'");
		$session->gives('FETCH 2 FROM c', "kept\nkept", "a cursor, $isolation, before it is $state");
		set_state($tenant, $state, 1);
		defined $reading{$state}
		  ? $session->refused('FETCH 2 FROM c', $reading{$state}, "a cursor, $isolation, $state")
		  : $session->gives('FETCH 2 FROM c', "kept\nkept", "a cursor, $isolation, $state");
		$session->close;
	}
}

# A change that is rolled back changes nothing; one that is not committed yet is not seen.
{
	my $tenant = tenant();
	my $session = session($node);
	my $read = "SELECT read_one('$tenant'), write_one('$tenant') > 0";
	$session->value("BEGIN ISOLATION LEVEL REPEATABLE READ; $read");
	my $other = session($node);
	$other->value("SET session_replication_role = replica; BEGIN; UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE tenant = '$tenant'");
	$session->gives($read, 'kept|t', 'a change that is not committed is not seen');
	$other->refused($read =~ s/, write.*//r, 'KF004', 'but by who made it');
	$other->value('ROLLBACK');
	$session->gives($read, 'kept|t', 'a change that was rolled back is not seen');
	$other->gives($read, 'kept|t', 'nor by who made it');
	$_->close foreach $session, $other;
}

# Whatever else empties caches keeps every key usable, and every state.
{
	my ($good, $bad) = (tenant(), tenant());
	my $session = session($node);
	my $read = "SELECT read_one('$good'), write_one('$good') > 0";
	$session->value("$read; SELECT read_one('$bad')");
	set_state($bad, 'suspended', 1);
	foreach my $sql (
		'VACUUM fieldcrypt.encryption_keys', 'VACUUM FULL fieldcrypt.encryption_keys', 'ANALYZE fieldcrypt.encryption_keys',
		'REINDEX TABLE fieldcrypt.encryption_keys', 'REINDEX TABLE CONCURRENTLY fieldcrypt.encryption_keys',
		'CLUSTER fieldcrypt.encryption_keys USING encryption_keys_pkey',
		'CREATE ROLE nobody; GRANT SELECT ON fieldcrypt.encryption_keys TO nobody', 'DISCARD ALL')
	{
		$sql eq 'DISCARD ALL' ? $session->value($sql) : value($node, $sql);
		$session->gives($read, 'kept|t', "after $sql");
		$session->refused("SELECT read_one('$bad')", 'KF004', "after $sql: what is suspended stays so");
	}
	$session->close;
}

ok(slurp_file($node->logfile) !~ /PANIC|XX000|terminated by signal/, 'no internal error');
$node->stop;
done_testing();
