# A value of a protected column belongs to one row. Whoever tries to have it in another one is refused: by copies inside of one
# statement, by changed keys, by triggers before and behind ours, by upserts, MERGE, COPY, cursors, waits and plans.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n");
my $version = server_version($node);

my @privileges = qw(encrypt decrypt reencrypt);
value($node, "CREATE ROLE of_$_ LOGIN; SELECT fieldcrypt.grant_access('of_$_', '$_')") foreach @privileges;
value($node, <<'SQL');
CREATE ROLE of_both LOGIN; SELECT fieldcrypt.grant_access('of_both', 'encrypt', 'decrypt');
CREATE ROLE of_none LOGIN;
CREATE TABLE people (id bigint PRIMARY KEY, name text, ssn fieldcrypt.encrypted_text, phone fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('people', 'ssn'), fieldcrypt.protect_column('people', 'phone');
CREATE TABLE others (LIKE people INCLUDING INDEXES);
SELECT fieldcrypt.protect_column('others', 'ssn');
CREATE TABLE held (id bigint, ssn fieldcrypt.encrypted_text, field fieldcrypt.encrypted);
GRANT ALL ON people, others, held TO PUBLIC;
SQL
# What is in the rows, opened where they say that they are.
my $people = q{SELECT string_agg(concat_ws(' ', id, name, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id)),
    fieldcrypt.decrypt_field(phone, fieldcrypt.context('public.people.phone', id))), ', ' ORDER BY id) FROM people};
