# ALTER EXTENSION UPDATE of a database that has something in every table and every state: nothing is lost, nobody's rights
# change but for what is new in them, everything goes on, and the log has it.

use strict;
use warnings;

use Catalog;
use FieldcryptTest;
use OldVersion;
use Test::More;

my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ],
	conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_worker_linger = '300ms'\nfieldcrypt.audit_decrypt = statements\n");
my $now = value($node, q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'});
my $rights = q{SELECT object, who, rights FROM (
    SELECT p.oid::regprocedure::text, p.proacl FROM pg_proc AS p WHERE p.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT c.oid::regclass::text, c.relacl FROM pg_class AS c WHERE c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT a.attrelid::regclass || '.' || a.attname, a.attacl FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid WHERE c.relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT t.oid::regtype::text, t.typacl FROM pg_type AS t WHERE t.typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT n.nspname, n.nspacl FROM pg_namespace AS n WHERE n.nspname ~ '^fieldcrypt'
) AS o (object, acl), LATERAL (SELECT a.grantee::regrole::text, string_agg(a.privilege_type, ',') FROM aclexplode(o.acl) AS a WHERE a.grantee <> a.grantor GROUP BY a.grantee) AS r (who, rights) ORDER BY 1, 2};
my $health = q{SELECT "check", status FROM fieldcrypt.health() ORDER BY "check"};

foreach my $version (grep { $_ ne $now } released())
{
	my $db = 'from_' . $version =~ tr/./_/r;
	write_key_file($node->basedir . '/master.key', key_text(1), key_text(2));
	make_old($node, $db, $version);
	my ($before, $rights_before) = ({ rows_of($node, $db) }, value($node, $rights, db => $db));
	foreach my $table (grep { !/value_failures|reencryption_failures|retirements/ } sort keys %$before)
	{
		isnt($before->{$table}, '', "$table of $version has rows");
	}

	note 'before the update: the library is new';
	my $told = run_sql($node, 'SELECT count(*) FROM fieldcrypt.health()', db => $db);
	like($told->{err}, qr/WARNING:  KF035: this database has pg_fieldcrypt \Q$version\E, and the library is of \Q$now\E\nHINT:  ALTER EXTENSION pg_fieldcrypt UPDATE/, 'health tells of the older catalog');
	is(() = $told->{err} =~ /KF035:/g, 1, 'once');
	my $healthy = value($node, $health, db => $db);

	note 'the update';
	my $open = session($node, db => $db);
	$open->value(q{PREPARE read AS SELECT count(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id))) FROM patients WHERE id > 80; EXECUTE read});
	$before = { rows_of($node, $db) };
	my $last = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log', db => $db);
	my $update = run_sql($node, 'ALTER EXTENSION pg_fieldcrypt UPDATE', db => $db);
	is(join(' ', @{ $update->{sqlstates} }), '', "from $version, with keys in every state");
	gives($node, q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'}, $now, "to $now", db => $db);
	same_rows({ rows_of($node, $db) }, $before, 'no row is lost, changed or added');
	gives($node, "SELECT event, actor = session_user, reason, mac IS NOT NULL FROM fieldcrypt.audit_log WHERE id > $last AND event = 'extension_updated'", "extension_updated|t|from $version to $now|t", 'the log has it', db => $db);
	like(value($node, q{SELECT sentence FROM fieldcrypt.audit_trail WHERE event = 'extension_updated'}, db => $db), qr/ updated the extension \("from \Q$version\E to \Q$now\E"\)\.$/, 'in words');
	$open->gives('EXECUTE read', qr/^\d+$/, 'an open session goes on with its plans');

	note 'rights';
	my %still = map { $_ => 1 } split /\n/, value($node, $rights, db => $db);
	is(join("\n", grep { !$still{$_} } split /\n/, $rights_before), '', 'nobody has lost a right');
	is(value($node, q{SELECT fieldcrypt_internal.held_privileges(r.oid::regrole) FROM pg_roles AS r WHERE r.rolname = 'keeper'}, db => $db), '{manage}', 'who has a privilege has it');
	foreach my $held ([ keeper => 'manage' ], [ clerk => 'encrypt' ], [ clerk => 'decrypt' ], [ clerk => 'reencrypt' ], [ auditor => 'audit' ], [ dumper => 'backup' ], [ declarer => 'type' ])
	{
		my ($role, $privilege) = @$held;
		my $all = value($node, $rights, db => $db);
		value($node, "SELECT fieldcrypt.grant_access('$role', '$privilege')", db => $db);
		is(value($node, $rights, db => $db), $all, "$role has all of $privilege: to grant it again adds nothing");
	}

	gives($node, q{SELECT status, detail FROM fieldcrypt.health() WHERE "check" = 'extension_version'}, "ok|this database has version $now of the extension, and the library is of the same", 'health', db => $db);
	my %before = map { $_ => 1 } $healthy =~ /^(.*?)\|/mg;
	is(join("\n", grep { /^(.*?)\|/ && $before{$1} } split /\n/, value($node, $health, db => $db)), $healthy, 'what health found before is as it was');
	is(run_sql($node, 'SELECT count(*) FROM fieldcrypt.health()', db => $db)->{err}, '', 'which says nothing more');

	use_everything($node, $db, 'after the update');
	is(join(' ', @{ run_sql($node, q{CALL fieldcrypt.shred_tenant('tenant 4', 'contract ended')}, db => $db, user => 'keeper')->{sqlstates} }), '', 'what was approved before is done after');
	refused($node, 'DROP EXTENSION pg_fieldcrypt CASCADE', 'KF032', 'the keys are guarded', db => $db);
	$open->close;
}

note 'health, where library and database differ';
{
	my $db = create_database($node, 'differs');
	my $say = sub { value($node, "SET allow_system_table_mods = on; UPDATE pg_extension SET extversion = '$_[0]' WHERE extname = 'pg_fieldcrypt'", db => $db) };
	my $finding = q{SELECT status, detail, hint FROM fieldcrypt.health() WHERE "check" = 'extension_version'};
	$say->('0.1.99');
	gives($node, $finding, qr/^warning\|this database has version 0\.1\.99 of the extension, and the library is of \Q$now\E\|ALTER EXTENSION pg_fieldcrypt UPDATE/, 'the library is newer', db => $db);
	$say->('10.0.0');
	gives($node, $finding, qr/^critical\|this database has version 10\.0\.0 of the extension, and the library is of \Q$now\E\|The library is older/, 'the library is older', db => $db);
	# A library of 0.1.0 has no such function.
	value($node, q{SET check_function_bodies = off; ALTER FUNCTION fieldcrypt_internal.library_version() RENAME TO library_version_of_now}, db => $db);
	gives($node, $finding, qr/^critical\|.*the library is of 0\.1\.0\|/, 'the library does not say', db => $db);
}

no_crash($node);
$node->stop;
done_testing();
