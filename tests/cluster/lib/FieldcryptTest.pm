# What the cluster tests share: clusters with the extension, statements with their SQLSTATEs,
# sessions that stay open.
#
#   my $node = new_cluster('primary');                          # started, extension in "postgres"
#   is(value($node, 'SELECT 1'), '1', 'name');                  # dies if the statement fails
#   gives($node, 'SELECT 1', '1', 'name');                      # a test
#   refused($node, 'SELECT …', 'KF013', qr/standby/, 'name');   # a test: this SQLSTATE, this message
#   my $session = session($node, db => 'app', user => 'bob');
#   $session->gives('SELECT 1', '1', 'name'); $session->refused('…', '22004', 'name');
#
# Options of all of them: db => 'postgres', user => the superuser, env => {}.
package FieldcryptTest;

use strict;
use warnings;

use Digest::SHA ();
use Exporter 'import';
use File::Find ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

our @EXPORT = qw(
  past_the_guard rename_tenant new_cluster key_text write_key_file use_key_file create_database
  run_sql value gives refused sqlstates session outcomes bind
  configure files_with hkdf processes
  server_version force_parallel needs_library needs_program is_kept
  dump_database restore_database contents same_contents no_crash endings crash eventually postmaster
  tool tool_with_input write_file
);

# A master key in hex, told apart by its number. Never random: a failure must repeat.
sub key_text
{
	my ($number) = @_;
	return sprintf('%02x', $number) x 32;
}

# Writes a file of master keys, one a line, as the server demands it: outside the data directory, 0600.
sub write_key_file
{
	my ($path, @keys) = @_;
	unlink "$path.new";
	my $mask = umask 0077;
	open my $file, '>', "$path.new" or die "can't write $path: $!";
	print $file "$_\n" foreach @keys;
	close $file or die "can't write $path: $!";
	umask $mask;
	# At once, for a session that reads it just now.
	rename "$path.new", $path or die "can't write $path: $!";
	return $path;
}

