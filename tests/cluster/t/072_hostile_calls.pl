# The steps behind the procedures, called by who may manage with odd arguments in an odd order; and all
# procedures under a search_path with planted operators, functions and types.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ],
	conf => "fieldcrypt.require_approval = ''\n");
value($node, <<'SQL');
CREATE ROLE manager LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
CREATE TABLE notes (id int PRIMARY KEY, sealed fieldcrypt.encrypted);
INSERT INTO notes SELECT n, fieldcrypt.encrypt_field('note ' || n, '', 't' || n % 3) FROM generate_series(1, 100) AS n;
SQL
my $intact = q{SELECT count(*) FROM notes WHERE fieldcrypt.decrypt_field(sealed) = 'note ' || id};

note 'odd arguments';
{
	my $functions = value($node, <<'SQL');
SELECT string_agg(f.oid::text, ' ')
  FROM pg_proc AS f
 WHERE f.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND f.prokind = 'f' AND f.prorettype <> 'trigger'::regtype
   AND has_function_privilege('manager', f.oid, 'EXECUTE');
SQL
	my %odd = (
		int2 => [ 'NULL', '-32768' ], int4 => [ 'NULL', '-1', '0', '2147483647' ],
		int8 => [ 'NULL', '-1', '0', '9223372036854775807' ],
		text => [ 'NULL', q{''}, q{'x'}, q{repeat('x', 5000)}, q{'{}'} ],
		bool => [ 'NULL', 'true' ], bytea => [ 'NULL', q{''}, q{'\\xdeadbeef'}, q{decode(repeat('00', 16), 'hex')} ],
		interval => [ 'NULL', q{'-1000 years'}, q{'100000000 years'}, q{'0'} ],
		timestamptz => [ 'NULL', q{'infinity'}, q{'-infinity'} ],
		_int8 => [ 'NULL', q{'{}'}, q{'{NULL,-1,0}'} ], _oid => [ 'NULL', q{'{}'}, q{'{0,1259,NULL}'} ],
		oid => [ 'NULL', '0', '1259', '4294967295' ], regclass => [ 'NULL', '0', q{'pg_class'}, '4294967295' ],
		name => [ 'NULL', q{''}, q{'x'} ], encrypted => ['NULL']);
	my (@calls, %seen);
	foreach my $oid (split / /, $functions)
	{
		my ($name, $types) = split /\|/, value($node, <<"SQL");
SELECT f.pronamespace::regnamespace || '.' || f.proname, coalesce((SELECT string_agg(t.typname, ' ' ORDER BY u.place) FROM unnest(f.proargtypes) WITH ORDINALITY AS u(oid, place) JOIN pg_type AS t ON t.oid = u.oid), '')
  FROM pg_proc AS f WHERE f.oid = $oid
SQL
		my @types = split / /, $types // '';
		for my $round (0 .. 11)
		{
			my $place = 0;
			my @arguments = map {
				my $choice = $odd{$_} // ['NULL'];
				my $one = $choice->[ ($round * (1 + $place++ % 2) + ($round > 5 ? $place : 0)) % @$choice ];
				"$one\::pg_catalog.$_" =~ s/pg_catalog\.encrypted/fieldcrypt.encrypted/r
			} @types;
			my $call = "SELECT count(*) FROM (SELECT $name(" . join(', ', @arguments) . ')) AS c';
			push @calls, $call unless $seen{$call}++;
		}
	}
	cmp_ok(scalar @calls, '>', 100, 'many calls: ' . @calls);
	my @outcomes = outcomes($node, \@calls, user => 'manager');
	my @bad = grep { $outcomes[$_] =~ /^(?:XX|58|53)/ } 0 .. $#calls;
	is(join("\n", map { "$calls[$_]: $outcomes[$_]" } @bad), '', 'none gives an internal error');
	is(value($node, $intact), 100, 'every value opens');
}

