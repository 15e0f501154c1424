# A column that is encrypted beside others who hold things: a reader whose transaction lasts keeps the swap waiting, and the
# swap keeps nobody waiting; rows that are locked are passed by; a second CALL is refused. DDL in between, each a clear error
# and no loss. A standby, another session that applies what a server sent, dumps taken half-way.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n", init => { allows_streaming => 1 });
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
use_key_file($standby, key_text(1));
$standby->start;

sub fresh
{
	my ($rows, $more) = @_;
	run_sql($node, 'SET client_min_messages = error; DROP TABLE IF EXISTS t CASCADE');
	value($node, "CREATE TABLE t (id int PRIMARY KEY, ssn text, note text);
	INSERT INTO t SELECT i, 'n' || i FROM generate_series(1, " . ($rows // 200) . ') AS i; ' . ($more // ''));
	return;
}
my $columns = q{SELECT string_agg(attname || ' ' || atttypid::regtype, ', '
	 ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname ~ 'ssn' AND NOT attisdropped};
my $state = q{SELECT state, step FROM fieldcrypt.column_migrations WHERE table_name = 'public.t'};
my $unlike = q{SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.t.ssn', id)) IS DISTINCT FROM ssn_plaintext};

# 1. A reader holds its lock through the swap's attempts; others read and write meanwhile, and wait for less than a second.
fresh(2000);
my $reader = session($node);
$reader->value('BEGIN; SELECT count(*) FROM t');
my $caller = session($node);
$caller->send("CALL fieldcrypt.encrypt_column('t', 'ssn')");
# It can't even add its column.
usleep(1_500_000);
is(value($node, $columns), 'ssn text', 'under a reader that lasts it waits before it has done anything');
my ($longest, $reads) = (0, 0);
my $other = session($node);
for (my $until = time + 4; time < $until; $reads++)
{
	my $began = time;
	$other->value('SELECT count(*) FROM t WHERE id = 1');
	$other->value('UPDATE t SET note = note WHERE id = 2');
	my $took = time - $began;
	$longest = $took if $took > $longest;
	usleep(3_000);
}
note "$reads reads and writes, the longest $longest s";
cmp_ok($reads, '>', 100, 'others read and write');
cmp_ok($longest, '<', 1, 'none waits for a second');
cmp_ok($longest, '>', 0.05, 'though the lock was asked for');
$reader->value('COMMIT');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM fieldcrypt.column_migrations WHERE state = 'swapped'}),
	'when the reader is done, it goes on to the end');
$caller->run('SELECT 1');
gives($node, $unlike, '0', '  and all is well');

# The same at the swap alone.
fresh(2000);
value($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn', swap => false)});
gives($node, $state, 'ready|ready', 'it stops before the swap if it is asked to');
$reader->value('BEGIN; SELECT count(*) FROM t');
$caller->send(q{CALL fieldcrypt.encrypt_column('t', 'ssn')});
usleep(500_000);
($longest, $reads) = (0, 0);
for (my $until = time + 5; time < $until; $reads++)
{
	my $began = time;
	$other->value('SELECT count(*) FROM t WHERE id = 1');
	$other->value("INSERT INTO t VALUES ($reads + 10000, 'while it waits')");
	my $took = time - $began;
	$longest = $took if $took > $longest;
	usleep(3_000);
}
note "$reads reads and writes, the longest $longest s";
gives($node, $state, 'ready|ready', 'the swap is still to come');
cmp_ok($longest, '<', 1, 'none waits for a second');
cmp_ok($longest, '>', 0.05, 'though the lock was asked for');
# Who is at it is told, and a second call is refused.
gives($node, 'SELECT pid IS NOT NULL FROM fieldcrypt.column_migrations', 't', 'the view names the process');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')}, '55006', qr/process \d+ is at column "ssn"/, 'a second CALL is refused');
refused($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')}, '55006', 'and so is undoing it meanwhile');
gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'}, 'ok', 'what somebody is at does not stand still');
# And it gives up when it is told to.
$reader->value('COMMIT');
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM fieldcrypt.column_migrations WHERE state = 'swapped'});
$caller->run('SELECT 1');
gives($node, $unlike, '0', 'swapped when the reader is done, with what was written meanwhile');
$reader->value('BEGIN; SELECT count(*) FROM t');
my $began = time;
refused($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn', wait_for_locks => '2 seconds')}, '55P03', qr/others hold the table/,
	'it gives up after the time that it was given');
cmp_ok(time - $began, '<', 15, '  and soon');
like(value($node, q{SELECT status || detail FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'}), qr/^warning.*stands still/, '  which health says');
$reader->value('COMMIT');
value($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')});
gives($node, $columns, 'ssn text', 'undone');
gives($node, q{SELECT count(*) FROM t WHERE ssn = 'while it waits'}, $reads, 'with all that was written meanwhile');

# 2. Rows that others hold are passed by, and taken later; what they write is not lost.
fresh(500);
$reader->value(q{BEGIN; UPDATE t SET ssn = 'held' WHERE id IN (1, 250, 499)});
$caller->send(q{CALL fieldcrypt.encrypt_column('t', 'ssn', batch_size => 50)});
usleep(1_200_000);
# ADD COLUMN needs the table for a moment: it waits for that writer. So the rows are held once more, after it.
$reader->value('COMMIT');
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM fieldcrypt.column_migrations WHERE state = 'swapped'});
$caller->run('SELECT 1');
value($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')});
$caller->send(q{CALL fieldcrypt.encrypt_column('t', 'ssn', batch_size => 10, rows_per_second => 150)});
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM fieldcrypt.column_migrations WHERE rows_done > 0});
$reader->value(q{BEGIN; UPDATE t SET ssn = 'held again' WHERE id IN (400, 450, 499)});
ok($node->poll_query_until('postgres', q{SELECT rows_done >= 490 FROM fieldcrypt.column_migrations}), 'all rows but those that are held are encrypted');
gives($node, $state, 'filling|filling', 'which it waits for');
$reader->value('COMMIT');
$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM fieldcrypt.column_migrations WHERE state = 'swapped'});
$caller->run('SELECT 1');
gives($node, $unlike, '0', 'and then they are, with what was written');
gives($node, q{SELECT count(*) FROM t WHERE ssn_plaintext = 'held again'}, '3', '  all three');

