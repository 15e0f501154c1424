# What can be declared and by whom, what is refused with its reason, and what later DDL does to a declaration: renames, other types
# of the key, partitions, inheritance, tenants, foreign keys, constraints that are dropped or not believed.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
my $version = server_version($node);
value($node, <<'SQL');
CREATE ROLE owner LOGIN; CREATE ROLE other LOGIN; CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN;
SELECT fieldcrypt.grant_access('owner', 'encrypt'), fieldcrypt.grant_access('other', 'encrypt', 'decrypt'),
    fieldcrypt.grant_access('app', 'encrypt', 'decrypt'), fieldcrypt.grant_access('reader', 'decrypt');
GRANT CREATE, USAGE ON SCHEMA public TO owner, other;
CREATE TABLE seen (id int PRIMARY KEY, v fieldcrypt.encrypted_text);
SELECT fieldcrypt.create_loose_key();
SQL
sub opened { my ($table, $name, $key) = @_; return "SELECT string_agg(fieldcrypt.decrypt_field(v, fieldcrypt.context('$name', $key)), ' ' ORDER BY $key)
	FROM $table" }

# Who may. A plain owner with encrypt declares, writes, and takes it back; nobody else does, whatever he may.
value($node, 'CREATE TABLE mine (id int PRIMARY KEY, v fieldcrypt.encrypted_text); GRANT ALL ON mine TO app, reader, other', user => 'owner');
refused($node, q{SELECT fieldcrypt.protect_column('mine', 'v')}, '42501', "protect_column by $_", user => $_) foreach qw(app reader other);
gives($node, q{SELECT fieldcrypt.protect_column('mine', 'v')}, '', 'protect_column by the owner, who may encrypt', user => 'owner');
gives($node, q{INSERT INTO mine VALUES (1, 'one'); UPDATE mine SET v = 'uno' WHERE id = 1}, '', '  and writes', user => 'owner');
refused($node, opened('mine', 'public.mine.v', 'id'), '42501', '  and reads nothing', user => 'owner');
gives($node, opened('mine', 'public.mine.v', 'id'), 'uno', '  what a reader reads', user => 'reader');
refused($node, q{SELECT fieldcrypt.unprotect_column('mine', 'v')}, '42501', "unprotect_column by $_", user => $_) foreach qw(app reader other);
value($node, q{SELECT fieldcrypt.revoke_access('owner', 'encrypt')});
refused($node, q{SELECT fieldcrypt.protect_column('mine', 'v')}, '42501', 'not without encrypt', user => 'owner');
value($node, q{SELECT fieldcrypt.grant_access('owner', 'encrypt')});
like(run_sql($node, q{SELECT fieldcrypt.protect_column('mine', 'v')}, user => 'owner')->{err}, qr/NOTICE.*protected already/, 'again: nothing to do');
value($node, 'CREATE FUNCTION declare() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ SELECT fieldcrypt.protect_column(\'mine\', \'v\') $$',
	user => 'owner');
refused($node, q{INSERT INTO mine VALUES (2, 'two')}, '42501', 'who may write the table and not encrypt', user => 'reader');
# Row level security does not hide rows from what binds them.
value($node, 'CREATE TABLE hidden (id int PRIMARY KEY, who text, v fieldcrypt.encrypted_text); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
	CREATE POLICY p ON hidden USING (who = current_user); GRANT ALL ON hidden TO app, other', user => 'owner');
value($node, q{SELECT fieldcrypt.protect_column('hidden', 'v'); INSERT INTO hidden VALUES (1, 'app', 'a'), (2, 'other', 'o')}, user => 'owner');
gives($node, q{UPDATE hidden SET v = 'mine'; } . opened('hidden', 'public.hidden.v', 'id'), 'mine', 'under row level security', user => 'app');
refused($node, q{INSERT INTO hidden VALUES (3, 'other', 'x')}, '42501', qr/row-level security/, '  which is asked as ever', user => 'app');
refused($node, q{UPDATE hidden SET v = (SELECT v FROM seen LIMIT 1), who = 'other'}, '42501', '  and nothing is given away', user => 'app');
gives($node, opened('hidden', 'public.hidden.v', 'id'), 'mine o', '  the others have theirs');
# A loose value that another session has put there before the declaration is bound by who may read it.
value($node, q{CREATE TABLE late (id int PRIMARY KEY, v fieldcrypt.encrypted_text); INSERT INTO late VALUES (1, 'early')}, user => 'owner');
refused($node, q{SELECT fieldcrypt.protect_column('late', 'v')}, 'KF038', 'values of other sessions: not with encrypt alone', user => 'owner');
gives($node, q{SELECT count(*) FROM pg_constraint WHERE conrelid = 'late'::regclass AND contype = 'c'}, '0', '  and nothing is declared');
value($node, q{SELECT fieldcrypt.grant_access('owner', 'decrypt'); SET SESSION AUTHORIZATION owner; SELECT fieldcrypt.protect_column('late', 'v');
	RESET SESSION AUTHORIZATION; SELECT fieldcrypt.revoke_access('owner', 'decrypt')});
gives($node, opened('late', 'public.late.v', 'id'), 'early', '  with both they are bound');

# Refused declarations: the reason, and what to do.
value($node, <<'SQL');
CREATE TYPE color AS ENUM ('red');
CREATE FUNCTION at_once() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE no_key (id int, v fieldcrypt.encrypted_text);
CREATE TABLE nullable (id int UNIQUE, v fieldcrypt.encrypted_text);
CREATE TABLE partial (id int NOT NULL, v fieldcrypt.encrypted_text); CREATE UNIQUE INDEX ON partial (id) WHERE id > 5;
    CREATE UNIQUE INDEX ON partial ((id + 1));
CREATE TABLE of_float (id float8 PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE of_enum (id color PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE of_range (id int4range PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE of_array (id int[] PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE of_bytea (id bytea PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE of_jsonb (id jsonb PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE of_interval (id interval PRIMARY KEY, v fieldcrypt.encrypted_text);
CREATE TABLE generated (id int GENERATED ALWAYS AS (n + 1) STORED PRIMARY KEY, n int, v fieldcrypt.encrypted_text);
CREATE TABLE plain (id int PRIMARY KEY, t text, e fieldcrypt.encrypted, a fieldcrypt.encrypted_text[], v fieldcrypt.encrypted_text, tenant text,
    g fieldcrypt.encrypted_text GENERATED ALWAYS AS (NULL) STORED);
CREATE VIEW shown AS SELECT * FROM plain;
CREATE TABLE by_value (id int, v fieldcrypt.encrypted_text, PRIMARY KEY (id, v)) PARTITION BY HASH (id);
CREATE TABLE by_itself (id int PRIMARY KEY, v fieldcrypt.encrypted_text) PARTITION BY RANGE (id);
CREATE TABLE fields (id int PRIMARY KEY, v fieldcrypt.encrypted_text);
    INSERT INTO fields VALUES (1, fieldcrypt.encrypt_field('x', fieldcrypt.context('public.fields.v', 1)));
CREATE TABLE taken (id int PRIMARY KEY, v fieldcrypt.encrypted_text); INSERT INTO taken SELECT 2, v FROM mine;
CREATE TABLE tenants (id int PRIMARY KEY, nullable text, made text GENERATED ALWAYS AS ('x') STORED, color color NOT NULL, fraction float8 NOT NULL,
    v fieldcrypt.encrypted_text);
SQL
foreach my $case (
	[ q{'no_key', 'v'}, qr/has no primary key/ ], [ q{'nullable', 'v'}, qr/has no primary key/ ], [ q{'nullable', 'v', key => '{id}'}, qr/may be NULL/ ],
	[ q{'partial', 'v', key => '{id}'}, qr/no UNIQUE constraint/ ], [ q{'plain', 'v', key => '{}'}, qr/./ ], [ q{'plain', 'v', key => '{t}'}, qr/may be NULL/ ],
	[ q{'plain', 'v', key => '{none}'}, qr/no column "none"/ ], [ q{'plain', 'v', key => '{id,v}'}, qr/./ ], [ q{'plain', 'v', key => '{ctid}'}, qr/./ ],
		[ q{'plain', 'v', key => '{tableoid}'}, qr/./ ],
	(map { [ "'of_$_', 'v'", qr/no form that is the same for ever/ ] } qw(float enum range array bytea jsonb interval)),
	[ q{'generated', 'v'}, qr/is generated/ ], [ q{'plain', 'g'}, qr/is generated/ ], [ q{'plain', 't'}, qr/is of type text/ ], [ q{'plain', 'e'},
		qr/is of type fieldcrypt\.encrypted,/ ],
	[ q{'plain', 'a'}, qr/is of type/ ], [ q{'plain', 'none'}, qr/no column "none"/ ], [ q{'shown', 'v'}, qr/is no table/ ], [ q{'pg_class', 'relname'}, qr/./ ],
		[ q{'by_value', 'v'}, qr/./ ],
	[ q{'plain', 'v', tenant => 'none'}, qr/no column "none"/ ], [ q{'plain', 'v', tenant => 'tenant'}, qr/NOT NULL/ ], [ q{'plain', 'v', tenant => 'v'},
		qr/./ ], [ q{'tenants', 'v', tenant => 'made'}, qr/not generated/ ],
	[ q{'tenants', 'v', tenant => 'color'}, qr/no form/ ], [ q{'tenants', 'v', tenant => 'fraction'}, qr/no form/ ],
	[ q{'plain', 'v', plaintext => 'varchar'}, qr/no such form/ ], [ q{'plain', 'v', name => ''}, qr/1 to 1024 bytes/ ],
		[ qq{'plain', 'v', name => '@{[ 'x' x 1025 ]}'}, qr/1 to 1024 bytes/ ],
	[ q{'fields', 'v'}, qr/bound to no row of it|KF037/ ], [ q{'taken', 'v'}, qr/bound to no row of it|belongs to another row/ ])
{
	my ($arguments, $like) = @$case;
	my $result = run_sql($node, "SELECT fieldcrypt.protect_column($arguments)");
	like("@{ $result->{sqlstates} }", qr/^(?:42P17|KF037)$/, 'refused: ' . substr $arguments, 0, 60) or diag $result->{err};
	like($result->{err}, $like, '  and why');
	like($result->{err}, qr/HINT:/, '  and what to do');
}
gives($node, q{SELECT count(*) FROM fieldcrypt_internal.protected_columns() AS p
	WHERE p.relation::regclass::text ~ '^(no_key|nullable|partial|of_|generated|plain|by_value|fields|taken|tenants)'}, '0', 'nothing of it is declared');
gives($node, q{SELECT count(*) FROM pg_trigger WHERE tgfoid = 'fieldcrypt_internal.bind_values'::regproc
	AND tgrelid::regclass::text ~ '^(no_key|nullable|partial|of_|generated|plain|fields|taken|tenants)'}, '0', 'and no trigger is left');
refused($node, "SELECT fieldcrypt.protect_column($_)", '22004', "NULL: $_") foreach q{NULL, 'v'}, q{'plain', NULL}, q{'plain', 'v', plaintext => NULL};
# A name is one column's: another owner's is refused, and so is one that a table took over by being called so.
value($node, 'CREATE TABLE copied (id int PRIMARY KEY, v fieldcrypt.encrypted_text); GRANT ALL ON copied TO app', user => 'other');
refused($node, q{SELECT fieldcrypt.protect_column('copied', 'v', name => 'public.mine.v')}, '42P17', qr/another owner/, 'the name of another owner\'s column',
	user => 'other');
value($node, 'ALTER TABLE mine RENAME TO mine_1; CREATE TABLE mine (id int PRIMARY KEY, v fieldcrypt.encrypted_text)', user => 'owner');
refused($node, q{SELECT fieldcrypt.protect_column('mine', 'v')}, '42P17', qr/HINT:.*name =>/s,
	'a name that a renamed table\'s column has, unless it is asked for', user => 'owner');
gives($node, q{SELECT fieldcrypt.protect_column('mine', 'v', name => 'public.mine_2.v')}, '', '  another one', user => 'owner');
refused($node, 'INSERT INTO mine SELECT * FROM mine_1', 'KF037', '  and values of the old table stay there', user => 'owner');
value($node, 'DROP TABLE mine; ALTER TABLE mine_1 RENAME TO mine', user => 'owner');
value($node, q{CREATE TABLE pair (id int PRIMARY KEY, v fieldcrypt.encrypted_text, w fieldcrypt.encrypted_text);
	SELECT fieldcrypt.protect_column('pair', 'v')}, user => 'owner');
refused($node, q{SELECT fieldcrypt.protect_column('pair', 'w', name => 'public.pair.v')}, '42P17', qr/column v of table public\.pair/,
	'the name of another column of the table', user => 'owner');
gives($node, q{CREATE TABLE archived (id int PRIMARY KEY, v fieldcrypt.encrypted_text);
	SELECT fieldcrypt.protect_column('archived', 'v', name => 'public.mine.v'); INSERT INTO archived SELECT * FROM mine; SELECT count(*) FROM archived},
	"\n1", 'an archive of a table has its name if its owner says so, and takes its rows', user => 'owner');
value($node, 'DROP TABLE archived, pair', user => 'owner');
# By hand, without our functions: the trigger is nobody's.
refused($node, q{ALTER TABLE copied ADD CHECK (fieldcrypt.is_protected(v, 'public.mine.v', 'text', 'session', '', id))}, '42501',
	'a constraint that was written by hand does not take another owner\'s name', user => 'other');
value($node, q{ALTER TABLE copied ADD CHECK (fieldcrypt.is_protected(v, 'public.copied.v', 'text', 'session', '', id))}, user => 'other');
refused($node, q{INSERT INTO copied VALUES (1, 'x')}, '23514', 'a constraint that was written by hand binds nothing', user => 'other');
refused($node, 'CREATE TRIGGER t BEFORE INSERT OR UPDATE ON copied FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.bind_values()', '42501',
	'  and its trigger is not to be had', user => 'other');

# Renames.
value($node, q{CREATE TABLE old (id int PRIMARY KEY, v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('old', 'v');
	INSERT INTO old VALUES (1, 'one'), (2, 'two')});
value($node, 'CREATE SCHEMA "New / %"; ALTER TABLE old RENAME TO "Table"; ALTER TABLE "Table" SET SCHEMA "New / %";
	ALTER TABLE "New / %"."Table" RENAME id TO "Id"; ALTER TABLE "New / %"."Table" RENAME v TO "V";
	ALTER TABLE "New / %"."Table" RENAME CONSTRAINT v_is_protected TO c; ALTER TRIGGER "~fieldcrypt_bind_values" ON "New / %"."Table" RENAME TO "~~"');
gives($node, q{INSERT INTO "New / %"."Table" VALUES (3, 'three'); UPDATE "New / %"."Table" SET "V" = 'TWO' WHERE "Id" = 2;
	SELECT string_agg(fieldcrypt.decrypt_field("V", fieldcrypt.context('public.old.v', "Id")), ' ' ORDER BY "Id")
	FROM "New / %"."Table"}, 'one TWO three', 'all names are others: places stay');
refused($node, q{UPDATE "New / %"."Table" SET "V" = (SELECT "V" FROM "New / %"."Table" WHERE "Id" = 1) WHERE "Id" = 2}, 'KF037', '  and rows are told apart');
gives($node, q{SELECT column_name, place_name, is_believed FROM fieldcrypt_internal.protected_columns() WHERE relation = '"New / %"."Table"'::regclass},
	'V|public.old.v|t', '  it is the same declaration');
like(run_sql($node, q{SELECT fieldcrypt.protect_column('"New / %"."Table"', 'V')})->{err}, qr/protected already/, '  also for protect_column');

# Other types of the key; a key, a column, a constraint that goes away.
sub small { value($node, q{DROP TABLE IF EXISTS small; CREATE TABLE small (id int PRIMARY KEY, v fieldcrypt.encrypted_text);
	SELECT fieldcrypt.protect_column('small', 'v'); INSERT INTO small VALUES (1, 'one'), (2, 'two')}); return }
foreach my $type ('bigint', 'numeric', 'smallint', 'text', 'varchar(10)')
{
	small();
	gives($node, "ALTER TABLE small ALTER id TYPE $type; INSERT INTO small VALUES ('3', 'three'); UPDATE small SET v = 'TWO' WHERE id = '2'; " . opened('small',
		'public.small.v', 'id'), 'one TWO three', "a key that becomes $type");
	gives($node, q{SELECT is_believed FROM fieldcrypt_internal.protected_columns() WHERE relation = 'small'::regclass}, 't', '  is declared as before');
}
small();
my $float = run_sql($node, 'ALTER TABLE small ALTER id TYPE float8');
is("@{ $float->{sqlstates} }", '42804', 'a key can\'t become a float') or diag $float->{err};
refused($node, 'ALTER TABLE small ALTER id TYPE int USING id + 1', '23514', 'nor another number');
value($node, 'TRUNCATE small');
run_sql($node, 'ALTER TABLE small ALTER id TYPE float8');
my $in_float = run_sql($node, q{INSERT INTO small VALUES (1, 'secret')});
isnt("@{ $in_float->{sqlstates} }", '', 'on an empty table nothing is stored under it');
unlike($in_float->{err} =~ s/^LINE .*//mr, qr/secret/, '  nor told');
small();
value($node, 'ALTER TABLE small DROP CONSTRAINT small_pkey');
refused($node, q{UPDATE small SET v = (SELECT v FROM small WHERE id = 1) WHERE id = 2}, 'KF037',
	'without the primary key rows are told apart by what was the key');
gives($node, q{INSERT INTO small VALUES (3, 'three'); } . opened('small', 'public.small.v', 'id'), 'one two three', '  and plaintext comes in');
small();
value($node, 'ALTER TABLE small RENAME v TO w; ALTER TABLE small ADD v text; ALTER TABLE small DROP w');
gives($node, q{INSERT INTO small VALUES (3, 'plain'); SELECT v FROM small WHERE id = 3}, 'plain', 'a protected column is dropped');
small();
value($node, 'ALTER TABLE small DROP CONSTRAINT v_is_protected;
	ALTER TABLE small ADD CONSTRAINT v_is_protected CHECK (fieldcrypt.is_protected(v, \'public.small.v\', \'text\', \'session\', \'\', id)) NOT VALID');
gives($node, q{INSERT INTO small VALUES (3, 'three'); } . opened('small', 'public.small.v', 'id'), 'one two three', 'NOT VALID: what is written is bound');
refused($node, q{UPDATE small SET v = (SELECT v FROM small WHERE id = 1) WHERE id = 2}, 'KF037', '  and a copy refused');
gives($node, q{SELECT is_believed FROM fieldcrypt_internal.protected_columns() WHERE relation = 'small'::regclass}, 'f', '  but it is not believed');
if ($version >= 18)
{
	value($node, q{ALTER TABLE small DROP CONSTRAINT v_is_protected;
		ALTER TABLE small ADD CONSTRAINT v_is_protected CHECK (fieldcrypt.is_protected(v, 'public.small.v', 'text', 'session', '', id)) NOT ENFORCED});
	gives($node, q{SELECT is_believed FROM fieldcrypt_internal.protected_columns() WHERE relation = 'small'::regclass}, 'f', 'NOT ENFORCED: not believed');
	refused($node, q{UPDATE small SET v = (SELECT v FROM small WHERE id = 1) WHERE id = 2}, 'KF037', '  and a copy refused');
}
small();
like(run_sql($node, q{SELECT fieldcrypt.unprotect_column('small', 'v')})->{err}, qr/WARNING:.*HINT:/s, 'unprotect_column warns');
gives($node, q{INSERT INTO small VALUES (3, 'loose'); SELECT fieldcrypt_internal.is_loose(v) FROM small ORDER BY id}, "f\nf\nt",
	'  what is written then is loose');
like(run_sql($node, q{SELECT fieldcrypt.unprotect_column('small', 'v')})->{err}, qr/nothing to do/, '  again: nothing to do');
gives($node, q{SELECT fieldcrypt.protect_column('small', 'v'); } . opened('small', 'public.small.v', 'id'), "\none two loose", '  declared again, it is bound');
refused($node, "SELECT fieldcrypt.protect_column('small', 'v', $_)", '42P17', qr/otherwise already/,
	"declared otherwise: $_") foreach q{plaintext => 'integer'}, q{name => 'x'}, q{key => '{id}', plaintext => 'date'};
gives($node, q{SELECT string_agg(event, ' ' ORDER BY id) FROM fieldcrypt.audit_log WHERE table_name LIKE '%small' AND event LIKE 'column_%protected'},
	qr/column_unprotected column_protected$/, 'both are in the audit log');

# Partitions: attached with other orders of columns, detached, made later; rows that move.
value($node, <<'SQL');
CREATE TABLE parts (id int, day int, v fieldcrypt.encrypted_text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (10);
SELECT fieldcrypt.protect_column('parts', 'v');
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE parts_2_1 PARTITION OF parts_2 DEFAULT;
CREATE TABLE parts_3 (more text, v fieldcrypt.encrypted_text, day int NOT NULL, id int NOT NULL);
ALTER TABLE parts_3 DROP COLUMN more;
SQL
refused($node, 'ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES FROM (20) TO (30)', '42804', qr/v_is_protected/,
	'a partition that is not declared is not attached');
value($node, q{ALTER TABLE parts_3 ADD CONSTRAINT v_is_protected CHECK (fieldcrypt.is_protected(v, 'public.parts.v', 'text', 'session', '', id, day));
	ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES FROM (20) TO (30)});
value($node, q{INSERT INTO parts SELECT 100 + day, day, 'other' FROM unnest('{1,10,20}'::int[]) AS day;
	GRANT SELECT, UPDATE, INSERT, DELETE ON parts TO reader, app});
foreach my $day (1, 10, 20)
{
	gives($node, "INSERT INTO parts VALUES ($day, $day, 'day-$day') RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day))",
		"day-$day", "a row of day $day");
	gives($node, "INSERT INTO parts VALUES ($day, $day, 'up-$day') ON CONFLICT (id, day) DO UPDATE SET v = excluded.v
		RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day))", "up-$day", '  an upsert');
	refused($node, "UPDATE parts SET v = (SELECT v FROM parts WHERE id = @{[ $day == 1 ? 110 : 101 ]}) WHERE id = $day", 'KF037', '  another row\'s value');
	refused($node, "UPDATE parts SET day = day % 20 + 5 WHERE id = $day", '42501', '  moved by who may not', user => 'reader');
	gives($node, "BEGIN; UPDATE parts SET day = day % 20 + 10 WHERE id = $day
		RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day));
		ROLLBACK", "up-$day", '  to another partition, with its value', user => 'app');
	gives($node, "BEGIN; UPDATE parts SET day = day % 20 + 10, v = 'new' WHERE id = $day
		RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day)); ROLLBACK", 'new', '  and with a new one', user => 'app');
}
refused($node, q{INSERT INTO parts_3 VALUES ((SELECT v FROM parts WHERE id = 1), 21, 1)}, 'KF037', 'into a partition itself');
gives($node, q{INSERT INTO parts_3 VALUES ('itself', 21, 1) RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day))}, 'itself',
	'  and plaintext');
value($node, 'ALTER TABLE parts DETACH PARTITION parts_3');
refused($node, q{INSERT INTO parts_3 VALUES ('x', 22, 1)}, '23514', 'detached it has no trigger, and takes nothing in');
gives($node, q{SELECT fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day)) FROM parts_3 WHERE day = 21}, 'itself',
	'  what is there opens');
value($node, q{SELECT fieldcrypt.protect_column('parts_3', 'v')});
gives($node, q{INSERT INTO parts_3 VALUES ('again', 22, 1) RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day))}, 'again',
	'  until protect_column');
value($node, 'DROP TRIGGER "~fieldcrypt_bind_values" ON parts_3; ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES FROM (20) TO (30)');
gives($node, q{INSERT INTO parts VALUES (3, 23, 'back') RETURNING fieldcrypt.decrypt_field(v, fieldcrypt.context('public.parts.v', id, day))}, 'back',
	'  attached again');
refused($node, q{SELECT fieldcrypt.unprotect_column('parts_1', 'v')}, '42P16', 'a partition alone is not let go');

# Tables that inherit otherwise: those of before, and those of later, which take nothing in until they are declared.
value($node, q{CREATE TABLE base (id int PRIMARY KEY, v fieldcrypt.encrypted_text); CREATE TABLE before (extra text, PRIMARY KEY (id)) INHERITS (base);
SELECT fieldcrypt.protect_column('base', 'v'); CREATE TABLE later (extra text, PRIMARY KEY (id)) INHERITS (base); INSERT INTO base VALUES (1,
	'base'); INSERT INTO before VALUES (2, 'before')});
refused($node, q{INSERT INTO later VALUES (3, 'later')}, '23514', 'a table that inherits since then');
value($node, q{SELECT fieldcrypt.protect_column('base', 'v'); INSERT INTO later VALUES (3, 'later')});
gives($node, opened('base', 'public.base.v', 'id'), 'base before later', '  until protect_column of its parent');
refused($node, 'UPDATE base SET v = (SELECT v FROM base WHERE id = 1) WHERE id = 2', 'KF037', '  and rows are told apart through the parent');

# Tenants: a column of the row.
value($node, q{CREATE TABLE rooms (hotel text NOT NULL, id int PRIMARY KEY, v fieldcrypt.encrypted_text);
	SELECT fieldcrypt.protect_column('rooms', 'v', tenant => 'hotel'); GRANT ALL ON rooms TO app, reader;
INSERT INTO rooms VALUES ('a/b%', 1, 'one'), ('other', 2, 'two')});
my $rooms = opened('rooms', 'public.rooms.v', 'hotel, id') =~ s/ORDER BY hotel, id/ORDER BY id/r;
my $tenants = 'SELECT string_agg(k.tenant, $$,$$ ORDER BY r.id) FROM rooms AS r JOIN fieldcrypt.encryption_keys AS k ON k.key_id = fieldcrypt.key_id(r.v)';
gives($node, "$rooms; $tenants", "one two\na/b%,other", 'a tenant column: each under its tenant\'s key');
refused($node, q{UPDATE rooms SET hotel = 'new' WHERE id = 1}, '42501', 'who may not decrypt gives no row to another tenant', user => 'reader');
gives($node, "UPDATE rooms SET hotel = 'new' WHERE id = 1; $rooms; $tenants", "one two\nnew,other",
	'a row that changes hands is bound anew, under the other\'s key');
refused($node, q{UPDATE rooms SET v = (SELECT v FROM rooms WHERE id = 2) WHERE id = 1}, 'KF037', 'another tenant\'s value');
refused($node, "SET fieldcrypt.tenant = 'other'; $_", 'KF006', "a session of another tenant: $_") foreach q{UPDATE rooms SET v = 'x' WHERE id = 1},
	q{INSERT INTO rooms VALUES ('new', 3, 'x')}, q{UPDATE rooms SET hotel = 'other' WHERE id = 1}, q{UPDATE rooms SET hotel = 'new' WHERE id = 2};
gives($node, q{SET fieldcrypt.tenant = 'other'; UPDATE rooms SET v = 'TWO' WHERE id = 2;
	SELECT fieldcrypt.decrypt_field(v, 'public.rooms.v/other/2') FROM rooms WHERE id = 2}, 'TWO', '  and its own');
gives($node, q{SET fieldcrypt.tenant = 'other'; UPDATE rooms SET id = id WHERE id = 1 RETURNING id}, '1', '  what it does not touch is left');
refused($node, qq{BEGIN; SELECT fieldcrypt.lock_tenant('other'); $_}, 'KF006', "locked: $_", user => 'app') foreach q{UPDATE rooms SET v = 'x' WHERE id = 1},
	q{INSERT INTO rooms VALUES ('new', 3, 'x')};
refused($node, q{INSERT INTO rooms VALUES ('', 4, 'x')}, '22023', 'an empty tenant');
refused($node, q{INSERT INTO rooms VALUES ('audit log', 4, 'x')}, '22023', 'a reserved one');
refused($node, q{INSERT INTO rooms VALUES (NULL, 4, 'x')}, '23502', 'none');
foreach my $require ('SET fieldcrypt.require_tenant = on; ')
{
	my $required = run_sql($node, "$require UPDATE mine SET v = 'x' WHERE id = 1");
	isnt("@{ $required->{sqlstates} }", '', 'require_tenant, and a column of the session\'s tenant: refused without one') or diag $required->{out};
	gives($node, "$require UPDATE rooms SET v = 'two' WHERE id = 2 RETURNING id", '2', '  a column of the row\'s tenant names it');
	gives($node, "$require SET fieldcrypt.tenant = 'other'; UPDATE rooms SET v = 'two' WHERE id = 2 RETURNING id", '2', '  with one');
}

# Foreign keys: those that would write another row's value are refused, others leave it as it is.
value($node, q{CREATE TABLE owners (id int PRIMARY KEY, v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('owners', 'v');
CREATE TABLE pets (owner int REFERENCES owners ON UPDATE CASCADE ON DELETE CASCADE, n int, v fieldcrypt.encrypted_text, PRIMARY KEY (owner,
	n)); SELECT fieldcrypt.protect_column('pets', 'v');
CREATE TABLE notes (id int PRIMARY KEY, owner int REFERENCES owners ON UPDATE SET NULL ON DELETE SET NULL,
	v fieldcrypt.encrypted_text); SELECT fieldcrypt.protect_column('notes', 'v');
INSERT INTO owners VALUES (1, 'o1'), (2, 'o2'); INSERT INTO pets VALUES (1, 1, 'p1'), (2, 1, 'p2'); INSERT INTO notes VALUES (1, 1, 'n1'), (2, 2, 'n2')});
gives($node, q{UPDATE owners SET id = 3 WHERE id = 1; SELECT fieldcrypt.decrypt_field(v, 'public.pets.v/3/1') FROM pets WHERE owner = 3;
	SELECT owner IS NULL, fieldcrypt.decrypt_field(v, 'public.notes.v/1') FROM notes WHERE id = 1;
	SELECT fieldcrypt.decrypt_field(v, 'public.owners.v/3') FROM owners WHERE id = 3},
	"p1\nt|n1\no1", 'keys that cascade take values along, SET NULL leaves them');
gives($node, q{DELETE FROM owners WHERE id = 3; SELECT count(*) FROM pets; } . opened('notes', 'public.notes.v', 'id'), "1\nn1 n2", 'deletes cascade');

# What else hangs on a column: generated columns, rules, the log of an audited table, plans of before, a type that is changed in place.
value($node, q{CREATE TABLE hung (id int PRIMARY KEY, v fieldcrypt.encrypted_text, g text GENERATED ALWAYS AS (fieldcrypt.ciphertext_text(v)) STORED);
	SELECT fieldcrypt.protect_column('hung', 'v'); SELECT fieldcrypt.audit_table('hung'); INSERT INTO hung VALUES (1, 'one')});
gives($node, q{INSERT INTO hung VALUES (1, 'uno') ON CONFLICT (id) DO UPDATE SET v = excluded.v
	RETURNING g = fieldcrypt.ciphertext_text(v), fieldcrypt.decrypt_field(v, 'public.hung.v/1')},
	't|uno', 'a generated column follows what is stored');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE table_name LIKE '%hung' AND event IN ('row_inserted', 'row_updated')}, '2', 'an audited table');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log AS a WHERE a.table_name LIKE '%hung' AND a::text ~ 'one|uno'}, '0', '  whose log has no plaintext');
refused($node, 'CREATE RULE r AS ON DELETE TO hung DO ALSO INSERT INTO hung VALUES (old.id + 1, old.v); DELETE FROM hung', 'KF037', 'a rule that copies a row');
my $plans = session($node);
$plans->value(q{CREATE TABLE planned (id int PRIMARY KEY, v fieldcrypt.encrypted_text); PREPARE p AS INSERT INTO planned VALUES ($1, 'text'); EXECUTE p (1)});
$plans->value(q{SELECT fieldcrypt.protect_column('planned', 'v'); EXECUTE p (2)});
$plans->gives(opened('planned', 'public.planned.v', 'id'), 'text text', 'a plan of before the declaration');
$plans->gives(q{SELECT fieldcrypt.unprotect_column('planned', 'v'); EXECUTE p (3); SELECT fieldcrypt_internal.is_loose(v) FROM planned ORDER BY id},
	"\nf\nf\nt", '  and after it was taken back');
$plans->close;
gives($node, q{CREATE TABLE texts (id int PRIMARY KEY, v text); INSERT INTO texts VALUES (1, 'plain'), (2, NULL);
	ALTER TABLE texts ALTER v TYPE fieldcrypt.encrypted_text;
	SELECT fieldcrypt.protect_column('texts', 'v'); } . opened('texts', 'public.texts.v', 'id'), "\nplain", 'a text column that is changed in place');
refused($node, 'ALTER TABLE texts ALTER v TYPE text', '0A000', '  and does not become ciphertext as a text');
gives($node, q{ALTER TABLE texts ADD more fieldcrypt.encrypted_text DEFAULT ('same'::text); SELECT fieldcrypt.protect_column('texts', 'more');
	SELECT count(DISTINCT more::bytea), min(fieldcrypt.decrypt_field(more, fieldcrypt.context('public.texts.more', id))) FROM texts}, "\n2|same",
		'a new column with a DEFAULT: each row has its own');
# Names of 62 bytes that differ in the last: what is made for the columns is cut, and neither the other's.
my $long = run_sql($node, <<'SQL');
SELECT format('CREATE TABLE long (id int PRIMARY KEY, %I fieldcrypt.encrypted_text, %I fieldcrypt.encrypted_text)', c || 'a', c || 'b'),
       format('SELECT fieldcrypt.protect_column(''long'', %L), fieldcrypt.protect_column(''long'', %L)', c || 'a', c || 'b'),
       format('INSERT INTO long VALUES (1, ''one'', ''two'')')
  FROM (SELECT repeat('x', 1) || repeat(chr(228), 30) AS c) AS l \gexec
SQL
is("@{ $long->{sqlstates} }", '', 'columns of long names') or diag $long->{err};
unlike($long->{err}, qr/truncated/, '  nothing is cut in silence');
gives($node, q{SELECT count(*), bool_and(conname ~ '_is_protected1?$') FROM pg_constraint WHERE conrelid = 'long'::regclass AND contype = 'c'}, '2|t',
	'  and each has a constraint of its own');

no_crash($node);
done_testing();
