# What 260 shows for simple statements: for bound parameters and prepared statements of the protocol, auto_explain in all
# its formats, deadlocks, parse trees, users' own messages, other encodings and languages; with redact_logs off, on and all.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;

my $schema = <<'SQL';
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, email text UNIQUE);
INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field('x'), 'one'), (2, fieldcrypt.encrypt_field('y'), 'two');
CREATE FUNCTION checked(plain text) RETURNS fieldcrypt.encrypted LANGUAGE plpgsql AS $$
BEGIN
    IF plain ~ 'bad' THEN RAISE EXCEPTION 'this is a bad number: %', plain USING DETAIL = 'it was ' || plain, HINT = 'not ' || plain; END IF;
    RAISE NOTICE 'this is a number: %', plain;
    RETURN fieldcrypt.encrypt_field(plain);
END $$;
CREATE TABLE plain (id int PRIMARY KEY, t text);
SQL
my $node = new_cluster('primary', conf => everything_logged() . "session_preload_libraries = 'auto_explain'\n");
value($node, $schema);

my $serial = 0;

# Runs something with a canary; gives the log of it, and what the client got.
sub logged
{
	my ($run) = @_;
	my $canary = sprintf 'Zq%06dCanary', ++$serial;
	my $from = rotate_log($node);
	my $client = $run->($canary);
	return ($canary, since($node, $from), $client);
}

sub hides
{
	my ($run, $name, $logged) = @_;
	my ($canary, $log, $client) = logged($run);
	my @found = grep { $log->{$_} =~ /$canary/i } sort keys %$log;
	is("@found", '', "hidden: $name");
	diag((grep { /$canary/i } split /\n/, $log->{ $found[0] })[0]) if @found;
	my @missing = grep { $log->{$_} !~ $logged } sort keys %$log;
	is("@missing", '', "logged: $name") or diag $log->{stderr};
	return ($canary, $log, $client);
}

sub shows
{
	my ($run, $name) = @_;
	my ($canary, $log) = logged($run);
	my @missing = grep { $log->{$_} !~ /$canary/ } sort keys %$log;
	is("@missing", '', "shown: $name") or diag $log->{stderr};
	return;
}

sub sql
{
	my ($sql, %options) = @_;
	return sub { my ($canary) = @_; run_sql($node, $sql =~ s/CANARY/$canary/gr, %options) };
}

sub bound
{
	my ($sql, %options) = @_;
	return sub { my ($canary) = @_; bind($node, $sql, { value => $canary }, %options) };
}

# Bound parameters.
foreach my $protocol (qw(extended prepared))
{
	my @once = (protocol => $protocol);
	my ($canary, $log, $client) = hides(bound('SELECT fieldcrypt.encrypt_field(:value)', @once), "$protocol: a call", qr/[pP]arameters: \$1 = '\*\*\*'/);
	is($client->{code}, 0, "$protocol: a call succeeds");
	like($log->{stderr}, qr/duration: [\d.]+ ms  $_ /, "$protocol: $_ is logged, with its duration") foreach qw(parse bind);
	hides(bound('SELECT checked(:value)', @once), "$protocol: a function that encrypts", qr/\$1 = '\*\*\*'/);
	hides(bound('SELECT * FROM patients WHERE email = :value', @once), "$protocol: a table", qr/\$1 = '\*\*\*'/);
	hides(bound('SELECT * FROM patients WHERE email = :value', @once, transactions => 3, env => { PGOPTIONS => '-c log_statement=none' }),
		"$protocol: durations alone", qr/duration: [\d.]+ ms  execute .*\$1 = '\*\*\*'/s);
	($canary, $log, $client) = hides(bound('SELECT id FROM patients WHERE id = :value::int', @once), "$protocol: an error", qr/22P02/);
	like($client->{err}, qr/invalid input syntax for type integer: "$canary"/, "$protocol: an error, the client is told");
	($canary, $log, $client) = hides(bound('SELECT fieldcrypt.encrypt_field(:value), 1 / (SELECT count(*) FROM plain)', @once), "$protocol: an error in the middle",
		qr/portal[^\n]*with parameters: \$1 = '\*\*\*'/);
	like($client->{err}, qr/division by zero/, "$protocol: an error in the middle, the client is told");
	hides(bound(q{SELECT checked('bad ' || :value)}, @once), "$protocol: a message of the user's own, in which a parameter stands", qr/P0001/);
	hides(bound('INSERT INTO patients (id, email) VALUES (1, :value)', @once), "$protocol: a key that exists", qr/23505/);
	shows(bound('SELECT :value', @once), "$protocol: something else");
	shows(bound('INSERT INTO plain VALUES (1, :value), (1, :value)', @once), "$protocol: an error in something else");
}

