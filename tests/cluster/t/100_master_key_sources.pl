# Where the master key comes from, file and command: every refusal, each with its SQLSTATE and a hint,
# before any row is touched; and what is accepted gives the right key.

use strict;
use warnings;

use FieldcryptTest;
use MIME::Base64;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $elsewhere = PostgreSQL::Test::Utils::tempdir();
my $node = new_cluster('primary', init => { extra => [ '--locale=C.UTF-8', '--encoding=UTF8', "--waldir=$elsewhere/wal" ] });
my $path = $node->basedir . '/master.key';
mkdir "$elsewhere/space" or die $!;

value($node, <<SQL);
CREATE TABLE kept (value fieldcrypt.encrypted);
INSERT INTO kept SELECT fieldcrypt.encrypt_field('kept');
CREATE TABLE untouched (value fieldcrypt.encrypted);
CREATE TABLESPACE space LOCATION '$elsewhere/space';
SQL

my $hex = key_text(1);
my $raw = pack 'H*', $hex;
my $fingerprint = unpack 'H*', hkdf($raw, 'mek-fingerprint', 16);
my $other_fingerprint = unpack 'H*', hkdf(pack('H*', key_text(2)), 'mek-fingerprint', 16);

my $before = contents($node, 'postgres');

# Everything that needs the key, in a session that has none yet.
my @needy = (
	'INSERT INTO untouched SELECT fieldcrypt.encrypt_field(g::text) FROM generate_series(1, 3) AS g',
	'INSERT INTO untouched SELECT fieldcrypt.encrypt_field_bytea(decode(md5(g::text), $$hex$$)) FROM generate_series(1, 3) AS g',
	q{INSERT INTO untouched SELECT fieldcrypt.encrypt_field('new tenant', '', 'new')},
	'SELECT fieldcrypt.decrypt_field(value) FROM kept',
	'SELECT fieldcrypt.try_decrypt_field(value) FROM kept',
	'SELECT fieldcrypt.decrypt_field_as(value, NULL::text) FROM kept',
	'SELECT fieldcrypt.reencrypt_field(value) FROM kept',
	q{SELECT fieldcrypt.create_key('new')},
	q{SELECT fieldcrypt_internal.rotate_active_key('default', NULL, false, NULL)});

