# The library is new, the database is not: until ALTER EXTENSION UPDATE everything works as it did, and each function of the
# library that the released scripts name is there with the types that they give it.

use strict;
use warnings;

use FieldcryptTest;
use OldVersion;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ],
	conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_worker_linger = '300ms'\nfieldcrypt.audit_decrypt = statements\n");
my $now = value($node, q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'});
# What the library takes each function for is compared with today's declarations by 173.
my $doors = q{SELECT p.prosrc, oidvectortypes(p.proargtypes), p.prorettype::regtype, p.proretset, p.prokind FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE l.lanname = 'c' AND p.probin LIKE '%pg_fieldcrypt%'};
my %doors = map { $_ => 1 } split /\n/, value($node, $doors);

foreach my $version (grep { $_ ne $now } released())
{
	my $db = 'of_' . $version =~ tr/./_/r;
	write_key_file($node->basedir . '/master.key', key_text(1), key_text(2));
	make_old($node, $db, $version);
	my @named = split /\n/, value($node, $doors, db => $db);
	cmp_ok(scalar @named, '>', 70, "$version names functions of the library");
	is(join("\n", grep { !$doors{$_} } @named), '', 'each is what it was');

	use_everything($node, $db, "$version, not updated");
	refused($node, q{SELECT fieldcrypt.decrypt_field(ssn, 'wrong') FROM patients WHERE id = 60}, 'KF002', 'a failed decryption', db => $db);
	ok(eventually($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND error_code = 'KF002'}, 2, db => $db), 'the worker writes the log');
	ok(eventually($node, q{SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't', db => $db), 'and seals it');
	ok(eventually($node, 'SELECT count(*) FROM fieldcrypt.audit_log WHERE leaf IS NULL AND id < (SELECT max(id) FROM fieldcrypt.audit_log)', 0, db => $db), 'whole');
	value($node, q{ALTER TABLE patients RENAME TO people; ALTER TABLE people RENAME COLUMN note TO remark}, db => $db);
	gives($node, q{SELECT string_agg(table_name || '.' || column_name, ' ' ORDER BY column_name) FROM fieldcrypt.column_contexts}, 'public.people.remark public.people.ssn', 'contexts follow renames', db => $db);
	refused($node, 'DROP EXTENSION pg_fieldcrypt CASCADE', 'KF032', 'drops are guarded', db => $db);
	refused($node, 'UPDATE fieldcrypt.encryption_keys SET version = 9', 'KF015', 'and tables', db => $db);
	gives($node, q{SELECT jsonb_typeof(fieldcrypt.compliance_report()::jsonb)}, 'object', 'the report is made', db => $db);
	gives($node, q{SELECT count(*) > 0 FROM fieldcrypt.fieldcrypt_stats}, 't', 'statistics are there', db => $db);
	my $export = value($node, 'SELECT fieldcrypt.export_keys()', db => $db);
	my $other = create_database($node, "import_$db");
	is(run_sql($node, "SELECT * FROM fieldcrypt.import_keys(\$export\$$export\$export\$)", db => $other)->{code}, 0, "an export of $version is imported by $now");
	$export = value($node, 'SELECT fieldcrypt.export_keys()', db => $other);
	is(run_sql($node, "SELECT * FROM fieldcrypt.import_keys(\$export\$$export\$export\$)", db => $db)->{code}, 0, 'and the other way about');
}

no_crash($node);
$node->stop;
done_testing();
