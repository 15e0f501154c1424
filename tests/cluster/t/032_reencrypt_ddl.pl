# Re-encryption and what others do to the tables meanwhile: DDL between two batches, locks on rows and
# on tables, a second run. Nobody waits long, the run never dies of it, and in the end all is done.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use Twin;

my $seed = seed();
my $node = new_cluster('primary', conf => <<'CONF');
max_connections = 40
fsync = off
log_lock_waits = on
deadlock_timeout = 700ms
CONF
value($node, 'CREATE ROLE other; GRANT USAGE, CREATE ON SCHEMA public TO other; CREATE SCHEMA elsewhere');

# Makes a table of several chunks; all its values are on a key that is not active any more.
sub make_table
{
	my ($name, %options) = @_;
	my $rows = $options{rows} // 3000;
	value($node, <<SQL);
CREATE TABLE $name (id int PRIMARY KEY, value fieldcrypt.encrypted, note text, number int) $options{with};
$options{more};
INSERT INTO $name SELECT i, fieldcrypt.encrypt_field('of ' || i), repeat('n', 200), i FROM generate_series(1, $rows) AS i;
ANALYZE $name;
CALL fieldcrypt.rotate_keys(force => true);
SQL
	return $name;
}

# A run that the test drives step by step: what the procedure does between two commits.
sub begin_run
{
	my ($table) = @_;
	my $session = session($node);
	my $relation = defined $table ? "'$table'" : 'NULL';
	my ($run, $relations) = split /\|/, $session->value("SELECT run, relations FROM fieldcrypt_internal.reencrypt_begin($relation)");
	return { session => $session, run => $run, relations => $relations };
}

