# Every C function of the extension: what its SQL declaration says is what the library takes its arguments and
# its result for. A datum of another type would be read as what it is not. And each door is found where it is
# declared: in the file of src/api that has the name of its file in sql/.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my ($sources, $statements) = ("$ENV{TESTDIR}/api", "$ENV{TESTDIR}/sql");

# symbol => [arguments, result, file], as src/api says it
my %doors;
for my $file (glob "$sources/*.rs") {
    my ($name) = $file =~ m{([^/]+)\.rs$};
    my $text = join '', map { s{//.*}{}r } read_lines($file);
    for my $block ($text =~ /sql_functions! \{(.*?)\n\}/sg) {
        for my $door (grep { /\S/ } split /;/, $block) {
            if ($door =~ /^\s*(trigger|event_trigger) (\w+)\s*$/) {
                $doors{"fieldcrypt_$2"} = ['', $1, $name];
                next;
            }
            $door =~ /^\s*(set )?(\w+)\((.*?)\)(?:\s*->\s*(\w+))?(?:\s*=\s*[\w:]+)?\s*$/s
                or BAIL_OUT("$name: a door that this test can't read: $door");
            my ($set, $function, $arguments, $result) = ($1, $2, $3, $4);
            my @types = map { /:\s*(\w+)!?\s*$/ ? $1 : BAIL_OUT("$name: $function: $_") } split /,/, $arguments;
            $doors{"fieldcrypt_$function"} = [join(' ', map { sql_type($_) } @types),
                $set ? 'SETOF text' : sql_type($result), $name];
        }
    }
}
cmp_ok(scalar keys %doors, '>', 70, 'the doors of src/api are read');

my $node = new_cluster('primary');

my %declared;
for my $row (split /\n/, value($node, <<'SQL')) {
SELECT p.prosrc || '|' || coalesce((
            SELECT string_agg(replace(format_type(a.type, NULL), ' ', '_'), ' ' ORDER BY a.place)
              FROM unnest(p.proargtypes) WITH ORDINALITY AS a(type, place)), '') || '|'
       || CASE WHEN p.proretset THEN 'SETOF ' ELSE '' END || replace(format_type(p.prorettype, NULL), ' ', '_')
  FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
 WHERE l.lanname = 'c' AND p.probin LIKE '%pg_fieldcrypt%'
SQL
    my ($symbol, $arguments, $result) = split /\|/, $row, -1;
    is($declared{$symbol}, undef, "$symbol is declared once");
    $declared{$symbol} = [$arguments, $result];
}

is_deeply([sort keys %declared], [sort keys %doors], 'every function has a door, and every door a function');
for my $symbol (sort keys %declared) {
    next if !$doors{$symbol};
    is("($declared{$symbol}[0]) -> $declared{$symbol}[1]", "($doors{$symbol}[0]) -> $doors{$symbol}[1]",
        "$symbol: the types of sql/ are those of src/api");
}

for my $file (glob "$statements/*.sql") {
    my ($name) = $file =~ m{([^/]+)\.sql$};
    for my $symbol (join('', read_lines($file)) =~ /'MODULE_PATHNAME', '(\w+)'/g) {
        is($doors{$symbol}[2], $name, "$symbol is in src/api/$name.rs");
    }
}

# A trigger function that is called as another one says so, and reads nothing.
for my $symbol (sort grep { $doors{$_}[1] =~ /trigger/ } keys %doors) {
    my $name = value($node, "SELECT oid::regproc FROM pg_proc WHERE prosrc = '$symbol'");
    my ($status, undef, $error) = $node->psql('postgres', "SELECT $name()");
    isnt($status, 0, "$name() is refused outside of a trigger");
    like($error, qr/trigger functions can only be called as triggers|called by triggers only/, "$name() says why");
}

done_testing();

sub sql_type {
    my ($type) = @_;
    my %names = (words => 'text', encrypted => 'fieldcrypt.encrypted', key_id => 'bigint', timestamptz => 'timestamp_with_time_zone',
        planner_request => 'internal', any_encrypted => 'fieldcrypt_internal.any_encrypted',
        encrypted_text => 'fieldcrypt.encrypted_text', encrypted_header => 'fieldcrypt.encrypted_text', texts => 'text[]',
        input_text => 'cstring', internal_text => 'internal', any_value => 'anyelement', any => '"any"', anything => '"any"');
    return $names{$type} // $type;
}

sub read_lines {
    my ($file) = @_;
    open my $in, '<', $file or BAIL_OUT("$file: $!");
    return <$in>;
}
