# Code of one role that runs in the session of another (in ANALYZE, in triggers, in functions of its own)
# does nothing in the other's name: it is no second person, and sets no context for the other's table.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "autovacuum = off\n");
value($node, <<'SQL');
CREATE ROLE mallory LOGIN;
CREATE ROLE bob LOGIN;
CREATE SCHEMA mallory AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA mallory TO PUBLIC;
SELECT fieldcrypt.grant_access('mallory', 'manage', 'reencrypt', 'encrypt');
SELECT fieldcrypt.grant_access('bob', 'manage');
SELECT fieldcrypt.create_key('acme');
CREATE TABLE payroll (id int PRIMARY KEY, salary fieldcrypt.encrypted);
INSERT INTO payroll VALUES (1, fieldcrypt.encrypt_field('1000'));
SQL
my @mallory = (user => 'mallory');

# What mallory gets to run where the session is somebody else's: an index expression, in ANALYZE and
# REINDEX; a trigger; a function with mallory's rights.
sub plant
{
	my ($statement) = @_;
	value($node, <<SQL, @mallory);
DROP TABLE IF EXISTS mallory.bait;
CREATE OR REPLACE FUNCTION mallory.act(id int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN id; END';
CREATE TABLE mallory.bait (id int);
INSERT INTO mallory.bait SELECT generate_series(1, 10);
CREATE INDEX ON mallory.bait (mallory.act(id));
CREATE OR REPLACE FUNCTION mallory.act(id int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \$act\$
BEGIN
    IF session_user <> 'mallory' AND id = 1 THEN
        $statement;
    END IF;
    RETURN id;
END \$act\$;
CREATE OR REPLACE FUNCTION mallory.on_insert() RETURNS trigger LANGUAGE plpgsql AS \$act\$
BEGIN
    $statement;
    RETURN NULL;
END \$act\$;
CREATE TRIGGER on_insert AFTER INSERT ON mallory.bait FOR EACH STATEMENT EXECUTE FUNCTION mallory.on_insert();
CREATE OR REPLACE FUNCTION mallory.with_my_rights() RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS \$act\$
BEGIN
    $statement;
    RETURN 1;
END \$act\$;
GRANT ALL ON mallory.bait TO bob;
SQL
	return;
}

sub request
{
	my (%options) = @_;
	return value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'acme', 'contract ended')}, %options);
}

sub approver { return value($node, "SELECT coalesce(approved_by, 'nobody') FROM fieldcrypt.approvals WHERE id = $_[0]"); }

my @hands = (
	[ 'ANALYZE' => 'ANALYZE mallory.bait', qr/security-restricted operation/ ],
	[ 'REINDEX' => 'REINDEX TABLE mallory.bait', qr/security-restricted operation/ ],
	[ 'a function of mallory\'s rights' => 'SELECT mallory.with_my_rights()', qr/by a CALL of its own only|must be owner of table payroll/ ],
);

note 'the second person';
{
	my $id = request(@mallory);
	plant("PERFORM fieldcrypt_internal.approve_step($id)");
	foreach my $hand (@hands, [ 'a trigger' => 'INSERT INTO mallory.bait VALUES (0)', qr/by a CALL of its own only/ ])
	{
		my ($name, $sql, $like) = @$hand;
		refused($node, $sql, '42501', $like, "$name as superuser");
		is(approver($id), 'nobody', "$name approves nothing");
	}
	refused($node, 'INSERT INTO mallory.bait VALUES (0)', '42501', qr/by a CALL of its own only/, 'a trigger in a session of bob, who may approve', user => 'bob');
	is(approver($id), 'nobody', 'and bob has approved nothing');
	refused($node, "SELECT fieldcrypt_internal.approve_step($id)", '42501', qr/by a CALL of its own only/, 'the step by itself', user => 'bob');
	is(join("", @{ run_sql($node, "CALL fieldcrypt.approve($id)", user => 'bob')->{sqlstates} }), '', 'bob approves by hand');
	is(approver($id), 'bob', 'and is named');
}

note 'the first person';
{
	plant(q{PERFORM fieldcrypt.request_approval('shred_tenant', 'acme', 'by another''s hand')});
	foreach my $hand (@hands[ 0, 1 ])
	{
		my ($name, $sql, $like) = @$hand;
		refused($node, $sql, '42501', $like, "a request in $name");
	}
	is(value($node, q{SELECT count(*) FROM fieldcrypt.approvals WHERE reason LIKE 'by another%'}), 0, 'nothing was asked for in another\'s name');
}

note 'states of keys, and the log';
{
	my $key = value($node, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'});
	foreach my $act ("PERFORM fieldcrypt.suspend_key($key, 'x')", "PERFORM fieldcrypt_internal.shred_step('acme', 'x')",
		"PERFORM fieldcrypt.confirm_key_states('x')", "PERFORM fieldcrypt_internal.rotate_step('acme', 'x', true, NULL)")
	{
		plant($act);
		my $rows = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log');
		refused($node, 'ANALYZE mallory.bait', '42501', qr/security-restricted operation/, "in ANALYZE: $act");
		is(value($node, 'SELECT count(*) FROM fieldcrypt.audit_log'), $rows, 'nothing is in the log under another\'s name');
	}
	is(value($node, q{SELECT string_agg(state, ',') FROM fieldcrypt.encryption_keys WHERE tenant = 'acme'}), 'active', 'the key is as it was');
}

note 'contexts of columns';
{
	value($node, <<'SQL', @mallory);
CREATE FUNCTION mallory.take_over() RETURNS text LANGUAGE plpgsql AS $act$ BEGIN RAISE WARNING 'ran as %', current_user; RETURN ''; END $act$;
SQL
	plant(q{PERFORM fieldcrypt.set_column_context('public.payroll', 'salary', expression => 'mallory.take_over()')});
	foreach my $hand (@hands)
	{
		my ($name, $sql, $like) = @$hand;
		refused($node, $sql, '42501', $like, "$name as superuser, who owns the table");
	}
	is(value($node, 'SELECT count(*) FROM fieldcrypt.column_contexts'), 0, 'no context was set');
	value($node, 'GRANT mallory TO bob');
	refused($node, q{SET ROLE bob; SELECT fieldcrypt.set_column_context('payroll', 'salary', 'x')}, '42501', qr/must be owner of table payroll/, 'a superuser as another role is that role');
	refused($node, q{SELECT fieldcrypt.set_column_context('payroll', 'name', 'x')}, '42703', qr/has no encrypted column "name"/, 'another column');
	refused($node, q{SELECT fieldcrypt.set_column_context('payroll', 'salary', NULL)}, '22004', qr/constant must not be NULL/, 'a NULL');
	refused($node, q{SELECT fieldcrypt.set_column_context('payroll', 'salary', 'x', 'id::text')}, '22023', qr/either a constant or an expression/, 'both');
	refused($node, q{SELECT fieldcrypt.set_column_context('payroll', 'salary', expression => 'nothing')}, '42703', qr/"nothing"/, 'an expression over another row');
	gives($node, q{SELECT fieldcrypt.set_column_context('payroll', 'salary', 'payroll.salary')}, '', 'the owner sets it');
	refused($node, q{SELECT fieldcrypt.set_column_context('payroll', 'salary', '')}, '42501', qr/must be owner/, 'mallory does not', @mallory);
}

no_crash($node);
done_testing();
