# docs/monitoring: the queries give what they declare, with the rights of their own role and no more; the dashboard
# asks for figures that there are. With an exporter at hand, its answer to Prometheus too.

use strict;
use warnings;

use CPAN::Meta::YAML ();
use FieldcryptTest;
use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $folder = '../../monitoring';
my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
value($node, <<'SQL');
CREATE TABLE kept (id int PRIMARY KEY, value fieldcrypt.encrypted);
INSERT INTO kept SELECT i, fieldcrypt.encrypt_field('v', '', 'secret tenant') FROM generate_series(1, 100) AS i;
CALL fieldcrypt.rotate_keys('secret tenant');
CALL fieldcrypt.reencrypt('kept');
SELECT count(fieldcrypt.decrypt_field(value)) FROM kept;
CREATE ROLE "the-exporter" LOGIN;
SQL

# What is in the file, and what postgres_exporter makes of it: a metric for each query and column.
my $queries = CPAN::Meta::YAML->read("$folder/queries.yaml")->[0];
my (%columns, %metrics);
foreach my $name (keys %$queries)
{
	foreach my $metric (@{ $queries->{$name}{metrics} })
	{
		my ($column) = keys %$metric;
		push @{ $columns{$name} }, $column;
		$metrics{"${name}_$column"} = $metric->{$column}{usage};
		like($metric->{$column}{usage}, qr/^(LABEL|GAUGE|COUNTER)$/, "$name.$column: its kind");
		is($metric->{$column}{usage} eq 'COUNTER' ? 1 : 0, $column =~ /_total$/ && $column ne 'rows_total' ? 1 : 0, "$name.$column: a counter is called so");
		unlike($column, qr/tenant$/, "$name.$column: names no tenant");
	}
}
is(join(' ', sort keys %$queries), 'fieldcrypt_audit fieldcrypt_health fieldcrypt_reencryption fieldcrypt_stats', 'the queries');

refused($node, 'SELECT * FROM fieldcrypt.fieldcrypt_stats', '42501', qr/permission denied for schema/, 'the role has no rights yet', user => 'the-exporter');
IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'exporter=the-exporter', '-f', "$folder/rights.sql", '-d', $node->connstr('postgres') ],
	'>', \my $out, '2>', \my $err);
is($err, '', 'rights.sql runs');