# 3. DDL in between. Each is refused by Postgres, followed, or met by a clear error; nothing is lost.
sub half_way
{
	fresh(200, $_[0]);
	value($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn', swap => false)});
	return;
}
half_way();
refused($node, 'ALTER TABLE t DROP COLUMN ssn', '2BP01', qr/are_twins/, 'the old column is not dropped by mistake');
refused($node, 'ALTER TABLE t DROP COLUMN ssn_encrypted_new', '2BP01', 'nor the new one');
refused($node, 'ALTER TABLE t ALTER ssn TYPE varchar(100)', '0A000', qr/trigger/, 'nor is its type changed');
value($node, 'ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME ssn TO number; ALTER TABLE u RENAME id TO row_id');
value($node, q{UPDATE u SET number = 'renamed' WHERE row_id = 1; INSERT INTO u VALUES (999, 'new')});
refused($node, q{CALL fieldcrypt.encrypt_column('u', 'ssn')}, '42P17', qr/no column "ssn"/, 'renamed: by its old name it is not there');
value($node, q{CALL fieldcrypt.encrypt_column('u', 'number')});
gives($node, q{SELECT count(*) FROM u WHERE fieldcrypt.decrypt_field(number, fieldcrypt.context('public.t.ssn', row_id)) IS DISTINCT FROM number_plaintext}, '0', 'by its new one it goes on, and values stay in the places that they have');
value($node, 'DROP TABLE u');
gives($node, 'SELECT count(*) FROM fieldcrypt.column_migrations', '0', 'a table that is dropped is not shown');
half_way();
value($node, 'ALTER TABLE t DROP CONSTRAINT ssn_is_protected');
refused($node, q{INSERT INTO t VALUES (1000, 'x')}, '55000', qr/declaration of the encrypted column is gone.*undo_encrypt_column/s,
	'without its declaration nothing is written past it');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')}, '55000', qr/is gone.*undo_encrypt_column/s, '  nor swapped');
value($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')});
gives($node, 'SELECT count(*) FROM t WHERE ssn = $$n$$ || id', '200', '  undone, all is there');
half_way();
value($node, 'ALTER TABLE t DROP CONSTRAINT ssn_are_twins');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')}, '55000', qr/not ready for the swap|constraint/, 'nor without the constraint of twins');
value($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')});
half_way();
value($node, 'CREATE VIEW v AS SELECT ssn FROM t');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')}, '2BP01', qr/swapped while this depends on it: view public\.v|view v/,
	'a view that was made meanwhile');
gives($node, $columns, 'ssn text, ssn_encrypted_new fieldcrypt.encrypted_text', '  nothing is swapped under it');
value($node, 'DROP VIEW v');
value($node, 'ALTER TABLE t DISABLE TRIGGER "~fieldcrypt_are_twins_4"');
refused($node, q{INSERT INTO t VALUES (1000, 'x')}, '23514', qr/ssn_are_twins/, 'with its trigger disabled nothing new goes past it');
value($node, q{UPDATE t SET ssn = 'stale' WHERE id = 7});
like(value($node, q{SELECT status || detail FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'}),
	qr/^warning.*is disabled for column "public\.t\.ssn"/, '  which health says');
# That is what verification is for: VACUUM FULL makes it look again.
value($node, 'VACUUM FULL t');
refused($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')}, 'KF031', qr/1 values do not open in their place.*\{"id": 7\}/s,
	'a value that went its own way is found before the swap');
gives($node, $columns, 'ssn text, ssn_encrypted_new fieldcrypt.encrypted_text', '  and nothing is swapped');
value($node, q{ALTER TABLE t ENABLE ALWAYS TRIGGER "~fieldcrypt_are_twins_4"; UPDATE t SET ssn = 'stale again' WHERE id = 7});
value($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')});
gives($node, $unlike, '0', '  mended as its hint says, it goes on');
# After the swap.
refused($node, 'ALTER TABLE t DROP COLUMN ssn_plaintext', '2BP01', 'after the swap, too, the old column is dropped by its own call only');
value($node, q{CREATE VIEW v AS SELECT ssn FROM t});
refused($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')}, '2BP01', qr/view (?:public\.)?v/,
	'a view of the encrypted column keeps it from being undone');
value($node, 'DROP VIEW v; CREATE VIEW v AS SELECT ssn_plaintext FROM t');
refused($node, q{SELECT fieldcrypt.drop_plaintext_column('t', 'ssn')}, '2BP01', 'one of the old column keeps that from being dropped');
value($node, 'DROP VIEW v');

# 4. Where triggers do not fire, the columns stay alike.
fresh();
value($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn', swap => false)});
value($node, q{SET session_replication_role = replica; UPDATE t SET ssn = 'applied' WHERE id = 3; INSERT INTO t VALUES (700, 'applied')});
value($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')});
gives($node, $unlike, '0', 'what is written where ordinary triggers do not fire is in both columns');
refused($node, q{SET session_replication_role = replica; UPDATE t SET ssn = 'applied' WHERE id = 4}, 'KF037',
	'after the swap plaintext that nothing binds is refused there');

# In a session whose transactions are serializable otherwise; names that have to be quoted.
fresh();
value($node, q{SET default_transaction_isolation = serializable; CALL fieldcrypt.encrypt_column('t', 'ssn')});
gives($node, $unlike, '0', 'a session whose transactions are serializable otherwise');
value($node, q{CREATE SCHEMA "S s"; CREATE TABLE "S s"."T ""t" ("I,d" int PRIMARY KEY, "S,s ""n" text NOT NULL);
	INSERT INTO "S s"."T ""t" VALUES (1, 'x'), (2, 'y')});
value($node, q{CALL fieldcrypt.encrypt_column('"S s"."T ""t"', 'S,s "n'); UPDATE "S s"."T ""t" SET "S,s ""n" = 'z' WHERE "I,d" = 2});
gives($node, q{SELECT string_agg(fieldcrypt.decrypt_field("S,s ""n", fieldcrypt.context('"S s"."T ""t"."S,s ""n"', "I,d")) || "S,s ""n_plaintext", ' ' ORDER BY "I,d") FROM "S s"."T ""t"},
	'xx zz', 'names that have to be quoted');
value($node, q{CALL fieldcrypt.undo_encrypt_column('"S s"."T ""t"', 'S,s "n')});
gives($node, q{SELECT string_agg("S,s ""n", ' ' ORDER BY "I,d") FROM "S s"."T ""t"}, 'x z', '  undone, too');
fresh();
value($node, q{CALL fieldcrypt.encrypt_column('t', 'ssn')});

# 5. A standby follows, and does nothing itself.
$node->wait_for_catchup($standby);
refused($standby, q{CALL fieldcrypt.encrypt_column('t', 'note')}, '25006', qr/primary/, 'on a standby it is refused');
refused($standby, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')}, '25006', '  so is undoing');
gives($standby, $unlike, '0', '  which has both columns');

# 6. A dump that is taken half-way is restored, and goes on: before the swap and after it.
foreach my $swap ('false', 'true')
{
	fresh();
	value($node, "CALL fieldcrypt.encrypt_column('t', 'ssn', swap => $swap)");
	my $dump = dump_database($node, 'postgres', $node->basedir . "/dump_$swap.sql");
	create_database($node, "restored_$swap", extension => 0);
	my $restored = restore_database($node, "restored_$swap", $dump);
	is("@{ $restored->{sqlstates} }", '', "a dump with swap => $swap restores");
	my %db = (db => "restored_$swap");
	value($node, $swap eq 'true' ? q{UPDATE t SET ssn = 'there' WHERE id = 1} : q{UPDATE t SET ssn = 'there' WHERE id = 1;
	CALL fieldcrypt.encrypt_column('t', 'ssn')}, %db);
	gives($node, $unlike, '0', '  goes on', %db);
	gives($node, q{SELECT count(*) FROM t WHERE ssn_plaintext = 'there'}, '1', '  with what was written there', %db);
	value($node, q{CALL fieldcrypt.undo_encrypt_column('t', 'ssn')}, %db);
	gives($node, q{SELECT count(*) FROM t WHERE ssn = CASE id WHEN 1 THEN 'there' ELSE 'n' || id END}, '200', '  and is undone', %db);
}

$_->close foreach $reader, $caller, $other;
no_crash($node);
$standby->stop;
$node->stop;
done_testing();
