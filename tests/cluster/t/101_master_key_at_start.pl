# A server that starts without a master key that it can read starts, and says so in its log: once, in the words of the
# error that a session would get. The same after a reload, and on a standby.

use strict;
use warnings;

use FieldcryptTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n", init => { allows_streaming => 1 });
my $path = $node->basedir . '/master.key';
my $hex = key_text(1);

# What the log says of the key from a place on, line by line, once it says anything or the watch has read its settings.
sub said
{
	my ($on, $from, $like) = @_;
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if slurp_file($on->logfile, $from) =~ $like;
		select undef, undef, undef, 0.1;
	}
	my @lines = map { s/^.*?((?:WARNING|LOG|HINT):)/$1/r } grep { /pg_fieldcrypt: |HINT: / } split /\n/, slurp_file($on->logfile, $from);
	return join "\n", @lines;
}

sub started
{
	my ($on) = @_;
	$on->stop;
	my $from = -s $on->logfile;
	$on->start;
	return $from;
}

sub place
{
	my ($content, $mode) = @_;
	-d $path && !-l $path ? rmdir $path : unlink $path;
	return $content->() if ref $content;
	write_key_file($path, $content);
	chmod $mode // 0600, $path or die $!;
	return;
}

# A right key: not a word.
{
	my $from = started($node);
	# The watch is as old as the server; that its first look is over shows in what it says of the next reload.
	place(sub { });
	$node->reload;
	my $said = said($node, $from, qr/pg_fieldcrypt: .*does not exist/);
	is(() = $said =~ /pg_fieldcrypt: /g, 1, 'a readable key: nothing at the start; a file that is gone at the reload: one line');
	place($hex);
	$from = -s $node->logfile;
	$node->reload;
	is(said($node, $from, qr/can be read/), 'LOG:  pg_fieldcrypt: the master key can be read', 'and that it is back');
}

my @faults = (
	[ 'missing', sub { }, undef, qr/does not exist/ ],
	[ 'a directory', sub { mkdir $path, 0700 or die $! }, undef, qr/not a regular file/ ],
	[ 'a FIFO', sub { POSIX::mkfifo($path, 0600) or die $! }, undef, qr/not a regular file/ ],
	[ 'mode 0644', $hex, 0644, qr/read or written by others/ ],
	[ 'mode 0000', $hex, 0000, qr/may not read/ ],
	[ 'empty', '', undef, qr/gives no master key/ ],
	[ 'malformed', substr($hex, 2), undef, qr/31 bytes in line 1/ ],
	[ 'in the data directory', sub { write_key_file($node->data_dir . '/hidden.key', $hex); symlink $node->data_dir . '/hidden.key', $path or die $! }, undef, qr/base backups copy/ ]);
