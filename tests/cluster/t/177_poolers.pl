# Behind a pooler that gives a server connection to another client after each transaction (pgbouncer, pool_mode =
# transaction): what goes wrong with a tenant of the session, and what does not with a locked one.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Protocol;
use Test::More;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } '/usr/sbin', '/usr/local/sbin', '/usr/bin', '/usr/local/bin';
my ($major, $minor) = ($pgbouncer ? qx($pgbouncer --version) : '') =~ /PgBouncer (\d+)\.(\d+)/i;
my $works = defined $major;
my $tracks = $works && ($major > 1 || $minor >= 20);

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
value($node, <<'SQL');
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
CREATE TABLE t (tenant text, v fieldcrypt.encrypted);
INSERT INTO t SELECT n, fieldcrypt.encrypt_field('of ' || n, tenant => n) FROM (VALUES ('acme'), ('umbrella'), ('Acme'), (repeat('long', 50))) AS l (n);
INSERT INTO t VALUES ('default', fieldcrypt.encrypt_field('of nobody'));
GRANT SELECT, INSERT ON t TO app;
SQL
my $written_for = q{SELECT 'written for ' || (SELECT t.tenant FROM t WHERE fieldcrypt.key_id(t.v) = fieldcrypt.key_id(fieldcrypt.encrypt_field('x')))};
my $others = q{SELECT fieldcrypt.decrypt_field(v) FROM t WHERE tenant = 'umbrella'};
my $own = q{SELECT fieldcrypt.decrypt_field(v) FROM t WHERE tenant = 'acme'};

# A pgbouncer with one server connection for all clients.
my @poolers;
sub pooler
{
	my (%settings) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir_short();
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	open my $users, '>', "$folder/users" or die;
	print $users qq{"app" ""\n};
	close $users;
	open my $file, '>', "$folder/ini" or die;
	print $file "[databases]\npostgres = host=@{[ $node->host ]} port=@{[ $node->port ]}\n[pgbouncer]\n";
	my %all = (
		unix_socket_dir => $folder, listen_port => $port, listen_addr => '', auth_type => 'trust', auth_file => "$folder/users", pool_mode => 'transaction',
		default_pool_size => 1, logfile => "$folder/log", pidfile => "$folder/pid", ignore_startup_parameters => 'extra_float_digits', %settings);
	print $file map { "$_ = $all{$_}\n" } sort keys %all;
	close $file;
	my ($out, $err) = ('', '');
	push @poolers, IPC::Run::start([ $pgbouncer, '-q', "$folder/ini" ], '<', \'', '>', \$out, '2>', \$err);
	foreach (1 .. 300)
	{
		last if -S "$folder/.s.PGSQL.$port";
		Time::HiRes::usleep(100_000);
	}
	return sub { Protocol->new(host => $folder, port => $port, user => 'app', @_) };
}
sub end_poolers { (shift @poolers)->kill_kill while @poolers; return }
END { local $?; end_poolers() }

