# Encrypting and decrypting at the edges: first keys made by roles without rights, where none can be
# made, other tenants, NULLs, what try_decrypt_field hides, and conversions that never show the value.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
my $canary = 'Quetzal-7731';

value($node, <<'SQL');
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt');
CREATE ROLE reader LOGIN;
SELECT fieldcrypt.grant_access('reader', 'decrypt');
CREATE TABLE kept (name text PRIMARY KEY, value fieldcrypt.encrypted);
GRANT SELECT, INSERT ON kept TO app, reader;
INSERT INTO kept VALUES ('one', fieldcrypt.encrypt_field('one', '', 'one')), ('two', fieldcrypt.encrypt_field('two', '', 'two')), ('default', fieldcrypt.encrypt_field('default'));
SQL

# A first key, made by who may only encrypt.
gives($node, q{INSERT INTO kept VALUES ('first', fieldcrypt.encrypt_field('first', '', 'first'))}, '', 'a role with encrypt alone makes a first key', user => 'app');
gives($node, q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE name = 'first'; SELECT event, actor, role FROM fieldcrypt.audit_log WHERE tenant = 'first'},
	"first\nkey_created|app|app", 'it is a key like any other, and in the log');
refused($node, q{SELECT * FROM fieldcrypt.encryption_keys}, '42501', 'which the role can\'t read', user => 'app');
gives($node, <<'SQL', 'app|app', 'the role is itself again afterwards, after an error as well', user => 'app');
DO $$ BEGIN
    PERFORM fieldcrypt.encrypt_field('x', '', 'another');
    BEGIN PERFORM fieldcrypt.encrypt_field('x', '', repeat('x', 1025)); EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN PERFORM fieldcrypt.encrypt_field('x', '', 'third'); RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END;
END $$;
SELECT current_user, session_user;
SQL
refused($node, q{SET lock_timeout = '50ms'; SELECT fieldcrypt.encrypt_field('x', '', 'fourth'); SELECT pg_read_file('postgresql.conf')}, '42501', 'nor has it kept the owner\'s rights', user => 'app');

