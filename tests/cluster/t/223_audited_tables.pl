# Audited tables that lose something: rows without a name, triggers that are disabled, dropped or never came to be.
# Nothing of it is silent: audit_table says it, and health() goes on saying it until it is mended.
use strict;
use warnings;
use lib 'lib';

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE ROLE manager LOGIN; CREATE ROLE other LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('other', 'manage');
SELECT fieldcrypt.create_key();
CREATE SCHEMA mine AUTHORIZATION manager; GRANT USAGE ON SCHEMA mine TO other;
SQL

my $check = q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'audited_tables'};
my $remedy = q{SELECT hint FROM fieldcrypt.health() WHERE "check" = 'audited_tables'};

# A test: health says this of audited tables.
sub is_health
{
	my ($like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(value($node, $check), $like, $name);
}

# What audit_table says besides.
sub notices
{
	my ($table, %options) = @_;
	my $result = run_sql($node, "SELECT fieldcrypt.audit_table('$table')", %options);
	die $result->{err} if @{ $result->{sqlstates} };
	return join '; ', grep { !/^audit_table: / } $result->{err} =~ /NOTICE:\s+(?:\w{5}: )?([^\n]*)/g;
}

my $ok = qr/^ok: \d+ tables and partitions are audited, all of their changes with the row's name/;
is_health($ok, 'no audited table');

# What a row is called in the log, by trigger and by SQL: the same.
my %tables = (
	primary_key => [ 'id int PRIMARY KEY, code text UNIQUE NOT NULL', '{"id": 1}' ],
	deferrable_key => [ 'id int PRIMARY KEY DEFERRABLE, code text', '{"id": 1}' ],
	unique_not_null => [ 'id int NOT NULL, code text UNIQUE NOT NULL', '{"code": "c"}' ],
	fewest_columns => [ 'id int NOT NULL, code text NOT NULL, UNIQUE (id, code), UNIQUE (code)', '{"code": "c"}' ],
	first_of_equals => [ 'id int NOT NULL UNIQUE, code text NOT NULL UNIQUE', '{"id": 1}' ],
	covering => [ 'id int NOT NULL, code text NOT NULL, UNIQUE (id) INCLUDE (code)', '{"id": 1}' ],
	replica_identity => [ 'id int NOT NULL UNIQUE, code text NOT NULL, UNIQUE (id, code); ALTER TABLE mine.replica_identity REPLICA IDENTITY USING INDEX replica_identity_id_code_key', '{"id": 1, "code": "c"}' ],
	unique_nullable => [ 'id int, code text UNIQUE', '' ],
	partial => [ 'id int NOT NULL, code text NOT NULL; CREATE UNIQUE INDEX ON mine.partial (id) WHERE id > 0', '' ],
	expression => [ 'id int NOT NULL, code text NOT NULL; CREATE UNIQUE INDEX ON mine.expression (lower(code))', '' ],
	plain_index => [ 'id int NOT NULL, code text NOT NULL; CREATE INDEX ON mine.plain_index (id)', '' ],
	full_identity => [ 'id int NOT NULL, code text NOT NULL; ALTER TABLE mine.full_identity REPLICA IDENTITY FULL', '' ]);
foreach my $table (sort keys %tables)
{
	my ($columns, $key) = @{ $tables{$table} };
	value($node, 'CREATE TABLE mine.' . $table . ' (' . ($columns =~ s/;/);/r) . ($columns =~ /;/ ? '' : ')'), user => 'manager');
	my $said = notices("mine.$table", user => 'manager');
	if ($key) { is($said, '', "$table: nothing to say") }
	else { like($said, qr/^mine\.$table: its rows have no name in the log, since it has neither a primary key nor a unique index/, "$table: told at once") }
	value($node, "INSERT INTO mine.$table VALUES (1, 'c')", user => 'manager');
	gives($node, "SELECT row_key FROM fieldcrypt.audit_log WHERE table_name = 'mine.$table' AND event = 'row_inserted'", $key, "$table: what the row is called");
	gives($node, qq{SELECT coalesce((SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(l.row_key) AS k), '{}')
			= coalesce((SELECT array_agg(split_part(i, ' ', 1) ORDER BY split_part(i, ' ', 1)) FROM regexp_split_to_table(fieldcrypt_internal.row_identity('mine.$table'::regclass), ', ') AS i), '{}')
		   FROM fieldcrypt.audit_log AS l WHERE table_name = 'mine.$table' AND event = 'row_inserted'}, 't', "$table: and so says SQL");
	value($node, "DROP TABLE mine.$table");
}
is_health($ok, 'what was dropped is not missed');

