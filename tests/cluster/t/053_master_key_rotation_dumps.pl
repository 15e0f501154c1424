# Dumps taken before, during and after a rotation of the master key: each restores, reads, goes on, and
# demands the master keys that it needs and no other.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $file = $node->basedir . '/master.key';
my $folder = PostgreSQL::Test::Utils::tempdir();

sub load_keys
{
	my (@numbers) = @_;
	write_key_file($file, map { key_text($_) } @numbers);
	configure($node);
	return;
}

my $everything = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'of ' || tenant), count(*) FROM kept};
my $rotation = <<'SQL';
SET timezone = 'UTC';
SELECT 'policy', p.* FROM fieldcrypt.rotation_policies AS p ORDER BY tenant;
SELECT 'log', l.* FROM fieldcrypt.rotation_log AS l ORDER BY id;
SQL
my %formats = (sql => [], custom => ['-Fc'], inserts => [ '-Fc', '--inserts' ]);

create_database($node, 'source');
value($node, <<'SQL', db => 'source');
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT t, fieldcrypt.encrypt_field('of ' || t, tenant => t) FROM (SELECT 'tenant ' || i AS t FROM generate_series(1, 50) AS i) AS t;
SELECT fieldcrypt.set_rotation_policy(NULL, '30 days'), fieldcrypt.set_rotation_policy('tenant 1', '1 year');
CALL fieldcrypt.rotate_keys(force => true);
SQL

my (%dumps, %contents);

sub take
{
	my ($stage) = @_;
	foreach my $format (sort keys %formats)
	{
		my $path = "$folder/$stage.$format" . ($format eq 'sql' ? '' : '.dump');
		$dumps{$stage}{$format} = dump_database($node, 'source', $path, @{ $formats{$format} });
	}
	$contents{$stage} = contents($node, 'source') . value($node, $rotation, db => 'source');
	return;
}

take('before');
load_keys(2, 1);
# Ends early: a tenant's key is locked until the run has stopped waiting.
{
	my $holder = session($node, db => 'source');
	$holder->value(q{BEGIN; SELECT FROM fieldcrypt.encryption_keys WHERE tenant < 'tenant 3' FOR UPDATE});
	like(run_sql($node, q{CALL fieldcrypt.rotate_master_key(batch_size => 7, wait_for_locks => '0')}, db => 'source')->{err}, qr/WARNING:  KF020: \d+ keys are locked/, 'the rotation stops in the middle');
	take('during');
	$holder->value('ROLLBACK');
	$holder->close;
}
my $mixed = value($node, 'SELECT count(DISTINCT master_key_fingerprint) FROM fieldcrypt.encryption_keys', db => 'source');
is($mixed, '2', 'during: some keys are under each');
unlike(run_sql($node, 'CALL fieldcrypt.rotate_master_key()', db => 'source')->{err}, qr/WARNING|ERROR/, 'the rotation ends');
take('after');

# Which files open it, and which do not.
my %opens = (before => [ [ 1 ], [ 1, 2 ], [ 2, 1 ] ], during => [ [ 1, 2 ], [ 2, 1 ] ], after => [ [ 2 ], [ 2, 1 ], [ 3, 2 ] ]);
my %refuses = (before => [ [ 2 ], [ 3 ] ], during => [ [ 1 ], [ 2 ], [ 3, 1 ] ], after => [ [ 1 ], [ 3 ] ]);
my $serial = 0;
foreach my $stage ('before', 'during', 'after')
{
	foreach my $format (sort keys %formats)
	{
		my $db = 'restored_' . ++$serial;
		create_database($node, $db, extension => 0);
		# No master key is needed to restore, whichever is loaded.
		load_keys(3);
		my $result = restore_database($node, $db, $dumps{$stage}{$format}, $format eq 'sql' ? () : '--exit-on-error');
		is($result->{code} . "@{ $result->{sqlstates} }", '0', "$stage, $format: restores");
		same_contents(contents($node, $db) . value($node, $rotation, db => $db), $contents{$stage}, "$stage, $format: unchanged");
		foreach my $keys (@{ $refuses{$stage} })
		{
			load_keys(@$keys);
			refused($node, q{SELECT fieldcrypt.create_key('new')}, 'KF010', qr/wrapped by master key/, "$stage, $format: no new key with @$keys alone", db => $db);
			refused($node, $everything, 'KF010', "$stage, $format: not all is readable with @$keys alone", db => $db);
		}
		foreach my $keys (@{ $opens{$stage} })
		{
			load_keys(@$keys);
			gives($node, $everything, '50|50', "$stage, $format: readable with @$keys", db => $db);
			gives($node, "SELECT fieldcrypt.create_key('with @$keys') > 0", 't', "$stage, $format: new tenants work with @$keys", db => $db);
		}
		# The rotation is done, or resumed, or there is nothing to do; then the new one is enough.
		load_keys(2, 1);
		$result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()', db => $db);
		my %says = (before => 'switched to', during => 'resumed to', after => 'nothing to do');
		like($result->{err}, qr/NOTICE:[^\n]*$says{$stage}/, "$stage, $format: rotate_master_key says '$says{$stage}'");
		unlike($result->{err}, qr/WARNING|ERROR/, "$stage, $format: and goes through");
		load_keys(2);
		gives($node, $everything, '50|50', "$stage, $format: readable with the new one alone", db => $db);
		gives($node, q{SELECT fieldcrypt.create_key('last') > 0}, 't', "$stage, $format: new tenants work with the new one alone", db => $db);
		like(run_sql($node, 'CALL fieldcrypt.rotate_keys(force => true)', db => $db)->{err}, qr/\b0 failed/, "$stage, $format: keys rotate");
		gives($node, 'SELECT count(*) > 50, min(id) > (SELECT max(id) FROM fieldcrypt.rotation_log WHERE run_started_at < (SELECT max(run_started_at) FROM fieldcrypt.rotation_log)) FROM fieldcrypt.rotation_log WHERE run_started_at = (SELECT max(run_started_at) FROM fieldcrypt.rotation_log)',
			't|t', "$stage, $format: ids of the log go on", db => $db);
	}
}

# Over what is there: refused.
foreach my $stage ('before', 'after')
{
	my $result = restore_database($node, 'source', $dumps{$stage}{custom}, '--data-only');
	like($result->{err}, qr/already has rows in fieldcrypt\.$_: nothing is restored/, "$stage: a restore over an existing $_ is refused")
	  foreach 'master_keys', 'encryption_keys', 'rotation_policies', 'rotation_log';
}
load_keys(2);
gives($node, $everything, '150|150', 'and the keys are as they were', db => 'source');

no_crash($node);
$node->stop;
done_testing();
