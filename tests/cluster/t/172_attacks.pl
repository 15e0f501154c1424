# Attacks by roles with few rights, or with some: on the owner's rights, the keys, the audit log; with
# hostile search paths, operators, temporary objects and names.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $owner = value($node, 'SELECT session_user');

value($node, <<'SQL');
CREATE ROLE mallory LOGIN;                   -- encrypts
CREATE ROLE manager LOGIN;                   -- manages
CREATE ROLE reader LOGIN;                    -- decrypts
CREATE ROLE nobody LOGIN;
CREATE ROLE writer LOGIN;                    -- writes an audited table, nothing else
SELECT fieldcrypt.grant_access('mallory', 'encrypt'), fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('reader', 'decrypt');
CREATE SCHEMA evil;
CREATE SCHEMA mine AUTHORIZATION manager;
GRANT ALL ON SCHEMA evil TO PUBLIC;
CREATE TABLE victims (id int PRIMARY KEY, owner text, value fieldcrypt.encrypted);
INSERT INTO victims SELECT g, CASE g WHEN 1 THEN 'reader' ELSE 'somebody' END, fieldcrypt.encrypt_field('kept', CASE g WHEN 1 THEN '' ELSE 'hidden' END) FROM generate_series(1, 3) AS g;
SELECT fieldcrypt.audit_table('victims');
GRANT SELECT, INSERT, UPDATE, DELETE ON victims TO writer;
GRANT SELECT ON victims TO reader;
CREATE TABLE evil.hits (name text, by_user text);
GRANT INSERT, SELECT ON evil.hits TO PUBLIC;
SQL

# Mallory shadows what the extension could mean: each function and operator says who ran it.
my @functions = (
	'nextval(text) bigint', 'nextval(regclass) bigint', 'clock_timestamp() timestamptz', 'inet_client_addr() inet', 'current_setting(text) text',
	'pg_backend_pid() int', 'pg_current_xact_id() xid8', 'jsonb_array_elements_text(jsonb) text', 'octet_length(text) int', 'octet_length(bytea) int',
	'format(text,text) text', 'format(text,text,text) text', 'array_to_string(text[],text) text', 'cardinality(text[]) int', 'pg_has_role(name,oid,text) boolean',
	'set_config(text,text,boolean) text', 'encode(bytea,text) text', 'decode(text,text) bytea', 'count(text) bigint', 'record_event(text,text,bigint,text,text) void',
	'encrypt_field(text,text,text) text', 'rotate_step(text,text,boolean,bigint) text', 'coalesce(text) text');
my @operators = map { my $op = $_; map { [ $op, $_ ] } qw(text bigint int boolean bytea oid text[] name timestamptz) } qw(= <> < > || + <@ @> && ->> ->);
my $shadows = "SET search_path = evil;\n";
my $serial = 0;
foreach my $function (@functions)
{
	my ($signature, $result) = $function =~ /^(.*\)) (.*)$/;
	my $body = $result eq 'void' ? '' : ' SELECT NULL::' . "pg_catalog.$result" =~ s/pg_catalog\.(int|bigint|boolean)\b/$1/r;
	$shadows .= "CREATE FUNCTION evil.$signature RETURNS $result LANGUAGE sql AS \$\$INSERT INTO evil.hits VALUES ('$signature', current_user);$body\$\$;\n" =~ s/coalesce/"coalesce"/r;
}
foreach my $operator (@operators)
{
	my ($symbol, $type) = @$operator;
	my $name = 'operator_' . ++$serial;
	$shadows .= <<SQL;
CREATE FUNCTION evil.$name($type, $type) RETURNS boolean LANGUAGE sql AS \$\$INSERT INTO evil.hits VALUES ('$symbol $type', current_user); SELECT true\$\$;
CREATE OPERATOR evil.$symbol (LEFTARG = $type, RIGHTARG = $type, FUNCTION = evil.$name);
SQL
}
$shadows .= <<'SQL';
CREATE FUNCTION evil.checked(anyelement) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN INSERT INTO evil.hits VALUES ('domain', current_user); RETURN true; END$$;
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (evil.checked(VALUE));
CREATE DOMAIN evil.jsonb AS pg_catalog.jsonb CHECK (evil.checked(VALUE));
CREATE DOMAIN evil.regclass AS pg_catalog.regclass CHECK (evil.checked(VALUE));
CREATE TABLE evil.encryption_keys (LIKE fieldcrypt.encryption_keys);
CREATE TABLE evil.master_keys (fingerprint bytea, is_current boolean);
CREATE TABLE evil.audit_log (event pg_catalog.text);
CREATE VIEW evil.pg_class AS SELECT 1 AS oid;
CREATE VIEW evil.pg_trigger AS SELECT 1 AS tgrelid;
CREATE VIEW evil.pg_proc AS SELECT 1 AS oid;
GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;
SQL
# As a superuser for the two that need one to name fieldcrypt's tables; what is made is the same.
value($node, $shadows);
gives($node, q{SET search_path = evil, pg_catalog; SELECT pg_catalog.count(*) > 0 FROM (SELECT 'a'::pg_catalog.text || 'b'::pg_catalog.text) AS x; SELECT format('%s', 'x'); SELECT pg_catalog.count(*) FROM evil.hits},
	qr/\n[1-9]\d*$/, 'the shadows do shadow');