# Each fault, made and mended.
value($node, 'CREATE TABLE mine.t (id int CONSTRAINT t_key PRIMARY KEY, code text, v fieldcrypt.encrypted)', user => 'manager');
is(notices('mine.t', user => 'manager'), '', 'a table with a key');
is_health($ok, 'and health is content');
gives($node, q{SELECT reason FROM fieldcrypt.audit_log WHERE event = 'table_audited' AND table_name = 'mine.t'}, 'rows are named by id integer', 'the log says how rows are named');

my $again = q{SELECT fieldcrypt.audit_table('mine.t')};
foreach my $case (
	[ 'the key is dropped', 'ALTER TABLE mine.t DROP CONSTRAINT t_key', qr/"mine\.t": its rows have no name in the log/, 'ALTER TABLE mine.t ADD CONSTRAINT t_key PRIMARY KEY (id)' ],
	[ 'the key changes its type', 'ALTER TABLE mine.t ALTER id TYPE bigint', qr/"mine\.t": its rows were named by id integer when it was audited, and are now by id bigint/, $again ],
	[ 'its column is renamed', 'ALTER TABLE mine.t RENAME id TO ident', qr/named by id bigint when it was audited, and are now by ident bigint/, $again ],
	[ 'another key', 'ALTER TABLE mine.t DROP CONSTRAINT t_key, ALTER code SET NOT NULL, ADD CONSTRAINT t_key PRIMARY KEY (code)', qr/named by ident bigint when it was audited, and are now by code text/, $again ],
	[ 'back to the first', 'ALTER TABLE mine.t DROP CONSTRAINT t_key, ADD CONSTRAINT t_key PRIMARY KEY (ident)', qr/named by code text when it was audited/, $again ],
	[ 'the trigger is disabled', 'ALTER TABLE mine.t DISABLE TRIGGER fieldcrypt_audit_change', qr/"mine\.t": its triggers are disabled/, $again ],
	[ 'all triggers are disabled', 'ALTER TABLE mine.t DISABLE TRIGGER ALL', qr/"mine\.t": its triggers are disabled/, "$again; ALTER TABLE mine.t ENABLE TRIGGER ALL" ],
	[ 'only the one of TRUNCATE', 'ALTER TABLE mine.t DISABLE TRIGGER fieldcrypt_audit_truncate', qr/"mine\.t": its triggers are disabled/, $again ],
	[ 'it fires on a replica only', 'ALTER TABLE mine.t ENABLE REPLICA TRIGGER fieldcrypt_audit_change', qr/"mine\.t": its triggers are disabled/, $again ],
	[ 'the trigger is dropped', 'DROP TRIGGER fieldcrypt_audit_change ON mine.t', qr/"mine\.t": only TRUNCATE is recorded/, $again ],
	[ 'both are', 'DROP TRIGGER fieldcrypt_audit_change ON mine.t; DROP TRIGGER fieldcrypt_audit_truncate ON mine.t', qr/"mine\.t": it was audited, and has no triggers of audit_table any more/, $again ],
	[ 'one of that name does something else', 'DROP TRIGGER fieldcrypt_audit_change ON mine.t; DROP TRIGGER fieldcrypt_audit_truncate ON mine.t; CREATE FUNCTION mine.nothing() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$; CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT ON mine.t FOR EACH ROW EXECUTE FUNCTION mine.nothing()', qr/it was audited, and has no triggers of audit_table any more/, $again ],
	[ 'the table is made anew', 'DROP TABLE mine.t; SET ROLE manager; CREATE TABLE mine.t (ident bigint CONSTRAINT t_key PRIMARY KEY, code text, v fieldcrypt.encrypted)', qr/"mine\.t": it was audited, and has no triggers/, $again ],
	[ 'a child inherits from it', 'SET ROLE manager; CREATE TABLE mine.child (PRIMARY KEY (ident)) INHERITS (mine.t)', qr/"mine\.child": it inherits from an audited table, and is not audited/, q{SELECT fieldcrypt.audit_table('mine.child')} ],
	[ 'a grandchild', 'SET ROLE manager; CREATE TABLE mine.grandchild (PRIMARY KEY (ident)) INHERITS (mine.child)', qr/"mine\.grandchild": it inherits from an audited table, and is not audited/, 'DROP TABLE mine.grandchild' ])
{
	my ($name, $fault, $like, $mend) = @$case;
	value($node, $fault);
	is_health(qr/^warning: audited tables: .*$like/, $name);
	isnt(value($node, $remedy), '', "$name: there is something to do");
	value($node, $mend);
	is_health($ok, "$name: mended");
	value($node, 'INSERT INTO mine.t (ident, code) SELECT coalesce(max(ident), 0) + 1, coalesce(max(ident), 0) + 1 FROM mine.t') if value($node, q{SELECT count(*) FROM pg_attribute WHERE attrelid = 'mine.t'::regclass AND attname = 'ident'});
}
gives($node, q{SELECT count(*) > 5, bool_and(row_key IS NOT NULL) FROM fieldcrypt.audit_log WHERE event = 'row_inserted' AND table_name = 'mine.t'}, 't|t', 'what was changed in between is recorded under its name');

