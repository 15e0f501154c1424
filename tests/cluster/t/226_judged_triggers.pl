# A trigger is one of audit_table's by what it does, not by its name: one that records only some changes, a renamed one and
# a second one are seen by health, mended by audit_table and removed by unaudit_table.
use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE ROLE owner LOGIN;
SELECT fieldcrypt.grant_access('owner', 'manage');
SELECT fieldcrypt.create_key();
CREATE SCHEMA mine AUTHORIZATION owner;
SQL
my $check = q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'audited_tables'};
my $function = 'EXECUTE FUNCTION fieldcrypt_internal.audit_change';
my $ok = qr/^ok: /;

sub is_health
{
	my ($like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(value($node, $check), $like, $name);
}

# A test: each kind of change of three rows is in the log, once.
sub is_recorded
{
	my ($table, $times, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $last = value($node, 'SELECT coalesce(max(id), 0) FROM fieldcrypt.audit_log');
	value($node, "INSERT INTO $table (id) VALUES (1), (7); UPDATE $table SET n = 1 WHERE id = 1; DELETE FROM $table WHERE id = 7; TRUNCATE $table");
	my $expected = $times ? 'row_deleted:' . $times . ',row_inserted:' . 2 * $times . ',row_updated:' . $times . ',table_truncated:' . $times : '';
	return gives($node, "SELECT string_agg(event || ':' || number, ',' ORDER BY event) FROM (SELECT event, count(*) AS number FROM fieldcrypt.audit_log WHERE id > $last AND event ~ '^row_|^table_trunc' GROUP BY 1) AS e", $expected, $name);
}

sub triggers { my ($table) = @_; return value($node, "SELECT count(*) FROM pg_trigger WHERE tgfoid = 'fieldcrypt_internal.audit_change()'::regprocedure AND tgrelid = '$table'::regclass") }

# Triggers of our function that a superuser, or an owner with the privilege, has made himself.
my $number = 0;
foreach my $case (
	[ 'only some rows', "CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW WHEN (pg_trigger_depth() > 5) $function('id integer')" ],
	[ 'only some rows, of INSERT', "CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT ON %s FOR EACH ROW WHEN (new.id > 5) $function('id integer')" ],
	[ 'only INSERT', "CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT ON %s FOR EACH ROW $function('id integer')" ],
	[ 'only some columns', "CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR DELETE OR UPDATE OF id ON %s FOR EACH ROW $function('id integer')" ],
	[ 'by statement', "CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s $function('id integer')" ],
	[ 'before the change', "CREATE TRIGGER fieldcrypt_audit_change BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW $function('id integer')" ],
	[ 'later', "CREATE CONSTRAINT TRIGGER fieldcrypt_audit_change AFTER INSERT OR UPDATE OR DELETE ON %s DEFERRABLE INITIALLY DEFERRED FOR EACH ROW $function('id integer')" ],
	[ 'under another name', "CREATE TRIGGER another AFTER INSERT ON %s FOR EACH ROW $function('id integer')" ],
	[ 'TRUNCATE, before', "CREATE TRIGGER fieldcrypt_audit_truncate BEFORE TRUNCATE ON %s $function()" ])
{
	my ($name, $fault) = @$case;
	my $table = 'mine.t' . ++$number;
	value($node, "CREATE TABLE $table (id int PRIMARY KEY, n int)", user => 'owner');
	value($node, sprintf $fault, $table);
	is_health(qr/^warning: .*"$table": its trigger \w+ does not record every change/, "$name: health says so");
	value($node, "SELECT fieldcrypt.audit_table('$table')", user => 'owner');
	is_health($ok, "$name: audit_table mends it");
	is(triggers($table), 2, "$name: nothing is left of it");
	is_recorded($table, 1, "$name: every change is recorded, once");
	value($node, sprintf($fault =~ s/fieldcrypt_audit_\w+/odd/r, $table));
	is_health(qr/^warning: .*"$table": its trigger \w+ does not record every change/, "$name: beside the right ones, too");
	value($node, "SELECT fieldcrypt.unaudit_table('$table')", user => 'owner');
	is(triggers($table), 0, "$name: unaudit_table removes it");
	is_recorded($table, 0, "$name: nothing more is recorded");
	is_health($ok, "$name: and health is content");
	value($node, "DROP TABLE $table");
}

# Renamed: it goes on, is not made twice, and is removed.
value($node, q{CREATE TABLE mine.r (id int PRIMARY KEY, n int); SELECT fieldcrypt.audit_table('mine.r');
	ALTER TRIGGER fieldcrypt_audit_change ON mine.r RENAME TO zz; ALTER TRIGGER fieldcrypt_audit_truncate ON mine.r RENAME TO zzz}, user => 'owner');
is_health($ok, 'renamed triggers are the same triggers');
is_recorded('mine.r', 1, 'and record');
my $events = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log');
value($node, q{SELECT fieldcrypt.audit_table('mine.r')}, user => 'owner');
is(value($node, 'SELECT count(*) FROM fieldcrypt.audit_log'), $events, 'audit_table finds them, and has nothing to say');
is_recorded('mine.r', 1, 'nothing is recorded twice');
value($node, 'ALTER TABLE mine.r DISABLE TRIGGER zz', user => 'owner');
is_health(qr/"mine\.r": its triggers are disabled/, 'disabled');
value($node, q{SELECT fieldcrypt.audit_table('mine.r')}, user => 'owner');
is_health($ok, 'made anew');
is_recorded('mine.r', 1, 'once');

# Two of them.
value($node, "CREATE TRIGGER again AFTER INSERT OR UPDATE OR DELETE ON mine.r FOR EACH ROW $function('id integer'); CREATE TRIGGER again_truncate AFTER TRUNCATE ON mine.r $function()");
is_health(qr/^warning: .*"mine\.r": its changes are recorded twice/, 'two triggers that record the same');
value($node, q{SELECT fieldcrypt.audit_table('mine.r')}, user => 'owner');
is_health($ok, 'one is left');
is_recorded('mine.r', 1, 'which records');
value($node, 'ALTER TRIGGER fieldcrypt_audit_change ON mine.r RENAME TO yy', user => 'owner');
value($node, q{SELECT fieldcrypt.unaudit_table('mine.r')}, user => 'owner');
is(triggers('mine.r'), 0, 'unaudit_table removes a renamed one');
is_recorded('mine.r', 0, 'and nothing more is recorded');

# Partitions: copies of the whole's, and their own under another name.
value($node, <<"SQL");
CREATE TABLE mine.parts (id int, region int DEFAULT 0, n int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE mine.parts_0 PARTITION OF mine.parts FOR VALUES IN (0);
CREATE TRIGGER fieldcrypt_audit_change AFTER INSERT ON mine.parts FOR EACH ROW WHEN (new.id > 5) $function('region integer, id integer');
SQL
is_health(qr/^warning: .*"mine\.parts": its trigger fieldcrypt_audit_change does not record every change/, 'a partitioned table');
value($node, q{SELECT fieldcrypt.audit_table('mine.parts')});
is_health($ok, 'mended with its copies');
value($node, "CREATE TRIGGER own AFTER INSERT OR UPDATE OR DELETE ON mine.parts_0 FOR EACH ROW $function('region integer, id integer')");
is_health(qr/^warning: .*"mine\.parts_0": its changes are recorded twice/, 'a partition with one of its own');
value($node, q{SELECT fieldcrypt.audit_table('mine.parts')});
is_health($ok, 'mended by audit_table of the whole');
is_recorded('mine.parts_0', 1, 'each change is recorded once');

# Triggers of an enforced context that check only something.
my $enforce = q{SELECT fieldcrypt.set_column_context('mine.e', 'v', expression => $$fieldcrypt.context('e.v', id)$$, enforce => true)};
value($node, "CREATE TABLE mine.e (id int PRIMARY KEY, n int, v fieldcrypt.encrypted); $enforce");
my $enforced = q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'enforced_contexts'};
gives($node, $enforced, 'ok', 'an enforced context');
foreach my $case (
	[ 'update', 'AFTER UPDATE', 'AFTER UPDATE OF n' ], [ 'update', 'WHEN (', 'WHEN (new.id > 5 AND ' ], [ 'update', 'EXECUTE', 'EXECUTE', ' DISABLE' ],
	[ 'insert', 'AFTER INSERT', 'BEFORE INSERT' ], [ 'insert', '\)\) EXECUTE', ') AND new.id > 5) EXECUTE' ],
	[ 'insert', 'CREATE TRIGGER (\w+) (.*) FOR EACH', 'CREATE CONSTRAINT TRIGGER \1 \2 DEFERRABLE INITIALLY DEFERRED FOR EACH' ])
{
	my ($which, $what, $by, $disable) = @$case;
	my $trigger = "fieldcrypt_context_0_$which";
	my $made = value($node, "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = '$trigger'");
	my $other = $made =~ s/\Q$what\E/$by/r;
	$other = value($node, qq{SELECT regexp_replace(\$def\$$made\$def\$, \$re\$$what\$re\$, \$by\$$by\$by\$)}) if $other eq $made;
	value($node, "DROP TRIGGER $trigger ON mine.e; $other" . ($disable ? "; ALTER TABLE mine.e DISABLE TRIGGER $trigger" : ''));
	gives($node, $enforced, 'warning', "$by" . ($disable // '') . ": health says that not all is checked");
	value($node, $enforce);
	gives($node, $enforced, 'ok', "$by: set again, it is");
	gives($node, q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'mine.e'::regclass}, '2', '  and nothing of it is left');
}

no_crash($node);
done_testing();
