# The main job with everything logged that Postgres can log of it: no plaintext, no key, no crash.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Statements are the user's to log; here only what the server says by itself.
my $node = new_cluster('primary', keys => [ key_text(0xab), key_text(0xcd) ], conf => <<'CONF');
log_statement = none
log_min_messages = debug5
log_min_error_statement = debug5
log_error_verbosity = verbose
log_parameter_max_length_on_error = -1
log_lock_waits = on
log_parser_stats = on
log_planner_stats = on
log_executor_stats = on
CONF
my $folder = PostgreSQL::Test::Utils::tempdir();
append_to_file("$folder/plain", "900\tCANARY in a file\n");

# The plaintext is read from a file, so that no statement has it.
append_to_file("$folder/one_line", "CANARY of the log\n");
value($node, <<"SQL");
CREATE TABLE plain (value text);
COPY plain FROM '$folder/one_line';
CREATE TABLE t (id int PRIMARY KEY, value fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('t');
SQL
my $session = session($node);
my $messages = '';
foreach my $case (
	[ q{SET client_min_messages = debug5} ],
	[ q{INSERT INTO t SELECT i, fieldcrypt.encrypt_field(value, 't') FROM plain, generate_series(1, 5) AS i} ],
	[ q{SELECT count(fieldcrypt.decrypt_field(value, 't')) FROM t} ],
	[ q{CALL fieldcrypt.rotate_keys(force => true)} ],
	[ q{UPDATE t SET value = fieldcrypt.reencrypt_field(value, 't')} ],
	[ q{SELECT fieldcrypt.decrypt_field(value, 'wrong') FROM t}, 'KF002' ],
	[ q{SELECT fieldcrypt.decrypt_field_as(value, NULL::int, 't') FROM t}, '22018' ],
	[ q{SELECT fieldcrypt.decrypt_field_as(value, NULL::date, 't') FROM t}, '22018' ],
	[ q{SELECT fieldcrypt.decrypt_field_as(value, NULL::jsonb, 't') FROM t}, '22018' ],
	[ q{SELECT fieldcrypt.decrypt_field_jsonb(value, 't') FROM t}, '22018' ],
	[ q{INSERT INTO t SELECT 100, value::fieldcrypt.encrypted FROM plain}, 'KF001' ],
	[ q{SELECT fieldcrypt.encrypt_field(value, tenant => repeat(value, 1000)) FROM plain}, '22023' ],
	[ qq{COPY t FROM '$folder/plain'}, 'KF001' ],
	[ q{INSERT INTO t SELECT 1, fieldcrypt.encrypt_field(value, 't') FROM plain}, '23505' ],
	[ q{BEGIN; INSERT INTO t SELECT 50, fieldcrypt.encrypt_field(value, tenant => 'new') FROM plain; ROLLBACK} ],
	[ q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field(value, tenant => 'new') FROM plain; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END $$} ],
	[ q{DELETE FROM t WHERE id = 1} ],
	[ q{SELECT pg_reload_conf()} ],
	[ q{SELECT count(fieldcrypt.decrypt_field(value, 't')) FROM t} ],
	[ q{SELECT count(*) FROM fieldcrypt.master_key_status()} ],
	[ q{ANALYZE t} ],
	[ q{TRUNCATE t} ])
{
	my ($sql, $sqlstate) = @$case;
	my $result = $session->run($sql);
	is("@{ $result->{sqlstates} }", $sqlstate // '', $sql);
	# A client sees the context of the file that it had copied itself.
	$messages .= "$result->{out}\n$result->{err}\n" unless $sql =~ /^COPY/;
}
$session->close;
$node->stop;

my $log = slurp_file($node->logfile);
like($log, qr/DEBUG:  00000: CommitTransaction/, 'the log is at debug5');
foreach my $secret ('CANARY', unpack('H*', 'CANARY'), key_text(0xab), key_text(0xcd), 'abababab', 'cdcdcdcd')
{
	my ($in_log) = $log =~ /^(.*\Q$secret\E.*)$/mi;
	is($in_log, undef, "not in the log: $secret");
	my ($in_messages) = $messages =~ /^(.*\Q$secret\E.*)$/mi;
	is($in_messages, undef, "not in what the client sees: $secret");
}
no_crash($node);

# With preload every line passes the library, at the start and the exit of each process, too.
my $preloaded = new_cluster('preloaded', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nlog_min_messages = debug5\n");
my $busy = session($preloaded);
$busy->gives(q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('CANARY'))}, 'CANARY', 'preloaded: a session at debug5');
my $backend = $busy->server_process;
$busy->close;
ok($preloaded->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend"), 'preloaded: it ends');
$preloaded->stop('fast');
ok(1, 'preloaded: the server stops');
my $preloaded_log = slurp_file($preloaded->logfile);
like($preloaded_log, qr/DEBUG:  shmem_exit\(-1\)/, 'preloaded: the log has the last lines of processes');
unlike($preloaded_log, qr/panicked|AccessError|hidden by fieldcrypt\.redact_logs/, 'preloaded: nothing has failed in them');
unlike($preloaded_log, qr/CANARY/, 'preloaded: and no plaintext');
done_testing();
