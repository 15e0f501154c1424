# Two people for what can't be undone: every way around the second one is refused, and recorded.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "max_prepared_transactions = 5\n");
value($node, <<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE eve LOGIN;
CREATE ROLE team;
GRANT team TO alice, bob;
GRANT bob TO alice;
CREATE ROLE outsider LOGIN;
CREATE ROLE auditor LOGIN;
SELECT fieldcrypt.grant_access('alice', 'manage');
SELECT fieldcrypt.grant_access('bob', 'manage');
SELECT fieldcrypt.grant_access('eve', 'manage');
SELECT fieldcrypt.grant_access('team', 'manage');
SELECT fieldcrypt.grant_access('auditor', 'audit');
SELECT fieldcrypt.create_key('acme'), fieldcrypt.create_key('globex');
SQL

my @alice = (user => 'alice');
my @bob = (user => 'bob');
my $shred = q{CALL fieldcrypt.shred_tenant('acme', 'contract ended')};

sub request
{
	my ($tenant, %options) = @_;
	return value($node, "SELECT fieldcrypt.request_approval('shred_tenant', '$tenant', 'contract ended')", %options);
}

sub keys_left { return value($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state <> 'destroyed'}); }

# A test: this is refused with this message, the refusal is in the log under this user, the keys are there.
sub refused_and_recorded
{
	my ($sql, $like, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $events = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'approval_refused'};
	my $before = value($node, $events);
	refused($node, $sql, 'KF019', $like, $name, %options);
	is(value($node, $events) - $before, 1, "$name: recorded once");
	is(value($node, 'SELECT actor FROM fieldcrypt.audit_log ORDER BY id DESC LIMIT 1'), $options{user} // value($node, 'SELECT session_user'), "$name: and by whom");
	is(keys_left(), 1, "$name: the keys are there");
	return;
}

# Sets a request's times back, as only somebody past the guards can.
sub age
{
	my ($id) = @_;
	value($node, <<SQL);
BEGIN;
ALTER TABLE fieldcrypt.approvals DISABLE TRIGGER refuse_change;
UPDATE fieldcrypt.approvals SET requested_at = requested_at - interval '8 days', expires_at = clock_timestamp() - interval '1 second' WHERE id = $id;
ALTER TABLE fieldcrypt.approvals ENABLE ALWAYS TRIGGER refuse_change;
COMMIT;
SQL
	return;
}

refused_and_recorded($shred, qr/nobody has asked for it.*HINT:.*request_approval/s, 'without a request', @alice);

# One's own.
my $id = request('acme', @alice);
refused_and_recorded($shred, qr/request $id waits for another role/, 'requested, not approved', @alice);
refused_and_recorded("CALL fieldcrypt.approve($id)", qr/request $id is your own.*HINT:.*Another person/s, 'self-approval', @alice);
refused_and_recorded("SET ROLE bob; CALL fieldcrypt.approve($id)", qr/your own/, 'self-approval after SET ROLE', @alice);
refused_and_recorded("SET ROLE team; CALL fieldcrypt.approve($id)", qr/your own/, 'self-approval as the group', @alice);
refused($node, "SET SESSION AUTHORIZATION bob; SELECT session_user; CALL fieldcrypt.approve($id)", '42501 KF019',
	qr/permission denied to set session authorization/, 'self-approval after SET SESSION AUTHORIZATION', @alice);
is(value($node, "SELECT approved_by IS NULL FROM fieldcrypt.approvals WHERE id = $id"), 't', 'it is not approved');
# A superuser's SET SESSION AUTHORIZATION changes session_user, but not who logged in.
my $as_alice = 'SET SESSION AUTHORIZATION alice;';
my $super = value($node, "$as_alice SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'r')");
refused($node, "SET SESSION AUTHORIZATION bob; CALL fieldcrypt.approve($super)", 'KF019', qr/your own/, 'a superuser as two people with SET SESSION AUTHORIZATION');
is(value($node, "SELECT concat_ws(' ', requested_by, requested_login <> requested_by, approved_by) FROM fieldcrypt.approvals WHERE id = $super"), 'alice t', 'who logged in is recorded');
value($node, "SELECT fieldcrypt.withdraw_approval($super)");

# Others, other subjects, other operations.
refused_and_recorded('CALL fieldcrypt.approve(4711)', qr/there is no request 4711/, 'an unknown request', @bob);
refused($node, 'CALL fieldcrypt.approve(NULL)', '22004', qr/id must not be NULL/, 'no request', @bob);
refused($node, "CALL fieldcrypt.approve($id)", '42501', qr/permission denied/, 'approved without the right', user => 'outsider');
refused($node, "SELECT fieldcrypt_internal.approve_step($id)", '42501', qr/permission denied/, 'nor by the step', user => 'outsider');
gives($node, "CALL fieldcrypt.approve($id)", '', 'another role approves', @bob);
refused_and_recorded("CALL fieldcrypt.approve($id)", qr/approved already, by bob/, 'approved twice', user => 'eve');
refused_and_recorded($shred, qr/request $id is of alice, who alone can use it/, 'used by another', user => 'eve');
refused_and_recorded($shred, qr/is of alice/, 'used by who approved it', @bob);
refused_and_recorded($shred, qr/is of alice/, 'used by a superuser');
refused_and_recorded(q{CALL fieldcrypt.shred_tenant('globex', 'r')}, qr/"globex" needs an approval: nobody/, 'for another subject', @alice);
refused_and_recorded(q{CALL fieldcrypt.shred_tenant('ACME', 'r')}, qr/"ACME" needs an approval: nobody/, 'for a subject in other letters', @alice);
refused($node, "BEGIN; $shred; COMMIT", '2D000', qr/invalid transaction termination/, 'in a transaction block', @alice);
is(keys_left(), 1, 'nothing was done');

# Forged by writing to the table, as its owner (a superuser) and as who may manage.
my %writes = (
	'INSERT' => q{INSERT INTO fieldcrypt.approvals (id, operation, subject, reason, requested_by, requested_login, expires_at, approved_by, approved_login) VALUES (99, 'shred_tenant', 'globex', 'r', 'alice', 'alice', 'infinity', 'bob', 'bob')},
	'COPY' => "COPY fieldcrypt.approvals (operation, subject, reason, expires_at) FROM PROGRAM 'printf \"shred_tenant\\tglobex\\tr\\tinfinity\\n\"'",
	'UPDATE' => "UPDATE fieldcrypt.approvals SET subject = 'globex' WHERE id = $id",
	'MERGE' => "MERGE INTO fieldcrypt.approvals AS a USING (VALUES ($id)) AS v (id) ON a.id = v.id WHEN MATCHED THEN UPDATE SET subject = 'globex'",
	'DELETE' => "DELETE FROM fieldcrypt.approvals WHERE id = $id",
	'TRUNCATE' => 'TRUNCATE fieldcrypt.approvals');
foreach my $name (sort keys %writes)
{
	refused($node, $writes{$name}, 'KF015', qr/fieldcrypt\.approvals is written by the functions/, "$name by the owner");
	refused($node, "SET session_replication_role = replica; $writes{$name}", 'KF015', qr/written by the functions/, "$name by the owner as a replica");
	refused($node, $writes{$name}, '42501', "$name by who may manage", @alice);
}
refused($node, 'UPDATE fieldcrypt.audit_log SET actor = \'bob\'', 'KF015', 'nor is the record changed');
# The inner functions are granted to nobody, and say who calls, not who the caller says.
foreach my $call ("mark_approved($id)", "mark_used($id)", "spend_approval('shred_tenant', 'acme')",
	"insert_approval(99, 'shred_tenant', 'acme', 'r', 60)", "mark_withdrawn($id)", "erase_tenant_keys('acme', 'r')",
	"record_approval('approval_given', 'shred_tenant', 'acme', 'r')")
{
	refused($node, "SELECT fieldcrypt_internal.$call", '42501', qr/permission denied/, "$call by who may manage", @alice);
}
my $own = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'r')});
refused($node, "SELECT fieldcrypt_internal.mark_approved($own)", '42501', qr/by a CALL of its own only/, 'the owner of the extension approves nothing of their own, also by the inner function');
gives($node, "SELECT fieldcrypt_internal.mark_used($id)", 'f', 'nor spends another\'s');
value($node, "SELECT fieldcrypt.withdraw_approval($own)");

