# How PostgreSQL 17 and 18 read and find files: streams of reads by each io_method, incremental backups, JSON_TABLE over what
# is decrypted, extensions that lie elsewhere.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $version = server_version();
plan skip_all => 'what is tried here came with PostgreSQL 17 and 18' if $version < 17;
my $node = new_cluster('primary', init => { allows_streaming => 1 },
	conf => "shared_preload_libraries = 'pg_fieldcrypt'\nsummarize_wal = on\nshared_buffers = 1MB\nfieldcrypt.audit_worker_linger = '300ms'\n");
value($node, q{CREATE TABLE many (id int, v fieldcrypt.encrypted);
INSERT INTO many SELECT i, fieldcrypt.encrypt_field(repeat('CANARY ', 100) || i, 'many', 'acme') FROM generate_series(1, 1500) AS i;
SELECT fieldcrypt.set_column_context('many', 'v', constant => 'many')});
my $readable = q{SELECT count(*) FROM many WHERE fieldcrypt.decrypt_field(v, 'many') = repeat('CANARY ', 100) || id};

foreach my $method ($version >= 18 ? qw(sync worker io_uring) : ('as in 17'))
{
  SKIP:
	{
		if ($version >= 18)
		{
			$node->adjust_conf('postgresql.conf', 'io_method', $method);
			$node->stop;
			skip "io_method = $method does not work here", 1 if !$node->start(fail_ok => 1);
		}
		value($node, q{SET client_min_messages = error; CALL fieldcrypt.rotate_keys('acme', force => true); CALL fieldcrypt.reencrypt('many'); CALL fieldcrypt.verify_values('many'); VACUUM many});
		gives($node, $readable, '1500', "reads by $method: re-encrypted, and readable");
		gives($node, q{SELECT count(DISTINCT fieldcrypt.key_id(v)), (SELECT values_seen FROM fieldcrypt.value_verifications), (SELECT count(*) FROM fieldcrypt.value_failures) FROM many}, '1|1500|0', "reads by $method: all moved, all verified");
		my @workers = split /\n/, value($node, q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'io worker'});
		is(scalar(grep { memory_of($_) =~ /(?:CANARY ){5}/ } @workers), 0, "reads by $method: no plaintext in the " . @workers . ' workers that read') if @workers;
	}
}
if ($version >= 18 && !$node->{_pid})
{
	$node->adjust_conf('postgresql.conf', 'io_method', 'worker');
	$node->start;
}

gives($node, <<'SQL', 'Ada|2', 'JSON_TABLE over a decrypted document');
WITH stored AS MATERIALIZED (SELECT fieldcrypt.encrypt_field_jsonb('{"people": [{"name": "Ada", "n": 2}]}', 'j', 'acme') AS doc)
SELECT t.* FROM stored, JSON_TABLE(fieldcrypt.decrypt_field_jsonb(doc, 'j'), '$.people[*]' COLUMNS (name text PATH '$.name', n int PATH '$.n')) AS t
SQL

# A full backup, what came since, and both put together.
$node->backup('full');
value($node, q{SET client_min_messages = error; CALL fieldcrypt.rotate_keys('acme', force => true); CALL fieldcrypt.reencrypt('many')});
my $backups = $node->backup_dir;
$node->command_ok([ 'pg_basebackup', '--no-sync', '-D', "$backups/more", '-d', $node->connstr('postgres'), '--checkpoint', 'fast', '--incremental', "$backups/full/backup_manifest" ], 'an incremental backup');
my $contents = contents($node, 'postgres');
my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init_from_backup($node, 'more', combine_with_prior => ['full']);
use_key_file($restored, key_text(1));
$restored->start;
same_contents(contents($restored, 'postgres'), $contents, 'has keys and log');
gives($restored, $readable, '1500', 'and values that are readable');
no_crash($restored);
$restored->stop;

SKIP:
{
	skip 'extension_control_path came with PostgreSQL 18', 1 if $version < 18;
	my $place = PostgreSQL::Test::Utils::tempdir();
	mkdir "$place/$_" or die $! foreach qw(extension lib);
	my ($share, $library) = ($node->config_data('--sharedir'), $node->config_data('--pkglibdir'));
	system("cp $share/extension/pg_fieldcrypt* $place/extension && cp $library/pg_fieldcrypt.so $place/lib") == 0 or die 'cp';
	system("sed -i \"s/^comment = .*/comment = 'from elsewhere'/\" $place/extension/pg_fieldcrypt.control") == 0 or die 'sed';
	my $other = new_cluster('elsewhere', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nextension_control_path = '$place:\$system'\ndynamic_library_path = '$place/lib:\$libdir'\n");
	gives($other, q{SELECT obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'pg_fieldcrypt'}, 'from elsewhere', 'an extension that lies elsewhere');
	gives($other, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))}, 'x', 'works');
	like(slurp_file("/proc/" . $other->{_pid} . "/maps"), qr{\Q$place\E/lib/pg_fieldcrypt\.so}, 'with the library from there');
	no_crash($other);
	$other->stop;
}
no_crash($node);
$node->stop;
done_testing();

# The writable memory of a process, its own and shared. A statement's text is there, too; it does not repeat the word.
sub memory_of
{
	my ($process) = @_;
	no warnings 'portable';
	my $memory = '';
	open my $maps, '<', "/proc/$process/maps" or die $!;
	open my $from, '<:raw', "/proc/$process/mem" or die $!;
	foreach (<$maps>)
	{
		next unless /^([0-9a-f]+)-([0-9a-f]+) rw/;
		my ($start, $size) = (hex $1, hex($2) - hex $1);
		seek $from, $start, 0 or next;
		$memory .= $_ if defined read($from, $_, $size);
	}
	return $memory;
}
