# Alerts: each finding is told once, to listeners, the server log and the audit log; again when it changes, not
# when only ages do; its end is told once. However many look at once.

use strict;
use warnings;

use FieldcryptTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nlog_statement = none\nmax_connections = 40\n", init => { allows_streaming => 1 });
my $keys = $node->basedir . '/keys';
mkdir $keys, 0700 or die;
my $file = write_key_file("$keys/master.key", key_text(1));
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$file'");
$node->reload;
value($node, <<'SQL');
CREATE ROLE manager LOGIN; CREATE ROLE auditor LOGIN; CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('app', 'encrypt', 'decrypt', 'reencrypt', 'backup');
SELECT count(fieldcrypt.create_key('tenant ' || i)) FROM generate_series(1, 30) AS i;
SELECT length(fieldcrypt.export_keys());
SQL

my $listener = session($node, user => 'app');
$listener->value('LISTEN fieldcrypt_alerts');

# The payloads that have arrived since the last call, as data.
sub heard
{
	my ($session) = @_;
	my $out = ($session // $listener)->value('SELECT 1');
	return map { JSON::PP->new->decode($_) } $out =~ /Asynchronous notification "[^"]+" with payload "(.*)" received from server process/g;
}

my $log_end = -s $node->logfile;

# The lines of the server log about alerts since the last call.
sub logged
{
	my $text = slurp_file($node->logfile, $log_end);
	$log_end = -s $node->logfile;
	return $text =~ /(?:WARNING|LOG):  (fieldcrypt alert[^\n]*)/g;
}

my $last_event = 0;

# The events of alerts since the last call.
sub recorded
{
	my $out = value($node, "SELECT event || ' ' || reason FROM fieldcrypt.audit_log WHERE id > $last_event AND event LIKE 'alert%' ORDER BY id");
	$last_event = value($node, 'SELECT coalesce(max(id), 0) FROM fieldcrypt.audit_log');
	return split /\n/, $out;
}