my $hostile = 'SET search_path = evil, pg_catalog, public;';
foreach my $case (
	[ 'mallory', 'a first key', q{SELECT fieldcrypt.encrypt_field('x', '', 'hostile 1')} ],
	[ 'mallory', 'an existing key', q{SELECT fieldcrypt.encrypt_field('x', 'context', 'hostile 1')} ],
	[ 'writer', 'an audited INSERT', q{INSERT INTO public.victims VALUES (100, 'x', NULL)} ],
	[ 'writer', 'an audited UPDATE', q{UPDATE public.victims SET owner = 'y' WHERE id OPERATOR(pg_catalog.=) 100} ],
	[ 'writer', 'an audited DELETE', q{DELETE FROM public.victims WHERE id OPERATOR(pg_catalog.=) 100} ],
	[ 'reader', 'decryption', q{SELECT fieldcrypt.decrypt_field(value), fieldcrypt.decrypt_field_as(value, NULL::pg_catalog.text), fieldcrypt.try_decrypt_field(value) FROM public.victims WHERE id OPERATOR(pg_catalog.=) 1} ],
	[ 'manager', 'create_key', q{SELECT fieldcrypt.create_key('hostile 2')} ],
	[ 'manager', 'the status', q{SELECT pg_catalog.count(*) FROM fieldcrypt.master_key_status()} ],
	[ 'manager', 'rotate_keys', q{CALL fieldcrypt.rotate_keys('hostile 2', 'why')} ],
	[ 'manager', 'a policy', q{SELECT fieldcrypt.set_rotation_policy('hostile 2', '1 day'::pg_catalog.interval), fieldcrypt.set_rotation_policy('hostile 2', NULL)} ],
	[ 'manager', 'rotate_keys of what is due', q{CALL fieldcrypt.rotate_keys()} ],
	[ 'manager', 'rotate_master_key', q{CALL fieldcrypt.rotate_master_key()} ],
	[ 'manager', 'schedule_rotation', q{SELECT fieldcrypt.schedule_rotation()}, '0A000' ],
	[ 'manager', 'rotate_keys of all', q{CALL fieldcrypt.rotate_keys(force => true)} ],
	[ 'manager', 'rotate_keys that fails', q{CALL fieldcrypt.rotate_keys('no such tenant')}, 'KF007' ],
	[ 'manager', 'steps', q{SELECT fieldcrypt_internal.next_tenant(NULL, true, pg_catalog.now()), fieldcrypt_internal.rotate_step('hostile 2', NULL, false, NULL)} ],
	[ 'manager', 'audit_table', q{CREATE TABLE mine.audited (id int PRIMARY KEY); SELECT fieldcrypt.audit_table('mine.audited'); INSERT INTO mine.audited VALUES (1); SELECT fieldcrypt.unaudit_table('mine.audited')} ],
	[ 'mallory', 'protect_column', q{CREATE TEMP TABLE own (id int PRIMARY KEY, value fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('own', 'value'); INSERT INTO own VALUES (1, 'x'); UPDATE own SET value = 'y'; SELECT fieldcrypt.unprotect_column('own', 'value')} ],
	[ $owner, 'grant_access', q{SELECT fieldcrypt.grant_access('nobody', 'audit'), fieldcrypt.revoke_access('nobody', 'audit')} ],
	[ $owner, 'a superuser rotates', q{CALL fieldcrypt.rotate_keys(reason => 'hostile path', force => true)} ],
	[ $owner, 'a superuser audits', q{SELECT fieldcrypt.audit_table('public.victims'), fieldcrypt.unaudit_table('public.victims'), fieldcrypt.audit_table('public.victims')} ],
	[ $owner, 'a superuser re-encrypts', q{SELECT fieldcrypt.reencrypt_field(value) FROM public.victims WHERE id OPERATOR(pg_catalog.=) 1} ])
{
	my ($user, $name, $sql, $sqlstate) = @$case;
	value($node, 'TRUNCATE evil.hits');
	# Also in the caller's temporary schema, where tables and types are looked for.
	my $result = run_sql($node, <<SQL, user => $user);
CREATE TEMP TABLE encryption_keys (key_id int); CREATE TEMP TABLE audit_log (event int); CREATE TEMP TABLE pg_class (oid int); CREATE TEMP TABLE pg_proc (oid int);
CREATE DOMAIN pg_temp.regclass AS pg_catalog.text CHECK (evil.checked(VALUE));
$hostile
$sql
SQL
	is("@{ $result->{sqlstates} }", $sqlstate // '', "hostile search path: $name works") or diag $result->{err};
	gives($node, 'SELECT DISTINCT name, by_user FROM evil.hits ORDER BY 1', '', "hostile search path: $name runs nothing of the attacker's");
}
value($node, 'DROP SCHEMA evil CASCADE; CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO PUBLIC');

# Functions that are not for callers, called by those who may and by a superuser: an error, not a crash.
foreach my $user ('manager', $owner)
{
	my @calls = map { "SELECT fieldcrypt_internal.$_()" } qw(audit_change bind_values refuse_change refuse_restore_over refuse_restore_over_log invalidate_keys);
	my @outcomes = outcomes($node, \@calls, user => $user);
	unlike($outcomes[$_], qr/^(XX|00000)/, "a trigger function called by hand, $user: $calls[$_]") foreach 0 .. $#calls;
}
foreach my $sql (
	'SELECT fieldcrypt_internal.record_event(NULL, NULL, NULL, NULL, NULL)', 'SELECT fieldcrypt_internal.rotate_active_key(NULL, NULL, NULL, NULL)', 'SELECT fieldcrypt_internal.rotate_step(NULL, NULL, NULL, NULL)',
	'SELECT fieldcrypt_internal.next_tenant(NULL, NULL)', 'SELECT fieldcrypt.create_key(NULL)', 'SELECT fieldcrypt.audit_table(NULL)', 'SELECT fieldcrypt.unaudit_table(NULL)',
	'SELECT fieldcrypt.audit_table(0)', 'SELECT fieldcrypt.audit_table(4294967295)', 'SELECT fieldcrypt.unaudit_table(0)', 'SELECT fieldcrypt_internal.record_table_audit(NULL, NULL)',
	'SELECT fieldcrypt_internal.record_event(repeat($$x$$, 1000000), $$t$$, -1, $$r$$, $$n$$)', 'SELECT fieldcrypt_internal.change_access(NULL, NULL, NULL)',
	'SELECT fieldcrypt_internal.privilege_objects(NULL)', 'SELECT fieldcrypt_internal.held_privileges(NULL)', 'SELECT fieldcrypt_internal.encrypted_recv(NULL)', 'SELECT fieldcrypt_internal.encrypted_out(NULL)')
{
	my ($outcome) = outcomes($node, [$sql]);
	unlike($outcome, qr/^XX/, "no internal error: $sql");
}

# The trigger function on tables of the attacker's own, in every way that CREATE TRIGGER allows.
{
	my @outcomes = outcomes($node, [ map { "CREATE TABLE mine.t (id int PRIMARY KEY, value fieldcrypt.encrypted); CREATE VIEW mine.v AS SELECT * FROM mine.t; INSERT INTO mine.t VALUES (1, NULL); $_" }
		  (map { my $timing = $_; map { "CREATE TRIGGER t $timing INSERT OR UPDATE OR DELETE ON mine.t FOR EACH $_ EXECUTE FUNCTION fieldcrypt_internal.audit_change('argument'); INSERT INTO mine.t VALUES (2, NULL); UPDATE mine.t SET id = id + 10; DELETE FROM mine.t" } qw(ROW STATEMENT) } qw(BEFORE AFTER)),
		  'CREATE TRIGGER t BEFORE TRUNCATE ON mine.t EXECUTE FUNCTION fieldcrypt_internal.audit_change(); TRUNCATE mine.t',
		  'CREATE TRIGGER t INSTEAD OF INSERT OR UPDATE OR DELETE ON mine.v FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.audit_change(); INSERT INTO mine.v VALUES (3, NULL); UPDATE mine.v SET id = 4; DELETE FROM mine.v',
		  'CREATE CONSTRAINT TRIGGER t AFTER INSERT ON mine.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.audit_change(); INSERT INTO mine.t VALUES (5, NULL); SET CONSTRAINTS ALL IMMEDIATE',
		  'CREATE TRIGGER t AFTER INSERT ON mine.t REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.audit_change(); INSERT INTO mine.t VALUES (6, NULL)' ], user => 'manager');
	is_deeply([ grep { /^XX/ } @outcomes ], [], 'the audit trigger put on own tables in unforeseen ways: no internal error');
}
is_deeply([ map { substr $_, 0, 5 } outcomes($node, [ map { "CREATE TEMP TABLE t (id int); CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.$_()" } qw(audit_change refuse_change invalidate_keys refuse_restore_over) ], user => 'mallory') ],
	[ ('42501') x 4 ], 'who does not manage puts none of the extension\'s triggers on tables');

# Manage and other people's tables.
value($node, 'CREATE TABLE foreign_table (id int PRIMARY KEY)');
refused($node, q{SELECT fieldcrypt.audit_table('foreign_table')}, '42501', 'a table of somebody else is not put under audit', user => 'manager');
refused($node, q{SELECT fieldcrypt.unaudit_table('victims')}, '42501', 'nor taken out of it', user => 'manager');
gives($node, q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'victims'::regclass AND tgname ~ '^fieldcrypt'}, '2', 'its triggers are still there');
foreach my $table (qw(fieldcrypt.audit_log fieldcrypt.encryption_keys fieldcrypt_internal.audit_log_2026))
{
	refused($node, "SELECT fieldcrypt.audit_table('$table')", '42809', "audit_table($table) is refused");
}
refused($node, q{SELECT fieldcrypt.audit_table('pg_class')}, '42501', 'a system table is not audited', user => 'manager');

# Forging: a row of the log says what happened, or is not there.
my $log_size = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log');
foreach my $forgery (
	q{SELECT fieldcrypt_internal.record_table_audit('public.victims', false)},
	q{SELECT fieldcrypt_internal.record_table_audit('whatever I like', true)})
{
	my $result = run_sql($node, $forgery, user => 'manager');
	is(value($node, 'SELECT count(*) FROM fieldcrypt.audit_log'), $log_size, "manage writes no row about what did not happen: $forgery");
	$log_size = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log');
}

# Whose name is in it: the session's user, and the role it set; not that of a SECURITY DEFINER function.
value($node, <<'SQL');
CREATE FUNCTION definer_insert(id int) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$INSERT INTO public.victims VALUES ($1, 'definer', NULL)$$;
GRANT manager TO writer;
GRANT USAGE ON SCHEMA fieldcrypt TO writer;
SQL
value($node, 'SELECT definer_insert(201); SET ROLE manager; SELECT definer_insert(202); RESET ROLE; SET application_name = $$a lie$$; SELECT definer_insert(203)', user => 'writer');
gives($node, q{SELECT row_key ->> 'id', actor, role, application = 'a lie' FROM fieldcrypt.audit_log WHERE (row_key ->> 'id')::int BETWEEN 201 AND 203 ORDER BY id},
	"201|writer|writer|f\n202|writer|manager|f\n203|writer|writer|t", 'who it was: session user and role, whatever runs');
refused($node, q{SET SESSION AUTHORIZATION manager}, '42501', 'nobody takes another\'s name', user => 'writer');

# The owner, too, leaves what was written as it is.
my @tables = split /\n/, value($node, q{SELECT oid::regclass FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind IN ('r', 'p') ORDER BY 1});
cmp_ok(scalar @tables, '>', 30, 'there are partitions');
foreach my $table (@tables)
{
	my ($outcome) = outcomes($node, ["TRUNCATE $table"]);
	like($outcome, qr/^KF015 \Q$table\E is written by the functions of pg_fieldcrypt only/, "TRUNCATE $table");
}
value($node, 'CREATE TABLE log_copy AS SELECT * FROM fieldcrypt.audit_log');
my @by_hand = (
	(map { my $table = $_; ("DELETE FROM $table", "DELETE FROM ONLY $table", "WITH d AS (DELETE FROM $table RETURNING 1) SELECT count(*) FROM d", "DELETE FROM $table USING victims") } qw(fieldcrypt_internal.audit_log_2026 fieldcrypt.encryption_keys fieldcrypt.master_keys)),
	'DELETE FROM fieldcrypt.audit_log', 'UPDATE fieldcrypt.audit_log SET reason = $$x$$', 'UPDATE fieldcrypt_internal.audit_log_2026 SET actor = $$x$$',
	'UPDATE fieldcrypt.audit_log SET at = at + interval $$1 year$$', 'UPDATE fieldcrypt.audit_log SET id = id',
	'UPDATE fieldcrypt.encryption_keys SET state = $$active$$', 'UPDATE fieldcrypt.encryption_keys SET tenant = $$x$$ || tenant', 'UPDATE fieldcrypt.master_keys SET is_current = is_current',
	'MERGE INTO fieldcrypt.audit_log AS a USING log_copy AS c ON a.id = c.id WHEN MATCHED THEN UPDATE SET reason = $$x$$',
	'MERGE INTO fieldcrypt.encryption_keys AS a USING victims AS c ON true WHEN MATCHED THEN DELETE',
	'TRUNCATE fieldcrypt.encryption_keys CASCADE', 'TRUNCATE victims, fieldcrypt.audit_log', 'TRUNCATE fieldcrypt.audit_log RESTART IDENTITY');
{
	my @outcomes = outcomes($node, \@by_hand);
	foreach my $index (0 .. $#by_hand)
	{
		like($outcomes[$index], qr/^KF015 fieldcrypt(?:_internal)?\.\w+ is written by the functions/, "the owner: $by_hand[$index]");
	}
	# (INSERT into a partition that is still empty passes: a restore does that.)
	my @inserts = (
		'INSERT INTO fieldcrypt.audit_log (event) VALUES ($$forged$$)', 'INSERT INTO fieldcrypt_internal.audit_log_2026 (event, at) VALUES ($$forged$$, $$2026-01-01$$)',
		'INSERT INTO fieldcrypt.audit_log SELECT * FROM log_copy', 'INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys ON CONFLICT DO NOTHING',
		'INSERT INTO fieldcrypt.encryption_keys SELECT * FROM fieldcrypt.encryption_keys ON CONFLICT (key_id) DO UPDATE SET state = $$active$$',
		'INSERT INTO fieldcrypt.master_keys VALUES (decode(repeat($$00$$, 16), $$hex$$), false)',
		'MERGE INTO fieldcrypt.audit_log AS a USING log_copy AS c ON false WHEN NOT MATCHED THEN INSERT (event) VALUES ($$forged$$)');
	foreach my $sql (@inserts)
	{
		my ($outcome) = eval { outcomes($node, [$sql]) };
		like($outcome // 'the connection was lost', qr/^KF01[56]/, "the owner: $sql");
		$node->poll_query_until('postgres', 'SELECT true') or die;    # should it have crashed
	}
}
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'forged'}, '0', 'nothing was forged');

# Row level security on encryption_keys hides no key from the extension.
value($node, 'ALTER TABLE fieldcrypt.encryption_keys ENABLE ROW LEVEL SECURITY; ALTER TABLE fieldcrypt.encryption_keys FORCE ROW LEVEL SECURITY; CREATE POLICY none ON fieldcrypt.encryption_keys USING (false)');
gives($node, 'SELECT fieldcrypt.decrypt_field(value) FROM victims WHERE id = 1', 'kept', 'row level security on the keys: decryption works', user => 'reader');
gives($node, q{SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'under rls')) = fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'under rls'))}, 't', 'row level security on the keys: one first key is made, not one a call', user => 'mallory');
value($node, 'DROP POLICY none ON fieldcrypt.encryption_keys; ALTER TABLE fieldcrypt.encryption_keys NO FORCE ROW LEVEL SECURITY; ALTER TABLE fieldcrypt.encryption_keys DISABLE ROW LEVEL SECURITY');