# Requests that are none.
refused($node, "SELECT fieldcrypt.request_approval($_->[0])", $_->[1], $_->[2], "a request: $_->[3]", @alice) foreach (
	[ q{'drop_database', 'acme', 'r'}, '22023', qr/no such operation.*HINT:.*shred_tenant/s, 'an unknown operation' ],
	[ q{NULL, 'acme', 'r'}, '22004', qr/must not be NULL/, 'no operation' ],
	[ q{'shred_tenant', NULL, 'r'}, '22004', qr/must not be NULL/, 'no subject' ],
	[ q{'shred_tenant', 'acme', NULL}, '22004', qr/must not be NULL/, 'no reason' ],
	[ q{'shred_tenant', 'acme', ' '}, '22023', qr/needs a reason/, 'an empty reason' ],
	[ q{'shred_tenant', '', 'r'}, '22023', qr/nothing that shred_tenant can be about/, 'an empty tenant' ],
	[ q{'destroy_key', 'acme', 'r'}, '22023', qr/nothing that destroy_key can be about/, 'a key that is no number' ],
	[ q{'destroy_key', '007', 'r'}, '22023', qr/nothing that/, 'a key id written in another way' ],
	[ q{'rotate_master_key', 'A1B2', 'r'}, '22023', qr/nothing that/, 'a fingerprint that is none' ],
	[ q{'shred_tenant', 'acme', 'r', NULL}, '22004', qr/must not be NULL/, 'no expiry' ],
	[ q{'shred_tenant', 'acme', 'r', '8 days'}, '22023', qr/7 days at most/, 'for too long' ],
	[ q{'shred_tenant', 'acme', 'r', '0'}, '22023', qr/7 days at most/, 'for no time' ],
	[ q{'shred_tenant', 'acme', 'r', '-1 hour'}, '22023', qr/7 days at most/, 'for the past' ]);