my $as_made = '1 Ada ssn-1 phone-1, 2 Bob ssn-2 phone-2, 3 Eve';
sub restore
{
	value($node, <<'SQL');
TRUNCATE people, others, held;
INSERT INTO people VALUES (1, 'Ada', 'ssn-1', 'phone-1'), (2, 'Bob', 'ssn-2', 'phone-2'), (3, 'Eve', NULL, NULL);
INSERT INTO others VALUES (1, 'Zoe', 'other-1', NULL), (2, 'Yan', 'other-2', NULL);
INSERT INTO held SELECT id, ssn, fieldcrypt.encrypt_field('field-' || id, fieldcrypt.context('public.people.ssn', id)) FROM people;
SQL
	return;
}
# A test: a statement fails with this SQLSTATE, tells no plaintext, and leaves everything as it was.
sub attack
{
	my ($name, $statement, $sqlstate, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = value($node, 'SELECT md5(string_agg(p::text, $$,$$ ORDER BY id)) FROM people AS p');
	my $result = run_sql($node, $statement, %options);
	is($result->{sqlstates}[0], $sqlstate, "refused: $name") or diag $result->{out} . $result->{err};
	unlike($result->{err}, qr/(?:ssn|phone|other)-\d/, '  without a plaintext');
	is(value($node, 'SELECT md5(string_agg(p::text, $$,$$ ORDER BY id)) FROM people AS p'), $before, '  and nothing was written');
	return $result;
}
restore();
gives($node, $people, $as_made, 'what was written as plaintext opens where it is');
gives($node, q{SELECT count(*) FROM people WHERE position('ssn-' IN encode(ssn::bytea, 'escape')) > 0}, '0', 'and is stored nowhere as it is');

# The functions that attackers have in their statements.
value($node, <<'SQL');
CREATE FUNCTION ssn_of(bigint) RETURNS fieldcrypt.encrypted_text LANGUAGE plpgsql VOLATILE AS $$ BEGIN RETURN (SELECT ssn FROM people WHERE id = $1); END $$;
CREATE FUNCTION moved(bigint, bigint) RETURNS fieldcrypt.encrypted_text LANGUAGE plpgsql VOLATILE AS $$
DECLARE v fieldcrypt.encrypted_text;
BEGIN
    UPDATE people SET id = $2 WHERE id = $1 RETURNING ssn INTO v;
    RETURN v;
END $$;
SQL

# Copies of a row that is moved by the same statement, also for a superuser, who has every right: what is refused is the copy.
my @copies = (
	[ 'a CTE that moves a row and copies what it was',
		'WITH m AS (UPDATE people SET id = 10 WHERE id = 1 RETURNING ssn) UPDATE people SET ssn = m.ssn FROM m WHERE id = 2' ],
	[ 'a CTE that moves a row, and its old value',
		'WITH m AS (UPDATE people SET id = 10 WHERE id = 1 RETURNING id) UPDATE people SET ssn = (SELECT ssn FROM people WHERE id = 1) FROM m WHERE people.id = 2' ],
	[ 'a CTE that inserts, and a copy of it',
		q{WITH m AS (INSERT INTO people VALUES (11, 'x', 'mine') RETURNING ssn) UPDATE people SET ssn = m.ssn FROM m WHERE id = 2} ],
	[ 'a CTE that deletes', 'WITH m AS (DELETE FROM people WHERE id = 1 RETURNING *) INSERT INTO people SELECT 12, name, ssn, phone FROM m' ],
	[ 'a volatile function that moves a row', 'UPDATE people SET ssn = moved(1, 13) WHERE id = 2' ],
	[ 'a volatile function that reads', 'UPDATE people SET ssn = ssn_of(1) WHERE id = 2' ],
	[ 'a volatile function in an INSERT', q{INSERT INTO people VALUES (14, 'x', ssn_of(1))} ],
	[ 'a volatile function in an upsert', q{INSERT INTO people VALUES (2, 'x', 'mine') ON CONFLICT (id) DO UPDATE SET ssn = ssn_of(1)} ],
	[ 'a volatile function in an upsert, moved', q{INSERT INTO people VALUES (2, 'x', 'mine') ON CONFLICT (id) DO UPDATE SET ssn = moved(1, 15)} ],
	[ 'an upsert with another row\'s value',
		q{INSERT INTO people VALUES (2, 'x', 'mine') ON CONFLICT (id) DO UPDATE SET ssn = (SELECT ssn FROM people WHERE id = 1)} ],
	[ 'an upsert whose proposal is another row\'s',
		q{INSERT INTO people SELECT 2, name, ssn FROM people WHERE id = 1 ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn} ],
	[ 'an upsert that moves the key, too', q{INSERT INTO people SELECT 2, name, ssn FROM people WHERE id = 1
		ON CONFLICT (id) DO UPDATE SET id = 16, ssn = excluded.ssn} ],
	[ 'an upsert into another column', q{INSERT INTO people VALUES (2, 'x', 'mine', 'mine') ON CONFLICT (id) DO UPDATE SET ssn = (SELECT phone
		FROM people WHERE id = 2)} ],
	[ 'an upsert of two rows, the second with the first\'s',
		q{INSERT INTO people VALUES (17, 'x', 'mine'), (2, 'x', ssn_of(1)) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn} ],
	[ 'a swap of two people', 'UPDATE people AS p SET ssn = o.ssn FROM people AS o WHERE (p.id, o.id) IN ((1, 2), (2, 1))' ],
	[ 'a copy between columns', 'UPDATE people SET phone = ssn WHERE id = 1' ],
	[ 'a copy to another table, with the same id', 'UPDATE others AS o SET ssn = p.ssn FROM people AS p WHERE o.id = 1 AND p.id = 1' ],
	[ 'a copy from another table', 'UPDATE people AS p SET ssn = o.ssn FROM others AS o WHERE o.id = 1 AND p.id = 1' ],
	[ 'INSERT SELECT with new ids', 'INSERT INTO people SELECT id + 20, name, ssn FROM people' ],
	[ 'a copy that was kept elsewhere', 'UPDATE people SET ssn = (SELECT ssn FROM held WHERE held.id = 1) WHERE id = 2' ],
	[ 'as the other type', 'UPDATE people SET ssn = (SELECT ssn::fieldcrypt.encrypted FROM held WHERE held.id = 1) WHERE id = 2' ],
	[ 'by bytes', 'UPDATE people SET ssn = (SELECT ssn::bytea::fieldcrypt.encrypted FROM held WHERE held.id = 1) WHERE id = 2' ],
	[ 'as text', 'UPDATE people SET ssn = (SELECT fieldcrypt.ciphertext_text(ssn)::fieldcrypt.encrypted_text FROM held WHERE held.id = 1) WHERE id = 2' ],
	[ 'a prepared statement', 'PREPARE a AS UPDATE people SET ssn = (SELECT ssn FROM held WHERE held.id = $1) WHERE id = $2; EXECUTE a (1, 2)' ],
	[ 'a cursor', 'BEGIN; DECLARE c CURSOR FOR SELECT * FROM people WHERE id = 2 FOR UPDATE; FETCH c;
		UPDATE people SET ssn = (SELECT ssn FROM held WHERE held.id = 1) WHERE CURRENT OF c; COMMIT' ],
	[ 'PREPARE TRANSACTION', q{BEGIN; UPDATE people SET ssn = ssn_of(1) WHERE id = 2; PREPARE TRANSACTION 'x'} ],
	[ 'a DO block', 'DO $$ BEGIN UPDATE people SET ssn = ssn_of(1) WHERE id = 2; END $$' ],
	[ 'a view', 'CREATE VIEW pg_temp.v AS SELECT * FROM people; UPDATE pg_temp.v SET ssn = ssn_of(1) WHERE id = 2' ],
	[ 'a temporary copy', 'CREATE TEMP TABLE c AS SELECT * FROM people; UPDATE people AS p SET ssn = c.ssn FROM c WHERE c.id = 1 AND p.id = 2' ],
	[ 'a parallel plan', force_parallel() . q{INSERT INTO people SELECT id + 30, 'x', ssn FROM held} ]);
push @copies,
	[ 'MERGE, update', 'MERGE INTO people AS p USING held AS h ON p.id = 2 AND h.id = 1 WHEN MATCHED THEN UPDATE SET ssn = h.ssn' ],
	[ 'MERGE, insert', q{MERGE INTO people AS p USING held AS h ON p.id = h.id + 40 WHEN NOT MATCHED THEN INSERT VALUES (h.id + 40, 'x', h.ssn)} ],
	[ 'MERGE that inserts plaintext and then copies a row',
		q{MERGE INTO people AS p USING (VALUES (41, 'mine'), (2, 'x')) AS v (id, t) ON p.id = v.id
			WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'x', v.t) WHEN MATCHED THEN UPDATE SET ssn = ssn_of(1)} ],
	[ 'MERGE that moves a row',
		'MERGE INTO people AS p USING (VALUES (1), (2)) AS v (id) ON p.id = v.id
			WHEN MATCHED AND v.id = 1 THEN UPDATE SET id = 42 WHEN MATCHED THEN UPDATE SET ssn = ssn_of(42)' ]
  if $version >= 15;
foreach my $copy (@copies)
{
	my ($name, $statement) = @$copy;
	my $result = attack($name, $statement, 'KF037');
	like($result->{err}, qr/HINT:.*loosen/, '  the hint names loosen');
}
attack('a value of encrypt_field', 'UPDATE people SET ssn = (SELECT field FROM held WHERE held.id = 1) WHERE id = 1', 'KF037');
attack('a value of encrypt_field, as text',
	q{UPDATE people SET ssn = (SELECT fieldcrypt.ciphertext_text(field)::fieldcrypt.encrypted_text FROM held WHERE held.id = 1) WHERE id = 1}, 'KF037');
gives($node, $people, $as_made, 'after all of them');

# Changed keys. With UPDATE on id and name alone, three statements would swap two people's numbers.
value($node, 'REVOKE ALL ON people FROM PUBLIC; GRANT SELECT, UPDATE (id, name) ON people TO PUBLIC');
my $swap = 'BEGIN; UPDATE people SET id = 100 WHERE id = 1; UPDATE people SET id = 1 WHERE id = 2; UPDATE people SET id = 2 WHERE id = 100; COMMIT';
attack("a swap of keys by a role with $_", $swap, '42501', user => "of_$_") foreach 'none', 'encrypt', 'decrypt';
attack("one key, by a role with $_", 'UPDATE people SET id = 100 WHERE id = 1', '42501', user => "of_$_") foreach 'none', 'encrypt', 'decrypt';
attack('by an anonymous block', 'DO $$ BEGIN UPDATE people SET id = 100 WHERE id = 1; END $$', '42501', user => 'of_encrypt');
attack('a function of its own', 'CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE sql AS $$ UPDATE people SET id = 100 WHERE id = 1 $$; SELECT pg_temp.f()',
	'42501', user => 'of_decrypt');
attack('the value of another row along with the key', 'UPDATE people SET id = 2, ssn = (SELECT ssn FROM people WHERE id = 2) WHERE id = 1', '42501',
	user => 'of_both');
gives($node, "UPDATE people SET id = 4, name = 'Ewa' WHERE id = 3 RETURNING id", '4', 'a row without a value is anybody\'s to move', user => 'of_none');
value($node, "UPDATE people SET id = 3, name = 'Eve' WHERE id = 4");
foreach my $role ('of_reencrypt', 'of_both')
{
	gives($node, 'UPDATE people SET id = 100 WHERE id = 1 RETURNING id', '100', "$role takes a value along", user => $role);
	gives($node, $people, $as_made =~ s/^(1 .*?), (.*)$/"$2, " . ($1 =~ s{^1 }{100 }r)/er, '  which opens there');
	gives($node, 'UPDATE people SET id = 1 WHERE id = 100 RETURNING id', '1', '  and back', user => $role);
	gives($node, $people, $as_made, '  as before');
}
gives($node, q{BEGIN; ALTER TABLE people DROP CONSTRAINT people_pkey, ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED;
	UPDATE people SET id = 3 - id WHERE id < 3; SELECT fieldcrypt.decrypt_field(ssn, 'public.people.ssn/1') FROM people WHERE id = 1; ROLLBACK},
	'ssn-2', 'who may swaps whole people in one statement');
value($node, 'GRANT ALL ON people TO PUBLIC');
attack('a role without encrypt writes plaintext', "UPDATE people SET ssn = 'x' WHERE id = 1", '42501', user => "of_$_") foreach qw(decrypt reencrypt none);
attack('a role without encrypt copies', 'UPDATE people SET ssn = ssn_of(1) WHERE id = 2', 'KF037', user => "of_$_") foreach qw(decrypt reencrypt none);
attack('loosen by a role with one right', "UPDATE people SET ssn = fieldcrypt.loosen(ssn_of(1), 'public.people.ssn/1') WHERE id = 2", '42501',
	user => "of_$_") foreach @privileges;
gives($node, "UPDATE people SET ssn = fieldcrypt.loosen(ssn_of(1), 'public.people.ssn/1') WHERE id = 2;
	SELECT fieldcrypt.decrypt_field(ssn, 'public.people.ssn/2') FROM people WHERE id = 2",
	'ssn-1', 'who may decrypt and encrypt copies with loosen', user => 'of_both');
attack('loosen with another place', "UPDATE people SET ssn = fieldcrypt.loosen(ssn_of(1), 'public.people.ssn/2') WHERE id = 2", 'KF037', user => 'of_both');
restore();

# SECURITY DEFINER: the rights are the function's; SET ROLE in the middle of a transaction: those of who is there then.
value($node, <<'SQL');
CREATE FUNCTION renumber(bigint, bigint) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'UPDATE people SET id = $2 WHERE id = $1';
CREATE FUNCTION given(bigint, text) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'UPDATE people SET ssn = $2 WHERE id = $1';
ALTER FUNCTION renumber OWNER TO of_reencrypt; ALTER FUNCTION given OWNER TO of_encrypt;
SQL
gives($node, 'SELECT renumber(1, 100); SELECT renumber(100, 1); SELECT id FROM people WHERE id = 1', "\n\n1",
	'a SECURITY DEFINER function moves a row with its owner\'s right', user => 'of_none');
gives($node, "SELECT given(1, 'ssn-1')", '', 'and one writes plaintext', user => 'of_none');
gives($node, $people, $as_made, '  as before');
{
	my $session = session($node);
	$session->value(q{BEGIN; SET ROLE of_encrypt; UPDATE people SET ssn = 'ssn-1' WHERE id = 1; PREPARE w AS UPDATE people SET ssn = 'ssn-1' WHERE id = 1;
		EXECUTE w});
	$session->refused('SAVEPOINT a; SET ROLE of_none; EXECUTE w', '42501', 'SET ROLE to one without the right: a prepared statement is refused');
	$session->refused('ROLLBACK TO a; SET ROLE of_decrypt; UPDATE people SET id = 50 WHERE id = 1', '42501', '  and so is a new key');
	$session->gives('ROLLBACK TO a; SET ROLE of_encrypt; EXECUTE w; COMMIT; RESET ROLE', '', '  and with the right it goes on');
	$session->close;
}
gives($node, $people, $as_made, '  as before');

# Users' triggers. Those before ours may make a plaintext; none may take another row's value, and what one behind ours does is
# seen by the constraint.
my @triggers = (
	[ 'another row\'s value', 'NEW.ssn := ssn_of(1)', 'KF037', '23514' ],
	[ 'another row\'s value, as its plaintext was brought', q{IF TG_OP = 'UPDATE' THEN NEW.ssn := ssn_of(1); END IF}, 'KF037', '23514' ],
	[ 'its own value in another column', 'NEW.phone := NEW.ssn', '', '23514' ],
	[ 'plaintext', q{NEW.ssn := 'by trigger'}, '', '23514' ],
	[ 'another key', 'NEW.id := NEW.id + 1000', '', '23514' ],
	[ 'a value of encrypt_field', q{NEW.ssn := fieldcrypt.encrypt_field('x')}, 'KF037', '23514' ]);
foreach my $trigger (@triggers)
{
	my ($name, $body, $before, $behind) = @$trigger;
	value($node, "CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN $body; RETURN NEW; END \$\$");
	foreach my $sorts ([ '"Zz"', 'before', $before ], [ '"~g"', 'behind', $behind ], [ "\"\x{c3}\x{a9}\"", 'behind, not ASCII', $behind ])
	{
		my ($called, $where, $sqlstate) = @$sorts;
		value($node, "CREATE TRIGGER $called BEFORE INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION meddle()");
		foreach my $statement (
			[ 'UPDATE', q{UPDATE people SET ssn = 'mine', phone = 'mine' WHERE id = 2} ],
			[ 'INSERT', q{INSERT INTO people VALUES (60, 'x', 'mine', 'mine')} ],
			[ 'an upsert', q{INSERT INTO people VALUES (2, 'x', 'mine', 'mine') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, phone = excluded.phone} ])
		{
			my ($kind, $sql) = @$statement;
			next if $body =~ /TG_OP/ && $kind eq 'INSERT';
			# EXCLUDED is bound to its column already.
			my $code = $kind eq 'an upsert' && $body =~ /NEW.phone := NEW.ssn/ && !$sqlstate ? 'KF037' : $sqlstate;
			if ($code)
			{
				attack("$kind, a trigger $where ours that sets $name", $sql, $code);
				next;
			}
			# It is as if the statement had said it: everything opens where it is.
			my $opened = q{; SELECT bool_and(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id)) IN ('mine', 'by trigger', 'ssn-1', 'ssn-2')
			    AND fieldcrypt.decrypt_field(phone, fieldcrypt.context('public.people.phone', id)) IN ('mine', 'phone-1',
				'phone-2')) FROM people WHERE id <> 3; ROLLBACK};
			gives($node, "BEGIN; $sql$opened", 't', "$kind, a trigger $where ours that sets $name");
		}
		value($node, "DROP TRIGGER $called ON people");
	}
}
value($node, 'DROP FUNCTION meddle');

