# A setting that was taken out of the configuration file, or reset, is not set any more: new sessions see its default, without
# a restart. Without preload, where the server knows only that there was such a name. What a client says instead of the
# configuration file's value counts for nothing, an empty text neither.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt', 'manage');
SELECT fieldcrypt.encrypt_field('makes the key');
CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept') AS v;
GRANT SELECT ON kept TO app;
SQL
my $file = $node->data_dir . '/postgresql.conf';
my $before = slurp_file($file);

sub configure_as
{
	my ($text) = @_;
	open my $out, '>', $file or die "$file: $!";
	print $out $before . $text;
	close $out or die "$file: $!";
	$node->reload;
	return;
}

# With a line in the file, sessions do as it says; without it again as before, and so whatever the line was.
my @settings = (
	[ 'fieldcrypt.master_key', 'ab' x 32, q{SELECT fieldcrypt.decrypt_field(v) FROM kept}, 'KF009', 'kept' ],
	[ 'fieldcrypt.require_tenant', 'on', q{SELECT fieldcrypt.decrypt_field(v) FROM kept}, 'KF029', 'kept' ],
	[ 'fieldcrypt.create_keys_on_use', 'off', q{SELECT fieldcrypt.encrypt_field('x', tenant => 'n' || pg_backend_pid()) IS NOT NULL}, 'KF007', 't' ]);
foreach my $case (@settings)
{
	my ($name, $value, $sql, $sqlstate, $expected) = @$case;
	configure_as("$name = '$value'\n");
	$node->poll_query_until('postgres', "SELECT current_setting('$name', true) = '$value'") or die $name;
	my %as = (user => 'app');
	my $refused = run_sql($node, $sql, %as);
	is($refused->{sqlstates}[0] // $refused->{out}, $sqlstate, "$name: as the configuration file says");
	configure_as('');
	$node->poll_query_until('postgres', "SELECT coalesce(current_setting('$name', true), '') <> '$value'") or die $name;
	gives($node, $sql, $expected, "$name: not set any more", %as);
	# Nor what a session has taken back itself.
	gives($node, "SET $name = '$value'; RESET $name; $sql", qr/^$expected$/m, "$name: nor after RESET", %as) if $name ne 'fieldcrypt.master_key';
	# Nor by a client that says it is empty.
	configure_as("$name = '$value'\n");
	$node->poll_query_until('postgres', "SELECT current_setting('$name', true) = '$value'") or die $name;
	my $empty = run_sql($node, $sql, %as, env => { PGOPTIONS => "-c $name=" });
	is($empty->{sqlstates}[0] // $empty->{out}, $sqlstate, "$name: a client's empty text does not stand for what the file has");
	configure_as('');
	$node->poll_query_until('postgres', "SELECT coalesce(current_setting('$name', true), '') <> '$value'") or die $name;
}

# Those that are strictest where it can't be told who set them.
my @shown = ([ 'fieldcrypt.require_approval', 'destroy_key', 'shred_tenant' ], [ 'fieldcrypt.audit_decrypt', 'all', 'failures' ],
	[ 'fieldcrypt.audit_decrypt_contexts', '7', undef ]);
foreach my $case (@shown)
{
	my ($name, $value, $default) = @$case;
	my $show = "SELECT fieldcrypt.encrypt_field('x') IS NOT NULL; SHOW $name";
	my $usual = run_sql($node, $show)->{out} =~ s/^t\n//r;
	is($usual, $default, "$name: its default") if defined $default;
	configure_as("$name = '$value'\n");
	$node->poll_query_until('postgres', "SELECT current_setting('$name', true) = '$value'") or die $name;
	gives($node, $show, "t\n$value", "$name: as the configuration file says");
	configure_as('');
	$node->poll_query_until('postgres', "SELECT coalesce(current_setting('$name', true), '') <> '$value'") or die $name;
	is(run_sql($node, $show)->{out} =~ s/^t\n//r, $usual, "$name: not set any more");
}
no_crash($node);
$node->stop;
done_testing();
