# A streaming standby: decrypts, encrypts with existing keys, says why it makes none, and learns of
# rotation and destruction on the primary at the next statement of an open session.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_cluster('primary', init => { allows_streaming => 1 }, conf => "max_connections = 30\n");
value($primary, <<'SQL');
CREATE TABLE patients (id int, ssn fieldcrypt.encrypted);
INSERT INTO patients SELECT 1, fieldcrypt.encrypt_field('acme 1', tenant => 'acme');
INSERT INTO patients SELECT 2, fieldcrypt.encrypt_field('umbrella', tenant => 'umbrella');
INSERT INTO patients SELECT 3, fieldcrypt.encrypt_field('initech', tenant => 'initech');
SQL
$primary->backup('base');

# The key file is no part of a base backup: the standby needs its own.
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
# With feedback, the long transaction below is not cancelled when old row versions go.
$standby->append_conf('postgresql.conf', <<'CONF');
fieldcrypt.master_key_file = '/nonexistent/master.key'
hot_standby_feedback = on
wal_receiver_status_interval = 1s
CONF
$standby->start;
$primary->poll_query_until('postgres', 'SELECT backend_xmin IS NOT NULL FROM pg_stat_replication') or die 'no feedback';
refused($standby, q{SELECT fieldcrypt.decrypt_field(ssn) FROM patients}, 'KF009', qr/does not exist/, 'no key file: refused');
use_key_file($standby, key_text(1));
$standby->reload;

sub caught_up { $primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert')); return; }

# What a statement gives for each id, in order.
my $read = q{SELECT string_agg(fieldcrypt.decrypt_field(ssn), ', ' ORDER BY id) FROM patients WHERE id IN };
gives($standby, "$read (1, 2, 3)", 'acme 1, umbrella, initech', 'decrypts');
gives($standby, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('made here', tenant => 'acme'))},
	'made here', 'encrypts with an existing key');
my $made_here = value($standby, q{SELECT fieldcrypt.encrypt_field('made on the standby', tenant => 'acme')});
gives($primary, "SELECT fieldcrypt.decrypt_field('$made_here')", 'made on the standby', 'which the primary reads');

my @needs_a_key = (
	q{SELECT fieldcrypt.encrypt_field('x', tenant => 'nobody yet')},
	q{SELECT fieldcrypt.encrypt_field('x')},
	q{SELECT fieldcrypt.create_key('nobody yet')},
	q{SELECT fieldcrypt_internal.rotate_active_key('acme', NULL, false, NULL)},
	q{SET fieldcrypt.tenant = 'nobody yet'; SELECT fieldcrypt.encrypt_field('x')});
refused($standby, $_, 'KF013', qr/standby can't make one.*on the primary/s, "refused, and why: $_") foreach @needs_a_key;
my $rotate = run_sql($standby, q{CALL fieldcrypt.rotate_keys('acme')});
is("@{ $rotate->{sqlstates} }", 'KF013', 'refused, and why: CALL rotate_keys') or diag $rotate->{err};
$rotate = run_sql($standby, q{CALL fieldcrypt.rotate_keys(force => true)});
is("@{ $rotate->{sqlstates} }", 'KF013', 'refused, and why: CALL rotate_keys of all') or diag $rotate->{err};
gives($standby, q{SELECT fieldcrypt.create_key('acme') = key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'}, 't',
	'create_key gives the key that is there');

# Open sessions on the standby, one of them in a REPEATABLE READ transaction, both with all keys cached.
my $key_of_next = q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => 'acme'))};
my %sessions = (idle => session($standby), 'in a transaction' => session($standby));
$sessions{'in a transaction'}->value('BEGIN ISOLATION LEVEL REPEATABLE READ');
my %first = map { $_ => $sessions{$_}->value($key_of_next) } keys %sessions;
$_->value("$read (1, 2, 3)") foreach values %sessions;

value($primary, q{CALL fieldcrypt.rotate_keys('acme')});
my $active = value($primary, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active'});
caught_up();
foreach my $name (sort keys %sessions)
{
	isnt($first{$name}, $active, "$name: had the old key");
	$sessions{$name}->gives($key_of_next, $active, "$name: rotation reaches the next statement");
	$sessions{$name}->gives("$read (1)", 'acme 1', "$name: and the old value stays readable");
}

# Destroy and suspend, as later versions will: here by a superuser past the guard.
sub past_the_guard_everywhere
{
	my ($sql) = @_;
	past_the_guard($primary, $sql);
	caught_up();
	return;
}
past_the_guard_everywhere(q{UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE tenant = 'umbrella'});
foreach my $name (reverse sort keys %sessions)
{
	my $session = $sessions{$name};
	my $savepoint = $name eq 'idle' ? '' : 'SAVEPOINT a;';
	my $back = $name eq 'idle' ? '' : 'ROLLBACK TO a;';
	$session->refused("$savepoint $read (2)", 'KF004', "$name: a key suspended on the primary is refused at the next statement");
	$session->refused(qq{$back SELECT fieldcrypt.encrypt_field('x', tenant => 'umbrella')}, 'KF007', "$name: and encrypts no more");
	$session->gives("$back $read (3)", 'initech', "$name: others go on");
}
past_the_guard_everywhere(q{UPDATE fieldcrypt.encryption_keys SET state = 'active' WHERE tenant = 'umbrella'});
$sessions{$_}->gives("$read (2)", 'umbrella', "$_: resumed") foreach sort keys %sessions;
past_the_guard_everywhere(q{UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL, destroyed_at = now() WHERE tenant = 'initech'});
foreach my $name (sort keys %sessions)
{
	my $savepoint = $name eq 'idle' ? '' : 'SAVEPOINT b;';
	my $back = $name eq 'idle' ? '' : 'ROLLBACK TO b;';
	$sessions{$name}->refused("$savepoint $read (3)", 'KF005', "$name: a key destroyed on the primary is gone at the next statement");
	$sessions{$name}->gives("$back SELECT fieldcrypt.try_decrypt_field(ssn) IS NULL FROM patients WHERE id = 3", 't', "$name: try_decrypt_field gives NULL");
}

# A rotation that is rolled back on the primary changes nothing here.
my $stays = value($primary, $key_of_next);
value($primary, q{BEGIN; SELECT fieldcrypt_internal.rotate_active_key('acme', NULL, false, NULL); ROLLBACK; SELECT txid_current()});
caught_up();
$sessions{idle}->gives($key_of_next, $stays, 'a rotation that was rolled back on the primary');

# Promotion, with the sessions open.
$sessions{'in a transaction'}->value('COMMIT');
$primary->stop;
$standby->promote;
foreach my $name (sort keys %sessions)
{
	$sessions{$name}->gives(qq{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('new', tenant => 'made by $name'))},
		'new', "after promotion, $name: makes a new key");
	$sessions{$name}->gives("$read (1, 2)", 'acme 1, umbrella', "after promotion, $name: reads");
}
value($standby, q{CALL fieldcrypt.rotate_keys('acme')});
my $promoted = value($standby, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme' AND state = 'active'});
isnt($promoted, $stays, 'after promotion: rotates');
$sessions{$_}->gives($key_of_next, $promoted, "after promotion, $_: sees it") foreach sort keys %sessions;
gives($standby, q{SELECT count(*) = count(DISTINCT id), count(*) FILTER (WHERE event = 'key_created' AND tenant LIKE 'made by %') FROM fieldcrypt.audit_log},
	't|2', 'after promotion: recorded');

$_->close foreach values %sessions;
no_crash($_) foreach $primary, $standby;
$standby->stop;
done_testing();