sub last_of { my ($outcome) = @_; return $outcome->[-1] // 'nothing' }

SKIP:
{
	skip 'pgbouncer is not installed: nothing is tried behind a pooler', 1 if !$works;
	my $connect = pooler();
	my ($a, $b) = ($connect->(), $connect->());

	# What goes wrong: a tenant of the session is the next client's, too.
	$a->simple(q{SET fieldcrypt.tenant = 'acme'});
	is(last_of($b->simple($written_for)), 'row written for acme', 'the trap: client B writes for the tenant that client A has set');
	value($node, 'ALTER ROLE app SET fieldcrypt.require_tenant = on');
	# That is read by new server connections.
	my $fresh = sub {
		$_->close foreach $a, $b;
		value($node, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'});
		$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'app'}) or die;
		($a, $b) = ($connect->(), $connect->());
	};
	$fresh->();
	like(last_of($b->simple($written_for)), qr/^error KF029/, 'on: who has set none is refused');
	$a->simple(q{SET fieldcrypt.tenant = 'acme'});
	is(last_of($b->simple($written_for)), 'row written for acme', 'on: but a tenant of the session still is the next one\'s');

	# What does not: a tenant of the transaction.
	value($node, 'ALTER ROLE app SET fieldcrypt.require_tenant = locked');
	$fresh->();
	$a->simple(q{SET fieldcrypt.tenant = 'acme'});
	is_deeply($b->simple('SHOW fieldcrypt.tenant'), ['row acme'], 'locked: the server connection has the tenant of client A');
	like(last_of($b->simple($written_for)), qr/^error KF029/, 'locked: which does not count for client B, who writes');
	like(last_of($b->simple($own)), qr/^error KF029/, 'locked: nor who reads');
	like(last_of($b->simple(q{SELECT fieldcrypt.try_decrypt_field(v) FROM t})), qr/^error KF029/, 'locked: nor who tries');
	is(last_of($b->simple("BEGIN; SELECT fieldcrypt.lock_tenant('umbrella'); $written_for; COMMIT")), 'row written for umbrella', 'locked: client B locks its own, whatever the connection has');
	foreach my $turn (1 .. 3)
	{
		$a->simple(q{BEGIN; SELECT fieldcrypt.lock_tenant('acme')});
		is(last_of($a->simple($own)), 'row of acme', "locked, turn $turn: client A reads its own");
		like(last_of($a->simple($others)), qr/^error KF006/, "locked, turn $turn: and no others");
		$a->simple('ROLLBACK');
		$b->simple(q{BEGIN; SELECT fieldcrypt.lock_tenant('umbrella')});
		is(last_of($b->simple($others)), 'row of umbrella', "locked, turn $turn: client B reads its own");
		like(last_of($b->simple($own)), qr/^error KF006/, "locked, turn $turn: and no others");
		$b->simple('ROLLBACK');
		like(last_of($b->simple($others)), qr/^error KF029/, "locked, turn $turn: without a lock none");
	}
	my $pipeline = $b->pipeline([ 'SELECT fieldcrypt.lock_tenant($1)', 'umbrella' ], $others);
	is(last_of($pipeline), 'row of umbrella', 'locked: a pipeline, which is one transaction');
	like(last_of($b->pipeline($others)), qr/^error KF029/, 'locked: and no longer');
	is(last_of($a->simple("BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $written_for; COMMIT; SELECT current_setting('fieldcrypt.tenant')")), 'row acme', 'locked: what the session had comes back') ;

	# Clients that end in the middle.
	$a->simple(q{BEGIN; SELECT fieldcrypt.lock_tenant('acme')});
	$a->close;
	$a = $connect->();
	my $outcome = '';
	foreach (1 .. 300)
	{
		$outcome = last_of($b->simple("BEGIN; SELECT fieldcrypt.lock_tenant('umbrella'); $others; COMMIT"));
		last if $outcome eq 'row of umbrella';
		Time::HiRes::usleep(100_000);
	}
	is($outcome, 'row of umbrella', 'a client that goes away in its transaction leaves no lock');

	# What is left in the temporary schema is found before the tables that are meant, and keeps what gets into it.
	my $trap = q{CREATE TEMP TABLE loot (v text);
		CREATE FUNCTION pg_temp.spy(v text) RETURNS text LANGUAGE sql AS $$ INSERT INTO loot VALUES (v) RETURNING v $$;
		CREATE TEMP VIEW t AS SELECT tenant, v, pg_temp.spy(fieldcrypt.decrypt_field(v)) AS got FROM public.t WHERE tenant = 'umbrella'};
	my $read = q{SELECT got FROM t};
	like(last_of($a->simple("BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $trap; COMMIT")), qr/^row/, 'client A leaves a view behind');
	like(last_of($b->simple(q{SELECT fieldcrypt.lock_tenant('umbrella')})), qr/^error 55000/, 'client B, who would read through it, gets no lock');
	my $refusal = join "\n", @{ $b->pipeline('BEGIN', [ 'SELECT fieldcrypt.lock_tenant($1)', 'umbrella' ], $read) };
	like($refusal, qr/error 55000 this session has temporary objects/, 'nor in a pipeline');
	unlike($refusal, qr/of umbrella/, 'and reads nothing');
	like("@{ $b->{hints} }", qr/DISCARD TEMP/, 'and is told what to do');
	$b->simple('ROLLBACK');
	is_deeply($a->simple('SELECT count(*) FROM loot'), ['row 0'], 'client A has got nothing');
	foreach my $left ('CREATE TEMP TABLE t (LIKE public.t)', q{CREATE TYPE pg_temp.encrypted AS (v text)}, q{CREATE DOMAIN pg_temp.date AS text}, 'CREATE TEMP SEQUENCE s', 'CREATE TEMP VIEW v AS SELECT 1',
		'CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$', 'CREATE TEMP TABLE work (v text) ON COMMIT DELETE ROWS', 'SELECT 1 AS x INTO TEMP kept')
	{
		$a->simple('DISCARD TEMP');
		is(last_of($b->simple("BEGIN; SELECT fieldcrypt.lock_tenant('umbrella'); $others; COMMIT")), 'row of umbrella', 'after DISCARD TEMP client B goes on');
		$a->simple("BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $left; COMMIT");
		like($b->simple(q{BEGIN; SELECT fieldcrypt.lock_tenant('umbrella')})->[-1], qr/^error 55000/, "left behind: $left");
		$b->simple('ROLLBACK');
	}
	$a->simple('DISCARD TEMP');
	is(last_of($a->simple("BEGIN; SELECT fieldcrypt.lock_tenant('acme'); CREATE TEMP TABLE work ON COMMIT DROP AS SELECT fieldcrypt.decrypt_field(v) AS got FROM t WHERE tenant = 'acme'; SELECT fieldcrypt.lock_tenant('acme'); SELECT got FROM work; COMMIT")),
		'row of acme', 'what ends with its transaction is in nobody\'s way');
	is(last_of($b->simple("BEGIN; SELECT fieldcrypt.lock_tenant('umbrella'); $others; COMMIT")), 'row of umbrella', 'nor in the next client\'s');
	value($node, 'REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC');
	like(last_of($a->simple("BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $trap")), qr/^error 42501/, 'without the right to make temporary objects nothing can be left');
	$a->simple('ROLLBACK');
	value($node, 'GRANT TEMPORARY ON DATABASE postgres TO PUBLIC');
	$_->close foreach $a, $b;
}

