# A key that was made in something that rolled back is never used again: whatever was encrypted and
# committed can be read by another session, every time.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "max_prepared_transactions = 20\nstatement_timeout = '60s'\n");

# "use" makes a key and uses it: a tenant's first one, or the next version.
value($node, <<'SQL');
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
CREATE TABLE checked (value fieldcrypt.encrypted, positive int CHECK (positive > 0));
CREATE TABLE deferred (value fieldcrypt.encrypted, id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO deferred VALUES (NULL, 1);

CREATE FUNCTION use_first(tenant text) RETURNS fieldcrypt.encrypted LANGUAGE sql VOLATILE
    AS $$ SELECT fieldcrypt.encrypt_field('lost', '', $1) $$;
CREATE FUNCTION use_next(tenant text) RETURNS fieldcrypt.encrypted LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM fieldcrypt_internal.rotate_active_key($1, 'test', false, NULL);
    RETURN fieldcrypt.encrypt_field('lost', '', $1);
END $$;
CREATE FUNCTION keep(tenant text) RETURNS void LANGUAGE sql VOLATILE
    AS $$ INSERT INTO kept VALUES ($1, fieldcrypt.encrypt_field('kept', '', $1)) $$;
SQL

# name, SQL, versions made by "use" that stay, SQLSTATEs. USE and TENANT are put in.
my @cases = (
	[ 'transaction', 'BEGIN; SELECT USE; ROLLBACK;', 0 ],
	[ 'transaction, committed', 'BEGIN; SELECT USE; SELECT keep(TENANT); COMMIT;', 1 ],
	[ 'savepoint rolled back', 'BEGIN; SAVEPOINT a; SELECT USE; ROLLBACK TO a; COMMIT;', 0 ],
	[
		'savepoint rolled back, the transaction goes on',
		'BEGIN; SAVEPOINT a; SELECT USE; ROLLBACK TO a; SELECT keep(TENANT); COMMIT;', 0
	],
	[
		'savepoint rolled back after another was released into it',
		'BEGIN; SAVEPOINT a; SAVEPOINT b; SELECT USE; RELEASE b; ROLLBACK TO a; SELECT keep(TENANT); COMMIT;', 0
	],
	[ 'savepoint released, the transaction rolled back', 'BEGIN; SAVEPOINT a; SELECT USE; RELEASE a; ROLLBACK;', 0 ],
	[
		'two savepoints released, the transaction rolled back',
		'BEGIN; SAVEPOINT a; SAVEPOINT b; SELECT USE; RELEASE b; SELECT keep(TENANT); RELEASE a; ROLLBACK;', 0
	],
	[
		'two savepoints released, the transaction committed',
		'BEGIN; SAVEPOINT a; SAVEPOINT b; SELECT USE; RELEASE b; RELEASE a; SELECT keep(TENANT); COMMIT;', 1
	],
	[
		'made outside, used again in a savepoint that is rolled back',
		'BEGIN; SELECT USE; SAVEPOINT a; SELECT keep(TENANT); ROLLBACK TO a; SELECT keep(TENANT); COMMIT;', 1
	],
	[
		'made in a savepoint, used in its sibling after it was rolled back',
		'BEGIN; SAVEPOINT a; SELECT USE; ROLLBACK TO a; SAVEPOINT b; SELECT USE; RELEASE b; SELECT keep(TENANT); COMMIT;', 1
	],
	[
		'made outside, made again in a savepoint that is rolled back',
		'BEGIN; SELECT USE; SELECT keep(TENANT); SAVEPOINT a; SELECT USE; SELECT keep(TENANT); ROLLBACK TO a; SELECT keep(TENANT); COMMIT;', 1
	],
	[ 'an error later in the transaction', 'BEGIN; SELECT USE; SELECT 1 / 0; COMMIT;', 0, '22012' ],
	[
		'an error, and back to a savepoint before the key',
		'BEGIN; SAVEPOINT a; SELECT USE; SELECT 1 / 0; ROLLBACK TO a; SELECT keep(TENANT); COMMIT;', 0, '22012'
	],
	[
		'an error, and back to a savepoint after the key',
		'BEGIN; SELECT USE; SAVEPOINT a; SELECT 1 / 0; ROLLBACK TO a; SELECT keep(TENANT); COMMIT;', 1, '22012'
	],
	[ 'an error in the same row', 'SELECT USE, 1 / (g - 1) FROM generate_series(1, 1) AS g;', 0, '22012' ],
	[
		'an error in a later row of the same command',
		'INSERT INTO checked SELECT CASE g WHEN 1 THEN USE ELSE fieldcrypt.encrypt_field(g::text, tenant => TENANT) END, 3 - g FROM generate_series(1, 5) AS g;',
		0, '23514'
	],
	[
		'an error in the same command, in a savepoint',
		'BEGIN; SAVEPOINT a; SELECT USE, 1 / (g - 1) FROM generate_series(1, 1) AS g; ROLLBACK TO a; SELECT keep(TENANT); COMMIT;',
		0, '22012'
	],
	[ 'a CHECK constraint', 'INSERT INTO checked SELECT USE, -1;', 0, '23514' ],
	[ 'a deferred constraint at COMMIT', 'BEGIN; INSERT INTO deferred SELECT USE, 1; COMMIT;', 0, '23505' ],
	[ 'a time limit', q{SET statement_timeout = '50ms'; SELECT USE, pg_sleep(30); RESET statement_timeout;}, 0, '57014' ],
	[
		'an exception block',
		'DO $$ BEGIN BEGIN PERFORM USE; RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END; PERFORM keep(TENANT); END $$;', 0
	],
	[
		'an exception block, an error in the same command',
		'DO $$ BEGIN BEGIN PERFORM USE, 1 / (g - 1) FROM generate_series(1, 1) AS g; EXCEPTION WHEN OTHERS THEN PERFORM keep(TENANT); END; END $$;', 0
	],
	[
		'an exception block inside one that fails',
		'DO $$ BEGIN BEGIN BEGIN PERFORM USE; EXCEPTION WHEN OTHERS THEN NULL; END; PERFORM keep(TENANT); RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END; PERFORM keep(TENANT); END $$;',
		0
	],
	[
		'an exception block that succeeds, then an error',
		'DO $$ BEGIN BEGIN PERFORM USE; EXCEPTION WHEN OTHERS THEN NULL; END; RAISE division_by_zero; END $$;', 0, '22012'
	],
	[ 'ROLLBACK in a procedure', 'DO $$ BEGIN PERFORM USE; ROLLBACK; PERFORM keep(TENANT); COMMIT; END $$;', 0 ],
	[ 'COMMIT in a procedure, then an error', 'DO $$ BEGIN PERFORM USE; COMMIT; PERFORM keep(TENANT); RAISE division_by_zero; END $$;', 1, '22012' ],
	[
		'a loop of exception blocks, every second one fails',
		'DO $$ BEGIN FOR i IN 1 .. 6 LOOP BEGIN PERFORM USE; PERFORM keep(TENANT); PERFORM 1 / (i % 2); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;',
		3
	],
	[ 'a cursor that is closed by ROLLBACK', 'BEGIN; DECLARE c CURSOR FOR SELECT USE; FETCH c; ROLLBACK;', 0 ],
);

my $reader = session($node);
my %uses = (first => 'use_first', next => 'use_next');
my $serial = 0;

# What must hold of a tenant, as one line; what the tenant's session encrypts next is part of it.
sub state_after
{
	my ($session, $tenant) = @_;
	$session->value("INSERT INTO kept VALUES ('$tenant', fieldcrypt.encrypt_field('next', tenant => '$tenant'))");
	my $readable = <<SQL;
SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) IN ('kept', 'next')) = count(*) FROM kept WHERE tenant = '$tenant'
SQL
	my $keys = $reader->value(<<SQL);
