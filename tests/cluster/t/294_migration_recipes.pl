# The recipes of docs/migration.md, as they stand there: a column of plaintext, in one step and in two, undone and dropped;
# of pgcrypto, and undone; of our own type. That of pgsodium is said not to be run.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

needs_library('pgcrypto');
my $node = new_cluster('primary');
my $page = slurp_file("$ENV{TESTDIR}/docs/migration.md");
value($node, 'CREATE EXTENSION pgcrypto');
my @tried = $page =~ /<!-- tried: (.*?) -->/g;
my %is_run;

sub recipe
{
	my ($name) = @_;
	my ($recipe) = $page =~ /<!-- tried: \Q$name\E -->\n```sql\n(.*?)```/s or die "docs/migration.md does not show $name";
	$is_run{$name} = 1;
	return $recipe;
}

# A test: a recipe runs as it stands.
sub follow
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = run_sql($node, recipe($name));
	return is("@{ $result->{sqlstates} }", '', "recipe: $name") || diag $result->{err};
}

sub patients
{
	my ($type, $value) = @_;
	value($node, "SET client_min_messages = error; DROP TABLE IF EXISTS patients; CREATE TABLE patients (id bigint PRIMARY KEY, ssn $type);
		INSERT INTO patients SELECT i, $value FROM generate_series(1, 500) AS i");
	return;
}
my $opened = q{SELECT count(*) FROM patients WHERE fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.patients.ssn', id)) = 'n' || id};

patients('text', q{'n' || i});
follow('plaintext');
gives($node, $opened, '500', '  every value is there');
value($node, q{INSERT INTO patients (id, ssn) VALUES (501, 'n501'); UPDATE patients SET ssn = 'other' WHERE id = 1});
follow('undone');
gives($node, q{SELECT count(*) FROM patients WHERE ssn = CASE id WHEN 1 THEN 'other' ELSE 'n' || id END}, '501', '  with what was written since');
value($node, q{UPDATE patients SET ssn = 'n1' WHERE id = 1});
follow('in two steps');
gives($node, $opened, '501', '  every value is there');
follow('dropped');
gives($node, $opened, '501', '  and still is');
gives($node, q{SELECT count(*) FROM pg_attribute WHERE attrelid = 'patients'::regclass AND attname = 'ssn_plaintext'}, '0', '  without the plaintext');
refused($node, recipe('undone'), '55000', 'which is not undone any more');

patients('bytea', q{pgp_sym_encrypt('n' || i, 'the old key')});
follow('pgcrypto');
gives($node, $opened, '500', '  every value is there');
value($node, q{INSERT INTO patients (id, ssn) VALUES (501, 'n501')});
follow('pgcrypto undone');
gives($node, q{SELECT count(*) FROM patients WHERE pgp_sym_decrypt(ssn, 'the old key') = 'n' || id}, '501', '  with what was written since');

patients('fieldcrypt.encrypted', q{fieldcrypt.encrypt_field('n' || i, 'patients.ssn/' || i)});
follow('encrypted');
gives($node, $opened, '500', '  every value is there');

is(join(', ', grep { !$is_run{$_} } @tried), '', 'every recipe that is said to be tried is');
my @sql = $page =~ /```sql\n/g;
is(scalar @sql, @tried + 1, 'all are, but one');
like($page, qr/## pgsodium\n\nNot run by the tests.*?\n```sql\n/s, 'which says that it is not');
# The table of arguments is that of the procedure.
my %named = map { $_ => 1 } map { /`(\w+)`/g } $page =~ /^\| (`\w+`.*?) \|/mg;
my $explained = '{' . join(',', sort keys %named) . '}';
gives($node, "SELECT string_agg(a, ' ' ORDER BY place) FROM pg_proc, unnest(proargnames) WITH ORDINALITY AS u (a, place)
  WHERE oid::regproc::text = 'fieldcrypt.encrypt_column' AND a <> ALL ('$explained'::text[])", 'relation column_name', 'every other argument is explained');
no_crash($node);
$node->stop;
done_testing();
