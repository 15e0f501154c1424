# Protected columns and encrypt_column by owners of tables whose code runs in what is done for them, and who write the
# declaration by hand: nobody gets rights that he has not, and no value goes to another's row.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
value($node, <<'SQL');
GRANT CREATE ON SCHEMA public TO PUBLIC;
CREATE ROLE enc LOGIN; CREATE ROLE encdec LOGIN; CREATE ROLE victim LOGIN; CREATE ROLE man LOGIN; CREATE ROLE mover LOGIN; CREATE ROLE stranger LOGIN;
SELECT fieldcrypt.grant_access('enc', 'encrypt'), fieldcrypt.grant_access('encdec', 'encrypt', 'decrypt'), fieldcrypt.grant_access('victim', 'encrypt', 'decrypt'),
       fieldcrypt.grant_access('man', 'manage'), fieldcrypt.grant_access('mover', 'encrypt', 'reencrypt');
SQL
value($node, <<'SQL', user => 'victim');
CREATE TABLE patients (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('patients', 'ssn');
INSERT INTO patients VALUES (1, 'Ada', '111-11-1111'), (2, 'Bob', '222-22-2222');
GRANT SELECT, UPDATE (ssn) ON patients TO PUBLIC;
SQL

# Code of a table's owner, in whatever is planned, validated or altered for him: it never runs as anybody else.
foreach my $owner (qw(enc encdec))
{
	value($node, <<"SQL", user => $owner);
CREATE TABLE ran_$owner (as_whom name);
CREATE FUNCTION note_$owner() RETURNS integer LANGUAGE plpgsql AS \$\$ BEGIN
	IF current_user <> '$owner' THEN RAISE EXCEPTION 'runs as %', current_user USING ERRCODE = 'ZZ001'; END IF; RETURN 1; END \$\$;
CREATE FUNCTION hidden_$owner() RETURNS integer LANGUAGE plpgsql IMMUTABLE AS \$\$ BEGIN RETURN public.note_$owner(); END \$\$;
CREATE FUNCTION word_$owner() RETURNS text LANGUAGE plpgsql AS \$\$ BEGIN PERFORM public.note_$owner(); RETURN ''; END \$\$;
CREATE FUNCTION yes_$owner(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS \$\$ BEGIN PERFORM public.note_$owner(); RETURN true; END \$\$;
SQL
}
my $is_nobody_more = q{SELECT count(*) FROM pg_roles WHERE rolname IN ('enc', 'encdec', 'man', 'mover') AND rolsuper};
sub runs
{
	my ($what, $user, $sql, $expected) = @_;
	my $result = run_sql($node, $sql, user => $user);
	unlike("$result->{err}", qr/runs as/, "$what: as its owner and nobody else");
	is("@{ $result->{sqlstates} }", $expected, "  and it ends so") if defined $expected;
	return;
}
value($node, 'CREATE TABLE indexed (id int PRIMARY KEY, s fieldcrypt.encrypted_text); CREATE INDEX ON indexed ((hidden_enc()))', user => 'enc');
runs('an expression of an index', 'enc', q{SELECT fieldcrypt.protect_column('indexed', 's')}, '');
value($node, 'CREATE TABLE checked (id int PRIMARY KEY, s fieldcrypt.encrypted_text); ALTER TABLE checked ADD CHECK (hidden_enc() > 0) NOT VALID', user => 'enc');
runs('a constraint that the planner tries', 'enc', q{SET constraint_exclusion = on; SELECT fieldcrypt.protect_column('checked', 's')}, '');
value($node, q{CREATE TABLE worded (id int PRIMARY KEY, s fieldcrypt.encrypted_text); INSERT INTO worded VALUES (1, NULL);
	ALTER TABLE worded ADD CHECK (fieldcrypt.is_protected(s, 'a.b', 'text', 'session', word_enc(), id)) NOT VALID}, user => 'enc');
runs('a declaration that computes', 'enc', q{SELECT fieldcrypt.protect_column('worded', 's', name => 'a.b')});
value($node, q{CREATE TABLE migrated (id int PRIMARY KEY, s text NOT NULL); INSERT INTO migrated VALUES (1, 'x'), (2, 'y');
	CALL fieldcrypt.encrypt_column('migrated', 's', swap => false);
	ALTER TABLE migrated ADD CONSTRAINT x_not_null_yet CHECK (yes_encdec(s_encrypted_new::fieldcrypt.encrypted::bytea::text)) NOT VALID;
	ALTER TABLE migrated ADD CONSTRAINT y CHECK (yes_encdec('y')) NOT VALID}, user => 'encdec');
runs('constraints beside a migration', 'encdec', q{CALL fieldcrypt.encrypt_column('migrated', 's')}, '');
runs('and back', 'encdec', q{CALL fieldcrypt.undo_encrypt_column('migrated', 's')});
value($node, q{CREATE TABLE twins (id int PRIMARY KEY, s text); INSERT INTO twins VALUES (1, 'x');
	CALL fieldcrypt.encrypt_column('twins', 's', swap => false); ALTER TABLE twins DROP CONSTRAINT s_are_twins;
	ALTER TABLE twins ADD CONSTRAINT a_are_twins CHECK (yes_encdec('a') AND (s IS NULL) = (s_encrypted_new IS NULL)) NOT VALID}, user => 'encdec');
runs('a constraint in the place of ours', 'encdec', q{CALL fieldcrypt.encrypt_column('twins', 's')});
value($node, 'CREATE INDEX ON twins ((hidden_encdec()))', user => 'encdec');
foreach my $user (qw(man postgres))
{
	runs("a count of values by $user", $user, q{SET constraint_exclusion = on; SELECT count(*) FROM fieldcrypt.key_usage(exact => false)});
}
gives($node, $is_nobody_more, '0', 'and nobody is a superuser for it');

# A superuser, by whatever way he says that he is the owner, would give the owner's triggers his rights.
value($node, q{CREATE TABLE trap (id int PRIMARY KEY, s text); INSERT INTO trap VALUES (1, 'x');
	CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RESET ROLE; ALTER ROLE encdec SUPERUSER; SET ROLE encdec; RETURN NEW; END $$;
	CREATE TRIGGER spring BEFORE UPDATE ON trap FOR EACH ROW EXECUTE FUNCTION spring();
	CREATE TABLE loose_trap (id int PRIMARY KEY, s fieldcrypt.encrypted_text); INSERT INTO loose_trap VALUES (1, 'x'::text);
	CREATE TRIGGER spring BEFORE UPDATE ON loose_trap FOR EACH ROW EXECUTE FUNCTION spring()}, user => 'encdec');
foreach my $way ('SELECT 1', 'SET ROLE encdec', 'SET SESSION AUTHORIZATION encdec')
{
	refused($node, "$way; CALL fieldcrypt.encrypt_column('trap', 's')", '42501', "encrypt_column by a superuser: $way");
	run_sql($node, "$way; SELECT fieldcrypt.protect_column('loose_trap', 's')");
}
gives($node, $is_nobody_more, '0', 'the trap has not sprung');
refused($node, q{SELECT fieldcrypt.protect_column('loose_trap', 's')}, '42501', 'nor for protect_column, where rows are written');

# Another owner's name is not taken by a constraint of one's own, whoever attaches what to it.
my $declared = q{CHECK (fieldcrypt.is_protected(s, 'public.patients.ssn', 'text', 'session', '', id))};
foreach my $user (qw(enc encdec man mover))
{
	refused($node, "CREATE TABLE mine_$user (id bigint PRIMARY KEY, p text, s fieldcrypt.encrypted_text, $declared)", '42501', "a table with the name of another's column, by $user",
		user => $user);
	value($node, "CREATE TABLE mine_$user (id bigint PRIMARY KEY, p text, s fieldcrypt.encrypted_text)", user => $user);
	refused($node, "ALTER TABLE mine_$user ADD $declared", '42501', '  and added', user => $user);
	refused($node, "ALTER TABLE mine_$user ADD CONSTRAINT k $declared NOT VALID", '42501', '  and not valid', user => $user);
}
refused($node, "CREATE SCHEMA AUTHORIZATION enc CREATE TABLE inside (id bigint PRIMARY KEY, s fieldcrypt.encrypted_text, $declared)", '42501', 'in a new schema', user => 'enc')
	if value($node, 'GRANT CREATE ON DATABASE postgres TO enc; SELECT true') eq 't';
value($node, q{SELECT fieldcrypt.protect_column('mine_mover', 's')}, user => 'mover');
refused($node, "ALTER TABLE mine_mover DROP CONSTRAINT s_is_protected, ADD $declared", '42501', 'in the place of one\'s own', user => 'mover');
gives($node, q{SELECT string_agg(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.patients.ssn', id)), ' ' ORDER BY id) FROM patients}, '111-11-1111 222-22-2222',
	'all values are where they were', user => 'victim');
# Who was first with a name that nobody had keeps it by protect_column only.
value($node, q{CREATE TABLE squat (id bigint PRIMARY KEY, s fieldcrypt.encrypted_text, CHECK (fieldcrypt.is_protected(s, 'public.future.ssn', 'text', 'session', '', id)))}, user => 'enc');
value($node, q{CREATE TABLE future (id bigint PRIMARY KEY, ssn fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('future', 'ssn'); INSERT INTO future VALUES (1, 'x')}, user => 'victim');
refused($node, q{SELECT fieldcrypt.protect_column('squat', 's')}, '42P17', 'a name that somebody else was given since', user => 'enc');
refused($node, q{CREATE TABLE heir (id bigint PRIMARY KEY, s fieldcrypt.encrypted_text);
	SELECT fieldcrypt.protect_column('heir', 's', name => 'public.future.ssn')}, '42P17', 'nor by naming it', user => 'encdec');

# What the trigger of a migration does is the table owner's right, as long as he has it.
value($node, q{CREATE TABLE kept (id bigint PRIMARY KEY, s text); INSERT INTO kept VALUES (1, 'x'); GRANT INSERT, SELECT, UPDATE ON kept TO stranger;
	CALL fieldcrypt.encrypt_column('kept', 's')}, user => 'encdec');
value($node, q{INSERT INTO kept (id, s) VALUES (2, 'two')}, user => 'encdec');
value($node, q{SELECT fieldcrypt.revoke_access('encdec', 'decrypt')});
refused($node, q{INSERT INTO kept (id, s) VALUES (3, 'three')}, '42501', 'the owner of a table has lost decrypt: nothing is opened for the old column', user => 'encdec');
value($node, q{SELECT fieldcrypt.grant_access('encdec', 'decrypt')});
gives($node, q{INSERT INTO kept (id, s) VALUES (3, 'three'); SELECT string_agg(s_plaintext, ' ' ORDER BY id) FROM kept}, 'x two three', 'with it the columns are alike', user => 'encdec');
refused($node, q{CREATE TRIGGER "~t" BEFORE INSERT ON mine_man FOR EACH ROW WHEN (fieldcrypt_internal.is_twin(NEW.p, NEW.s, 'encrypt'))
	EXECUTE FUNCTION fieldcrypt_internal.carry_column();
	ALTER TABLE mine_man ADD CHECK (fieldcrypt.is_protected(s, 'man.s', 'text', 'session', '', id)); INSERT INTO mine_man (id, p, s) VALUES (1, 'x', NULL)},
	'42501', 'who has manage alone attaches it by hand', user => 'man');

# Names of one owner's objects are nothing to another's.
value($node, q{ALTER TRIGGER "~fieldcrypt_keep_twin_3" ON kept RENAME TO "~f is_twin(new.a, new.1x, 'decrypt'"}, user => 'encdec');
value($node, q{CREATE TABLE "is_twin(new.a, new.1x, 'decrypt'" (id bigint PRIMARY KEY, s text); CALL fieldcrypt.encrypt_column('"is_twin(new.a, new.1x, ''decrypt''"', 's')}, user => 'encdec');
value($node, q{CREATE TABLE calm (id bigint PRIMARY KEY, s text); CALL fieldcrypt.encrypt_column('calm', 's'); CALL fieldcrypt.undo_encrypt_column('calm', 's')}, user => 'victim');
gives($node, q{SELECT count(*) FROM fieldcrypt.health() WHERE status = 'failed'}, '0', 'and every check can be made');
gives($node, q{SELECT count(*) FROM fieldcrypt.health() WHERE "check" = 'protected_columns' AND detail ~ 'behind the one'}, '0', 'a trigger of ours is none behind ours');

# A lock on one owner's table keeps nobody else waiting.
my $locker = $node->background_psql('postgres', on_error_stop => 0);
$locker->query_safe('BEGIN; LOCK TABLE future IN ACCESS EXCLUSIVE MODE');
value($node, q{SET statement_timeout = '20s'; CREATE TABLE unhindered (id bigint PRIMARY KEY, s fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('unhindered', 's');
	CREATE TABLE also (id bigint PRIMARY KEY, s text); CALL fieldcrypt.encrypt_column('also', 's')}, user => 'encdec');
$locker->query_safe('COMMIT');
$locker->quit;

# A key that was suspended does not seal what came in before.
refused($node, q{BEGIN; CREATE TEMP TABLE fresh AS SELECT 'x'::text::fieldcrypt.encrypted_text AS s;
	SELECT fieldcrypt.suspend_key(key_id, 'test') FROM fieldcrypt.encryption_keys WHERE purpose = 'loose' AND state = 'active';
	INSERT INTO unhindered SELECT 1, s FROM fresh; COMMIT}, 'KF004', 'plaintext that came in before its key was suspended');

# Partitions are made by a table's owner, who has encrypt and nothing more.
value($node, q{CREATE TABLE parts (id bigint, s fieldcrypt.encrypted_text, PRIMARY KEY (id)) PARTITION BY RANGE (id); SELECT fieldcrypt.protect_column('parts', 's');
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (10);
	CREATE TABLE parts_2 (id bigint NOT NULL PRIMARY KEY, s fieldcrypt.encrypted_text, CONSTRAINT s_is_protected CHECK (fieldcrypt.is_protected(s, 'public.parts.s', 'text', 'session', '', id)));
	ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (10) TO (20);
	INSERT INTO parts VALUES (1, 'x'), (11, 'y')}, user => 'enc');
gives($node, q{SELECT count(*) FROM parts WHERE s IS NOT NULL}, '2', 'partitions of an owner without manage');

# A table that only the session has, beside one of its name.
value($node, q{CREATE TABLE tt (id int PRIMARY KEY, s fieldcrypt.encrypted_text); INSERT INTO tt VALUES (1, 'in public'::text)}, user => 'victim');
gives($node, q{SET search_path = public, pg_temp; CREATE TEMP TABLE tt (id int PRIMARY KEY, s fieldcrypt.encrypted_text); INSERT INTO pg_temp.tt VALUES (1, 'temporary'::text);
	SELECT fieldcrypt.protect_column('pg_temp.tt', 's') IS NOT NULL; SELECT (SELECT fieldcrypt.decrypt_field(s) FROM public.tt)}, "t\nin public",
	'protect_column of a temporary table', user => 'victim');

# An older snapshot reads what it has always read, or the swap waits.
my $reader = $node->background_psql('postgres', on_error_stop => 0);
value($node, q{CREATE TABLE seen (id int PRIMARY KEY, s text NOT NULL); INSERT INTO seen VALUES (1, 'x'), (2, 'y'); GRANT SELECT ON seen TO PUBLIC}, user => 'victim');
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM patients');
refused($node, q{CALL fieldcrypt.encrypt_column('seen', 's', wait_for_locks => '1 second')}, '55P03', 'the swap waits for who reads with an older snapshot', user => 'victim');
is($reader->query_safe(q{SELECT string_agg(s, ',' ORDER BY id) FROM seen}), 'x,y', '  who reads the values');
$reader->query_safe('COMMIT');
$reader->quit;
value($node, q{CALL fieldcrypt.encrypt_column('seen', 's')}, user => 'victim');

# The old column goes only where the new one can be read.
value($node, q{CREATE TABLE last (id int PRIMARY KEY, s text); INSERT INTO last VALUES (1, 'x'); CALL fieldcrypt.encrypt_column('last', 's')}, user => 'victim');
refused($node, 'ALTER TABLE last DROP COLUMN id', '2BP01', 'a column of the key does not go, and the declaration with it', user => 'victim');
my $key = value($node, 'SELECT fieldcrypt.key_id(s) FROM last', user => 'victim');
value($node, "SELECT fieldcrypt.suspend_key($key, 'test')");
refused($node, q{SELECT fieldcrypt.drop_plaintext_column('last', 's')}, '55000', 'a key is suspended: the old column stays', user => 'victim');
value($node, "SELECT fieldcrypt.resume_key($key, 'test')");
value($node, q{SELECT fieldcrypt.drop_plaintext_column('last', 's')}, user => 'victim');
value($node, 'ALTER TABLE last DROP COLUMN s; ALTER TABLE last DROP COLUMN id', user => 'victim');

# Bytes that are no text do not become one that opens nowhere.
refused($node, q{SELECT fieldcrypt.loosen(fieldcrypt.encrypt_field_bytea('\x636166e9', 'c'), 'c')}, '22021', 'bytes that are no text', user => 'victim');
# What can't be compared says so to everybody.
foreach my $comparison (q{SELECT ssn IS DISTINCT FROM ssn FROM patients}, q{SELECT nullif(ssn, ssn) FROM patients}, q{SELECT ROW(ssn) IS DISTINCT FROM ROW(ssn) FROM patients})
{
	my $result = run_sql($node, $comparison, user => 'victim');
	unlike($result->{err}, qr/permission denied/, "no missing grant: $comparison");
}

# A dump, and back to the old column: what was written since the swap is known still.
value($node, q{CREATE DATABASE first_home});
value($node, q{CREATE EXTENSION pg_fieldcrypt; CREATE TABLE p (id int PRIMARY KEY, a bytea); INSERT INTO p VALUES (1, convert_to('one', 'UTF8')), (2, convert_to('two', 'UTF8'));
	CALL fieldcrypt.encrypt_column('p', 'a', source => $$convert_from(a, 'UTF8')$$); INSERT INTO p (id, a) VALUES (3, 'three'); UPDATE p SET a = 'two, changed' WHERE id = 2}, db => 'first_home');
my $dump = $node->basedir . '/first_home.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('first_home') ], 'a dump while the old column is kept');
value($node, 'CREATE DATABASE second_home');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('second_home') ], 'and its restore');
refused($node, q{CALL fieldcrypt.undo_encrypt_column('p', 'a')}, '55000', 'undone without the expression: refused', db => 'second_home');
value($node, q{CALL fieldcrypt.undo_encrypt_column('p', 'a', source => $$convert_to(fieldcrypt.decrypt_field(a, fieldcrypt.context('public.p.a', id)), 'UTF8')$$)}, db => 'second_home');
gives($node, q{SELECT string_agg(convert_from(a, 'UTF8'), ' ' ORDER BY id) FROM p}, 'one two, changed three', 'with it nothing is lost', db => 'second_home');

no_crash($node);
done_testing();
