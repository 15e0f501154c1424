# pg_upgrade --link from a cluster of the same version: keys, log, values and guards are all there.

use strict;
use warnings;

use Cwd;
use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = new_cluster('old');
value($old, <<'SQL');
CREATE ROLE clerk LOGIN;
SELECT fieldcrypt.grant_access('clerk', 'decrypt');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
CREATE INDEX ON patients USING hash (ssn);
GRANT SELECT ON patients TO clerk;
SELECT fieldcrypt.audit_table('patients');
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field(repeat('x', i * 100), 'ssn', 'tenant ' || i % 3) FROM generate_series(1, 60) AS i;
CALL fieldcrypt.rotate_keys(force => true);
INSERT INTO patients VALUES (61, fieldcrypt.encrypt_field('last', 'ssn', 'tenant 1'));
SQL
my $values = q{SELECT id, md5(ssn::bytea), md5(fieldcrypt.decrypt_field(ssn, 'ssn')) FROM patients ORDER BY id};
my ($contents, $before) = (contents($old, 'postgres'), value($old, $values));
$old->stop;

my $new = new_cluster('new', start => 0);
my @upgrade = (
	'pg_upgrade', '--link', '-j', 2,
	'-d', $old->data_dir, '-D', $new->data_dir,
	'-b', $new->config_data('--bindir'), '-B', $new->config_data('--bindir'),
	'-s', $new->host, '-p', $old->port, '-P', $new->port);
my $here = Cwd::getcwd();
chdir $new->basedir or die $!;    # where pg_upgrade puts its scripts
my $out = '';
my $upgraded = IPC::Run::run(\@upgrade, '>', \$out, '2>&1');
chdir $here or die $!;
ok($upgraded, 'pg_upgrade --link') or diag $out;
$new->start;

same_contents(contents($new, 'postgres'), $contents, 'keys and audit log');
same_contents(value($new, $values), $before, 'values, byte for byte, and readable');
gives($new, $values =~ s/md5\(ssn::bytea\)/1/r, qr/^61\|1\|/m, 'grants came along', user => 'clerk');
refused($new, q{SELECT fieldcrypt.encrypt_field('x')}, '42501', 'and no others', user => 'clerk');
refused($new, 'DROP EXTENSION pg_fieldcrypt', '2BP01', 'the column depends on the extension');
refused($new, 'DROP EXTENSION pg_fieldcrypt CASCADE', 'KF032', 'and it is not dropped with its keys');
gives($new, q{SELECT evtenabled, (SELECT count(*) FROM pg_depend WHERE classid = 'pg_event_trigger'::regclass AND objid = e.oid AND deptype = 'e') FROM pg_event_trigger AS e WHERE evtname = 'fieldcrypt_guard_drops'},
	'A|1', 'the event trigger always fires, and belongs to the extension');
refused($new, $_, 'KF015', "guarded against $_")
  foreach 'UPDATE fieldcrypt.encryption_keys SET version = 9', 'DELETE FROM fieldcrypt.audit_log', 'TRUNCATE fieldcrypt.audit_log';

# The triggers that tell other sessions are still ENABLE ALWAYS, and the rest goes on.
gives($new, q{SELECT string_agg(tgname, ' ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = 'fieldcrypt.encryption_keys'::regclass AND tgenabled = 'A'},
	'invalidate invalidate_all', 'invalidation always fires');
my $session = session($new);
my $key_of_next = q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'tenant 2'))};
my $cached = $session->value($key_of_next);
gives($new, <<'SQL', 't', 'the next keys and audit rows are written');
SET client_min_messages = error;
SELECT fieldcrypt.create_key('new') > 0;
CALL fieldcrypt.rotate_keys(force => true);
DELETE FROM patients WHERE id = 1;
SQL
isnt($session->value($key_of_next), $cached, 'a rotation reaches a session that is open');
gives($new, q{SELECT count(*) = count(DISTINCT id) FROM fieldcrypt.audit_log}, 't', 'audit ids do not repeat');
gives($new, q{SELECT count(*) FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fieldcrypt') AND classid = 'pg_class'::regclass AND objid = 'fieldcrypt_internal.audit_log_2031'::regclass},
	'1', 'partitions still belong to the extension');
my $dump = dump_database($new, 'postgres', $new->basedir . '/after.sql');
like(slurp_file($dump), qr/^COPY fieldcrypt\.encryption_keys .*^COPY fieldcrypt_internal\.audit_log_2026|^COPY fieldcrypt_internal\.audit_log_2026 .*^COPY fieldcrypt\.encryption_keys /ms,
	'a dump of the new cluster has keys and log');

$session->close;
no_crash($new);
$new->stop;

# With the library preloaded on both sides: the log goes on under a name of its own, and its past holds.
{
	my $preload = "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_worker_linger = '300ms'\n";
	my $before = new_cluster('preloaded', conf => $preload);
	value($before, q{CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value});
	refused($before, 'SELECT fieldcrypt.decrypt_field(value) FROM kept', 'KF002', 'a failure before the upgrade');
	ok(eventually($before, q{SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), 'is sealed');
	my $checkpoint = value($before, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1');
	my $key = value($before, 'SELECT public_key FROM fieldcrypt.audit_signers ORDER BY id LIMIT 1');
	$before->stop;
	my $after = new_cluster('after', conf => $preload, start => 0);
	my $said = '';
	chdir $after->basedir or die $!;
	ok( IPC::Run::run(
			[ 'pg_upgrade', '--link', '-d', $before->data_dir, '-D', $after->data_dir, '-b', $after->config_data('--bindir'), '-B', $after->config_data('--bindir'),
				'-s', $after->host, '-p', $before->port, '-P', $after->port ],
			'>', \$said, '2>&1'),
		'pg_upgrade of a preloaded cluster') or diag $said;
	chdir $here or die $!;
	$after->start;
	refused($after, 'SELECT fieldcrypt.decrypt_field(value) FROM kept', 'KF002', 'a failure after it');
	value($after, q{SELECT fieldcrypt.create_key('after')});
	ok(eventually($after, 'SELECT count(*) FROM fieldcrypt.audit_origins', 2), 'the log has a new origin');
	ok(eventually($after, q{SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), 'and is sealed there');
	my $findings = value($after, "SELECT string_agg(DISTINCT finding, ' ') FROM fieldcrypt.verify_audit_log(anchor => \$anchor\$$key\n$checkpoint\$anchor\$) WHERE status <> 'ok'");
	like($findings, qr/fork/, 'verification tells of the fork');
	unlike($findings, qr/row_changed|checkpoint_|root|cut|anchor/, 'and of no damage, against a checkpoint from before');
	no_crash($after);
}
done_testing();
