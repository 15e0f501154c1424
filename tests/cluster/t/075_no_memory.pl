# A server whose processes can run out of memory (vm.overcommit_memory = 2, ulimit -v): whoever asks for too much gets
# 53200 or 54000, or at worst loses his session. The others stay, and the server does not restart.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my ($prlimit) = grep { -x $_ } map { "$_/prlimit" } split /:/, "$ENV{PATH}:/usr/bin:/bin";
plan skip_all => 'no prlimit, which gives a process less memory' unless defined $prlimit;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.require_approval = ''
max_locks_per_transaction = 2000
max_connections = 20
CONF
value($node, <<'SQL');
CREATE ROLE manager LOGIN; CREATE ROLE auditor LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage', 'encrypt', 'decrypt', 'backup'), fieldcrypt.grant_access('auditor', 'audit');
CREATE TABLE vals (id int PRIMARY KEY, sealed fieldcrypt.encrypted);
CREATE TABLE bound (place text, sealed fieldcrypt.encrypted);
INSERT INTO bound VALUES ('here', fieldcrypt.encrypt_field('note', fieldcrypt.context('bound', 'here')));
SELECT fieldcrypt.set_column_context('bound', 'sealed', expression => $$fieldcrypt.context('bound', place)$$, enforce => true);
CREATE TABLE lists (id int, sealed fieldcrypt.encrypted[]);
SELECT fieldcrypt.set_column_context('lists', 'sealed', expression => $$'lists/' || id$$, enforce => true);
ALTER TABLE vals OWNER TO manager; ALTER TABLE bound OWNER TO manager; ALTER TABLE lists OWNER TO manager;
INSERT INTO vals SELECT n, fieldcrypt.encrypt_field('note ' || n, '', 't' || n % 50) FROM generate_series(1, 2000) AS n;
SQL
my $postmaster = postmaster($node);
# A session that must not notice anything: a restart of the cluster would end it.
my $witness = session($node);
my $alive = $witness->server_process;

# Opens a session that may grow by so many kB. It has called the extension already, so that all is loaded.
sub starved
{
	my ($kb, %options) = @_;
	my $session = session($node, %options);
	$session->run(q{SET client_min_messages = error; SELECT fieldcrypt.encrypt_field('x')});
	starve($session, $kb);
	return $session;
}

# From now on, a session may grow by so many kB.
sub starve
{
	my ($session, $kb) = @_;
	my $process = $session->server_process;
	open my $status, '<', "/proc/$process/status" or die "no status of $process: $!";
	my ($size) = map { /^VmSize:\s+(\d+) kB/ ? $1 : () } <$status>;
	my $most = ($size + $kb) * 1024;
	system($prlimit, '--pid', $process, "--as=$most") == 0 or die 'prlimit failed';
	return;
}

# What came of a statement: SQLSTATEs, or "00000". A session that has ended gives "57P01" or 53200.
sub outcome
{
	my ($session, $sql) = @_;
	my $result = eval { $session->run($sql) };
	return 'ended' unless defined $result;
	return "@{ $result->{sqlstates} }" || '00000';
}

sub lives
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($witness->server_process, $alive, $name);
}

