# Keys are destroyed only when nothing can use them any more: no table, whatever hides its rows, no
# transaction that may still hold a value, no prepared one.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "max_prepared_transactions = 5\nautovacuum = off\n");
value($node, <<'SQL');
CREATE ROLE manager LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE owner LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
SELECT fieldcrypt.grant_access('other', 'encrypt', 'decrypt');
SELECT fieldcrypt.grant_access('owner', 'encrypt', 'decrypt');
GRANT CREATE ON SCHEMA public TO owner;
CREATE TABLE plain (value fieldcrypt.encrypted);
SQL

my $serial = 0;

# A tenant whose first key is deactivated, by a commit of its own: (tenant, key id, a value of it).
sub old_key
{
	my $tenant = 'tenant ' . ++$serial;
	my $value = value($node, "SELECT fieldcrypt.encrypt_field('kept', '', '$tenant')");
	value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	return ($tenant, value($node, "SELECT fieldcrypt.key_id('$value'::fieldcrypt.encrypted)"), $value);
}

sub state_of { return value($node, "SELECT state FROM fieldcrypt.encryption_keys WHERE key_id = $_[0]"); }
sub reading { return "SELECT fieldcrypt.decrypt_field('$_[0]'::fieldcrypt.encrypted)"; }

# Lets time pass: scheduled ten days ago, or so that transactions from before now may hold values; due.
sub due
{
	my ($key, $scheduled) = @_;
	$scheduled //= '10 days';
	past_the_guard($node, <<SQL);
UPDATE fieldcrypt.encryption_keys
   SET destroy_scheduled_at = clock_timestamp() - interval '$scheduled', destroy_after = clock_timestamp() - interval '1 second'
 WHERE key_id = $key AND destroy_after IS NOT NULL
SQL
	return;
}

