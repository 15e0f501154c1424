# Tables with encrypted columns, their plaintext twins, and an application that changes both alike.
#
#   make_twins($node);
#   my $writers = writers($node, seconds => 20, clients => 5, seed => $seed);   # pgbench, in the background
#   …
#   judge_writers($writers, 'name');      # a test: no error, no deadlock, no long wait
#   twins_equal($node, 'name');           # a test: decrypted, each table is its twin
#   all_active($node, 'name');            # a test: no value is on a key that is not active
#
# A transaction changes the encrypted table first and then the twin: whoever has the row has both.
package Twin;

use strict;
use warnings;

use Exporter 'import';
use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(seed make_twins writers judge_writers bench judge_bench twins_equal all_active stale_values finish_bench);

# kept: a primary key, a secondary index, a child table. parts: hash partitioned. moving: list partitioned,
# without a primary key; its rows change their partition.
our @tables = qw(kept parts moving);

# What decides about random points: from the environment, to repeat a failure.
sub seed
{
	my $seed = $ENV{FIELDCRYPT_TEST_SEED} // time;
	srand $seed;
	diag "seed $seed (FIELDCRYPT_TEST_SEED=$seed repeats it)" if defined $ENV{FIELDCRYPT_TEST_SEED};
	note "FIELDCRYPT_TEST_SEED=$seed";
	return $seed;
}

