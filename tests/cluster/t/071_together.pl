# The procedures against each other: no deadlock, no lost key, and none that waits for ever.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ], conf => "deadlock_timeout = 200ms\n");
value($node, <<'SQL');
SELECT fieldcrypt.create_key('t' || n) FROM generate_series(1, 20) AS n;
CREATE TABLE vault (document text);
INSERT INTO vault SELECT fieldcrypt.export_keys();
SQL

my $deadlocks = sub { return scalar grep { /40P01|deadlock detected/ } split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile) };

note 'an import, and a transaction that changes a key and then makes one';
{
	my ($one, $two) = (session($node), session($node));
	$one->gives(q{BEGIN; SELECT fieldcrypt.suspend_key((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 't1'), 'x')}, '', 'a key is suspended');
	my $import = $two->send('SELECT imported FROM (SELECT (fieldcrypt.import_keys(document)).* FROM vault) AS i');
	$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted}) or die;
	$one->gives(q{SELECT fieldcrypt.create_key('new') > 0}, 't', 'the transaction makes a key');
	$one->gives('COMMIT', '', 'and commits');
	is(value($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'new'}), 1, 'the key is there');
	$_->close foreach $one, $two;
}
is($deadlocks->(), 0, 'no deadlock');

note 'all of them at once, over a table that is in use';
{
	value($node, <<'SQL');
CREATE TABLE notes (id int PRIMARY KEY, plain text, sealed fieldcrypt.encrypted);
INSERT INTO notes SELECT n, 'note ' || n, fieldcrypt.encrypt_field('note ' || n, '', 't' || (2 + n % 19)) FROM generate_series(1, 2000) AS n;
SQL
	my $folder = PostgreSQL::Test::Utils::tempdir();
	my $write = sub {
		my ($name, $text) = @_;
		open my $file, '>', "$folder/$name.sql" or die;
		print $file $text;
		close $file or die;
		return "$folder/$name.sql";
	};
	my $use = $write->('use', <<'SQL');
\set id random(1, 2000)
\set tenant random(2, 20)
UPDATE notes SET plain = 'changed ' || :id || ' ' || :tenant, sealed = fieldcrypt.encrypt_field('changed ' || :id || ' ' || :tenant, '', 't' || :tenant) WHERE id = :id;
SELECT count(fieldcrypt.decrypt_field(sealed)) FROM notes WHERE id = :id;
SQL
	my %loops = (
		rotation => 'CALL fieldcrypt.rotate_keys(force => true)',
		master_key => 'CALL fieldcrypt.rotate_master_key(batch_size => 7)',
		reencryption => 'CALL fieldcrypt.reencrypt(batch_size => 50, rows_per_second => 0)',
		reencryption_too => q{CALL fieldcrypt.reencrypt('notes', batch_size => 30, rows_per_second => 0)},
		destruction => 'CALL fieldcrypt.destroy_due_keys()',
		retirement => 'SELECT count(*) FROM fieldcrypt.retire_keys(3)',
		compromise => q{SELECT fieldcrypt.mark_compromised(key_id, 'x') FROM fieldcrypt.encryption_keys WHERE state = 'active' AND tenant <> 't1' ORDER BY random() LIMIT 1},
		suspension => q{WITH k AS MATERIALIZED (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'deactivated' AND tenant = 'new' LIMIT 1) SELECT fieldcrypt.suspend_key(key_id, 'x'), fieldcrypt.resume_key(key_id, 'x') FROM k},
		import => 'SELECT fieldcrypt.import_keys(document) FROM vault ORDER BY random() LIMIT 1',
		export => 'INSERT INTO vault SELECT fieldcrypt.export_keys()');
	my $seconds = $ENV{FIELDCRYPT_TOGETHER} // 15;
	my @running;
	foreach my $name ('use', sort keys %loops)
	{
		my @options = $name eq 'use' ? ('-c', 3, '-j', 1, '-f', $use) : ('-c', 1, '-M', 'simple', '-f', $write->($name, "$loops{$name};\n\\sleep 50 ms\n"));
		my ($out, $err) = ('', '');
		push @running, [ $name, \$out, \$err, IPC::Run::start([ 'pgbench', '-n', '-T', $seconds, @options, '-h', $node->host, '-p', $node->port, 'postgres' ],
			'<', \'', '>', \$out, '2>', \$err) ];
	}
	my $until = time + $seconds - 2;
	my @keys = (key_text(1), key_text(2));
	while (time < $until)
	{
		@keys = reverse @keys;
		write_key_file($node->basedir . '/master.key', @keys);
		$node->reload;
		sleep 1;
	}
	foreach my $one (@running)
	{
		my ($name, $out, $err, $run) = @$one;
		$run->finish;
		my @errors = grep { !/^(?:NOTICE|WARNING|HINT|DETAIL|CONTEXT)/ && /ERROR|aborted|error/ } split /\n/, $$err;
		is(join("\n", @errors), '', "$name: no error");
		cmp_ok($$out =~ /number of transactions actually processed: (\d+)/ ? $1 : 0, '>', 1, "$name: done more than once");
	}
	is($deadlocks->(), 0, 'no deadlock');
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
	is(join("\n", grep { /\b(?:40001|40P01|XX[0-9]{3})\b|leak/ } split /\n/, $log), '', 'nor anything else that hints at one');
	is(value($node, q{SELECT count(*) FROM notes WHERE fieldcrypt.decrypt_field(sealed) IS DISTINCT FROM plain}), 0, 'every value is the one last written');
	is(value($node, q{SELECT count(*) FROM fieldcrypt.verify_keys() WHERE NOT ok}), 0, 'every key opens');
	run_sql($node, 'CALL fieldcrypt.rotate_master_key(); CALL fieldcrypt.reencrypt(rows_per_second => 0)');
	is(value($node, q{SELECT count(*) FROM notes AS n JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(n.sealed) WHERE k.state <> 'active'}), 0, 'and in the end all are on active keys');
}

no_crash($node);
done_testing();