note 'arguments of many megabytes, to every door that takes texts';
{
	my $huge = q{repeat('x', 60000000)};
	# As with 072: what may be called at all. Values may be large; words may not.
	my @words = (
		[ auditor => "SELECT * FROM fieldcrypt.verify_audit_log(anchor => $huge)" ],
		[ manager => "CALL fieldcrypt.rotate_keys(reason => $huge, force => true)" ],
		[ manager => "CALL fieldcrypt.rotate_keys('default', $huge, true)" ],
		[ manager => "SELECT fieldcrypt.suspend_key(1, $huge)" ],
		[ manager => "SELECT fieldcrypt.mark_compromised(1, $huge)" ],
		[ manager => "SELECT fieldcrypt.resume_key(1, $huge)" ],
		[ manager => "SELECT fieldcrypt.cancel_destroy_key(1, $huge)" ],
		[ manager => "SELECT fieldcrypt.acknowledge_audit_fork($huge)" ],
		[ manager => "SELECT fieldcrypt.confirm_key_states($huge)" ],
		[ manager => "SELECT fieldcrypt.request_approval('shred_tenant', 't1', $huge)" ],
		[ manager => "SELECT fieldcrypt.request_approval('shred_tenant', $huge, 'x')" ],
		[ manager => "CALL fieldcrypt.shred_tenant('t1', $huge)" ],
		[ manager => "CALL fieldcrypt.destroy_key(1, '1 day', $huge)" ],
		[ manager => "SELECT fieldcrypt.set_column_context('vals', 'sealed', $huge)" ],
		[ manager => "SELECT fieldcrypt.set_column_context('vals', 'sealed', expression => $huge)" ],
		[ manager => "SELECT fieldcrypt.create_key($huge)" ],
		[ manager => "SELECT fieldcrypt.set_rotation_policy($huge, '30 days')" ],
		[ manager => "SELECT fieldcrypt.encrypt_field('x', $huge)" ],
		[ manager => "SELECT fieldcrypt.encrypt_field('x', '', $huge)" ],
		[ manager => "SELECT fieldcrypt.decrypt_field(sealed, $huge) FROM vals LIMIT 1" ],
		[ manager => "SELECT length(fieldcrypt.context('a', $huge))" ],
		[ manager => "SELECT length(fieldcrypt.context($huge, 1))" ],
		[ manager => "SELECT length(fieldcrypt.context('a', repeat('/', 60000000), 1.50, repeat('%', 60000000)))" ],
		[ manager => "SELECT length(fieldcrypt.context('a', repeat('/', 400000)))" ],
		[ manager => "SELECT fieldcrypt.context(" . join(', ', ("repeat('x', 200000)") x 99) . ')' ],
		[ manager => "UPDATE bound SET place = $huge" ],
		[ manager => "INSERT INTO bound SELECT $huge, sealed FROM bound" ]);
	my @documents = (
		[ manager => "SELECT fieldcrypt.import_keys($huge)" ],
		[ manager => "SELECT fieldcrypt.import_keys('{\"a\":\"' || $huge || '\"}')" ],
		[ manager => "SELECT fieldcrypt.import_keys('{\"format\":' || repeat('[', 60000000))" ],
		[ manager => "SELECT * FROM fieldcrypt.key_states_status($huge)" ],
		[ manager => "SELECT pg_column_size(fieldcrypt.encrypt_field($huge))" ],
		[ manager => "SELECT length(fieldcrypt.decrypt_field(fieldcrypt.encrypt_field($huge)))" ],
		[ manager => "SELECT pg_column_size(fieldcrypt.encrypt_field_jsonb(to_jsonb($huge)))" ],
		[ manager => "SELECT length(fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field($huge), NULL::varchar))" ],
		[ manager => "SELECT length(fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb(to_jsonb($huge)))::text)" ],
		[ manager => 'INSERT INTO lists VALUES (1, array_fill(NULL::fieldcrypt.encrypted, ARRAY[30000000]))' ],
		[ manager => 'INSERT INTO lists SELECT 1, array_fill(sealed, ARRAY[200000]) FROM vals LIMIT 1' ],
		[ postgres => "SELECT length(fieldcrypt_internal.report_page(jsonb_build_object('format', $huge)))" ]);
	my $refused = '';
	foreach my $one (@words)
	{
		my $result = run_sql($node, $one->[1], user => $one->[0]);
		$refused .= "@{ $result->{sqlstates} }: $one->[1]\n" if "@{ $result->{sqlstates} }" !~ /^(?:54000|22023)$/ || length $result->{err} > 10_000;
	}
	is($refused, '', 'words are refused for their length, and not repeated, where there is memory for all of them');
	foreach my $mb (80, 150, 250, 400)
	{
		my %sessions;
		my $wrong = '';
		foreach my $one (@words, @documents)
		{
			my ($user, $sql) = @$one;
			my %as = $user eq 'postgres' ? () : (user => $user);
			my $session = $sessions{$user} //= starved($mb * 1024, %as);
			my $outcome = outcome($session, $sql);
			delete $sessions{$user} if $outcome eq 'ended';
			$wrong .= "$outcome: $sql\n" unless $outcome =~ /^(?:00000|53200|54000|22023|KF0\d\d)$/;
		}
		is($wrong, '', "$mb MB: each huge argument is taken or refused, and no session is lost");
		lives("$mb MB: nobody else notices");
		$_->close foreach values %sessions;
	}
}