# A test: destroying what is due says this, and warns like this.
sub destroys
{
	my ($counts, $warning, $name, $call) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = run_sql($node, $call // 'CALL fieldcrypt.destroy_due_keys()', user => 'manager');
	my $expected = sprintf 'destroy_due_keys: %d destroyed, %d waiting, %d failed', @$counts;
	my $fits = !@{ $result->{sqlstates} } && $result->{err} =~ /\Q$expected\E/
	  && (defined $warning ? $result->{err} =~ $warning : $result->{err} !~ /WARNING/);
	diag $result->{err} unless $fits;
	return ok($fits, $name);
}

# Scheduled, and what of a schedule is refused.
{
	my ($tenant, $key, $value) = old_key();
	my $active = value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant' AND state = 'active'");
	refused($node, "CALL fieldcrypt.destroy_key($_->[0])", $_->[1], $_->[2], "scheduling: $_->[3]") foreach (
		[ $active, 'KF018', qr/is active: it can't be destroyed.*HINT:.*rotate_keys/s, 'an active key' ],
		[ 4711, 'KF003', qr/does not exist/, 'an unknown key' ],
		[ 'NULL', '22004', qr/must not be NULL/, 'no key' ],
		[ "$key, delay => NULL", '22004', qr/must not be NULL/, 'no delay' ],
		[ "$key, delay => '6 days 23 hours'", '22023', qr/7 days at the earliest.*HINT:.*cancel_destroy_key/s, 'too early' ],
		[ "$key, delay => '-1 year'", '22023', qr/7 days at the earliest/, 'in the past' ]);
	refused($node, "BEGIN; CALL fieldcrypt.destroy_key($key); COMMIT", '2D000', 'scheduling: in a transaction block');
	refused($node, "CALL fieldcrypt.destroy_key($key)", '42501', qr/permission denied/, 'scheduling: without the right', user => 'other');
	refused($node, "SELECT fieldcrypt.cancel_destroy_key($key, 'r')", 'KF018', qr/is deactivated, and not scheduled/, 'cancelled before it was scheduled');
	gives($node, "SELECT destroy_after IS NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't', 'nothing was scheduled');

	my $session = session($node);
	$session->value(reading($value));
	gives($node, "CALL fieldcrypt.destroy_key($key, reason => 'old')", '', 'an unused key is scheduled', user => 'manager');
	gives($node, "SELECT destroy_after > now() + interval '29 days', destroy_after < now() + interval '31 days' FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't|t', 'in 30 days');
	$session->gives(reading($value), 'kept', 'a scheduled key decrypts, in a session that had it cached');
	gives($node, reading($value), 'kept', 'and in a new one');
	refused($node, "CALL fieldcrypt.destroy_key($key)", 'KF018', qr/scheduled already.*HINT:.*cancel_destroy_key/s, 'scheduled twice');
	destroys([ 0, 0, 0 ], undef, 'what is not due is left alone');
	is(state_of($key), 'deactivated', 'and is there');

	gives($node, "SELECT fieldcrypt.cancel_destroy_key($key, 'still needed')", '', 'cancelled', user => 'manager');
	refused($node, "SELECT fieldcrypt.cancel_destroy_key($key, 'r')", 'KF018', qr/not scheduled/, 'cancelled twice');
	refused($node, "SELECT fieldcrypt.cancel_destroy_key($key, NULL)", '22004', 'cancelled without a reason');
	refused($node, "SELECT fieldcrypt.cancel_destroy_key($key, 'r')", '42501', 'cancelled without the right', user => 'other');
	due($key);
	destroys([ 0, 0, 0 ], undef, 'what was cancelled stays');

	value($node, "CALL fieldcrypt.destroy_key($key, '7 days', 'old')");
	due($key);
	$session->gives(reading($value), 'kept', 'due, but not destroyed: it decrypts');
	destroys([ 1, 0, 0 ], undef, 'due and unused: destroyed');
	gives($node, "SELECT state, wrapped_key IS NULL, destroyed_at IS NOT NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 'destroyed|t|t', 'erased, the row is kept');
	$session->refused(reading($value), 'KF005', qr/has been destroyed/, 'dead in a session that had it cached, at its next statement');
	refused($node, reading($value), 'KF005', 'and in a new one');
	refused($node, "CALL fieldcrypt.destroy_key($key)", 'KF018', qr/is destroyed/, 'destroyed twice');
	refused($node, "SELECT fieldcrypt.cancel_destroy_key($key, 'r')", 'KF018', qr/is destroyed/, 'a destroyed key is not to be had back');
	destroys([ 0, 0, 0 ], undef, 'once is enough');
	gives($node, "SELECT string_agg(concat_ws(' ', event, reason), ', ' ORDER BY id) FROM fieldcrypt.audit_log WHERE key_id = $key AND event LIKE 'key_destr%'",
		'key_destruction_scheduled old, key_destruction_cancelled still needed, key_destruction_scheduled old, key_destroyed', 'all of it is recorded');
	$session->close;
}

# In use: wherever the values are, and whoever may not see them.
value($node, <<'SQL');
CREATE DOMAIN secret AS fieldcrypt.encrypted;
CREATE TYPE pair AS (id int, value fieldcrypt.encrypted);
CREATE TABLE domains (value secret);
CREATE TABLE arrays (value fieldcrypt.encrypted[]);
CREATE TABLE composites (value pair);
CREATE TABLE parts (id int, value fieldcrypt.encrypted) PARTITION BY LIST (id);
CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1);
CREATE UNLOGGED TABLE unlogged (value fieldcrypt.encrypted);
CREATE SCHEMA "odd schema";
CREATE TABLE "odd schema"."odd "" table" ("odd column" fieldcrypt.encrypted);
SET ROLE owner;
CREATE TABLE policed (value fieldcrypt.encrypted);
ALTER TABLE policed ENABLE ROW LEVEL SECURITY;
ALTER TABLE policed FORCE ROW LEVEL SECURITY;
CREATE POLICY none ON policed USING (false);
RESET ROLE;
SQL
my %places = (
	'plain' => [ 'plain', 'VALUE', 'public.plain.value' ],
	'a domain' => [ 'domains', 'VALUE', 'public.domains.value' ],
	'an array' => [ 'arrays', 'ARRAY[NULL, VALUE]', 'public.arrays.value' ],
	'a composite' => [ 'composites', 'ROW(1, VALUE)::pair', 'public.composites.value' ],
	'a partition' => [ 'parts', '1, VALUE', 'public.part_1.value' ],
	'an unlogged table' => [ 'unlogged', 'VALUE', 'public.unlogged.value' ],
	'an odd name' => [ '"odd schema"."odd "" table"', 'VALUE', '"odd schema"."odd "" table"."odd column"' ],
	'a table whose forced policies hide every row' => [ 'policed', 'VALUE', 'public.policed.value' ]);
foreach my $name (sort keys %places)
{
	my ($table, $row, $shown) = @{ $places{$name} };
	my ($tenant, $key, $value) = old_key();
	my $literal = "'$value'::fieldcrypt.encrypted";
	value($node, "INSERT INTO $table SELECT " . $row =~ s/VALUE/$literal/r . ' FROM generate_series(1, 3)');
	refused($node, "CALL fieldcrypt.destroy_key($key)", 'KF017', qr/key $key is in use.*DETAIL:\s+It encrypts 3 value\(s\) in \Q$shown\E\..*HINT:.*reencrypt/s, "in use, $name", user => 'manager');
	gives($node, "SELECT concat_ws(' ', table_name || '.' || quote_ident(column_name), \"values\", is_exact) FROM fieldcrypt.key_usage(exact => true) WHERE key_id = $key", "$shown 3 t", "key_usage, $name", user => 'manager');
	value($node, "DELETE FROM $table");
	value($node, "CALL fieldcrypt.destroy_key($key)");
	# A value that was outside of every table comes back after it was scheduled.
	value($node, "INSERT INTO $table SELECT " . $row =~ s/VALUE/$literal/r);
	due($key);
	destroys([ 0, 1, 0 ], qr/key $key is not destroyed: it is in use: 1 value\(s\) in \Q$shown\E/, "in use again when it is due, $name: it stays");
	gives($node, reading($value), 'kept', "and decrypts, $name");
	value($node, "DELETE FROM $table");
	destroys([ 1, 0, 0 ], undef, "then unused, $name: destroyed");
}

# A materialized view is storage too.
{
	my ($tenant, $key, $value) = old_key();
	value($node, "INSERT INTO plain VALUES ('$value'); CREATE MATERIALIZED VIEW copied AS SELECT value FROM plain; DELETE FROM plain");
	refused($node, "CALL fieldcrypt.destroy_key($key)", 'KF017', qr/1 value\(s\) in public\.copied\.value/, 'in use, a materialized view');
	value($node, 'DROP MATERIALIZED VIEW copied');
}

# Transactions that began before the key was known to be unused: they may hold a value that no table has.
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ')
{
	my $tenant = 'tenant ' . ++$serial;
	my ($old, $new) = map { session($node) } 1 .. 2;
	$old->value("BEGIN ISOLATION LEVEL $isolation; CREATE TEMP TABLE held ON COMMIT DROP AS SELECT fieldcrypt.ciphertext_text(fieldcrypt.encrypt_field('held', '', '$tenant')) AS value; COMMIT; BEGIN ISOLATION LEVEL $isolation");
	my $value = $old->value("SELECT fieldcrypt.encrypt_field('held', '', '$tenant')");
	my $pid = $old->server_process;
	value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	my $key = value($node, "SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = '$tenant' AND version = 1");
	value($node, "CALL fieldcrypt.destroy_key($key)");
	due($key, '1 hour');
	$new->value("BEGIN ISOLATION LEVEL $isolation; SELECT 1");
	destroys([ 0, 1, 0 ], qr/transactions from before its schedule are running: process $pid of/, "$isolation: a transaction from before runs: it waits");
	$old->value("INSERT INTO plain VALUES ('$value'); COMMIT");
	destroys([ 0, 1, 0 ], qr/it is in use: 1 value/, "$isolation: it had a value, and wrote it");
	$old->gives('SELECT fieldcrypt.decrypt_field(value) FROM plain', 'held', "$isolation: which is readable");
	value($node, 'DELETE FROM plain');
	destroys([ 1, 0, 0 ], undef, "$isolation: a transaction that began later does not matter");
	$_->close foreach $old, $new;
}

# A session that shows nothing of its transactions may have one.
{
	my ($tenant, $key) = old_key();
	my $hidden = session($node);
	$hidden->value('SET track_activities = off; BEGIN; SELECT 1');
	my $pid = $hidden->value('SELECT pg_backend_pid()');
	value($node, "CALL fieldcrypt.destroy_key($key)");
	due($key, '1 hour');
	destroys([ 0, 1, 0 ], qr/are running: process $pid of/, 'a session with track_activities off: it waits');
	$hidden->close;
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die;
	destroys([ 1, 0, 0 ], undef, 'and ended');
}

# Prepared transactions: those from before hold it up, those from after don't; the horizon is kept.
{
	my $tenant = 'tenant ' . ++$serial;
	my $session = session($node);
	$session->value('BEGIN');
	my $value = $session->value("SELECT fieldcrypt.encrypt_field('prepared', '', '$tenant')");
	value($node, 'SELECT 1');
	$session->value("INSERT INTO plain VALUES ('$value'); COMMIT; DELETE FROM plain");
	my $key = value($node, "SELECT fieldcrypt.key_id('$value'::fieldcrypt.encrypted)");
	$session->value("BEGIN; INSERT INTO plain VALUES ('$value'); PREPARE TRANSACTION 'from before'");
	value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	value($node, "CALL fieldcrypt.destroy_key($key)");
	due($key);
	destroys([ 0, 1, 0 ], qr/prepared transactions from before its schedule are open: 'from before'/, 'a prepared transaction from before: it waits');
	gives($node, "SELECT destroy_horizon IS NOT NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't', 'the horizon is noted');
	$session->value("BEGIN; CREATE TABLE later (id int); PREPARE TRANSACTION 'from after'");
	destroys([ 0, 1, 0 ], qr/are open: 'from before'\n/, 'only that from before counts');
	$session->value("COMMIT PREPARED 'from before'");
	destroys([ 0, 1, 0 ], qr/it is in use: 1 value/, 'what it wrote is found');
	value($node, 'DELETE FROM plain');
	destroys([ 1, 0, 0 ], undef, 'destroyed, while another transaction is prepared');
	# A horizon that came with a dump of a server with higher ids says nothing here.
	(undef, $key) = old_key();
	value($node, "CALL fieldcrypt.destroy_key($key)");
	due($key);
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_horizon = '99999999999' WHERE key_id = $key");
	destroys([ 0, 1, 0 ], qr/are open: 'from after'/, 'a horizon from the future is replaced, and everything prepared counts');
	$session->value("ROLLBACK PREPARED 'from after'");
	destroys([ 1, 0, 0 ], undef, 'then nothing is open');
	$session->close;
}

# Not due yet, but long enough scheduled: what is seen of transactions is kept, so that it is due at once.
{
	my ($tenant, $key) = old_key();
	value($node, "CALL fieldcrypt.destroy_key($key)");
	destroys([ 0, 0, 0 ], undef, 'just scheduled');
	gives($node, "SELECT destroy_horizon IS NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 't', 'in the first hour nothing is seen');
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_scheduled_at = clock_timestamp() - interval '2 hours' WHERE key_id = $key");
	destroys([ 0, 0, 0 ], undef, 'two hours later');
	gives($node, "SELECT destroy_horizon IS NULL FROM fieldcrypt.encryption_keys WHERE key_id = $key", 'f', 'the horizon is noted ahead of time');
	value($node, "SELECT fieldcrypt.cancel_destroy_key($key, 'r')");
}

# The transaction that stops a key is not committed: others encrypt with it, so it can't be scheduled.
{
	my $tenant = 'tenant ' . ++$serial;
	my $value = value($node, "SELECT fieldcrypt.encrypt_field('x', '', '$tenant')");
	my $key = value($node, "SELECT fieldcrypt.key_id('$value'::fieldcrypt.encrypted)");
	my $session = session($node);
	$session->value("BEGIN; SELECT fieldcrypt.mark_compromised($key, 'r')");
	gives($node, "SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', '$tenant'))", $key, 'others encrypt with it meanwhile');
	$session->gives("SELECT outcome, detail FROM fieldcrypt.retire_keys(1, '$tenant')", qr/^kept\|encryption key $key was changed in this transaction \(KF018\)$/, 'a key is not scheduled by the transaction that stops it');
	$session->refused("SELECT fieldcrypt_internal.schedule_destruction($key, 864000, 'r')", 'KF018', qr/COMMIT first/, 'nor by the inner function');
	$session->close;
}

# Suspended, then scheduled: it comes back, but never to encrypt.
{
	my $tenant = 'tenant ' . ++$serial;
	my $key = value($node, "SELECT fieldcrypt.create_key('$tenant')");
	value($node, "SELECT fieldcrypt.suspend_key($key, 'r')");
	value($node, "CALL fieldcrypt.destroy_key($key)");
	gives($node, "SELECT fieldcrypt.resume_key($key, 'r')", 'deactivated', 'a key that is to be destroyed comes back deactivated');
	refused($node, "SELECT fieldcrypt.encrypt_field('x', '', '$tenant')", 'KF007', 'and does not encrypt');
	due($key);
	destroys([ 1, 0, 0 ], undef, 'and is destroyed');
}

# What can't be counted: other sessions' temporary tables, foreign tables.
{
	my ($tenant, $key, $value) = old_key();
	my $session = session($node);
	$session->value("CREATE TEMP TABLE own (value fieldcrypt.encrypted); INSERT INTO own VALUES ('$value')");
	my $pid = $session->server_process;
	$session->refused("CALL fieldcrypt.destroy_key($key)", 'KF017', qr/1 value\(s\) in (pg_temp\w*\.)?own\.value/, 'in use, in a temporary table of the session itself');
	value($node, "CALL fieldcrypt.destroy_key($key)");
	due($key, '1 hour');
	destroys([ 0, 1, 0 ], qr/values can't be counted in temporary tables \(pg_temp_\d+\.own\.value\), and there are sessions from before the schedule \(processes $pid\)/, 'a temporary table of a session from before: it waits');
	$session->close;
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die;
	my $later = session($node);
	$later->value('CREATE TEMP TABLE own (value fieldcrypt.encrypted)');
	destroys([ 1, 0, 0 ], undef, 'a temporary table of a session that began later does not matter');
	$later->close;

	(undef, $key) = old_key();
	value($node, 'CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; CREATE FOREIGN TABLE far (value fieldcrypt.encrypted) SERVER nowhere');
	like(run_sql($node, "CALL fieldcrypt.destroy_key($key)")->{err}, qr/WARNING:.*can't be known that encryption key $key is unused: values can't be counted in public\.far\.value \(a foreign table\)/, 'a foreign table: scheduled, with a warning');
	due($key);
	destroys([ 0, 1, 0 ], qr/values can't be counted in public\.far\.value/, 'a foreign table: it waits');
	destroys([ 0, 1, 0 ], qr/can't be counted/, 'NULL is no consent', 'CALL fieldcrypt.destroy_due_keys(NULL)');
	destroys([ 1, 0, 0 ], undef, 'unless the call says so', 'CALL fieldcrypt.destroy_due_keys(ignore_uncountable => true)');
	gives($node, "SELECT reason FROM fieldcrypt.audit_log WHERE key_id = $key AND event = 'key_destroyed'", 'ignore_uncountable', 'which is recorded');
	value($node, 'DROP FOREIGN TABLE far');
}

# By hand, past the procedures: the steps look themselves.
{
	my ($tenant, $key, $value) = old_key();
	value($node, "CALL fieldcrypt.destroy_key($key)");
	my $step = "SELECT outcome, message FROM fieldcrypt_internal.destroy_step(ARRAY[$key], false)";
	gives($node, $step, qr/^failed\|.*not due yet \(KF018\)$|^waits/, 'the step by hand: not due', user => 'manager');
	is(state_of($key), 'deactivated', 'it is there');
	due($key);
	value($node, "INSERT INTO plain VALUES ('$value')");
	gives($node, $step, qr/^waits\|it is in use/, 'the step by hand: in use', user => 'manager');
	refused($node, "BEGIN ISOLATION LEVEL REPEATABLE READ; $step", '25000', qr/READ COMMITTED only/, 'the step by hand: in an old snapshot', user => 'manager');
	refused($node, "SELECT fieldcrypt_internal.$_", '42501', "$_ by who may manage", user => 'manager') foreach
	  "erase_key($key, 'r')", "schedule_destruction($key, 1, 'r')", "set_destroy_horizon($key, '3')", "count_use(ARRAY[$key])", "schedule_unused($key, '7 days', 'r', '[]')";
	refused($node, "SELECT fieldcrypt_internal.schedule_step($key, '7 days', 'r')", 'KF018', qr/scheduled already/, 'the step that schedules, by hand', user => 'manager');
	refused($node, 'CALL fieldcrypt.destroy_due_keys()', '42501', 'destroying without the right', user => 'other');
	refused($node, 'BEGIN; CALL fieldcrypt.destroy_due_keys()', '2D000', 'destroying in a transaction block');
	refused($node, "UPDATE fieldcrypt.encryption_keys SET destroy_after = now() WHERE key_id = $key", 'KF015', 'the date is not changed by hand');
	value($node, 'DELETE FROM plain');
	destroys([ 1, 0, 0 ], undef, 'the step in its procedure: unused, destroyed');
}

# One that fails does not stop the others: neither while transactions are looked at, nor when it is erased.
{
	my @keys = map { (old_key())[1] } 1 .. 3;
	foreach my $key (@keys) { value($node, "CALL fieldcrypt.destroy_key($key)"); due($key); }
	value($node, "ALTER ROLE manager SET lock_timeout = '500ms'");
	my $lock = session($node);
	$lock->value("BEGIN; SELECT FROM fieldcrypt.encryption_keys WHERE key_id = $keys[0] FOR UPDATE");
	destroys([ 2, 1, 0 ], qr/key $keys[0] is not destroyed: .*\(55P03\)/, 'a row is locked: it waits, the others are destroyed');
	$lock->value('ROLLBACK');
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET destroy_horizon = '4' WHERE key_id = $keys[0]");
	$lock->value("BEGIN; SELECT FROM fieldcrypt.encryption_keys WHERE key_id = $keys[0] FOR UPDATE");
	destroys([ 0, 0, 1 ], qr/key $keys[0] is not destroyed: .*\(55P03\)/, 'a row is locked when it is to be erased: it fails');
	gives($node, "SELECT reason FROM fieldcrypt.audit_log WHERE event = 'key_refused' AND key_id = $keys[0]", qr/destruction failed: .*\(55P03\)/, 'which is recorded');
	is(state_of($keys[0]), 'deactivated', 'and it is there');
	$lock->close;
	value($node, 'ALTER ROLE manager RESET lock_timeout');
	destroys([ 1, 0, 0 ], undef, 'and goes the next time');
}

# The approval, if it is configured, is for the schedule; without it nothing is scheduled, and that is recorded.
{
	my ($tenant, $key) = old_key();
	configure($node, 'fieldcrypt.require_approval' => 'destroy_key');
	refused($node, "CALL fieldcrypt.destroy_key($key)", 'KF019', qr/nobody has asked for it/, 'without approval', user => 'manager');
	gives($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'approval_refused' AND key_id = $key AND actor = 'manager'", 1, 'refused and recorded');
	gives($node, "SELECT outcome, detail FROM fieldcrypt.retire_keys(1, '$tenant')", qr/^kept\|destroy_key "$key" needs an approval.*\(KF019\)$/, 'by retire_keys neither', user => 'manager');
	my $id = value($node, "SELECT fieldcrypt.request_approval('destroy_key', '$key', 'old')", user => 'manager');
	value($node, "CALL fieldcrypt.approve($id)");
	gives($node, "SELECT outcome, detail FROM fieldcrypt.retire_keys(1, '$tenant')", 'scheduled|', 'with approval', user => 'manager');
	gives($node, "SELECT used_by FROM fieldcrypt.approvals WHERE id = $id", 'manager', 'which is spent');
	due($key);
	destroys([ 1, 0, 0 ], undef, 'when it is due it needs none');
	configure($node, 'fieldcrypt.require_approval' => 'shred_tenant');
}

# retire_keys: the newest are kept, the unused others scheduled, each with its reason.
{
	my $tenant = 'retired';
	my @values;
	foreach (1 .. 5)
	{
		push @values, value($node, "SELECT fieldcrypt.encrypt_field('x', '', '$tenant')");
		value($node, "CALL fieldcrypt.rotate_keys('$tenant')");
	}
	value($node, "INSERT INTO plain VALUES ('$values[1]')");
	my @keys = map { value($node, "SELECT fieldcrypt.key_id('$_'::fieldcrypt.encrypted)") } @values;
	value($node, "SELECT fieldcrypt.suspend_key($keys[2], 'r')");
	refused($node, 'SELECT * FROM fieldcrypt.retire_keys(0)', '22023', qr/at least one version/, 'none kept');
	refused($node, 'SELECT * FROM fieldcrypt.retire_keys(NULL)', '22004', 'retire_keys: NULL');
	refused($node, "SELECT * FROM fieldcrypt.retire_keys(2, '$tenant', '1 day')", '22023', qr/7 days at the earliest/, 'retire_keys: too early');
	refused($node, 'SELECT * FROM fieldcrypt.retire_keys(2)', '42501', 'retire_keys: without the right', user => 'other');
	gives($node, "SELECT version, outcome, detail FROM fieldcrypt.retire_keys(2, '$tenant')",
		"1|scheduled|\n2|kept|in use: 1 value(s) in public.plain.value\n3|kept|suspended: resume it, or schedule it with destroy_key\n4|scheduled|",
		'four of six are old: the unused ones are scheduled', user => 'manager');
	gives($node, "SELECT count(*) FROM fieldcrypt.encryption_keys WHERE destroy_after IS NOT NULL AND state <> 'destroyed' AND tenant = '$tenant'", 2, 'and only those');
	gives($node, "SELECT version, outcome FROM fieldcrypt.retire_keys(2, '$tenant')", "2|kept\n3|kept", 'again: those that are scheduled are not listed');
	gives($node, q{SELECT count(*) FROM fieldcrypt.retire_keys(2, 'nobody')}, 0, 'an unknown tenant has none');
	value($node, 'DELETE FROM plain');
}

# key_usage: every key, also an unused one; an estimate of a large table; never without the right.
{
	my $key = value($node, q{SELECT fieldcrypt.create_key('counted')});
	gives($node, q{SELECT version, state, table_name, "values", is_exact FROM fieldcrypt.key_usage(true) WHERE tenant = 'counted'}, '1|active||0|t', 'an unused key is listed');
	value($node, q{CREATE TABLE large (value fieldcrypt.encrypted, filler text); ALTER TABLE large ALTER filler SET STORAGE plain;
		INSERT INTO large SELECT fieldcrypt.encrypt_field('x', '', 'counted'), repeat('x', 7000) FROM generate_series(1, 10000);
		ALTER TABLE large SET (autovacuum_enabled = off)});
	gives($node, q{SELECT "values", is_exact FROM fieldcrypt.key_usage() WHERE tenant = 'counted'}, '10000|t', 'what is not large is counted, although nobody has asked for it');
	value($node, q{INSERT INTO large SELECT fieldcrypt.encrypt_field('x', '', 'counted'), repeat('x', 7000) FROM generate_series(1, 60000)});
	gives($node, q{SELECT "values", is_exact FROM fieldcrypt.key_usage(true) WHERE tenant = 'counted'}, '70000|t', 'counted');
	# Half a gigabyte and more, of which no statistics know: a sample by its size.
	gives($node, q{SELECT "values" BETWEEN 60000 AND 80000, is_exact FROM fieldcrypt.key_usage() WHERE tenant = 'counted'}, 't|f', 'estimated');
	gives($node, q{SELECT DISTINCT is_exact FROM fieldcrypt.key_usage() WHERE table_name = 'plain'}, qr/^t?$/, 'small tables beside it are counted');
	value($node, 'DROP TABLE large');
	refused($node, 'SELECT * FROM fieldcrypt.key_usage(true)', '42501', 'key_usage without the right', user => 'other');
	refused($node, 'SELECT * FROM fieldcrypt.key_usage(NULL)', '22004', 'key_usage: NULL');
}

no_crash($node);
$node->stop;
done_testing();
