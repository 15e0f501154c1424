# The procedures of docs/disaster-recovery.md, each really done: a lost key table, a lost master key, a
# restored old backup, a point-in-time recovery, a promoted standby, a copied database. Whatever took key
# states back in time is flagged until somebody has confirmed them; the application goes on meanwhile.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_cluster('primary', init => { allows_streaming => 1, has_archiving => 1 },
	conf => "fieldcrypt.require_approval = ''");
value($primary, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, tenant text, ssn fieldcrypt.encrypted);
INSERT INTO patients SELECT i, t, fieldcrypt.encrypt_field('ssn ' || i, 'patients.ssn/' || i, t)
  FROM generate_series(1, 60) AS i, LATERAL (SELECT (ARRAY['good', 'leaked', 'shredded'])[1 + i % 3] AS t) AS t;
CREATE ROLE manager LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
SQL
my $readable = q{SELECT count(*) FROM patients WHERE fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) = 'ssn ' || id};
my $unconfirmed = q{SELECT string_agg(item, ', ' ORDER BY item) FROM fieldcrypt.key_states_status() WHERE NOT ok};
my $goes_on = q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', tenant => 'good'))};
sub quoted { my ($text) = @_; $text =~ s/'/''/g; return "'$text'"; }
sub status { my ($document) = @_; return 'SELECT item, ok, detail FROM fieldcrypt.key_states_status(' . quoted($document) . q{) WHERE item ~ '^(key|export)' ORDER BY 3}; }
sub import_sql { my ($document, $more) = @_; return 'SELECT * FROM fieldcrypt.import_keys(' . quoted($document) . ($more // '') . ')'; }

gives($primary, $unconfirmed, '', 'where the keys were made, the states are confirmed');
gives($primary, q{SELECT reason, timeline, is_confirmed FROM fieldcrypt.origins}, 'the first key was made here|1|t', 'since the first key');

# The state that the backups hold: everything active.
$primary->backup('base');
my $old_export = value($primary, 'SELECT fieldcrypt.export_keys()');
my $old_dump = dump_database($primary, 'postgres', PostgreSQL::Test::Utils::tempdir() . '/old.custom', '-Fc');
my $target = value($primary, q{INSERT INTO patients SELECT 100, 'good', fieldcrypt.encrypt_field('ssn 100', 'patients.ssn/100', 'good'); SELECT clock_timestamp()});
value($primary, 'SELECT pg_sleep(0.1)');

# What happens after it: one tenant's key leaks, another tenant is shredded.
my %key = map { split /\|/ } split /\n/, value($primary, 'SELECT tenant, key_id FROM fieldcrypt.encryption_keys');
value($primary, <<SQL);
SELECT fieldcrypt.mark_compromised($key{leaked}, 'it leaked');
CALL fieldcrypt.shred_tenant('shredded', 'asked to');
SQL
my $new_export = value($primary, 'SELECT fieldcrypt.export_keys()');
gives($primary, status($new_export), qr/^export\|t\|of .*, 5 keys$/, 'the newest export and the database agree');
gives($primary, 'SELECT detail FROM fieldcrypt.key_states_status(' . quoted($old_export) . ') WHERE NOT ok', '', 'an older export has nothing against it');

# A dump that is restored: another cluster, all states of its time.
{
	my $other = new_cluster('other', extension => 0);
	value($other, 'CREATE ROLE manager');
	is(restore_database($other, 'postgres', $old_dump, '-e', '-1')->{code}, 0, 'old dump: restored');
	gives($other, $unconfirmed, qr/^(database, )?system identifier$/, 'old dump: flagged');
	gives($other, $readable, '60', 'old dump: the application goes on reading');
	gives($other, $goes_on, 'x', 'old dump: and writing');
	my $found = value($other, status($new_export));
	like($found, qr/^key $key{leaked}\|f\|tenant "leaked", version 1 is active here, and compromised in the export$/m, 'old dump: the leaked key is named');
	like($found, qr/^key $key{shredded}\|f\|tenant "shredded", version 1 is active here, and destroyed in the export$/m, 'old dump: the destroyed key is named');
	like($found, qr/^key \d+\|f\|tenant "leaked", version 2 is missing here, and active in the export$/m, 'old dump: the missing key is named');
	is(scalar(() = $found =~ /^key /mg), 3, 'old dump: and no other');
	refused($other, import_sql($new_export), 'KF022', qr/tenant "leaked" would have two active keys/, 'old dump: not imported beside the old states');
	gives($other, import_sql($new_export, ', apply_states => true'), '1|0|2|0|2', 'old dump: states brought forward');
	gives($other, q{SELECT string_agg(concat_ws(' ', tenant, version, state, suspended_from), ', ' ORDER BY tenant, version) FROM fieldcrypt.encryption_keys},
		'audit log 1 active, good 1 active, leaked 1 compromised, leaked 2 active, shredded 1 suspended active', 'old dump: the leaked key compromised, the destroyed one out of use');
	refused($other, q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE tenant = 'shredded'}, 'KF004', 'old dump: what was shredded is unreadable again');
	gives($other, q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id)) FROM patients WHERE tenant <> 'shredded'}, '40', 'old dump: the rest is readable');
	value($other, q{SELECT fieldcrypt.confirm_key_states('compared with the newest export')});
	gives($other, $unconfirmed, '', 'old dump: confirmed');
	my $found_after = value($other, status($new_export));
	like($found_after, qr/^key $key{shredded}\|f\|.* is suspended here, and destroyed in the export$/m, 'old dump: that it was destroyed is not forgotten');
	no_crash($other);
	$other->stop;
}

