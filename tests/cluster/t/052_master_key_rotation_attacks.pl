# What may go wrong while the master key rotates: sessions that still have the old one, forgotten
# transactions, damaged keys, wrong files, several runs at once, crashes. No key is left behind that
# only a master key opens which is taken away.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_cluster('primary',
	init => { allows_streaming => 1 },
	conf => "max_prepared_transactions = 10\nmax_wal_senders = 5\n");
my $file = $node->basedir . '/master.key';

sub fingerprint { return unpack 'H*', hkdf(pack('H*', key_text(shift)), 'mek-fingerprint', 16); }
sub short { return uc(substr fingerprint(shift), 0, 8) . '...'; }

sub load_keys
{
	my (@numbers) = @_;
	write_key_file($file, map { key_text($_) } @numbers);
	configure($node);
	return;
}

sub rotate { return run_sql($node, 'CALL fieldcrypt.rotate_master_key(' . ($_[0] // '') . ')'); }

# Keys by the number of the master key that wraps them, as "1:5 2:7".
sub wrapped_by
{
	my %numbers = map { (fingerprint($_) => $_) } 1 .. 9;
	my @rows = split /\n/, value($node, q{SELECT encode(master_key_fingerprint, 'hex'), count(*) FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL GROUP BY 1});
	return join ' ', sort map { my ($name, $count) = split /\|/; ($numbers{$name} // 'unknown') . ":$count" } @rows;
}

my $readable = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'of ' || tenant) = count(*) FROM kept};
my $current = q{SELECT encode(fingerprint, 'hex') FROM fieldcrypt.master_keys WHERE is_current};

value($node, <<'SQL');
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT t, fieldcrypt.encrypt_field('of ' || t, tenant => t) FROM (SELECT 'tenant ' || i AS t FROM generate_series(1, 20) AS i) AS t;
CREATE FUNCTION paused(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
    PERFORM pg_advisory_lock_shared(1);
    PERFORM pg_advisory_unlock_shared(1);
    EXECUTE statement INTO result;
    RETURN result;
END $$;
SQL

# Sessions in the middle of a statement that began before the reload: they know the old key only.
{
	my %statements = (
		'makes a key' => q{SELECT fieldcrypt.create_key('pinned') > 0},
		'encrypts for a new tenant' => q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'pinned too')) > 0},
		'decrypts what it has not cached' => q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 2'},
		'does so in parallel workers' => q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 3'},
	);
	my %expected = ('decrypts what it has not cached' => 'of tenant 2', 'does so in parallel workers' => 'of tenant 3');
	my $gate = session($node);
	$gate->value('SELECT pg_advisory_lock(1)');
	my %sessions = map { ($_ => session($node)) } sort keys %statements;
	foreach my $name (sort keys %statements)
	{
		$sessions{$name}->value(q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 1'});
		$sessions{$name}->value(force_parallel()) if $name =~ /parallel/;
		(my $text = $statements{$name}) =~ s/'/''/g;
		$sessions{$name}->send("SELECT paused('$text')");
	}
	my $stuck = session($node);
	$stuck->value(q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 1'});
	$node->poll_query_until('postgres', q{SELECT count(*) = 4 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) or die;
	load_keys(2, 1);
	unlike(rotate()->{err}, qr/ERROR|WARNING/, 'pinned sessions: the rotation goes through');
	is(wrapped_by(), '2:21', 'pinned sessions: all keys are under the new one');
	load_keys(2);
	$gate->value('SELECT pg_advisory_unlock(1)');
	foreach my $name (sort keys %statements)
	{
		my $result = $sessions{$name}->run('SELECT 1');
		is("@{ $result->{sqlstates} } " . $result->{out}, ' ' . ($expected{$name} // 'true') . "\n1", "a pinned session $name") or diag $result->{err};
		$sessions{$name}->close;
	}
	is(wrapped_by(), '2:23', 'pinned sessions: their keys are under the new one');
	$_->close foreach $gate, $stuck;
}

# The same where the source gives nothing any more: refused, and no key is left.
{
	my $gate = session($node);
	$gate->value('SELECT pg_advisory_lock(1)');
	my @pinned = map { session($node) } 1, 2;
	$_->value(q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 1'}) foreach @pinned;
	$pinned[0]->send(q{SELECT paused('SELECT fieldcrypt.create_key(''left behind'')')});
	$pinned[1]->send(q{SELECT paused('SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = ''tenant 4''')});
	$node->poll_query_until('postgres', q{SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) or die;
	load_keys(3, 2);
	unlike(rotate()->{err}, qr/ERROR|WARNING/, 'pinned without a source: the rotation goes through');
	unlink $file;
	$gate->value('SELECT pg_advisory_unlock(1)');
	foreach my $index (0, 1)
	{
		my $result = $pinned[$index]->run('SELECT 1');
		is("@{ $result->{sqlstates} }", 'KF010', 'pinned without a source: refused');
		like($result->{err}, qr/wrapped by master key \Q@{[ short(3) ]}\E; loaded: \Q@{[ short(2) ]}\E/, 'pinned without a source: and says why');
		$pinned[$index]->close;
	}
	$gate->close;
	load_keys(3);
	gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'left behind'}, '0', 'pinned without a source: no key is left behind');
	is(wrapped_by(), '3:23', 'pinned without a source: all keys are under the new one');
}

# Transactions that have made a key under the old one and do not end.
{
	load_keys(4, 3);
	value($node, q{BEGIN; INSERT INTO kept VALUES ('forgotten', fieldcrypt.encrypt_field('of forgotten', tenant => 'forgotten')); PREPARE TRANSACTION 'forgotten gid'});
	my $result = rotate(q{wait_for_locks => '1.5 seconds'});
	is("@{ $result->{sqlstates} }", 'KF020', 'a prepared transaction that made a key: the rotation does not begin');
	like($result->{err}, qr/NOTICE:.*waiting for prepared transaction "forgotten gid" of/, 'a prepared transaction: named while it waits');
	like($result->{err}, qr/ERROR:.*have not ended: prepared transaction "forgotten gid" of .*HINT:.*ROLLBACK PREPARED/s, 'a prepared transaction: named at the end');
	gives($node, $current, fingerprint(3), 'a prepared transaction: the old one stays current');
	$node->restart;
	is("@{ rotate(q{wait_for_locks => '0'})->{sqlstates} }", 'KF020', 'a prepared transaction: after a restart too');

	# Others make keys meanwhile, with little delay.
	my $runner = session($node);
	$runner->send(q{CALL fieldcrypt.rotate_master_key(wait_for_locks => '20 seconds')});
	$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_locks WHERE relation = 'fieldcrypt.master_keys'::regclass AND NOT granted}) or die;
	my $begin = time;
	gives($node, qq{SELECT fieldcrypt.create_key('meanwhile $_') > 0}, 't', "a prepared transaction: others make keys meanwhile ($_)") foreach 1 .. 3;
	cmp_ok(time - $begin, '<', 10, 'and wait for seconds at most');
	value($node, q{COMMIT PREPARED 'forgotten gid'});
	$result = $runner->run('SELECT 1');
	is("@{ $result->{sqlstates} }", '', 'a prepared transaction: once it has ended, the rotation goes on') or diag $result->{err};
	$runner->close;
	is(wrapped_by(), '4:27', 'a prepared transaction: its key is under the new one too');
	load_keys(4);
	gives($node, $readable, 't', 'a prepared transaction: all is readable with the new one alone');

	load_keys(5, 4);
	my $idle = session($node);
	my $pid = $idle->server_process;
	$idle->value(q{BEGIN; INSERT INTO kept VALUES ('idle', fieldcrypt.encrypt_field('of idle', tenant => 'idle'))});
	$result = rotate(q{wait_for_locks => '0'});
	is("@{ $result->{sqlstates} }", 'KF020', 'a transaction that is idle');
	like($result->{err}, qr/process $pid of \S+, in a transaction since/, 'a transaction that is idle: named');
	unlike($result->{err}, qr/of idle/, 'a transaction that is idle: its statement is not shown');
	$idle->value('COMMIT');
	$idle->close;
	value($node, q{BEGIN; SELECT fieldcrypt.create_key('rolled back'); PREPARE TRANSACTION 'another'; ROLLBACK PREPARED 'another'});
	unlike(rotate()->{err}, qr/ERROR|WARNING/, 'rolled back: it goes through');
	is(wrapped_by(), '5:28', 'rolled back: no key is left');
	load_keys(5);
	gives($node, $readable, 't', 'all is readable');
}

# A key that another transaction holds locked is left for later, and the end says so.
{
	load_keys(6, 5);
	my $holder = session($node);
	$holder->value(q{BEGIN; SELECT FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 7' FOR UPDATE});
	my $pid = $holder->server_process;
	my $result = rotate(q{wait_for_locks => '0.5 seconds'});
	is("@{ $result->{sqlstates} }", '', 'a locked key: the run ends');
	like($result->{err}, qr/WARNING:  KF020: 1 keys are locked by other transactions.*process $pid/, 'a locked key: with a warning');
	is(wrapped_by(), '5:1 6:27', 'a locked key: all others are done');
	gives($node, q{SELECT count(*) FROM fieldcrypt.master_key_status() WHERE advice LIKE 'keys are wrapped by it: keep it%' AND encryption_keys = 1}, '1', 'a locked key: the status says that the old one is needed');
	gives($node, q{SELECT count(*) FROM fieldcrypt.master_keys WHERE retired_at IS NULL}, '2', 'a locked key: the old one is not retired');
	gives($node, q{SELECT fieldcrypt.create_key('while locked') > 0}, 't', 'a locked key: new keys are made');
	# The rotation waits for it, and does not hang when it ends.
	my $runner = session($node);
	$runner->send(q{CALL fieldcrypt.rotate_master_key(wait_for_locks => '20 seconds')});
	usleep(500_000);
	$holder->value('COMMIT');
	$result = $runner->run('SELECT 1');
	unlike($result->{err}, qr/WARNING|ERROR/, 'a locked key: the next run waits for it');
	is(wrapped_by(), '6:29', 'a locked key: and does it');
	$_->close foreach $runner, $holder;
}

# Keys that do not open.
{
	load_keys(7, 6);
	value($node, 'CREATE TABLE whole AS SELECT key_id, wrapped_key, tenant FROM fieldcrypt.encryption_keys');
	past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 40, 255 - get_byte(wrapped_key, 40)) WHERE tenant IN ('tenant 8', 'tenant 9')});
	past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET wrapped_key = (SELECT wrapped_key FROM whole WHERE tenant = 'tenant 11') WHERE tenant = 'tenant 10'});
	my @ids = split /\n/, value($node, q{SELECT key_id FROM whole WHERE tenant IN ('tenant 8', 'tenant 9', 'tenant 10') ORDER BY key_id});
	my $result = rotate('batch_size => 5');
	is("@{ $result->{sqlstates} }", '', 'damaged keys: the run ends');
	like($result->{err}, qr/WARNING:  KF020: 3 keys did not open and were not wrapped again: .*HINT:  Keep the old master key/s, 'damaged keys: with a warning');
	like($result->{err}, qr/WARNING:[^\n]*\b$_\b/, "damaged keys: which names $_") foreach @ids;
	is(wrapped_by(), '6:3 7:26', 'damaged keys: the others are done');
	gives($node, q{SELECT string_agg(tenant, ',' ORDER BY tenant) FROM fieldcrypt.audit_log WHERE event = 'key_refused' AND reason LIKE 'not wrapped again: the wrapped encryption key % is not authentic'},
		'tenant 10,tenant 8,tenant 9', 'damaged keys: they are recorded');
	like(rotate()->{err}, qr/WARNING:  KF020: 3 keys did not open/, 'damaged keys: a second run says so again');
	past_the_guard($node, 'UPDATE fieldcrypt.encryption_keys AS k SET wrapped_key = w.wrapped_key FROM whole AS w WHERE w.key_id = k.key_id AND k.tenant IN (\'tenant 8\', \'tenant 9\', \'tenant 10\')');
	like(rotate()->{err}, qr/: 3 wrapped again; /, 'damaged keys: restored, they follow');
	is(wrapped_by(), '7:29', 'damaged keys: all are under the new one');
	load_keys(7);
	gives($node, $readable, 't', 'damaged keys: all is readable with the new one alone');
}

# Wrong files.
{
	my $before = contents($node, 'postgres');
	load_keys(8);
	refused($node, 'CALL fieldcrypt.rotate_master_key()', 'KF010', qr/wrapped by master key \Q@{[ short(7) ]}\E; loaded: \Q@{[ short(8) ]}\E/, 'the old line replaced, not kept: refused');
	same_contents(contents($node, 'postgres'), $before, 'the old line replaced: nothing was changed');
	unlink $file;
	refused($node, 'CALL fieldcrypt.rotate_master_key()', 'KF009', qr/does not exist/, 'no file: refused');
	write_key_file($file, 'no key');
	refused($node, 'CALL fieldcrypt.rotate_master_key()', 'KF009', qr/line 1/, 'no key in the file: refused');
	my $session = session($node);
	load_keys(7);
	$session->value('SELECT fieldcrypt.decrypt_field(value) FROM kept LIMIT 1');
	write_key_file($file, 'no key');
	$session->refused('CALL fieldcrypt.rotate_master_key()', 'KF009', qr/line 1/, 'no key in the file, in a session that has loaded some: refused');
	$session->close;
	same_contents(contents($node, 'postgres'), $before, 'wrong files: nothing was changed');
	load_keys(7);
}

# Arguments, transaction blocks, rights.
value($node, 'CREATE ROLE manager LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE reader LOGIN');
value($node, q{SELECT fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('reader', 'encrypt', 'decrypt', 'reencrypt', 'audit', 'backup')});
refused($node, 'CALL fieldcrypt.rotate_master_key(NULL)', '22004', qr/must not be NULL/, 'a NULL batch size');
refused($node, 'CALL fieldcrypt.rotate_master_key(wait_for_locks => NULL)', '22004', 'a NULL wait');
refused($node, "CALL fieldcrypt.rotate_master_key($_)", '22023', qr/from 1 to 100000/, "a batch size of $_") foreach 0, -1, 100_001;
refused($node, 'BEGIN; CALL fieldcrypt.rotate_master_key()', '2D000', 'in a transaction block');
refused($node, 'DO $$ BEGIN BEGIN CALL fieldcrypt.rotate_master_key(); END; EXCEPTION WHEN SQLSTATE \'KF000\' THEN NULL; END $$', '2D000', 'in a subtransaction');
refused($node, 'SET default_transaction_read_only = on; CALL fieldcrypt.rotate_master_key()', 'KF020', qr/READ ONLY/, 'in READ ONLY transactions');
foreach my $role ('nobody', 'reader')
{
	refused($node, 'CALL fieldcrypt.rotate_master_key()', '42501', "$role has no right to it", user => $role);
	refused($node, "SELECT fieldcrypt_internal.$_", '42501', "$role has no right to $_", user => $role)
	  foreach q{begin_master_key_rotation('\x')}, q{rewrap_step('\x', 0, 1)}, q{finish_master_key_rotation()}, 'target_master_key()';
}
refused($node, "SELECT fieldcrypt_internal.$_", '42501', "a manager has no right to $_", user => 'manager')
  foreach q{make_current('\x')}, q{rewrap_keys('\x', '1')}, 'lock_master_keys()', 'retire_master_keys()', q{spend_approval('rotate_master_key', 'x')};
# The steps that a manager may call by hand harm nothing.
refused($node, q{SELECT fieldcrypt_internal.rewrap_step(decode(repeat('00', 16), 'hex'), 0, 1)}, 'KF020', qr/has changed meanwhile/, 'a manager, to a master key that is not current', user => 'manager');
refused($node, q{SELECT fieldcrypt_internal.begin_master_key_rotation(decode(repeat('00', 16), 'hex'))}, 'KF010', 'a manager, to a master key that nobody has', user => 'manager');
refused($node, q{UPDATE fieldcrypt.master_keys SET is_current = false}, 'KF015', 'by hand, by the owner');
gives($node, $current, fingerprint(7), 'after all that the current one is current');
load_keys(8, 7);
{
	my $result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()', user => 'manager');
	is("@{ $result->{sqlstates} }", '', 'a manager rotates it') or diag $result->{err};
	is(wrapped_by(), '8:29', 'a manager rotates it: all keys');
	gives($node, q{SELECT DISTINCT actor FROM fieldcrypt.audit_log WHERE event LIKE 'master_key%' AND id > (SELECT max(id) - 2 FROM fieldcrypt.audit_log)}, 'manager', 'a manager rotates it: recorded');
}
value($node, <<'SQL');
CREATE SCHEMA evil;
CREATE FUNCTION evil.refuse(bigint, integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s operator ran'; END $$;
CREATE FUNCTION evil.refuse(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s operator ran'; END $$;
CREATE OPERATOR evil.> (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = evil.refuse);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.refuse);
CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.refuse);
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the attacker''s function ran'; END $$;
CREATE DOMAIN evil.int8 AS text; CREATE DOMAIN evil.record AS text;
SQL
load_keys(7, 8);
is("@{ run_sql($node, q{SET search_path = evil, public, pg_catalog; SET default_transaction_isolation = serializable; CALL fieldcrypt.rotate_master_key()})->{sqlstates} }",
	'', 'whatever lies in the search_path, whatever the isolation level');
is(wrapped_by(), '7:29', 'a hostile search_path: all keys');

# A standby.
{
	$node->backup('copy');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	use_key_file($standby, key_text(8), key_text(7));
	$standby->start;
	$node->wait_for_catchup($standby);
	refused($standby, 'CALL fieldcrypt.rotate_master_key()', 'KF020', qr/on a standby/, 'on a standby');
	my $reader = session($standby);
	$reader->gives($readable, 't', 'a standby reads before');
	load_keys(8, 7);
	unlike(rotate()->{err}, qr/ERROR|WARNING/, 'a standby: the primary rotates');
	$node->wait_for_catchup($standby);
	$reader->gives($readable, 't', 'a standby reads after');
	gives($standby, $readable, 't', 'a new session of the standby too');
	$reader->close;
	no_crash($standby);
	$standby->stop;
}

# Many keys, small batches, and something happens in the middle.
my $tenants = 3000;
value($node, "INSERT INTO kept SELECT t, fieldcrypt.encrypt_field('of ' || t, tenant => t) FROM (SELECT 'one of many ' || i AS t FROM generate_series(1, $tenants) AS i) AS t");
my $keys = value($node, 'SELECT count(*) FROM fieldcrypt.encryption_keys');
my ($from, $to) = (8, 7);
sub done_keys { return value($node, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE master_key_fingerprint = decode('" . fingerprint($to) . q{', 'hex')}); }