note 'the last kilobytes';
{
	my @statements = (
		'SELECT count(*) FROM fieldcrypt.health()', 'SELECT length(fieldcrypt.compliance_report_html())',
		'SELECT fieldcrypt.import_keys(fieldcrypt.export_keys())', 'SELECT count(*) FROM fieldcrypt.verify_audit_log()',
		q{SELECT count(fieldcrypt.encrypt_field('x', '', 'new ' || clock_timestamp())) FROM generate_series(1, 200)},
		'SELECT count(*) FROM fieldcrypt.audit_export()', 'SELECT count(*) FROM fieldcrypt.key_usage(true)',
		'SELECT count(fieldcrypt.decrypt_field(sealed)) FROM vals',
		q{SELECT count(fieldcrypt.decrypt_field(fieldcrypt.encrypt_field(repeat('x', 200 * n)))) FROM generate_series(1, 500) AS n},
		q{SELECT count(*) FROM (SELECT fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb(to_jsonb(array_agg(n)))) FROM generate_series(1, 20000) AS n) AS d},
		'CALL fieldcrypt.reencrypt()', q{SELECT fieldcrypt.audit_table('vals')}, q{UPDATE vals SET sealed = fieldcrypt.encrypt_field('y') WHERE id < 50});
	my %seen;
	foreach my $kb (100, 400, 700, 1000, 1300, 1700, 2000, 2100, 2300, 2600, 3000, 3500, 4200, 5000, 6500, 8000, 10000)
	{
		my $session = starved($kb);
		my $order = $kb / 100 % @statements;
		foreach my $sql (@statements[ $order .. $#statements ], @statements[ 0 .. $order - 1 ])
		{
			# So that the line about the statement has to ask the catalogs anew for what it is about.
			$witness->run('CREATE OR REPLACE FUNCTION changed() RETURNS int LANGUAGE sql AS $$SELECT 1$$');
			my $outcome = outcome($session, $sql);
			$seen{$outcome}++;
			if ($outcome eq 'ended') { $session = starved($kb) }
		}
		lives("$kb kB: nobody else notices");
		$session->close;
	}
	note join ', ', map { "$_: $seen{$_}" } sort keys %seen;
	cmp_ok($seen{53200} // 0, '>', 50, 'memory was short many times');
	# 58P01: the system's loader has no memory for PL/pgSQL.
	is(join(' ', grep { !/^(?:00000|53200|22023|58P01|ended)$/ } sort keys %seen), '', 'want of memory is told of as that');
}

# PostgreSQL (LockAcquireExtended in lock.c, 15 to 18) forgets no lock that it had no memory to note, until the transaction
# ends: whoever catches that error and asks for the lock again ends the server. So nobody may who catches others.
note 'a lock that there was no memory to note';
{
	# Leaves some kB of the context that locks are noted in. Its next block is larger than what the session gets.
	my $full = q{DO $$
		DECLARE
		    number bigint := 0;
		    before bigint := 0;
		    total bigint := 0;
		    free bigint;
		    enough bigint := 0;
		BEGIN
		    LOOP
		        FOR i IN 1 .. 20 LOOP
		            number := number + 1;
		            PERFORM pg_advisory_lock(number);
		        END LOOP;
		        before := total;
		        SELECT total_bytes, free_bytes INTO total, free FROM pg_backend_memory_contexts WHERE name = 'TopMemoryContext';
		        IF total > before THEN
		            enough := free - (total - before) + 9000;
		        END IF;
		        EXIT WHEN total > 2000000 AND free < enough;
		    END LOOP;
		END $$};
	foreach my $sql (
		'SELECT count(*) FROM fieldcrypt.health()', 'SELECT length(fieldcrypt.compliance_report_html())',
		q{SELECT count(*) FROM fieldcrypt.retire_keys(1)}, 'CALL fieldcrypt.rotate_keys(force => true)')
	{
		my $session = session($node);
		$session->run("SET client_min_messages = error; $sql"); # all is loaded
		is(outcome($session, $full), '00000', "  nearly full: $sql");
		starve($session, 100);
		is(outcome($session, $sql), '53200', "the first of these errors is the function's: $sql");
		lives('  and nobody else notices');
		eval { $session->close };
	}
}

is(postmaster($node), $postmaster, 'the same server');
gives($node, q{SELECT count(*) > 1900 FROM vals WHERE fieldcrypt.decrypt_field(sealed) LIKE 'note %'}, 't', 'every value opens');
no_crash($node);
done_testing();