refused($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'r')}, '42501', qr/permission denied/, 'a request without the right', user => 'outsider');

# Expired before it was approved, and after.
my $late = request('acme', @bob);
age($late);
refused_and_recorded("CALL fieldcrypt.approve($late)", qr/request $late has expired/, 'expired, approved', @alice);
age($id);
refused_and_recorded($shred, qr/request $id has expired/, 'approved, then expired, used', @alice);
refused_and_recorded($shred, qr/request $late has expired|request $late is/, 'expired, never approved, used', @bob);

# Withdrawn.
$id = request('acme', @alice);
value($node, "CALL fieldcrypt.approve($id)", @bob);
value($node, "SELECT fieldcrypt.withdraw_approval($id)", user => 'eve');
refused_and_recorded($shred, qr/request $id was withdrawn by eve/, 'withdrawn, used', @alice);
refused_and_recorded("CALL fieldcrypt.approve($id)", qr/withdrawn by eve/, 'withdrawn, approved', @bob);
refused($node, "SELECT fieldcrypt.withdraw_approval($id)", 'KF019', qr/no request $id that could be withdrawn/, 'withdrawn twice', @alice);

# What fails spends nothing; what is done spends it, once.
my $failing = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'nobody', 'r')}, @alice);
value($node, "CALL fieldcrypt.approve($failing)", @bob);
refused($node, q{CALL fieldcrypt.shred_tenant('nobody', 'r')}, 'KF018', qr/tenant "nobody" has no encryption key/, 'approved, but there is nothing to do', @alice);
gives($node, "SELECT used_by IS NULL FROM fieldcrypt.approvals WHERE id = $failing", 't', 'and the approval is not spent');
$id = request('acme', @alice);
my $unused = request('acme', @bob);
value($node, "CALL fieldcrypt.approve($id)", @bob);
gives($node, $shred, '', 'requested by one, approved by another, done by the first', @alice);
is(keys_left(), 0, 'and done');
value($node, q{CALL fieldcrypt.rotate_keys('acme', force => true)});
is(keys_left(), 1, 'the tenant has a key again');
refused_and_recorded($shred, qr/request $id has been used/, 'replayed', @alice);
refused_and_recorded("CALL fieldcrypt.approve($id)", qr/request $id was approved and used/, 'used, approved again', user => 'eve');
gives($node, "SELECT requested_by, requested_role, approved_by, approved_role, used_by, used_role FROM fieldcrypt.approvals WHERE id = $id",
	'alice|alice|bob|bob|alice|alice', 'all of it is on record');
