# Whoever calls what returns nothing is told what it did, or that nothing was to do: every such function and procedure
# that users call, in one style. It is a NOTICE, which whoever wants quiet does not see, and the server log neither.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.require_approval = 'shred_tenant'\n");
value($node, <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE other LOGIN SUPERUSER;
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field('x', fieldcrypt.context('p', 1)));
SELECT fieldcrypt.create_key('acme'), fieldcrypt.create_key('gone'), fieldcrypt.rotate_key('acme');
SQL
my $old = q{(SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND version = 1)};
my $request = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'gone', 'asked')});
my $regretted = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'asked')});
my $key = value($node, "SELECT $old");

# In this order: function, call, what is said, as whom.
my @calls = (
	[ 'grant_access', q{SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt')}, 'role app now has encrypt, decrypt' ],
	[ 'grant_access', q{SELECT fieldcrypt.grant_access('app', 'decrypt', 'encrypt')}, 'nothing to do: role app has decrypt, encrypt already' ],
	[ 'grant_access', q{SELECT fieldcrypt.grant_access('app', 'encrypt', 'audit')}, 'role app now has encrypt, audit' ],
	[ 'revoke_access', q{SELECT fieldcrypt.revoke_access('app', 'decrypt', 'manage')}, 'role app no longer has decrypt' ],
	[ 'revoke_access', q{SELECT fieldcrypt.revoke_access('app', 'decrypt')}, 'nothing to do: role app has no decrypt' ],
	[ 'revoke_access', q{SELECT fieldcrypt.revoke_access('app', 'type')}, 'nothing to do: role app keeps type, which belongs to its other privileges' ],
	[ 'audit_table', q{SELECT fieldcrypt.audit_table('patients')}, 'every change of public.patients is recorded from now on' ],
	[ 'audit_table', q{SELECT fieldcrypt.audit_table('patients')}, 'nothing to do: public.patients is audited already' ],
	[ 'unaudit_table', q{SELECT fieldcrypt.unaudit_table('patients')}, 'changes of public.patients are not recorded any more' ],
	[ 'unaudit_table', q{SELECT fieldcrypt.unaudit_table('patients')}, 'nothing to do: public.patients is not audited' ],
	[ 'set_column_context', q{SELECT fieldcrypt.set_column_context('patients', 'ssn')}, 'nothing to do: public.patients.ssn has no context' ],
	[ 'set_column_context', q{SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('p', id)$$)}, 'the context of public.patients.ssn is remembered' ],
	[ 'set_column_context', q{SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('p', id)$$, enforce => true)},
		'the context of public.patients.ssn is remembered, and what is written and does not open with it is refused' ],
	[ 'verify_values', q{CALL fieldcrypt.verify_values('patients')}, '1 values verified, 0 do not open' ],
	[ 'set_column_context', q{SELECT fieldcrypt.set_column_context('patients', 'ssn')}, 'the context of public.patients.ssn is forgotten, and not enforced any more' ],
	[ 'set_column_context', q{SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('p', id)$$)}, 'the context of public.patients.ssn is remembered' ],
	[ 'set_rotation_policy', q{SELECT fieldcrypt.set_rotation_policy('acme', '90 days')}, 'the key of tenant "acme" is due for rotation after 90 days' ],
	[ 'set_rotation_policy', q{SELECT fieldcrypt.set_rotation_policy('acme', NULL)}, 'the key of tenant "acme" goes by the default again' ],
	[ 'set_rotation_policy', q{SELECT fieldcrypt.set_rotation_policy('acme', NULL)}, 'nothing to do: the key of tenant "acme" goes by the default already' ],
	[ 'set_rotation_policy', q{SELECT fieldcrypt.set_rotation_policy(NULL, '1 year')}, 'the key of each tenant without a policy of its own is due for rotation after 1 year' ],
	[ 'rotate_keys', q{CALL fieldcrypt.rotate_keys('default', reason => 'r')}, qr/1 rotated, 0 failed/ ],
	[ 'reencrypt', q{CALL fieldcrypt.reencrypt('patients')}, qr/1 rows re-encrypted, 1 tables done/ ],
	[ 'reencrypt', q{CALL fieldcrypt.reencrypt('patients')}, qr/0 rows re-encrypted/ ],
	[ 'suspend_key', "SELECT fieldcrypt.suspend_key($old, 'r')", "encryption key $key neither encrypts nor decrypts until resume_key" ],
	[ 'destroy_key', "CALL fieldcrypt.destroy_key($key)", qr/^destroy_due_keys destroys encryption key $key from \d{4}-[-0-9 :+]+ on; until then cancel_destroy_key takes it back$/ ],
	[ 'cancel_destroy_key', "SELECT fieldcrypt.cancel_destroy_key($old, 'r')", "encryption key $key stays" ],
	[ 'destroy_due_keys', 'CALL fieldcrypt.destroy_due_keys()', '0 destroyed, 0 waiting, 0 failed' ],
	[ 'approve', "CALL fieldcrypt.approve($request)", qr/^request $request is approved: \S+ may shred_tenant "gone" until \d{4}-/, 'other' ],
	[ 'withdraw_approval', "SELECT fieldcrypt.withdraw_approval($regretted)", qq{request $regretted is withdrawn: shred_tenant "acme"} ],
	[ 'shred_tenant', q{CALL fieldcrypt.shred_tenant('gone', 'r')}, qr/1 encryption key\(s\) of tenant "gone" destroyed/ ],
	[ 'rotate_master_key', 'CALL fieldcrypt.rotate_master_key()', qr/^nothing to do: master key [0-9A-F]{8}\S* is the current one already/ ],
	[ 'apply_audit_retention', 'CALL fieldcrypt.apply_audit_retention()', '0 partitions retired' ],
	[ 'check_audit_log', 'CALL fieldcrypt.check_audit_log()', qr/^ok: / ],
	[ 'check_alerts', 'CALL fieldcrypt.check_alerts()', qr/told, .*resolved/ ],
	[ 'confirm_key_states', q{SELECT fieldcrypt.confirm_key_states('looked')}, 'the states of the keys in this database count as the newest' ],
	[ 'protect_column', q{CREATE TABLE plain_in (id integer PRIMARY KEY, v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('plain_in', 'v')},
		'column v of table public.plain_in takes plaintext now; its values are bound to "public.plain_in.v" and the row\'s key' ],
	[ 'protect_column', q{SELECT fieldcrypt.protect_column('plain_in', 'v')}, 'column v of table public.plain_in is protected already' ],
	[ 'create_decrypted_view', q{SELECT fieldcrypt.create_decrypted_view('plain_in')}, 'public.decrypted_plain_in shows public.plain_in with v decrypted' ],
	[ 'unprotect_column', q{SELECT fieldcrypt.unprotect_column('plain_in', 'v'); SELECT fieldcrypt.unprotect_column('plain_in', 'v')},
		'nothing to do: column v of table public.plain_in is not protected' ],
	[ 'encrypt_column', q{CREATE TABLE plain (id integer PRIMARY KEY, v text); INSERT INTO plain VALUES (1, 'one');
		CALL fieldcrypt.encrypt_column('plain', 'v')}, 'column v of table public.plain is encrypted; v_plaintext is what it was before' ],
	[ 'encrypt_column', q{CALL fieldcrypt.encrypt_column('plain', 'v')},
		'nothing to do: column v of table public.plain is encrypted; v_plaintext is what it was before' ],
	[ 'undo_encrypt_column', q{CALL fieldcrypt.undo_encrypt_column('plain', 'v')}, 'column v of table public.plain is what it was before' ],
	[ 'drop_plaintext_column', q{CALL fieldcrypt.encrypt_column('plain', 'v'); SELECT fieldcrypt.drop_plaintext_column('plain', 'v')},
		qr/^server logs, .* statements on public\.plain/ ],
	[ 'fieldcrypt_stats_reset', 'SELECT fieldcrypt.fieldcrypt_stats_reset()', 'the statistics of this database begin anew' ]);