# Point-in-time recovery to before it happened.
{
	my $recovered = PostgreSQL::Test::Cluster->new('recovered');
	$recovered->init_from_backup($primary, 'base', has_restoring => 1, standby => 0);
	value($primary, 'SELECT pg_switch_wal()');
	$recovered->append_conf('postgresql.conf', "recovery_target_time = '$target'\nrecovery_target_action = 'promote'\n");
	use_key_file($recovered, key_text(1));
	$recovered->start;
	$recovered->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'no promotion';
	gives($recovered, $readable, '61', 'recovery: to the moment');
	gives($recovered, $unconfirmed, 'timeline', 'recovery: flagged, by the timeline');
	gives($recovered, q{SELECT detail FROM fieldcrypt.key_states_status() WHERE NOT ok}, qr/another timeline than at the confirmation \(1, now 2\)/, 'recovery: says what it looks like');
	gives($recovered, $goes_on, 'x', 'recovery: the application goes on');
	like(run_sql($recovered, 'SELECT fieldcrypt.export_keys()')->{err}, qr/WARNING:  KF023/, 'recovery: an export of these states warns');
	like(value($recovered, status($new_export)), qr/^key $key{shredded}\|f\|.* is active here, and destroyed in the export$/m, 'recovery: the destroyed key is named');
	refused($recovered, q{SELECT fieldcrypt.confirm_key_states('')}, '22023', 'recovery: not without a reason', user => 'manager');
	value($recovered, q{SELECT fieldcrypt.confirm_key_states('compared')}, user => 'manager');
	gives($recovered, $unconfirmed, '', 'recovery: confirmed');
	$recovered->restart;
	gives($recovered, $unconfirmed, '', 'recovery: also after a restart');
	no_crash($recovered);
	$recovered->stop;
}

# A standby, and its promotion.
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	use_key_file($standby, key_text(1));
	$standby->start;
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
	gives($standby, $unconfirmed, '', 'standby: nothing to confirm');
	gives($standby, 'SELECT bool_and(ok) FROM fieldcrypt.verify_keys()', 't', 'standby: keys verified');
	refused($standby, q{SELECT fieldcrypt.confirm_key_states('x')}, '25006', 'standby: nothing confirmed');
	refused($standby, import_sql($new_export), '25006', 'standby: nothing imported');
	refused($standby, 'SELECT fieldcrypt.export_keys()', '25006', qr/is recorded, and a standby/, 'standby: nor exported');
	$primary->stop;
	$standby->promote;
	# At once: the control file still tells the old timeline.
	gives($standby, $unconfirmed, 'timeline', 'promoted: flagged at once');
	gives($standby, $goes_on, 'x', 'promoted: the application goes on');
	gives($standby, status($new_export), qr/^export\|t\|/, 'promoted: compared, nothing was lost');
	value($standby, q{CHECKPOINT; SELECT fieldcrypt.confirm_key_states('failover, compared with the export')});
	gives($standby, $unconfirmed, '', 'promoted: confirmed');
	no_crash($standby);
	$standby->stop;
	$primary->start;
	gives($primary, $unconfirmed, '', 'the old primary has nothing to confirm');
}

# A copy of the database in the same cluster.
{
	value($primary, 'CREATE DATABASE copied TEMPLATE postgres', db => 'template1');
	gives($primary, $unconfirmed, 'database', 'copied database: flagged', db => 'copied');
	value($primary, 'DROP DATABASE copied');
}