my %ends = endings($node);
foreach my $name (sort keys %ends)
{
	foreach my $progress (1, 500)
	{
		load_keys($to, $from);
		my $runner = session($node);
		my $pid = $runner->server_process;
		$runner->send('CALL fieldcrypt.rotate_master_key(batch_size => 7)');
		my $watcher = session($node);
		my $count = "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE master_key_fingerprint = decode('" . fingerprint($to) . q{', 'hex')};
		usleep(500) while $watcher->value($count) < $progress;
		$ends{$name}->($pid);
		$node->poll_query_until('postgres', "SELECT NOT pg_is_in_recovery() AND count(pg_terminate_backend(pid)) = 0 FROM pg_stat_activity WHERE pid = $pid") or die;
		$_->close foreach $runner, $watcher;
		my $done = done_keys();
		ok($done >= $progress && $done < $keys, "$name after $progress: it was under way ($done of $keys)");
		gives($node, $current, fingerprint($to), "$name after $progress: the new one is current");
		gives($node, $readable, 't', "$name after $progress: all is readable with both");
		gives($node, q{SELECT fieldcrypt.create_key('tenant 1') > 0}, 't', "$name after $progress: keys work");
		my $result = rotate();
		like($result->{err}, qr/resumed to master key .*: @{[ $keys - $done ]} keys to wrap again.*: @{[ $keys - $done ]} wrapped again; /s, "$name after $progress: it resumes, and does nothing twice");
		load_keys($to);
		is(wrapped_by(), "$to:$keys", "$name after $progress: all keys are under the new one");
		gives($node, $readable, 't', "$name after $progress: all is readable with the new one alone");
		($from, $to) = ($to, $from);
	}
}

# Two runs at once share the work.
{
	load_keys($to, $from);
	my @runners = map { session($node) } 1 .. 3;
	$_->send('CALL fieldcrypt.rotate_master_key(batch_size => 10)') foreach @runners;
	my $sum = 0;
	foreach my $runner (@runners)
	{
		my $result = $runner->run('SELECT 1');
		unlike($result->{err}, qr/ERROR|WARNING/, 'runs at once: one of them succeeds');
		$sum += $1 if $result->{err} =~ /: (\d+) wrapped again/;
		$runner->close;
	}
	is($sum, $keys, 'runs at once: each key is wrapped once');
	is(wrapped_by(), "$to:$keys", 'runs at once: all keys are under the new one');
	($from, $to) = ($to, $from);
}

# Two runs to different master keys: the second wins, the first gives up, and all end under one.
{
	load_keys($to, $from);
	my $first = session($node);
	$first->send('CALL fieldcrypt.rotate_master_key(batch_size => 1)');
	usleep(500) while done_keys() < 20;
	load_keys(9, $to, $from);
	my $result = rotate();
	unlike($result->{err}, qr/ERROR|WARNING/, 'to another one meanwhile: the second run succeeds');
	my $given_up = $first->run('SELECT 1');
	is("@{ $given_up->{sqlstates} }", 'KF020', 'to another one meanwhile: the first gives up');
	like($given_up->{err}, qr/the current master key has changed meanwhile/, 'to another one meanwhile: and says why');
	$first->close;
	is(wrapped_by(), "9:$keys", 'to another one meanwhile: all keys are under one');
	load_keys(9);
	gives($node, $readable, 't', 'to another one meanwhile: all is readable with it alone');
}

# Processes were killed above, so no_crash would complain.
ok(slurp_file($node->logfile) !~ /PANIC|XX000|panicked/, 'no internal error');
$node->stop;
done_testing();