# Where none can be made.
foreach my $case (
	[ 'READ ONLY transaction', 'BEGIN READ ONLY;', '' ],
	[ 'READ ONLY by default', 'SET default_transaction_read_only = on;', '' ],
	[ 'SERIALIZABLE READ ONLY DEFERRABLE', 'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;', '' ])
{
	my ($name, $begin) = @$case;
	foreach my $call (
		q{fieldcrypt.encrypt_field('x', '', 'not made')}, q{fieldcrypt.encrypt_field_bytea('x', '', 'not made')},
		q{fieldcrypt.encrypt_field_jsonb('1', '', 'not made')}, q{fieldcrypt.create_key('not made')})
	{
		refused($node, "$begin SELECT $call", 'KF013', qr/READ ONLY transaction can't make one.*HINT:.*create_key/s, "$name: $call");
	}
	gives($node, "$begin SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', '', 'one'))", 'x', "$name: an existing key encrypts");
}
value($node, <<'SQL');
CREATE FUNCTION encrypt_in_parallel(tenant text) RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS
$$BEGIN RETURN fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', $1)); END$$;
SQL
refused($node, force_parallel() . q{SELECT encrypt_in_parallel('not made')}, 'KF013', qr/parallel query can't make one/, 'a parallel worker makes none');
gives($node, force_parallel() . q{SELECT encrypt_in_parallel('one') > 0}, 't', 'but encrypts with an existing one');
# A worker that is the first to need the library, since the leader meets it only inside of a function: it
# has the settings of its session all the same.
value($node, <<'SQL');
CREATE FUNCTION decrypt_in_parallel(value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql STABLE PARALLEL SAFE AS
$$BEGIN RETURN fieldcrypt.decrypt_field($1); END$$;
SQL
gives($node, force_parallel() . q{SELECT decrypt_in_parallel(value) FROM kept WHERE name = 'one'}, 'one', 'a worker that loads the library has the master key');
refused($node, force_parallel() . q{SET fieldcrypt.tenant = 'two'; SELECT decrypt_in_parallel(value) FROM kept WHERE name = 'one'}, 'KF006', 'and the session\'s tenant');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant IN ('not made', 'third')}, '0', 'none was made');

# Tenants.
my @decrypting = (
	'fieldcrypt.decrypt_field(value)', 'fieldcrypt.decrypt_field_bytea(value)', 'fieldcrypt.decrypt_field_jsonb(value)',
	'fieldcrypt.decrypt_field_as(value, NULL::text)', 'fieldcrypt.try_decrypt_field(value)', 'fieldcrypt.reencrypt_field(value)');
foreach my $call (@decrypting)
{
	refused($node, "SET fieldcrypt.tenant = 'two'; SELECT $call FROM kept WHERE name = 'one'", 'KF006', "another tenant's value: $call");
	refused($node, "SET fieldcrypt.tenant = 'One'; SELECT $call FROM kept WHERE name = 'one'", 'KF006', "a tenant of another case: $call");
	refused($node, "SET fieldcrypt.tenant = 'default'; SELECT $call FROM kept WHERE name = 'one'", 'KF006', "the default tenant, set: $call");
	refused($node, "SELECT $call FROM kept WHERE name = 'one'", 'KF006', "in a session with the key in its cache: $call" ,
		env => { PGOPTIONS => '-c fieldcrypt.tenant=two' });
}
gives($node, q{SET fieldcrypt.tenant = 'one'; SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE name = 'one'; SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x'));
	RESET fieldcrypt.tenant; SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE name IN ('one', 'two') ORDER BY name; SET fieldcrypt.tenant = ''; SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE name = 'two'},
	"one\nx\none\ntwo\ntwo", 'the tenant set, unset and empty');
gives($node, q{SET fieldcrypt.tenant = 'one'; SELECT k.tenant FROM fieldcrypt.encryption_keys AS k WHERE key_id = fieldcrypt.key_id(fieldcrypt.encrypt_field('x')) OR key_id = fieldcrypt.key_id(fieldcrypt.encrypt_field('x', '', 'one'))},
	'one', 'the session\'s tenant, and the same that a call names');
foreach my $call (q{encrypt_field('x', '', 'two')}, q{encrypt_field('x', tenant => 'One')}, q{encrypt_field_bytea('x', 'c', 'default')}, q{encrypt_field_jsonb('1', tenant => 'a new one')})
{
	refused($node, "SET fieldcrypt.tenant = 'one'; SELECT fieldcrypt.$call", 'KF006', qr/would belong to another tenant/, "the session's tenant, and another that a call names: $call");
}
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant IN ('One', 'a new one')}, '0', 'none of those got a key');
gives($node, q{BEGIN; SET LOCAL fieldcrypt.tenant = 'two'; COMMIT; SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE name = 'one'}, 'one', 'SET LOCAL ends with its transaction');
gives($node, q{SELECT new_key_id > 0 FROM fieldcrypt_internal.rotate_active_key('one', NULL, false, NULL); SELECT tenant FROM fieldcrypt.encryption_keys WHERE key_id = (SELECT fieldcrypt.key_id(fieldcrypt.reencrypt_field(value)) FROM kept WHERE name = 'one') AND state = 'active'},
	"t\none", 'reencrypt_field keeps the tenant of the value\'s own key');

# NULLs: of a value, NULL; of anything that may be left out, an error.
my $value = q{(SELECT value FROM kept WHERE name = 'one')};
my @nulls = (
	[ 'encrypt_field', q{'x'}, 2 ], [ 'encrypt_field_bytea', q{'x'}, 2 ], [ 'encrypt_field_jsonb', q{'1'}, 2 ],
	[ 'decrypt_field', $value, 1 ], [ 'decrypt_field_bytea', $value, 1 ], [ 'decrypt_field_jsonb', $value, 1 ], [ 'try_decrypt_field', $value, 1 ], [ 'reencrypt_field', $value, 1 ],
	[ 'decrypt_field_as', "$value, type => NULL::text", 1 ]);
