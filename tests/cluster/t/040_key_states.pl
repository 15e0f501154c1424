# Suspended, resumed, compromised: what each does to sessions that have the key cached, and every change
# that is refused.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "max_prepared_transactions = 5\n");
value($node, <<'SQL');
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
CREATE ROLE manager LOGIN;
CREATE ROLE other LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
SELECT fieldcrypt.grant_access('other', 'encrypt', 'decrypt');
SQL

my $serial = 0;

# A tenant with a value, and its key: (tenant, key id).
sub tenant
{
	my $tenant = 'tenant ' . ++$serial;
	value($node, "INSERT INTO kept SELECT '$tenant', fieldcrypt.encrypt_field('kept', '', '$tenant')");
	return ($tenant, value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'"));
}

sub state_of
{
	my ($key) = @_;
	return value($node, "SELECT concat_ws(' ', state, suspended_from) FROM fieldcrypt.encryption_keys WHERE key_id = $key");
}

sub reading { return "SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = '$_[0]'"; }
sub writing { return "SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', '$_[0]'))"; }

# The audit log of a key, oldest first: event, reason.
sub events
{
	my ($key) = @_;
	return value($node, "SELECT string_agg(concat_ws(' ', event, reason), ', ' ORDER BY id) FROM fieldcrypt.audit_log WHERE key_id = $key");
}

# Compromised: at once a new version, in the same transaction; sessions with the old one cached take it
# at their next statement, and still read.
{
	my ($tenant, $key) = tenant();
	my @sessions = map { session($node) } 1 .. 2;
	$sessions[1]->value('BEGIN ISOLATION LEVEL REPEATABLE READ');
	$_->value(reading($tenant) . ';' . writing($tenant)) foreach @sessions;
	my $new = value($node, "SELECT fieldcrypt.mark_compromised($key, 'found in a log')", user => 'manager');
	isnt($new, $key, 'a new version was made');
	is(state_of($key), 'compromised', 'the old one is compromised');
	is(state_of($new), 'active', 'the new one is active');
	foreach my $session (@sessions)
	{
		$session->gives(writing($tenant), $new, 'a session that had the old one cached encrypts with the new one');
		$session->gives(reading($tenant), 'kept', 'and still reads the old values');
	}
	is(events($key), 'key_created, key_compromised found in a log', 'recorded with its reason');
	like(events($new), qr/^key_rotated found in a log$/, 'the new version too');
	gives($node, "SELECT actor, role FROM fieldcrypt.audit_log WHERE key_id = $key AND event = 'key_compromised'", 'manager|manager', 'and by whom');
	gives($node, "SELECT deactivated_at IS NOT NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't', 'and when');
	gives($node, "SELECT fieldcrypt.mark_compromised($key, 'again')", $new, 'twice makes no second version');
	gives($node, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'", 2, 'two versions it stays');
	unlike(events($key), qr/again/, 'nothing happened, nothing is recorded');
	$_->close foreach @sessions;
}

# Rolled back, nothing of it was: neither the state nor the new version.
{
	my ($tenant, $key) = tenant();
	my $session = session($node);
	$session->value("BEGIN; SELECT fieldcrypt.mark_compromised($key, 'a slip'); " . writing($tenant));
	$session->value('ROLLBACK');
	$session->gives(writing($tenant), $key, 'after ROLLBACK the session encrypts with the old key');
	is(state_of($key), 'active', 'which is active');
	gives($node, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant'", 1, 'and the only one');
	$session->close;
}

# A deactivated key that turns out to be compromised: no new version, the active one stays.
{
	my ($tenant, $key) = tenant();
	value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	my $active = value($node, writing($tenant));
	gives($node, "SELECT fieldcrypt.mark_compromised($key, 'r')", $active, 'an old key compromised: the active one is given back');
	gives($node, writing($tenant), $active, 'and stays');
}

# Without the master key no new version can be made, so nothing is marked; suspending needs none.
{
	my ($tenant, $key) = tenant();
	use_key_file($node, key_text(9));
	$node->reload;
	$node->poll_query_until('postgres', q{SELECT NOT bool_or(is_loaded) FROM fieldcrypt.master_key_status() WHERE is_current}) or die;
	refused($node, "SELECT fieldcrypt.mark_compromised($key, 'r')", 'KF010', qr/loaded/, 'compromised without its master key: refused');
	is(state_of($key), 'active', 'and nothing was changed');
	gives($node, "SELECT fieldcrypt.suspend_key($key, 'r')", '', 'suspending works without it');
	use_key_file($node, key_text(1));
	$node->reload;
	$node->poll_query_until('postgres', q{SELECT bool_or(is_loaded) FROM fieldcrypt.master_key_status() WHERE is_current}) or die;
}

# Suspended and resumed: dead and alive again in sessions that had it cached, also inside a transaction.
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ')
{
	my ($tenant, $key) = tenant();
	my ($session, $writer) = (session($node), session($node));
	foreach my $each ($session, $writer)
	{
		$each->value("BEGIN ISOLATION LEVEL $isolation; " . reading($tenant) . ';' . writing($tenant));
	}
	value($node, "SELECT fieldcrypt.suspend_key($key, 'to be looked at')", user => 'manager');
	is(state_of($key), 'suspended active', 'suspended, and what it was');
	$session->refused(reading($tenant), 'KF004', qr/suspended/, "$isolation: suspended, read by a session that had it cached");
	$writer->refused(writing($tenant), 'KF007', qr/no active/, "$isolation: suspended, encrypted with by a session that had it cached");
	$_->value('ROLLBACK') foreach $session, $writer;
	refused($node, "CALL fieldcrypt.rotate_keys('$tenant')", 'KF007', qr/no active/, 'rotation without force makes none');
	gives($node, "SELECT fieldcrypt.resume_key($key, 'was nothing')", 'active', 'resumed, it is active again');
	$session->gives(reading($tenant), 'kept', "$isolation: resumed, the session reads");
	$writer->gives(writing($tenant), $key, 'and encrypts with it');
	is(events($key), 'key_created, key_suspended to be looked at, key_resumed was nothing', 'both recorded');
	$_->close foreach $session, $writer;
}

# An active key that was replaced while it was suspended comes back deactivated: one active a tenant.
{
	my ($tenant, $key) = tenant();
	value($node, "SELECT fieldcrypt.suspend_key($key, 'r'); ");
	value($node, "CALL fieldcrypt.rotate_keys('$tenant', force => true)");
	my $new = value($node, writing($tenant));
	isnt($new, $key, 'with force there is a new one');
	gives($node, "SELECT fieldcrypt.resume_key($key, 'r')", 'deactivated', 'the old one comes back deactivated');
	gives($node, writing($tenant), $new, 'and the new one encrypts');
	gives($node, reading($tenant), 'kept', 'the old values are readable again');
	gives($node, "SELECT deactivated_at IS NOT NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't', 'since when is known');
}

# A suspended key that turns out to be compromised stays unusable, and never comes back as anything else.
{
	my ($tenant, $key) = tenant();
	value($node, "SELECT fieldcrypt.suspend_key($key, 'r')");
	gives($node, "SELECT fieldcrypt.mark_compromised($key, 'r')", '', 'a suspended key marked compromised: no active key, none is made');
	is(state_of($key), 'suspended compromised', 'it stays suspended');
	refused($node, reading($tenant), 'KF004', 'and unreadable');
	refused($node, writing($tenant), 'KF007', 'and does not encrypt');
	value($node, "SELECT fieldcrypt.mark_compromised($key, 'r')");
	is(state_of($key), 'suspended compromised', 'twice is the same');
	gives($node, "SELECT fieldcrypt.resume_key($key, 'r')", 'compromised', 'resumed, it is compromised');
	refused($node, writing($tenant), 'KF007', 'and still does not encrypt');
	gives($node, reading($tenant), 'kept', 'but reads, for re-encryption');
	value($node, "SELECT fieldcrypt.suspend_key($key, 'r')");
	gives($node, "SELECT fieldcrypt.resume_key($key, 'r')", 'compromised', 'suspended from compromised: back as compromised');
}

# What is refused, state by state.
{
	my (undef, $active) = tenant();
	my ($tenant, $deactivated) = tenant();
	value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	my (undef, $suspended) = tenant();
	value($node, "SELECT fieldcrypt.suspend_key($suspended, 'r')");
	my (undef, $compromised) = tenant();
	value($node, "SELECT fieldcrypt.mark_compromised($compromised, 'r')");
	my (undef, $destroyed) = tenant();
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL WHERE key_id = $destroyed");
	my $count = 'SELECT count(*) FROM fieldcrypt.audit_log';
	my $before = value($node, $count);

	refused($node, "SELECT fieldcrypt.$_->[0]($_->[1], 'r')", 'KF018', $_->[2], $_->[3]) foreach (
		[ 'suspend_key', $suspended, qr/is suspended: it can't be suspended.*HINT:.*resume_key/s, 'suspended twice' ],
		[ 'suspend_key', $destroyed, qr/is destroyed.*HINT:.*erased/s, 'a destroyed key suspended' ],
		[ 'resume_key', $active, qr/is active: it can't be resumed.*HINT:.*Only a suspended/s, 'an active key resumed' ],
		[ 'resume_key', $deactivated, qr/is deactivated/, 'a deactivated key resumed' ],
		[ 'resume_key', $compromised, qr/is compromised/, 'a compromised key resumed' ],
		[ 'resume_key', $destroyed, qr/is destroyed/, 'a destroyed key resumed' ],
		[ 'mark_compromised', $destroyed, qr/is destroyed/, 'a destroyed key marked' ]);
	refused($node, "SELECT fieldcrypt_internal.set_key_state($_->[0], '$_->[1]', 'r')", 'KF018', $_->[2], $_->[3]) foreach (
		[ $active, 'destroyed', qr/is active: it can't be destroyed.*HINT:.*rotate_keys/s, 'an active key destroyed' ],
		[ $deactivated, 'active', qr/can't be made active/, 'a deactivated key made active' ],
		[ $suspended, 'active', qr/can't be made active/, 'a suspended key made active past resume_key' ],
		[ $suspended, 'deactivated', qr/is suspended: it can't be deactivated/, 'a suspended key deactivated, which would make it readable' ],
		[ $compromised, 'deactivated', qr/is compromised: it can't be deactivated/, 'a compromised key called deactivated' ],
		[ $destroyed, 'suspended', qr/is destroyed/, 'a destroyed key suspended' ],
		[ $destroyed, 'destroyed', qr/is destroyed/, 'a destroyed key destroyed' ]);
	foreach my $function ('mark_compromised', 'suspend_key', 'resume_key')
	{
		refused($node, "SELECT fieldcrypt.$function(NULL, 'r')", '22004', qr/key_id/, "$function: no key");
		refused($node, "SELECT fieldcrypt.$function($active, NULL)", '22004', qr/reason/, "$function: no reason");
		refused($node, "SELECT fieldcrypt.$function(0, 'r')", '22023', qr/positive/, "$function: an id that no key has");
		refused($node, "SELECT fieldcrypt.$function(4711, 'r')", 'KF003', qr/does not exist/, "$function: an unknown key");
		refused($node, "SELECT fieldcrypt.$function($active, 'r')", '42501', qr/permission denied/, "$function: without the right", user => 'other');
		refused($node, "BEGIN READ ONLY; SELECT fieldcrypt.$function($suspended, 'r'); ", $function eq 'suspend_key' ? 'KF018' : '25006', "$function: in a READ ONLY transaction");
	}
	refused($node, "SELECT fieldcrypt_internal.set_key_state($deactivated, 'destroyed', 'r')", '42501', qr/permission denied/, 'the inner function is granted to nobody', user => 'manager');
	is(value($node, $count), $before, 'what was refused is not recorded as done');
	is(join(' ', map { state_of($_) } $active, $deactivated, $suspended, $compromised, $destroyed),
		'active deactivated suspended active compromised destroyed', 'and every key is as it was');
}

# Two sessions at once: one waits for the other, and then sees what that did.
{
	my ($tenant, $key) = tenant();
	my ($first, $second) = (session($node), session($node));
	$first->value("BEGIN; SELECT fieldcrypt.mark_compromised($key, 'r')");
	$second->send("SELECT fieldcrypt.suspend_key($key, 'r')");
	$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted}) or die;
	$first->value('COMMIT');
	$second->run('SELECT 1');
	is(state_of($key), 'suspended compromised', 'suspending waited for the marking, and knows of it');
	$second->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$first->value("SELECT fieldcrypt.resume_key($key, 'r')");
	$second->refused("SELECT fieldcrypt.suspend_key($key, 'r')", '40001', 'a REPEATABLE READ transaction with an older snapshot does not change what it can\'t see');
	$_->close foreach $first, $second;
	gives($node, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant' AND state = 'active'", 1, 'one active key');
}

no_crash($node);
$node->stop;
done_testing();
