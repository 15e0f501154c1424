# Columns that are computed when they are read (PostgreSQL 18) hold nothing: a context's expression that names one is computed
# of what it is computed of, wherever a context counts.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use ServerLog;
use Test::More;

my $node = new_cluster('primary', conf => everything_logged());
if (server_version($node) < 18)
{
	$node->stop;
	plan skip_all => 'there are no such columns before PostgreSQL 18';
}
my $log = LogCanary->new($node);
value($node, <<'SQL');
CREATE ROLE clerk LOGIN;
GRANT CREATE, USAGE ON SCHEMA public TO clerk;
SELECT fieldcrypt.grant_access('clerk', 'type', 'encrypt', 'decrypt');
CREATE TABLE patients (gone int, id int PRIMARY KEY, kind text, label text GENERATED ALWAYS AS (kind || '-' || id) VIRTUAL NOT NULL, ssn fieldcrypt.encrypted,
    plain fieldcrypt.encrypted, has_ssn boolean GENERATED ALWAYS AS (ssn IS NOT NULL) STORED, doubled int GENERATED ALWAYS AS (id * 2) STORED, CHECK (label <> ''));
ALTER TABLE patients DROP COLUMN gone;
ALTER TABLE patients OWNER TO clerk;
INSERT INTO patients (id, kind, ssn, plain) SELECT i, 'k', fieldcrypt.encrypt_field('s' || i, fieldcrypt.context('patients.ssn', 'k-' || i)), fieldcrypt.encrypt_field('p', 'plain')
  FROM generate_series(1, 20) AS i;
SELECT fieldcrypt.set_column_context('patients', 'plain', 'plain');
SQL
my $bound = q{fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', label)$$};
gives($node, "SELECT $bound)", '', 'a virtual column in an expression');
refused($node, q{SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('x', has_ssn)$$)}, '42P17', qr/goes by an encrypted column/, 'one that is computed of an encrypted column');

my $opens = q{SELECT count(*) FROM patients WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', label)) = 's' || id AND has_ssn AND doubled = id * 2 AND label = kind || '-' || id};
is_kept($node, 'public.patients', 'a context by a virtual column');
gives($node, $opens, '20', '  and what is computed is as it was');
value($node, q{CALL fieldcrypt.verify_values('patients')});
gives($node, 'SELECT count(*) FROM fieldcrypt.value_failures', '0', 'verified: all of them are authentic');

# Enforced.
gives($node, "SELECT $bound, enforce => true)", '', 'enforced');
my $row = sub { my ($id, $of) = @_; return "($id, 'k', fieldcrypt.encrypt_field('s$id', fieldcrypt.context('patients.ssn', 'k-$of')))" };
gives($node, 'INSERT INTO patients (id, kind, ssn) VALUES ' . $row->(21, 21), '', 'what is authentic for its row is written');
refused($node, 'INSERT INTO patients (id, kind, ssn) VALUES ' . $row->(22, 21), 'KF031', 'what belongs to another is not');
refused($node, 'UPDATE patients SET ssn = (SELECT p.ssn FROM patients AS p WHERE id = 2) WHERE id = 1', 'KF031', 'nor by UPDATE');
refused($node, q{UPDATE patients SET kind = 'other' WHERE id = 1}, 'KF031', 'nor may the row become another one');
gives($node, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('s1', fieldcrypt.context('patients.ssn', label)) WHERE id = 1}, '', 'a new value of the row');
is_kept($node, 'public.patients', 'an enforced context', 21);

# Renamed: the column, and what it is computed of.
value($node, 'ALTER TABLE patients RENAME COLUMN label TO title', user => 'clerk');
is_kept($node, 'public.patients', 'the virtual column is renamed', 21);
value($node, 'ALTER TABLE patients RENAME COLUMN kind TO "Kind of"', user => 'clerk');
is_kept($node, 'public.patients', 'a column that it is computed of is renamed', 21);
refused($node, 'INSERT INTO patients (id, "Kind of", ssn) VALUES ' . $row->(22, 21), 'KF031', '  and what belongs to another row is refused');
value($node, 'ALTER TABLE patients RENAME COLUMN "Kind of" TO kind; ALTER TABLE patients RENAME COLUMN title TO label');
gives($node, q{SELECT expression FROM fieldcrypt.column_contexts WHERE column_name = 'ssn'}, qr/context\('patients\.ssn'(::text)?, label\)/, 'the expression names the column, not what it stands for');