# Without our trigger the constraint refuses what it would have bound, also where a session says that it replicates.
attack('plaintext, without our trigger', "SET session_replication_role = replica; UPDATE people SET ssn = 'x' WHERE id = 1", '23514');
attack('a new key, without our trigger', 'SET session_replication_role = replica; UPDATE people SET id = 50 WHERE id = 1', '23514');
attack('a disabled trigger', q{BEGIN; ALTER TABLE people DISABLE TRIGGER "~fieldcrypt_bind_values"; UPDATE people SET ssn = 'x' WHERE id = 1; COMMIT}, '23514');
refused($node, 'CREATE TRIGGER t BEFORE INSERT ON held FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.bind_values()', '42501',
	'nobody attaches the trigger by hand', user => 'of_both');

# What flipped, or is of a form that it is not.
attack('a flipped bit of the place', 'UPDATE people SET ssn = set_byte(ssn::bytea, 35, get_byte(ssn::bytea, 35) # 1)::fieldcrypt.encrypted WHERE id = 1',
	'KF037');
attack('a flipped form', 'UPDATE people SET ssn = set_byte(ssn::bytea, 26, 4)::fieldcrypt.encrypted WHERE id = 1', 'KF037');
attack('a form that there is not', 'UPDATE people SET ssn = set_byte(ssn::bytea, 26, 99)::fieldcrypt.encrypted WHERE id = 1', 'KF001');
attack('said to be loose', 'UPDATE people SET ssn = set_byte(ssn::bytea, 26, 129)::fieldcrypt.encrypted WHERE id = 1', 'KF002');
attack('a loose value that says it is bound',
	q{UPDATE people SET ssn = set_byte('x'::fieldcrypt.encrypted_text::bytea, 26, 1)::fieldcrypt.encrypted WHERE id = 1}, 'KF037');