foreach my $fault (@faults)
{
	my ($name, $content, $mode, $like) = @$fault;
	place($content, $mode);
	my $from = started($node);
	my $said = said($node, $from, $like);
	my ($line, $hint) = split /\n/, $said;
	like($line // '', qr/^WARNING:  pg_fieldcrypt: fieldcrypt\.master_key_file .*?$like/, "$name: the log says why");
	my $error = run_sql($node, q{SELECT fieldcrypt.encrypt_field('x')})->{err};
	my ($of_session) = $error =~ /HINT:\s+(.*)/;
	is(($hint // '') =~ s/^HINT:\s+//r, $of_session, "$name: with the hint of the error");
	my ($words) = $error =~ /ERROR:\s+(?:KF009: )*(.*)/;
	like($line // '', qr/\Q$words\E$/, "$name: in the words of the error");
	# Other sessions say it to their users; the start says it once.
	run_sql($node, q{SELECT fieldcrypt.encrypt_field('x')}) foreach 1 .. 3;
	is(() = slurp_file($node->logfile, $from) =~ /WARNING: .*pg_fieldcrypt: /g, 1, "$name: once a start, not once a session");
	unlike(slurp_file($node->logfile, $from), qr/\Q@{[ substr $hex, 0, 20 ]}\E/, "$name: nothing of the file");
}

# A crash is a start, too.
{
	place(sub { });
	started($node);
	my $from = -s $node->logfile;
	my $victim = session($node);
	ok(crash($node, $victim->server_process), 'the server comes back without the key');
	like(said($node, $from, qr/does not exist/), qr/WARNING/, 'and says it again');
	eval { $victim->close };
}

# Reloads: while the file is bad each says so, since somebody has just tried.
{
	place("nonsense!");
	foreach my $time (1, 2)
	{
		my $from = -s $node->logfile;
		$node->reload;
		like(said($node, $from, qr/in line 1/), qr/^WARNING: .*neither hex digits nor base64 in line 1/, "reload $time with a bad file: a line");
	}
	my $from = -s $node->logfile;
	place($hex);
	$node->reload;
	like(said($node, $from, qr/can be read/), qr/can be read/, 'reload with a good one: it is over');
	unlike(slurp_file($node->logfile), qr/nonsense/, 'what the file held is nowhere');
}

# A command.
{
	my $marks = $node->basedir . '/marks';
	$node->append_conf('postgresql.conf', qq{fieldcrypt.master_key_file = ''\nfieldcrypt.master_key_command = 'echo ran >> $marks; exit 3'});
	my $from = started($node);
	like(said($node, $from, qr/exit code/), qr/WARNING: .*fieldcrypt\.master_key_command failed with exit code 3\nHINT:  Run it by hand/, 'a command that fails: the log says so');
	is(slurp_file($marks), "ran\n", 'it was run once');
	# One that hangs holds up neither the start nor the stop.
	$node->append_conf('postgresql.conf', qq{fieldcrypt.master_key_command = 'echo \$\$ > $marks; exec sleep 4711'\nfieldcrypt.master_key_command_timeout = '300s'});
	started($node);
	foreach (1 .. 100) { last if slurp_file($marks) =~ /^\d+$/; select undef, undef, undef, 0.1 }
	my $began = time;
	$node->stop;
	cmp_ok(time - $began, '<', 20, 'a command that hangs: the server stops');
	is(scalar(processes(command => 'sleep 4711')), 0, 'and the command with it');
	$node->append_conf('postgresql.conf', qq{fieldcrypt.master_key_command = ''\nfieldcrypt.master_key_command_timeout = '10s'});
	$node->start;
}

# A server that ends without a word, while the watch and a session wait for the command, takes all with it, and comes back.
foreach my $case ([ 'the postmaster is killed', sub { $_[0]->kill9 } ], [ 'an immediate shutdown', sub { $_[0]->stop('immediate') } ])
{
	my ($name, $end) = @$case;
	my $hanging = q{sleep 4712 & sleep 4712 | sleep 4712};
	$node->append_conf('postgresql.conf', qq{fieldcrypt.master_key_command = '$hanging'\nfieldcrypt.master_key_command_timeout = '300s'});
	$node->restart;
	my $session = session($node);
	$session->send(q{SELECT fieldcrypt.encrypt_field('x')});
	# Three of the watch's, three of the session's.
	my $running = sub { scalar grep { $_->[2] =~ /^sleep 4712 ?$/ } processes(command => 'sleep 4712') };
	foreach (1 .. 200) { last if $running->() == 6; select undef, undef, undef, 0.1 }
	is($running->(), 6, "$name: commands are running");
	my $postmaster = postmaster($node);
	$end->($node);
	foreach (1 .. 200) { last if !kill 0, $postmaster; select undef, undef, undef, 0.1 }
	foreach (1 .. 200) { last if !processes(command => 'sleep 4712'); select undef, undef, undef, 0.1 }
	is(scalar(processes(command => 'sleep 4712')), 0, "$name: nothing of the commands goes on");
	kill 'KILL', map { $_->[0] } processes(command => 'sleep 4712');
	eval { $session->close };
	$node->append_conf('postgresql.conf', qq{fieldcrypt.master_key_command = ''\nfieldcrypt.master_key_command_timeout = '10s'});
	# Its other processes end when they hear of it; long before the command's time is up.
	my ($is_there, $until) = (0, time + 30);
	until ($is_there || time > $until) { $is_there = $node->start(fail_ok => 1) or select undef, undef, undef, 0.5 }
	ok($is_there, "$name: the server starts again") or BAIL_OUT('no server');
}

# No source at all is no fault: a line, and none at a reload.
{
	my $from = started($node);
	like(said($node, $from, qr/no master key/), qr/^LOG: .*no master key is configured\nHINT: .*fieldcrypt\.master_key_file/, 'no source: told once, at LOG');
	$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '/nonexistent/key'\nfieldcrypt.master_key_command = 'true'");
	$from = -s $node->logfile;
	$node->reload;
	like(said($node, $from, qr/are set/), qr/WARNING: .*both fieldcrypt\.master_key_file and fieldcrypt\.master_key_command are set/, 'two sources');
	$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$path'\nfieldcrypt.master_key_command = ''");
	$from = -s $node->logfile;
	$node->reload;
	said($node, $from, qr/can be read/);
}

# A standby has a key file of its own, or has not.
{
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '/nonexistent/key'");
	$standby->start;
	like(said($standby, 0, qr/does not exist/), qr/WARNING: .*fieldcrypt\.master_key_file names a file that does not exist\nHINT/, 'a standby: says it at its start');
	is(value($standby, 'SELECT pg_is_in_recovery()'), 't', 'and is there');
	my $from = -s $standby->logfile;
	$standby->append_conf('postgresql.conf', "fieldcrypt.master_key_file = '$path'");
	$standby->reload;
	like(said($standby, $from, qr/can be read/), qr/can be read/, 'and that the key has come');
	$standby->stop;
}

unlike(slurp_file($node->logfile), qr/PANIC|XX000|panicked/, 'no internal error');
$node->stop;
done_testing();