# Views. A view lends its owner's right to the table, not the right to decrypt; a barrier holds back rows
# from functions that could tell of them.
value($node, <<'SQL');
CREATE VIEW shown AS SELECT id, fieldcrypt.decrypt_field(value) AS value FROM victims WHERE owner = 'reader';
CREATE VIEW barrier WITH (security_barrier) AS SELECT * FROM victims WHERE owner = session_user;
ALTER TABLE victims ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON victims USING (owner = session_user);
GRANT SELECT ON shown, barrier TO nobody, reader;
SQL
refused($node, 'SELECT * FROM shown', '42501', 'a view does not lend the right to decrypt', user => 'nobody');
foreach my $from ('barrier', 'victims')
{
	gives($node, "SELECT id FROM $from WHERE fieldcrypt.decrypt_field(value) = 'kept'", '1', "decryption sees no row that $from hides (one that would fail)", user => 'reader');
}

# Names of tenants.
my @tenants = (
	q{it's}, q{"quoted"}, q{back\\slash}, q{%s%n%d%x}, q{$1}, q{$$}, q{:name}, q{'; DROP TABLE victims; --}, 'blanks   within',
	'DEFAULT', 'Default', "caf\x{e9}", "cafe\x{301}", "\x{1F512}", "zero\x{200B}width", "\x{5D0}\x{5D1}", 'NULL', '{}', '*', '%', '-', '0', 'x' x 1024, "\x{e9}" x 512);
{
	my $session = session($node);
	my $count = 0;
	foreach my $tenant (@tenants)
	{
		utf8::encode(my $bytes = $tenant);
		(my $literal = $bytes) =~ s/'/''/g;
		$literal = "'$literal'";
		(my $shown = substr $bytes, 0, 40) =~ s/[^ -~]/?/g;
		$session->value("SELECT fieldcrypt.create_key($literal)");
		$session->value("CREATE TEMP TABLE IF NOT EXISTS named (tenant text, value fieldcrypt.encrypted); INSERT INTO named VALUES ($literal, fieldcrypt.encrypt_field('x', '', $literal))");
		my $rotated = $session->run("CALL fieldcrypt.rotate_keys($literal, 'because of ' || $literal)");
		like($rotated->{err}, qr/1 rotated, 0 failed/, "tenant '$shown' is rotated");
		$session->gives("SELECT count(*), count(DISTINCT version), max(octet_length(tenant)) FROM fieldcrypt.encryption_keys WHERE tenant = $literal", '2|2|' . length $bytes, "tenant '$shown' has two versions");
		$session->gives("SET fieldcrypt.tenant = $literal; SELECT fieldcrypt.decrypt_field(fieldcrypt.reencrypt_field(value)) FROM named WHERE tenant = $literal; SHOW fieldcrypt.tenant; RESET fieldcrypt.tenant",
			"x\n$bytes", "tenant '$shown' reads its own");
		$session->gives("SELECT count(*) FROM fieldcrypt.audit_log WHERE tenant = $literal AND coalesce(reason, '') = CASE event WHEN 'key_created' THEN '' ELSE 'because of ' || $literal END", '3', "tenant '$shown' is in the log");
		# The messages that name it.
		my $failed = run_sql($node, "SET session_replication_role = replica; UPDATE fieldcrypt.encryption_keys SET state = 'deactivated' WHERE tenant = $literal; SELECT fieldcrypt.encrypt_field('x', '', $literal); CALL fieldcrypt.rotate_keys($literal)");
		is("@{ $failed->{sqlstates} }", 'KF007 KF007', "tenant '$shown' without an active key: refused, twice");
		ok(index($failed->{err}, $bytes) >= 0, "tenant '$shown' is in the message as it is");
	}
	$session->gives('SELECT count(DISTINCT fieldcrypt.key_id(value)) FROM named', scalar @tenants, 'each has a key of its own');
	$session->close;
}
foreach my $tenant ('x' x 1025, "\x{e9}" x 513, 'x' x 1_000_000)
{
	utf8::encode($tenant);
	my $length = length $tenant;
	refused($node, "SELECT fieldcrypt.create_key('$tenant')", '22023', "a tenant of $length bytes: create_key");
	refused($node, "SELECT fieldcrypt.encrypt_field('x', '', '$tenant')", '22023', "a tenant of $length bytes: encrypt_field");
	refused($node, "LOAD 'pg_fieldcrypt'; SET fieldcrypt.tenant = '$tenant'", '22023', "a tenant of $length bytes: the setting");
	refused($node, "CALL fieldcrypt.rotate_keys('$tenant', force => true)", '22023', "a tenant of $length bytes: rotate_keys");
}
refused($node, q{CALL fieldcrypt.rotate_keys('')}, '22023', 'an empty tenant: rotate_keys');
ok(slurp_file($node->logfile) !~ /PANIC|terminated by signal/, 'no crash');
$node->stop;
done_testing();
