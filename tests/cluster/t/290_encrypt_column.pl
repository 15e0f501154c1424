# An existing column is encrypted: every type that has a form, what carries over, who may, and all that is refused, by name
# and with a hint. Undone before the swap and after it; the plaintext dropped, with where it is still.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
my $call = sub { 'CALL fieldcrypt.encrypt_column(' . join(', ', @_) . ')' };
my $columns = sub {
	return q{SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END, pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attname)
	  FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	 WHERE a.attrelid = '} . $_[0] . q{'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'id'};
};

# 1. Types. What the application writes then is what it wrote before: defaults, NULLs, empty texts, limits of length.
value($node, <<'SQL');
CREATE TABLE types (id int PRIMARY KEY, a char(5) DEFAULT 'ab', b int2 NOT NULL DEFAULT 7, c bigint, d numeric(6,2) DEFAULT 0, e date DEFAULT '2000-01-02',
    f timestamptz DEFAULT now(), g uuid DEFAULT gen_random_uuid(), h boolean DEFAULT true, i jsonb DEFAULT '{"a": 1}', j json DEFAULT '{"b":  2}', k name DEFAULT 'n', l varchar(3), m text DEFAULT 'm', n int4);
INSERT INTO types (id) SELECT i FROM generate_series(1, 10) AS i;
INSERT INTO types VALUES (20, NULL, 3, 9, 1.5, 'infinity', '-infinity', NULL, NULL, NULL, NULL, NULL, '',
	'', -1), (21, '', 0, -9, -0.10, '4713-01-01 BC', '2000-01-01 12:00+05', '00000000-0000-0000-0000-000000000000', false, '[]', '{"z":1,"z" : 2}', '',
	'ab ', 'fc1:x', 0);