# What is part of every request is as quiet as SET is; what encrypt_column calls leaves the word to it.
my %quiet = (lock_tenant => 1, column_migration_run => 1);

my $from = -s $node->logfile;
foreach my $case (@calls)
{
	my ($function, $call, $said, $user) = @$case;
	my $result = run_sql($node, $call, defined $user ? (user => $user) : ());
	my ($last) = reverse grep { /NOTICE/ } split /\n/, $result->{err};
	my ($words) = ($last // '') =~ /NOTICE:\s+00000: \Q$function\E: (.*)$/;
	is_deeply($result->{sqlstates}, [], "$call: done") or diag $result->{err};
	ref $said ? like($words // '', $said, "$call: says what was done") : is($words // $result->{err}, $said, "$call: says what was done");
}
unlike(slurp_file($node->logfile, $from), qr/NOTICE/, 'nothing of it is in the server log');

{
	my %called = map { $_->[0] => 1 } @calls;
	my @all = split /\n/, value($node, q{SELECT DISTINCT proname FROM pg_proc
		WHERE pronamespace = 'fieldcrypt'::regnamespace AND (prokind = 'p' OR prorettype = 'void'::regtype) ORDER BY 1});
	is(join(' ', grep { !$called{$_} && !$quiet{$_} } @all), '', 'no function that returns nothing was left out');
}

# Without preload there is nothing to reset, which is said, too.
{
	$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
	$node->restart;
	like(run_sql($node, 'SELECT fieldcrypt.fieldcrypt_stats_reset()')->{err}, qr/fieldcrypt_stats_reset: nothing to do: without .*shared_preload_libraries/, 'statistics without preload');
}

is(run_sql($node, q{SET client_min_messages = warning; SELECT fieldcrypt.grant_access('app', 'decrypt'); SELECT fieldcrypt.audit_table('patients');
	SELECT fieldcrypt.resume_key(} . "$old, 'r'); SELECT fieldcrypt.suspend_key($old, 'r')")->{err}, '', 'whoever wants quiet has it');
is(run_sql($node, q{BEGIN; SELECT fieldcrypt.lock_tenant('acme'); COMMIT})->{err}, '', 'what is part of every request says nothing');
like(run_sql($node, q{SELECT fieldcrypt.grant_access('app', 'nonsense')})->{err}, qr/^[^\n]*ERROR/, 'what was refused is not said to be done');
refused($node, q{SELECT fieldcrypt.revoke_access('app', 'encrypt')}, '42501', 'who may not grant is refused', user => 'app');

no_crash($node);
$node->stop;
done_testing();
