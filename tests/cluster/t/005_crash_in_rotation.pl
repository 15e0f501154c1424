# Rotation of many tenants, killed in the middle while others write: each tenant has exactly one
# active key, everything that was committed is readable, and rotation goes on.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $tenants = 300;
my $node = new_cluster('primary');
value($node, <<SQL);
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT format('tenant %s', i), fieldcrypt.encrypt_field(format('of %s', i), tenant => format('tenant %s', i))
  FROM generate_series(1, $tenants) AS i;
SQL

# Values that are committed one by one, while keys rotate.
my $writer_loop = <<SQL;
DO \$\$ BEGIN
    FOR i IN 1 .. 1000000 LOOP
        INSERT INTO kept SELECT format('tenant %s', t), fieldcrypt.encrypt_field(format('of %s', t), tenant => format('tenant %s', t))
          FROM (SELECT 1 + i % $tenants AS t) AS t;
        COMMIT;
    END LOOP;
END \$\$;
SQL

# What must hold, as one line.
my $state = <<'SQL';
SELECT format('one active: %s, versions without a gap: %s, the others deactivated: %s, recorded: %s, readable: %s',
    bool_and(active = 1), bool_and(versions = newest), bool_and(deactivated = versions - 1),
    sum(versions) = (SELECT count(*) FROM fieldcrypt.audit_log WHERE event IN ('key_created', 'key_rotated'))
      AND sum(deactivated) = (SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'key_deactivated'),
    (SELECT count(*) FROM kept WHERE fieldcrypt.decrypt_field(value) IS DISTINCT FROM replace(tenant, 'tenant', 'of')) = 0)
  FROM (SELECT tenant, count(*) FILTER (WHERE state = 'active') AS active, count(*) AS versions, max(version) AS newest,
               count(*) FILTER (WHERE state = 'deactivated') AS deactivated
          FROM fieldcrypt.encryption_keys GROUP BY tenant) AS t
SQL
my $sound = 'one active: t, versions without a gap: t, the others deactivated: t, recorded: t, readable: t';
my $count = q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE purpose = 'field'};

my %kills = (
	endings($node),
	'kill -9 of the writer' => sub { crash($node, pop); },
);
foreach my $name (sort keys %kills)
{
	foreach my $progress (1, 40, 130)
	{
		my $before = value($node, $count);
		my ($rotation, $writer, $watcher) = map { session($node) } 1 .. 3;
		my @processes = map { $_->server_process } $rotation, $writer;
		$writer->send($writer_loop);
		$rotation->send('CALL fieldcrypt.rotate_keys(force => true)');
		usleep(500) while $watcher->value($count) < $before + $progress;
		$kills{$name}->(@processes);
		# After a crash of one process the postmaster ends the others and recovers.
		$node->poll_query_until('postgres', <<SQL) or die 'the server does not come back';
SELECT NOT pg_is_in_recovery() AND count(pg_terminate_backend(pid)) = 0
  FROM pg_stat_activity WHERE pid IN ($processes[0], $processes[1])
SQL
		$_->close foreach $rotation, $writer, $watcher;
		my $rotated = value($node, $count) - $before;
		my $expected = $name =~ /writer|postmaster/ ? $tenants : $tenants - 1;
		ok($rotated > 0 && $rotated <= $expected, "$name, after $progress: rotation was under way ($rotated of $tenants)");
		gives($node, $state, $sound, "$name, after $progress: sound");
	}
	my $before = value($node, $count);
	my $result = run_sql($node, 'CALL fieldcrypt.rotate_keys(force => true)');
	like($result->{err}, qr/\b$tenants rotated, 0 failed/, "$name: rotation goes on");
	is(value($node, $count) - $before, $tenants, "$name: all tenants got a new version");
	gives($node, $state, $sound, "$name: and is sound");
}

$node->stop;
done_testing();
