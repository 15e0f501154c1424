# Health of the server: where the master key lies, who can read the server's files, what gets into the log and
# who sees statements; each from ok to a finding and back, by a real cause.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "log_statement = none\nfieldcrypt.redact_logs = off\n");
my $folder = $node->basedir;
mkdir "$folder/keys", 0700 or die;
my $file = write_key_file("$folder/keys/master.key", key_text(1));
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$file'");
$node->reload;

# A test: a check has this status, and a detail and hint like these.
sub is_health
{
	my ($check, $status, $like, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $row = value($node, qq{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.health() WHERE "check" = '$check'}, %options);
	return like($row, qr/^$status: .*$like/, "$check: $name");
}

# Preload.
is_health('preload', 'warning', 'HINT Add pg_fieldcrypt to shared_preload_libraries', 'without');
gives($node, q{SELECT count(*) FROM fieldcrypt.health() WHERE detail LIKE '%check failed%'}, '0', 'without preload no check fails');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_fieldcrypt'");
is_health('preload', 'warning', '', 'configured, but not restarted');
$node->restart;
is_health('preload', 'ok', '', 'restarted');

# The key file.
is_health('master_key_source', 'ok', q{nobody but root and the server's user can reach what fieldcrypt\.master_key_file names}, 'a file of 0600 in a directory of 0700');
# The path of the README, made as it says there, but by the user of this test.
{
	my ($steps) = slurp_file("$ENV{TESTDIR}/README.md") =~ /^(install -d .*?> \S+\n)/ms or die 'the README makes no key file';
	my $folder = PostgreSQL::Test::Utils::tempdir();
	(my $script = $steps) =~ s{-o postgres -g postgres }{}g;
	$script =~ s{/etc/}{$folder/}g;
	my ($path) = $script =~ /> (\S+)$/m;
	is(system('bash', '-euc', $script), 0, 'the README makes a key file');
	configure($node, 'fieldcrypt.master_key_file' => $path);
	is_health('master_key_source', 'ok', '', 'the key file of the README');
	is_health('master_key', 'ok', '', 'the key file of the README loads');
	configure($node);
}
foreach my $mode (0755, 0711, 0704, 0701)
{
	chmod $mode, "$folder/keys" or die;
	is_health('master_key_source', 'warning', 'in a directory that every user of the machine can look into HINT Move it', sprintf('a directory of %o', $mode));
}
chmod 0750, "$folder/keys" or die;
is_health('master_key_source', 'ok', '', q{a directory that the server's own group may read});
chmod 0770, "$folder/keys" or die;
is_health('master_key_source', 'ok', '', q{a directory that the server's own group may write});
chmod 0702, "$folder/keys" or die;
is_health('master_key_source', 'critical', 'can be written by others: they can take the file away', 'a directory that others may write');
chmod 0700, "$folder/keys" or die;
is_health('master_key_source', 'ok', '', 'closed again');
# Behind a symbolic link.
mkdir "$folder/open", 0755 or die;
chmod 0755, "$folder/open";
symlink $file, "$folder/open/link" or die;
configure($node, 'fieldcrypt.master_key_file' => "$folder/open/link");
is_health('master_key_source', 'warning', 'every user of the machine', 'a link from an open directory');
rename $file, "$folder/open/master.key" or die;
symlink "$folder/open/master.key", "$folder/keys/link" or die;
configure($node, 'fieldcrypt.master_key_file' => "$folder/keys/link");
is_health('master_key_source', 'warning', 'every user of the machine', 'a link into an open directory');
rename "$folder/open/master.key", $file or die;
mkdir "$folder/open/closed", 0700 or die;
chmod 0777, "$folder/open";
rename $file, "$folder/open/closed/master.key" or die;
configure($node, 'fieldcrypt.master_key_file' => "$folder/open/closed/master.key");
is_health('master_key', 'ok', '', 'a directory above that others may write: the key loads');
is_health('master_key_source', 'critical', 'HINT Take the rights of group and others', 'a directory above that others may write');
chmod 01777, "$folder/open";
is_health('master_key_source', 'ok', '', 'a directory above as /tmp is, with the sticky bit');
chmod 0755, "$folder/open";
is_health('master_key_source', 'ok', '', 'a directory above that others may look into');
rename "$folder/open/closed/master.key", $file or die;

# The command.
my $script = "$folder/keys/key.sh";
append_to_file($script, "#!/bin/sh\ncat $file\n");
chmod 0700, $script;
configure($node, 'fieldcrypt.master_key_file' => '', 'fieldcrypt.master_key_command' => "KEY=1 exec '$script' --now");
is_health('master_key', 'ok', 'fieldcrypt.master_key_command', 'a command');
is_health('master_key_source', 'ok', 'fieldcrypt.master_key_command', 'a command that only the server can change');
chmod 0755, $script;
is_health('master_key_source', 'ok', '', 'a command that others can read');
chmod 0702, $script;
is_health('master_key_source', 'critical', 'others than root and the server.s user can change', 'a command that others can write');
chmod 0700, $script;
chmod 0703, "$folder/keys";
is_health('master_key_source', 'critical', 'others than root and the server.s user can change', 'a command in a directory that others can write');
chmod 0700, "$folder/keys";
append_to_file("$folder/keys/token", 'secret');
chmod 0644, "$folder/keys/token";
configure($node, 'fieldcrypt.master_key_file' => '', 'fieldcrypt.master_key_command' => "$script < $folder/keys/token");
is_health('master_key_source', 'warning', 'reads a file that every user of the machine can read', 'a command that reads an open file');
chmod 0600, "$folder/keys/token";
is_health('master_key_source', 'ok', '', 'a command that reads a closed file');

# Two sources, and none.
configure($node, 'fieldcrypt.master_key_command' => $script);
is_health('master_key', 'warning', "can't be loaded: both .* HINT", 'two sources, and no keys yet');
configure($node, 'fieldcrypt.master_key_file' => '');
is_health('master_key', 'warning', "can't be loaded: .* HINT Set one of", 'no source');
is_health('master_key_source', 'ok', 'no source', 'no source');
configure($node);

# The setting.
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''\nfieldcrypt.master_key = '" . key_text(1) . "'");
$node->restart;
is_health('master_key', 'ok', 'fieldcrypt.master_key', 'the setting itself');
is_health('master_key_source', 'warning', q{stands in the server's configuration.* HINT Write it to a file}, 'the setting itself');
unlike(value($node, 'SELECT string_agg(h::text, \'\') FROM fieldcrypt.health() AS h'), qr/@{[ key_text(1) ]}/, 'the key is in no detail');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is_health('master_key_source', 'critical', 'every role can read it', 'the setting, without preload');
is_health('master_key', 'warning', 'refused', 'the setting, without preload');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.master_key_file = '$file'\nfieldcrypt.master_key = ''");
$node->restart;
is_health('master_key_source', 'ok', '', 'the file again');

# Roles that read the server's files.
is_health('server_file_roles', 'ok', 'only superusers', 'nobody');
value($node, q{CREATE ROLE "o'dd""role" LOGIN; CREATE ROLE readers; GRANT pg_read_server_files TO readers});
is_health('server_file_roles', 'warning', 'by role "readers" HINT REVOKE', 'a role with pg_read_server_files');
value($node, q{GRANT readers TO "o'dd""role"; ALTER ROLE "o'dd""role" NOINHERIT});
is_health('server_file_roles', 'warning', q{by 2 roles: "o'dd\\\\"role", "readers"}, 'a member of it, though without its rights at first');
value($node, 'REVOKE pg_read_server_files FROM readers; GRANT pg_execute_server_program TO readers');
is_health('server_file_roles', 'warning', '2 roles', 'those who can run programs');
value($node, 'REVOKE pg_execute_server_program FROM readers');
is_health('server_file_roles', 'ok', '', 'revoked');

# What gets into the log.
is_health('statement_logging', 'ok', 'those that fail are', 'the defaults');
foreach my $case (
	[ log_statement => 'all' ], [ log_statement => 'mod' ],
	[ log_min_duration_statement => '0' ], [ log_min_duration_statement => '250ms', qr/log_min_duration_statement = 250/ ], [ log_min_duration_sample => '1s' ], [ log_transaction_sample_rate => '0.01' ],
	[ log_parameter_max_length_on_error => '-1' ], [ log_parameter_max_length_on_error => '1kB' ],
	[ debug_print_plan => 'on' ], [ debug_print_parse => '1' ], [ 'auto_explain.log_min_duration' => '0' ], [ 'auto_explain.log_min_duration' => '5s' ], [ 'pgaudit.log' => 'write, function' ])
{
	my ($name, $value) = @$case;
	configure($node, $name => $value);
	is_health('statement_logging', 'warning', $case->[2] // qr/(?:literals|parameters): \Q$name\E = /, "$name = $value");
}
foreach my $case ([ log_statement => 'ddl' ], [ log_statement => 'none' ], [ log_min_duration_statement => '-1' ], [ log_transaction_sample_rate => '0.0' ], [ log_parameter_max_length_on_error => '0' ],
	[ log_parameter_max_length => '-1' ], [ debug_print_plan => 'off' ], [ 'auto_explain.log_min_duration' => '-1' ], [ 'pgaudit.log' => 'none' ])
{
	my ($name, $value) = @$case;
	configure($node, $name => $value);
	is_health('statement_logging', 'ok', '', "$name = $value");
}
configure($node);
value($node, q{CREATE ROLE app LOGIN; ALTER ROLE app SET log_statement = 'all'});
is_health('statement_logging', 'warning', 'log_statement = all for role "app"', 'for one role');
value($node, q{ALTER ROLE app RESET ALL; ALTER DATABASE postgres SET log_min_duration_statement = '1min'});
is_health('statement_logging', 'warning', 'log_min_duration_statement = 1min in this database', 'for this database');
create_database($node, 'other');
is_health('statement_logging', 'ok', '', 'for this database, seen from another one', db => 'other');
value($node, q{ALTER DATABASE postgres RESET ALL; ALTER ROLE app IN DATABASE other SET log_statement = 'mod'});
is_health('statement_logging', 'ok', '', 'for a role in another database');
is_health('statement_logging', 'warning', 'log_statement = mod for role "app" in this database', 'for a role in another database, seen from there', db => 'other');
value($node, 'ALTER ROLE app IN DATABASE other RESET ALL');
# A session that was given another value does not hide the server's.
configure($node, log_statement => 'all');
value($node, "CREATE ROLE monitor LOGIN; SELECT fieldcrypt.grant_access('monitor', 'audit'); ALTER ROLE monitor SET log_statement = 'none'");
is_health('statement_logging', 'warning', 'log_statement = all', 'for the server, but not for the role that looks', user => 'monitor');
is_health('statement_logging', 'warning', 'literals and parameters', 'parameters, too');
configure($node, log_statement => 'all', log_parameter_max_length => '0');
is_health('statement_logging', 'warning', 'as literals: log', 'without parameters');
configure($node, log_statement => 'all', 'fieldcrypt.redact_logs' => $_), is_health('statement_logging', 'ok', 'are redacted in the server log', "redacted: $_") foreach 'on', 'all';
configure($node, log_statement => 'all', 'fieldcrypt.health_accepted' => 'key_age , statement_logging');
is_health('statement_logging', 'ok', 'accepted by fieldcrypt\.health_accepted: plaintext values get into the server log', 'a warning that is accepted');
configure($node);
is_health('statement_logging', 'ok', 'are not logged', 'taken back');

# Who sees statements.
is_health('statement_visibility', 'ok', 'superusers only', 'nobody');
value($node, 'GRANT pg_monitor TO monitor');
is_health('statement_visibility', 'warning', 'role "monitor" HINT Pass values as parameters', 'a member of pg_monitor');
configure($node, track_activities => 'off');
is_health('statement_visibility', 'ok', 'track_activities is off', 'without track_activities');
value($node, 'ALTER ROLE app SET track_activities = on');
is_health('statement_visibility', 'warning', 'role "monitor"', 'but for one role');
value($node, 'ALTER ROLE app RESET ALL');
configure($node);
is_health('statement_visibility', 'warning', '', 'with it');
value($node, 'REVOKE pg_monitor FROM monitor');
is_health('statement_visibility', 'ok', '', 'revoked');

# Critical findings can't be accepted.
chmod 0702, "$folder/keys" or die;
configure($node, 'fieldcrypt.health_accepted' => 'master_key_source');
is_health('master_key_source', 'critical', 'can be written by others', 'a critical finding is not accepted');
chmod 0700, "$folder/keys" or die;

# Settings: the administrator's, who is told what is wrong.
foreach my $bad ('7-19', '07:00', '07:00-07:00', '24:00-08:00', '07:60-19:00', 'Mon 7:00-19:00', 'Mon-Fry 07:00-19:00', 'Mon- 07:00-19:00', '07:00-19:00 Europe/Berlin x', '07:00-25:00')
{
	refused($node, "ALTER SYSTEM SET fieldcrypt.health_hours = '$bad'", '22023', "health_hours = $bad");
}
foreach my $good ('07:00-19:00', 'mon-FRI 07:00-19:00', 'Fri-Mon,Wed 22:00-06:00 Europe/Berlin', '00:00-24:00', '')
{
	gives($node, "ALTER SYSTEM SET fieldcrypt.health_hours = '$good'", '', "health_hours = $good");
}
value($node, 'ALTER SYSTEM RESET ALL');
refused($node, q{ALTER SYSTEM SET fieldcrypt.alert_channel = '} . 'c' x 64 . q{'}, '22023', 'a channel of 64 bytes');
refused($node, "SET fieldcrypt.$_", '55P02', qr/cannot be changed now/, "not in a session: $_") foreach 'health_failed_decrypts = 1000000', q{health_accepted = 'master_key'}, q{alert_channel = ''};

no_crash($node);
$node->stop;
done_testing();