foreach my $case (@nulls)
{
	my ($function, $arguments, $optional) = @$case;
	(my $null = $arguments) =~ s/^(\(.*\)|'.')/NULL/;
	gives($node, "SELECT fieldcrypt.$function($null) IS NULL, fieldcrypt.$function($null, context => 'c') IS NULL", 't|t', "$function of NULL is NULL");
	refused($node, "SELECT fieldcrypt.$function($arguments, context => NULL)", '22004', qr/context must not be NULL.*HINT/s, "$function with a NULL context");
	refused($node, "SELECT fieldcrypt.$function($arguments, tenant => NULL)", '22004', qr/tenant must not be NULL.*HINT/s, "$function with a NULL tenant") if $optional == 2;
}
refused($node, 'SELECT fieldcrypt.create_key(NULL)', '22004', 'create_key(NULL)');
gives($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('')) = '', fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field_bytea('')) = '', fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb('null')) = 'null'},
	't|t|t', 'the empty string and JSON null are values');

# try_decrypt_field: NULL for damage, an error for what somebody can mend. 140_tampering has more of it.
value($node, <<'SQL');
SELECT fieldcrypt.create_key(t) FROM unnest('{suspended,destroyed,compromised,deactivated}'::text[]) AS t;
INSERT INTO kept SELECT t, fieldcrypt.encrypt_field(t, '', t) FROM unnest('{suspended,destroyed,compromised,deactivated}'::text[]) AS t;
INSERT INTO kept VALUES ('bytes', fieldcrypt.encrypt_field_bytea('\xff')), ('nul', fieldcrypt.encrypt_field_bytea('\x6100')), ('context', fieldcrypt.encrypt_field('x', 'context'));
SET session_replication_role = replica;
UPDATE fieldcrypt.encryption_keys SET state = tenant, wrapped_key = CASE tenant WHEN 'destroyed' THEN NULL ELSE wrapped_key END WHERE tenant IN ('suspended', 'destroyed', 'compromised', 'deactivated');
INSERT INTO kept SELECT 'unknown', overlay(value::bytea PLACING '\x0102030405060708' FROM 3)::fieldcrypt.encrypted FROM kept WHERE name = 'one';
SQL
foreach my $case (
	[ 'one', 'one', 'one' ], [ 'compromised', 'compromised', 'compromised' ], [ 'deactivated', 'deactivated', 'deactivated' ],
	[ 'destroyed', 'KF005', 'NULL' ], [ 'unknown', 'KF003', 'NULL' ], [ 'context', 'KF002', 'NULL' ],
	[ 'suspended', 'KF004', 'KF004' ], [ 'bytes', '22021', '22021' ], [ 'nul', '22021', '22021' ])
{
	my ($name, @expected) = @$case;
	foreach my $function (qw(decrypt_field try_decrypt_field))
	{
		my $expected = shift @expected;
		my $sql = "SELECT coalesce(fieldcrypt.$function(value), 'NULL') FROM kept WHERE name = '$name'";
		$expected =~ /^(KF|22)/ ? refused($node, $sql, $expected, "$function: $name") : gives($node, $sql, $expected, "$function: $name");
	}
}
refused($node, 'SELECT fieldcrypt.try_decrypt_field(value) FROM kept', '42501', 'try_decrypt_field: without the right', user => 'app');

