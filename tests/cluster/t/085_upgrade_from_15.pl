# pg_upgrade from PostgreSQL 15, with --copy, --link and --swap: keys in all states, the sealed log with its checkpoints,
# values in all kinds of columns, audited tables, contexts, policies and grants are there, and all of it goes on.
# The old server stands beside where pgrx-config/old_server.sh has put it.

use strict;
use warnings;

use Cwd;
use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $old_place = '/usr/lib/postgresql/15';
plan skip_all => 'the server is 15 itself' if server_version() <= 15;
plan skip_all => "there is no server of PostgreSQL 15 with the extension beside this one (PG=" . server_version() . " pgrx-config/old_server.sh)"
  unless -x "$old_place/bin/postgres" && -x "$old_place/bin/pg_config" && -e "$old_place/lib/pg_fieldcrypt.so";

my $conf = <<'CONF';
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = '300ms'
fieldcrypt.audit_access_interval = 0
fieldcrypt.require_approval = ''
max_prepared_transactions = 0
CONF
my $old = PostgreSQL::Test::Cluster->new('old', install_path => $old_place);
$old->init(extra => [ '--locale=C.UTF-8', '--encoding=UTF8' ]);
use_key_file($old, key_text(1));
$old->append_conf('postgresql.conf', $conf);
$old->start;
is(server_version($old), 15, 'the old server is 15');
value($old, <<'SQL');
SET client_min_messages = error;
CREATE EXTENSION pg_fieldcrypt;
CREATE ROLE clerk LOGIN;
SELECT fieldcrypt.grant_access('clerk', 'decrypt');
SELECT fieldcrypt.set_rotation_policy('acme', '30 days'), fieldcrypt.set_rotation_policy(NULL, '60 days');
CREATE DOMAIN iban AS fieldcrypt.encrypted CHECK (VALUE IS NOT NULL);
CREATE TYPE person AS (name text, ssn fieldcrypt.encrypted);
CREATE TABLE patients (id int PRIMARY KEY, tenant text, ssn fieldcrypt.encrypted, born fieldcrypt.encrypted, account iban,
    numbers fieldcrypt.encrypted[], of person, key bigint GENERATED ALWAYS AS (fieldcrypt.key_id(ssn)) STORED);
CREATE INDEX ON patients USING hash (ssn);
CREATE INDEX ON patients (fieldcrypt.key_id(ssn));
GRANT SELECT ON patients TO clerk;
SELECT fieldcrypt.audit_table('patients');
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
INSERT INTO patients SELECT i, t, fieldcrypt.encrypt_field('value ' || i, fieldcrypt.context('patients.ssn', i), t), fieldcrypt.encrypt_field_as(date '2000-01-01' + i, 'born', t),
    fieldcrypt.encrypt_field('DE' || i, 'account', t), ARRAY[fieldcrypt.encrypt_field('one', 'n', t), NULL], ROW('Ada', fieldcrypt.encrypt_field('s', 'p', t))::person
  FROM generate_series(1, 60) AS i, LATERAL (SELECT CASE i % 3 WHEN 0 THEN 'acme' WHEN 1 THEN 'globex' ELSE 'initech' END AS t) AS t;
