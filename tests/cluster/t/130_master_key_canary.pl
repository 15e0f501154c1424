# A master key that came from a file or a command is nowhere afterwards: not in the data directory, the
# log, a setting or a message, and not in the core dump of a session that has used it. Nor are the
# keys derived from it.

use strict;
use warnings;

use FieldcryptTest;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

needs_program('gcore', 'gdb');

# The first three become the master key one after another; what is found of any is found.
my @masters = map { pack "H*", $_ }
  ('7e19a3c45f0b8d6271e4c8392a5df0b16c8e43f7190da2b5e86c3f1d94b7a052', 'a17f0c93d85e2b64f9308ac1754de6bb02c97f41e85a136dc4f2907bb83e5d16',
	'3bd87a15e2f64c9098c1b57e0da34f62df187ea9035bc6418fe2d03a769c4b11');
my $in_setting = '5e2bc17f93a804d6e1f0b7c2398da645';

sub forms
{
	my ($label, $secret) = @_;
	my $hex = unpack 'H*', $secret;
	my %forms = ("$label, raw" => $secret, "$label, hex" => $hex, "$label, HEX" => uc $hex);
	my $base64 = encode_base64($secret, '');
	$forms{"$label, base64"} = $base64;
	$forms{"$label, base64url"} = $base64 =~ tr{+/}{-_}r if $base64 =~ m{[+/]};
	# Half a key is too much.
	$forms{"$label, first half"} = substr $secret, 0, 16;
	$forms{"$label, second half"} = substr $secret, 16;
	return %forms;
}

# AES by the openssl program: of the tools at hand it is the one that shares no code with the extension.
sub openssl
{
	my ($input, @arguments) = @_;
	my $out = '';
	IPC::Run::run([ 'openssl', 'enc', @arguments ], '<', \$input, '>', \$out) or die "openssl @arguments failed";
	return $out;
}

# XAES-256-GCM's derived key (C2SP), for a key and the first 12 bytes of the nonce.
sub xaes_derived
{
	my ($key, $prefix) = @_;
	my @ecb = ('-aes-256-ecb', '-nopad', '-K', unpack('H*', $key));
	my @bits = split //, unpack 'B*', openssl("\0" x 16, @ecb);
	my $top = shift @bits;
	my $k1 = pack 'B*', join('', @bits) . '0';
	$k1 ^= ("\0" x 15) . "\x87" if $top;
	return join '', map { openssl(("\0" . chr($_) . "X\0" . $prefix) ^ $k1, @ecb) } 1, 2;
}

# Opens a wrapped key: version ‖ 24 nonce ‖ 32 ciphertext ‖ 16 tag. The tag is not checked here.
sub unwrap
{
	my ($wrap_key, $wrapped) = @_;
	my $nonce = substr $wrapped, 1, 24;
	my $counter = substr($nonce, 12, 12) . "\0\0\0\2";
	return openssl(substr($wrapped, 25, 32),
		'-aes-256-ctr', '-K', unpack('H*', xaes_derived($wrap_key, substr $nonce, 0, 12)), '-iv', unpack('H*', $counter));
}

sub gcore
{
	my ($process, $name) = @_;
	my $path = PostgreSQL::Test::Utils::tempdir() . "/$name";
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'gcore', '-o', $path, $process ], '<', \'', '>', \$out, '2>', \$err);
	return -s "$path.$process" ? "$path.$process" : do { diag "$out\n$err"; undef };
}

sub nowhere
{
	my ($forms, $name, @where) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $found = files_with([ values %$forms ], @where);
	my @leaks = grep { $found->{ $forms->{$_} } } sort keys %$forms;
	return is(join("\n", @leaks), '', $name)
	  || diag join "\n", map { "$_: @{ $found->{ $forms->{$_} } }" } @leaks;
}