sub all_refused
{
	my ($sqlstate, $like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = run_sql($node, join '', map { "$_;\n" } @needy);
	is_deeply($result->{sqlstates}, [ ($sqlstate) x @needy ], "$name: every use is refused") or diag $result->{err};
	like($result->{err}, $like, "$name: the message says why");
	my $hints = () = $result->{err} =~ /^HINT:  \S/mg;
	is($hints, scalar @needy, "$name: every error has a hint");
	return $result;
}

sub accepted
{
	my ($name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $first = $options{first} // $fingerprint;
	return gives($node, <<'SQL', "kept\nroundtrip\n$fingerprint", $name);
SELECT fieldcrypt.decrypt_field(value) FROM kept;
SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('roundtrip'));
SELECT fingerprint FROM fieldcrypt.master_key_status() WHERE is_loaded AND is_current;
SQL
}

# Puts something at the path of the key file.
sub place
{
	my ($content, $mode) = @_;
	unlink $path;
	if (-d $path) { rmdir $path or die $! }
	return $content->($path) if ref $content;
	open my $file, '>:raw', $path or die $!;
	print $file $content;
	close $file;
	chmod $mode // 0600, $path or die $!;
	return;
}

sub key_in
{
	my ($target) = @_;
	return sub { write_key_file($target, $hex); symlink $target, $_[0] or die $! };
}

# What is at the path, mode, message.
my @refusals = (
	[ 'missing', sub { }, undef, qr/does not exist/ ],
	[ 'a symbolic link to nothing', sub { symlink '/nonexistent/key', $_[0] }, undef, qr/does not exist/ ],
	[ 'a symbolic link to itself', sub { symlink $_[0], $_[0] }, undef, qr/can't be read/ ],
	[ 'a path through a file', sub { symlink '/etc/passwd/key', $_[0] }, undef, qr/can't be read/ ],
	[ 'a directory', sub { mkdir $_[0], 0700 }, undef, qr/not a regular file/ ],
	[ 'a FIFO', sub { POSIX::mkfifo($_[0], 0600) }, undef, qr/not a regular file/ ],
	[ '/dev/null', sub { symlink '/dev/null', $_[0] }, undef, qr/not a regular file/ ],
	[ '/dev/zero', sub { symlink '/dev/zero', $_[0] }, undef, qr/not a regular file/ ],
	[ 'mode 0000', "$hex\n", 0000, qr/may not read/ ],
	[ 'mode 0644', "$hex\n", 0644, qr/read or written by others/ ],
	[ 'mode 0640 of the server user', "$hex\n", 0640, qr/read or written by others/ ],
	[ 'mode 0620', "$hex\n", 0620, qr/read or written by others/ ],
	[ 'mode 0604', "$hex\n", 0604, qr/read or written by others/ ],
	[ 'mode 0602', "$hex\n", 0602, qr/read or written by others/ ],
	[ 'a file of root\'s that all can read', sub { symlink '/etc/passwd', $_[0] }, undef, qr/read or written by others.*HINT:  [^\n]*secret of Docker/s ],
	[ 'a symbolic link into the data directory', key_in($node->data_dir . '/hidden.key'), undef, qr/base backups copy/ ],
	[ 'a symbolic link into a folder of the data directory', key_in($node->data_dir . '/base/hidden.key'), undef, qr/base backups copy/ ],
	[ 'a symbolic link into pg_wal that lies elsewhere', key_in("$elsewhere/wal/hidden.key"), undef, qr/base backups copy/ ],
	[ 'a symbolic link through pg_wal', sub { write_key_file("$elsewhere/wal/hidden.key", $hex); symlink $node->data_dir . '/pg_wal/hidden.key', $_[0] }, undef, qr/base backups copy/ ],
	[ 'a symbolic link into a tablespace', key_in("$elsewhere/space/hidden.key"), undef, qr/base backups copy/ ],
	[ 'two symbolic links into the data directory', sub {
			write_key_file($node->data_dir . '/hidden.key', $hex);
			symlink $node->data_dir, "$elsewhere/link";
			symlink "$elsewhere/link/hidden.key", $_[0];
		}, undef, qr/base backups copy/ ],
	[ 'empty', '', undef, qr/gives no master key/ ],
	[ 'only comments', "# a comment\n\n  \n#$hex\n", undef, qr/gives no master key/ ],
	[ '31 bytes in hex', substr($hex, 2) . "\n", undef, qr/31 bytes in line 1; a master key has 32/ ],
	[ '33 bytes in hex', "${hex}00\n", undef, qr/33 bytes in line 1/ ],
	[ '63 hex digits', substr($hex, 1) . "\n", undef, qr/line 1/ ],
	[ '64 hex digits with one that is none', substr($hex, 1) . "g\n", undef, qr/line 1/ ],
	[ '31 bytes in base64', encode_base64(substr($raw, 1), '') . "\n", undef, qr/31 bytes in line 1/ ],
	[ '33 bytes in base64', encode_base64($raw . 'x', '') . "\n", undef, qr/33 bytes in line 1/ ],
	[ 'base64 with bits that are no part of the key', 'A' x 42 . "B=\n", undef, qr/neither hex digits nor base64 in line 1/ ],
	[ 'raw 32 bytes', pack('C*', map { $_ * 7 + 1 & 255 } 1 .. 32), undef, qr/line 1/ ],
	[ 'a passphrase of 32 letters', "correcthorsebatterystaplecorrect\n", undef, qr/24 bytes in line 1/ ],
	[ 'a passphrase of words', "correct horse battery staple\n", undef, qr/neither hex digits nor base64 in line 1/ ],
	[ 'a PEM key', "-----BEGIN PRIVATE KEY-----\n$hex\n", undef, qr/in line 1, but what looks like PEM/ ],
	[ 'JSON', qq({"key": "$hex"}\n), undef, qr/in line 1, but what looks like JSON/ ],
	[ 'an assignment of words', "KEY=correct horse battery staple\n", undef, qr/in line 1, but several words/ ],
	[ 'two keys in one line', "$hex $hex\n", undef, qr/neither hex digits nor base64 in line 1/ ],
	[ 'UTF-16 without a byte-order mark', join('', map { "$_\0" } split //, $hex), undef, qr/in line 1, but what looks like UTF-16/ ],
	[ 'a NUL after the key', "$hex\0\n", undef, qr/neither hex digits nor base64 in line 1/ ],
	[ 'a right line and a wrong one', "$hex\nnonsense!\n", undef, qr/neither hex digits nor base64 in line 2/ ],
	[ '17 keys', join("\n", map { key_text($_) } 1 .. 17), undef, qr/more than 16 master keys/ ],
	[ 'more text than keys take', "# comment\n" x 10_000 . "$hex\n", undef, qr/more text than master keys take/ ],
	[ 'two megabytes of zeros', "\0" x (2 << 20), undef, qr/more text than master keys take/ ]);

foreach my $refusal (@refusals)
{
	my ($name, $content, $mode, $like) = @$refusal;
	place($content, $mode);
	my $result = all_refused('KF009', $like, "file: $name");
	my ($secret) = ref $content ? $hex : $content =~ /([^\s\0]{16,})/;
	$secret = substr $secret // $hex, 0, 12;
	unlike($result->{err}, qr/\Q$secret\E/i, "file: $name: nothing of its content is shown");
}

my @accepted = (
	[ 'hex', "$hex\n" ],
	[ 'hex without a newline', $hex ],
	[ 'hex in capitals', uc "$hex\n" ],
	[ 'hex with CRLF, spaces and a comment', "  $hex  # the key\r\n" ],
	[ 'base64', encode_base64($raw) ],
	[ 'a byte-order mark', "\xEF\xBB\xBF$hex\r\n" ],
	[ 'UTF-16, as shells of Windows write it', "\xFF\xFE" . join('', map { "$_\0" } split //, "$hex\r\n") ],
	[ 'quotes', qq("$hex"\n) ],
	[ 'a line of an environment file', qq(export FIELDCRYPT_KEY='$hex' # since May\n) ],
	[ 'hex in bytea\'s form', "\\x$hex\n" ],
	[ 'mode 0400', "$hex\n", 0400 ],
	[ 'after comments and empty lines', "# the key\n\n$hex\n" ],
	[ 'the key on line 1 and others', join "\n", map { key_text($_) } 1 .. 16 ],
	[ 'the key on line 16', join "\n", map { key_text($_) } reverse 1 .. 16 ],
	[ 'one key 20 times', "$hex\n" x 20 ],
	[ 'a symbolic link to a right file', sub { write_key_file("$elsewhere/right.key", $hex); symlink "$elsewhere/right.key", $_[0] } ]);

foreach my $case (@accepted)
{
	my ($name, $content, $mode) = @$case;
	place($content, $mode);
	accepted("file: accepted: $name");
}

# What the path may be.
place("$hex\n");
my %no_file = ('fieldcrypt.master_key_file' => '');
foreach my $case (
	[ 'a relative path', 'master.key', qr/not an absolute path/ ],
	[ 'a relative path out of the data directory', '../master.key', qr/not an absolute path/ ],
	[ 'a home directory', '~/master.key', qr/not an absolute path/ ],
	[ 'the data directory itself', $node->data_dir, qr/not a regular file/ ],
	[ 'a file in the data directory', $node->data_dir . '/hidden.key', qr/base backups copy/ ],
	[ 'into the data directory with ..', $node->basedir . '/backup/../' . ($node->data_dir =~ m{([^/]+)$})[0] . '/hidden.key', qr/base backups copy/ ],
	[ 'a very long path', '/' . 'x' x 5000, qr/can't be read/ ])
{
	my ($name, $value, $like) = @$case;
	write_key_file($node->data_dir . '/hidden.key', $hex);
	configure($node, 'fieldcrypt.master_key_file' => $value);
	all_refused('KF009', $like, "path: $name");
}

# No source, and more than one.
configure($node, %no_file);
all_refused('KF008', qr/no master key is configured/, 'no source');
configure($node, 'fieldcrypt.master_key_command' => "echo $hex");
all_refused('KF009', qr/both fieldcrypt\.master_key_file and fieldcrypt\.master_key_command are set/, 'two sources');

# The command. MARK is a number that its sleeping processes are known by.
my $mark = 4_000_000 + $$;

sub leftovers
{
	# Killed processes take a moment to go away.
	foreach (1 .. 40)
	{
		return 0 if !processes(command => "sleep $mark");
		sleep 0.05;
	}
	return scalar processes(command => "sleep $mark");
}

my @commands = (
	[ 'exits with 3', "echo $hex; exit 3", qr/failed with exit code 3/ ],
	[ 'does not exist', '/nonexistent/command', qr/failed with exit code 127/ ],
	[ 'is no shell command', ')(', qr/failed with exit code 2/ ],
	[ 'is killed', "echo $hex; kill -9 \$\$", qr/killed by a signal/ ],
	[ 'prints nothing', 'true', qr/gives no master key/ ],
	[ 'prints the key to standard error', "echo $hex >&2", qr/gives no master key/ ],
	[ 'reads standard input', 'cat', qr/gives no master key/ ],
	[ 'prints garbage', 'echo garbage', qr/neither hex digits nor base64|bytes in line 1/ ],
	[ 'prints too much', 'head -c 200000 /dev/zero', qr/fieldcrypt\.master_key_command/ ],
	[ 'prints without end', 'yes', qr/fieldcrypt\.master_key_command/ ],
	[ 'prints 17 keys', join('; ', map { 'echo ' . key_text($_) } 1 .. 17), qr/more than 16/ ],
	[ 'hangs', "sleep $mark", qr/did not finish in fieldcrypt\.master_key_command_timeout/ ],
	[ 'prints the key and hangs', "echo $hex; sleep $mark", qr/did not finish/ ],
	[ 'closes its output and hangs', "exec >&-; sleep $mark", qr/did not finish/ ],
	[ 'hangs with children', "sleep $mark & (sleep $mark & sleep $mark) & wait", qr/did not finish/ ],
	[ 'leaves a child that holds its output', "echo $hex; sleep $mark &", qr/did not finish/ ],
	[ 'ignores signals', "trap '' TERM INT HUP QUIT; sleep $mark; sleep $mark", qr/did not finish/ ]);

foreach my $case (@commands)
{
	my ($name, $command, $like) = @$case;
	configure($node, %no_file, 'fieldcrypt.master_key_command' => $command, 'fieldcrypt.master_key_command_timeout' => '200ms');
	my $began = time;
	my $session = session($node);
	$session->refused('SELECT fieldcrypt.decrypt_field(value) FROM kept', 'KF009', $like, "command: $name");
	cmp_ok(time - $began, '<', 5, "command: $name: soon");
	my @children = processes(parent => $session->server_process);
	is(scalar @children, 0, "command: $name: no child, no zombie") or diag explain \@children;
	is(leftovers(), 0, "command: $name: nothing of it goes on");
	$session->refused('SELECT fieldcrypt.create_key($$new$$)', 'KF009', qr/^HINT:  \S/m, "command: $name: again, with a hint");
	$session->close;
}

foreach my $case (
	[ 'prints the key', "echo $hex" ],
	[ 'prints slowly', "printf '%s' ${\substr $hex, 0, 30}; sleep 0.3; echo ${\substr $hex, 30}" ],
	[ 'prints comments to standard error', "echo fetching >&2; echo $hex" ],
	[ 'prints two keys', "echo ${\key_text(2)}; echo $hex" ])
{
	my ($name, $command) = @$case;
	configure($node, %no_file, 'fieldcrypt.master_key_command' => $command);
	accepted("command: $name");
}

# A statement that waits for the command can be cancelled; the command dies with it.
configure($node, %no_file, 'fieldcrypt.master_key_command' => "sleep $mark & sleep $mark", 'fieldcrypt.master_key_command_timeout' => '60s');
{
	my $began = time;
	refused($node, q{SET statement_timeout = '300ms'; SELECT fieldcrypt.decrypt_field(value) FROM kept}, '57014',
		'command: the statement is cancelled');
	cmp_ok(time - $began, '<', 5, 'command: cancelled at once');
	is(leftovers(), 0, 'command: it dies with the statement');

	my $session = session($node);
	my $process = $session->server_process;
	$session->send('SELECT fieldcrypt.decrypt_field(value) FROM kept');
	sleep 0.05 until processes(command => "sleep $mark") || time - $began > 20;
	value($node, "SELECT pg_terminate_backend($process, 5000)");
	is(leftovers(), 0, 'command: it dies with the session');
	kill 'KILL', map { $_->[0] } processes(command => "sleep $mark");
	$session->close;
}

# A wrong master key.
configure($node);
place(key_text(2) . "\n");
{
	my $result = all_refused('KF010', qr/wrapped by master key ${\uc substr $fingerprint, 0, 8}\S*; loaded: ${\uc substr $other_fingerprint, 0, 8}/,
		'wrong master key');
	gives($node, 'SELECT fingerprint, is_loaded, is_current, encryption_keys FROM fieldcrypt.master_key_status()',
		"$fingerprint|f|t|2\n$other_fingerprint|t|f|0", 'wrong master key: the status names both');
}
place(join "\n", map { key_text($_) } 2 .. 16);
all_refused('KF010', qr/loaded: ${\uc substr $other_fingerprint, 0, 8}/, 'many wrong master keys');

is(value($node, 'SELECT count(*) FROM untouched'), '0', 'no refusal wrote a row');
same_contents(contents($node, 'postgres'), $before, 'no refusal left a key or an audit row');

# The second line unwraps; new keys are wrapped by the database's current master key, which needs
# to be loaded, not to be first.
place(join "\n", key_text(2), $hex);
accepted('the second line unwraps');
gives($node, q{SELECT fieldcrypt.create_key('second line') > 0;
	SELECT encode(master_key_fingerprint, 'hex') FROM fieldcrypt.encryption_keys WHERE tenant = 'second line'},
	"t\n$fingerprint", 'a new key is wrapped by the current master key');

# Reload, in sessions that run.
place("$hex\n");
my $serial = 0;
my $session = session($node);
my $read_kept = 'SELECT fieldcrypt.decrypt_field(value) FROM kept';

sub reload
{
	my (%settings) = @_;
	configure($node, 'probe.round' => ++$serial, %settings);
	foreach (1 .. 200)
	{
		last if $session->value(q{SELECT current_setting('probe.round')}) eq $serial;
		sleep 0.02;
	}
	return;
}

$session->gives($read_kept, 'kept', 'reload: a right key');
place("nonsense\n");
reload();
{
	my $result = $session->run($read_kept);
	is($result->{out}, 'kept', 'reload: a broken file, the old key stays');
	like($result->{err}, qr/WARNING:\s+KF009: the master key was not reloaded, the old one stays: .*line 1/, 'reload: a warning says so');
	unlike($result->{err}, qr/nonsense/, 'reload: the warning shows nothing of the file');
	is($session->run($read_kept)->{err}, '', 'reload: the warning comes once');
	$session->gives(q{SELECT problem ~ 'line 1' FROM fieldcrypt.master_key_status() WHERE is_current}, 't', 'reload: the status names the problem');
	$session->gives(q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', '', 'while broken'))}, 'x', 'reload: a new key is made with the old master key');
	refused($node, $read_kept, 'KF009', 'reload: a new session has no key');
}
foreach my $case (
	[ 'missing', sub { } ], [ 'mode 0644', "$hex\n", 0644 ], [ 'in the data directory', key_in($node->data_dir . '/hidden.key') ])
{
	my ($name, $content, $mode) = @$case;
	place($content, $mode);
	reload();
	my $result = $session->run($read_kept);
	is($result->{out}, 'kept', "reload: $name, the old key stays");
	like($result->{err}, qr/WARNING:\s+KF009/, "reload: $name, with a warning");
}
place("$hex\n");
reload();
is($session->run($read_kept)->{err}, '', 'reload: mended, no warning');
$session->gives('SELECT count(problem) FROM fieldcrypt.master_key_status()', '0', 'reload: mended, no problem');

$session->value("PREPARE read_kept AS $read_kept; BEGIN; EXECUTE read_kept");
place(key_text(2) . "\n");
reload();
$session->refused('EXECUTE read_kept', 'KF010', 'reload: to a wrong key, in a transaction with a prepared statement');
$session->value('ROLLBACK');
$session->refused('SELECT fieldcrypt.create_key($$another$$)', 'KF010', 'reload: to a wrong key, nothing new is made');
place(join "\n", key_text(2), $hex);
reload();
$session->gives('EXECUTE read_kept', 'kept', 'reload: to both keys');
place("$hex\n");
reload('fieldcrypt.master_key_file' => '', 'fieldcrypt.master_key_command' => "cat '$path'");
$session->gives('EXECUTE read_kept', 'kept', 'reload: from a file to a command');
$session->gives('SELECT DISTINCT source FROM fieldcrypt.master_key_status()', 'fieldcrypt.master_key_command', 'reload: the status names the new source');
reload('fieldcrypt.master_key_file' => '');
like($session->run('EXECUTE read_kept')->{err}, qr/WARNING:\s+KF008/, 'reload: to no source, a warning');
$session->close;

# A session that began with a wrong key gets the right one.
place(key_text(2) . "\n");
configure($node);
$session = session($node);
$session->refused($read_kept, 'KF010', 'reload: begun with a wrong key');
place("$hex\n");
reload();
$session->gives($read_kept, 'kept', 'reload: and then the right one');
$session->close;

ok(slurp_file($node->logfile) !~ /PANIC|XX000|terminated by signal/, 'no internal error');
$node->stop;
done_testing();