# A child of the audited table: rows that its parent's statements change are its own.
like(notices('mine.t', user => 'manager'), qr/^$/, 'an audited child needs no word');
value($node, 'CREATE TABLE mine.silent (PRIMARY KEY (ident)) INHERITS (mine.t)', user => 'manager');
like(notices('mine.t', user => 'manager'), qr/^mine\.silent: it inherits from an audited table, and is not audited$/, 'one that is not is named');
value($node, 'DROP TABLE mine.silent');

# Partitions.
value($node, <<'SQL', user => 'manager');
CREATE TABLE mine.parts (id int, region int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE mine.parts_0 PARTITION OF mine.parts FOR VALUES IN (0);
SELECT fieldcrypt.audit_table('mine.parts');
SQL
is_health($ok, 'a partitioned table');
value($node, 'CREATE TABLE mine.parts_1 PARTITION OF mine.parts FOR VALUES IN (1)', user => 'manager');
is_health(qr/^warning: .*"mine\.parts_1": TRUNCATE of this partition alone is not recorded/, 'a partition that came later');
value($node, q{INSERT INTO mine.parts VALUES (1, 1); SELECT fieldcrypt.audit_table('mine.parts'); TRUNCATE mine.parts_1}, user => 'manager');
is_health($ok, 'mended by audit_table of the whole');
gives($node, q{SELECT string_agg(event, ',' ORDER BY id) FROM fieldcrypt.audit_log WHERE partition_name = 'mine.parts_1'}, 'row_inserted,table_truncated', 'its rows were recorded all the time');
value($node, 'ALTER TABLE mine.parts_0 DISABLE TRIGGER fieldcrypt_audit_change', user => 'manager');
is_health(qr/^warning: .*"mine\.parts_0": its triggers are disabled/, 'disabled on one partition');
value($node, q{SELECT fieldcrypt.audit_table('mine.parts'); INSERT INTO mine.parts VALUES (1, 0)}, user => 'manager');
is_health($ok, 'enabled again by audit_table of the whole');
value($node, 'ALTER TABLE mine.parts DETACH PARTITION mine.parts_0', user => 'manager');
is_health(qr/^warning: .*"mine\.parts_0": only TRUNCATE is recorded/, 'a partition that was detached');
value($node, q{SELECT fieldcrypt.unaudit_table('mine.parts_0')}, user => 'manager');
is_health($ok, 'taken out of audit by name');
value($node, 'ALTER TABLE mine.parts ATTACH PARTITION mine.parts_0 FOR VALUES IN (0)', user => 'manager');
is_health(qr/^warning: .*"mine\.parts_0": TRUNCATE of this partition alone/, 'attached again');
value($node, q{INSERT INTO mine.parts VALUES (2, 0); SELECT fieldcrypt.audit_table('mine.parts')}, user => 'manager');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE partition_name = 'mine.parts_0' AND event = 'row_inserted'}, '2', 'its rows are recorded again, before audit_table was called');
is_health($ok, 'and all is well');
value($node, 'CREATE TABLE mine.keyless (id int, region int) PARTITION BY LIST (region)', user => 'manager');
value($node, 'CREATE TABLE mine.keyless_0 PARTITION OF mine.keyless (PRIMARY KEY (id)) FOR VALUES IN (0); CREATE TABLE mine.keyless_1 PARTITION OF mine.keyless FOR VALUES IN (1)', user => 'manager');
like(notices('mine.keyless', user => 'manager'), qr/^mine\.keyless_1: its rows have no name in the log[^;]*$/, 'one partition has a key of its own, one has none');
value($node, 'INSERT INTO mine.keyless VALUES (5, 0), (6, 1)', user => 'manager');
gives($node, q{SELECT string_agg(coalesce(row_key::text, 'none'), ',' ORDER BY id) FROM fieldcrypt.audit_log WHERE table_name = 'mine.keyless' AND event = 'row_inserted'}, '{"id": 5},none', 'and so is recorded');
value($node, 'DROP TABLE mine.keyless');