note 'planted operators';
{
	value($node, <<'SQL');
CREATE SCHEMA evil;
DO $do$
DECLARE
    op record;
    number int := 0;
BEGIN
    -- Operators of pg_catalog over the same types are found first in a path that begins with this schema.
    FOR op IN
        SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result
          FROM pg_operator AS o
         WHERE o.oprleft::regtype::text IN ('text', 'bigint', 'integer', 'oid', 'bytea', 'interval', 'jsonb', 'json', 'timestamp with time zone', 'boolean', 'name', 'double precision', 'numeric')
           AND o.oprright <> 0 AND o.oprright::regtype::text !~ '^any'
           AND o.oprleft::regtype::text !~ '^any' AND o.oprcode <> 0
    LOOP
        number := number + 1;
        EXECUTE format('CREATE FUNCTION evil.planted_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION USING ERRCODE = ''EVIL1'', MESSAGE = %L; END $f$',
            number, op.l, op.r, op.result, 'planted: ' || op.oprname || ' of ' || op.l || ' and ' || op.r);
        EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.planted_%s)', op.oprname, op.l, op.r, number);
    END LOOP;
    FOR op IN
        SELECT DISTINCT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments
          FROM pg_proc AS p
         WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
           AND p.proname IN ('format', 'coalesce', 'now', 'clock_timestamp', 'set_config', 'pg_sleep', 'left', 'cardinality', 'jsonb_agg', 'concat_ws', 'greatest', 'decode', 'encode', 'make_interval', 'json_array_elements')
           AND p.provariadic = 0 AND p.proargmodes IS NULL AND pg_get_function_identity_arguments(p.oid) !~ 'any|internal'
    LOOP
        EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION USING ERRCODE = ''EVIL1'', MESSAGE = %L; END $f$',
            op.proname, op.arguments, 'planted: ' || op.proname);
    END LOOP;
END $do$;
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (false);
CREATE DOMAIN evil.int8 AS pg_catalog.int8 CHECK (false);
CREATE DOMAIN evil.bool AS pg_catalog.bool CHECK (false);
SQL
	my $path = 'SET search_path = evil, pg_catalog; ';
	refused($node, $path . q{SELECT 'a'::pg_catalog.text = 'a'::pg_catalog.text}, 'EVIL1', qr/planted: =/, 'the plant works');
	value($node, q{CREATE TABLE public.vault (document text)});
	my $vault = 'public.vault';
	foreach my $call (
		q{CALL fieldcrypt.rotate_keys(NULL, 'x', true)},
		q{CALL fieldcrypt.rotate_keys('t0', 'x', true)},
		q{CALL fieldcrypt.reencrypt(NULL, 10, 100000, 100000000, '1 ms')},
		q{SELECT fieldcrypt.encrypt_field('x', '', 'tenant of the evil path')},
		q{SELECT fieldcrypt.create_key('another')},
		q{SELECT fieldcrypt.mark_compromised(key_id, 'x') FROM fieldcrypt.encryption_keys WHERE tenant OPERATOR(pg_catalog.=) 't1' AND state OPERATOR(pg_catalog.=) 'active'},
		q{SELECT fieldcrypt.suspend_key(key_id, 'x'), fieldcrypt.resume_key(key_id, 'x') FROM fieldcrypt.encryption_keys WHERE tenant OPERATOR(pg_catalog.=) 't2' AND state OPERATOR(pg_catalog.=) 'active'},
		q{SELECT fieldcrypt.set_rotation_policy('t1', '30 days')},
		q{SELECT fieldcrypt.set_column_context('public.notes', 'sealed', 'x'), fieldcrypt.set_column_context('public.notes', 'sealed')},
		q{CALL fieldcrypt.reencrypt('public.notes', 10, 0)},
		q{SELECT * FROM fieldcrypt.retire_keys(1)},
		q{CALL fieldcrypt.destroy_due_keys()},
		q{SELECT * FROM fieldcrypt.key_usage(true)}, q{SELECT * FROM fieldcrypt.key_usage()},
		q{SELECT * FROM fieldcrypt.reencryption_progress}, q{SELECT * FROM fieldcrypt.master_key_status()},
		qq{INSERT INTO $vault SELECT fieldcrypt.export_keys()},
		qq{SELECT fieldcrypt.import_keys(document, true) FROM $vault},
		qq{SELECT * FROM $vault, fieldcrypt.key_states_status(document)},
		q{SELECT fieldcrypt.confirm_key_states('x')}, q{SELECT * FROM fieldcrypt.verify_keys()},
		q{SELECT fieldcrypt.withdraw_approval(fieldcrypt.request_approval('shred_tenant', 't2', 'x'))},
		q{CALL fieldcrypt.shred_tenant('another', 'x')})
	{
		is("@{ run_sql($node, $path . $call)->{sqlstates} }", '', "a planted operator is not called: $call");
	}
	write_key_file($node->basedir . '/master.key', key_text(2), key_text(1));
	$node->reload;
	is("@{ run_sql($node, $path . 'CALL fieldcrypt.rotate_master_key()')->{sqlstates} }", '', 'nor by rotate_master_key');
	is(value($node, $intact), 100, 'every value opens');
}

no_crash($node);
done_testing();