sub make_twins
{
	my ($node, %options) = @_;
	my $rows = $options{rows} // 1500;
	value($node, <<'SQL');
CREATE TABLE kept (
    id int PRIMARY KEY, region int NOT NULL, value fieldcrypt.encrypted,
    note text NOT NULL, big fieldcrypt.encrypted, counter int NOT NULL DEFAULT 0) WITH (fillfactor = 80);
CREATE INDEX kept_note ON kept (note);
CREATE TABLE visits (kept int NOT NULL REFERENCES kept ON DELETE CASCADE);
CREATE INDEX ON visits (kept);
CREATE TABLE parts (
    id int PRIMARY KEY, region int NOT NULL, value fieldcrypt.encrypted,
    note text NOT NULL, big fieldcrypt.encrypted, counter int NOT NULL DEFAULT 0) PARTITION BY HASH (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES WITH (MODULUS 3, REMAINDER 2);
CREATE INDEX parts_note ON parts (note);
CREATE TABLE moving (
    id int NOT NULL, region int NOT NULL, value fieldcrypt.encrypted,
    note text NOT NULL, big fieldcrypt.encrypted, counter int NOT NULL DEFAULT 0) PARTITION BY LIST (region);
CREATE TABLE moving_0 PARTITION OF moving FOR VALUES IN (0);
CREATE TABLE moving_1 PARTITION OF moving FOR VALUES IN (1);
CREATE TABLE moving_rest PARTITION OF moving DEFAULT;
CREATE INDEX moving_id ON moving (id);
CREATE SEQUENCE moving_ids START 1000001;

-- The values of "big" are bound to their row.
SELECT fieldcrypt.set_column_context(t, 'big', expression => $$'big ' || id$$) FROM unnest('{kept,parts,moving}'::regclass[]) AS t;

CREATE FUNCTION change(tab text, row_id int, operation text, content text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    tenant text := 'tenant ' || row_id % 3;
    large text := CASE row_id % 4 WHEN 0 THEN repeat(md5(content), 80 + row_id % 120) WHEN 1 THEN NULL ELSE md5(content) END;
    small text := CASE WHEN row_id % 11 <> length(content) % 11 THEN content END;
    value_now fieldcrypt.encrypted;
    number int;
    twins int;
    plain text := tab || '_plain';
    set_new text := 'value = $2, big = $3, counter = t.counter + 1';
BEGIN
    IF tab = 'moving' THEN
        -- A row that moves to another partition under a second writer is an error of Postgres's own.
        PERFORM pg_advisory_xact_lock(row_id);
    END IF;
    CASE operation
    WHEN 'insert', 'upsert' THEN
        IF tab = 'moving' THEN
            row_id := nextval('moving_ids');
            tenant := 'tenant ' || row_id % 3;
        END IF;
        EXECUTE format('INSERT INTO %I AS t (id, region, value, note, big) VALUES ($1, $4, fieldcrypt.encrypt_field($2, '''', $5), $6, fieldcrypt.encrypt_field($3, ''big '' || $1, $5)) %s', tab,
            CASE WHEN tab = 'moving' THEN '' WHEN operation = 'insert' THEN 'ON CONFLICT DO NOTHING'
                 ELSE 'ON CONFLICT (id) DO UPDATE SET value = excluded.value, big = excluded.big, counter = t.counter + 1' END)
            USING row_id, small, large, row_id % 4, tenant, content;
        GET DIAGNOSTICS number = ROW_COUNT;
        EXECUTE format('INSERT INTO %I AS t (id, region, value, note, big) SELECT $1, $4, $2, $6, $3 WHERE $7 > 0 %s', plain,
            CASE WHEN tab = 'moving' OR operation = 'insert' THEN ''
                 ELSE 'ON CONFLICT (id) DO UPDATE SET value = excluded.value, big = excluded.big, counter = t.counter + 1' END)
            USING row_id, small, large, row_id % 4, tenant, content, number;
    WHEN 'update' THEN
        EXECUTE format('UPDATE %I AS t SET value = fieldcrypt.encrypt_field($2, '''', $4), big = fieldcrypt.encrypt_field($3, ''big '' || $1, $4), counter = t.counter + 1 WHERE id = $1', tab)
            USING row_id, small, large, tenant;
        GET DIAGNOSTICS number = ROW_COUNT;
        EXECUTE format('UPDATE %I AS t SET value = $2, big = $3, counter = t.counter + 1 WHERE id = $1 AND $4 > 0', plain)
            USING row_id, small, large, number;
    WHEN 'note' THEN
        EXECUTE format('UPDATE %I SET note = $2 WHERE id = $1', tab) USING row_id, content;
        GET DIAGNOSTICS number = ROW_COUNT;
        EXECUTE format('UPDATE %I SET note = $2 WHERE id = $1 AND $3 > 0', plain) USING row_id, content, number;
    WHEN 'counter' THEN
        EXECUTE format('UPDATE %I SET counter = counter + 1 WHERE id = $1', tab) USING row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        EXECUTE format('UPDATE %I SET counter = counter + 1 WHERE id = $1 AND $2 > 0', plain) USING row_id, number;
    WHEN 'move' THEN
        EXECUTE format('UPDATE %I SET region = (region + 1) %% 4 WHERE id = $1', tab) USING row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        EXECUTE format('UPDATE %I SET region = (region + 1) %% 4 WHERE id = $1 AND $2 > 0', plain) USING row_id, number;
    WHEN 'write back' THEN
        -- An application that reads a ciphertext and stores it again: maybe one of a key of before.
        EXECUTE format('SELECT value FROM %I WHERE id = $1 FOR UPDATE', tab) INTO value_now USING row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        PERFORM pg_sleep(0.005);
        EXECUTE format('UPDATE %I SET value = $2, counter = counter + 1 WHERE id = $1 AND $3 > 0', tab) USING row_id, value_now, number;
        EXECUTE format('UPDATE %I SET counter = counter + 1 WHERE id = $1 AND $2 > 0', plain) USING row_id, number;
    WHEN 'delete' THEN
        EXECUTE format('DELETE FROM %I WHERE id = $1', tab) USING row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        EXECUTE format('DELETE FROM %I WHERE id = $1 AND $2 > 0', plain) USING row_id, number;
    WHEN 'visit' THEN
        -- A foreign key locks the row FOR KEY SHARE.
        INSERT INTO visits SELECT k.id FROM (SELECT id FROM kept WHERE id = row_id FOR KEY SHARE) AS k;
        RETURN;
    END CASE;
    GET DIAGNOSTICS twins = ROW_COUNT;
    IF twins <> number THEN
        RAISE EXCEPTION USING ERRCODE = 'ZZ001', MESSAGE = format('%s %s %s: %s rows, %s of the twin', operation, tab, row_id, number, twins);
    END IF;
END $$;
SQL
	foreach my $table (@tables)
	{
		my $key = $table eq 'moving' ? '' : ', PRIMARY KEY (id)';
		value($node, <<SQL);
CREATE TABLE ${table}_plain (id int, region int, value text, note text, big text, counter int DEFAULT 0$key);
CREATE INDEX ON ${table}_plain (id);
SELECT change('$table', i, 'insert', md5('$table ' || i)) FROM generate_series(1, $rows) AS i;
ANALYZE;
SQL
	}
	return;
}

# Starts pgbench in the background with scripts, [text, weight] each.
sub bench
{
	my ($node, $name, $scripts, @arguments) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir();
	my @files;
	foreach my $index (0 .. $#$scripts)
	{
		my $path = "$folder/$name.$index.sql";
		open my $file, '>', $path or die "can't write $path: $!";
		print $file $scripts->[$index][0];
		close $file or die "can't write $path: $!";
		push @files, '-f', "$path\@$scripts->[$index][1]";
	}
	local $ENV{PGAPPNAME} = $name;
	my $self = { name => $name, log => "$folder/$name.log", out => '', err => '' };
	$self->{run} = IPC::Run::start(
		[ 'pgbench', '-n', '-l', "--log-prefix=$folder/$name.log", '--failures-detailed', @arguments, @files,
			'-h', $node->host, '-p', $node->port, 'postgres' ],
		'<', \'', '>', \$self->{out}, '2>', \$self->{err});
	return $self;
}

# Waits for its end; a running one ends with its connections.
sub finish_bench
{
	my ($bench) = @_;
	eval { $bench->{run}->finish };
	$bench->{code} = $bench->{run}->full_result(0) // 0;
	my ($longest, $transactions) = (0, 0);
	foreach my $path (glob "$bench->{log}*")
	{
		open my $file, '<', $path or next;
		while (<$file>)
		{
			my $time = (split)[2];
			$transactions++;
			$longest = $time if defined $time && $time =~ /^\d+$/ && $time > $longest;
		}
		close $file;
		unlink $path;
	}
	$bench->{longest} = $longest / 1e6;
	$bench->{transactions} = $transactions;
	return $bench;
}

# A test: pgbench ran to its end without a failed transaction, and none took longer than some seconds.
sub judge_bench
{
	my ($bench, $seconds, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	finish_bench($bench);
	my ($failed) = $bench->{out} =~ /number of failed transactions: (\d+)/;
	note "$bench->{name}: $bench->{transactions} transactions, the longest $bench->{longest} s";
	my @errors = grep { /error|abort|FATAL/i } split /\n/, $bench->{err};
	my $is_well = $bench->{code} == 0 && defined $failed && $failed == 0 && !@errors && $bench->{transactions} > 0;
	diag join "\n", "exit $bench->{code}", $bench->{out}, @errors unless $is_well;
	ok($is_well, "$name: no error, no deadlock");
	return cmp_ok($bench->{longest}, '<', $seconds, "$name: none took long");
}

# The application: pgbench's scripts and how often each runs.
sub writers
{
	my ($node, %options) = @_;
	my $rows = $options{rows} // 1500;
	my @scripts;
	my $begin = "\\set id random(1, $rows * 11 / 10)\n\\set r random(1, 1000000)\n";
	foreach my $table (@tables)
	{
		my $id = $table eq 'moving' ? '1000000 + :id' : ':id';
		my $change = sub { "SELECT change('$table', $id, '$_[0]', md5('$table :r'));\n" };
		push @scripts, map { [ $begin . $change->($_->[0]), $_->[1] ] }
		  [ insert => 3 ], [ upsert => 4 ], [ update => 6 ], [ note => 6 ], [ counter => 4 ], [ 'write back' => 3 ], [ delete => 3 ];
		push @scripts, [ $begin . $change->('move'), 4 ] if $table eq 'moving';
		push @scripts, [ $begin . $change->('visit'), 4 ] if $table eq 'kept';
		# Locked for a while first.
		push @scripts, [ "$begin BEGIN;\n" . ($table eq 'moving' ? "SELECT pg_advisory_xact_lock($id);\n" : '')
			  . "SELECT 1 FROM $table WHERE id = $id FOR UPDATE;\n\\sleep 20 ms\n" . $change->('update') . "COMMIT;\n", 2 ];
		push @scripts, [ "$begin BEGIN;\n" . $change->('update') . "\\sleep 5 ms\n" . "ROLLBACK;\n", 2 ];
		push @scripts, [ "$begin BEGIN;\n" . $change->('note') . "SAVEPOINT a;\n" . $change->('update') . "ROLLBACK TO a;\n"
			  . $change->('counter') . "SAVEPOINT b;\n" . $change->('delete') . "ROLLBACK TO b;\nSAVEPOINT c;\n"
			  . $change->('update') . "RELEASE c;\nCOMMIT;\n", 2 ];
	}
	return bench($node, 'writers', \@scripts, '-c', $options{clients} // 5, '-T', $options{seconds},
		"--random-seed=$options{seed}");
}

sub judge_writers
{
	my ($writers, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return judge_bench($writers, 8, $name);
}

# A test: each table, decrypted, is its twin; and the indexes lead to the same rows.
sub twins_equal
{
	my ($node, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @problems;
	foreach my $table (@tables)
	{
		my $differ = value($node, <<SQL, %options);
SELECT string_agg(format('$table %s/%s: value %s, big %s, others %s', k.id, p.id,
           fieldcrypt.decrypt_field(k.value) IS NOT DISTINCT FROM p.value,
           fieldcrypt.decrypt_field(k.big, 'big ' || k.id) IS NOT DISTINCT FROM p.big,
           (k.note, k.counter, k.region) IS NOT DISTINCT FROM (p.note, p.counter, p.region)), '; ')
  FROM $table AS k FULL JOIN ${table}_plain AS p ON p.id = k.id
 WHERE k.id IS NULL OR p.id IS NULL
    OR (k.note, k.counter, k.region) IS DISTINCT FROM (p.note, p.counter, p.region)
    OR fieldcrypt.decrypt_field(k.value) IS DISTINCT FROM p.value
    OR fieldcrypt.decrypt_field(k.big, 'big ' || k.id) IS DISTINCT FROM p.big
SQL
		push @problems, substr($differ, 0, 500) if $differ ne '';
		push @problems, "$table is empty" if value($node, "SELECT count(*) FROM $table", %options) < 10;
		my $by_index = value($node, <<SQL, %options);
SET enable_seqscan = off; SET enable_bitmapscan = off;
SELECT count(*) - (SELECT count(*) FROM ${table}_plain) FROM ${table} WHERE id > -1;
SQL
		push @problems, "$table: $by_index rows more by index" if $by_index != 0;
	}
	return is(join("\n", @problems), '', "$name: the twins are equal");
}

# How many values of some tables are on a key that is not active, counted in two ways.
sub stale_values
{
	my ($node, $where, %options) = @_;
	return value($node, <<SQL, %options);
SELECT coalesce(sum((v ->> 'values')::bigint), 0)
  FROM (SELECT DISTINCT relation FROM fieldcrypt_internal.encrypted_columns() WHERE $where) AS c,
       jsonb_array_elements(fieldcrypt_internal.count_keys(c.relation)::jsonb) AS v
 WHERE NOT EXISTS (SELECT FROM fieldcrypt.encryption_keys AS k WHERE k.key_id::text = v ->> 'key_id' AND k.state = 'active')
SQL
}

# A test: no value of the twins is on a key that is not active.
sub all_active
{
	my ($node, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $counted = stale_values($node, 'true', %options);
	my $stale = join ' + ', map {
		my $table = $_;
		map { "(SELECT count(*) FROM $table AS t JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(t.$_) WHERE k.state <> 'active')" } 'value', 'big'
	} @tables;
	return is("$counted " . value($node, "SELECT $stale", %options), '0 0', "$name: no value is on a key other than the active one");
}

1;
