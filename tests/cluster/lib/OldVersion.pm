# Databases of versions that were released, with something in every table and in every state.
#
#   my @versions = released();                     # all but the current one
#   make_old($node, 'app', $version);              # a database of it; make_old($node, 'app', $version, 0): an empty one
#   my %before = rows_of($node, 'app');            # table => its rows, as text
package OldVersion;

use strict;
use warnings;

use Exporter 'import';
use FieldcryptTest;

our @EXPORT = qw(released make_old rows_of same_rows use_everything);

use Test::More;

sub released
{
	my @versions = map { m{/pg_fieldcrypt--([0-9.]+)\.sql$} ? $1 : () } glob "$ENV{TESTDIR}/sql/released/*.sql";
	die 'no version was released' unless @versions;
	return @versions;
}

# The cluster has two master keys, the first of which is current; roles are made once.
sub make_old
{
	my ($node, $db, $version, $is_filled) = @_;
	create_database($node, $db, extension => 0);
	value($node, "CREATE EXTENSION pg_fieldcrypt VERSION '$version'", db => $db);
	return unless $is_filled // 1;

	my $statements = <<'SQL';
DO $$ BEGIN
    CREATE ROLE keeper LOGIN; CREATE ROLE second LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE auditor LOGIN; CREATE ROLE dumper LOGIN; CREATE ROLE declarer LOGIN; CREATE ROLE partly LOGIN;
EXCEPTION WHEN duplicate_object THEN NULL;
END $$;
SELECT fieldcrypt.grant_access('keeper', 'manage');
SELECT fieldcrypt.grant_access('second', 'manage');
SELECT fieldcrypt.grant_access('clerk', 'encrypt', 'decrypt', 'reencrypt');
SELECT fieldcrypt.grant_access('auditor', 'audit');
SELECT fieldcrypt.grant_access('dumper', 'backup');
SELECT fieldcrypt.grant_access('declarer', 'type');
GRANT USAGE ON SCHEMA fieldcrypt TO partly;
GRANT EXECUTE ON FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text), fieldcrypt.create_key(text) TO partly;
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, note fieldcrypt.encrypted, tenant text);
GRANT SELECT, INSERT, UPDATE ON patients TO clerk;
CREATE TABLE large (id int PRIMARY KEY, value fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('patients');
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
SELECT fieldcrypt.set_column_context('patients', 'note', 'patients.note');
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('ssn ' || i, fieldcrypt.context('patients.ssn', i), 'tenant ' || i % 5), fieldcrypt.encrypt_field('note ' || i, 'patients.note', 'tenant ' || i % 5), 'tenant ' || i % 5 FROM generate_series(1, 50) AS i;
INSERT INTO large SELECT i, fieldcrypt.encrypt_field('large ' || i) FROM generate_series(1, 400) AS i;
SELECT fieldcrypt.set_rotation_policy('tenant 1', '30 days');
SELECT fieldcrypt.set_rotation_policy(NULL, '60 days');
CALL fieldcrypt.rotate_keys(force => true);
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('ssn ' || i, fieldcrypt.context('patients.ssn', i), 'tenant ' || i % 5), NULL, 'tenant ' || i % 5 FROM generate_series(51, 100) AS i;
SELECT fieldcrypt.suspend_key(key_id, 'on leave') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 1' AND version = 1;
SELECT fieldcrypt.mark_compromised(key_id, 'found in a mail') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 2' AND version = 1;
SELECT fieldcrypt.create_key('gone');
SELECT fieldcrypt.create_key('leaving');
CALL fieldcrypt.rotate_keys('leaving', force => true);
SELECT key_id AS leaving FROM fieldcrypt.encryption_keys WHERE tenant = 'leaving' AND version = 1 \gset
CALL fieldcrypt.destroy_key(:leaving, '7 days', 'old');
SELECT document IS NOT NULL FROM fieldcrypt.export_keys() AS e (document);
CALL fieldcrypt.verify_values('patients');
CALL fieldcrypt.check_audit_log();
CALL fieldcrypt.check_alerts();
SELECT fieldcrypt.snapshot_access();
UPDATE patients SET tenant = tenant WHERE id = 3;
DELETE FROM patients WHERE id = 4;
SQL
	value($node, $statements, db => $db);
	refused($node, q{SELECT fieldcrypt.decrypt_field(ssn, 'wrong') FROM patients WHERE id = 60}, 'KF002', 'a failed decryption', db => $db);
	# Approved and done; approved; asked for.
	foreach my $tenant ('gone', 'tenant 4')
	{
		value($node, "SELECT fieldcrypt.request_approval('shred_tenant', '$tenant', 'contract ended')", db => $db, user => 'keeper');
		value($node, "SELECT max(id) AS id FROM fieldcrypt.approvals \\gset\nCALL fieldcrypt.approve(:id)", db => $db, user => 'second');
	}
	value($node, q{CALL fieldcrypt.shred_tenant('gone', 'contract ended')}, db => $db, user => 'keeper');
	value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'tenant 3', 'perhaps')}, db => $db, user => 'keeper');
	# A re-encryption, and a rotation of the master key, that were interrupted.
	my $cut = run_sql($node, q{SET statement_timeout = '900ms'; CALL fieldcrypt.reencrypt('large', batch_size => 20, rows_per_second => 100)}, db => $db);
	is("@{ $cut->{sqlstates} }", '57014', 'a re-encryption is interrupted');
	gives($node, "SELECT count(DISTINCT fieldcrypt.key_id(value)) FROM large", 2, 'and half done', db => $db);
	write_key_file($node->basedir . '/master.key', key_text(2), key_text(1));
	value($node, <<'SQL', db => $db);
