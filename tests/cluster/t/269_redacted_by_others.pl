# Values that others than the client put into the log: SQL that a function puts together from them, libraries that repeat what
# they were told, statements where the extension is not, or not any more, rows of composite types.

use strict;
use warnings;

use FieldcryptTest;
use LogCanary;
use PostgreSQL::Test::Utils;
use ServerLog;
use Test::More;
use Time::HiRes ();
use Wire;

chomp(my $folder = `$ENV{PG_CONFIG} --pkglibdir`);
my %has = map { $_ => 1 } grep { -e "$folder/$_.so" } qw(auto_explain pgaudit pg_cron dblink postgres_fdw);
my $preload = join ', ', (grep { $has{$_} } qw(auto_explain pgaudit)), 'pg_fieldcrypt';
my $node = new_cluster('primary', conf => everything_logged() . <<"CONF");
shared_preload_libraries = '$preload'
wal_level = replica
max_wal_senders = 5
pgaudit.log = 'all'
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
auto_explain.log_verbose = on
CONF
my %modes = (
	'everything' => '',
	'errors' => '-c log_statement=none -c log_min_duration_statement=-1 -c pgaudit.log=none -c auto_explain.log_min_duration=-1');
my $log = LogCanary->new($node);

# Sessions that know the names already, in each of the modes. A step is a statement, or runs in another session.
sub hides
{
	my ($name, $logged, $steps, %options) = @_;
	foreach my $mode (sort keys %modes)
	{
		$log->hides(
			sub {
				my ($canary) = @_;
				my $session = session($node, %options, env => { PGOPTIONS => $modes{$mode} });
				my $result;
				foreach my $step ('SELECT 1', 'SELECT 1 / 0', 'SELECT 2', @$steps)
				{
					$result = ref $step ? $step->($canary) : $session->run($step =~ s/CANARY/$canary/gr);
				}
				$session->close;
				return $result;
			},
			"$mode: $name", $logged);
	}
	return;
}

sub elsewhere
{
	my ($db, $sql) = @_;
	return sub { my ($canary) = @_; value($node, $sql =~ s/CANARY/$canary/gr, db => $db, env => { PGOPTIONS => $modes{errors} }) };
}