# A dropped trigger is explained by unaudit_table, by whose it is.
value($node, 'DROP TRIGGER fieldcrypt_audit_change ON mine.t; DROP TRIGGER fieldcrypt_audit_truncate ON mine.t');
is_health(qr/it was audited, and has no triggers/, 'dropped by hand');
refused($node, q{SELECT fieldcrypt.unaudit_table('mine.t')}, '42501', qr/to a table of yours is recorded/, 'nobody else explains it', user => 'other');
is_health(qr/it was audited, and has no triggers/, 'and it is not explained');
value($node, q{SELECT fieldcrypt.unaudit_table('mine.t')}, user => 'manager');
is_health($ok, 'the owner does');
my $rows = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log');
value($node, q{SELECT fieldcrypt.unaudit_table('mine.t')}, user => 'manager');
is(value($node, 'SELECT count(*) FROM fieldcrypt.audit_log'), $rows, 'once');

# Triggers that nothing fires.
foreach my $case (
	[ 'ALTER ROLE manager SET session_replication_role = replica', 'no trigger of audit_table fires where session_replication_role = replica is set for role "manager"', 'ALTER ROLE manager RESET session_replication_role' ],
	[ 'ALTER DATABASE postgres SET session_replication_role = replica', 'is set for database "postgres"', 'ALTER DATABASE postgres RESET session_replication_role' ],
	[ 'ALTER ROLE other IN DATABASE postgres SET session_replication_role = replica', 'is set for role "other" in database "postgres"', 'ALTER ROLE other IN DATABASE postgres RESET session_replication_role' ],
	[ 'ALTER SYSTEM SET session_replication_role = replica', 'the configuration says session_replication_role = replica', 'ALTER SYSTEM RESET session_replication_role' ])
{
	my ($fault, $says, $mend) = @$case;
	my $found = qq{SELECT status FROM fieldcrypt.health() WHERE "check" = 'audited_tables' AND (status = 'ok' OR position('$says' IN detail) > 0)};
	value($node, $_) foreach $fault, 'SELECT pg_reload_conf()';
	ok(eventually($node, $found, 'warning'), $fault) or diag value($node, $check);
	value($node, $_) foreach $mend, 'SELECT pg_reload_conf()';
	ok(eventually($node, $found, 'ok'), "$fault: mended") or diag value($node, $check);
}

# Nobody is waited for.
my $holder = session($node);
$holder->gives('BEGIN; LOCK TABLE mine.parts IN ACCESS EXCLUSIVE MODE; SELECT 1', '1', 'somebody locks an audited table');
gives($node, q{SET lock_timeout = '5s'; SELECT status FROM fieldcrypt.health() WHERE "check" = 'audited_tables'}, 'ok', 'health() does not wait');
$holder->gives('ROLLBACK; SELECT 1', '1', 'and lets it go');

refused($node, $_, '42501', "not by a manager: $_", user => 'manager')
  foreach 'SELECT * FROM fieldcrypt_internal.audited_table_problems()', 'SELECT fieldcrypt_internal.tables_said_to_be_audited()', 'SELECT fieldcrypt_internal.trigger_bypass()';

no_crash($node);
done_testing();