# A new expression behind the same name is another context: what was written before does not open with it.
value($node, q{CREATE TABLE changed (id int, a text, v text GENERATED ALWAYS AS (a), ssn fieldcrypt.encrypted)});
value($node, q{INSERT INTO changed (id, a, ssn) SELECT i, 'a' || i, fieldcrypt.encrypt_field('x', fieldcrypt.context('c', 'a' || i)) FROM generate_series(1, 5) AS i});
value($node, q{SELECT fieldcrypt.set_column_context('changed', 'ssn', expression => $$fieldcrypt.context('c', v)$$)});
value($node, 'ALTER TABLE changed ALTER COLUMN v SET EXPRESSION AS (id::text)');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
like(run_sql($node, q{CALL fieldcrypt.reencrypt('changed', rows_per_second => 0)})->{err}, qr/WARNING/, 'another expression of the virtual column: told');
value($node, 'ALTER TABLE changed ALTER COLUMN v SET EXPRESSION AS (a)');
is_kept($node, 'public.changed', 'with that of before', 5);
value($node, 'UPDATE changed SET a = NULL WHERE id = 1; CALL fieldcrypt.rotate_keys(force => true)');
like(run_sql($node, q{CALL fieldcrypt.reencrypt('changed', rows_per_second => 0)})->{err}, qr/WARNING/, 'NULL in one row');
gives($node, q{SELECT rows_failed FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.changed'}, '1', '  which fails alone');

# Partitions, whose columns stand in another order.
value($node, q{CREATE TABLE parted (id int, a text, ssn fieldcrypt.encrypted, v text GENERATED ALWAYS AS (a || id)) PARTITION BY RANGE (id);
	CREATE TABLE parted_1 (v text GENERATED ALWAYS AS (a || id), ssn fieldcrypt.encrypted, a text, id int);
	ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES FROM (0) TO (100);
	SELECT fieldcrypt.set_column_context('parted', 'ssn', expression => $$fieldcrypt.context('p', v)$$, enforce => true);
	INSERT INTO parted (id, a, ssn) SELECT i, 'a', fieldcrypt.encrypt_field('x', fieldcrypt.context('p', 'a' || i)) FROM generate_series(1, 5) AS i});
refused($node, q{INSERT INTO parted (id, a, ssn) VALUES (6, 'a', fieldcrypt.encrypt_field('x', fieldcrypt.context('p', 'a7')))}, 'KF031', 'a partition: what belongs to another row');
value($node, q{CALL fieldcrypt.rotate_keys(force => true); CALL fieldcrypt.reencrypt('parted', rows_per_second => 0)});
gives($node, q{SELECT count(*) FROM parted WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('p', v)) = 'x'}, '5', '  and the values are where they were');

# Audited: what a virtual column would be is in no trigger's row; key and changed columns are told all the same.
value($node, q{SELECT fieldcrypt.audit_table('patients')});
value($node, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('s2', fieldcrypt.context('patients.ssn', label)) WHERE id = 2});
value($node, 'DELETE FROM patients WHERE id = 3');
eventually($node, q{SELECT string_agg(format('%s %s %s', event, row_key, changed_columns), '; ' ORDER BY id) FROM fieldcrypt.audit_log WHERE table_name = 'public.patients' AND row_key IS NOT NULL},
	'row_updated {"id": 2} {ssn}; row_deleted {"id": 3} {ssn,plain}') or diag value($node, q{SELECT event, row_key, changed_columns FROM fieldcrypt.audit_log WHERE row_key IS NOT NULL});
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE row_key IS NOT NULL}, '2', 'an audited table with virtual columns');

# The log: statements with the column's name are about the table.
$log->hides(sub { run_sql($node, "SELECT '$_[0]'::int FROM patients WHERE label = '$_[0]'") }, 'a statement over the virtual column', qr/22P02/);

# What Postgres says of those over our functions and type.
foreach my $definition (q{t text GENERATED ALWAYS AS (fieldcrypt.decrypt_field(ssn))}, q{t text GENERATED ALWAYS AS (fieldcrypt.context('x', id))}, q{v fieldcrypt.encrypted GENERATED ALWAYS AS (ssn)})
{
	my $refused = run_sql($node, "ALTER TABLE patients ADD $definition");
	like($refused->{err}, qr/(?:0A000|42P17).*generat/i, "refused: $definition");
}
no_crash($node);
$node->stop;
done_testing();