# Conversions. Every type of the server, and some that raise the value themselves.
value($node, <<SQL);
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TYPE pair AS (a int, b date);
CREATE TYPE span AS RANGE (subtype = int);
CREATE DOMAIN short AS text CHECK (length(VALUE) < 5);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN pairs AS pair[] CHECK (VALUE IS NULL);
CREATE FUNCTION raises(value text, code text, level text) RETURNS boolean LANGUAGE plpgsql AS \$\$
BEGIN
    RAISE EXCEPTION USING MESSAGE = 'value ' || \$1, DETAIL = \$1, HINT = \$1, ERRCODE = \$2, COLUMN = \$1, TABLE = \$1, CONSTRAINT = \$1;
END \$\$;
CREATE FUNCTION divides(value text) RETURNS boolean LANGUAGE sql AS 'SELECT 1 / 0 = 1 FROM (SELECT \$1) AS x';
CREATE FUNCTION looks_up(value text) RETURNS boolean LANGUAGE plpgsql AS \$\$BEGIN EXECUTE 'SELECT ' || quote_literal(\$1) || '::int'; RETURN true; END\$\$;
CREATE DOMAIN raising AS text CHECK (VALUE IS NULL OR raises(VALUE, 'P0001', ''));
CREATE DOMAIN raising_unique AS text CHECK (VALUE IS NULL OR raises(VALUE, '23505', ''));
CREATE DOMAIN raising_internal AS text CHECK (VALUE IS NULL OR raises(VALUE, 'XX000', ''));
CREATE DOMAIN raising_canceled AS text CHECK (VALUE IS NULL OR raises(VALUE, '57014', ''));
CREATE DOMAIN raising_shutdown AS text CHECK (VALUE IS NULL OR raises(VALUE, '57P01', ''));
CREATE DOMAIN raising_memory AS text CHECK (VALUE IS NULL OR raises(VALUE, '53200', ''));
CREATE DOMAIN dividing AS text CHECK (VALUE IS NULL OR divides(VALUE));
CREATE DOMAIN looking_up AS text CHECK (VALUE IS NULL OR looks_up(VALUE));
INSERT INTO kept VALUES ('canary', fieldcrypt.encrypt_field('$canary')), ('brackets', fieldcrypt.encrypt_field('{"$canary', 'c')), ('json', fieldcrypt.encrypt_field('{"a": $canary'));
SQL
my $offset = -s $node->logfile;
foreach my $type (qw(date time timetz timestamp timestamptz interval smallint int bigint numeric real float8 money boolean uuid inet cidr macaddr macaddr8 json jsonb
	bit(3) point box path circle line lseg polygon int[] text[] date[] jsonb[] colour pair span positive short pairs raising raising_unique raising_internal raising_canceled raising_shutdown raising_memory dividing looking_up
	oid tid pg_lsn regclass regtype regproc regrole regnamespace regconfig int4range tsrange nummultirange pg_snapshot txid_snapshot kept fieldcrypt.encrypted fieldcrypt.encrypted[]))
{
	my $got = run_sql($node, "SELECT fieldcrypt.decrypt_field_as(value, NULL::$type) FROM kept WHERE name = 'canary'");
	# What tells of the system keeps its SQLSTATE, on which applications retry; its text it loses.
	my %of_the_system = (raising_canceled => '57014', raising_shutdown => '57P01', raising_memory => '53200');
	is("@{ $got->{sqlstates} }", $of_the_system{$type} // '22018', "decrypt_field_as $type: refused");
	unlike($got->{err}, qr/Quetzal/, "decrypt_field_as $type: the value is not in the message");
}
foreach my $name (qw(canary brackets json))
{
	my $context = $name eq 'brackets' ? q{, 'c'} : '';
	my $got = run_sql($node, "SELECT fieldcrypt.decrypt_field_jsonb(value$context) FROM kept WHERE name = '$name'");
	is("@{ $got->{sqlstates} }", '22018', "decrypt_field_jsonb $name: refused");
	unlike($got->{err}, qr/Quetzal/, "decrypt_field_jsonb $name: the value is not in the message");
}
ok(slurp_file($node->logfile, $offset) !~ /Quetzal/, 'nor in the log');
{
	# All of pg_type: a value of the type or the one error; never an internal error or a crash.
	my @types = split /\n/, value($node, <<'SQL');
SELECT format_type(t.oid, NULL) FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid
 WHERE t.typtype IN ('b', 'd', 'e', 'r', 'm', 'p') OR t.typtype = 'c' AND c.relkind IN ('c', 'r') ORDER BY 1
SQL
	my @outcomes = outcomes($node, [ map { "SELECT fieldcrypt.decrypt_field_as(value, NULL::$_) FROM kept WHERE name = 'canary'" } @types ]);
	cmp_ok(scalar @types, '>', 300, 'there are many types');
	my @wrong = grep { $outcomes[$_] !~ /^(00000|22018 the decrypted value is not valid for type |5\w+ (?:the conversion of a decrypted value was stopped|out of memory for the conversion of a decrypted value)|42846|0A000|42804|42883|42P)/ || $outcomes[$_] =~ /Quetzal/ } 0 .. $#types;
	is(join("\n", map { "$types[$_]: $outcomes[$_]" } @wrong), '', 'decrypt_field_as any type of the server: a value or an error that does not show it');
}
foreach my $case (
	[ 'date', '2000-02-29' ], [ 'int', '-42' ], [ 'numeric', '1.50' ], [ 'uuid', '6f9619ff-8b86-d011-b42d-00cf4fc964ff' ], [ 'inet', '10.0.0.1' ], [ 'colour', 'green' ],
	[ 'pair', '(1,2000-01-01)' ], [ 'pair[]', '{"(1,2000-01-01)",NULL}' ], [ 'int[]', '{1,NULL,3}' ], [ 'span', '[1,5)' ], [ 'positive', '7' ], [ 'short', 'abcd' ], [ 'jsonb', '{"a": [1, null]}' ], [ 'text', '' ], [ 'bytea', '\x00ff' ])
{
	my ($type, $text) = @$case;
	gives($node, "SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('$text', 'c'), NULL::$type, 'c') = '$text'::$type", 't', "decrypt_field_as $type");
}
gives($node, q{SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('1'), 2)}, '1', 'decrypt_field_as: the value of the type\'s argument does not matter');
refused($node, q{SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field('1'), NULL)}, '42804', 'decrypt_field_as: an untyped NULL');
# A cancel goes through a conversion as a cancel.
value($node, 'CREATE FUNCTION sleeps(text) RETURNS boolean LANGUAGE sql AS $$SELECT pg_sleep(30) IS NOT NULL$$; CREATE DOMAIN sleeping AS text CHECK (VALUE IS NULL OR sleeps(VALUE))');
refused($node, q{SET statement_timeout = '200ms'; SELECT fieldcrypt.decrypt_field_as(value, NULL::sleeping) FROM kept WHERE name = 'canary'}, '57014', 'a conversion that takes long can be cancelled');
# What failed to convert leaves the session as it was.
{
	my $session = session($node, user => 'reader');
	$session->value('BEGIN; SAVEPOINT a');
	$session->refused(q{SELECT fieldcrypt.decrypt_field_as(value, NULL::pair) FROM kept WHERE name = 'canary'}, '22018', 'a refused conversion in a savepoint');
	$session->gives(q{ROLLBACK TO a; SELECT fieldcrypt.decrypt_field(value), current_user FROM kept WHERE name = 'canary'}, "$canary|reader", 'and the session goes on');
	$session->gives(q{DO $$ BEGIN FOR i IN 1 .. 500 LOOP BEGIN PERFORM fieldcrypt.decrypt_field_as(value, NULL::date) FROM kept WHERE name = 'canary'; EXCEPTION WHEN SQLSTATE '22018' THEN NULL; END; END LOOP; END $$; SELECT 1}, '1', 'five hundred of them');
	$session->close;
}
ok(slurp_file($node->logfile) !~ /PANIC|terminated by signal/, 'no crash');
$node->stop;
done_testing();
