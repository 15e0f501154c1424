# What each privilege of grant_access lets a role do and, above all, what it does not; and that taking
# one away takes nothing of the others.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my @privileges = qw(encrypt decrypt reencrypt manage audit backup);

value($node, <<'SQL');
CREATE SCHEMA data;
CREATE TABLE data.kept (id int PRIMARY KEY, value fieldcrypt.encrypted);
INSERT INTO data.kept SELECT 1, fieldcrypt.encrypt_field('kept');
SELECT fieldcrypt.create_key('other');
CREATE TABLE data.given (id int PRIMARY KEY, v fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('data.given', 'v');
INSERT INTO data.given VALUES (1, 'given');
GRANT USAGE ON SCHEMA data TO PUBLIC; GRANT ALL ON data.given TO PUBLIC;
SQL

# Each thing, and the privileges that allow it, with + those that do together. Everything else is 42501.
my $value = value($node, 'SELECT value FROM data.kept');
my $bound = value($node, 'SELECT v FROM data.given');
my @things = (
	[ q{SELECT fieldcrypt.encrypt_field('x')}, 'encrypt' ],
	[ q{SELECT fieldcrypt.encrypt_field('x', '', 'other')}, 'encrypt' ],
	[ q{SELECT fieldcrypt.encrypt_field('x', '', 'a tenant that is new')}, 'encrypt' ],
	[ q{SELECT fieldcrypt.encrypt_field_bytea('x')}, 'encrypt' ],
	[ q{SELECT fieldcrypt.encrypt_field_jsonb('1')}, 'encrypt' ],
	[ "SELECT fieldcrypt.decrypt_field('$value')", 'decrypt' ],
	[ "SELECT fieldcrypt.decrypt_field_bytea('$value')", 'decrypt' ],
	[ "SELECT fieldcrypt.decrypt_field_as('$value', NULL::text)", 'decrypt' ],
	[ "SELECT fieldcrypt.try_decrypt_field('$value')", 'decrypt' ],
	[ "SELECT fieldcrypt.reencrypt_field('$value')", 'reencrypt' ],
	[ 'SELECT fieldcrypt.create_key($$new$$)', 'manage' ],
	[ 'SELECT fieldcrypt.lock_tenant($$other$$)', 'encrypt decrypt' ],
	[ 'SELECT fieldcrypt.master_key_status()', 'manage' ],
	[ 'SELECT key_id, tenant, state, version FROM fieldcrypt.encryption_keys', 'manage backup' ],
	[ 'SELECT wrapped_key FROM fieldcrypt.encryption_keys', 'backup' ],
	[ 'SELECT * FROM fieldcrypt.encryption_keys', 'backup' ],
	[ 'SELECT k::text FROM fieldcrypt.encryption_keys AS k', 'backup' ],
	[ 'COPY fieldcrypt.encryption_keys TO STDOUT', 'backup' ],
	[ 'SELECT * FROM fieldcrypt.master_keys', 'manage backup' ],
	[ 'SELECT * FROM fieldcrypt.audit_log', 'audit' ],
	[ 'COPY fieldcrypt_internal.audit_log_2026 TO STDOUT', 'backup' ],
	[ 'SELECT * FROM fieldcrypt_internal.audit_log_default', 'backup' ],
	[ 'SELECT last_value FROM fieldcrypt_internal.audit_log_id_seq', '' ],
	[ "SELECT fieldcrypt.key_id('$value')", 'encrypt decrypt reencrypt manage' ],
	[ "SELECT fieldcrypt.ciphertext_info('$value')", 'encrypt decrypt reencrypt manage' ],
	[ "SELECT '$value'::fieldcrypt.encrypted::bytea::fieldcrypt.encrypted", 'encrypt decrypt reencrypt manage' ],
	[ "SELECT '$value'::fieldcrypt.encrypted OPERATOR(fieldcrypt.*=) '$value'::fieldcrypt.encrypted", 'encrypt decrypt reencrypt manage' ],
	[ "SELECT DISTINCT v FROM (VALUES ('$value'::fieldcrypt.encrypted), ('$value')) AS x (v)", 'encrypt decrypt reencrypt manage' ],
	[ 'CREATE TEMP TABLE t (v fieldcrypt.encrypted)', 'encrypt decrypt reencrypt manage' ],
	# Of columns that take plaintext: to have one is for all, to write to one is not.
	[ 'SELECT $$x$$::text::fieldcrypt.encrypted_text', 'encrypt decrypt reencrypt manage' ],
	[ 'CREATE TEMP TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column($$t$$, $$v$$)', 'encrypt' ],
	[ 'CREATE TEMP TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted_text); SELECT fieldcrypt.unprotect_column($$t$$, $$v$$)', 'encrypt' ],
	[ 'INSERT INTO data.given VALUES (10, $$x$$)', 'encrypt' ],
	[ 'INSERT INTO data.given VALUES (10, NULL); UPDATE data.given SET v = $$x$$ WHERE id = 10', 'encrypt' ],
	[ 'UPDATE data.given SET id = 11 WHERE id = 1', 'reencrypt' ],
	[ "SELECT fieldcrypt.decrypt_field('$bound', 'data.given.v/1')", 'decrypt' ],
	[ "SELECT fieldcrypt.loosen('$bound', 'data.given.v/1')", 'encrypt+decrypt' ],
	[ 'SELECT fieldcrypt.create_loose_key()', 'manage' ],
	[ 'SELECT fieldcrypt.is_protected(NULL, $$n$$, $$text$$, $$session$$, $$$$, 1)', 'encrypt decrypt reencrypt manage audit backup' ],
	[ 'CREATE TEMP TABLE t (v int); SELECT fieldcrypt.audit_table($$t$$)', 'manage' ],
	[ 'SELECT fieldcrypt.set_rotation_policy(NULL, $$1 year$$)', 'manage' ],
	[ 'SELECT * FROM fieldcrypt.rotation_policies', 'manage audit backup' ],
	[ 'SELECT * FROM fieldcrypt.rotation_log', 'manage audit backup' ],
	# Never by any of them.
	[ 'SELECT fieldcrypt_internal.store_rotation_policy($$$$, $$1 second$$)', '' ],
	[ 'DELETE FROM fieldcrypt.rotation_log', '' ],
	[ 'SELECT fieldcrypt_internal.make_current($$x$$)', '' ],
	[ 'SELECT fieldcrypt.protect_column($$data.given$$, $$v$$)', '' ],
	[ 'SELECT fieldcrypt.unprotect_column($$data.given$$, $$v$$)', '' ],
	[ 'SELECT fieldcrypt_internal.declare_protection(0, $$v$$, NULL, NULL, NULL, $$text$$)', '' ],
	[ 'SELECT fieldcrypt_internal.believe_protection(0, $$v$$)', '' ],
	[ 'SELECT fieldcrypt_internal.create_binding_triggers(0)', '' ],
	[ 'SELECT fieldcrypt_internal.rewrap_keys($$x$$, $$1$$)', '' ],
	[ 'SELECT fieldcrypt_internal.lock_master_keys()', '' ],
	[ 'SELECT fieldcrypt_internal.retire_master_keys()', '' ],
	[ 'SELECT fieldcrypt_internal.rotate_active_key($$other$$, NULL, true, NULL)', '' ],
	[ 'SELECT fieldcrypt_internal.record_event($$key_created$$, NULL, NULL, NULL, NULL)', '' ],
	[ 'SELECT fieldcrypt_internal.loaded_master_keys()', '' ],
	[ 'SELECT fieldcrypt_internal.outer_role()', '' ],
	[ 'SELECT fieldcrypt_internal.change_access($$ROLE$$, $${decrypt}$$, true)', '' ],
	[ 'SELECT fieldcrypt_internal.privilege_objects($$decrypt$$)', '' ],
	[ 'SELECT fieldcrypt_internal.held_of($$ROLE$$, $${decrypt}$$)', '' ],
	[ 'SELECT fieldcrypt_internal.held_privileges($$ROLE$$)', '' ],
	[ 'SELECT fieldcrypt.grant_access($$ROLE$$, $$decrypt$$)', '' ],
	[ 'SELECT fieldcrypt.revoke_access($$ROLE$$, $$decrypt$$)', '' ],
	[ 'INSERT INTO fieldcrypt.audit_log (event) VALUES ($$key_created$$)', '' ],
	[ 'INSERT INTO fieldcrypt_internal.audit_log_2026 (event) VALUES ($$key_created$$)', '' ],
	[ 'UPDATE fieldcrypt.audit_log SET reason = $$x$$', '' ],
	[ 'DELETE FROM fieldcrypt.audit_log', '' ],
	[ 'TRUNCATE fieldcrypt.audit_log', '' ],
	[ 'TRUNCATE fieldcrypt_internal.audit_log_2026', '' ],
	[ 'SELECT nextval($$fieldcrypt_internal.audit_log_id_seq$$)', '' ],
	[ 'SELECT setval($$fieldcrypt_internal.audit_log_id_seq$$, 1)', '' ],
	[ 'INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys', '' ],
	[ 'UPDATE fieldcrypt.encryption_keys SET state = $$destroyed$$', '' ],
	[ 'DELETE FROM fieldcrypt.encryption_keys', '' ],
	[ 'TRUNCATE fieldcrypt.encryption_keys', '' ],
	[ 'SELECT 1 FROM fieldcrypt.encryption_keys FOR UPDATE', '' ],
	[ 'LOCK fieldcrypt.encryption_keys IN ACCESS EXCLUSIVE MODE', '' ],
	[ 'UPDATE fieldcrypt.master_keys SET is_current = false', '' ],
	[ 'DELETE FROM fieldcrypt.master_keys', '' ],
	[ 'ALTER TABLE fieldcrypt.audit_log DISABLE TRIGGER ALL', '' ],
	[ 'CREATE TRIGGER t BEFORE INSERT ON fieldcrypt.audit_log FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()', '' ],
	[ 'CREATE TABLE fieldcrypt.mine (id int)', '' ],
	[ 'CREATE FUNCTION fieldcrypt.mine() RETURNS int LANGUAGE sql AS $$SELECT 1$$', '' ],
	[ 'CREATE RULE r AS ON INSERT TO fieldcrypt.audit_log DO INSTEAD NOTHING', '' ],
	[ 'CREATE POLICY p ON fieldcrypt.audit_log USING (false)', '' ],
	[ 'ALTER FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text) LEAKPROOF', '' ],
	[ 'DROP EXTENSION pg_fieldcrypt CASCADE', '' ]);

# Runs all of them as a role; gives those whose outcome is not what its privileges say.
sub breaches
{
	my ($role, @held) = @_;
	my @outcomes = outcomes($node, [ map { $_->[0] =~ s/ROLE/$role/gr } @things ], user => $role);
	my @breaches;
	foreach my $index (0 .. $#things)
	{
		my ($sql, $allowed) = @{ $things[$index] };
		my %held = map { $_ => 1 } @held;
		my $may = grep { !grep { !$held{$_} } split /\+/ } split / /, $allowed;
		my $did = $outcomes[$index] eq '00000';
		# COPY is not for EXECUTE to catch: it has no outcome in a function.
		next if $sql =~ /^COPY/ && $outcomes[$index] =~ /^0A000/;
		push @breaches, "$sql: $outcomes[$index]" if $may ? !$did : $outcomes[$index] !~ /^42501/;
	}
	return join "\n", @breaches;
}

my $serial = 0;

sub role_with
{
	my (@granted) = @_;
	my $role = 'role_' . ++$serial;
	value($node, "CREATE ROLE $role LOGIN");
	value($node, "SELECT fieldcrypt.grant_access('$role', " . join(', ', map { "'$_'" } @granted) . ')') if @granted;
	return $role;
}

is(breaches(role_with()), '', 'without a grant: nothing');
foreach my $privilege (@privileges)
{
	is(breaches(role_with($privilege), $privilege), '', "$privilege: what it says, and nothing else");
}
is(breaches(role_with(@privileges), @privileges), '', 'all six at once');

# Of the internals, each privilege has the steps of its own procedures: what it lists, and the schema if that is
# looked up by name. What triggers are made of is everybody's, who can't name it without the schema, and what only refuses.
my $everybodys = join(', ', map { "'$_'" } qw(is_foreign is_changed_to_foreign is_twin bind_values carry_column refuse_comparison refuse_comparison_with_text refuse_comparison_of_text refuse_match refuse_member refuse_element refuse_order refuse_text refuse_name refuse_encrypted_text refuse_encrypted_name));
foreach my $privilege (@privileges)
{
	my $role = role_with($privilege);
	gives($node, <<SQL, '', "$privilege: no internal of another privilege");
WITH listed AS (
    SELECT CASE WHEN o.object LIKE 'FUNCTION %' THEN to_regprocedure(substr(o.object, 10))::text ELSE regexp_replace(o.object, '^[A-Z]+ ', '') END AS name
      FROM unnest(ARRAY['$privilege', CASE WHEN '$privilege' IN ('encrypt', 'decrypt', 'reencrypt', 'manage') THEN 'value' END]) AS p(name),
           fieldcrypt_internal.privilege_objects(p.name) AS o
     WHERE o.object LIKE '% fieldcrypt_internal%'
), held AS (
    SELECT p.oid::regprocedure::text AS name FROM pg_proc AS p WHERE p.pronamespace = 'fieldcrypt_internal'::regnamespace AND has_function_privilege('$role', p.oid, 'EXECUTE')
        AND p.proname NOT IN ($everybodys)
    UNION ALL SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relnamespace = 'fieldcrypt_internal'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
        AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('$role', c.oid, 'USAGE, SELECT, UPDATE')
            ELSE has_table_privilege('$role', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') OR has_any_column_privilege('$role', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES') END
    UNION ALL SELECT 'fieldcrypt_internal' WHERE has_schema_privilege('$role', 'fieldcrypt_internal', 'USAGE')
)
(SELECT 'not listed: ' || h.name FROM held AS h EXCEPT SELECT 'not listed: ' || l.name FROM listed AS l)
UNION ALL (SELECT 'not held: ' || l.name FROM listed AS l EXCEPT SELECT 'not held: ' || h.name FROM held AS h)
SQL
	gives($node, "SELECT has_schema_privilege('$role', 'fieldcrypt_internal', 'CREATE')", 'f', "$privilege: nothing is made there");
}
gives($node, q{SELECT count(*) FROM pg_proc WHERE pronamespace = 'fieldcrypt_internal'::regnamespace AND has_function_privilege('} . role_with() . q{', oid, 'EXECUTE') AND proname NOT IN (} . $everybodys . ')', '0', 'without a grant: no internal');

# Of every two: granted in one call or in two, one taken away, what is left is exactly the other.
foreach my $keep (@privileges)
{
	foreach my $take (grep { $_ ne $keep } @privileges)
	{
		my $role = role_with($keep);
		value($node, "SELECT fieldcrypt.grant_access('$role', '$take'); SELECT fieldcrypt.revoke_access('$role', '$take')");
		is(breaches($role, $keep), '', "$keep stays when $take is taken away");
	}
}
{
	my $role = role_with(@privileges);
	value($node, "SELECT fieldcrypt.revoke_access('$role', 'decrypt', 'backup')");
	is(breaches($role, qw(encrypt reencrypt manage audit)), '', 'two of six taken away');
	value($node, "SELECT fieldcrypt.revoke_access('$role', " . join(', ', map { "'$_'" } @privileges) . ')');
	is(breaches($role), '', 'all of them taken away');
	# The role's last session owns a function in its temporary schema until its backend is gone.
	eventually($node, "SELECT count(*) FROM pg_stat_activity WHERE usename = '$role'", '0');
	value($node, "DROP ROLE $role");
	pass('a role whose access was taken away can be dropped');

	$role = role_with('encrypt');
	value($node, "SELECT fieldcrypt.revoke_access('$role', 'decrypt')");
	is(breaches($role, 'encrypt'), '', 'what was never granted is taken away without harm');
	value($node, "SELECT fieldcrypt.grant_access('$role', 'encrypt', 'encrypt'); SELECT fieldcrypt.grant_access('$role', 'encrypt')");
	is(breaches($role, 'encrypt'), '', 'granted again and again is granted once');
}

# By membership, and a role with a hostile name.
{
	value($node, 'CREATE ROLE group_role; CREATE ROLE member LOGIN IN ROLE group_role; CREATE ROLE outsider LOGIN NOINHERIT IN ROLE group_role');
	value($node, q{SELECT fieldcrypt.grant_access('group_role', 'decrypt')});
	is(breaches('member', 'decrypt'), '', 'a member has what its group has');
	is(breaches('outsider'), '', 'one that does not inherit has nothing');
	gives($node, "SET ROLE group_role; SELECT fieldcrypt.decrypt_field('$value')", 'kept', 'until it sets the role', user => 'outsider');

	foreach my $name (q{Mixed Case}, q{quo"te}, q{a"; DROP TABLE data.kept; --}, q{it's}, "new\nline", '%s%I%L', q{$$}, "caf\xc3\xa9", 'a' x 63)
	{
		(my $identifier = $name) =~ s/"/""/g;
		$identifier = qq{"$identifier"};
		(my $literal = $identifier) =~ s/'/''/g;
		my $shown = $name =~ s/\n/\\n/gr;
		value($node, "CREATE ROLE $identifier LOGIN; SELECT fieldcrypt.grant_access('$literal', 'decrypt')");
		gives($node, "SET ROLE $identifier; SELECT fieldcrypt.decrypt_field('$value')", 'kept', "granted to the role $shown");
		value($node, "SELECT fieldcrypt.revoke_access('$literal', 'decrypt')");
		refused($node, "SET ROLE $identifier; SELECT fieldcrypt.decrypt_field('$value')", '42501', "revoked from the role $shown");
	}
}
# Arguments.
foreach my $case (
	[ q{'no_such_role', 'decrypt'}, '42704' ], [ q{'public', 'decrypt'}, '42704' ], [ q{NULL, 'decrypt'}, '22023' ],
	[ q{'member', 'superpowers'}, '22023' ], [ q{'member', 'Decrypt'}, '22023' ], [ q{'member', NULL}, '22023' ], [ q{'member', 'decrypt', NULL}, '22023' ],
	[ q{'member', 'value'}, '22023' ], [ q{'member', 'schema'}, '22023' ], [ q{'member', ''}, '22023' ],
	[ q{'member', VARIADIC '{}'}, '22023' ], [ q{'member', VARIADIC NULL}, '22023' ], [ q{'-', 'decrypt'}, '22023' ], [ q{0::oid::regrole, 'decrypt'}, '22023' ], [ q{123456::oid::regrole, 'decrypt'}, qr/22023|42704/ ])
{
	my ($arguments, $sqlstate) = @$case;
	foreach my $function (qw(grant_access revoke_access))
	{
		my ($outcome) = outcomes($node, ["SELECT fieldcrypt.$function($arguments)"]);
		like($outcome, ref $sqlstate ? $sqlstate : qr/^$sqlstate /, "$function($arguments) is refused");
	}
}
gives($node, q{SELECT count(*) = 0 FROM fieldcrypt.audit_log WHERE event IN ('access_granted', 'access_revoked') AND reason ~ 'superpowers'}, 't', 'a refused grant is not recorded as one');
gives($node, q{SELECT event, actor = session_user, reason FROM fieldcrypt.audit_log WHERE reason ~ 'group_role'}, 'access_granted|t|decrypt to group_role', 'a grant is recorded');

# pg_dump by a database owner who has `backup`, and nobody else's.
value($node, 'CREATE ROLE dumper LOGIN; CREATE DATABASE dumped OWNER dumper');
value($node, q{CREATE EXTENSION pg_fieldcrypt; SELECT fieldcrypt.encrypt_field('x'); SELECT fieldcrypt.grant_access('dumper', 'backup')}, db => 'dumped');
my $folder = PostgreSQL::Test::Utils::tempdir();
ok($node->run_log([ 'pg_dump', '-w', '-f', "$folder/dumped.sql", '-U', 'dumper', $node->connstr('dumped') ]), 'backup is enough for pg_dump');
value($node, q{SELECT fieldcrypt.revoke_access('dumper', 'backup')}, db => 'dumped');
ok(!$node->run_log([ 'pg_dump', '-w', '-f', "$folder/not.sql", '-U', 'dumper', $node->connstr('dumped') ]), 'and needed');

# What docs/access.md recommends, as it stands there.
{
	create_database($node, 'clinic');
	my @recipes = PostgreSQL::Test::Utils::slurp_file("$ENV{TESTDIR}/docs/access.md") =~ /^```sql\n(.*?)^```/msg;
	is(scalar @recipes, 2, 'two recipes');
	value($node, <<'SQL', db => 'clinic');
CREATE ROLE reception LOGIN;
CREATE TABLE patients (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted, phone fieldcrypt.encrypted);
INSERT INTO patients SELECT i, 'name ' || i, fieldcrypt.encrypt_field('ssn ' || i, 'patients.ssn/' || i), fieldcrypt.encrypt_field('phone ' || i, 'patients.phone/' || i)
  FROM generate_series(1, 3) AS i;
GRANT SELECT ON patients TO reception;
SQL
	value($node, $_, db => 'clinic') foreach @recipes;
	my @as = (db => 'clinic', user => 'reception');
	gives($node, 'SELECT name, phone FROM patients_for_reception ORDER BY id', "name 1|phone 1\nname 2|phone 2\nname 3|phone 3", 'a role sees the column that it may see', @as);
	refused($node, $_->[1], '42501', "and not by $_->[0]", @as, on_error_stop => 1) foreach
	  [ 'decrypting itself', q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients} ],
	  [ 'decrypting even that column itself', q{SELECT fieldcrypt.decrypt_field(phone, 'patients.phone/' || id) FROM patients} ],
	  [ 'becoming the reader', 'SET ROLE phone_reader' ],
	  [ 'a function of its own over the view', q{CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS $$ SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM public.patients $$; SELECT pg_temp.f()} ],
	  [ 'writing through the view', q{UPDATE patients_for_reception SET name = 'x'} ];
	value($node, q{GRANT UPDATE ON patients TO reception}, db => 'clinic');
	refused($node, q{UPDATE patients SET phone = ssn; SELECT phone FROM patients_for_reception}, 'KF002', 'nor by putting another column there', @as);
	refused($node, q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients}, '42501', 'the reader sees no other column', db => 'clinic', user => 'phone_reader')
	  if value($node, 'ALTER ROLE phone_reader LOGIN; SELECT 1', db => 'clinic');
	gives($node, q{CREATE TABLE generated (id int, v encrypted); INSERT INTO generated SELECT 1, fieldcrypt.encrypt_field('x', 'generated/1'); SELECT fieldcrypt.decrypt_field(v, 'generated/' || id) FROM generated},
		'x', 'a domain is the type under another name', db => 'clinic');
	gives($node, q{SELECT problem IS NULL FROM fieldcrypt_internal.encrypted_columns() WHERE relation = 'generated'::regclass}, 't', 'and re-encryption finds it', db => 'clinic');
	value($node, 'DROP OWNED BY reception, phone_reader CASCADE', db => 'clinic');
}

$node->stop;
done_testing();