# The key table is lost, past the guard, and comes back from the export.
{
	my $before = value($primary, 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id');
	my $count = value($primary, q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id)) FROM patients WHERE tenant <> 'shredded'});
	my $session = session($primary);
	$session->value($goes_on);
	value($primary, 'SET session_replication_role = replica; TRUNCATE fieldcrypt.encryption_keys');
	$session->refused(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/3') FROM patients WHERE id = 3}, 'KF003', 'lost key table: no value readable, also where the key was cached');
	gives($primary, import_sql($new_export), '5|0|0|0|0', 'lost key table: imported');
	gives($primary, 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id', $before, 'lost key table: every row is back');
	$session->gives($goes_on, 'x', 'lost key table: the open session goes on');
	gives($primary, q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id)) FROM patients WHERE tenant <> 'shredded'}, $count, 'lost key table: every value readable');
	refused($primary, q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE tenant = 'shredded'}, 'KF005', 'lost key table: what was destroyed stays so');
	gives($primary, $unconfirmed, 'confirmation', 'lost key table: to be confirmed');
	value($primary, q{SELECT fieldcrypt.confirm_key_states('imported the newest export')});
	gives($primary, 'SELECT count(*) FILTER (WHERE NOT ok) FROM fieldcrypt.key_states_status()', '0', 'lost key table: confirmed');

	# The only export is from before the destruction: the log remembers it.
	value($primary, 'SET session_replication_role = replica; TRUNCATE fieldcrypt.encryption_keys');
	gives($primary, import_sql($old_export), '4|0|0|0|0', 'lost key table, old export: imported');
	gives($primary, q{SELECT string_agg(concat_ws(' ', tenant, version, state, wrapped_key IS NULL), ', ' ORDER BY tenant, version) FROM fieldcrypt.encryption_keys},
		'audit log 1 active f, good 1 active f, leaked 1 compromised f, shredded 1 destroyed t', 'lost key table, old export: compromised and destroyed by the audit log');
	gives($primary, import_sql($new_export), '1|0|0|0|4', 'lost key table: the missing key from the newer export');
	gives($primary, 'SELECT string_agg(state, $$ $$ ORDER BY tenant, version) FROM fieldcrypt.encryption_keys', 'active active compromised active destroyed', 'lost key table: none more permissive');
	$session->close;
}

# The master key is lost: one clear error, nothing is written, nothing new is made.
{
	my $before = value($primary, 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id');
	use_key_file($primary, key_text(9));
	$primary->restart;
	my $error = qr/keys in this database are wrapped by master key [0-9A-F]{8}\.\.\.; loaded: [0-9A-F]{8}/;
	refused($primary, q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/3') FROM patients WHERE id = 3}, 'KF010', $error, 'lost master key: reading refused');
	refused($primary, $goes_on, 'KF010', $error, 'lost master key: writing refused');
	refused($primary, q{SELECT fieldcrypt.create_key('new tenant')}, 'KF010', $error, 'lost master key: no key of another generation');
	refused($primary, import_sql($new_export), 'KF010', qr/the key export belongs to master key/, 'lost master key: the export is of no use');
	gives($primary, 'SELECT bool_or(ok), count(*) FROM fieldcrypt.verify_keys() WHERE state <> $$destroyed$$', 'f|4', 'lost master key: no key opens');
	gives($primary, 'SELECT count(*), count(ssn) FROM patients', '61|61', 'lost master key: everything that is not encrypted is readable');
	gives($primary, 'SELECT count(*) > 0 FROM fieldcrypt.audit_log', 't', 'lost master key: so is the log');
	gives($primary, 'SELECT * FROM fieldcrypt.encryption_keys ORDER BY key_id', $before, 'lost master key: nothing was written');
	use_key_file($primary, key_text(9), key_text(1));
	$primary->restart;
	gives($primary, 'SELECT bool_and(ok) FROM fieldcrypt.verify_keys()', 't', 'found again, as a second line: every key opens');
}

# The newest master key is lost, the one before is there, with an export from its time.
{
	my $export = value($primary, 'SELECT fieldcrypt.export_keys()');
	my $count = value($primary, $readable =~ s/FROM patients WHERE/FROM patients WHERE tenant <> 'shredded' AND/r);
	my $lost = unpack 'H*', hkdf(pack('H*', key_text(8)), 'mek-fingerprint', 16);
	value($primary, <<SQL);
SET session_replication_role = replica;
UPDATE fieldcrypt.master_keys SET is_current = false;
INSERT INTO fieldcrypt.master_keys VALUES ('\\x$lost', true);
UPDATE fieldcrypt.encryption_keys SET master_key_fingerprint = '\\x$lost', wrapped_key = set_byte(wrapped_key, 50, 0) WHERE wrapped_key IS NOT NULL;
SQL
	refused($primary, $goes_on, 'KF010', 'newest master key lost: refused');
	gives($primary, import_sql($export), '0|4|0|0|1', 'newest master key lost: keys repaired from an export under the one before');
	is(value($primary, $readable =~ s/FROM patients WHERE/FROM patients WHERE tenant <> 'shredded' AND/r), $count, 'newest master key lost: every value readable');
	gives($primary, $goes_on, 'x', 'newest master key lost: and writable');
	gives($primary, q{SELECT fieldcrypt.create_key('made after it') > 0}, 't', 'newest master key lost: new keys are made');
	gives($primary, 'SELECT count(*) FILTER (WHERE is_current AND is_loaded), count(*) FILTER (WHERE problem IS NOT NULL) FROM fieldcrypt.master_key_status()', '1|0', 'newest master key lost: it is needed no more');
}

no_crash($primary);
$primary->stop;
done_testing();