# Makes a cluster. Options: keys => [texts], conf => settings to append, init => {arguments of
# PostgreSQL::Test::Cluster::init}, locale => initdb's arguments, start => 1, extension => 1.
# The key file is $node->basedir/master.key.
sub new_cluster
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $locale = $options{locale} // [ '--locale=C.UTF-8', '--encoding=UTF8' ];
	$node->init(extra => $locale, %{ $options{init} // {} });
	use_key_file($node, @{ $options{keys} // [ key_text(1) ] });
	# Who may do what is recorded only where that is what is tried: events are counted elsewhere.
	$node->append_conf('postgresql.conf', "restart_after_crash = on\nfieldcrypt.audit_access_interval = 0\n" . ($options{conf} // ''));
	return $node unless $options{start} // 1;
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_fieldcrypt') if $options{extension} // 1;
	return $node;
}

# Gives a cluster a key file of its own: what a copy of a data directory needs, too.
sub use_key_file
{
	my ($node, @keys) = @_;
	my $path = write_key_file($node->basedir . '/master.key', @keys);
	$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$path'");
	return;
}

# Makes a database, with the extension unless extension => 0.
sub create_database
{
	my ($node, $name, %options) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name " . ($options{with} // ''));
	$node->safe_psql($name, 'CREATE EXTENSION pg_fieldcrypt') if $options{extension} // 1;
	return $name;
}

# Runs SQL in a new session, through to its end whatever fails: {code, out, err, sqlstates}.
sub run_sql
{
	my ($node, $sql, %options) = @_;
	local %ENV = (%ENV, %{ $options{env} // {} });
	my ($code, $out, $err) = $node->psql(
		$options{db} // 'postgres',
		$sql,
		on_error_stop => $options{on_error_stop} // 0,
		extra_params => [ psql_options(%options) ]);
	return { code => $code, out => $out, err => $err, sqlstates => [ sqlstates($err) ] };
}

# What SQL gives in a new session. It must not fail.
sub value
{
	my ($node, $sql, %options) = @_;
	my $result = run_sql($node, $sql, %options, on_error_stop => 1);
	die "failed: $sql\n$result->{err}" if $result->{code} != 0;
	return $result->{out};
}

# A test: SQL gives this and fails nowhere.
sub gives
{
	my ($node, $sql, $expected, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return judge_gives(run_sql($node, $sql, %options), $expected, $name);
}

# A test: SQL fails with exactly this SQLSTATE, and a message like this if one is given.
sub refused
{
	my ($node, $sql, $sqlstate, @rest) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $like = ref $rest[0] ? shift @rest : undef;
	my ($name, %options) = @rest;
	return judge_refused(run_sql($node, $sql, %options), $sqlstate, $like, $name);
}

# The SQLSTATEs of the errors in psql's output.
sub sqlstates
{
	my ($err) = @_;
	return $err =~ /^(?:psql:[^\n]*?:\s*)?(?:ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}):/mg;
}

# Opens a session that stays open. It goes on after errors.
sub session
{
	my ($node, %options) = @_;
	return FieldcryptTest::Session->new($node, %options);
}

# Dumps a database with pg_dump's arguments into a file or folder; dies on failure.
sub dump_database
{
	my ($node, $db, $path, @arguments) = @_;
	my $err = '';
	IPC::Run::run([ 'pg_dump', '-w', '-f', $path, @arguments, $node->connstr($db) ], '2>', \$err)
	  or die "pg_dump @arguments failed:\n$err";
	return $path;
}

# Restores a dump of any format with pg_restore's or psql's arguments, after which may come user => and options => (for
# PGOPTIONS): {code, err, sqlstates}.
sub restore_database
{
	my ($node, $db, $path, @arguments) = @_;
	my %more;
	%more = (%more, splice @arguments, -2) while @arguments > 1 && $arguments[-2] =~ /^(?:user|options)$/;
	push @arguments, '-U', $more{user} if defined $more{user};
	my $err = '';
	local $ENV{PGOPTIONS} = $more{options} // '-c client_min_messages=warning';
	my @command =
	  $path =~ /\.sql$/
	  ? ('psql', '-XAtq', '-w', '-v', 'VERBOSITY=verbose', @arguments, '-f', $path, '-d', $node->connstr($db))
	  : ('pg_restore', '-w', @arguments, '-d', $node->connstr($db), $path);
	my $out = '';
	IPC::Run::run(\@command, '<', \'', '>', \$out, '2>', \$err);
	my $code = $? >> 8;
	note "@command\n$err";
	return { code => $code, err => $err, sqlstates => [ sqlstates($err) ] };
}

# Everything of the extension's tables, as text: what a dump must carry unchanged.
sub contents
{
	my ($node, $db) = @_;
	return value($node, <<'SQL', db => $db);
SET timezone = 'UTC';
SELECT 'master', m.* FROM fieldcrypt.master_keys AS m ORDER BY m.fingerprint;
SELECT 'key', k.* FROM fieldcrypt.encryption_keys AS k ORDER BY k.key_id;
SELECT 'audit', a.tableoid::regclass, a.* FROM fieldcrypt.audit_log AS a ORDER BY a.id;
SQL
}

# A test: two texts of many lines are equal; shows the first line that differs.
sub same_contents
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @got = split /\n/, $got;
	my @expected = split /\n/, $expected;
	foreach my $index (0 .. ($#got > $#expected ? $#got : $#expected))
	{
		my ($is, $should) = ($got[$index] // '(nothing)', $expected[$index] // '(nothing)');
		next if $is eq $should;
		diag "line $index differs\n  got:      $is\n  expected: $should";
		return fail($name);
	}
	return ok(@expected > 0, $name);
}

# Gives a running cluster these settings, in place of the last call's, and waits until it has read them.
sub configure
{
	my ($node, %settings) = @_;
	my $path = $node->data_dir . '/configure.conf';
	if (!-e $path)
	{
		$node->append_conf('postgresql.conf', "include 'configure.conf'");
	}
	open my $file, '>', $path or die "can't write $path: $!";
	foreach my $name (sort keys %settings)
	{
		(my $text = $settings{$name}) =~ s/'/''/g;
		print $file "$name = '$text'\n";
	}
	close $file or die "can't write $path: $!";
	$node->reload;
	return;
}

# What a reload changes is there when it returns: for new sessions, and for old ones at their next statement.
{
	no warnings 'redefine';
	my $signal = \&PostgreSQL::Test::Cluster::reload;
	*PostgreSQL::Test::Cluster::reload = sub {
		my ($node) = @_;
		my $logged = -s $node->logfile;
		my $before = value($node, 'SELECT pg_conf_load_time()');
		$signal->($node);
		foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			# A file that is refused is not loaded.
			return if value($node, 'SELECT pg_conf_load_time()') ne $before
			  || slurp_file($node->logfile, $logged) =~ /configuration file .* contains errors/;
			Time::HiRes::usleep(50_000);
		}
		die 'the configuration was not read';
	};
}

# Runs each of some statements on its own, in one session, with exceptions caught by the server. Gives
# "SQLSTATE message" for each, "00000" if it succeeded; all its effects are rolled back.
sub outcomes
{
	my ($node, $statements, %options) = @_;
	my $sql = <<'SQL';
SET client_min_messages = error;
CREATE FUNCTION pg_temp.outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE message text;
BEGIN
    EXECUTE $1;
    RAISE SQLSTATE 'ZZZZZ';
EXCEPTION WHEN SQLSTATE 'ZZZZZ' THEN
    RETURN '00000';
WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
    RETURN SQLSTATE || ' ' || translate(message, E'\n', ' ');
END $$;
SQL
	foreach my $statement (@$statements)
	{
		(my $text = $statement) =~ s/'/''/g;
		$sql .= "SELECT pg_temp.outcome('$text');\n";
	}
	my $result = run_sql($node, ($options{setup} // '') . $sql, %options);
	my @outcomes = split /\n/, $result->{out};
	die "not every statement had an outcome: $result->{err}" if @outcomes != @$statements;
	return @outcomes;
}

# Runs a statement with real bind parameters (:name in the SQL): {code, out, err}. pgbench is the client,
# since psql can't bind before version 16.
sub bind
{
	my ($node, $sql, $parameters, %options) = @_;
	my $script = PostgreSQL::Test::Utils::tempdir() . '/bind.sql';
	open my $file, '>', $script or die "can't write $script: $!";
	print $file "$sql;\n";
	close $file or die "can't write $script: $!";
	local %ENV = (%ENV, %{ $options{env} // {} });
	my @command = (
		'pgbench', '-n', '-t', $options{transactions} // 1,
		'-M', $options{protocol} // 'extended',
		'-f', $script, map { ('-D', "$_=$parameters->{$_}") } sort keys %$parameters);
	push @command, '-U', $options{user} if defined $options{user};
	my ($out, $err) = ('', '');
	IPC::Run::run([ @command, '-h', $node->host, '-p', $node->port, $options{db} // 'postgres' ],
		'<', \'', '>', \$out, '2>', \$err);
	return { code => $? >> 8, out => $out, err => $err };
}

# The files below some folders that hold one of some byte strings: { string => [files] }, strings
# that are found nowhere left out.
sub files_with
{
	my ($needles, @folders) = @_;
	my (%found, $longest);
	$longest = (sort { $b <=> $a } map { length } @$needles)[0];
	my $look = sub {
		my $path = $File::Find::name;
		return if -l $path || !-f $path;
		open my $file, '<:raw', $path or return;    # a file may go away meanwhile
		my %seen;
		my $buffer = '';
		while (sysread $file, my $more, 16 << 20)
		{
			$buffer .= $more;
			$seen{$_} ||= index($buffer, $_) >= 0 foreach @$needles;
			$buffer = substr $buffer, -$longest if length $buffer > $longest;
		}
		push @{ $found{$_} }, $path foreach grep { $seen{$_} } @$needles;
	};
	File::Find::find({ wanted => $look, no_chdir => 1, follow_fast => 0 }, @folders);
	return \%found;
}

# HKDF-SHA256 with the extension's salt, at most 32 bytes (docs/format.md): apart from the code under test.
sub hkdf
{
	my ($key, $info, $length) = @_;
	my $extracted = Digest::SHA::hmac_sha256($key, 'pg_fieldcrypt/v1');
	return substr Digest::SHA::hmac_sha256("$info\x01", $extracted), 0, $length;
}

# The processes whose command line holds a text, or whose parent is a process, as [id, state, command].
sub processes
{
	my (%wanted) = @_;
	my @found;
	foreach my $folder (glob '/proc/[0-9]*')
	{
		my ($command, $stat) = map {
			my $content = '';
			if (open my $file, '<', "$folder/$_") { local $/; $content = <$file> // '' }
			$content =~ tr/\0/ /r;
		} 'cmdline', 'stat';
		my ($id, $state, $parent) = $stat =~ /^(\d+) \(.*\) (\S) (\d+) /s or next;
		next if defined $wanted{command} && index($command, $wanted{command}) < 0;
		next if defined $wanted{parent} && $parent != $wanted{parent};
		push @found, [ $id, $state, $command ];
	}
	return @found;
}

# Runs the offline tool: {code, out, err}.
sub tool
{
	return tool_with_input('', @_);
}

# The same with an input.
sub tool_with_input
{
	my ($input, @arguments) = @_;
	my $tool = $ENV{FIELDCRYPT_TOOL} or die 'FIELDCRYPT_TOOL names the program';
	my ($out, $err) = ('', '');
	IPC::Run::run([ $tool, @arguments ], '<', \$input, '>', \$out, '2>', \$err);
	return { code => $? >> 8, out => $out, err => $err };
}

# Writes a file into a temporary folder of the test's, and gives its path.
sub write_file
{
	my ($name, $content) = @_;
	our $files //= PostgreSQL::Test::Utils::tempdir();
	open my $file, '>:raw', "$files/$name" or die "can't write $name: $!";
	print $file $content;
	close $file or die "can't write $name: $!";
	return "$files/$name";
}

# Waits until SQL gives this. False if it does not, in the time that the tests have for such things.
sub eventually
{
	my ($node, $sql, $expected, %options) = @_;
	my $until = Time::HiRes::time + $PostgreSQL::Test::Utils::timeout_default;
	do
	{
		return 1 if value($node, $sql, %options) eq $expected;
		Time::HiRes::usleep(100_000);
	} while Time::HiRes::time < $until;
	return 0;
}

# Kills a process of the server as a fault would, and waits until the server has ended all others, recovered, and
# lets sessions in.
sub crash
{
	my ($node, $process) = @_;
	die 'no process to kill' unless $process && $process > 1;
	my $logged = -s $node->logfile;
	kill 'KILL', $process;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		Time::HiRes::usleep(100_000);
		next unless slurp_file($node->logfile, $logged) =~ /all server processes terminated; reinitializing/;
		# psql may find no server and go away before it has read this.
		my $result = eval { run_sql($node, 'SELECT pg_is_in_recovery()') };
		return 1 if $result && $result->{out} eq 'f';
	}
	return 0;
}

# The process id of a cluster's postmaster.
sub postmaster
{
	my ($node) = @_;
	return (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
}

# A test: a server's log tells of no crash and no internal error.
sub no_crash
{
	my ($node) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# A client that is gone is none; Postgres gives that the SQLSTATE of whatever the socket says.
	# A statement in the log may have these words, too: a line of the server's own has them at its place.
	my @bad = grep { /PANIC:  |[A-Z]:  XX000: |was terminated by signal|unreachable|panicked/ && !/could not send data to client/ } split /\n/, slurp_file($node->logfile);
	return is(join("\n", @bad), '', 'no crash and no internal error on ' . $node->name);
}

# A test: all values of a table (20, unless another number is given) open with the contexts that are remembered, and move to a
# new key.
sub is_kept
{
	my ($node, $table, $name, $rows) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
	my $result = run_sql($node, "CALL fieldcrypt.reencrypt('$table', rows_per_second => 0)");
	unlike($result->{err}, qr/WARNING|ERROR/, "$name: re-encrypted without a warning");
	gives($node, "SELECT state, rows_moved, rows_failed FROM fieldcrypt.reencryption_progress WHERE table_name = '$table'",
		'done|' . ($rows // 20) . '|0', '  every value of it');
	return;
}

# The major version of the server, or of the installed one.
sub server_version
{
	my ($node) = @_;
	return $node ? int(value($node, 'SHOW server_version_num') / 10_000) : (`pg_config --version` =~ /(\d+)/)[0];
}

# Skips the whole file, by name, where the server lacks a library.
sub needs_library
{
	my ($name, $what) = @_;
	chomp(my $libraries = `pg_config --pkglibdir`);
	plan(skip_all => ($what // $name) . " is not installed: there is no $libraries/$name.so") unless -e "$libraries/$name.so";
	return;
}

# The same for a program of the tests, which a root of another server, or somebody's own one, may lack.
sub needs_program
{
	my ($name, $package) = @_;
	plan(skip_all => "$name is not installed (Debian's package $package)") unless grep { -x "$_/$name" } split /:/, $ENV{PATH};
	return;
}

# What has plans run in parallel workers: the name of the setting up to PostgreSQL 15, and from 16 on.
sub force_parallel
{
	return 'SET ' . (server_version() < 16 ? 'force_parallel_mode' : 'debug_parallel_query') . ' = on; ';
}

# The ways in which a session ends early, each as a function that is called with its server process first.
sub endings
{
	my ($node) = @_;
	return (
		'kill -9 of the backend' => sub { crash($node, $_[0]) or die 'the server does not come back'; },
		'kill -9 of the postmaster' => sub { kill_postmaster($node); },
		'immediate stop' => sub { $node->stop('immediate'); $node->start; },
		'fast stop' => sub { $node->stop('fast'); $node->start; },
		'pg_terminate_backend' => sub { value($node, "SELECT pg_terminate_backend($_[0])"); },
		'pg_cancel_backend' => sub { value($node, "SELECT pg_cancel_backend($_[0])"); });
}

# Kills the postmaster. Its children end when they next wait for something, a busy one never: they
# are left for a moment, then killed. Only after that may another postmaster start.
sub kill_postmaster
{
	my ($node) = @_;
	my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
	my @processes = ($postmaster, map { /^(\d+)$/ } split /\n/, value($node, 'SELECT pid FROM pg_stat_activity'));
	$node->kill9;
	Time::HiRes::usleep(100_000);
	kill 'KILL', @processes;
	foreach (1 .. 600)
	{
		return $node->start unless grep { kill 0, $_ } @processes;
		Time::HiRes::usleep(100_000);
	}
	die 'the server does not end';
}

# Gives a tenant (SQL texts) a name that no new tenant can have: keys that were imported may. They don't open any more.
sub rename_tenant
{
	my ($node, $from, $to, %options) = @_;
	past_the_guard($node, "UPDATE fieldcrypt.encryption_keys SET tenant = $to WHERE tenant = $from", %options);
	return;
}

sub psql_options
{
	my (%options) = @_;
	my @arguments = ('-v', 'VERBOSITY=verbose');
	push @arguments, '-U', $options{user} if defined $options{user};
	return @arguments;
}

sub judge_gives
{
	my ($result, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	if (@{ $result->{sqlstates} } || $result->{code} != 0)
	{
		diag $result->{err};
		return fail($name);
	}
	return ref $expected
	  ? like($result->{out}, $expected, $name)
	  : is($result->{out}, $expected, $name);
}

sub judge_refused
{
	my ($result, $sqlstate, $like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $states = join ' ', @{ $result->{sqlstates} };
	if ($states ne $sqlstate)
	{
		diag "got SQLSTATE '$states', not $sqlstate\n$result->{out}\n$result->{err}";
		return fail($name);
	}
	return defined $like ? like($result->{err}, $like, $name) : pass($name);
}

# Changes keys as an attacker with superuser's rights, or a function of a later version, would.
sub past_the_guard
{
	my ($node, $sql, %options) = @_;
	value($node, <<SQL, %options);
BEGIN;
ALTER TABLE fieldcrypt.encryption_keys DISABLE TRIGGER refuse_change;
$sql;
ALTER TABLE fieldcrypt.encryption_keys ENABLE TRIGGER refuse_change;
COMMIT;
SQL
	return;
}

# A session: one psql that stays open.
package FieldcryptTest::Session;

use strict;
use warnings;

sub new
{
	my ($class, $node, %options) = @_;
	local %ENV = (%ENV, %{ $options{env} // {} });
	my $psql = $node->background_psql(
		$options{db} // 'postgres',
		on_error_stop => 0,
		extra_params => [ FieldcryptTest::psql_options(%options) ]);
	# A query has its time, however long the session has been open.
	$psql->set_query_timer_restart;
	return bless { psql => $psql }, $class;
}

# Runs SQL: {code, out, err, sqlstates}.
sub run
{
	my ($self, $sql) = @_;
	$self->{psql}{stderr} = '';
	my $out = $self->{psql}->query($sql);
	my $err = $self->{psql}{stderr};
	return { code => 0, out => $out, err => $err, sqlstates => [ FieldcryptTest::sqlstates($err) ] };
}

# What SQL gives. It must not fail.
sub value
{
	my ($self, $sql) = @_;
	my $result = $self->run($sql);
	die "failed: $sql\n$result->{err}" if @{ $result->{sqlstates} };
	return $result->{out};
}

# A test: SQL gives this and fails nowhere.
sub gives
{
	my ($self, $sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return FieldcryptTest::judge_gives($self->run($sql), $expected, $name);
}

# A test: SQL fails with exactly this SQLSTATE, and a message like this if one is given.
sub refused
{
	my ($self, $sql, $sqlstate, @rest) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $like = ref $rest[0] ? shift @rest : undef;
	return FieldcryptTest::judge_refused($self->run($sql), $sqlstate, $like, $rest[0]);
}

# Starts SQL and does not wait for it.
sub send
{
	my ($self, $sql) = @_;
	$self->{psql}{stdin} .= "$sql\n;\n";
	$self->{psql}{run}->pump_nb;
	return;
}

# The process of the server that serves this session.
sub server_process
{
	my ($self) = @_;
	return $self->value('SELECT pg_backend_pid()');
}

sub close
{
	my ($self) = @_;
	eval { $self->{psql}->quit };
	return;
}

1;