# Where the extension is not: the application came before its migration, or to the wrong database.
create_database($node, 'without', extension => 0);
my @in = (db => 'without');
foreach my $call (
	q{fieldcrypt.encrypt_field('CANARY')}, q{fieldcrypt.no_such_thing('CANARY')}, q{fieldcrypt_internal.nothing('CANARY')},
	q{encrypt_field('CANARY')}, q{ENCRYPT_FIELD /* c */ ('CANARY')},
	q{"encrypt_field"('CANARY')}, q{'CANARY'::encrypted}, q{'CANARY'::fieldcrypt.encrypted}, q{'CANARY'::encrypted_text})
{
	hides("without the extension, $call", qr/(?:3F000|42883|42704)/, ["SELECT $call"], @in);
}
hides('without the extension, a column', qr/42704/, [q{CREATE TABLE t (ssn encrypted, note text CHECK (note <> 'CANARY'))}], @in);
hides('without the extension, DO', qr/3F000/, [q{DO $$ BEGIN PERFORM fieldcrypt.encrypt_field('CANARY'); END $$}], @in);
# Every function that users call.
my @functions = split /\n/, value($node, <<'SQL');
SELECT CASE prokind WHEN 'p' THEN 'CALL ' ELSE 'SELECT ' END || proname FROM pg_proc WHERE pronamespace = 'fieldcrypt'::regnamespace
SQL
cmp_ok(scalar @functions, '>', 50, 'the functions of users');
foreach my $mode (sort keys %modes)
{
	my $outcome = $log->run(
		sub {
			my ($canary) = @_;
			my $sql = join "\n", 'SELECT 1;', 'SELECT 1 / 0;', 'SELECT 2;', map { "$_('$canary');" } @functions;
			run_sql($node, $sql, @in, env => { PGOPTIONS => $modes{$mode} });
		});
	my @shown = grep { /$outcome->{pattern}/ } split /\n/, $outcome->{log}{stderr};
	is(join("\n", @shown), '', "$mode: without the extension, all functions that users call");
}
value($node, <<'SQL', @in);
CREATE FUNCTION register(t text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN fieldcrypt.encrypt_field(t); END $$;
CREATE FUNCTION registers() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.t := register(NEW.t); RETURN NEW; END $$;
CREATE TABLE registered (t text);
CREATE TRIGGER registers BEFORE INSERT ON registered FOR EACH ROW EXECUTE FUNCTION registers();
CREATE TABLE plain (id int PRIMARY KEY, t text);
SQL
hides('without the extension, a function that calls it', qr/3F000/, [q{SELECT register('CANARY')}], @in);
hides('without the extension, a trigger that calls it', qr/3F000/, [q{INSERT INTO registered VALUES ('CANARY')}], @in);
hides('without the extension, a new trigger that calls it', qr/3F000/,
	[
		'DROP TABLE IF EXISTS other; CREATE TABLE other (t text)', 'SELECT 1',
		elsewhere('without', 'CREATE TRIGGER registers BEFORE INSERT ON other FOR EACH ROW EXECUTE FUNCTION registers()'),
		q{INSERT INTO other VALUES ('CANARY')}
	],
	@in);
$log->shows(sub { run_sql($node, "SELECT 1; SELECT '$_[0]'::int FROM plain", @in) }, 'without the extension, something else');

# DROP EXTENSION, by another session or this one, and what comes after.
create_database($node, 'dropped');
@in = (db => 'dropped');
my $drop = 'SET fieldcrypt.allow_drop = on; DROP EXTENSION IF EXISTS pg_fieldcrypt CASCADE; DROP TABLE IF EXISTS patients';
my $create = <<'SQL';
DROP TABLE IF EXISTS patients; CREATE EXTENSION IF NOT EXISTS pg_fieldcrypt; CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted)
SQL
my ($drops, $creates) = map { elsewhere('dropped', $_) } $drop, $create;
foreach my $use (
	q{SELECT fieldcrypt.encrypt_field('CANARY')}, q{SELECT encrypt_field('CANARY')}, q{INSERT INTO patients (id, ssn) VALUES (1, 'CANARY')},
	q{SELECT 'CANARY'::int FROM patients})
{
	my @known = ($creates, $use, 'SELECT 1');
	hides("after DROP EXTENSION by another session, $use", undef, [ @known, $drops, $use, 'SELECT 1', $use ], @in);
	hides("after DROP EXTENSION, $use", undef, [ @known, $drop, $use ], @in);
	hides("in the transaction of DROP EXTENSION, $use", undef, [ @known, 'BEGIN', 'SET LOCAL fieldcrypt.allow_drop = on', 'DROP EXTENSION pg_fieldcrypt CASCADE', $use, 'ROLLBACK', $use ], @in);
	hides("after DROP EXTENSION and CREATE EXTENSION, $use", undef, [ @known, $drops, 'SELECT 1', $creates, $use ], @in);
}

