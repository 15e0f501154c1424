# fieldcrypt.master_key, the key as a setting: only where the library is preloaded, and nobody can
# read it there. And nobody but the configuration file sets what the keys come from.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $canary = 'c4a4a917' x 8;
my $second_canary = 'd5b5ba28' x 8;
my $value = "fieldcrypt.master_key = '$canary'";

sub unleaked
{
	my ($text, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return unlike($text, qr/$canary|$second_canary/i, $name);
}

# Without preload.
my $node = new_cluster('not_preloaded');
value($node, <<SQL);
CREATE TABLE kept (value fieldcrypt.encrypted);
INSERT INTO kept SELECT fieldcrypt.encrypt_field('kept');
CREATE DATABASE spoilt;
CREATE ROLE app LOGIN;
CREATE ROLE reader LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
GRANT SELECT ON kept TO app;
SQL
value($node, q{CREATE EXTENSION pg_fieldcrypt; SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt')}, db => 'spoilt');

my $read_kept = 'SELECT fieldcrypt.decrypt_field(value) FROM kept';
my $encrypt = q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))};
my $unprotected = qr/set without pg_fieldcrypt in shared_preload_libraries: refused, since every role can read it.*HINT:.*treat this master key as disclosed/s;

# Where it is put, and how it is taken away again; before a session has loaded the library.
foreach my $case (
	[ 'the configuration file', undef ],
	[ 'ALTER DATABASE', "ALTER DATABASE spoilt SET $value", 'ALTER DATABASE spoilt RESET ALL' ],
	[ 'ALTER ROLE', "ALTER ROLE app SET $value", 'ALTER ROLE app RESET ALL' ],
	[ 'ALTER ROLE IN DATABASE', "ALTER ROLE app IN DATABASE spoilt SET $value", 'ALTER ROLE app IN DATABASE spoilt RESET ALL' ],
	[ 'ALTER ROLE ALL', "ALTER ROLE ALL SET $value", 'ALTER ROLE ALL RESET ALL' ],
	[ 'the client\'s options', undef, undef, { PGOPTIONS => "-c fieldcrypt.master_key=$canary" } ],
	[ 'SET', "", undef, {}, "SET $value;" ],
	[ 'set_config', "", undef, {}, "SELECT set_config('fieldcrypt.master_key', '$canary', false) IS NULL;" ],
	[ 'SET to a key that is none', "", undef, {}, q{SET fieldcrypt.master_key = 'x';} ])
{
	my ($name, $put, $away, $env, $first) = @$case;
	my %where = (db => 'spoilt', user => 'app', env => $env // {});
	foreach my $source ('file', 'no other source')
	{
		my %settings;
		$settings{'fieldcrypt.master_key_file'} = '' if $source ne 'file';
		$settings{'fieldcrypt.master_key'} = $canary if $name eq 'the configuration file';
		configure($node, %settings);
		value($node, $put) if $put;
		my $result = run_sql($node, ($first // '') . "$encrypt; $encrypt;", %where);
		is("@{ $result->{sqlstates} }", 'KF009 KF009', "without preload, by $name, beside $source: refused");
		like($result->{err}, $unprotected, "without preload, by $name, beside $source: the message says why");
		unleaked($result->{err}, "without preload, by $name, beside $source: not in the message");
		value($node, $away) if $away;
	}
}
configure($node);
gives($node, $encrypt, 'x', 'without preload: once it is taken away, the file serves', db => 'spoilt', user => 'app');
{
	my $session = session($node);
	$session->gives($read_kept, 'kept', 'a session that has loaded the library');
	$session->refused("SET $value", '42602', qr/invalid configuration parameter name/, 'in it the setting can\'t be made');
	$session->refused('SET fieldcrypt.no_such_setting = 1', '42602', 'nor can one that does not exist');
	$session->refused("ALTER SYSTEM SET $value", server_version() < 17 ? '42704' : '42602', 'nor by ALTER SYSTEM');
	$session->close;
}

# What a role can put in its own session before the library is loaded does not choose the key, and
# runs nothing.
my $proof = $node->basedir . '/proof';
foreach my $case (
	[ 'the client\'s options', sub { +{ PGOPTIONS => "-c $_[0]=$_[1]" } } ],
	[ 'ALTER ROLE', undef, 'ALTER ROLE app SET %s = %s' ],
	[ 'ALTER DATABASE', undef, 'ALTER DATABASE postgres SET %s = %s' ],
	[ 'SET', undef, undef, 'SET %s = %s' ])
{
	my ($name, $env, $alter, $set) = @$case;
	my $stolen = write_key_file($node->basedir . '/stolen.key', key_text(9));
	foreach my $attack (
		[ 'fieldcrypt.master_key_command', "touch\${IFS}$proof;echo\${IFS}" . key_text(9) ],
		[ 'fieldcrypt.master_key_file', $stolen ],
		[ 'fieldcrypt.master_key_command_timeout', '100' ],
		[ 'fieldcrypt.key_cache_size', '1' ])
	{
		my ($setting, $text) = @$attack;
		value($node, 'ALTER ROLE app RESET ALL; ALTER DATABASE postgres RESET ALL; ALTER DATABASE postgres OWNER TO app');
		my $before = $alter ? sprintf($alter, $setting, "'$text'") : '';
		if ($before)
		{
			# In sessions that have not loaded the library.
			refused($node, $before, '42501', "a role can't store $setting by $name", user => 'app');
			value($node, $before);
		}
		my $result = run_sql($node, ($set ? sprintf($set, $setting, "'$text'") . ';' : '') . $read_kept,
			user => 'app', env => $env ? $env->($setting, $text) : {});
		# Some leave the session without a key (KF008), since they stand in front of the file's: that is its own harm.
		like("$result->{out}@{ $result->{sqlstates} }", qr/^kept$|^KF008$/, "a role's $setting by $name is not taken");
		value($node, "ALTER ROLE app RESET ALL; ALTER DATABASE postgres RESET ALL; ALTER DATABASE postgres OWNER TO CURRENT_USER");
	}
}
ok(!-e $proof, 'no command was run');
configure($node, 'fieldcrypt.master_key_file' => '', 'fieldcrypt.master_key_command' => "touch\${IFS}$proof;echo\${IFS}" . key_text(1));
gives($node, $read_kept, 'kept', 'from the configuration file the command is run');
ok(-e $proof, 'and leaves its proof');
configure($node);

# A plain role and the settings, once the library is loaded.
{
	my $session = session($node, user => 'app');
	$session->gives($read_kept, 'kept', 'a plain role decrypts');
	foreach my $setting (qw(master_key_file master_key_command))
	{
		$session->refused("SET fieldcrypt.$setting = '/tmp/x'", '55P02', "a plain role can't SET $setting");
		$session->refused("SELECT set_config('fieldcrypt.$setting', '/tmp/x', true)", '55P02', "nor by set_config: $setting");
		$session->refused("SHOW fieldcrypt.$setting", '42501', "a plain role can't SHOW $setting");
		$session->refused("SELECT current_setting('fieldcrypt.$setting')", '42501', "nor by current_setting: $setting");
		$session->gives("SELECT count(*) FROM pg_settings WHERE name = 'fieldcrypt.$setting'", '0', "nor in pg_settings: $setting");
		$session->refused("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET fieldcrypt.$setting = 'x' AS 'SELECT 1'",
			'55P02', "nor for a function: $setting");
		$session->refused("ALTER ROLE app SET fieldcrypt.$setting = 'x'", '55P02', "nor for itself: $setting");
	}
	$session->refused('SET fieldcrypt.master_key_command_timeout = 100', '55P02', 'a plain role can\'t SET the time limit');
	$session->refused('SET fieldcrypt.key_cache_size = 1', '42501', 'a plain role can\'t SET the cache size');
	$session->gives(q{SET fieldcrypt.tenant = 'mine'; SHOW fieldcrypt.tenant}, 'mine', 'a plain role can SET its tenant');
	$session->close;
}
unleaked(value($node, 'SELECT row_to_json(s) FROM fieldcrypt.master_key_status() AS s'), 'the status shows no key');
$node->stop;

# Preloaded.
$node = new_cluster('preloaded', start => 0, conf => <<CONF);
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.master_key_file = ''
log_statement = none
log_min_messages = debug1
CONF
configure_key($node, "$value\n");
$node->start;
value($node, <<SQL);
CREATE EXTENSION pg_fieldcrypt;
CREATE TABLE kept (value fieldcrypt.encrypted);
INSERT INTO kept SELECT fieldcrypt.encrypt_field('kept') FROM generate_series(1, 10);
CREATE ROLE app LOGIN;
CREATE ROLE monitor LOGIN;
GRANT pg_monitor TO monitor;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt', 'manage');
GRANT SELECT ON kept TO app;
SQL
$read_kept = 'SELECT DISTINCT fieldcrypt.decrypt_field(value) FROM kept';

# An include file of its own, which pg_ctl reload reads again.
sub configure_key
{
	my ($node, $content) = @_;
	my $path = $node->data_dir . '/key.conf';
	$node->append_conf('postgresql.conf', "include 'key.conf'") if !-e $path;
	open my $conf, '>', $path or die $!;
	print $conf $content;
	close $conf or die $!;
	return;
}

gives($node, $read_kept, 'kept', 'preloaded: the setting is the key');
gives($node, 'SELECT DISTINCT source FROM fieldcrypt.master_key_status()', 'fieldcrypt.master_key', 'preloaded: the status names the source');
gives($node, force_parallel() . "$read_kept", 'kept', 'preloaded: parallel workers have it too', user => 'app');

# Nobody reads it.
my @looks = (
	'SHOW fieldcrypt.master_key',
	q{SELECT current_setting('fieldcrypt.master_key')},
	q{SELECT current_setting('fieldcrypt.master_key', true)},
	q{SELECT set_config('fieldcrypt.master_key', current_setting('fieldcrypt.master_key'), false)},
	'SHOW ALL',
	'SELECT s::text FROM pg_settings AS s',
	'SELECT s::text FROM pg_show_all_settings() AS s',
	'SELECT s::text FROM pg_catalog.pg_db_role_setting AS s',
	'SELECT row_to_json(s) FROM fieldcrypt.master_key_status() AS s',
	'SELECT s::text FROM pg_stat_activity AS s',
	q{SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND prokind = 'f'});
foreach my $role ([ 'a superuser', undef ], [ 'pg_monitor', 'monitor' ], [ 'a plain role', 'app' ])
{
	my ($name, $user) = @$role;
	foreach my $look (@looks)
	{
		my $result = run_sql($node, $look, $user ? (user => $user) : ());
		unleaked("$result->{out}\n$result->{err}", "preloaded: $name does not see it: $look");
	}
	my $plain = $name eq 'a plain role';
	foreach my $look (@looks[ 0, 1 ])
	{
		my %where = $user ? (user => $user) : ();
		$plain ? refused($node, $look, '42501', "preloaded: $name: $look", %where)
		  : gives($node, $look, '********', "preloaded: $name sees a mask: $look", %where);
	}
	gives($node, q{SELECT count(*) FROM pg_settings WHERE name = 'fieldcrypt.master_key'}, '0',
		"preloaded: $name: not listed", $user ? (user => $user) : ());
}
foreach my $look ('SELECT f::text FROM pg_file_settings AS f', 'SELECT f::text FROM pg_show_all_file_settings() AS f',
	q{SELECT pg_read_file('key.conf')})
{
	refused($node, $look, '42501', "preloaded: pg_monitor does not read the file: $look", user => 'monitor');
}

# Nobody puts it where backups copy it, whoever they are.
foreach my $case (
	[ "ALTER SYSTEM SET $value", '55P02' ],
	[ 'ALTER SYSTEM SET fieldcrypt.master_key_command = \'true\'', '55P02' ],
	[ "ALTER DATABASE postgres SET $value", '55P02' ],
	[ "ALTER ROLE app SET $value", '55P02' ],
	[ "ALTER ROLE ALL SET $value", '55P02' ],
	[ "ALTER ROLE app IN DATABASE postgres SET $value", '55P02' ],
	[ "SET $value", '55P02' ],
	[ "BEGIN; SET LOCAL $value", '55P02' ],
	[ "SELECT set_config('fieldcrypt.master_key', '$canary', true)", '55P02' ],
	[ "ALTER FUNCTION fieldcrypt.create_key(text) SET $value", '55P02' ],
	[ 'RESET fieldcrypt.master_key', '55P02' ])
{
	my ($sql, $sqlstate) = @$case;
	(my $name = $sql) =~ s/$canary/KEY/;
	my ($outcome) = $sql =~ /^BEGIN|SYSTEM/ ? (run_sql($node, $sql)->{sqlstates}[0] // '00000') : outcomes($node, [$sql]);
	is(substr($outcome, 0, 5), $sqlstate, "preloaded: refused: $name");
	unleaked($outcome, "preloaded: not in the message: $name");
}
{
	my $result = run_sql($node, $read_kept, env => { PGOPTIONS => "-c fieldcrypt.master_key=$second_canary" });
	isnt($result->{code}, 0, 'preloaded: the client\'s options don\'t set it');
	unleaked($result->{err}, 'preloaded: nor is it in the message');
}
my $auto = slurp_file($node->data_dir . '/postgresql.auto.conf');
unleaked($auto, 'preloaded: not in postgresql.auto.conf');
value($node, 'CHECKPOINT');
my $found = files_with([ $canary, $second_canary ], $node->data_dir);
is_deeply([ sort map { @$_ } values %$found ], [ $node->data_dir . '/key.conf' ],
	'preloaded: in the data directory it stands in the configuration file only');

# Reload. The statements above that name the key are in the log, as errors; from here on nothing is.
my $offset = -s $node->logfile;
my $serial = 0;
foreach my $case (
	[ 'unchanged', "$value\n" ],
	[ 'changed', "fieldcrypt.master_key = '$second_canary'\n" ],
	[ 'set twice', "$value\nfieldcrypt.master_key = '$second_canary'\n" ],
	[ 'commented out', "# $value\n" ],
	[ 'emptied', "fieldcrypt.master_key = ''\n" ],
	[ 'a syntax error beside it', "$value\nwork_mem = 'nonsense'\nshared_buffers = 1GB\n" ],
	[ 'unchanged again', "$value\n" ])
{
	my ($name, $content) = @$case;
	my $before = value($node, 'SELECT pg_conf_load_time()');
	my $logged = -s $node->logfile;
	configure_key($node, $content);
	$node->reload;
	# A file with an error is not taken; the log says so.
	foreach (1 .. 100)
	{
		last if value($node, 'SELECT pg_conf_load_time()') ne $before && slurp_file($node->logfile, $logged) =~ /received SIGHUP/;
		last if slurp_file($node->logfile, $logged) =~ /contains errors/;
		sleep 0.05;
	}
	gives($node, $read_kept, 'kept', "reload: $name: the key stays until a restart");
}
like(slurp_file($node->logfile, $offset), qr/parameter "fieldcrypt\.master_key" cannot be changed without restarting/,
	'reload: the log does speak of the setting');
unleaked(slurp_file($node->logfile, $offset), 'reload: no log line holds it');

# Restart: a changed key is a wrong key; what is no key is refused at first use.
$offset = -s $node->logfile;
foreach my $case (
	[ 'another key', $second_canary, 'KF010', qr/wrapped by master key/ ],
	[ 'too short', substr($canary, 2), 'KF009', qr/fieldcrypt\.master_key gives 31 bytes in line 1/ ],
	[ 'a passphrase', 'correct horse battery staple', 'KF009', qr/fieldcrypt\.master_key gives neither hex digits nor base64/ ],
	[ 'none', '', 'KF008', qr/no master key is configured/ ])
{
	my ($name, $text, $sqlstate, $like) = @$case;
	configure_key($node, "fieldcrypt.master_key = '$text'\n");
	$node->restart;
	refused($node, $read_kept, $sqlstate, $like, "restart: $name");
}
configure_key($node, "$value\nfieldcrypt.master_key_command = 'echo $canary'\n");
$node->restart;
refused($node, $read_kept, 'KF009', qr/both fieldcrypt\.master_key_command and fieldcrypt\.master_key are set/, 'restart: two sources');
configure_key($node, "$value\n");
$node->restart;
gives($node, $read_kept, 'kept', 'restart: the right key');
my $log = slurp_file($node->logfile, $offset);
$log =~ s/parameter "fieldcrypt\.master_key_command" changed to.*//g;
unleaked($log, 'restart: no log line holds it');
ok(slurp_file($node->logfile) !~ /PANIC|XX000|terminated by signal/, 'no internal error');
$node->stop;
done_testing();