# A pooler that carries the setting.
SKIP:
{
	skip 'this pgbouncer has no track_extra_parameters (1.20 has): a setting that is carried is not tried', 1 if !$tracks;
	value($node, 'ALTER ROLE app SET fieldcrypt.require_tenant = on');
	my $connect = pooler(track_extra_parameters => 'fieldcrypt.tenant');
	my ($a, $b) = ($connect->(), $connect->());
	$a->simple(q{SET fieldcrypt.tenant = 'acme'});
	$b->simple(q{SET fieldcrypt.tenant = 'umbrella'});
	foreach my $turn (1 .. 3)
	{
		is(last_of($a->simple($written_for)), 'row written for acme', "carried, turn $turn: client A writes for its own");
		is(last_of($b->simple($written_for)), 'row written for umbrella', "carried, turn $turn: client B for its own");
	}
	$a->simple(q{SET fieldcrypt.tenant = 'Acme'});
	$b->simple(q{SET fieldcrypt.tenant = 'acme'});
	$a->simple('SELECT 1');
	note 'names that differ in case alone: client A is ' . last_of($a->simple('SHOW fieldcrypt.tenant'));
	$_->close foreach $a, $b;
}

# Without a pooler: the words of the setting.
value($node, 'ALTER ROLE app RESET fieldcrypt.require_tenant');
gives($node, "SET fieldcrypt.require_tenant = $_->[0]; SHOW fieldcrypt.require_tenant", $_->[1], "the setting: $_->[0]")
  foreach [ 'on', 'on' ], [ 'off', 'off' ], [ 'true', 'on' ], [ 'false', 'off' ], [ '1', 'on' ], [ '0', 'off' ], [ 'yes', 'on' ], [ 'locked', 'locked' ], [ 'LOCKED', 'locked' ];
refused($node, 'SET fieldcrypt.require_tenant = maybe', '22023', 'the setting: another word');
foreach my $call ([ q{SELECT fieldcrypt.encrypt_field('x')}, 'KF029' ], [ $own, 'KF029' ], [ q{SELECT fieldcrypt.encrypt_field('x', '', 'umbrella')}, 'KF006' ])
{
	refused($node, "SET fieldcrypt.require_tenant = locked; SET fieldcrypt.tenant = 'acme'; $call->[0]", $call->[1], "locked: a tenant of the session does not count: $call->[0]");
}
gives($node, q{SET fieldcrypt.require_tenant = locked; SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'acme')) = fieldcrypt.key_id(v) FROM t WHERE tenant = 'acme'}, 't', 'locked: a tenant that the call names does');
gives($node, "SET fieldcrypt.require_tenant = locked; BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $own", "\nof acme", 'locked: a lock does');
gives($node, force_parallel() . "SET fieldcrypt.require_tenant = locked; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $own", "\nof acme", 'locked: in a parallel worker, too');
refused($node, force_parallel() . "SET fieldcrypt.require_tenant = locked; SET fieldcrypt.tenant = 'acme'; $own", 'KF029', 'locked: in a parallel worker, a tenant of the session does not count');

# A session that nobody shares has its temporary objects.
gives($node, "SET fieldcrypt.require_tenant = $_; CREATE TEMP TABLE mine (v text); BEGIN; SELECT fieldcrypt.lock_tenant('acme'); $own", "\nof acme", "$_: temporary tables are no matter") foreach 'on', 'off';

end_poolers();
no_crash($node);
$node->stop;
done_testing();