foreach my $source ('file', 'command')
{
	my $node = new_cluster($source, conf => "log_min_messages = debug5\nshared_buffers = 1MB\n");
	my $path = $node->basedir . '/master.key';
	my %settings = $source eq 'command' ? ('fieldcrypt.master_key_file' => '', 'fieldcrypt.master_key_command' => "cat '$path'") : ();
	my @hex = map { unpack 'H*', $_ } @masters;
	write_key_file($path, $hex[0]);
	configure($node, %settings);

	# A session that uses the key in every way, and lives through reloads: to other keys, a broken file
	# and back.
	my $session = session($node);
	my $work = q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', 'context', 'tenant ' || g), 'context') FROM generate_series(1, 20) AS g};
	$session->value("SET probe.canary = '$in_setting'");
	$session->value("CREATE TABLE kept AS SELECT g AS id, fieldcrypt.encrypt_field('kept') AS value FROM generate_series(1, 50) AS g; $work");
	my $round = 0;
	my @messages;
	foreach my $keys ([ @hex ], [ encode_base64($masters[1], ''), encode_base64($masters[0], ''), uc $hex[2] ], [ $hex[2] ], [ 'nonsense', $hex[0] ], [ $hex[0] ])
	{
		write_key_file($path, @$keys);
		configure($node, %settings, 'probe.round' => ++$round);
		foreach (1 .. 200)
		{
			last if $session->value(q{SELECT current_setting('probe.round')}) eq $round;
			sleep 0.02;
		}
		my $result = $session->run("$work; SELECT fieldcrypt.decrypt_field(value) FROM kept; SELECT row_to_json(s) FROM fieldcrypt.master_key_status() AS s");
		push @messages, $result->{out}, $result->{err};
	}
	$session->value("CALL fieldcrypt.rotate_keys('default'); UPDATE kept SET value = fieldcrypt.reencrypt_field(value)");
	# The master key is rotated, the table re-encrypted, the keys exported and imported.
	write_key_file($path, $hex[1], $hex[0]);
	configure($node, %settings, 'probe.round' => ++$round);
	$session->value("CALL fieldcrypt.rotate_master_key(); CALL fieldcrypt.rotate_keys('default'); CALL fieldcrypt.reencrypt('kept', rows_per_second => 0)");
	my $document = $session->value('SELECT fieldcrypt.export_keys()');
	push @messages, $document, $session->value("SELECT fieldcrypt.import_keys('$document'); SELECT bool_and(ok) FROM fieldcrypt.verify_keys()");
	like($messages[-1], qr/^t$/m, "$source: all keys open under the new master key");
	# One statement at a time, so that each has a key derived of its own.
	$session->value(q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))}) foreach 1 .. 5;
	$session->value('SELECT count(*) FROM kept WHERE fieldcrypt.decrypt_field(value) = $$kept$$');

	# What is secret: the master keys, what is derived of them, and of the keys in use.
	my (%masters, %derived);
	foreach my $index (0 .. $#masters)
	{
		%masters = (%masters, forms("master key $index", $masters[$index]));
		foreach my $info (qw(wrap export))
		{
			%derived = (%derived, forms("$info key $index", hkdf($masters[$index], $info, 32)));
		}
		# HKDF's own middle.
		%derived = (%derived, forms("extracted key $index", Digest::SHA::hmac_sha256($masters[$index], 'pg_fieldcrypt/v1')));
	}
	my $wrap = hkdf($masters[1], 'wrap', 32);
	my %data;
	foreach my $line (split /\n/, value($node, q{SELECT key_id, encode(wrapped_key, 'hex'), encode(key_check, 'hex') FROM fieldcrypt.encryption_keys WHERE tenant IN ('default', 'tenant 1')}))
	{
		my ($id, $wrapped, $check) = split /\|/, $line;
		my $key = unwrap($wrap, pack 'H*', $wrapped);
		is(unpack('H*', hkdf($key, 'dek-check' . pack('Q>', $id), 16)), $check, "$source: the test unwraps key $id");
		my $suite = hkdf($key, "suite\1" . pack('Q>', $id), 32);
		%data = (%data, forms("data key $id", $key), forms("suite key $id", $suite));
		# Not the AES key of a nonce block: the processor's registers hold it, and a core dump them.
	}

	my $core = gcore($session->server_process, $source);
	ok(defined $core, "$source: a core dump of the session");
	is_deeply([ keys %{ files_with([ $in_setting, $in_setting x 2 ], $core) } ], [$in_setting],
		"$source: the search finds in it what stands in a setting, and nothing else");
	nowhere(\%masters, "$source: no master key in the core dump", $core);
	nowhere(\%derived, "$source: no key derived from a master key in the core dump", $core);
	nowhere(\%data, "$source: no data key or suite key in the core dump", $core);
	unlink $core;

	# The postmaster, and a new session that has only failed.
	my $postmaster = gcore(slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/, "$source.postmaster");
	nowhere({ %masters, %derived, %data }, "$source: nothing in the postmaster's core dump", $postmaster);
	unlink $postmaster;
	write_key_file($path, "$hex[0]00", $hex[1], 'nonsense');
	my $failed = session($node);
	push @messages, $failed->run($work)->{err};
	write_key_file($path, $hex[0], 'nonsense');
	push @messages, $failed->run($work)->{err};
	my $core_of_failed = gcore($failed->server_process, "$source.failed");
	nowhere({ %masters, %derived }, "$source: nothing in the core dump of a session that refused the keys", $core_of_failed);
	unlink $core_of_failed;
	$failed->close;

	write_key_file($path, $hex[0]);
	my $text = join "\n", @messages, value($node, 'SELECT s::text FROM pg_settings AS s; SHOW ALL; SELECT a::text FROM fieldcrypt.audit_log AS a; SELECT a::text FROM pg_stat_activity AS a; SELECT f::text FROM pg_file_settings AS f');
	my %all = (%masters, %derived, %data);
	is(join(', ', grep { index($text, $all{$_}) >= 0 } sort keys %all), '', "$source: in no message, setting or audit row");
	value($node, 'CHECKPOINT');
	$session->close;
	$node->stop;
	nowhere(\%all, "$source: nowhere in the data directory", $node->data_dir);
	nowhere(\%all, "$source: nowhere in the log, with debug5", $node->logfile);
	like(slurp_file($node->logfile), qr/DEBUG:/, "$source: which is a log with debug5");
	is_deeply([ sort keys %{ files_with([ $hex[0] ], $node->basedir) } ], [ $hex[0] ], "$source: the search finds the key in its file");
	no_crash($node);
}
done_testing();