SELECT format('active %s, versions %s to %s, recorded %s',
              count(*) FILTER (WHERE state = 'active'), min(version), max(version),
              (SELECT count(*) FROM fieldcrypt.audit_log
                WHERE tenant = '$tenant' AND event IN ('key_created', 'key_rotated')))
  FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'
SQL
	return join ', ', $keys, 'readable ' . value($node, $readable) . $reader->value($readable) . $session->value($readable);
}

foreach my $isolation ('read committed', 'repeatable read', 'serializable')
{
	my $session = session($node);
	$session->value("SET default_transaction_isolation = '$isolation'");
	foreach my $use (sort keys %uses)
	{
		foreach my $case (@cases)
		{
			my ($name, $sql, $made, $sqlstates) = @$case;
			my $tenant = 'tenant ' . ++$serial;
			my $versions = 1;
			if ($use eq 'next')
			{
				$session->value("SELECT keep('$tenant')");
				$versions += $made;
			}
			$sql =~ s/USE/$uses{$use}(TENANT)/g;
			$sql =~ s/TENANT/'$tenant'/g;
			my $result = $session->run($sql);
			my $got = join ', ', @{ $result->{sqlstates} }, state_after($session, $tenant);
			my $expected = join ', ', grep { defined } $sqlstates,
			  "active 1, versions 1 to $versions, recorded $versions, readable ttt";
			is($got, $expected, "$use key, $isolation: $name");
		}
	}
	$session->close;
}