CREATE TABLE papers (id int, at date, text fieldcrypt.encrypted) PARTITION BY RANGE (at);
CREATE TABLE papers_1 PARTITION OF papers FOR VALUES FROM ('2020-01-01') TO ('2025-01-01');
CREATE TABLE papers_2 PARTITION OF papers DEFAULT;
INSERT INTO papers SELECT i, date '2020-01-01' + 100 * i, fieldcrypt.encrypt_field(repeat(md5(i::text), 500), 'papers', 'acme') FROM generate_series(1, 40) AS i;
CREATE VIEW readable AS SELECT id, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) AS ssn FROM patients;
CALL fieldcrypt.rotate_keys('acme', force => true);
SELECT fieldcrypt.create_key('gone'), fieldcrypt.create_key('stopped'), fieldcrypt.create_key('known');
CALL fieldcrypt.shred_tenant('gone', 'an end');
SELECT fieldcrypt.suspend_key(key_id, 'r') FROM fieldcrypt.encryption_keys WHERE tenant = 'stopped';
SELECT fieldcrypt.mark_compromised(key_id, 'r') FROM fieldcrypt.encryption_keys WHERE tenant = 'known';
CALL fieldcrypt.reencrypt();
CALL fieldcrypt.verify_values('patients');
SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'asked');
CALL fieldcrypt.check_alerts();
CALL fieldcrypt.check_audit_log();
SQL
refused($old, q{SELECT fieldcrypt.decrypt_field(ssn, 'elsewhere') FROM patients WHERE id = 1}, 'KF002', 'a failure before');
ok(eventually($old, q{SELECT is_final AND size = (SELECT max(leaf) + 1 FROM fieldcrypt.audit_log) FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), 'its log is sealed');

my $values = <<'SQL';
SELECT p.id, p.ssn::bytea, p.born::bytea, p.account::fieldcrypt.encrypted::bytea, p.numbers::text, p.of::text, p.key,
       fieldcrypt.decrypt_field(p.ssn, fieldcrypt.context('patients.ssn', p.id)), fieldcrypt.decrypt_field_as(p.born, NULL::date, 'born'),
       fieldcrypt.decrypt_field(p.account, 'account'), fieldcrypt.decrypt_field(p.numbers[1], 'n'), fieldcrypt.decrypt_field((p.of).ssn, 'p')
  FROM patients AS p ORDER BY p.id;
SELECT id, tableoid::regclass, md5(text::bytea), md5(fieldcrypt.decrypt_field(text, 'papers')) FROM papers ORDER BY id;
TABLE readable ORDER BY id;
SQL
# All tables of the extension but those whose rows name tables by number.
my @kept = qw(alerts audit_checkpoints audit_origins audit_retirements audit_signers audit_verifications column_contexts origins rotation_log rotation_policies);
my $kept = join ' UNION ALL ', map { "SELECT '$_', t::text FROM fieldcrypt.$_ AS t" } @kept;
my $triggers = q{SELECT t.tgrelid::regclass, t.tgname, t.tgenabled FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal ORDER BY 1, 2};
my $belongs = q{SELECT pg_describe_object(classid, objid, 0) FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fieldcrypt')
	   -- Types of rows and arrays go with what they are of.
	   AND NOT (classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid WHERE t.oid = objid AND (c.relkind <> 'c' OR t.typcategory = 'A'))) ORDER BY 1};

