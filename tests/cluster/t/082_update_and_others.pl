# ALTER EXTENSION UPDATE among others: rolled back, twice, with sessions that encrypt and rotate, killed half-way; by who may
# not, under an older library; and who gets what is new in a privilege.

use strict;
use warnings;

use FieldcryptTest;
use OldVersion;
use PostgreSQL::Test::Utils;
use Test::More;

# Without preload: 081 has it.
my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ]);
my $now = value($node, q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'});
my ($version) = grep { $_ ne $now } released();
my $installed = q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'};
my $update = 'ALTER EXTENSION pg_fieldcrypt UPDATE';
my $script = slurp_file($node->config_data('--sharedir') . "/extension/pg_fieldcrypt--$version--$now.sql") =~ s/MODULE_PATHNAME/\$libdir\/pg_fieldcrypt/gr;

note 'rolled back, and again';
{
	my $db = 'rolled_back';
	make_old($node, $db, $version, 0);
	my $use = q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'))};
	value($node, $use, db => $db);
	my $session = session($node, db => $db);
	$session->value($_) foreach 'BEGIN', $update;
	$session->gives($use, 'x', 'inside of the transaction it works');
	$session->value('ROLLBACK');
	gives($node, $installed, $version, 'rolled back', db => $db);
	gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'extension_updated'}, 0, 'with what was recorded', db => $db);
	$session->gives($use, 'x', 'and used as before');
	$session->value("BEGIN; SAVEPOINT s; $update; ROLLBACK TO s; COMMIT");
	gives($node, $installed, $version, 'rolled back to a savepoint', db => $db);
	gives($node, $update, '', 'updated', db => $db);
	my $log = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log', db => $db);
	my $again = run_sql($node, $update, db => $db);
	like($again->{err}, qr/^\S*\s*NOTICE: .*already installed/, 'a second time there is nothing to do');
	gives($node, 'SELECT count(*) FROM fieldcrypt.audit_log', $log, 'nor to record', db => $db);
	$session->gives($use, 'x', 'the session goes on');
	$session->close;
}

note 'without a master key';
{
	my $db = 'keyless';
	make_old($node, $db, $version, 0);
	value($node, 'CREATE TABLE t (v fieldcrypt.encrypted); INSERT INTO t SELECT fieldcrypt.encrypt_field(\'x\')', db => $db);
	unlink $node->basedir . '/master.key' or die;
	gives($node, $update, '', 'updated', db => $db);
	gives($node, q{SELECT mac IS NULL FROM fieldcrypt.audit_log WHERE event = 'extension_updated'}, 't', 'recorded as far as that goes', db => $db);
	write_key_file($node->basedir . '/master.key', key_text(1), key_text(2));
	gives($node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'and used', db => $db);
}

