# A table of which a column is encrypted while an application writes it, and its twin, which stays plaintext.
#
#   make_migrated($node, rows => 5000);
#   my $writers = migration_writers($node, seconds => 60, seed => $seed);      # pgbench, in the background: judge_bench of Twin
#   same_as_twin($node, 'name');                                               # a test: row by row, whatever the column is now
package Migration;

use strict;
use warnings;

use Exporter 'import';
use FieldcryptTest;
use Test::More;
use Twin;

our @EXPORT = qw(make_migrated migration_writers same_as_twin state_of);

# The application sends text, to a column that it calls ssn: before the swap and after it.
sub make_migrated
{
	my ($node, %options) = @_;
	my $rows = $options{rows} // 5000;
	value($node, <<SQL);
CREATE TABLE people (id int PRIMARY KEY, ssn varchar(40) DEFAULT 'not given', note text NOT NULL DEFAULT '', counter int NOT NULL DEFAULT 0) WITH (fillfactor = 80);
COMMENT ON COLUMN people.ssn IS 'the number';
CREATE INDEX people_note ON people (note);
CREATE TABLE people_twin (id int PRIMARY KEY, ssn text, note text NOT NULL DEFAULT '', counter int NOT NULL DEFAULT 0);
CREATE FUNCTION change(operation text, row_id int, content text) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
    number int;
    twins int;
    number_of text := CASE WHEN row_id % 13 <> length(content) % 13 THEN content END;
BEGIN
    CASE operation
    WHEN 'insert' THEN
        INSERT INTO people (id, ssn, note) VALUES (row_id, number_of, 'i') ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS number = ROW_COUNT;
        INSERT INTO people_twin (id, ssn, note) SELECT row_id, number_of, 'i' WHERE number > 0;
    WHEN 'default' THEN
        INSERT INTO people (id, note) VALUES (row_id, 'd') ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS number = ROW_COUNT;
        INSERT INTO people_twin (id, ssn, note) SELECT row_id, 'not given', 'd' WHERE number > 0;
    WHEN 'upsert' THEN
        INSERT INTO people AS p (id, ssn, note) VALUES (row_id, number_of, 'u') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, counter = p.counter + 1;
        GET DIAGNOSTICS number = ROW_COUNT;
        INSERT INTO people_twin AS p (id, ssn, note) VALUES (row_id, number_of, 'u') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, counter = p.counter + 1;
    WHEN 'update' THEN
        UPDATE people SET ssn = number_of, counter = counter + 1 WHERE id = row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        UPDATE people_twin SET ssn = number_of, counter = counter + 1 WHERE id = row_id AND number > 0;
    WHEN 'note' THEN
        UPDATE people SET note = content, counter = counter + 1 WHERE id = row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        UPDATE people_twin SET note = content, counter = counter + 1 WHERE id = row_id AND number > 0;
    WHEN 'delete' THEN
        DELETE FROM people WHERE id = row_id;
        GET DIAGNOSTICS number = ROW_COUNT;
        DELETE FROM people_twin WHERE id = row_id AND number > 0;
    WHEN 'renumber' THEN
        UPDATE people SET id = -row_id WHERE id = row_id AND NOT EXISTS (SELECT FROM people AS o WHERE o.id = -row_id);
        GET DIAGNOSTICS number = ROW_COUNT;
        UPDATE people_twin SET id = -row_id WHERE id = row_id AND number > 0;
    END CASE;
    GET DIAGNOSTICS twins = ROW_COUNT;
    IF twins <> number THEN
        RAISE EXCEPTION USING ERRCODE = 'ZZ001', MESSAGE = format('%s %s: %s rows, %s of the twin', operation, row_id, number, twins);
    END IF;
END \$\$;
INSERT INTO people SELECT i, CASE WHEN i % 10 <> 0 THEN md5(i::text) END, 'n' FROM generate_series(1, $rows) AS i;
INSERT INTO people_twin SELECT * FROM people;
ANALYZE people;
SQL
	return;
}

# Every isolation level; transactions that hold rows for a while, that roll back, and that roll back a part.
sub migration_writers
{
	my ($node, %options) = @_;
	my $rows = $options{rows} // 5000;
	my $begin = "\\set id random(1, $rows * 11 / 10)\n\\set r random(1, 1000000)\n";
	my $change = sub { "SELECT change('$_[0]', :id, md5(':r'));\n" };
	my @scripts = map { [ $begin . $change->($_->[0]), $_->[1] ] }
	  [ insert => 4 ], [ default => 2 ], [ upsert => 4 ], [ update => 8 ], [ note => 6 ], [ delete => 3 ], [ renumber => 1 ];
	push @scripts, [ "$begin BEGIN;\nSELECT FROM people WHERE id = :id FOR UPDATE;\n\\sleep 20 ms\n" . $change->('update') . "COMMIT;\n", 2 ];
	push @scripts, [ "$begin BEGIN;\n" . $change->('update') . "\\sleep 5 ms\nROLLBACK;\n", 2 ];
	push @scripts, [ "$begin BEGIN;\n" . $change->('note') . "SAVEPOINT a;\n" . $change->('delete') . "ROLLBACK TO a;\n" . $change->('update') . "COMMIT;\n", 2 ];
	push @scripts, [ "$begin BEGIN ISOLATION LEVEL REPEATABLE READ;\n" . $change->('update') . "\\sleep 2 ms\nCOMMIT;\n", 2 ];
	return Twin::bench($node, 'writers', \@scripts, '-c', $options{clients} // 4, '-T', $options{seconds}, '--max-tries=50',
		"--random-seed=$options{seed}");
}

sub state_of
{
	my ($node, $table) = @_;
	return value($node, "SELECT coalesce((SELECT state FROM fieldcrypt.column_migrations WHERE table_name = '$table'), 'none')");
}

# The columns that are there say what has to be the same: plaintext, ciphertext, or both.
sub same_as_twin
{
	my ($node, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %type = map { split /\|/ } split /\n/,
	  value($node, q{SELECT attname, atttypid::regtype FROM pg_attribute WHERE attrelid = 'people'::regclass AND attnum > 0 AND NOT attisdropped});
	my @parts;
	foreach my $column (sort grep { /^ssn/ } keys %type)
	{
		my $plain = $type{$column} eq 'fieldcrypt.encrypted_text' ? "fieldcrypt.decrypt_field(p.$column, fieldcrypt.context('public.people.ssn', p.id))" : "p.$column";
		# What no batch has reached yet is not there yet.
		my $is_due = $column eq 'ssn_encrypted_new' ? "p.$column IS NOT NULL AND" : '';
		push @parts, "$is_due $plain IS DISTINCT FROM t.ssn";
	}
	my $condition = join ' OR ', @parts;
	my $differ = value($node, <<SQL);
SELECT string_agg(concat_ws(' ', p.id, t.id, (p.note, p.counter) IS NOT DISTINCT FROM (t.note, t.counter)), '; ')
  FROM (SELECT coalesce(p.id, t.id) FROM people AS p FULL JOIN people_twin AS t ON t.id = p.id
         WHERE p.id IS NULL OR t.id IS NULL OR (p.note, p.counter) IS DISTINCT FROM (t.note, t.counter) OR $condition LIMIT 10) AS d (id)
  LEFT JOIN people AS p ON p.id = d.id LEFT JOIN people_twin AS t ON t.id = d.id
SQL
	my $count = value($node, 'SELECT count(*) FROM people');
	note "$name: $count rows; columns: " . join ', ', sort grep { /^ssn/ } keys %type;
	return is("$differ " . ($count > 100), ' 1', "$name: row by row as the twin");
}

1;