# A test: what was told since the last time, in each of the three places: "raised check status" and so on.
sub told
{
	my ($name, @expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @heard = map { "$_->{event} $_->{check} $_->{status}" } heard();
	is(join("\n", sort @heard), join("\n", sort @expected), "$name: to listeners");
	my @lines = map { my ($event, $check, $status) = split / /; $event eq 'resolved' ? "alert resolved: $check: " : "alert: $check is $status: " } @expected;
	my @logged = map { /^fieldcrypt (alert(?: resolved: \w+: |: \w+ is \w+: ))/ ? $1 : $_ } logged();
	is(join("\n", sort @logged), join("\n", sort @lines), "$name: in the server log");
	my @events = map { my ($event, $check, $status) = split / /; ($event eq 'resolved' ? 'alert_resolved' : 'alert_raised') . " $check is $status:" } @expected;
	my @recorded = map { /^(\S+ \w+ is \w+:)/ ? $1 : $_ } recorded();
	is(join("\n", sort @recorded), join("\n", sort @events), "$name: in the audit log");
	return;
}

sub age
{
	my ($interval, $where) = @_;
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET created_at = clock_timestamp() - interval '$interval' WHERE state = 'active' AND purpose = 'field' AND ($where)");
	return;
}

my $check = sub { value($node, 'CALL fieldcrypt.check_alerts()', user => 'manager'); };

# What a new database has to tell is told, and then nothing.
$check->();
my @known = map { "raised $_ warning" } split /\n/, value($node, q{SELECT "check" FROM fieldcrypt.health() WHERE status = 'warning'});
ok(@known > 0, 'a database that was never verified has something to tell');
told('at first', @known);
$check->();
told('again');

# A finding: what is told of it.
age('91 days', q{tenant = 'tenant 1'});
# Alerts are written whole, whatever the setting makes of the names in CONTEXT.
value($node, "SET quote_all_identifiers = on;\nCALL fieldcrypt.check_alerts()", user => 'manager');
my ($payload) = heard();
is(join(' ', sort keys %$payload), 'check database detail event hint since status', 'a payload');
is("$payload->{check} $payload->{status} $payload->{event} $payload->{database}", 'key_age warning raised postgres', 'a payload tells of what');
like($payload->{detail}, qr/^the active key is older than its rotation policy for tenant "tenant 1"; the oldest was made 91 days ago$/, 'a payload tells details');
like($payload->{hint}, qr/^CALL fieldcrypt\.rotate_keys/, 'a payload tells what to do');
like($payload->{since}, qr/^\d{4}-\d\d-\d\dT[\d:.]+\+00:00$/, 'a payload tells since when');
like((logged())[0], qr/^fieldcrypt alert: key_age is warning: the active key is older than its rotation policy for tenant "tenant 1"; the oldest was made 91 days ago$/, 'the server log');
like(slurp_file($node->logfile), qr/fieldcrypt alert: key_age [^\n]*\n[^\n]*HINT:  CALL fieldcrypt\.rotate_keys/, 'the server log: with the hint');
is_deeply([ recorded() ], [ 'alert_raised key_age is warning: the active key is older than its rotation policy for tenant "tenant 1"; the oldest was made 91 days ago' ], 'the audit log');
gives($node, q{SELECT actor FROM fieldcrypt.audit_log WHERE event = 'alert_raised' ORDER BY id DESC LIMIT 1}, 'manager', 'the audit log: who looked');
my $since = value($node, q{SELECT since FROM fieldcrypt.alerts WHERE "check" = 'key_age'});

# An age is not a change; another tenant is; one less is not.
age('95 days', q{tenant = 'tenant 1'});
$check->();
told('an age alone');
gives($node, q{SELECT detail ~ '95 days' FROM fieldcrypt.alerts WHERE "check" = 'key_age'}, 't', 'an age alone: is kept for who looks');
age('91 days', q{tenant = 'tenant 2'});
$check->();
told('another tenant', 'changed key_age warning');
gives($node, qq{SELECT since = '$since' AND told_at > since FROM fieldcrypt.alerts WHERE "check" = 'key_age'}, 't', 'another tenant: since when is kept');
value($node, q{CALL fieldcrypt.rotate_keys('tenant 1')});
$check->();
told('one less');
age('91 days', q{tenant = 'tenant 1'});
$check->();
told('that one again', 'changed key_age warning');
# Of many, only the magnitude is told.
age('91 days', q{tenant <> 'tenant 30'});
$check->();
told('many', 'changed key_age warning');
age('91 days', 'true');
$check->();
told('one more of many');
value($node, q{CALL fieldcrypt.rotate_keys('tenant 3')});
$check->();
told('one less of many');
value($node, 'CALL fieldcrypt.rotate_keys()');
$check->();
told('the end', 'resolved key_age ok');
$check->();
told('the end is told once');

# What the file's setting makes of it, and changes of severity.
value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('secret', tenant => 'tenant 1') AS value; SELECT fieldcrypt.suspend_key(key_id, 'look') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 1' AND state = 'active'});
$check->();
told('a warning', 'raised suspended_keys warning');
configure($node, 'fieldcrypt.health_accepted' => 'suspended_keys');
$check->();
told('accepted', 'resolved suspended_keys ok');
configure($node);
$check->();
told('accepted no more', 'raised suspended_keys warning');
value($node, q{SELECT fieldcrypt.resume_key(key_id, 'is all right') FROM fieldcrypt.encryption_keys WHERE state = 'suspended'});
$check->();
told('resumed', 'resolved suspended_keys ok');
chmod 0705, $keys;
$check->();
told('an open directory', 'raised master_key_source warning');
chmod 0702, $keys;
$check->();
told('a directory that others write', 'changed master_key_source critical');
chmod 0705, $keys;
$check->();
told('an open directory again', 'changed master_key_source warning');
chmod 0700, $keys;
$check->();
told('a closed one', 'resolved master_key_source ok');

# Many at once: they wait for each other, and one tells.
{
	chmod 0705, $keys;
	my $gate = session($node);
	$gate->value('BEGIN; LOCK TABLE fieldcrypt.alerts IN ACCESS EXCLUSIVE MODE');
	my @lookers = map { session($node, user => 'manager', env => { PGOPTIONS => '-c default_transaction_isolation=serializable' }) } 1 .. 6;
	$_->send('CALL fieldcrypt.check_alerts()') foreach @lookers;
	$node->poll_query_until('postgres', q{SELECT count(*) = 6 FROM pg_locks WHERE relation = 'fieldcrypt.alerts'::regclass AND NOT granted}) or die;
	$gate->value('COMMIT');
	my $errors = join '', map { my $done = $_->run('SELECT 1'); @{ $done->{sqlstates} } } @lookers;
	is($errors, '', 'six at once, of SERIALIZABLE sessions: no error');
	told('six at once', 'raised master_key_source warning');
	chmod 0700, $keys;
	$_->send('CALL fieldcrypt.check_alerts()') foreach @lookers;
	$_->run('SELECT 1') foreach @lookers;
	told('six at once, the end', 'resolved master_key_source ok');
	$_->close foreach @lookers, $gate;
}

# While values are moved it can't be told what is left: what was told stays so.
value($node, q{INSERT INTO t SELECT value FROM t, generate_series(1, 1000); SELECT fieldcrypt.mark_compromised(key_id, 'stolen') FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 1' AND state = 'active'});
$check->();
told('a compromised key', 'raised compromised_keys critical');
{
	my $runner = session($node);
	$runner->send('CALL fieldcrypt.reencrypt(batch_size => 10, rows_per_second => 100)');
	$node->poll_query_until('postgres', q{SELECT rows_moved > 0 FROM fieldcrypt.reencryption_progress}) or die;
	$check->();
	told('while it is moved');
	value($node, q{SELECT pg_terminate_backend(pid) FROM fieldcrypt_internal.live_runs()});
}
value($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)');
$check->();
told('moved', 'resolved compromised_keys ok');

# The channel.
configure($node, 'fieldcrypt.alert_channel' => 'My "channel"; --');
$listener->value('LISTEN "My ""channel""; --"');
chmod 0705, $keys;
$check->();
my $out = $listener->value('SELECT 1');
like($out, qr/Asynchronous notification "My "channel"; --" with payload "\{.*master_key_source/, 'another channel');
logged(); recorded();
configure($node, 'fieldcrypt.alert_channel' => '');
chmod 0700, $keys;
$check->();
is(scalar(heard()), 0, 'no channel: no notification');
is(scalar(logged()), 1, 'no channel: but in the server log');
is(scalar(recorded()), 1, 'no channel: and in the audit log');
configure($node);

# A long payload is cut, between characters, and stays JSON.
foreach my $character ('x', "\x{e9}", "\x{1f600}", '"', '\\', "\x{1}", "\n")
{
	my $code = ord $character;
	my $text = value($node, "SELECT fieldcrypt_internal.alert_payload('raised', repeat('c', 40), 'warning', repeat(chr($code), 20000), repeat(chr($code), 20000), now())");
	my $data = eval { JSON::PP->new->utf8->decode($text) };
	ok($data && $data->{detail} =~ /^\Q$character\E+\.\.\.$/ && length $text < 7950 && length $text > 2000, sprintf('a payload of characters %x is cut to %s bytes', $code, length $text));
}

# A hostile name stays data everywhere.
my $name = qq{\x27; DROP TABLE fieldcrypt.alerts; -- " \\ <script>alert(1)</script>\n2026-01-01 00:00:00 UTC [1] WARNING:  forged\r\t\x1b[31m\x{202e}\x{9b}31m %s \$1 };
(my $quoted = $name) =~ s/'/''/g;
utf8::encode($quoted);
value($node, q{SELECT fieldcrypt.create_key('renamed')});
rename_tenant($node, q{'renamed'}, "'$quoted'");
age('91 days', q{tenant LIKE '%script%'});
$check->();
($payload) = heard();
my $shown = q{"'; DROP TABLE fieldcrypt.alerts; -- \" \\\\ <script>alert(1)</sc..."};
is($payload->{detail}, "the active key is older than its rotation policy for tenant $shown; the oldest was made 91 days ago", 'a hostile name: in the payload');
my @lines = logged();
is_deeply(\@lines, [ "fieldcrypt alert: key_age is warning: $payload->{detail}" ], 'a hostile name: one line of the server log');
gives($node, q{SELECT reason FROM fieldcrypt.audit_log WHERE event = 'alert_raised' ORDER BY id DESC LIMIT 1}, "key_age is warning: $payload->{detail}", 'a hostile name: in the audit log');
recorded();
value($node, 'CALL fieldcrypt.rotate_keys()');
$check->();
told('a hostile name: the end', 'resolved key_age ok');
foreach my $short ("\n2026-01-01 forged", "\r\nforged", "\x1b[2J", "\x{9b}2J", "\x{202e}evil", "\x{200b}", "\x{feff}", "\x{85}", "\x{2028}", "\x7f")
{
	(my $text = $short) =~ s/'/''/g;
	utf8::encode($text);
	my $result = value($node, "SELECT fieldcrypt_internal.quoted_name('$text')");
	utf8::decode($result);
	like($result, qr/^"[\x20-\x7e]*"$/, 'a name with unprintable characters: ' . join ' ', map { sprintf '%x', ord } split //, $short);
}

# Who may.
refused($node, 'CALL fieldcrypt.check_alerts()', '42501', "not to the $_", user => $_) foreach 'auditor', 'app';
refused($node, 'SELECT * FROM fieldcrypt.health()', '42501', 'health: not to who only decrypts', user => 'app');
gives($node, 'SELECT count(*) > 20 FROM fieldcrypt.health(thorough => true)', 't', "health: to the $_", user => $_) foreach 'manager', 'auditor';
gives($node, 'SELECT count(*) >= 0 FROM fieldcrypt.alerts', 't', "alerts: readable to the $_", user => $_) foreach 'manager', 'auditor';
refused($node, 'SELECT FROM fieldcrypt.alerts', '42501', 'alerts: not to others', user => 'app');
refused($node, "SELECT fieldcrypt_internal.$_", '42501', "nobody is granted $_", user => 'manager') foreach
  'health_findings(false)', q{store_alert('key_age', 'ok', '', '', '[]', true)}, q{forget_alert('key_age')}, q{alert_payload('', '', '', '', '', now())},
  q{store_verification(now(), 'ok', 0, 'forged')}, 'check_key_age(NULL)', 'master_key_source()', q{keys_with_values('compromised', NULL)}, q{settings_that_hold('{ssl_key_file}')};
foreach my $who ('manager', 'auditor')
{
	refused($node, $_, '42501', "the $who does not write: $_", user => $who) foreach 'DELETE FROM fieldcrypt.alerts', q{UPDATE fieldcrypt.alerts SET status = 'warning'},
	  q{INSERT INTO fieldcrypt.alerts VALUES ('key_age', 'warning', '', '', '[]')}, 'DELETE FROM fieldcrypt.audit_verifications', q{INSERT INTO fieldcrypt.audit_verifications VALUES (1, now(), now(), 'ok', 0, 'forged')};
}
value($node, 'CALL fieldcrypt.check_alerts()');
refused($node, $_, 'KF015', "by hand: $_") foreach 'DELETE FROM fieldcrypt.alerts', q{UPDATE fieldcrypt.alerts SET detail = ''}, 'TRUNCATE fieldcrypt.alerts', 'TRUNCATE fieldcrypt.audit_verifications';

# Where it is refused.
refused($node, 'BEGIN; CALL fieldcrypt.check_alerts(); ROLLBACK', '2D000', 'in a transaction block');
refused($node, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT fieldcrypt_internal.alert_step(); ROLLBACK', '25000', qr/READ COMMITTED only/, 'its step, with an old snapshot', user => 'manager');
refused($node, 'BEGIN READ ONLY; SELECT fieldcrypt_internal.alert_step(); ROLLBACK', '25006', 'its step, read-only', user => 'manager');
logged(); recorded(); heard();
run_sql($node, 'BEGIN; SELECT fieldcrypt_internal.alert_step(); ROLLBACK', user => 'manager');
is(scalar(heard()), 0, 'its step, rolled back: nobody hears of it');
gives($node, 'SET search_path = pg_temp; CREATE FUNCTION pg_temp.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$ SELECT 1/0 $$; SELECT count(*) FROM fieldcrypt.health(true) WHERE detail LIKE \'%failed:%\'', '0', 'functions of the caller are not used', user => 'auditor');

# What dumps carry: not the alerts, which are this database's.
unlike(slurp_file(dump_database($node, 'postgres', $node->basedir . '/dump.sql')), qr/COPY fieldcrypt\.alerts/, 'alerts are not dumped');
like(slurp_file($node->basedir . '/dump.sql'), qr/COPY fieldcrypt\.audit_verifications/, 'verifications of the log are');

# A standby tells health, and no alerts.
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
gives($standby, q{SELECT count(*) FROM fieldcrypt.health(true) WHERE detail LIKE '%check failed%'}, '0', 'a standby: every check is made');
is(value($standby, 'SELECT count(*) FROM fieldcrypt.health()'), value($node, 'SELECT count(*) FROM fieldcrypt.health()'), 'a standby: all of them');
refused($standby, 'CALL fieldcrypt.check_alerts()', '25006', qr/an alert is recorded/, 'a standby: no alerts');
$standby->stop;

# Another database of the cluster has its own.
create_database($node, 'other');
value($node, 'CALL fieldcrypt.check_alerts()', db => 'other');
is(scalar(heard()), 0, 'listeners hear of their database');
gives($node, 'SELECT count(*) > 0 FROM fieldcrypt.alerts', 't', 'another database has alerts of its own', db => 'other');

no_crash($_) foreach $node, $standby;
$listener->close;
$node->stop;
done_testing();