WITH target AS MATERIALIZED (SELECT fieldcrypt_internal.target_master_key() AS target), begun AS MATERIALIZED (SELECT b.* FROM target AS t, fieldcrypt_internal.begin_master_key_rotation(t.target) AS b)
SELECT count(*) FROM begun;
SELECT fieldcrypt_internal.rewrap_step(fieldcrypt_internal.target_master_key(), 0, 3);
SQL
	gives($node, 'SELECT count(DISTINCT master_key_fingerprint) FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL', 2, 'a rotation of the master key is half done', db => $db);
	return;
}

# Every row of every table of the extension, by table.
sub rows_of
{
	my ($node, $db) = @_;
	my %rows;
	foreach my $table (split /\n/, value($node, q{SELECT oid::regclass FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind IN ('r', 'p') AND NOT relispartition}, db => $db))
	{
		$rows{$table} = value($node, "SET timezone = 'UTC'; SELECT row_to_json(t) FROM $table AS t ORDER BY row_to_json(t)::text", db => $db);
	}
	return %rows;
}

# A test: what was there is there, row by row. The log goes on, and what seals it; a table may have more columns.
sub same_rows
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @lost;
	foreach my $table (sort keys %$expected)
	{
		my %there = map { $_ => 1 } split /\n/, $got->{$table} // '';
		foreach my $row (split /\n/, $expected->{$table})
		{
			# What is sealed gets its place in the tree.
			next if $there{$row} || $table =~ /audit_log$/ && grep { s/"leaf":\d+/"leaf":null/r eq $row } keys %there;
			push @lost, "$table: $row";
		}
		push @lost, "$table has more rows" if $table !~ /audit_(?:log|checkpoints|signers)$/ && keys %there > (() = $expected->{$table} =~ /^./mg);
	}
	return is(join("\n", @lost), '', $name);
}

# Tests: everything that the database was made for, once more.
sub use_everything
{
	my ($node, $db, $how) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @in = (db => $db);
	my $readable = q{SELECT count(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id))) FROM patients WHERE id > 50};
	gives($node, $readable, qr/^5\d$|^[56]\d$/, "$how: values decrypt", @in);
	gives($node, $readable, qr/^\d+$/, "$how: for who may", @in, user => 'clerk');
	refused($node, q{SELECT fieldcrypt.encrypt_field('x')}, '42501', "$how: not for others", @in, user => 'auditor');
	gives($node, q{INSERT INTO patients SELECT coalesce(max(id), 0) + 1, fieldcrypt.encrypt_field('new', fieldcrypt.context('patients.ssn', max(id) + 1), 'tenant 0'), NULL, 'tenant 0' FROM patients}, '', "$how: values are written", @in, user => 'clerk');
	refused($node, q{UPDATE patients SET ssn = fieldcrypt.encrypt_field('x', 'elsewhere', 'tenant 0') WHERE id = 1}, 'KF031', "$how: contexts are enforced", @in);
	gives($node, q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('first', '', 'another ' || clock_timestamp())) > 0}, 't', "$how: first keys are made", @in);
	is(run_sql($node, 'CALL fieldcrypt.rotate_keys(force => true)', @in, user => 'keeper')->{code}, 0, "$how: keys rotate");
	is(join(' ', @{ run_sql($node, 'CALL fieldcrypt.rotate_master_key()', @in, user => 'keeper')->{sqlstates} }), '', "$how: the rotation of the master key goes on");
	gives($node, 'SELECT count(DISTINCT master_key_fingerprint) FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL', 1, "$how: and ends", @in);
	is(join(' ', @{ run_sql($node, q{CALL fieldcrypt.reencrypt('large', rows_per_second => 0)}, @in, user => 'keeper')->{sqlstates} }), '', "$how: the re-encryption goes on");
	gives($node, 'SELECT count(*), count(fieldcrypt.decrypt_field(value)), count(DISTINCT fieldcrypt.key_id(value)) FROM large', '400|400|1', "$how: and ends", @in);
	gives($node, q{SELECT fieldcrypt.resume_key(key_id, 'back') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 1' AND version = 1 AND state = 'suspended'}, 'deactivated', "$how: a suspended key is resumed", @in, user => 'keeper');
	gives($node, q{SELECT string_agg(DISTINCT coalesce(finding, 'none'), ' ') FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '', "$how: the log is verified", @in);
	gives($node, q{SELECT string_agg("check", ' ') FROM fieldcrypt.health() WHERE detail LIKE 'this check failed%'}, '', "$how: no check of health fails", @in);
	gives($node, q{SELECT bool_and(ok) FROM fieldcrypt.verify_keys() WHERE state <> 'destroyed'}, 't', "$how: all keys open", @in);
	return;
}

1;