# PREPARE TRANSACTION takes the transaction away from the session, with the tenant's lock.
my $session = session($node);
foreach my $fate ('COMMIT', 'ROLLBACK')
{
	foreach my $restart (0, 1)
	{
		my $name = "$fate PREPARED" . ($restart ? ' after a restart' : '');
		my ($first, $next) = map { 'tenant ' . ++$serial } 1 .. 2;
		$session->value("SELECT keep('$next')");
		foreach my $tenant ($first, $next)
		{
			my $use = $tenant eq $first ? 'use_first' : 'use_next';
			$session->value(<<SQL);
BEGIN; SAVEPOINT a; SELECT $use('$tenant'); RELEASE a; SELECT keep('$tenant'); PREPARE TRANSACTION '$tenant';
SQL
		}
		if ($restart)
		{
			$session->close;
			$reader->close;
			$node->restart;
			$session = session($node);
			$reader = session($node);
		}
		$session->refused("SET lock_timeout = '100ms'; SELECT keep('$first')",
			'55P03', "$name: meanwhile nobody makes a second first key");
		$session->gives("SELECT keep('$next')", '', "$name: meanwhile the key before the rotation encrypts");
		$session->refused("SELECT fieldcrypt_internal.rotate_active_key('$next', NULL, false, NULL)",
			'55P03', "$name: meanwhile nobody rotates as well");
		$session->value("RESET lock_timeout; $fate PREPARED '$first'; $fate PREPARED '$next'");
		my $versions = $fate eq 'COMMIT' ? 2 : 1;
		is(state_after($session, $first), 'active 1, versions 1 to 1, recorded 1, readable ttt', "$name: first key");
		is(state_after($session, $next),
			"active 1, versions 1 to $versions, recorded $versions, readable ttt", "$name: next key");
	}
}

# The session that prepared goes on at once, and finds the key when somebody else commits it.
$session->value("BEGIN; SELECT use_first('prepared'); PREPARE TRANSACTION 'p'");
value($node, "COMMIT PREPARED 'p'");
is(state_after($session, 'prepared'),
	'active 1, versions 1 to 1, recorded 1, readable ttt', 'another session commits what was prepared');

no_crash($node);
$_->close foreach $session, $reader;
$node->stop;
done_testing();