# Header and place are public: a value made of another's body is taken, as what is tampered in a file would be, and opens nowhere.
gives($node, q{BEGIN; UPDATE people AS p SET ssn = (substr(p.ssn::bytea, 1, 43) || substr(o.ssn::bytea, 44))::fieldcrypt.encrypted
	FROM people AS o WHERE p.id = 1 AND o.id = 2;
SELECT fieldcrypt.try_decrypt_field(ssn, 'public.people.ssn/1') IS NULL FROM people WHERE id = 1; ROLLBACK}, 't',
	'another row\'s body behind an own header opens nowhere');

# What this session has sealed just now is bound without opening it: only what is the same to the last byte.
foreach my $byte (2, 10, 26, 27, 31, 35, 43, 50, 58)
{
	# Key, nonce, form, database, process, time, body, tag.
	my ($flipped) = q{set_byte(fresh::bytea, %1$d, get_byte(fresh::bytea, %1$d) # 1)::fieldcrypt.encrypted} =~ s/%1\$d/$byte/gr;
	my $result = run_sql($node, "SET fieldcrypt.tenant = 'default'; UPDATE people SET ssn = $flipped FROM (SELECT 'a plaintext of today'::text::fieldcrypt.encrypted_text AS fresh OFFSET 0) AS f WHERE id = 1");
	like("@{ $result->{sqlstates} }", qr/^KF0(01|02|03|37|38)$/, "a flipped bit in byte $byte of a value that was sealed just now");
}
gives($node, q{BEGIN;
CREATE TEMP TABLE fresh AS SELECT n, repeat(chr(96 + n), CASE WHEN n = 12 THEN 5000 ELSE n * 30 END)::fieldcrypt.encrypted_text AS v FROM generate_series(1, 12) AS n;
SELECT count(*) FROM fresh AS f, LATERAL (SELECT f.v::bytea) AS b (bytes) WHERE position(convert_to(repeat(chr(96 + n), 8), 'UTF8') IN bytes) > 0;
UPDATE people SET ssn = (SELECT v FROM fresh WHERE n = 12), phone = (SELECT v FROM fresh WHERE n = 1) WHERE id = 1;
UPDATE people SET ssn = (SELECT v FROM fresh WHERE n = 3), phone = (SELECT v FROM fresh WHERE n = 3) WHERE id = 2;
SELECT string_agg(left(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id)), 1) || length(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.people.ssn', id)))
	|| left(fieldcrypt.decrypt_field(phone, fieldcrypt.context('public.people.phone', id)), 1) || length(fieldcrypt.decrypt_field(phone, fieldcrypt.context('public.people.phone', id))), ' ' ORDER BY id)
  FROM people WHERE id < 3; ROLLBACK}, "0\nl5000a30 c90c90", 'more values than are kept, a long one, and one that is written twice');

gives($node, $people, $as_made, 'after all of it');
ok(eventually($node, "SELECT count(*) > 10 FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed' AND error_code = 'KF037'", 't'),
	'what was refused is in the audit log');
# The swap one table up: a foreign key's action runs with the rights of the table's owner. Who changes the key it follows counts.
value($node, <<'SQL');
CREATE ROLE follower LOGIN; CREATE ROLE mallory LOGIN; CREATE ROLE registrar LOGIN;
SELECT fieldcrypt.grant_access('follower', 'encrypt'), fieldcrypt.grant_access('registrar', 'reencrypt');
CREATE TABLE person (id integer PRIMARY KEY, name text);
CREATE TABLE secret (id integer PRIMARY KEY REFERENCES person ON UPDATE CASCADE, ssn fieldcrypt.encrypted_text);
ALTER TABLE person OWNER TO follower; ALTER TABLE secret OWNER TO follower;
GRANT SELECT, UPDATE ON person TO mallory, registrar;
INSERT INTO person VALUES (1, 'a'), (2, 'b');
SQL
value($node, q{SELECT fieldcrypt.protect_column('secret', 'ssn'); INSERT INTO secret VALUES (1, 'one'), (2, 'two')}, user => 'follower');
refused($node, 'UPDATE person SET id = -1 WHERE id = 1', '42501', 'a key that a foreign key follows is not changed by who may not move values', user => 'mallory');
gives($node, 'UPDATE person SET id = 3 WHERE id = 1', '', 'it is by who may, whatever the owner may', user => 'registrar');
gives($node, q{SELECT string_agg(id || '=' || fieldcrypt.decrypt_field(ssn, fieldcrypt.context('public.secret.ssn', id)), ',' ORDER BY id) FROM secret}, '2=two,3=one',
	'and the value is taken along');
# A domain is its base type.
value($node, 'CREATE DOMAIN label AS text CHECK (length(value) < 9); CREATE TABLE labelled (id integer PRIMARY KEY, v fieldcrypt.encrypted_text)');
value($node, q{SELECT fieldcrypt.protect_column('labelled', 'v'); INSERT INTO labelled SELECT 1, 'x'::label});
gives($node, q{SELECT fieldcrypt.decrypt_field(v, fieldcrypt.context('public.labelled.v', id)) FROM labelled}, 'x', 'a value of a domain over text');
# The trigger by hand.
value($node, 'CREATE TRIGGER hand BEFORE INSERT ON labelled FOR EACH STATEMENT EXECUTE FUNCTION fieldcrypt_internal.bind_values()');
refused($node, q{INSERT INTO labelled VALUES (2, 'y')}, '39P01', qr/protect_column makes only/, 'a trigger of the statement');
value($node, 'DROP TRIGGER hand ON labelled');

no_crash($node);
done_testing();
