# ALTER EXTENSION UPDATE, from every version that was released: the catalogs are those of a new database, object by object,
# whoever updates. What is named here as a difference is a statement that sql/updates lacks: see README.md there.

use strict;
use warnings;

use Catalog;
use FieldcryptTest;
use Test::More;

my @released = map { m{/pg_fieldcrypt--([0-9.]+)\.sql$} ? $1 : () } glob "$ENV{TESTDIR}/sql/released/*.sql";
cmp_ok(scalar @released, '>', 0, "versions were released: @released");

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
my $now = value($node, q{SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'});
value($node, 'CREATE ROLE another SUPERUSER LOGIN; CREATE ROLE app LOGIN');
my %fresh = catalog($node, 'postgres');
cmp_ok(scalar keys %fresh, '>', 1000, 'there is much to compare');

foreach my $version (grep { $_ ne $now } @released)
{
	my $db = create_database($node, 'updated_' . $version =~ tr/./_/r, extension => 0);
	value($node, "CREATE EXTENSION pg_fieldcrypt VERSION '$version'", db => $db);
	my %before = catalog($node, $db);
	isnt(scalar(differences(\%before, \%fresh)), 0, "$version is not $now");
	value($node, 'ALTER EXTENSION pg_fieldcrypt UPDATE', db => $db);
	same_catalog($db, "updated from $version");

	# By a superuser who does not own it, and for whom everything new is somebody else's, too.
	$db = create_database($node, 'by_another_' . $version =~ tr/./_/r, extension => 0);
	value($node, "CREATE EXTENSION pg_fieldcrypt VERSION '$version'", db => $db);
	value($node, "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO app", db => $db, user => 'another') foreach qw(TABLES SEQUENCES FUNCTIONS TYPES);
	value($node, 'ALTER EXTENSION pg_fieldcrypt UPDATE', db => $db, user => 'another');
	value($node, "ALTER DEFAULT PRIVILEGES REVOKE ALL ON $_ FROM app", db => $db, user => 'another') foreach qw(TABLES SEQUENCES FUNCTIONS TYPES);
	same_catalog($db, "updated from $version by another superuser");

	is(value($node, "SELECT source || ' ' || target FROM pg_extension_update_paths('pg_fieldcrypt') WHERE source = '$now' AND path IS NOT NULL"), '', 'there is no way back');
}
refused($node, "ALTER EXTENSION pg_fieldcrypt UPDATE TO '0.0.1'", '22023', 'nor to what there is not');

# The comparison sees each kind of thing.
my $db = create_database($node, 'altered');
my @alterations = (
	[ q{ALTER EXTENSION pg_fieldcrypt DROP FUNCTION fieldcrypt.key_id(fieldcrypt.encrypted)}, 'member: function fieldcrypt.key_id(fieldcrypt.encrypted) is missing' ],
	[ q{ALTER FUNCTION fieldcrypt.create_key(text) COST 7}, qr/^function fieldcrypt\.create_key\(pg_catalog\.text\): (?:cost|definition)/ ],
	[ q{ALTER FUNCTION fieldcrypt.lock_tenant(text) SECURITY DEFINER}, qr/^function fieldcrypt\.lock_tenant\(pg_catalog\.text\): security definer is true/ ],
	[ q{ALTER FUNCTION fieldcrypt.verify_keys() SET search_path = public}, qr/^function fieldcrypt\.verify_keys\(\): settings/ ],
	[ q{ALTER FUNCTION fieldcrypt.ciphertext_text(fieldcrypt.encrypted) STABLE}, qr/ciphertext_text\(fieldcrypt\.encrypted\): volatility is "s", not "i"/ ],
	[ q{CREATE OR REPLACE FUNCTION fieldcrypt_internal.is_preloaded() RETURNS boolean LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS 'SELECT true'}, qr/^function fieldcrypt_internal\.is_preloaded\(\): source/ ],
	[ q{CREATE OR REPLACE FUNCTION fieldcrypt_internal.health_hours() RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE AS '$libdir/pg_fieldcrypt', 'fieldcrypt_master_key_source'}, qr/^function fieldcrypt_internal\.health_hours\(\): source is "fieldcrypt_master_key_source"/ ],
	[ q{ALTER FUNCTION fieldcrypt_internal.short_fingerprint(bytea) OWNER TO another}, qr/short_fingerprint\(pg_catalog\.bytea\): owner is "another"/ ],
	[ q{GRANT EXECUTE ON FUNCTION fieldcrypt.export_keys() TO PUBLIC}, qr/^function fieldcrypt\.export_keys\(\): rights is .*EXECUTE to PUBLIC/ ],
	[ q{COMMENT ON FUNCTION fieldcrypt.import_keys(text, boolean, boolean) IS 'something'}, qr/^function fieldcrypt\.import_keys\([^)]*\): comment is "something"/ ],
	[ q{CREATE FUNCTION fieldcrypt.something() RETURNS integer LANGUAGE sql AS 'SELECT 1'}, 'function fieldcrypt.something() is left' ],
	[ q{ALTER EXTENSION pg_fieldcrypt DROP EVENT TRIGGER fieldcrypt_updates; ALTER EXTENSION pg_fieldcrypt DROP FUNCTION fieldcrypt_internal.complete_privileges(); DROP EVENT TRIGGER fieldcrypt_updates; DROP FUNCTION fieldcrypt_internal.complete_privileges()}, 'function fieldcrypt_internal.complete_privileges() is missing' ],
	[ q{ALTER PROCEDURE fieldcrypt.rotate_keys(text, text, boolean) SECURITY DEFINER}, qr/^procedure fieldcrypt\.rotate_keys\([^)]*\): security definer/ ],
	[ q{ALTER TYPE fieldcrypt.encrypted SET (STORAGE = extended)}, qr/^type fieldcrypt\.encrypted: typstorage is "x", not "e"/ ],
	[ q{GRANT USAGE ON TYPE fieldcrypt.encrypted TO PUBLIC}, qr/^type fieldcrypt\.encrypted: rights/ ],
	[ q{ALTER TYPE fieldcrypt_internal.health_finding ADD ATTRIBUTE more text}, 'column fieldcrypt_internal.health_finding.more is left' ],
	[ q{CREATE DOMAIN fieldcrypt.word AS text CHECK (VALUE <> '')}, 'type fieldcrypt.word is left' ],
	[ q{CREATE DOMAIN fieldcrypt.other AS text CHECK (VALUE <> '')}, 'constraint other_check of fieldcrypt.other is left' ],
	[ q{ALTER OPERATOR fieldcrypt.*= (fieldcrypt.encrypted, fieldcrypt.encrypted) SET (RESTRICT = neqsel)}, qr/^operator fieldcrypt\.\*=\(.*\): restrict is "neqsel"/ ],
	[ q{COMMENT ON OPERATOR fieldcrypt.*<> (fieldcrypt.encrypted, fieldcrypt.encrypted) IS NULL}, qr/^operator fieldcrypt\.\*<>\(.*\): comment is null/ ],
	[ q{ALTER OPERATOR CLASS fieldcrypt.encrypted_bytes USING hash OWNER TO another}, qr/^operator class fieldcrypt\.\w+ USING hash: owner is "another"/ ],
	[ q{ALTER EXTENSION pg_fieldcrypt DROP CAST (fieldcrypt.encrypted AS bytea); DROP CAST (fieldcrypt.encrypted AS bytea)}, 'cast (fieldcrypt.encrypted AS pg_catalog.bytea) is missing' ],
	[ q{ALTER TABLE fieldcrypt.alerts SET (fillfactor = 50)}, qr/^table fieldcrypt\.alerts: options is \["fillfactor=50"\]/ ],
	[ q{ALTER TABLE fieldcrypt.origins ENABLE ROW LEVEL SECURITY}, qr/^table fieldcrypt\.origins: row security is true/ ],
	[ q{GRANT SELECT ON fieldcrypt.encryption_keys TO app}, qr/^table fieldcrypt\.encryption_keys: rights is .*SELECT to app/ ],
	[ q{GRANT SELECT (key_id) ON fieldcrypt.encryption_keys TO app}, qr/^column fieldcrypt\.encryption_keys\.key_id: rights/ ],
	[ q{ALTER TABLE fieldcrypt.master_keys ADD COLUMN more text}, 'column fieldcrypt.master_keys.more is left' ],
	[ q{ALTER TABLE fieldcrypt.rotation_log ALTER COLUMN tenant DROP NOT NULL}, 'column fieldcrypt.rotation_log.tenant: not null is false, not true' ],
	[ q{ALTER TABLE fieldcrypt.origins ALTER COLUMN reason SET DEFAULT 'x'}, qr/^column fieldcrypt\.origins\.reason: default is /],
	[ q{ALTER TABLE fieldcrypt.audit_verifications ALTER COLUMN detail TYPE varchar(100)}, qr/^column fieldcrypt\.audit_verifications\.detail: type is "character varying/ ],
	[ q{COMMENT ON COLUMN fieldcrypt.audit_log.at IS 'something'}, qr/^column fieldcrypt\.audit_log\.at: comment is "something"/ ],
	[ q{ALTER TABLE fieldcrypt.alerts ADD CONSTRAINT more CHECK (true)}, 'constraint more of fieldcrypt.alerts is left' ],
	[ q{CREATE INDEX more ON fieldcrypt.alerts ((1))}, 'index fieldcrypt.more is left' ],
	[ q{ALTER INDEX fieldcrypt.encryption_keys_due SET (fillfactor = 50)}, qr/^index fieldcrypt\.encryption_keys_due: (?:definition|options)/ ],
	[ q{ALTER TABLE fieldcrypt.encryption_keys DISABLE TRIGGER refuse_truncate}, 'trigger refuse_truncate of fieldcrypt.encryption_keys: enabled is "D", not "O"' ],
	[ q{DROP TRIGGER refuse_change ON fieldcrypt.column_contexts}, 'trigger refuse_change of fieldcrypt.column_contexts is missing' ],
	[ q{CREATE POLICY more ON fieldcrypt.origins USING (true)}, 'policy more of fieldcrypt.origins is left' ],
	[ q{CREATE RULE more AS ON DELETE TO fieldcrypt.alerts DO INSTEAD NOTHING}, 'rule more of fieldcrypt.alerts is left' ],
	[ q{ALTER VIEW fieldcrypt.audit_trail SET (security_barrier)}, qr/^view fieldcrypt\.audit_trail: options/ ],
	[ q{DO $$ BEGIN EXECUTE 'CREATE OR REPLACE VIEW fieldcrypt.fieldcrypt_stats AS ' || rtrim(pg_get_viewdef('fieldcrypt.fieldcrypt_stats'), ';') || ' LIMIT 5'; END $$}, qr/^view fieldcrypt\.fieldcrypt_stats: query/ ],
	[ q{ALTER SEQUENCE fieldcrypt_internal.approvals_id_seq INCREMENT BY 5}, qr/^sequence fieldcrypt_internal\.approvals_id_seq: sequence/ ],
	[ q{CREATE STATISTICS fieldcrypt.more ON tenant, state FROM fieldcrypt.encryption_keys}, 'statistics more is left' ],
	[ q{ALTER EVENT TRIGGER fieldcrypt_guard_drops ENABLE}, 'event trigger fieldcrypt_guard_drops: enabled is "O", not "A"' ],
	[ q{GRANT USAGE ON SCHEMA fieldcrypt TO PUBLIC}, qr/^schema fieldcrypt: rights/ ],
	[ q{COMMENT ON SCHEMA fieldcrypt_internal IS 'something'}, qr/^schema fieldcrypt_internal: comment/ ],
	[ q{ALTER DEFAULT PRIVILEGES IN SCHEMA fieldcrypt GRANT SELECT ON TABLES TO app}, 'default privileges fieldcrypt r is left' ],
	[ q{SET allow_system_table_mods = on; UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'pg_fieldcrypt'}, qr/^extension pg_fieldcrypt: version is "0\.0\.1"/ ],
	[ q{SET allow_system_table_mods = on; UPDATE pg_extension SET extconfig = extconfig[2:], extcondition = extcondition[2:] WHERE extname = 'pg_fieldcrypt'}, qr/^dumped table \S+ is missing/ ],
	[ q{SET allow_system_table_mods = on; DELETE FROM pg_init_privs WHERE objoid = 'fieldcrypt.who_could(text, timestamptz)'::regprocedure}, qr/^function fieldcrypt\.who_could\([^)]*\): own rights/ ],
);
foreach my $alteration (@alterations)
{
	my $result = run_sql($node, "SET fieldcrypt.allow_drop = on; $alteration->[0]", db => $db);
	is($result->{err}, '', "an alteration: $alteration->[0]");
}
my %altered = catalog($node, $db);
my @differences = differences(\%altered, \%fresh);
foreach my $alteration (@alterations)
{
	my ($done, $wanted) = @$alteration;
	ok(scalar(grep { ref $wanted ? /$wanted/ : $_ eq $wanted } @differences), "the comparison sees it: $done") or diag "wanted: $wanted";
}
# And says what would mend it.
my @statements = statements(\%altered, \%fresh);
foreach my $statement (
	'ALTER TABLE fieldcrypt.master_keys DROP COLUMN more;', 'ALTER TABLE fieldcrypt.alerts DROP CONSTRAINT more;',
	'ALTER TABLE fieldcrypt.audit_verifications ALTER COLUMN detail TYPE text;', 'ALTER TABLE fieldcrypt.rotation_log ALTER COLUMN tenant SET NOT NULL;',
	'DROP FUNCTION fieldcrypt.something();', 'DROP POLICY more ON fieldcrypt.origins;',
	'CREATE TRIGGER refuse_change BEFORE DELETE OR UPDATE ON fieldcrypt.column_contexts FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.refuse_change();',
	q{SELECT pg_catalog.pg_extension_config_dump('fieldcrypt_internal.audit_log_2026', '');})
{
	ok(scalar(grep { $_ eq $statement } @statements), "it says: $statement");
}

no_crash($node);
$node->stop;
done_testing();

# A test: a database has what a new one has.
sub same_catalog
{
	my ($name, $how) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %catalog = catalog($node, $name);
	is(join("\n", differences(\%catalog, \%fresh)), '', "$how: what a new database has")
	  or diag join "\n", 'perhaps, in sql/updates (see README.md there):', statements(\%catalog, \%fresh);
	return;
}