foreach my $name (sort keys %$queries)
{
	(my $query = $queries->{$name}{query}) =~ s/\s+$//;
	my $rows = JSON::PP::decode_json(value($node, "SELECT json_agg(q) FROM ($query) AS q", user => 'the-exporter'));
	cmp_ok(scalar @$rows, '>', 0, "$name: has rows");
	is(join(' ', sort keys %{ $rows->[0] }), join(' ', sort @{ $columns{$name} }), "$name: has the columns that it declares");
	foreach my $column (@{ $columns{$name} })
	{
		my @bad = grep { !defined || !/^-?[0-9.]+(e[-+]?[0-9]+)?$/ } map { $_->{$column} } @$rows;
		@bad = grep { defined } @bad if $column =~ /timestamp_seconds$|^sealed_rows$/;
		next if $metrics{"${name}_$column"} eq 'LABEL';
		is(join(' ', map { $_ // 'NULL' } @bad), '', "$name.$column: numbers");
	}
	my %labels;
	my @labels = grep { $metrics{"${name}_$_"} eq 'LABEL' } @{ $columns{$name} };
	foreach my $row (@$rows) { $labels{ join '|', map { $row->{$_} } @labels }++; }
	is(join(' ', grep { $labels{$_} > 1 } keys %labels), '', "$name: no two rows with the same labels");
	unlike(JSON::PP::encode_json($rows), qr/secret tenant/, "$name: tells no tenant's name");
}
foreach my $sql ('SELECT * FROM fieldcrypt.audit_log', 'SELECT * FROM fieldcrypt.encryption_keys', 'SELECT fieldcrypt.fieldcrypt_stats_reset()',
	"SELECT fieldcrypt.encrypt_field('x')", 'CALL fieldcrypt.rotate_keys()', 'SELECT * FROM fieldcrypt.reencryption_failures')
{
	refused($node, $sql, '42501', qr/permission denied/, "the role may not: $sql", user => 'the-exporter');
}

# The queries that are comments.
{
	my $comments = join "\n", map { /^# ?( *\S.*)$/ ? $1 : () } grep { /^#/ } split /\n/, (split /# fieldcrypt_tenant:/, slurp_file("$folder/queries.yaml"))[1];
	my ($query) = $comments =~ /query: \|\n(.*?)\n\s*metrics:/s;
	is(value($node, $query, user => 'the-exporter'), 'postgres|secret tenant|100|0', 'the query with names');
}

# The dashboard.
my $dashboard = JSON::PP::decode_json(slurp_file("$folder/dashboard.json"));
my ($asked, %ids) = (0);
foreach my $panel (@{ $dashboard->{panels} })
{
	is($ids{ $panel->{id} }++, 0, "panel $panel->{title}: an id of its own");
	foreach my $target (@{ $panel->{targets} })
	{
		my @names = $target->{expr} =~ /\b(fieldcrypt_\w+)/g;
		cmp_ok(scalar @names, '>', 0, "panel $panel->{title} asks for something");
		foreach my $metric (@names)
		{
			++$asked;
			ok(defined $metrics{$metric} && $metrics{$metric} ne 'LABEL', "panel $panel->{title}: there is $metric");
			is($target->{expr} =~ /(?:rate|increase)\($metric\b/ ? 'COUNTER' : 'GAUGE', $metrics{$metric}, "panel $panel->{title}: asks for $metric as what it is");
		}
	}
}
cmp_ok($asked, '>', 20, 'the dashboard shows what there is');
foreach my $metric (slurp_file("$folder/README.md") =~ /\b(fieldcrypt_(?:stats|audit|health|reencryption)_\w+)/g)
{
	ok(defined $metrics{$metric} || $metric eq 'fieldcrypt_stats_reset', "README: there is $metric");
}

# A real exporter.
SKIP:
{
	my $exporter = (grep { -x } map { ("$_/prometheus-postgres-exporter", "$_/postgres_exporter") } split(/:/, $ENV{PATH}), split(/:/, $ENV{FIELDCRYPT_EXPORTER} // ''))[0];
	skip 'there is no postgres_exporter (Debian: prometheus-postgres-exporter)', 1 unless $exporter;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	(my $host = $node->host) =~ s{/}{%2F}g;
	local $ENV{DATA_SOURCE_NAME} = 'postgresql://the-exporter@:' . $node->port . "/postgres?host=$host&sslmode=disable";
	my ($log, $page) = ('', '');
	my $running = IPC::Run::start(
		[ $exporter, '--disable-default-metrics', '--disable-settings-metrics', '--no-collector.database', '--no-collector.bgwriter',
			"--extend.query-path=$folder/queries.yaml", "--web.listen-address=127.0.0.1:$port" ],
		'<', \'', '>', \$log, '2>', \$log, IPC::Run::timeout(60));
	foreach (1 .. 50)
	{
		eval { $running->pump_nb } or last;
		$page = http($port, '/metrics');
		last if $page =~ /fieldcrypt_stats/;
		Time::HiRes::usleep(200_000);
	}
	eval { $running->kill_kill };
	note $log;
	foreach my $metric (sort grep { $metrics{$_} ne 'LABEL' } keys %metrics)
	{
		my $kind = lc $metrics{$metric};
		like($page, qr/^# TYPE $metric $kind$/m, "exporter: $metric is a $kind");
		like($page, qr/^$metric\{[^}]*datname="postgres"[^}]*\} \S+$/m, "exporter: $metric has a value");
	}
	like($page, qr/^fieldcrypt_stats_decrypt_values_total\{\S*\} 100$/m, 'exporter: the values decrypted');
	like($page, qr/^pg_exporter_last_scrape_error 0$/m, 'exporter: no error');
	unlike($page, qr/secret tenant/, 'exporter: no tenant\'s name');
}

sub http
{
	my ($port, $path) = @_;
	require IO::Socket::INET;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 5) or return '';
	print $socket "GET $path HTTP/1.0\r\n\r\n";
	local $/;
	return <$socket> // '';
}

no_crash($node);
$node->stop;
done_testing();