sub step
{
	my ($run, $times) = @_;
	my $outcome;
	foreach (1 .. $times // 1)
	{
		$outcome = $run->{session}->value("SELECT outcome FROM fieldcrypt_internal.reencrypt_step($run->{run}, '$run->{relations}', 100)");
	}
	return $outcome;
}

# Does the rest of a run, and something else before it says that it is over.
sub finish_run
{
	my ($run, $meanwhile) = @_;
	my $outcome = '';
	foreach (1 .. 400)
	{
		$outcome = step($run);
		last if $outcome eq 'over';
	}
	$meanwhile->() if $meanwhile;
	my $summary = $run->{session}->value("SELECT failed_tables, failed_rows, unfinished FROM fieldcrypt_internal.reencrypt_end($run->{run})");
	$run->{session}->close;
	return "$outcome $summary";
}

sub stale { return stale_values($node, "relation = to_regclass('$_[0]')"); }
sub state_of { return value($node, "SELECT string_agg(state, ' ') FROM fieldcrypt.reencryption_progress WHERE table_name = '$_[0]'"); }

# 1. DDL between two batches: what is done, the table's name then, its column, and how many rows are left.
my @ddl = (
	[ 'a column is added', 'ALTER TABLE T ADD COLUMN later text DEFAULT clock_timestamp()::text' ],
	[ 'an encrypted column is added, with old values',
		'ALTER TABLE T ADD COLUMN second fieldcrypt.encrypted; UPDATE T SET second = value WHERE id % 7 = 0' ],
	[ 'the column is renamed', 'ALTER TABLE T RENAME COLUMN value TO secret', column => 'secret' ],
	[ 'another column is dropped', 'ALTER TABLE T DROP COLUMN note' ],
	[ 'the column is dropped', 'ALTER TABLE T DROP COLUMN value', column => undef ],
	[ 'the column becomes text', 'ALTER TABLE T ALTER COLUMN value TYPE text USING fieldcrypt.decrypt_field(value)', column => undef ],
	[ 'another column changes its type, which rewrites the table', 'ALTER TABLE T ALTER COLUMN number TYPE bigint' ],
	[ 'the table becomes unlogged', 'ALTER TABLE T SET UNLOGGED' ],
	[ 'the table is renamed', 'ALTER TABLE T RENAME TO T_renamed', table => 'T_renamed' ],
	[ 'the table moves to another schema', 'ALTER TABLE T SET SCHEMA elsewhere', table => 'elsewhere.T' ],
	[ 'VACUUM FULL', 'DELETE FROM T WHERE id % 3 = 0; VACUUM FULL T', rows => 2000 ],
	[ 'CLUSTER, backwards', 'CREATE INDEX T_back ON T (number DESC); CLUSTER T USING T_back' ],
	[ 'TRUNCATE', 'TRUNCATE T', rows => 0 ],
	[ 'TRUNCATE and COPY of old values', 'CREATE TEMPORARY TABLE old AS TABLE T; TRUNCATE T; INSERT INTO T TABLE old' ],
	[ 'an index is made', 'CREATE INDEX CONCURRENTLY T_index ON T (note, number)' ],
	[ 'the primary key is dropped', 'ALTER TABLE T DROP CONSTRAINT T_pkey' ],
	[ 'a generated column is added', 'ALTER TABLE T ADD COLUMN twice int GENERATED ALWAYS AS (number * 2) STORED' ],
	[ 'the owner changes', 'ALTER TABLE T OWNER TO other' ],
	[ 'row security hides all from everybody', 'ALTER TABLE T OWNER TO other; ALTER TABLE T ENABLE ROW LEVEL SECURITY; ALTER TABLE T FORCE ROW LEVEL SECURITY' ],
	[ 'the table gets a parent', 'CREATE TABLE T_parent (LIKE T); ALTER TABLE T INHERIT T_parent' ],
	[ 'the table becomes a partition', 'CREATE TABLE T_whole (LIKE T) PARTITION BY RANGE (id); ALTER TABLE T_whole ATTACH PARTITION T FOR VALUES FROM (0) TO (100000)' ],
	[ 'the table is dropped', 'DROP TABLE T', gone => 1 ],
	[ 'the table is dropped, and one of its name is made', 'DROP TABLE T; CREATE TABLE T (value fieldcrypt.encrypted)', gone => 1 ]);
my $number = 0;
foreach my $case (@ddl)
{
	my ($name, $sql, %expected) = @$case;
	# Within a chunk, and between two.
	foreach my $steps (3, 9999)
	{
		my $table = make_table('t' . ++$number);
		my $run = begin_run($table);
		if ($steps == 3)
		{
			is(step($run, 3), 'worked', "$name: before it, the run is within a chunk");
		}
		else
		{
			# Until the first chunk is finished.
			step($run, 1);
			step($run) while value($node, "SELECT count(*) FROM fieldcrypt_internal.reencryption_chunks WHERE relation = '$table'::regclass") > 0;
		}
		my $before = value($node, "SELECT rows_moved FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.$table'");
		cmp_ok($before, '>', 0, "$name: before it, some rows are done");
		my $statements = $sql =~ s/\bT(?=_|\b)/$table/gr;
		# VACUUM is for no transaction block; a temporary table is of one session.
		value($node, $_) foreach $sql =~ /TEMPORARY/ ? $statements : split /; /, $statements;
		is(finish_run($run), 'over |0|', "$name: the run goes on to the end");
		my $now = ($expected{table} // 'T') =~ s/\bT(?=_|\b)/$table/r;
		if ($expected{gone})
		{
			is(state_of("public.$table"), '', "$name: nothing is told of it any more");
		}
		elsif (exists $expected{column} && !defined $expected{column})
		{
			is(stale($now), '0', "$name: nothing is left to do");
		}
		else
		{
			my $column = $expected{column} // 'value';
			my $rows = $expected{rows} // 3000;
			is(stale($now), '0', "$name: no value is on an old key");
			gives($node, "SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field($column) = 'of ' || id), count(*) FROM $now", "$rows|$rows", "$name: all is readable");
		}
		gives($node, 'SELECT count(*) FROM fieldcrypt_internal.reencryption_chunks', '0', "$name: no stretch is left");
		value($node, "DROP TABLE IF EXISTS $now CASCADE; DROP TABLE IF EXISTS $table CASCADE; DROP TABLE IF EXISTS ${table}_whole");
	}
}

# 2. What moves rows to places where the run has been: here all that is behind the run was empty, so that
# no row of the pass had to be moved when they came there.
{
	my $table = make_table('compacted');
	value($node, "DELETE FROM compacted WHERE id <= 2900");
	my $run = begin_run($table);
	is(step($run, 2), 'worked', 'a stretch of dead rows');
	value($node, 'VACUUM FULL compacted');
	is(finish_run($run), 'over |0|', 'VACUUM FULL moves rows to where the run has been: it goes on');
	is(stale($table), '0', 'and leaves none of them');
	value($node, 'DROP TABLE compacted');
}

# 3. Partitions that come and go.
{
	value($node, <<'SQL');
CREATE TABLE whole (id int, value fieldcrypt.encrypted, note text, number int) PARTITION BY RANGE (id);
CREATE TABLE whole_1 PARTITION OF whole FOR VALUES FROM (1) TO (1001);
CREATE TABLE whole_2 PARTITION OF whole FOR VALUES FROM (1001) TO (2001);
INSERT INTO whole SELECT i, fieldcrypt.encrypt_field('of ' || i), '', i FROM generate_series(1, 2000) AS i;
CREATE TABLE whole_3 (LIKE whole);
INSERT INTO whole_3 SELECT i, fieldcrypt.encrypt_field('of ' || i), '', i FROM generate_series(2001, 3000) AS i;
CALL fieldcrypt.rotate_keys(force => true);
SQL
	my $run = begin_run('whole');
	step($run, 3);
	value($node, 'ALTER TABLE whole DETACH PARTITION whole_2');
	value($node, 'ALTER TABLE whole ATTACH PARTITION whole_3 FOR VALUES FROM (2001) TO (3001)');
	is(finish_run($run), 'over |0|', 'a partition is detached, another attached: the run goes on');
	is(stale('whole_1') . stale('whole_2'), '00', 'what was the table\'s when it began is done');
	is(stale('whole_3'), '1000', 'what came later is the next run\'s');
	my $result = run_sql($node, q{CALL fieldcrypt.reencrypt('whole', rows_per_second => 0)});
	like($result->{err}, qr/NOTICE:.*1000 rows re-encrypted, 2 tables done, 0 rows/, 'which does it');
	is(stale('whole_3'), '0', 'all of it');
	value($node, 'DROP TABLE whole, whole_2');
}

# 4. Tables dropped in the middle of a run over the whole database: one at work, one that waits.
{
	make_table("all_$_", rows => 1000) foreach 1 .. 4;
	my $run = begin_run();
	is(step($run, 2), 'worked', 'a run over the whole database');
	my $at = value($node, 'SELECT relation::regclass FROM fieldcrypt_internal.reencryption_chunks');
	my ($later) = grep { $_ ne $at } map { "all_$_" } 3, 4;
	value($node, "DROP TABLE $at; DROP TABLE $later");
	is(finish_run($run), 'over |0|', 'goes on though two of its tables are dropped');
	my @left = grep { $_ ne $at && $_ ne $later } map { "all_$_" } 1 .. 4;
	is(join(' ', map { stale($_) } @left), '0 0', 'and does the others');
	gives($node, q{SELECT string_agg(table_name || ' ' || state, ', ') FROM fieldcrypt.reencryption_progress WHERE table_name LIKE 'public.all%'},
		join(', ', map { "public.$_ done" } @left), 'the dropped ones are told of no more');
	value($node, "DROP TABLE $_") foreach @left;
}

# 5. Locked rows: everything else is done, nobody is waited for.
{
	my $table = make_table('locked');
	my %holders = (
		'SELECT count(*) FROM (SELECT FROM locked WHERE id IN (10, 11, 1500) FOR UPDATE) AS l' => 3,
		'SELECT count(*) FROM (SELECT FROM locked WHERE id IN (20, 2000) FOR KEY SHARE) AS l' => 2,
		'SELECT count(*) FROM (SELECT FROM locked WHERE id = 30 FOR SHARE) AS l' => 1,
		'SELECT count(*) FROM (SELECT FROM locked WHERE id = 35 FOR NO KEY UPDATE) AS l' => 1,
		q{UPDATE locked SET note = 'changed' WHERE id = 40} => 1,
		'DELETE FROM locked WHERE id = 2999' => 1);
	my @sessions = map { my $session = session($node); $session->value("BEGIN; $_"); $session } sort keys %holders;
	my $began = time;
	my $result = run_sql($node, q{CALL fieldcrypt.reencrypt('locked', rows_per_second => 0, batch_size => 50, wait_for_locks => '2 seconds')});
	my $took = time - $began;
	is("@{ $result->{sqlstates} }", '', 'rows that others have locked are no error') or diag $result->{err};
	like($result->{err}, qr/WARNING:\s+KF025:.*locked.*public\.locked.*HINT/s, 'but a warning says that they were left');
	cmp_ok($took, '>', 2, 'after it had waited');
	cmp_ok($took, '<', 15, 'as long as it was told, and no longer');
	gives($node, q{SELECT string_agg(l.id::text, ' ' ORDER BY l.id) FROM locked AS l JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(l.value) WHERE k.state <> 'active'},
		'10 11 30 35 40 1500 2999', 'everything else is done, rows too that a foreign key has locked FOR KEY SHARE');
	is(state_of('public.locked'), 'interrupted', 'and it is not called done');
	gives($node, 'SELECT count(*) FROM fieldcrypt_internal.live_runs()', '0', 'nor running');

	# Another run, which finds them released while it waits.
	my $waiting = session($node);
	$waiting->send(q{CALL fieldcrypt.reencrypt('locked', rows_per_second => 0, wait_for_locks => '2 minutes')});
	$node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM fieldcrypt_internal.live_runs()') or die;
	ok(eventually($node, q{SELECT state FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.locked'}, 'running'), 'the next run waits for them');
	$_->value('COMMIT') foreach @sessions;
	$node->poll_query_until('postgres', q{SELECT state = 'done' FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.locked'}) or die;
	my $done = $waiting->run('SELECT 1');
	like($done->{err}, qr/NOTICE:.*6 rows re-encrypted, 1 tables done/, 'and does them when they are released') ;
	unlike($done->{err}, qr/WARNING/, 'without a warning');
	is(stale('locked'), '0', 'none is left');
	gives($node, q{SELECT string_agg(note, ' ') FROM locked WHERE note NOT LIKE 'nnn%'}, 'changed', 'the newer version of a row stays');
	$_->close foreach @sessions, $waiting;
	value($node, 'DROP TABLE locked');
}

# 6. A locked table: the others are done, and it is, when it is free.
{
	make_table('shut');
	make_table('open', rows => 500);
	foreach my $mode ('ACCESS EXCLUSIVE', 'EXCLUSIVE', 'SHARE')
	{
		value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
		my $holder = session($node);
		$holder->value("BEGIN; LOCK TABLE shut IN $mode MODE");
		my $began = time;
		my $result = run_sql($node, q{SET statement_timeout = '60s'; CALL fieldcrypt.reencrypt(rows_per_second => 0, wait_for_locks => '2 seconds')});
		my $took = time - $began;
		is("@{ $result->{sqlstates} }", '', "$mode: a locked table is no error") or diag $result->{err};
		like($result->{err}, qr/WARNING:\s+KF025:.*locked.*public\.shut/s, "$mode: but a warning");
		cmp_ok($took, '<', 20, "$mode: after no long wait");
		is(stale('open'), '0', "$mode: the other table is done") if $mode ne 'ACCESS EXCLUSIVE' || $took < 20;
		$holder->value('COMMIT');
		is(stale('shut'), '3000', "$mode: the locked one is not");
		$holder->value("BEGIN; LOCK TABLE shut IN $mode MODE");
		my $waiting = session($node);
		$waiting->send(q{SET statement_timeout = '90s'; CALL fieldcrypt.reencrypt(rows_per_second => 0)});
		$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%CALL fieldcrypt.reencrypt(%' AND state = 'active' AND pid <> pg_backend_pid()}) or die;
		$holder->value('COMMIT');
		my $done = $waiting->run('SELECT 1');
		unlike($done->{err}, qr/WARNING|ERROR/, "$mode: released while a run waits: no warning");
		is(stale('shut'), '0', "$mode: and it is done");
		$_->close foreach $holder, $waiting;
	}
	value($node, 'DROP TABLE shut, open');
}

# 7. Two runs share a table: who finds nothing to do any more stays, for the next pass, while the other
# has a part in hand, or is just at beginning that pass.
{
	make_table('shared', rows => 4000);
	my ($first, $second) = map { begin_run('shared') } 1 .. 2;
	is(step($first, 2), 'worked', 'the first of two runs is at work');
	my $outcome = '';
	foreach (1 .. 200)
	{
		$outcome = step($second);
		last if $outcome !~ /claimed|worked/;
	}
	is($outcome, 'others', 'the second does the rest, and stays');
	cmp_ok(stale('shared'), '>', 0, 'the first one\'s part is not done yet');
	is(state_of('public.shared'), 'running', 'but under way');
	step($first) while value($node, q{SELECT count(*) FROM fieldcrypt_internal.reencryption_chunks WHERE relation = 'shared'::regclass}) > 0;
	my $advancing = session($node);
	$advancing->value(q{BEGIN; SELECT 1 FROM fieldcrypt_internal.reencryptions WHERE relation = 'shared'::regclass FOR UPDATE});
	is(step($second), 'others', 'the pass is over, and another run has the table in hand: the second stays');
	$advancing->value('COMMIT');
	$advancing->close;
	is(step($second), 'advanced', 'it begins the next pass itself');
	my $third;
	is(finish_run($second, sub { value($node, 'CALL fieldcrypt.rotate_keys(force => true)'); $third = begin_run('shared'); }),
		'over |0|', 'and ends, and calls nothing left, though a third one begins anew');
	is(state_of('public.shared'), 'running', 'which is under way');
	is(finish_run($third), 'over |0|', 'and ends');
	is(finish_run($first), 'over |0|', 'the first one ends, too');
	is(stale('shared'), '0', 'all is done');
	is(state_of('public.shared'), 'done', 'and called so');
	value($node, 'DROP TABLE shared');
}

# 8. DDL under a short lock_timeout while two runs and a rotation go on: never starved, nobody fails.
{
	make_table('busy', rows => 6000);
	my $seconds = 10;
	my $runs = bench($node, 'runs', [ [ "CALL fieldcrypt.reencrypt('busy', batch_size => 1000, rows_per_second => 0);\n", 1 ] ], '-c', 2, '-T', $seconds);
	my $rotation = bench($node, 'rotation', [ [ "CALL fieldcrypt.rotate_keys(force => true);\n\\sleep 700 ms\n", 1 ] ], '-c', 1, '-T', $seconds);
	my $ddl = bench($node, 'ddl', [
		[ "SET lock_timeout = '5s';\nALTER TABLE busy ADD COLUMN later int DEFAULT 5;\n\\sleep 30 ms\nALTER TABLE busy DROP COLUMN later;\n\\sleep 100 ms\n", 2 ],
		[ "SET lock_timeout = '5s';\nBEGIN;\nLOCK TABLE busy IN ACCESS EXCLUSIVE MODE;\n\\sleep 300 ms\nCOMMIT;\n\\sleep 200 ms\n", 1 ] ], '-c', 1, '-T', $seconds);
	judge_bench($ddl, 6, 'DDL');
	judge_bench($rotation, 6, 'rotation');
	judge_bench($runs, 60, 'two runs');
	cmp_ok($ddl->{transactions}, '>', 8, "DDL was not starved ($ddl->{transactions})");
	my @unexpected = grep { /WARNING/ && !/did not come to rest/ } split /\n/, $runs->{err};
	is("@unexpected", '', 'two runs: no warning but of keys that rotate again and again');
	my $last = run_sql($node, q{CALL fieldcrypt.reencrypt('busy', rows_per_second => 0)});
	unlike($last->{err}, qr/WARNING|ERROR/, 'a last run');
	is(stale('busy'), '0', 'no value is on an old key');
	gives($node, q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'of ' || id), count(*) FROM busy}, '6000|6000', 'all is readable');
}

gives($node, 'SELECT count(*) FROM fieldcrypt.reencryption_failures', '0', 'no value failed');
unlike(slurp_file($node->logfile), qr/deadlock detected/, 'no deadlock');
no_crash($node);
$node->stop;
done_testing();
