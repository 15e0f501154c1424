# Re-encryption by a superuser over tables of others: their code gets no more than their rights and
# leaves nothing behind; triggers, foreign keys, row level security; who may do what.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "fieldcrypt.require_approval = 'destroy_key'\n");
my $super = value($node, 'SELECT session_user');
my $log_before = -s $node->logfile;

value($node, <<'SQL');
CREATE ROLE mallory LOGIN;     -- owns tables, and manages keys: the most that an attacker may have
CREATE ROLE alice LOGIN;       -- owns tables
CREATE ROLE manager LOGIN;     -- manages, and owns nothing
SELECT fieldcrypt.grant_access('mallory', 'encrypt', 'decrypt', 'manage'), fieldcrypt.grant_access('alice', 'encrypt', 'manage'), fieldcrypt.grant_access('manager', 'manage');
CREATE SCHEMA evil AUTHORIZATION mallory;
GRANT ALL ON SCHEMA evil TO PUBLIC;
CREATE SCHEMA alices AUTHORIZATION alice;
GRANT USAGE ON SCHEMA alices TO PUBLIC;
CREATE TABLE victims (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO victims VALUES (1, fieldcrypt.encrypt_field('CANARY of a victim'));
CREATE TABLE armed (is_armed boolean);
INSERT INTO armed VALUES (false);
GRANT SELECT ON armed TO PUBLIC;
SQL

# What planted code tries: a statement, and how it must end.
my @attacks = (
	[ qq{SET ROLE "$super"}, '42501' ],
	[ 'RESET ROLE', '42501' ],
	[ qq{SET SESSION AUTHORIZATION "$super"}, '42501' ],
	[ "SELECT set_config('role', '$super', false)", '42501' ],
	[ "SELECT set_config('session_authorization', '$super', false)", '42501' ],
	[ "SELECT set_config('session_replication_role', 'replica', false)", '42501' ],
	[ "SELECT set_config('search_path', 'evil', false)", '00000' ],
	[ "SELECT set_config('evil.mark', 'left', false)", '00000' ],
	[ "SELECT set_config('statement_timeout', '1234567', false)", '00000' ],
	[ "SET lock_timeout = '1h'", '00000' ],
	[ "SELECT pg_read_file('/etc/passwd')", '42501' ],
	[ "COPY evil.tried TO PROGRAM 'cat'", '42501' ],
	[ "COPY evil.tried TO '/tmp/fieldcrypt_planted'", '42501' ],
	[ "SELECT lo_import('/etc/passwd')", '42501' ],
	[ 'ALTER ROLE mallory SUPERUSER', '42501' ],
	[ 'CREATE ROLE planted SUPERUSER', '42501' ],
	[ qq{GRANT "$super" TO mallory}, '42501' ],
	[ 'ALTER SYSTEM SET work_mem = 64', '25001' ],
	[ "CREATE FUNCTION pg_catalog.planted() RETURNS int LANGUAGE sql AS 'SELECT 1'", '42501' ],
	[ "CREATE TEMPORARY TABLE planted (a int)", '42501' ],
	[ 'CREATE EXTENSION dblink', '42501' ],
	[ 'LISTEN planted', '42501' ],
	[ 'UNLISTEN *', '42501' ],
	[ 'PREPARE planted AS SELECT 1', '42501' ],
	[ 'DEALLOCATE ALL', '42501' ],
	[ 'DISCARD PLANS', '42501' ],
	[ 'DECLARE planted CURSOR WITH HOLD FOR SELECT 1', '42501' ],
	[ 'COMMIT', '0A000' ],
	[ 'SELECT v FROM public.victims', '42501' ],
	[ "UPDATE public.victims SET v = NULL", '42501' ],
	[ 'SELECT wrapped_key FROM fieldcrypt.encryption_keys', '42501' ],
	[ "UPDATE fieldcrypt.encryption_keys SET state = 'active'", '42501' ],
	[ "INSERT INTO fieldcrypt.audit_log (event) VALUES ('forged')", '42501' ],
	[ 'DELETE FROM fieldcrypt_internal.reencryptions', '42501' ],
	[ 'DELETE FROM fieldcrypt_internal.reencryption_chunks', '42501' ],
	[ 'DELETE FROM fieldcrypt.column_contexts', '42501' ],
	[ "INSERT INTO fieldcrypt.column_contexts VALUES ('public.victims', 'v', NULL, 'evil.escalate()', '$super')", '42501' ],
	[ "SELECT fieldcrypt.grant_access('mallory', 'audit')", '42501' ],
	[ "SELECT fieldcrypt_internal.reencrypt_batch('public.victims'::regclass, 0, 1, 100, 100, 100000, false, '{}', false)", '42501' ],
	[ "SELECT fieldcrypt_internal.count_keys('public.victims'::regclass)", '42501' ],
	[ 'SELECT fieldcrypt.decrypt_field(v) FROM evil.all_at_once', 'KF014' ],
	# What the SECURITY DEFINER functions of the extension take from the session's user.
	[ "SELECT fieldcrypt.set_column_context('public.victims', 'v', expression => 'evil.escalate()')", '42501' ],
	[ "SELECT evil.sd_context()", '42501' ],
	[ "SELECT fieldcrypt_internal.approve_step((SELECT max(id) FROM fieldcrypt.approvals))", '42501' ],
	[ "SELECT fieldcrypt.request_approval('destroy_key', '1', 'planted')", '42501' ],
	# What would fire at the superuser's COMMIT.
	[ "INSERT INTO evil.with_deferred VALUES (1)", '42501' ],
	[ "SELECT evil.sd_deferred()", '42501' ],
	[ "SELECT evil.with_role()", '42501' ],
);
my $list = join ",\n", map { my ($s, $e) = @$_; $s =~ s/'/''/g; "('$s', '$e')" } @attacks;

value($node, <<SQL, user => 'mallory');
CREATE TABLE evil.attacks (statement text, expected text);
INSERT INTO evil.attacks VALUES $list;
CREATE TABLE evil.tried (place text, by_user text, statement text, outcome text);
CREATE TABLE evil.with_deferred (a int);
GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.late() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN INSERT INTO evil.tried VALUES ('late ' || TG_TABLE_NAME, current_user, '', '00000'); RETURN NULL; END \$\$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON evil.with_deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.late();
ALTER TABLE evil.with_deferred ENABLE ALWAYS TRIGGER late;
CREATE FUNCTION evil.sd_deferred() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO evil.with_deferred VALUES (2)';
CREATE FUNCTION evil.sd_context() RETURNS void LANGUAGE sql SECURITY DEFINER AS \$\$ SELECT fieldcrypt.set_column_context('public.victims', 'v', expression => 'evil.escalate()') \$\$;
CREATE FUNCTION evil.escalate() RETURNS text LANGUAGE plpgsql AS \$\$ BEGIN ALTER ROLE mallory SUPERUSER; RETURN ''; END \$\$;
CREATE FUNCTION evil.planted(place text) RETURNS boolean LANGUAGE plpgsql AS \$\$
DECLARE attack record;
BEGIN
    IF NOT (SELECT is_armed FROM public.armed) OR EXISTS (SELECT FROM evil.tried AS t WHERE t.place = planted.place) THEN RETURN true; END IF;
    INSERT INTO evil.tried VALUES (place, current_user, 'ran', current_setting('session_replication_role'));
    FOR attack IN SELECT * FROM evil.attacks LOOP
        BEGIN
            EXECUTE attack.statement;
            INSERT INTO evil.tried VALUES (place, current_user, attack.statement, '00000');
        EXCEPTION WHEN OTHERS THEN
            INSERT INTO evil.tried VALUES (place, current_user, attack.statement, SQLSTATE);
        END;
    END LOOP;
    RETURN true;
END \$\$;
CREATE FUNCTION evil.quietly(place text, value int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \$\$ BEGIN PERFORM evil.planted(place); RETURN value; END \$\$;
CREATE FUNCTION evil.on_row() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM evil.planted(TG_NAME); RETURN CASE TG_WHEN WHEN 'BEFORE' THEN new END; END \$\$;
CREATE FUNCTION evil.on_statement() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM evil.planted(TG_NAME); RETURN NULL; END \$\$;
CREATE FUNCTION evil.on_transition() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
    PERFORM evil.planted(TG_NAME); INSERT INTO evil.tried SELECT 'transition rows', current_user, count(*)::text, '' FROM old_rows JOIN new_rows USING (id) WHERE (SELECT is_armed FROM public.armed); RETURN NULL; END \$\$;
CREATE DOMAIN evil.checked AS fieldcrypt.encrypted CHECK (evil.quietly('domain', 1) = 1);
CREATE TABLE evil.all_at_once (id int PRIMARY KEY, v fieldcrypt.encrypted, w evil.checked, c fieldcrypt.encrypted,
    generated int GENERATED ALWAYS AS (evil.quietly('generated column', id)) STORED,
    CHECK (evil.quietly('check', id) = id));
CREATE INDEX ON evil.all_at_once ((evil.quietly('index expression', octet_length(v::bytea))));
CREATE INDEX ON evil.all_at_once (id) WHERE evil.quietly('index predicate', octet_length(v::bytea)) > 0;
INSERT INTO evil.all_at_once SELECT i, fieldcrypt.encrypt_field('v' || i), fieldcrypt.encrypt_field('w' || i), fieldcrypt.encrypt_field('c' || i, 'c') FROM generate_series(1, 5) AS i;
SELECT fieldcrypt.set_column_context('evil.all_at_once', 'c', expression => 'CASE WHEN evil.quietly(''column context'', id) = id THEN ''c'' END');
CREATE TRIGGER always_before BEFORE UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER always_after AFTER UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER always_when AFTER UPDATE ON evil.all_at_once FOR EACH ROW WHEN (evil.planted('trigger condition') AND old.id = new.id) EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER always_of BEFORE UPDATE OF w, id ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER always_before_statement BEFORE UPDATE ON evil.all_at_once FOR EACH STATEMENT EXECUTE FUNCTION evil.on_statement();
CREATE TRIGGER always_after_statement AFTER UPDATE ON evil.all_at_once FOR EACH STATEMENT EXECUTE FUNCTION evil.on_statement();
CREATE TRIGGER always_transition AFTER UPDATE ON evil.all_at_once REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION evil.on_transition();
CREATE CONSTRAINT TRIGGER always_constraint AFTER UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER ordinary_before BEFORE UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER ordinary_after AFTER UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER ordinary_statement AFTER UPDATE ON evil.all_at_once FOR EACH STATEMENT EXECUTE FUNCTION evil.on_statement();
CREATE TRIGGER ordinary_transition AFTER UPDATE ON evil.all_at_once REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION evil.on_transition();
CREATE TRIGGER replica_before BEFORE UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER off_before BEFORE UPDATE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
CREATE TRIGGER always_insert BEFORE INSERT OR DELETE ON evil.all_at_once FOR EACH ROW EXECUTE FUNCTION evil.on_row();
ALTER TABLE evil.all_at_once ENABLE ALWAYS TRIGGER always_before, ENABLE ALWAYS TRIGGER always_after, ENABLE ALWAYS TRIGGER always_when, ENABLE ALWAYS TRIGGER always_of,
    ENABLE ALWAYS TRIGGER always_before_statement, ENABLE ALWAYS TRIGGER always_after_statement, ENABLE ALWAYS TRIGGER always_transition, ENABLE ALWAYS TRIGGER always_constraint,
    ENABLE ALWAYS TRIGGER always_insert, ENABLE REPLICA TRIGGER replica_before, DISABLE TRIGGER off_before;
CREATE TABLE evil.deferred (id int, v fieldcrypt.encrypted);
INSERT INTO evil.deferred VALUES (1, fieldcrypt.encrypt_field('d'));
CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON evil.deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION evil.late();
ALTER TABLE evil.deferred ENABLE ALWAYS TRIGGER late;
CREATE FUNCTION evil.defer() RETURNS boolean LANGUAGE plpgsql AS \$\$ BEGIN IF (SELECT is_armed FROM public.armed) THEN SET CONSTRAINTS ALL DEFERRED; END IF; RETURN true; END \$\$;
CREATE TABLE evil.deferrable (id int, v fieldcrypt.encrypted, CHECK (evil.defer()));
INSERT INTO evil.deferrable VALUES (1, fieldcrypt.encrypt_field('d'));
CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON evil.deferrable DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION evil.late();
ALTER TABLE evil.deferrable ENABLE ALWAYS TRIGGER late;
SQL
# A function that switches roles itself. Only a superuser can make it, and could hand it over.
value($node, "CREATE FUNCTION evil.with_role() RETURNS text LANGUAGE sql SET role = '$super' AS 'SELECT current_user::text'; ALTER FUNCTION evil.with_role() OWNER TO mallory");
value($node, "SELECT fieldcrypt.request_approval('destroy_key', '1', 'asked by mallory')", user => 'mallory');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
value($node, 'UPDATE armed SET is_armed = true');

# The superuser's session, as it was before.
my $session = session($node);
my $state = <<'SQL';
SELECT current_user = session_user, current_setting('role'), current_setting('search_path'), current_setting('session_replication_role'), current_setting('lock_timeout'),
       current_setting('statement_timeout'), coalesce(current_setting('evil.mark', true), ''), pg_my_temp_schema(), (SELECT count(*) FROM pg_prepared_statements),
       (SELECT count(*) FROM pg_cursors WHERE is_holdable), (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid' AND relation IS DISTINCT FROM 'pg_locks'::regclass)
SQL
my $state_before = $session->value($state);
like($state_before, qr/^t\|none\|"\$user", public\|origin\|0\|0\|\|0\|0\|0\|0\|\d+$/, 'the state of the session before');
my $result = $session->run("CALL fieldcrypt.reencrypt('evil.all_at_once', rows_per_second => 0)");
is("@{ $result->{sqlstates} }", '', 'a table full of traps: the run goes through') or diag $result->{err};
unlike($result->{err}, qr/WARNING/, '  without a warning');
$session->gives($state, $state_before, '  nothing is left behind in the session');
gives($node, q{SELECT string_agg(place, ', ' ORDER BY place) FROM (SELECT DISTINCT place FROM evil.tried) AS p}, join(', ', sort
	'always_after', 'always_after_statement', 'always_before', 'always_before_statement', 'always_constraint', 'always_of', 'always_transition', 'always_when',
	'check', 'column context', 'domain', 'generated column', 'index expression', 'index predicate', 'transition rows', 'trigger condition'), '  every trap sprang, and no ordinary or ENABLE REPLICA trigger fired');
gives($node, 'SELECT DISTINCT by_user FROM evil.tried', 'mallory', '  always as the owner of the table');
gives($node, q{SELECT DISTINCT outcome FROM evil.tried WHERE statement = 'ran'}, 'origin', '  session_replication_role is untouched');
gives($node, q{SELECT DISTINCT statement FROM evil.tried WHERE place = 'transition rows'}, '5', '  transition tables have the rows');
my @places = split /, /, value($node, q{SELECT string_agg(place, ', ') FROM evil.tried WHERE statement = 'ran'});
foreach my $attack (@attacks)
{
	my ($statement, $expected) = @$attack;
	(my $literal = $statement) =~ s/'/''/g;
	# In an index predicate and so on, which no volatile function may be in, some end sooner.
	gives($node, "SELECT count(*), string_agg(DISTINCT outcome, ' ') FROM evil.tried WHERE statement = '$literal'", scalar(@places) . "|$expected", "  planted code: $statement");
}
gives($node, q{SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'}, 'f', '  mallory is no superuser');
gives($node, q{SELECT count(*) FROM fieldcrypt.column_contexts WHERE table_name = 'public.victims'}, '0', '  no context was planted for another table');
gives($node, q{SELECT count(*) FROM fieldcrypt.approvals WHERE approved_by IS NOT NULL}, '0', '  nothing was approved in the name of the superuser');
gives($node, q{SELECT count(*) FROM evil.all_at_once, fieldcrypt.encryption_keys AS k WHERE k.state = 'active' AND key_id IN (fieldcrypt.key_id(v), fieldcrypt.key_id(w), fieldcrypt.key_id(c))}, '5', '  and all is re-encrypted');
ok(!-e '/tmp/fieldcrypt_planted', '  no file');
$session->gives('SELECT fieldcrypt.decrypt_field(v) FROM victims', 'CANARY of a victim', '  the session works on');

# Triggers that would fire at the COMMIT, with the superuser's rights: the table is refused.
$result = $session->run("CALL fieldcrypt.reencrypt(rows_per_second => 0)");
is("@{ $result->{sqlstates} }", '', 'tables with deferred triggers: the run goes through') or diag $result->{err};
like($result->{err}, qr/WARNING:  KF025: 2 rows/, '  with a warning');
gives($node, q{SELECT DISTINCT error_code FROM fieldcrypt.reencryption_failures WHERE table_name IN ('evil.deferred', 'evil.deferrable') UNION SELECT error_code FROM fieldcrypt.reencryption_progress WHERE table_name IN ('evil.deferred', 'evil.deferrable') AND error_code IS NOT NULL}, '42501', '  that says why');
gives($node, q{SELECT count(*) FROM evil.tried WHERE place ~ '^late'}, '0', '  they never fired');
gives($node, q{SELECT count(*) FROM evil.with_deferred}, '0', '  nor others');
gives($node, q{SELECT state FROM fieldcrypt.reencryption_progress WHERE table_name = 'public.victims'}, 'done', '  the other tables are done');
$session->gives($state, $state_before, '  nothing is left behind in the session');
value($node, 'UPDATE armed SET is_armed = false; DROP TABLE evil.deferred, evil.deferrable');

# An error in the middle, in a table of traps: nothing is left behind either.
value($node, <<'SQL', user => 'mallory');
CREATE FUNCTION evil.fail() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT is_armed FROM public.armed) THEN PERFORM set_config('search_path', 'evil', false), set_config('evil.mark', 'left', false); RAISE EXCEPTION 'planted'; END IF; RETURN true; END $$;
CREATE TABLE evil.failing (id int PRIMARY KEY, v fieldcrypt.encrypted, CHECK (evil.fail()));
INSERT INTO evil.failing SELECT i, fieldcrypt.encrypt_field('v') FROM generate_series(1, 3) AS i;
SQL
value($node, 'CALL fieldcrypt.rotate_keys(force => true); UPDATE armed SET is_armed = true');
$result = $session->run("CALL fieldcrypt.reencrypt('evil.failing', rows_per_second => 0)");
is("@{ $result->{sqlstates} }", '', 'code that fails: the run goes through') or diag $result->{err};
$session->gives($state, $state_before, '  nothing is left behind in the session');
value($node, 'UPDATE armed SET is_armed = false; DROP TABLE evil.failing');
$session->close;

# Triggers as people write them.
value($node, <<'SQL', user => 'alice');
CREATE TABLE alices.people (id int PRIMARY KEY, v fieldcrypt.encrypted, updated_at timestamptz DEFAULT '2020-01-01 00:00:00Z');
CREATE FUNCTION alices.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.updated_at := now(); RETURN new; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON alices.people FOR EACH ROW EXECUTE FUNCTION alices.touch();
INSERT INTO alices.people SELECT i, fieldcrypt.encrypt_field('p' || i) FROM generate_series(1, 20) AS i;
CREATE TABLE alices.pets (id int PRIMARY KEY, person int NOT NULL REFERENCES alices.people ON UPDATE CASCADE ON DELETE CASCADE, v fieldcrypt.encrypted);
INSERT INTO alices.pets SELECT i, i, fieldcrypt.encrypt_field('q' || i) FROM generate_series(1, 20) AS i;
ALTER TABLE alices.people ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY nothing ON alices.people USING (false);
SELECT fieldcrypt.audit_table('alices.pets');
SQL
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
# Another session has inserted a row that refers to a row, and has not committed: no reason to wait.
my $inserting = session($node);
$inserting->value('BEGIN; INSERT INTO alices.pets SELECT 100, 7, NULL');
$result = run_sql($node, "SET statement_timeout = '60s'; CALL fieldcrypt.reencrypt('alices.people', rows_per_second => 0, wait_for_locks => '3 seconds')", user => 'manager');
is("@{ $result->{sqlstates} }", '', 'a role that manages, and owns nothing, re-encrypts') or diag $result->{err};
unlike($result->{err}, qr/WARNING/, '  the lock of a foreign key check does not keep a row back');
gives($node, q{SELECT count(*), min(updated_at)::date = '2020-01-01' AND max(updated_at)::date = '2020-01-01', count(DISTINCT fieldcrypt.key_id(v)) FROM alices.people, fieldcrypt.encryption_keys AS k WHERE fieldcrypt.key_id(v) = k.key_id AND state = 'active'}, '20|t|1',
	'  policies, even FORCED, hide no row from it; updated_at is as it was');
gives($node, q{SELECT c ->> 'values' FROM jsonb_array_elements(fieldcrypt_internal.count_keys('alices.people'::regclass)::jsonb) AS c}, '20', '  nor from counting');
gives($node, 'SELECT count(*) FROM alices.people', '0', '  which would hide them from the owner', user => 'alice');
$inserting->value('COMMIT');
$inserting->close;
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.pets', rows_per_second => 0)", user => 'manager');
is("@{ $result->{sqlstates} }", '', 'an audited table with a foreign key') or diag $result->{err};
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_updated'}, '0', '  the audit triggers do not fire');
gives($node, q{SELECT count(*) FROM alices.pets LEFT JOIN alices.people ON people.id = person WHERE people.id IS NULL}, '0', '  every reference is valid');
gives($node, q{SELECT count(*) FROM alices.pets WHERE fieldcrypt.key_id(v) NOT IN (SELECT key_id FROM fieldcrypt.encryption_keys WHERE state = 'active')}, '0', '  all is done');

# A trigger that would break a foreign key: it is checked.
value($node, <<'SQL', user => 'alice');
CREATE FUNCTION alices.break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.id = 5 THEN new.person := 999; END IF; RETURN new; END $$;
CREATE TRIGGER break BEFORE UPDATE ON alices.pets FOR EACH ROW EXECUTE FUNCTION alices.break();
ALTER TABLE alices.pets ENABLE ALWAYS TRIGGER break;
CREATE TABLE alices.countries (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO alices.countries SELECT i, fieldcrypt.encrypt_field('c') FROM generate_series(1, 10) AS i;
CREATE FUNCTION alices.renumber() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.id := new.id + 1000; RETURN new; END $$;
CREATE TRIGGER renumber BEFORE UPDATE ON alices.countries FOR EACH ROW EXECUTE FUNCTION alices.renumber();
ALTER TABLE alices.countries ENABLE ALWAYS TRIGGER renumber;
SQL
value($node, 'CREATE TABLE cities (id int, country int REFERENCES alices.countries); INSERT INTO cities VALUES (1, 3); CALL fieldcrypt.rotate_keys(force => true)');
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.pets', rows_per_second => 0)");
like($result->{err}, qr/WARNING:  KF025: 1 rows/, 'a trigger that makes a reference to nothing');
gives($node, q{SELECT row_key ->> 'id', error_code FROM fieldcrypt.reencryption_failures WHERE table_name = 'alices.pets'}, '5|23503', '  is refused for its row');
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.countries', rows_per_second => 0)");
like($result->{err}, qr/WARNING:  KF025: 1 rows/, 'a trigger that takes away what is referred to');
gives($node, q{SELECT row_key ->> 'id', error_code FROM fieldcrypt.reencryption_failures WHERE table_name = 'alices.countries'}, '3|23503', '  is refused for its row');
gives($node, q{SELECT count(*) FROM cities JOIN alices.countries ON countries.id = country}, '1', '  the reference of another owner is valid');

# Contexts: by the owner alone, and for as long as that is the owner.
value($node, <<'SQL', user => 'alice');
CREATE TABLE alices.bound (id int PRIMARY KEY, v fieldcrypt.encrypted);
INSERT INTO alices.bound VALUES (1, fieldcrypt.encrypt_field('v', 'b'));
CREATE TABLE alices.ran (by_user text);
GRANT INSERT ON alices.ran TO PUBLIC;
CREATE FUNCTION alices.note() RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO alices.ran VALUES (current_user); END $$;
CREATE FUNCTION alices.context(id int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM alices.note(); RETURN 'b'; END $$;
SELECT fieldcrypt.set_column_context('alices.bound', 'v', expression => 'alices.context(id)');
SQL
refused($node, "SELECT fieldcrypt.set_column_context('alices.bound', 'v', 'x')", '42501', qr/must be owner/, "refused: a context for another's table", user => $_) foreach 'mallory', 'manager';
value($node, 'CREATE ROLE boss LOGIN; GRANT alice TO boss; CREATE ROLE heir NOINHERIT LOGIN; GRANT alice TO heir; SELECT fieldcrypt.grant_access(r, \'manage\') FROM unnest(\'{boss,heir}\'::regrole[]) AS r');
gives($node, "SELECT fieldcrypt.set_column_context('alices.bound', 'v', expression => 'alices.context(id)')", '', 'a member of the owner may', user => 'boss');
refused($node, "SELECT fieldcrypt.set_column_context('alices.bound', 'v', 'x')", '42501', qr/must be owner/, 'refused: a member that does not inherit', user => 'heir');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.bound', rows_per_second => 0)");
unlike($result->{err}, qr/WARNING|ERROR/, 'the expression of the owner is used');
gives($node, 'SELECT DISTINCT by_user FROM alices.ran', 'alice', '  as the owner');
value($node, "DELETE FROM alices.ran; ALTER TABLE alices.bound OWNER TO \"$super\"; CALL fieldcrypt.rotate_keys(force => true)");
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.bound', rows_per_second => 0)");
like($result->{err}, qr/WARNING:  KF025: 1 rows/, 'a new owner: the values are not authentic without a context');
gives($node, 'SELECT count(*) FROM alices.ran', '0', '  the expression of the old owner does not run');
value($node, "DROP TABLE alices.bound; CREATE TABLE alices.bound (id int PRIMARY KEY, v fieldcrypt.encrypted); INSERT INTO alices.bound VALUES (1, fieldcrypt.encrypt_field('v', 'b')); CALL fieldcrypt.rotate_keys(force => true)");
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.bound', rows_per_second => 0)");
like($result->{err}, qr/WARNING:  KF025: 1 rows/, 'a new table of the same name, of another owner');
gives($node, 'SELECT count(*) FROM alices.ran', '0', '  the expression for the dropped one does not run');
# A parent's expression never runs as the owner of a child that is another's.
value($node, <<SQL);
GRANT ALL ON SCHEMA alices TO mallory;
CREATE TABLE alices.family (id int, v fieldcrypt.encrypted);
ALTER TABLE alices.family OWNER TO alice;
CREATE TABLE alices.family_child () INHERITS (alices.family);
INSERT INTO alices.family_child VALUES (1, fieldcrypt.encrypt_field('v', 'b'));
SQL
value($node, "SELECT fieldcrypt.set_column_context('alices.family', 'v', expression => 'alices.context(id)')", user => 'alice');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
$result = run_sql($node, "CALL fieldcrypt.reencrypt('alices.family', rows_per_second => 0)");
gives($node, 'SELECT count(*) FROM alices.ran', '0', "a parent's expression does not run as the owner of the child");
like($result->{err}, qr/WARNING:  KF025: 1 rows/, '  which is said');

# Shadows: temporary objects and the search path of who calls.
value($node, <<'SQL');
CREATE TABLE evil.hits (name text, by_user text);
GRANT ALL ON evil.hits TO PUBLIC;
SQL
my $shadows = "SET search_path = evil, pg_catalog;\nCREATE TEMPORARY TABLE reencryptions (relation oid, state text); CREATE TEMPORARY TABLE reencryption_chunks (chunk int); CREATE TEMPORARY TABLE pg_class (oid oid, relowner oid);\n";
my $serial = 0;
foreach my $type (qw(text int bigint oid float8 interval timestamptz boolean jsonb))
{
	foreach my $operator (qw(= <> < > <= >= + - * / || ->>))
	{
		my $name = 'op_' . ++$serial;
		my ($right, $returns) = ($type, $operator =~ /^[=<>]/ ? 'boolean' : $type);
		$shadows .= "CREATE FUNCTION pg_temp.$name($type, $right) RETURNS $returns LANGUAGE plpgsql AS \$\$ BEGIN INSERT INTO evil.hits VALUES ('$operator $type', current_user); RETURN NULL; END \$\$;\n"
		  . "CREATE OPERATOR pg_temp.$operator (LEFTARG = $type, RIGHTARG = $right, FUNCTION = pg_temp.$name);\nCREATE OPERATOR evil.$operator (LEFTARG = $type, RIGHTARG = $right, FUNCTION = pg_temp.$name);\n";
	}
}
foreach my $function ('format(text, text) text', 'set_config(text, text, boolean) text', 'clock_timestamp() timestamptz', 'pg_sleep(float8) void', 'nextval(text) bigint', 'reencrypt_step(int, oid[], int) text', 'reencrypt_begin(regclass) text')
{
	my ($signature, $returns) = $function =~ /^(.*\)) (.*)$/;
	my $return = $returns eq 'void' ? '' : 'RETURN NULL;';
	$shadows .= "CREATE FUNCTION $_.$signature RETURNS $returns LANGUAGE plpgsql AS \$\$ BEGIN INSERT INTO evil.hits VALUES ('$signature', current_user); $return END \$\$;\n" foreach 'pg_temp', 'evil';
}
$shadows .= "CREATE DOMAIN pg_temp.$_ AS pg_catalog.$_ CHECK (false);\nCREATE DOMAIN evil.$_ AS pg_catalog.$_ CHECK (false);\n" foreach qw(float8 int8 oid interval timestamptz);
value($node, 'DROP TABLE alices.bound, alices.family CASCADE; CALL fieldcrypt.rotate_keys(force => true)');
foreach my $path ('evil, pg_catalog', 'pg_temp, evil, public, pg_catalog', 'evil, pg_temp, public')
{
	my $shadowed = session($node);
	my $made = $shadowed->run($shadows);
	is("@{ $made->{sqlstates} }", '', "shadows in $path: made") or diag $made->{err};
	$shadowed->run("SET search_path = $path");
	my $run = $shadowed->run('CALL fieldcrypt.reencrypt(rows_per_second => 100000, bytes_per_second => 100000000)');
	is("@{ $run->{sqlstates} }", '', "shadows in $path: the run goes through") or diag $run->{err};
	like($run->{err}, qr/NOTICE:  00000: reencrypt: \d+ rows re-encrypted/, '  to its end');
	$shadowed->run('RESET search_path');
	$shadowed->close;
	gives($node, 'SELECT count(*) FROM evil.hits', '0', '  and meets none of them');
	value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
	value($node, q{DO $$ DECLARE r record; BEGIN FOR r IN SELECT o.oid::regoperator AS op FROM pg_operator AS o WHERE oprnamespace = 'evil'::regnamespace LOOP EXECUTE 'DROP OPERATOR ' || r.op; END LOOP;
		FOR r IN SELECT oid::regprocedure AS f FROM pg_proc WHERE pronamespace = 'evil'::regnamespace AND proname IN ('format', 'set_config', 'clock_timestamp', 'pg_sleep', 'nextval', 'reencrypt_step', 'reencrypt_begin') LOOP EXECUTE 'DROP FUNCTION ' || r.f; END LOOP;
		FOR r IN SELECT oid::regtype AS t FROM pg_type WHERE typnamespace = 'evil'::regnamespace AND typtype = 'd' AND typname <> 'checked' LOOP EXECUTE 'DROP DOMAIN ' || r.t; END LOOP; END $$});
}

# Who may do nothing.
my @objects = (
	'CALL fieldcrypt.reencrypt()', "CALL fieldcrypt.reencrypt('victims')", "SELECT fieldcrypt.set_column_context('victims', 'v', 'x')",
	'TABLE fieldcrypt.reencryption_progress', 'TABLE fieldcrypt.reencryption_failures', 'TABLE fieldcrypt_internal.reencryptions', 'TABLE fieldcrypt_internal.reencryption_chunks', 'TABLE fieldcrypt.column_contexts',
	'SELECT fieldcrypt_internal.reencrypt_begin(NULL)', "SELECT fieldcrypt_internal.reencrypt_step(1, '{}', 1)", "SELECT fieldcrypt_internal.reencrypt_end(1)", 'SELECT fieldcrypt_internal.live_runs()',
	'SELECT fieldcrypt_internal.encrypted_columns()', 'SELECT fieldcrypt_internal.count_keys(1)', "SELECT fieldcrypt_internal.reencrypt_batch(1, 0, 1, 1, 1, 1, false, '{}', false)", 'SELECT fieldcrypt_internal.reencrypt_position()',
	"SELECT fieldcrypt_internal.remember_column_context(1, 'a', 'b', 'c', false, false, 'd', 'e')", 'SELECT fieldcrypt_internal.hold_run(1)', 'SELECT fieldcrypt_internal.release_run()',
	'SELECT fieldcrypt_internal.contexts_of(1)', "SELECT fieldcrypt_internal.claim_chunk(1, '{}')", "SELECT fieldcrypt_internal.fail_table(1, '', '')", "SELECT fieldcrypt_internal.list_failures(1, '[]')", 'SELECT fieldcrypt_internal.with_descendants(1)', 'SELECT fieldcrypt_internal.table_blocks(1)',
	"SELECT nextval('fieldcrypt_internal.reencryption_numbers')", "SELECT fieldcrypt_internal.add_result(NULL, '{}')");
value($node, "CREATE ROLE r_nothing LOGIN; CREATE ROLE r_encrypt LOGIN; CREATE ROLE r_decrypt LOGIN; CREATE ROLE r_reencrypt LOGIN; SELECT fieldcrypt.grant_access('r_encrypt', 'encrypt'), fieldcrypt.grant_access('r_decrypt', 'decrypt'), fieldcrypt.grant_access('r_reencrypt', 'reencrypt')");
foreach my $role ('r_nothing', 'r_encrypt', 'r_decrypt', 'r_reencrypt')
{
	refused($node, $_, '42501', "refused to $role: $_", user => $role) foreach @objects;
}
my %managers = map { $_ => 1 } @objects[ 0 .. 4, 7 .. 11 ];
refused($node, $_, '42501', "refused to manage: $_", user => 'manager') foreach grep { !$managers{$_} } @objects;

unlike(slurp_file($node->logfile), qr/WARNING:.*leak|still referenced|not closed/i, 'nothing leaked');
unlike(slurp_file($node->logfile, $log_before), qr/(?:ERROR|WARNING|DETAIL|CONTEXT).*CANARY/, 'no plaintext in the log');
no_crash($node);
$node->stop;
done_testing();