note 'while others encrypt, decrypt and rotate';
{
	my $db = 'busy';
	make_old($node, $db, $version, 0);
	value($node, q{CREATE TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO t SELECT i, fieldcrypt.encrypt_field('v' || i) FROM generate_series(1, 200) AS i; SELECT fieldcrypt.audit_table('t')}, db => $db);
	my $use = write_file('use.sql', "\\set id random(1, 200)\nUPDATE t SET v = fieldcrypt.encrypt_field('v' || :id) WHERE id = :id;\nSELECT fieldcrypt.decrypt_field(v) FROM t WHERE id = :id;\n");
	my $rotate = write_file('rotate.sql', "CALL fieldcrypt.rotate_keys(force => true);\nCALL fieldcrypt.reencrypt('t', rows_per_second => 0);\n");
	my @running;
	foreach my $load ([ '-c', 3, '-f', $use ], [ '-c', 1, '-f', $rotate ])
	{
		my ($out, $err) = ('', '');
		my $harness = IPC::Run::start([ 'pgbench', '-n', '-T', 6, @$load, '-h', $node->host, '-p', $node->port, $db ], '<', \'', '>', \$out, '2>', \$err);
		push @running, [ $harness, \$out, \$err ];
	}
	sleep 2;
	gives($node, $update, '', 'updated', db => $db);
	foreach my $one (@running)
	{
		my ($harness, $out, $err) = @$one;
		ok(IPC::Run::finish($harness), 'what ran meanwhile went on') or diag $$err;
		like($$out, qr/number of transactions actually processed: [1-9]/, 'and did something');
		unlike($$err, qr/ERROR|abort/, 'without an error');
	}
	gives($node, q{SELECT count(*) FROM t WHERE fieldcrypt.decrypt_field(v) = 'v' || id}, 200, 'every value is what it is to be', db => $db);
	gives($node, q{SELECT string_agg(finding, ' ') FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '', 'and the log is whole', db => $db);
}

note 'by who may not';
{
	value($node, 'CREATE ROLE owner LOGIN; CREATE DATABASE owned OWNER owner');
	value($node, "CREATE EXTENSION pg_fieldcrypt VERSION '$version'", db => 'owned');
	value($node, q{SELECT fieldcrypt.grant_access('owner', 'manage', 'encrypt', 'decrypt')}, db => 'owned');
	refused($node, $update, '42501', qr/must be owner of extension pg_fieldcrypt/, 'the owner of the database', db => 'owned', user => 'owner');
	gives($node, $installed, $version, 'nothing is done', db => 'owned');
}

note 'under an older library';
{
	my ($block) = $script =~ /^DO \$library\$\n(.*?)^\$library\$;/ms;
	ok($block, 'the script looks at the library');
	gives($node, "BEGIN; DO \$library\$\n$block\$library\$; ROLLBACK", '', 'this one will do');
	refused($node, "DO \$library\$\n" . $block =~ s/'\Q$now\E'/'99.0.0'/gr . '$library$', 'KF035',
		qr/this session runs the library of pg_fieldcrypt \Q$now\E, which is older than.*HINT:.*restart the server.*\(KF035, see docs\/errors\.md\)/s, 'an older one will not');
	refused($node, 'ALTER EXTENSION pg_fieldcrypt DROP FUNCTION fieldcrypt_internal.library_version(); DROP FUNCTION fieldcrypt_internal.library_version(); '
		. "DO \$library\$\n" . $block =~ s/'fieldcrypt_library_version'/'fieldcrypt_what_there_is_not'/r . '$library$', 'KF035',
		qr/library of pg_fieldcrypt 0\.1\.0, which is older/, 'nor one that does not say which it is');
	value($node, "CREATE FUNCTION fieldcrypt_internal.library_version() RETURNS text LANGUAGE c STABLE PARALLEL SAFE AS '\$libdir/pg_fieldcrypt', 'fieldcrypt_library_version'; REVOKE ALL ON FUNCTION fieldcrypt_internal.library_version() FROM PUBLIC; ALTER EXTENSION pg_fieldcrypt ADD FUNCTION fieldcrypt_internal.library_version()");
}

note 'what is new in a privilege';
{
	my $db = create_database($node, 'privileges');
	value($node, <<'SQL', db => $db);
CREATE ROLE clerk LOGIN; CREATE ROLE keeper LOGIN; CREATE ROLE partly LOGIN; CREATE ROLE other LOGIN;
SELECT fieldcrypt.grant_access('clerk', 'decrypt'), fieldcrypt.grant_access('keeper', 'manage');
SELECT fieldcrypt.grant_access('partly', 'manage');
REVOKE EXECUTE ON PROCEDURE fieldcrypt.shred_tenant(text, text) FROM partly;
GRANT USAGE ON SCHEMA fieldcrypt TO other;
GRANT EXECUTE ON FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text) TO other;
SQL
	# The beginning of the script, of a version in which a function belonged to no privilege; then it belongs to two.
	my ($noted) = $script =~ /^(DO \$noted\$\n.*?^\$noted\$;)/ms;
	my $with = q{EXECUTE replace(pg_get_functiondef('fieldcrypt_internal.privilege_objects(text)'::regprocedure), E'VALUES\n', E'VALUES\n(''{decrypt,manage}''::text[], ''EXECUTE'', ''FUNCTION fieldcrypt_internal.is_preloaded()''),\n')};
	my $session = session($node, db => $db);
	$session->value("BEGIN; $noted; DO \$do\$ BEGIN $with; END \$do\$");
	my $had = q{SELECT string_agg(a.grantee::regrole::text, ' ' ORDER BY 1) FROM pg_proc AS p, aclexplode(p.proacl) AS a WHERE p.oid = 'fieldcrypt_internal.is_preloaded()'::regprocedure AND a.grantee <> p.proowner};
	$session->gives($had, '', 'not granted to anybody');
	my $end = $session->run($update);
	is("@{ $end->{sqlstates} }", '', 'the end of the update');
	$session->gives($had =~ s/ORDER BY 1/ORDER BY a.grantee::regrole::text/r, 'clerk keeper', 'whoever has a whole privilege has what is new in it; who has a part of one, by hand, has not');
	like($end->{err}, qr/NOTICE: .*role clerk has decrypt and now what is new in it/, 'and it is said');
	$session->gives(q{SELECT reason FROM fieldcrypt.audit_log WHERE event = 'access_granted' AND reason LIKE '%new%' ORDER BY id}, "decrypt to clerk: what is new in it\nmanage to keeper: what is new in it", 'and recorded');
	$session->value('COMMIT');
	$session->close;
	my $dump = slurp_file(dump_database($node, $db, $node->basedir . '/privileges.sql'));
	like($dump, qr/^GRANT ALL ON FUNCTION fieldcrypt_internal\.is_preloaded\(\) TO $_;/m, "a dump has it: $_") foreach qw(clerk keeper);

	# Anybody may write such a note.
	value($node, "CREATE ROLE forger LOGIN; GRANT CREATE ON DATABASE $db TO forger", db => $db);
	my $forger = session($node, db => $db, user => 'forger');
	$forger->value("CREATE SCHEMA forged; CREATE EXTENSION citext SCHEMA forged");
	my $forged = $forger->run(q{BEGIN; SELECT set_config('fieldcrypt_update.noted', format('{"transaction": "%s", "holders": [{"role": %s, "privilege": "decrypt"}], "objects": {"decrypt": []}}', pg_current_xact_id(), 'forger'::regrole::oid), false); ALTER EXTENSION citext UPDATE; COMMIT});
	is("@{ $forged->{sqlstates} }", '', 'a forged note is no error');
	gives($node, q{SELECT fieldcrypt_internal.held_privileges('forger')}, '{}', 'and gives nothing', db => $db);
	$forger->close;
	# One that was left behind is of another transaction.
	gives($node, q{SELECT set_config('fieldcrypt_update.noted', format('{"transaction": "1", "holders": [{"role": %s, "privilege": "decrypt"}], "objects": {"decrypt": []}}', 'forger'::regrole::oid), false) <> ''; ALTER EXTENSION pg_fieldcrypt UPDATE; SELECT fieldcrypt_internal.held_privileges('forger')}, "t\n{}", 'nor does an old one', db => $db);
}

no_crash($node);

note 'killed half-way';
{
	my $db = 'killed';
	make_old($node, $db, $version, 0);
	value($node, q{CREATE TABLE t (v fieldcrypt.encrypted); INSERT INTO t SELECT fieldcrypt.encrypt_field('x')}, db => $db);
	my ($holder, $updater) = (session($node, db => $db), session($node, db => $db));
	# What it waits for in the middle: its comments on the log's columns, and the row that it records.
	$holder->value('BEGIN; LOCK TABLE fieldcrypt.audit_log IN SHARE ROW EXCLUSIVE MODE');
	my $process = $updater->server_process;
	$updater->send($update);
	ok(eventually($node, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $process", 'Lock'), 'the update is under way');
	ok(crash($node, $process), 'kill -9');
	eval { $_->close } foreach $holder, $updater;
	gives($node, $installed, $version, 'nothing is done', db => $db);
	gives($node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'and all is there', db => $db);
	gives($node, "$update; $installed", $now, 'then it is', db => $db);
	gives($node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'and all is there still', db => $db);
}

$node->stop;
done_testing();