# Composite types that hold values, at any depth.
value($node, <<'SQL');
CREATE TYPE pair AS (a fieldcrypt.encrypted, b text);
CREATE TYPE outer_pair AS (p pair, n int);
CREATE DOMAIN pair_domain AS pair;
CREATE TYPE later AS (b text);
CREATE TABLE of_later (v later, note text CHECK (note !~ '^Zq'));
CREATE FUNCTION makes_later(later, note text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE of_pair (v pair, note text CHECK (note !~ '^Zq'));
CREATE TABLE of_outer (v outer_pair, note text CHECK (note !~ '^Zq'));
CREATE TABLE of_array (v pair[], note text CHECK (note !~ '^Zq'));
CREATE TABLE of_outer_array (v outer_pair[], note text CHECK (note !~ '^Zq'));
CREATE TABLE of_domain (v pair_domain, note text CHECK (note !~ '^Zq'));
CREATE TABLE of_rows (v of_pair, note text CHECK (note !~ '^Zq'));
CREATE TABLE of_type OF pair (CHECK (b !~ '^Zq'));
CREATE TABLE above (v pair, note text CHECK (note !~ '^Zq')) PARTITION BY LIST (note);
CREATE TABLE below PARTITION OF above DEFAULT;
CREATE VIEW pair_view AS SELECT note FROM of_pair;
CREATE VIEW outer_view AS SELECT note FROM of_outer;
CREATE FUNCTION takes_pair(pair, note text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION takes_pairs(pair[], note text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION gives_pair(note text) RETURNS pair LANGUAGE sql AS 'SELECT NULL::pair';
CREATE FUNCTION gives_outer(note text) RETURNS SETOF outer_pair LANGUAGE sql AS 'SELECT NULL::outer_pair';
CREATE FUNCTION into_outer(note text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO of_outer (note) VALUES (note); END $$;
CREATE TABLE plain (id int PRIMARY KEY, t text);
SQL
hides("a row of a composite type, $_", qr/23514/, ["INSERT INTO $_ (note) VALUES ('CANARY')"]) 
  foreach qw(of_pair of_outer of_array of_outer_array of_domain of_rows above below pair_view outer_view);
hides('a table of a composite type', qr/23514/, [q{INSERT INTO of_type (b) VALUES ('CANARY')}]);
hides("a composite type in a function, $_", undef, ["SELECT $_, 'CANARY'::int"])
  foreach q{takes_pair(NULL, 'CANARY')}, q{takes_pairs(NULL, 'CANARY')}, q{gives_pair('CANARY')}, q{gives_outer('CANARY')}, q{into_outer('CANARY')};
hides("a composite type in a cast, $_", qr/22P02|KF001/, [qq{SELECT '(x,CANARY'::$_}]) foreach 'pair', 'outer_pair', 'pair_domain', 'pair[]';
foreach my $own (0, 1)
{
	my $add = 'ALTER TYPE later ADD ATTRIBUTE a fieldcrypt.encrypted';
	my @steps = ('SELECT 3', $own ? $add : elsewhere('postgres', $add));
	my $undo = elsewhere('postgres', 'ALTER TYPE later DROP ATTRIBUTE IF EXISTS a');
	hides("a new attribute, own $own, a row", qr/23514/, [ $undo, @steps, q{INSERT INTO of_later (note) VALUES ('CANARY')} ]);
	hides("a new attribute, own $own, a function", undef, [ $undo, @steps, q{SELECT makes_later(NULL, 'CANARY'), 1 / 0} ]);
}
$log->shows(sub { run_sql($node, "SELECT 1; INSERT INTO plain VALUES (5, '$_[0]'), (5, '$_[0]')") }, 'a row of no such type');

# SQL that is put together from a decrypted value, words and names of which may be anything. The marker is a word of the value.
value($node, 'CREATE TABLE patients (id int, ssn fieldcrypt.encrypted)');
my $put = elsewhere('postgres', q{TRUNCATE patients; INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field('CANARY Lovelace'))});
my $value = '(SELECT fieldcrypt.decrypt_field(ssn) FROM patients)';
my $in_do = sub { return "DO \$do\$ DECLARE n text := $value; c refcursor; x text; BEGIN $_[0] END \$do\$" };
foreach my $case (
	[ q{EXECUTE 'SELECT * FROM plain WHERE t = ' || n;}, qr/42601/ ],
	[ q{EXECUTE 'SELECT ' || split_part(n, ' ', 1) || ' FROM plain';}, qr/42703/ ],
	[ q{EXECUTE 'SELECT ' || split_part(n, ' ', 1) || '()';}, qr/42883/ ],
	[ q{EXECUTE 'SELECT 1 / 0 AS ' || n || ' FROM plain';}, undef ],
	[ q{EXECUTE 'SELECT 1 / 0 AS ' || split_part(n, ' ', 1);}, qr/22012/ ],
	[ q{EXECUTE format('SELECT 1 / 0 AS %I', n);}, qr/22012/ ],
	[ q{EXECUTE format('SELECT t AS %I FROM plain AS %1$I', n);}, undef ],
	[ q{EXECUTE format('DROP TABLE IF EXISTS %I', n);}, undef ],
	[ q{EXECUTE 'LISTEN ' || split_part(n, ' ', 1);}, undef ],
	[ q{EXECUTE format('SELECT * FROM %I', n);}, qr/42P01/ ],
	[ q{EXECUTE 'DO $x$ BEGIN x := ' || n || '; END $x$';}, qr/42601/ ],
	[ q{EXECUTE 'DO $x$ DECLARE x text; BEGIN x := ' || split_part(n, ' ', 1) || '; END $x$';}, qr/42703/ ],
	[ q{EXECUTE 'DO $x$ BEGIN PERFORM 1 / 0 AS ' || split_part(n, ' ', 1) || '; END $x$';}, qr/22012/ ],
	[ q{EXECUTE 'DO $x$ BEGIN IF 1 / 0 = 1 AND ''a'' = ANY (ARRAY(SELECT t AS ' || split_part(n, ' ', 1) || ' FROM plain)) THEN END IF; END $x$';}, qr/22012/ ],
	[ q{OPEN c FOR EXECUTE 'SELECT 1 / 0 AS ' || split_part(n, ' ', 1);}, qr/22012/ ],
	[ q{FOR x IN EXECUTE 'SELECT 1 / 0 AS ' || split_part(n, ' ', 1) LOOP END LOOP;}, qr/22012/ ],
	[ q{EXECUTE 'SELECT 1 AS a ' || n || ' b';}, qr/42601/ ],
	[ q{EXECUTE n;}, qr/42601/ ])
{
	my ($code, $logged) = @$case;
	hides("in DO, $code", $logged, [ $put, $in_do->($code) ]);
}
hides('a cursor', undef, [ $put, 'BEGIN', $in_do->(q{c := 'c'; OPEN c FOR EXECUTE 'SELECT 1 AS ' || split_part(n, ' ', 1);}), 'FETCH ALL FROM c', 'COMMIT' ]);
hides('a prepared statement', undef, [ $put, 'BEGIN', $in_do->(q{EXECUTE 'PREPARE p AS SELECT 1 / 0 AS ' || split_part(n, ' ', 1);}), 'EXECUTE p', 'COMMIT' ]);
foreach my $case (
	[ "query_to_xml('SELECT * FROM plain WHERE t = ' || $value, true, true, '')", qr/42601/ ],
	[ "query_to_xml('SELECT 1 / 0 AS ' || $value, true, true, '')", undef ],
	[ "(SELECT count(*) FROM ts_stat('SELECT ' || $value))", undef ],
	[ "ts_rewrite('a'::tsquery, 'SELECT ' || $value)", undef ],
	[ "(SELECT count(*) FROM json_populate_recordset(NULL::plain, ('[{' || $value || '}]')::json))", qr/22P02/ ])
{
	my ($call, $logged) = @$case;
	hides("of a value, $call", $logged, [ $put, "SELECT $call" ]);
}
# The client's own statement stays readable, and an error about its words.
$log->shows(sub { run_sql($node, 'SELECT 1; SELECT nothing FROM patients') }, 'the statement itself', qr/column .{1,2}nothing.{1,2} does not exist/);
$log->shows(sub { run_sql($node, q{DO $$ BEGIN EXECUTE 'SELECT nothing FROM patients'; END $$}) }, 'where it was',
	qr/PL\/pgSQL function inline_code_block line 1 at EXECUTE/);

# What another session says to this server goes past the log, unless it is told not to send it (docs/logs.md).
SKIP:
{
	skip 'no dblink, no postgres_fdw', 1 if !$has{dblink} || !$has{postgres_fdw};
	my $quiet = "options '-c client_min_messages=error'";
	my ($host, $port) = ($node->host, $node->port);
	value($node, <<"SQL");
CREATE EXTENSION dblink;
CREATE EXTENSION postgres_fdw;
CREATE FUNCTION says() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN RAISE NOTICE 'it is %', NEW.t; RAISE WARNING 'it is %', NEW.t; RETURN NEW; END \$\$;
CREATE TABLE there (t text, held fieldcrypt.encrypted);
CREATE TRIGGER says BEFORE INSERT ON there FOR EACH ROW EXECUTE FUNCTION says();
CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres', $quiet);
CREATE USER MAPPING FOR PUBLIC SERVER here;
CREATE FOREIGN TABLE far (t text) SERVER here OPTIONS (table_name 'there');
SQL
	my $connection = "host=$host port=$port dbname=postgres " . ($quiet =~ s/ /=/r);
	$connection =~ s/'/''/g;
	my $says = "DO \$x\$ BEGIN RAISE NOTICE 'it is %', (SELECT fieldcrypt.decrypt_field(ssn) FROM patients); END \$x\$";
	hides('NOTICE to dblink', qr/inline_code_block line 1 at RAISE/, [ $put, "SELECT dblink_exec('$connection', \$y\$$says\$y\$)" ]);
	hides('NOTICE to postgres_fdw', qr/says\(\) line 1 at RAISE/, [ $put, "INSERT INTO far SELECT fieldcrypt.decrypt_field(ssn) FROM patients" ]);
}

# Numbers, booleans, strings stuck to a number, comments: in pgaudit's CSV as well.
foreach my $sql (
	q{SELECT fieldcrypt.encrypt_field_as(735101019, NULL)},
	q{/* 735101019, "a" */ SELECT fieldcrypt.encrypt_field('x', 'y')}, qq{SELECT fieldcrypt.encrypt_field('x', 'y'), -- 735101019\n2},
	q{SELECT fieldcrypt.encrypt_field('x'), 735101019 AS "a"}, q{INSERT INTO patients VALUES (735101019, NULL)},
	q{INSERT INTO patients VALUES (1$$735101019 b$$)}, q{INSERT INTO patients VALUES (1e$$735101019 b$$)},
	q{INSERT INTO patients VALUES (1.$a$735101019 b$a$)}, q{INSERT INTO patients VALUES ($1a$$735101019$$)})
{
	foreach my $mode (sort keys %modes)
	{
		my $outcome = $log->run(sub { run_sql($node, "SELECT 1; SELECT 1 / 0; SELECT 2;\n$sql", env => { PGOPTIONS => $modes{$mode} }) });
		my @found = map { grep { /735101019/ } split /\n/, $outcome->{log}{$_} } sort keys %{ $outcome->{log} };
		is(join("\n", @found), '', "$mode: the number is masked: $sql");
	}
}
hides("words, $_", undef, [$_])
  foreach q{SELECT /* CANARY, "a" */ fieldcrypt.encrypt_field('x', 'y')}, qq{SELECT fieldcrypt.encrypt_field('x', 'y'), -- CANARY\n2},
  q{INSERT INTO patients VALUES (1$$x CANARY b$$)}, q{INSERT INTO patients VALUES (1e$$x CANARY b$$)}, q{INSERT INTO patients VALUES (1.$a$x CANARY b$a$)},
  q{INSERT INTO patients VALUES ($1a$$x CANARY$$)}, q{INSERT INTO patients VALUES (0x1f$$x CANARY$$)};
my $booleans = $log->run(sub { run_sql($node, q{SELECT fieldcrypt.encrypt_field_as(false, 'x'), fieldcrypt.encrypt_field_as(true)}) });
like($booleans->{log}{stderr}, qr/encrypt_field_as\(TRUE, '\*\*\*'\), fieldcrypt\.encrypt_field_as\(TRUE\)/, 'booleans are masked');
unlike($booleans->{log}{stderr}, qr/false/i, 'all of them');

# A session of the replication protocol may run SQL; what only begins like a command of it is none.
foreach my $sql (
	q{IDENTIFY_SYSTEMx 'x', fieldcrypt.encrypt_field('CANARY')}, q{BASE_BACKUPS SELECT fieldcrypt.encrypt_field('CANARY')},
	q{TIMELINE_HISTORYs('CANARY', fieldcrypt.x)}, q{START_REPLICATION$ fieldcrypt.encrypt_field('CANARY')},
	q{IDENTIFY_SYSTEM 'x', fieldcrypt.encrypt_field('CANARY')},
	q{IDENTIFY_SYSTEM; SELECT fieldcrypt.encrypt_field('CANARY')}, q{BASE_BACKUP 'CANARY' FROM patients},
	q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('CANARY'))::int})
{
	foreach my $mode (sort keys %modes)
	{
		$log->hides(
			sub {
				my ($canary) = @_;
				my $wire = Wire->connect($node, startup => { replication => 'database', options => $modes{$mode} });
				$wire->query($_)->answer foreach 'SELECT 1 / 0', 'SELECT 1';
				return $wire->query($sql =~ s/CANARY/$canary/gr)->answer;
			},
			"$mode: a session of replication, $sql", qr/(?:42601|22P02)/);
	}
}
my $slot = sub { Wire->connect($node, startup => { replication => 'database' })->query("DROP_REPLICATION_SLOT $_[0]")->answer };
$log->shows($slot, 'a command of replication stays');
my @commands = ('READ_REPLICATION_SLOT CANARY', 'CREATE_REPLICATION_SLOT CANARY TEMPORARY PHYSICAL');
push @commands, 'ALTER_REPLICATION_SLOT CANARY (FAILOVER false)', q{BASE_BACKUP (INCREMENTAL, LABEL 'CANARY')}, 'UPLOAD_MANIFEST' if server_version($node) >= 17;
foreach my $command (@commands)
{
	my $run = sub {
		my ($canary) = @_;
		my $wire = Wire->connect($node, startup => { replication => 'database', application_name => $canary, options => '-c log_replication_commands=on' });
		$wire->query($command =~ s/CANARY/$canary/gr);
		# No manifest: the server refuses it.
		$wire->message('d', "of $canary\n")->message('c', '') if $command eq 'UPLOAD_MANIFEST';
		return $wire->answer;
	};
	my $begin = $command =~ s/ CANARY.*|CANARY.*//r;
	$log->shows($run, "a command of replication stays: $command", qr/received replication command: \Q$begin/);
}

no_crash($node);
$node->stop;

# pg_cron repeats what its workers say.
SKIP:
{
	skip 'no pg_cron', 1 if !$has{pg_cron};
	my $cron = new_cluster('cron', conf => everything_logged() . <<'CONF');
shared_preload_libraries = 'pg_cron, pg_fieldcrypt'
cron.database_name = 'postgres'
cron.use_background_workers = on
max_worker_processes = 20
CONF
	my $at = LogCanary->new($cron);
	value($cron, 'CREATE EXTENSION pg_cron; CREATE TABLE patients (id int, ssn fieldcrypt.encrypted)');
	my @jobs = (
		q{SELECT fieldcrypt.decrypt_field(ssn)::int FROM patients},
		q{DO $$ BEGIN RAISE EXCEPTION 'patient % has', (SELECT fieldcrypt.decrypt_field(ssn) FROM patients); END $$},
		q{DO $$ BEGIN RAISE NOTICE 'patient % has', (SELECT fieldcrypt.decrypt_field(ssn) FROM patients); END $$});
	my $outcome = $at->hides(
		sub {
			my ($canary) = @_;
			value($cron, "INSERT INTO patients VALUES (1, fieldcrypt.encrypt_field('$canary'))");
			foreach my $number (0 .. $#jobs)
			{
				my $command = $jobs[$number] =~ s/'/''/gr;
				value($cron, "SELECT cron.schedule('job $number', '* * * * *', '$command')");
			}
			foreach (1 .. 900)
			{
				my $said = slurp_file(log_files($cron)->{stderr});
				my %seen = map { ($_ => 1) } $said =~ /(cron job \d+: (?:ERROR|NOTICE))/g;
				last if keys %seen == @jobs;
				# Of PostgreSQL 18's pg_cron: notices without their level, and no errors.
				last if $said =~ /cron job 3: \*\*\*/ && (() = $said =~ /background worker "pg_cron" .* exited/g) >= 2;
				Time::HiRes::usleep(100_000);
			}
		},
		'pg_cron repeats what its workers say', qr/cron job \d+: (?:(?:ERROR|NOTICE): )?\*\*\*/);
	like($outcome->{log}{stderr}, qr/cron job 3: (?:NOTICE: )?\*\*\*/, 'pg_cron: how bad it is, not what');
	like($outcome->{log}{stderr}, qr/cron job 1 starting: SELECT fieldcrypt\.decrypt_field\(ssn\)::int FROM patients/, 'pg_cron: what starts');
	like($outcome->{log}{stderr}, qr/cron job 2 starting: DO '\*\*\*'/, 'pg_cron: what starts, masked');
	no_crash($cron);
	$cron->stop;
}
done_testing();
