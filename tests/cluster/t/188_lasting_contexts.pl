# A context that can be declared is the same for its row for ever, and can be computed: what goes by system columns, whole
# rows, encrypted columns or the catalogs is refused, and so is what fails or is NULL whatever the row.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary');
value($node, <<'SQL');
CREATE TYPE mood AS ENUM ('a', 'b');
CREATE TYPE labelled AS (label text, value fieldcrypt.encrypted);
CREATE DOMAIN secret AS fieldcrypt.encrypted;
CREATE DOMAIN relation AS regclass;
CREATE DOMAIN word AS text;
CREATE FUNCTION inlined(oid) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'c/' || $1::text$$;
CREATE TABLE tt (id bigint PRIMARY KEY, name word, m mood, w float8, r regclass, rs regclass[], rd relation, o oid, x labelled, d secret, a fieldcrypt.encrypted[], v fieldcrypt.encrypted,
	place text GENERATED ALWAYS AS (tableoid::text || '/' || id) STORED, copied bytea GENERATED ALWAYS AS (v::bytea) STORED,
	own text GENERATED ALWAYS AS (fieldcrypt.context('tt.v', id)) STORED);
SQL

sub set
{
	my ($expression, $column, $enforce) = @_;
	return "SELECT fieldcrypt.set_column_context('tt', '$column', expression => \$ctx\$$expression\$ctx\$, enforce => $enforce)";
}

# Each was taken once, even to be enforced.
foreach my $case (
	[ q{fieldcrypt.context('tt', tableoid::bigint, id)}, '42P17', qr/system column/ ],
	[ q{'c/' || tableoid::text || id}, '42P17', qr/system column/ ],
	[ q{'c/' || ctid::text}, '42P10', qr/system column/ ],
	[ q{'c/' || xmin::text || id}, '42P10', qr/system column/ ],
	[ q{'c/' || xmax::text}, '42P10', qr/system column/ ],
	[ q{'c/' || cmin::text}, '42P10', qr/system column/ ],
	[ q{'c/' || cmax::text}, '42P10', qr/system column/ ],
	[ q{CASE WHEN id > 0 THEN tt.tableoid::text END}, '42P17', qr/system column/ ],
	[ q{public.inlined(tableoid)}, '42P17', qr/system column/ ],
	[ q{'c/' || tableoid::regclass::text}, '42P17', qr/name or number|system column/ ],
	[ q{place}, '42P17', qr/system column/ ],
	[ q{'c/' || tt::text}, '42P17', qr/whole row/ ],
	[ q{row_to_json(tt)::text}, '42P17', qr/whole row/ ],
	[ q{md5(row(tt.*)::text)}, '42P17', qr/goes by/ ],
	[ q{'c/' || ('public.tt'::regclass::oid)::text || id}, '42P17', qr/name or number/ ],
	[ q{fieldcrypt.context('tt', 'public.tt'::regclass::oid::bigint, id)}, '42P17', qr/name or number/ ],
	[ q{fieldcrypt.context('tt', 'pg_monitor'::regrole::oid::bigint, id)}, '42P17', qr/name or number/ ],
	[ q{fieldcrypt.context('tt', r::oid::bigint, id)}, '42P17', qr/name or number/ ],
	[ q{'c/' || r::text}, '42P17', qr/name or number/ ],
	[ q{'c/' || rs::text}, '42P17', qr/name or number/ ],
	[ q{'c/' || rd::oid::text}, '42P17', qr/name or number/ ],
	[ q{'c/' || ('{public.tt}'::regclass[]::oid[])::text || id}, '42P17', qr/name or number/ ],
	[ q{'c/' || pg_typeof(id)::text || id}, '42P17', qr/name or number/ ],
	[ q{md5(v::bytea)}, '42P17', qr/encrypted column/ ],
	[ q{md5(d::bytea)}, '42P17', qr/encrypted column/ ],
	[ q{a::text}, '42P17', qr/encrypted column/ ],
	[ q{x::text}, '42P17', qr/encrypted column/ ],
	[ q{md5((x).value::bytea)}, '42P17', qr/encrypted column/ ],
	[ q{md5(copied)}, '42P17', qr/encrypted column/ ],
	[ q{fieldcrypt.context('tt', v)}, '42804', qr/type fieldcrypt\.encrypted/ ],
	[ q{fieldcrypt.context('tt', m)}, '42804', qr/type public\.mood/ ],
	[ q{fieldcrypt.context('tt', id, m)}, '42804', qr/type public\.mood/ ],
	[ q{fieldcrypt.context('tt', w)}, '42804', qr/type double/ ],
	[ q{fieldcrypt.context('tt', o)}, '42804', qr/type oid/ ],
	[ q{fieldcrypt.context('tt', tt)}, '42804', qr/type public\.tt/ ],
	[ q{'x' || fieldcrypt.context('tt', tt.*)}, '42804', qr/type public\.tt/ ],
	[ q{fieldcrypt.context('tt', ARRAY[id])}, '42804', qr/type bigint\[\]/ ],
	[ q{fieldcrypt.context(VARIADIC ARRAY[name, own])}, '42804', qr/one by one/ ],
	[ q{fieldcrypt.context('tt', id, NULL)}, '22004', qr/NULL/ ],
	[ q{fieldcrypt.context(id, name)}, '22023', qr/name/ ],
	[ q{fieldcrypt.context('', id)}, '22023', qr/name/ ],
	[ q{NULL}, '42P17', qr/is NULL/ ],
	[ q{NULL::text || id}, '42P17', qr/is NULL/ ],
	[ q{CASE WHEN false THEN 'c' END}, '42P17', qr/is NULL/ ])
{
	my ($expression, $sqlstate, $says) = @$case;
	refused($node, set($expression, 'v', $_), $sqlstate, $says, "refused: $expression, enforce => $_") foreach 'false', 'true';
}
gives($node, 'SELECT count(*) FROM fieldcrypt.column_contexts', '0', 'nothing of it is remembered');

# What lasts is taken, and computed.
foreach my $expression (q{fieldcrypt.context('tt', id)}, q{fieldcrypt.context('tt', name, id)}, q{fieldcrypt.context(name, id)}, q{'c/' || id}, q{'c/' || o::text}, 'own',
	q{'c/' || coalesce((x).label, '-') || id}, q{fieldcrypt.context('tt', coalesce(o, 0::oid)::bigint, id)}, q{(tt).id::text}, q{CASE WHEN id > 0 THEN 'c' ELSE 'd' END})
{
	gives($node, set($expression, 'v', 'true'), '', "taken: $expression");
	value($node, "INSERT INTO tt (id, name, m, o, v) SELECT 1, 'n', 'a', 7, fieldcrypt.encrypt_field('x', $expression) FROM (SELECT 1::bigint AS id, 'n'::word AS name, 'a'::mood AS m, 7::oid AS o, NULL::labelled AS x, 'tt.v/1' AS own) AS tt");
	value($node, 'DELETE FROM tt');
}

no_crash($node);
done_testing();