gives($node, "SELECT string_agg(event || ' ' || actor, ', ' ORDER BY id) FROM fieldcrypt.audit_log WHERE reason LIKE '%request $id%' AND event <> 'approval_refused'",
	'approval_requested alice, approval_given bob, approval_used alice', 'and in the log', user => 'auditor');
# Two sessions with one approval: one of them does it.
{
	my $one = request('acme', @alice);
	value($node, "CALL fieldcrypt.approve($one)", @bob);
	my ($first, $second, $holder) = (session($node, @alice), session($node, @alice), session($node));
	# The first has spent it, and waits for this; the second waits for the first.
	$holder->value('BEGIN; LOCK TABLE fieldcrypt.master_keys IN EXCLUSIVE MODE');
	my $waiting = q{SELECT count(*) FROM pg_locks WHERE NOT granted};
	$first->send($shred);
	$node->poll_query_until('postgres', $waiting, 1) or die;
	$second->send($shred);
	$node->poll_query_until('postgres', $waiting, 2) or die;
	$holder->value('ROLLBACK');
	$_->run('SELECT 1') foreach $first, $second;
	$holder->close;
	is(keys_left(), 0, 'the first has done it');
	my $events = sub { return value($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = '$_[0]' AND reason LIKE '%request $one%'"); };
	is($events->('approval_used'), 1, 'and spent the approval');
	is($events->('approval_refused'), 1, 'the second was refused');
	refused($node, $shred, 'KF019', 'and nobody can any more', @alice);
	$_->close foreach $first, $second;
}

# The setting: not to be changed in a session, whatever is tried, nor by names that don't exist.
$id = value($node, q{SELECT fieldcrypt.create_key('initech')});
sub require_approval { configure($node, 'fieldcrypt.require_approval' => $_[0]); return; }
my $need = sub { return join ' ', grep { value($node, "SELECT fieldcrypt_internal.needs_approval('$_')", @_) eq 't' } 'rotate_master_key', 'shred_tenant', 'destroy_key'; };
is($need->(), 'shred_tenant', 'by default shredding needs it');
require_approval('destroy_key');
is($need->(), 'destroy_key', 'configured');
require_approval(' shred_tenant ,, destroy_key');
is($need->(), 'shred_tenant destroy_key', 'a list with blanks');
is($need->(env => { PGOPTIONS => '-c fieldcrypt.require_approval=' }), 'rotate_master_key shred_tenant destroy_key', 'PGOPTIONS that say none: all');
is($need->(env => { PGOPTIONS => '-c fieldcrypt.require_approval=shred_tenant' }), 'rotate_master_key shred_tenant destroy_key', 'PGOPTIONS that leave one out: all');
gives($node, q{SET fieldcrypt.require_approval = ''; SELECT fieldcrypt_internal.needs_approval('shred_tenant')}, 't', 'SET before the library is loaded');
refused($node, q{SELECT fieldcrypt_internal.needs_approval('shred_tenant'); SET fieldcrypt.require_approval = ''}, '55P02', qr/cannot be changed now/, 'SET after it');
value($node, q{ALTER ROLE alice SET fieldcrypt.require_approval = ''; ALTER DATABASE postgres SET fieldcrypt.require_approval = ''});
refused($node, q{CALL fieldcrypt.shred_tenant('initech', 'r')}, 'KF019', 'ALTER ROLE and ALTER DATABASE ... SET', @alice);
value($node, q{ALTER ROLE alice RESET ALL; ALTER DATABASE postgres RESET ALL});
require_approval('shred_tennant');
is($need->(), 'rotate_master_key shred_tenant destroy_key', 'a misspelt name leaves nothing without approval');
require_approval('');
is($need->(), '', 'empty in the configuration file is none');
gives($node, q{CALL fieldcrypt.shred_tenant('initech', 'r')}, '', 'then one is enough', @alice);

no_crash($node);
$node->stop;
done_testing();
