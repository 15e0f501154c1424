# What was dumped of an earlier version is restored into this one; pg_upgrade brings the older catalog along, which is then
# updated; a standby gets the update by WAL.

use strict;
use warnings;

use Cwd;
use FieldcryptTest;
use OldVersion;
use PostgreSQL::Test::Utils;
use Test::More;

my $update = 'ALTER EXTENSION pg_fieldcrypt UPDATE';
my $installed = q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'};
my $values = q{SELECT id, md5(ssn::bytea), fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients WHERE id > 50 ORDER BY id};

my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ], init => { allows_streaming => 1 });
my $now = value($node, $installed);
my ($version) = grep { $_ ne $now } released();
make_old($node, 'old', $version);
my $before = value($node, $values, db => 'old');
my $contents = contents($node, 'old');

note 'dumps';
my $custom = dump_database($node, 'old', $node->basedir . '/old.custom', '-Fc');
my $plain = dump_database($node, 'old', $node->basedir . '/old.sql');
foreach my $case ([ 'custom', $custom, '--exit-on-error' ], [ 'plain', $plain, '-v', 'ON_ERROR_STOP=1', '--single-transaction' ])
{
	my ($kind, $dump, @arguments) = @$case;
	my $db = create_database($node, "restored_$kind", extension => 0);
	my $result = restore_database($node, $db, $dump, @arguments);
	is($result->{code}, 0, "a $kind dump of $version is restored");
	gives($node, $installed, $now, "as $now", db => $db);
	same_contents(contents($node, $db), $contents, "$kind: keys and log are those of before");
	gives($node, $values, $before, "$kind: so are the values", db => $db);
	gives($node, $values, $before, "$kind: and who may read them", db => $db, user => 'clerk');
	gives($node, q{SELECT string_agg(table_name || '.' || column_name || ' ' || enforced, ' ' ORDER BY column_name) FROM fieldcrypt.column_contexts}, 'public.patients.note false public.patients.ssn true', "$kind: contexts are remembered", db => $db);
}

note 'of what was updated';
{
	gives($node, "$update; $installed", $now, 'updated', db => 'old');
	my $dump = dump_database($node, 'old', $node->basedir . '/updated.custom', '-Fc');
	my $db = create_database($node, 'restored_updated', extension => 0);
	is(restore_database($node, $db, $dump, '--exit-on-error')->{code}, 0, 'a dump is restored');
	gives($node, $values, $before, 'values', db => $db, user => 'clerk');
	same_contents(contents($node, $db), contents($node, 'old'), 'keys and log');
	my $rights = sub { return join "\n", sort grep { /^GRANT/ } split /\n/, slurp_file(dump_database($node, $_[0], $node->basedir . "/rights_$_[0].sql", '--schema-only')) };
	is($rights->($db), $rights->('old'), 'the rights that users gave are in a dump still');
	like($rights->('old'), qr/^GRANT ALL ON FUNCTION fieldcrypt\.decrypt_field\(value fieldcrypt\.encrypted, context text\) TO clerk;$/m, 'they are there');
}

note 'an old version, where a dump needs it';
{
	my $db = create_database($node, 'restored_as_old', extension => 0);
	value($node, "CREATE EXTENSION pg_fieldcrypt VERSION '$version'", db => $db);
	is(restore_database($node, $db, $custom, '--exit-on-error')->{code}, 0, "restored into $version");
	gives($node, "$installed; $update; $installed", "$version\n$now", 'and updated', db => $db);
	gives($node, $values, $before, 'values', db => $db, user => 'clerk');
}

note 'a standby';
{
	write_key_file($node->basedir . '/master.key', key_text(1), key_text(2));
	make_old($node, 'replicated', $version);
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	use_key_file($standby, key_text(1), key_text(2));
	$standby->append_conf('postgresql.conf', "hot_standby_feedback = on\n");
	$standby->start;
	my $expected = value($node, $values, db => 'replicated');
	my $open = session($standby, db => 'replicated');
	$open->gives($values, $expected, 'it reads');
	refused($standby, $update, '25006', 'it can not be updated there', db => 'replicated');
	my $told = run_sql($standby, 'SELECT count(*) FROM fieldcrypt.health()', db => 'replicated');
	like($told->{err}, qr/WARNING:  KF035: this database has pg_fieldcrypt \Q$version\E/, 'health tells of it');
	value($node, $update, db => 'replicated');
	$node->wait_for_catchup($standby);
	$open->gives($installed, $now, 'the update arrives');
	$open->gives($values, $expected, 'and an open session reads on');
	gives($standby, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'extension_version'}, 'ok', 'health', db => 'replicated');
	$open->close;
	no_crash($standby);
	$standby->stop;
}
no_crash($node);
$node->stop;

note 'pg_upgrade';
{
	my $old = new_cluster('before', keys => [ key_text(1), key_text(2) ], extension => 0);
	make_old($old, 'app', $version);
	my ($values_before, $contents_before) = (value($old, $values, db => 'app'), contents($old, 'app'));
	$old->stop;
	my $new = new_cluster('after', keys => [ key_text(2), key_text(1) ], start => 0);
	my ($here, $out) = (Cwd::getcwd(), '');
	chdir $new->basedir or die $!;    # where pg_upgrade puts its scripts
	my $upgraded = IPC::Run::run(
		[ 'pg_upgrade', '--link', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $new->config_data('--bindir'), '-B', $new->config_data('--bindir'), '-s', $new->host, '-p', $old->port, '-P', $new->port ],
		'>', \$out, '2>&1');
	chdir $here or die $!;
	ok($upgraded, 'pg_upgrade --link') or diag $out;
	$new->start;
	gives($new, $installed, $version, 'brings the older catalog along', db => 'app');
	same_contents(contents($new, 'app'), $contents_before, 'keys and log');
	gives($new, $values, $values_before, 'values', db => 'app', user => 'clerk');
	my $script = slurp_file($new->basedir . '/update_extensions.sql');
	like($script, qr/^ALTER EXTENSION "pg_fieldcrypt" UPDATE;/m, 'and writes the script that updates');
	is($new->psql('postgres', $script), 0, 'which does');
	gives($new, $installed, $now, "to $now", db => 'app');
	use_everything($new, 'app', 'after pg_upgrade and the update');
	no_crash($new);
	$new->stop;
}
done_testing();