CREATE TABLE types_before AS TABLE types;
SQL
my @all = split //, 'abcdefghijklmn';
my $forms = { a => 'text', b => 'integer', c => 'integer', d => 'numeric', e => 'date', f => 'timestamptz', g => 'uuid', h => 'boolean', i => 'jsonb', j => 'jsonb', k => 'text', l => 'text', m => 'text', n => 'integer' };
my $types = $columns->('types');
my $types_before = value($node, $types);
# Whatever the session writes dates like.
value($node, join ";\n", "SET DateStyle = 'German'; SET TimeZone = 'Pacific/Apia'; SET IntervalStyle = 'sql_standard';
	SET quote_all_identifiers = on", map { $call->("'types'", "'$_'") } @all);
gives($node, q{SELECT string_agg(column_name || ' ' || plaintext, ' ' ORDER BY column_name) FROM fieldcrypt_internal.protected_columns() WHERE is_believed},
	join(' ', map { "$_ $forms->{$_}" } @all), 'each type has its form, and is believed');
gives($node, 'SELECT count(*) FROM fieldcrypt_internal.column_twins() WHERE fires', scalar @all, 'each has its twin');
my $opened = join ', ', map {
	my $is_text = $_ =~ /[aklm]/;
	my $type = { b => 'int2', c => 'bigint', d => 'numeric', e => 'date', f => 'timestamptz', g => 'uuid', h => 'boolean', i => 'jsonb', j => 'jsonb', n => 'int4' }->{$_} // 'text';
	"(fieldcrypt.decrypt_field_as($_, NULL::$type, fieldcrypt.context('public.types.$_', id)) IS NOT DISTINCT FROM ${_}_plaintext" . ($_ eq 'j' ? '::jsonb' : $_ =~ /[akl]/ ? '::text' : '') . ') AS ' . $_
} @all;
gives($node, "SELECT count(*) FROM (SELECT $opened FROM types) AS t WHERE NOT (" . join(' AND ', map { "t.$_" } @all) . ')', '0',
	'each opens in its place as what it was');
value($node, <<'SQL');
INSERT INTO types (id) VALUES (30);
UPDATE types SET a = 'zz', b = 12, c = 13, d = 2.5, e = '2024-02-29', f = '2024-01-01 12:00+05', g = '00000000-0000-0000-0000-000000000001', h = false, i = '[1, 2]', j = '{"x": [1]}', k = 'nm', l = 'abc', m = NULL, n = 5 WHERE id = 1;
UPDATE types SET id = 40 WHERE id = 2;
SQL
gives($node, "SELECT count(*) FROM (SELECT $opened FROM types) AS t WHERE NOT (" . join(' AND ', map { "t.$_" } @all) . ')', '0',
	'what is written afterwards is in both');
gives($node, q{SELECT a_plaintext, b_plaintext, d_plaintext, e_plaintext, h_plaintext, i_plaintext, j_plaintext, k_plaintext, l_plaintext, m_plaintext FROM types WHERE id = 30},
	'ab   |7|0.00|2000-01-02|t|{"a": 1}|{"b": 2}|n||m', 'defaults, too');
refused($node, q{UPDATE types SET l = 'abcd' WHERE id = 1}, '22023', qr/does not fit column l_plaintext/, 'the old column has its limit of length');
refused($node, q{UPDATE types SET n = 'abc' WHERE id = 1}, '22P02', 'and its type');
refused($node, q{UPDATE types SET b = NULL WHERE id = 1}, '23502', 'and NOT NULL');
value($node, join ";\n", map { "CALL fieldcrypt.undo_encrypt_column('types', '$_')" } @all);
gives($node, 'SELECT a, b, c, d, e, f AT TIME ZONE \'UTC\', g, h, i, j, k, l, m, n FROM types WHERE id = 1',
	'zz   |12|13|2.50|2024-02-29|2024-01-01 07:00:00|00000000-0000-0000-0000-000000000001|f|[1, 2]|{"x": [1]}|nm|abc||5', 'undone, what was written is there');
gives($node, 'SELECT count(*) FROM (SELECT types_before::text FROM types_before WHERE id NOT IN (1, 2) EXCEPT SELECT types::text FROM types) AS d',
	'0', 'and what was not is as it was, byte by byte');
gives($node, 'SELECT c.relname, t.tgname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal AND c.relname LIKE \'types%\'', '', 'no trigger is left');
my $types_after = value($node, $types);
is(join(' ', map { /(\w+ (?:not null )?)/ } split /, /, $types_after), join(' ', map { /(\w+ (?:not null )?)/ } split /, /, $types_before),
	'columns are those that were there');
gives($node, 'INSERT INTO types (id) VALUES (50) RETURNING a, b, d, e, h, i, j, k, m', 'ab   |7|0.00|2000-01-02|t|{"a": 1}|{"b": 2}|n|m',
	'their defaults give what they gave');

# 2. What carries over, and what is told.
value($node, <<'SQL');
CREATE ROLE owner LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN;
GRANT CREATE ON SCHEMA public TO owner;
SELECT fieldcrypt.grant_access('owner', 'encrypt', 'decrypt'), fieldcrypt.grant_access('stranger', 'encrypt',
	'decrypt'), fieldcrypt.grant_access('clerk', 'encrypt');
SET ROLE owner;
CREATE TABLE patients (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, ssn text NOT NULL DEFAULT 'none', seen timestamptz);
COMMENT ON COLUMN patients.ssn IS $$the patient's number$$;
ALTER TABLE patients ALTER COLUMN ssn SET STATISTICS 500;
GRANT SELECT (id, name), INSERT (name, ssn), UPDATE (ssn) ON patients TO clerk;
GRANT SELECT (ssn) ON patients TO reader WITH GRANT OPTION;
INSERT INTO patients (name, ssn) SELECT 'n' || i, lpad(i::text, 9, '0') FROM generate_series(1, 3000) AS i;
CREATE UNIQUE INDEX patients_ssn ON patients (ssn);
ALTER TABLE patients ADD CONSTRAINT has_digits CHECK (ssn ~ '[0-9]' OR ssn = 'none');
CREATE STATISTICS patients_ssn_name ON ssn, name FROM patients;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen := clock_timestamp(); RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON patients FOR EACH ROW EXECUTE FUNCTION touch();
SQL
my @owner = (user => 'owner');
refused($node, $call->(q{'patients'}, q{'ssn'}), '2BP01',
	qr/has: constraint has_digits on table public\.patients; index public\.patients_ssn; statistics object public\.patients_ssn_name\nHINT:.*drop_dependents => true/,
	'an index, a CHECK and statistics are named', @owner);
gives($node, q{SELECT count(*) FROM pg_attribute WHERE attrelid = 'patients'::regclass AND attname LIKE 'ssn%'}, '1', '  and nothing was done');
my $result = run_sql($node, $call->(q{'patients'}, q{'ssn'}, 'drop_dependents => true'), @owner);
is("@{ $result->{sqlstates} }", '', 'with drop_dependents') or diag $result->{err};
like($result->{err}, qr/index public\.patients_ssn depends on the column: it stays with the old one/, '  it is told what stays behind');
like($result->{err}, qr/trigger touch on table public\.patients: It fires for each row/, '  and which trigger fires');
unlike($result->{err}, qr/can't encrypt: clerk/, '  and of nobody who can encrypt');
gives($node, $columns->('patients'),
	q{name text, seen timestamp with time zone, ssn fieldcrypt.encrypted_text not null 'none'::text, ssn_plaintext text not null},
	'NOT NULL and the default are the new column\'s');
gives($node, q{SELECT col_description(attrelid, attnum), attstattarget FROM pg_attribute WHERE attrelid = 'patients'::regclass AND attname = 'ssn'},
	q{the patient's number|500}, 'so are the comment and the statistics target');
gives($node, q{INSERT INTO patients (name, ssn) VALUES ('by the clerk', '77') RETURNING name}, 'by the clerk',
	'and the privileges: the clerk writes', user => 'clerk');
refused($node, q{SELECT ssn FROM patients}, '42501', '  and does not read', user => 'clerk');
gives($node, q{SELECT count(*) FROM (SELECT ssn FROM patients) AS s}, '3001', '  which the reader does', user => 'reader');
gives($node, q{SELECT has_column_privilege('reader', 'patients', 'ssn', 'SELECT WITH GRANT OPTION')}, 't', '  and may pass on');
refused($node, q{INSERT INTO patients (name, ssn) VALUES ('twice', '77')}, '23505', 'UNIQUE is still enforced, by the old column', @owner);
refused($node, q{INSERT INTO patients (name, ssn) VALUES ('none', 'abc')}, '23514', 'CHECK, too', @owner);
refused($node, q{INSERT INTO patients VALUES (DEFAULT, 'positions', '5')}, '55000', qr/name the columns/,
	'INSERT without a list of columns writes the old column: refused, not lost', @owner);
refused($node, q{UPDATE patients SET ssn_plaintext = '1' WHERE id = 1}, '55000', qr/follows column ssn/, 'the old column is not written by itself', @owner);
refused($node, q{UPDATE patients SET ssn = '2', ssn_plaintext = '1' WHERE id = 1}, '55000', '  nor with the new one', @owner);
my $victim = value($node, q{SELECT ssn FROM patients WHERE id = 2}, @owner);
refused($node, qq{UPDATE patients SET ssn = '$victim' WHERE id = 1}, 'KF037', qr/row/, 'another row\'s value is not taken, and not shown', @owner);
gives($node, q{SELECT count(*) FROM patients WHERE ssn_plaintext IS DISTINCT FROM fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.patients.ssn', id))}, '0', 'both columns are alike', @owner);
gives($node, q{SELECT "check", status, detail FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'},
	'plaintext_columns|warning|kept beside an encrypted column is column "public.patients.ssn_plaintext"', 'health names the plaintext');
gives($node, q{SELECT fieldcrypt.grant_access('clerk', 'encrypt')}, '', 'a role that may encrypt');

gives($node, q{SELECT table_name, column_name, state, rows_verified FROM fieldcrypt.column_migrations}, 'public.patients|ssn|swapped|3000',
	'its owner sees how far it is', @owner);

# 3. Dropped, with where it is still; then nothing is left to undo.
refused($node, q{SELECT fieldcrypt.drop_plaintext_column('patients', 'ssn')}, '42501', qr/owner of table/,
	'the plaintext is not a stranger\'s to drop', user => 'stranger');
$result = run_sql($node, q{SELECT fieldcrypt.drop_plaintext_column('patients', 'ssn')}, @owner);
is("@{ $result->{sqlstates} }", '', 'dropped') or diag $result->{err};
like($result->{err}, qr/$_/, "  it says: $_")
  foreach 'VACUUM FULL public\.patients;', 'pg_repack --table=public\.patients', 'pg_statistic', 'WAL and its archive',
	'backups, dumps and snapshots with public\.patients', 'standbys', 'logs';
gives($node, q{SELECT count(*) FROM pg_index WHERE indrelid = 'patients'::regclass}, '1', 'the index went with it');
gives($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'plaintext_columns'}, 'ok', 'health has nothing to say');
gives($node, q{SELECT string_agg(event, ' ' ORDER BY id) FROM fieldcrypt.audit_log WHERE table_name = 'public.patients'},
	'column_encryption_started column_encrypted plaintext_column_dropped', 'each step is in the log');
refused($node, q{CALL fieldcrypt.undo_encrypt_column('patients', 'ssn')}, '55000', qr/nothing is left to go back to/, 'nothing to undo', @owner);
refused($node, q{SELECT fieldcrypt.drop_plaintext_column('patients', 'ssn')}, '55000', 'nor to drop', @owner);
refused($node, $call->(q{'patients'}, q{'ssn'}), '42P17', qr/is of type fieldcrypt.encrypted_text already/, 'nor to encrypt', @owner);
gives($node, q{INSERT INTO patients (name) VALUES ('last') RETURNING fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.patients.ssn', id))},
	'none', 'its default is sealed when it is written', @owner);
# The file has it until it is rewritten: what the NOTICE says.
value($node, 'CHECKPOINT');
my $path = $node->data_dir . '/' . value($node, q{SELECT pg_relation_filepath('patients')});
cmp_ok(scalar(() = slurp_file($path) =~ /0000012\d\d/g), '>', 0, 'the table\'s file has plaintext still');
value($node, 'VACUUM FULL patients; CHECKPOINT');
$path = $node->data_dir . '/' . value($node, q{SELECT pg_relation_filepath('patients')});
is(scalar(() = slurp_file($path) =~ /0000012\d\d/g), 0, '  and none after VACUUM FULL');

# 4. Who may not.
value($node, 'CREATE TABLE mine (id int PRIMARY KEY, ssn text); ALTER TABLE mine OWNER TO owner; INSERT INTO mine VALUES (1, $$1$$)');
refused($node, $call->(q{'mine'}, q{'ssn'}), '42501', qr/must be owner/, 'not a stranger', user => 'stranger');
refused($node, $call->(q{'mine'}, q{'ssn'}), '42501', qr/Log in as owner/, 'not a superuser with another\'s table: its triggers would run as him');
refused($node, q{CALL fieldcrypt.undo_encrypt_column('mine', 'ssn')}, '42501', qr/Log in as owner/, '  nor to undo it');
refused($node, $call->(q{'mine'}, q{'ssn'}), '42501', 'not without a privilege', user => 'reader');
value($node, q{SELECT fieldcrypt.revoke_access('owner', 'decrypt')});
refused($node, $call->(q{'mine'}, q{'ssn'}), '42501', qr/needs the privilege decrypt/, 'not without decrypt', @owner);
value($node, q{SELECT fieldcrypt.grant_access('owner', 'decrypt')});
refused($node, 'BEGIN; ' . $call->(q{'mine'}, q{'ssn'}), '2D000', 'not in a transaction', @owner);
refused($node, 'SET default_transaction_read_only = on; ' . $call->(q{'mine'}, q{'ssn'}), '25006', 'not where nothing is written', @owner);
refused($node, "SELECT fieldcrypt.is_sealed_as(NULL::fieldcrypt.encrypted, 'x', 'y'::text, NULL)", '42501', qr/by nobody else/,
	'what verifies is nobody\'s to ask', @owner);
# Nor is it to guess with, by who is at a step of a table of his own: with others' values or with his.
value($node, <<'SQL');
CREATE ROLE guesser LOGIN;
CREATE TABLE pins (id int PRIMARY KEY, pin fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('pins', 'pin'), fieldcrypt.grant_access('guesser', 'encrypt');
INSERT INTO pins VALUES (1, '4711');
CREATE TABLE guesses (id int PRIMARY KEY, pin text); INSERT INTO guesses VALUES (1, 'one');
ALTER TABLE guesses OWNER TO guesser; GRANT SELECT ON pins TO guesser;
SQL
my $guess = q{SELECT string_agg(g::text, '') FROM pins, generate_series(4700, 4720) AS g
	WHERE fieldcrypt.is_sealed_as(pin::fieldcrypt.encrypted, fieldcrypt.context('public.pins.pin', id), g::text, NULL)};
foreach my $step (qw(lock drop undo next plan begin end))
{
	my $guessed = run_sql($node, "BEGIN; DO \$\$ BEGIN PERFORM fieldcrypt.column_migration_step('guesses', '$step', '{\"column\": \"pin\", \"batch_size\": 10}');
		EXCEPTION WHEN OTHERS THEN NULL; END \$\$; $guess; ROLLBACK", user => 'guesser');
	is("@{ $guessed->{sqlstates} }", '42501', "who may not decrypt has no answer behind step $step") or diag $guessed->{out};
	unlike($guessed->{out}, qr/4711/, '  and did not guess it');
}
value($node, q{SELECT fieldcrypt.grant_access('guesser', 'decrypt'); ALTER ROLE guesser SET fieldcrypt.audit_decrypt = 'statements'});
refused($node, "BEGIN; SELECT fieldcrypt.column_migration_step('guesses', 'lock', '{}'); $guess", '42501', qr/by nobody else/,
	'nor has who may, where nothing is to be verified', user => 'guesser');
value($node, q{CALL fieldcrypt.encrypt_column('guesses', 'pin', swap => false)}, user => 'guesser');
ok(eventually($node, q{SELECT sum(value_count) FROM fieldcrypt.audit_log WHERE event = 'values_decrypted' AND actor = 'guesser'}, '1'),
	'what was verified is recorded as decrypted');

refused($node, 'CREATE TRIGGER t BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.carry_column()', '42501',
	'nor to make a trigger of', @owner);
refused($node, "SELECT fieldcrypt.column_migration_step('mine', '$_',
	'{\"column\": \"ssn\"}')", '55000', "step $_ by hand", @owner) foreach qw(swap undo drop count validate next);

# 5. What can't be carried over, each by its name; and nothing is done.
sub not_with
{
	my ($setup, $sqlstate, $like, $name, $arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	value($node, "DROP SCHEMA IF EXISTS s CASCADE; CREATE SCHEMA s AUTHORIZATION owner; SET client_min_messages = error; SET ROLE owner; SET search_path = s;
		CREATE TABLE t (id int PRIMARY KEY, ssn text, other text); INSERT INTO t VALUES (1, 'one'); $setup");
	refused($node, $call->(q{'s.t'}, q{'ssn'}, $arguments // 'drop_dependents => true'), $sqlstate, $like, $name, @owner);
	return is(value($node, q{SELECT count(*) FROM pg_attribute WHERE attrelid = 's.t'::regclass AND attname ~ 'ssn_' AND NOT attisdropped}), '0',
	'  nothing was done');
}
not_with('CREATE VIEW v AS SELECT ssn FROM t', '2BP01', qr/depends on it: view s\.v\b.*HINT:.*make it again/s, 'a view');
not_with('CREATE MATERIALIZED VIEW v AS SELECT ssn FROM t', '2BP01', qr/materialized view s\.v/, 'a materialized view');
not_with('CREATE VIEW v AS SELECT * FROM t', '2BP01', qr/view s\.v/, 'a view of all columns');
not_with('CREATE RULE r AS ON UPDATE TO t WHERE OLD.ssn IS NULL DO NOTHING', '2BP01', qr/rule r/, 'a rule');
not_with('CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT max(ssn) FROM t; END', '2BP01', qr/function s\.f\(\)/, 'a function whose body is known');
not_with('CREATE POLICY p ON t USING (ssn = current_user)', '2BP01', qr/policy p/, 'a policy');
not_with('ALTER TABLE t ADD COLUMN g text GENERATED ALWAYS AS (upper(ssn)) STORED', '2BP01', qr/column g of table s\.t/, 'a generated column');
not_with('ALTER TABLE t ADD UNIQUE (ssn); CREATE TABLE c (ssn text REFERENCES t (ssn))', '2BP01', qr/constraint c_ssn_fkey on table s\.c/,
	'a foreign key to it');
not_with('CREATE TABLE p (ssn text PRIMARY KEY); INSERT INTO p VALUES (\'one\'); ALTER TABLE t ADD FOREIGN KEY (ssn) REFERENCES p', '2BP01',
	qr/constraint t_ssn_fkey/, 'a foreign key of it');
not_with('CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
	CREATE TRIGGER u BEFORE UPDATE OF ssn ON t FOR EACH ROW EXECUTE FUNCTION f()', '2BP01', qr/trigger u on table s\.t/, 'a trigger on UPDATE OF it');
not_with('CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
	CREATE TRIGGER "~~" BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f()', '2BP01', qr/trigger ~~ on table s\.t.*must sort before/s,
	'a trigger that comes last');
not_with('ALTER TABLE t ALTER ssn SET NOT NULL; CREATE UNIQUE INDEX i ON t (ssn); ALTER TABLE t REPLICA IDENTITY USING INDEX i', '2BP01',
	qr/index s\.i.*REPLICA IDENTITY/s, 'a replica identity');
not_with('CREATE SEQUENCE q OWNED BY t.ssn', '2BP01', qr/sequence s\.q/, 'a sequence');
value($node, 'CREATE PUBLICATION everything FOR ALL TABLES');
not_with('', '2BP01', qr/publication everything/, 'a publication of all tables');
value($node, 'DROP PUBLICATION everything');
not_with('CREATE UNIQUE INDEX i ON t (lower(ssn))', '2BP01', qr/index s\.i/, 'an index on an expression, unless it is let go', 'drop_dependents => false');
not_with('ALTER TABLE t ADD UNIQUE (ssn, other)', '2BP01', qr/constraint t_ssn_other_key/, 'UNIQUE over it and another, unless it is let go',
	'drop_dependents => false');
not_with('ALTER TABLE t DROP CONSTRAINT t_pkey', '42P17', qr/no primary key/, 'no key');
not_with('ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (ssn)', '42P17', qr/part of its own key/, 'the key itself');
not_with('ALTER TABLE t DROP COLUMN ssn, ADD ssn text GENERATED ALWAYS AS (other) STORED', '42P17', qr/is generated/, 'a generated column itself');
not_with('ALTER TABLE t FORCE ROW LEVEL SECURITY', '42P17', qr/forced/, 'row security that is forced');
not_with("ALTER TABLE t ALTER ssn TYPE $_ USING NULL", '42P17', qr/no form that is the same for ever/, "type $_") foreach 'float8', 'bytea',
	'text[]', 'inet', 'timestamp', 'point', 'xml', 'int4range';
not_with('', '42P17', qr/not kept as they are by the form date/, 'a form that is not the type\'s', q{plaintext => 'date'});
not_with('', '42P17', qr/form/, 'no form at all', q{plaintext => 'nonsense'});
not_with('', '42P17', qr/no column "nobody"/, 'a tenant column that is not there', q{tenant => 'nobody'});
not_with('', '42P17', qr/may be NULL/, 'a key that may be NULL', q{key => '{other}'});
not_with('CREATE TABLE child () INHERITS (t)', '42P17', qr/inherit/, 'a table that others inherit from');
not_with('', '22023', qr/batch_size/, 'a batch of nothing', 'batch_size => 0');
not_with('', '22004', qr/must not be NULL/, 'NULL for a limit', 'rows_per_second => NULL');
refused($node, $call->(q{'s.t'}, q{'nothing'}), '42P17', qr/no column "nothing"/, 'a column that is not there', @owner);
refused($node, $call->(q{'s.nothing'}, q{'ssn'}), '42P01', 'a table that is not there', @owner);
refused($node, $call->(q{'pg_catalog.pg_class'}, q{'relname'}), '42P17', qr/no table of yours/, 'a catalog');
refused($node, $call->(q{'fieldcrypt.rotation_policies'}, q{'tenant'}), '42P17', qr/no table of yours/, 'a table of the extension');
value($node, 'CREATE TABLE s.parts (id int PRIMARY KEY, ssn text) PARTITION BY HASH (id);
	CREATE TABLE s.parts_0 PARTITION OF s.parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)');
refused($node, $call->(q{'s.parts_0'}, q{'ssn'}), '42P17', qr/is a partition.*encrypt_column\('s\.parts'/s, 'a partition');
value($node, 'CREATE VIEW s.view AS SELECT 1 AS id, $$x$$::text AS ssn');
refused($node, $call->(q{'s.view'}, q{'ssn'}), '42P17', qr/no table of yours/, 'a view');
refused($node, 'CREATE TEMP TABLE temporary (id int PRIMARY KEY, ssn text); ' . $call->(q{'temporary'}, q{'ssn'}), '42P17', qr/temporary/, 'a temporary table');

# 6. A tenant is required, and none is named: the writer is told, and nothing is stored without.
value($node, 'CREATE TABLE required (id int PRIMARY KEY, ssn text); INSERT INTO required VALUES (1, $$x$$)');
refused($node, "SET fieldcrypt.require_tenant = on; " . $call->(q{'required'}, q{'ssn'}), 'KF029', 'a tenant is required of the batches');
gives($node, q{SELECT error_code FROM fieldcrypt.column_migrations WHERE table_name = 'public.required'}, 'KF029', '  which the view says');
value($node, "SET fieldcrypt.tenant = 'acme'; " . $call->(q{'required'}, q{'ssn'}));
gives($node, q{SELECT k.tenant FROM required AS r JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(r.ssn)}, 'acme',
	'the tenant of who calls');

# 7. Numbers that no form takes: the row is named, its value is not.
value($node, 'CREATE TABLE odd (id int PRIMARY KEY, n json); INSERT INTO odd VALUES (1, \'{"a": "\u0000"}\'), (2, \'{}\')');
my $odd = run_sql($node, $call->(q{'odd'}, q{'n'}));
like($odd->{err}, qr/a row can't be taken over \(SQLSTATE \w{5}.*\): \{"id": 1\}/, 'a value that is none of the form: which row');
unlike($odd->{err} . slurp_file($node->logfile), qr/a.{1,4}\\u0000.*(?:ERROR|CONTEXT)|(?:ERROR|CONTEXT).*\\u0000/, '  and not what it is');
gives($node, q{SELECT state, step, error FROM fieldcrypt.column_migrations WHERE table_name = 'public.odd'},
	qr/^interrupted\|filling\|a row can't be taken over .*\{"id": 1\}$/, '  the view, too');
value($node, q{CALL fieldcrypt.undo_encrypt_column('odd', 'n')});
value($node, $call->(q{'odd'}, q{'n'}, q{plaintext => 'text'}));
gives($node, q{SELECT fieldcrypt.decrypt_field(n, fieldcrypt.context('public.odd.n', id)) FROM odd WHERE id = 1}, '{"a": "\u0000"}',
	'as a text it is kept byte by byte');

no_crash($node);
$node->stop;
done_testing();