# The user's own messages: what in them is a value can't be told, but CONTEXT says where they come from.
my ($canary, $log, $client) = hides(sql(q{SELECT checked('bad CANARY')}), 'a message of the user\'s own', qr/P0001/);
like($log->{stderr}, qr/ERROR:  P0001: \*\*\*\n.*DETAIL:  \*\*\*\n.*HINT:  \*\*\*\n.*CONTEXT:  PL\/pgSQL function checked\(text\) line 3 at RAISE\n/s, 'the log says where it comes from');
like($client->{err}, qr/this is a bad number: bad $canary.*it was bad $canary.*not bad $canary/s, 'the client reads it');
($canary, $log, $client) = hides(sql(q{SELECT checked('CANARY')}), 'a NOTICE', qr/checked\(text\) line 4 at RAISE/);
like($client->{err}, qr/NOTICE:  00000: this is a number: $canary/, 'the client reads the NOTICE');

# auto_explain.
my $explain = q{LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_verbose = on; SET auto_explain.log_analyze = on; SET auto_explain.log_nested_statements = on; SET enable_indexscan = off; SET enable_bitmapscan = off; };
($canary, $log) = hides(sql($explain . q{SELECT 'CANARY', id, 77777 FROM patients WHERE email = 'CANARY' AND id = 987654}), 'auto_explain', qr/Query Text: SELECT '\*\*\*', id, 0 FROM patients/);
like($log->{stderr}, qr/Output: '\*\*\*'::text, id, 0/, 'auto_explain: Output');
like($log->{stderr}, qr/Filter: .*= '\*\*\*'::text.*\(.*id = 0\)|Filter: .*id = 0\).*'\*\*\*'::text/, 'auto_explain: Filter');
like($log->{stderr}, qr/Seq Scan on public\.patients  \(cost=\d+\.\d+\.\.\d+\.\d+ rows=\d+ width=\d+\) \(actual time=/, 'auto_explain: costs and times stay');
unlike($log->{stderr}, qr/77777|987654/, 'auto_explain: numbers');
hides(sql($explain . q{SELECT checked('CANARY')}), 'auto_explain of nested statements', qr/Query Text: /);
hides(sql($explain . q{DO $$ BEGIN PERFORM checked(x || 'CANARY') FROM (VALUES ('a'), ('CANARY')) AS v (x); END $$}), 'auto_explain in DO', qr/Query Text: /);
hides(bound('SELECT id FROM patients WHERE email = :value', env => { PGOPTIONS => '-c auto_explain.log_min_duration=0 -c plan_cache_mode=force_custom_plan' }),
	'auto_explain of a parameter', qr/Query Text: SELECT id FROM patients WHERE email = \$1/);
# Longer than pg_stat_activity keeps.
hides(bound('SELECT id, ' . join(', ', map { "email AS column_$_" } 1 .. 100) . ' FROM patients WHERE email = :value', env => { PGOPTIONS => '-c auto_explain.log_min_duration=0' }),
	'auto_explain of a long statement', qr/Query Text: SELECT id, email AS column_1.*WHERE email = \$1/);
foreach my $format (qw(json xml yaml))
{
	hides(sql($explain . "SET auto_explain.log_format = $format; SELECT 'CANARY' FROM patients"), "auto_explain, $format", qr/hidden by fieldcrypt\.redact_logs/);
	shows(sql($explain . "SET auto_explain.log_format = $format; SELECT 'CANARY'"), "auto_explain, $format, something else");
}
shows(sql($explain . q{SELECT 'CANARY'}), 'auto_explain of something else');

# Parse trees and statistics.
foreach my $setting (qw(debug_print_parse debug_print_rewritten debug_print_plan))
{
	# A tree shows a string byte by byte.
	my $bytes = join ' ', map { ord } split //, 'Zebra';
	($canary, $log) = hides(sql("SET $setting = on; SELECT 'Zebra CANARY' FROM patients"), $setting, qr/(?:parse tree|plan):/);
	unlike($log->{stderr}, qr/$bytes/, "$setting: bytes");
	($canary, $log) = logged(sql("SET $setting = on; SELECT 'Zebra CANARY'"));
	like($log->{stderr}, qr/$bytes/, "$setting: something else is shown");
}
hides(sql("SET $_ = on; SELECT 'CANARY' FROM patients"), $_, qr/STATISTICS/) foreach qw(log_parser_stats log_planner_stats log_executor_stats);

# Two statements that wait for each other: each is in the log of the other.
($canary, $log) = hides(
	sub {
		my ($canary) = @_;
		my ($one, $two) = (session($node), session($node));
		$one->value("BEGIN; UPDATE patients SET email = 'one $canary' WHERE id = 1");
		$two->value("BEGIN; UPDATE patients SET email = 'two $canary' WHERE id = 2");
		$one->send("UPDATE patients SET email = 'three $canary' WHERE id = 2");
		$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'}) or die;
		my $result = $two->run("UPDATE patients SET email = 'four $canary' WHERE id = 1");
		my $other = $one->run('SELECT 1');
		$_->close foreach $one, $two;
		return { err => $result->{err} . $other->{err} };
	},
	'a deadlock', qr/40P01/);
like($log->{stderr}, qr/Process \d+: UPDATE patients SET email = '\*\*\*' WHERE id = 0/, 'a deadlock: the other statement without its literals');

# Backslashes as escapes, set at any time.
hides(sql(qq{SET standard_conforming_strings = off;\n} . q{SET escape_string_warning = off; SELECT 'a\' CANARY' FROM patients; SELECT 1 / 0, 'a\' CANARY' FROM patients}), 'standard_conforming_strings = off', qr/22012/);
hides(sql(qq{SET standard_conforming_strings = off;\n} . q{SELECT 'x' FROM patients; SET standard_conforming_strings = on;} . qq{\n} . q{SELECT 'a\', E'\' CANARY' FROM patients}), 'on again', qr/\*\*\*/);
hides(sql(qq{SET standard_conforming_strings = off;\n} . q{PREPARE p AS SELECT 'a\' CANARY', id / 0 FROM patients; SET standard_conforming_strings = on; EXECUTE p}), 'prepared before it was changed', qr/22012/);

# The same error in a language that is not English (gettext's LANGUAGE, where the locale is).
SKIP:
{
	local $ENV{LANGUAGE} = 'de';
	configure($node, lc_messages => 'en_US.utf8');
	$node->restart;
	skip 'no translations here', 4 unless run_sql($node, 'SELECT 1 / 0')->{err} =~ /FEHLER/;
	my ($canary, $log, $client) = hides(sql(q{SELECT 'CANARY'::int FROM patients}), 'another language', qr/22P02/);
	note $client->{err};
	note join "\n", grep { /22P02|STATEMENT|ANWEISUNG/ } split /\n/, $log->{stderr};
	hides(sql(q{INSERT INTO patients (id, email) VALUES (7, 'CANARY'), (8, 'CANARY')}), 'another language, DETAIL', qr/23505/);
}
$node->restart;

# off, and all.
configure($node, 'fieldcrypt.redact_logs' => 'off');
gives($node, 'SELECT fieldcrypt_internal.redaction_is_active()', 'f', 'off is not active');
shows(sql(q{SELECT 'CANARY' FROM patients}), 'off: a statement');
shows(sql(q{SELECT id / 0, 'CANARY' FROM patients}), 'off: an error');
shows(bound('SELECT id FROM patients WHERE email = :value'), 'off: a parameter');
configure($node, 'fieldcrypt.redact_logs' => 'all');
gives($node, 'SELECT fieldcrypt_internal.redaction_is_active()', 't', 'all is active');
hides(sql(q{SELECT 'CANARY'}), 'all: any statement', qr/SELECT '\*\*\*'/);
hides(sql(q{SELECT 1 / 0, 'CANARY'}), 'all: any error', qr/22012/);
hides(bound('SELECT :value'), 'all: any parameter', qr/\$1 = '\*\*\*'/);
hides(sql(q{INSERT INTO plain VALUES (5, 'CANARY'), (5, 'CANARY')}), 'all: any row', qr/Key \(id\)=\(\*\*\*\) already exists/);
configure($node, 'fieldcrypt.redact_logs' => 'on');
gives($node, 'SELECT fieldcrypt_internal.redaction_is_active()', 't', 'on is active');
refused($node, 'SET fieldcrypt.redact_logs = off', '55P02', qr/cannot be changed now/, 'no session can switch it off');
value($node, 'CREATE ROLE somebody LOGIN');
refused($node, 'ALTER SYSTEM SET fieldcrypt.redact_logs = off', '42501', 'only a superuser can', user => 'somebody');
refused($node, 'SELECT fieldcrypt_internal.redaction_is_active()', '42501', 'nor ask', user => 'somebody');

# What is made while a session is open is known to it; what is dropped does no harm.
my $session = session($node);
foreach my $sql ('CREATE TABLE later (id int, held fieldcrypt.encrypted)', 'ALTER TABLE plain ADD held fieldcrypt.encrypted', 'CREATE VIEW later_view AS SELECT * FROM later',
	'CREATE FUNCTION later_function(text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO later VALUES (1, fieldcrypt.encrypt_field($1)); END $$')
{
	$session->value("SELECT 1");
	value($node, $sql);
	my ($name) = $sql =~ /(?:TABLE|VIEW|FUNCTION) (\w+)/;
	my $use = $name eq 'later_function' ? q{SELECT later_function('CANARY')} : "SELECT 'CANARY' FROM $name";
	hides(sub { $session->run($use =~ s/CANARY/$_[0]/gr) }, "after another session's $sql", qr/'\*\*\*'/);
}
shows(sub { $session->run("SELECT '$_[0]'") }, 'and other statements stay as they are');
value($node, 'SET fieldcrypt.allow_drop = on; DROP EXTENSION pg_fieldcrypt CASCADE');
hides(sub { $session->run("SELECT '$_[0]' FROM patients") }, 'a session that knew the names goes by them to its end', qr/'\*\*\*'/);
shows(sub { run_sql($node, "SELECT 1; SELECT '$_[0]' FROM patients") }, 'without the extension a table is one like others');
value($node, 'CREATE EXTENSION pg_fieldcrypt');
hides(sub { $session->run("SELECT fieldcrypt.encrypt_field('$_[0]')") }, 'with it, again', qr/'\*\*\*'/);
$session->close;

no_crash($node);
$node->stop;

# A server with another encoding, whose texts are no UTF-8.
{
	my $latin = new_cluster('latin1', conf => everything_logged(), locale => [ '--locale=C', '--encoding=LATIN1' ]);
	value($latin, $schema);
	$node = $latin;
	hides(sql("SET client_encoding = 'LATIN1'; SELECT '\xe9CANARY\xff', fieldcrypt.encrypt_field('\xe9CANARY') FROM patients WHERE email = 'CANARY\xdf'"), 'LATIN1', qr/'\*\*\*'/);
	hides(sql("SET client_encoding = 'SJIS'; SELECT 'CANARY' FROM patients WHERE email = '\x83\x5c' OR email = 'CANARY'"), 'a client that speaks SJIS', qr/SJIS|STATEMENT|statement/);
	no_crash($latin);
	$latin->stop;
}

# Without preload: the setting is there and does nothing, and the function says so.
{
	my $other = new_cluster('not_preloaded');
	gives($other, 'SELECT fieldcrypt_internal.redaction_is_active(); SHOW fieldcrypt.redact_logs', "f\non", 'without preload it is on, but not active');
	no_crash($other);
	$other->stop;
}
done_testing();