sub all_of
{
	my ($node) = @_;
	return {
		'keys and log' => contents($node, 'postgres'),
		'policies, contexts, checkpoints and the like' => value($node, "SET timezone = 'UTC'; $kept ORDER BY 1, 2"),
		'values, byte for byte, and readable' => value($node, $values),
		'triggers, and when they fire' => value($node, $triggers),
		'what belongs to the extension' => value($node, $belongs) };
}
my $before = all_of($old);
my $note = value($old, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1');
my $public_key = value($old, 'SELECT public_key FROM fieldcrypt.audit_signers ORDER BY id LIMIT 1');
$old->stop;

my @without_checksums = server_version() >= 18 ? ('--no-data-checksums') : ();

# A new cluster that has what the old one's copy had: {node, code, out}.
sub upgraded
{
	my ($mode, @initdb) = @_;
	my $copy = $old->basedir . "/for$mode";
	system('cp', '-a', $old->data_dir, $copy) == 0 or die "can't copy $copy";
	my $new = new_cluster("new$mode", start => 0, conf => $conf, init => { extra => [ '--locale=C.UTF-8', '--encoding=UTF8', @initdb ] });
	my @command = (
		'pg_upgrade', $mode, '-d', $copy, '-D', $new->data_dir, '-b', "$old_place/bin", '-B', $new->config_data('--bindir'),
		'-s', $new->host, '-p', $old->port, '-P', $new->port);
	my $here = Cwd::getcwd();
	chdir $new->basedir or die $!;    # where pg_upgrade puts its scripts
	my $out = '';
	IPC::Run::run(\@command, '>', \$out, '2>&1');
	my $code = $? >> 8;
	chdir $here or die $!;
	return ($new, $code, $out);
}

if (@without_checksums)
{
	my ($new, $code, $out) = upgraded('--copy');
	isnt($code, 0, 'a new cluster with checksums, as initdb of 18 makes it, does not take one without');
	like($out, qr/checksum/, 'pg_upgrade says so');
	system('rm', '-rf', $old->basedir . '/for--copy');
}

foreach my $mode ('--link', server_version() >= 18 ? '--swap' : '--copy')
{
	my ($new, $code, $out) = upgraded($mode, @without_checksums);
	is($code, 0, "$mode: pg_upgrade") or diag $out;
	$new->start;
	my $after = all_of($new);
	same_contents($after->{$_}, $before->{$_}, "$mode: $_") foreach sort keys %$before;

	# What docs/operations.md says of it.
	my $health = value($new, q{SELECT coalesce(string_agg("check" || ' ' || status, ', ' ORDER BY "check"), '') FROM fieldcrypt.health() WHERE status <> 'ok'});
	like($health, qr/audit_fork|key_states/, "$mode: health tells that it is another cluster ($health)");
	value($new, q{SELECT fieldcrypt.confirm_key_states('upgraded'); SELECT fieldcrypt.acknowledge_audit_fork('upgraded')});
	is(value($new, q{SELECT string_agg("check" || ': ' || detail, ' ') FROM fieldcrypt.health() WHERE status = 'critical' AND "check" IN ('audit_fork', 'key_states')}), '',
		"$mode: confirmed and acknowledged, it is at peace");
	my $findings = value($new, "SELECT coalesce(string_agg(DISTINCT finding, ' '), 'none') FROM fieldcrypt.verify_audit_log(anchor => \$anchor\$$public_key\n$note\$anchor\$) WHERE status <> 'ok'");
	unlike($findings, qr/row_|checkpoint|root|cut|anchor/, "$mode: the log is whole, against a checkpoint from before ($findings)");

	refused($new, $_, 'KF015', "$mode: guarded against $_")
	  foreach 'UPDATE fieldcrypt.encryption_keys SET version = 9', 'DELETE FROM fieldcrypt.audit_log', 'TRUNCATE fieldcrypt.audit_log';
	refused($new, 'DROP EXTENSION pg_fieldcrypt CASCADE', 'KF032', "$mode: not dropped with its keys");
	refused($new, q{SELECT fieldcrypt.encrypt_field('x', tenant => 'stopped')}, 'KF007', "$mode: a suspended key is suspended");
	refused($new, q{SELECT fieldcrypt.encrypt_field('x')}, '42501', "$mode: grants came along, and no others", user => 'clerk');
	gives($new, 'SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context($$patients.ssn$$, id)) FROM patients WHERE id = 7', 'value 7', "$mode: who might decrypt may", user => 'clerk');
	refused($new, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('x', 'elsewhere', 'acme') WHERE id = 3}, 'KF031', "$mode: contexts are enforced");

	# It goes on.
	value($new, <<'SQL');
SET client_min_messages = error;
CALL fieldcrypt.rotate_keys(force => true);
CALL fieldcrypt.reencrypt();
UPDATE patients SET ssn = fieldcrypt.encrypt_field('new', fieldcrypt.context('patients.ssn', id), tenant) WHERE id = 8;
SQL
	gives($new, q{SELECT count(*), count(DISTINCT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id))) FROM patients}, '60|60', "$mode: rotated and re-encrypted");
	gives($new, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_updated' AND row_key = '{"id": 8}' AND transaction_id = (SELECT max(transaction_id) FROM fieldcrypt.audit_log WHERE event = 'row_updated')},
		'1', "$mode: audited");
	ok(eventually($new, q{SELECT is_final AND size = (SELECT max(leaf) + 1 FROM fieldcrypt.audit_log) FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), "$mode: and sealed");
	gives($new, q{SELECT count(*) = count(DISTINCT id) FROM fieldcrypt.audit_log}, 't', "$mode: ids do not repeat");
	no_crash($new);
	$new->stop;
}
done_testing();
