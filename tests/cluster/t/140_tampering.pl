# Tampering: whatever is changed in a value or in a key's row, there is the plaintext that was
# encrypted or an error with its SQLSTATE; never another value, never an internal error.

use strict;
use warnings;

use FieldcryptTest;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', keys => [ key_text(1), key_text(2) ]);

# A cast that only a superuser can make, to bring bytes of any form past the type's door.
value($node, <<'SQL');
CREATE FUNCTION outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
    EXECUTE format('SELECT CASE WHEN num_nulls(x) = 0 THEN concat(x) END FROM (%s) AS q (x)', $1) INTO result;
    RETURN coalesce('=' || result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END $$;
CREATE TYPE forged;
CREATE FUNCTION forged_in(cstring) RETURNS forged LANGUAGE internal IMMUTABLE STRICT AS 'byteain';
CREATE FUNCTION forged_out(forged) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'byteaout';
CREATE TYPE forged (INPUT = forged_in, OUTPUT = forged_out, LIKE = bytea);
CREATE CAST (bytea AS forged) WITHOUT FUNCTION;
CREATE CAST (forged AS fieldcrypt.encrypted) WITHOUT FUNCTION;

-- What each function makes of bytes that are in the place of a value: the same error, or NULL.
CREATE FUNCTION opened(value bytea, context text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    functions text[] := '{decrypt_field,decrypt_field_bytea,decrypt_field_jsonb,decrypt_field_as,reencrypt_field}';
    results text[];
    result text;
    function text;
BEGIN
    FOREACH function IN ARRAY functions LOOP
        result := outcome(format('SELECT fieldcrypt.%I(%L::bytea::forged::fieldcrypt.encrypted, %scontext => %L)',
            function, value, CASE function WHEN 'decrypt_field_as' THEN 'NULL::text, ' ELSE '' END, context));
        IF NOT result = ANY (coalesce(results, '{}')) THEN results := results || result; END IF;
    END LOOP;
    result := outcome(format('SELECT fieldcrypt.try_decrypt_field(%L::bytea::forged::fieldcrypt.encrypted, %L)', value, context));
    RETURN array_to_string(results, '/') || ' ' || result;
END $$;
-- What the doors say: cast, text input, and the header's readers behind them.
CREATE FUNCTION admitted(value bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    form text := 'fc1:' || rtrim(translate(encode(value, 'base64'), E'+/\n', '-_'), '=');
BEGIN
    RETURN concat_ws('/', left(outcome(format('SELECT %L::bytea::fieldcrypt.encrypted', value)), 5),
        left(outcome(format('SELECT %L::fieldcrypt.encrypted', form)), 5),
        left(outcome(format('SELECT fieldcrypt.key_id(%L::bytea::forged::fieldcrypt.encrypted)', value)), 1),
        left(outcome(format('SELECT fieldcrypt.ciphertext_info(%L::bytea::forged::fieldcrypt.encrypted)', value)), 1));
END $$;
CREATE TABLE samples AS
    SELECT name, context, fieldcrypt.encrypt_field(plaintext, context, tenant)::bytea AS value
      FROM (VALUES ('short', 'patients.ssn', '"123-45-6789"', 'one'), ('empty', '', '', 'one'),
                   ('other', 'patients.ssn', '"another value"', 'one'), ('tenant', 'patients.ssn', '"123-45-6789"', 'two')) AS v (name, context, plaintext, tenant);
SQL

gives($node, q{SELECT opened(value, context) FROM samples WHERE name = 'short'},
	qr{^="123-45-6789"/=\\x2231\S+/=fc1:\S+ ="123-45-6789"$}, 'untouched, every function opens it');

# Every byte, every bit, in a value with content and an empty one.
my $flips = value($node, <<'SQL');
SELECT name, CASE WHEN i = 0 THEN 'format' WHEN i = 1 THEN 'suite' WHEN i < 10 THEN 'key id' WHEN i < 26 THEN 'nonce' ELSE 'sealed' END AS part,
       opened(changed, context) AS outcome, count(*)
  FROM (SELECT name, context, i, set_byte(value, i, get_byte(value, i) # mask) AS changed
          FROM samples, generate_series(0, length(value) - 1) AS i, unnest('{1,2,4,8,16,32,64,128,255}'::int[]) AS mask
         WHERE name IN ('short', 'empty')) AS c
 GROUP BY 1, 2, 3 ORDER BY 1 DESC, 2, 3
SQL
is($flips, <<'EXPECTED' =~ s/\n$//r, 'every bit of every byte flipped: an error with its own SQLSTATE, or NULL from try_decrypt_field');
short|format|KF001 NULL|9
short|key id|KF001 NULL|2
short|key id|KF003 NULL|70
short|nonce|KF002 NULL|144
short|sealed|KF002 NULL|261
short|suite|KF001 NULL|9
empty|format|KF001 NULL|9
empty|key id|KF001 NULL|2
empty|key id|KF003 NULL|70
empty|nonce|KF002 NULL|144
empty|sealed|KF002 NULL|144
empty|suite|KF001 NULL|9
EXPECTED

# Every length, shorter and longer.
gives($node, <<'SQL', "f|KF001 NULL|KF001/KF001/K/K|42\nt|KF002 NULL|=fc1:/=fc1:/=/=|13", 'truncated at every length');
SELECT n >= 42, opened(substr(value, 1, n), context), admitted(substr(value, 1, n)), count(*)
  FROM samples, generate_series(0, length(value) - 1) AS n WHERE name = 'short' GROUP BY 1, 2, 3 ORDER BY 1
SQL
gives($node, <<'SQL', "KF002 NULL|100", 'lengthened at the end');
SELECT opened(value || decode(repeat('00', n), 'hex'), context), count(*)
  FROM samples, generate_series(1, 100) AS n WHERE name = 'short' GROUP BY 1
SQL
gives($node, <<'SQL', "KF001 NULL|100", 'lengthened at the front');
SELECT opened(decode(repeat('00', n), 'hex') || value, context), count(*)
  FROM samples, generate_series(1, 100) AS n WHERE name = 'short' GROUP BY 1
SQL
gives($node, <<'SQL', "KF002 NULL|13", 'a byte taken out of what is sealed');
SELECT opened(substr(value, 1, 26 + n) || substr(value, 28 + n), context), count(*)
  FROM samples, generate_series(0, 12) AS n WHERE name = 'short' GROUP BY 1
SQL

# Parts of one value in another: of the same key and context, of another tenant's key.
gives($node, <<'SQL', <<'EXPECTED' =~ s/\n$//r, 'header fields, sealed bytes and tags of another value');
SELECT donor.name, part, opened(CASE part
           WHEN 'key id' THEN overlay(v.value PLACING substr(donor.value, 3, 8) FROM 3)
           WHEN 'nonce' THEN overlay(v.value PLACING substr(donor.value, 11, 16) FROM 11)
           WHEN 'nonce prefix' THEN overlay(v.value PLACING substr(donor.value, 11, 12) FROM 11)
           WHEN 'header' THEN overlay(v.value PLACING substr(donor.value, 1, 26) FROM 1)
           WHEN 'sealed' THEN substr(v.value, 1, 26) || substr(donor.value, 27)
           WHEN 'tag' THEN overlay(v.value PLACING substr(donor.value, length(donor.value) - 15) FROM length(v.value) - 15)
       END, v.context)
  FROM samples AS v, samples AS donor, unnest('{key id,nonce,nonce prefix,header,sealed,tag}'::text[]) AS part
 WHERE v.name = 'short' AND donor.name IN ('other', 'tenant') AND NOT (donor.name = 'other' AND part IN ('key id', 'nonce prefix'))
   -- Within one statement values share the nonce's prefix, so that nothing would be changed.
   AND NOT (donor.name = 'tenant' AND part = 'nonce prefix' AND substr(v.value, 11, 12) = substr(donor.value, 11, 12))
 ORDER BY 1, 2
SQL
other|header|KF002 NULL
other|nonce|KF002 NULL
other|sealed|KF002 NULL
other|tag|KF002 NULL
tenant|header|KF002 NULL
tenant|key id|KF002 NULL
tenant|nonce|KF002 NULL
tenant|nonce prefix|KF002 NULL
tenant|sealed|KF002 NULL
tenant|tag|KF002 NULL
EXPECTED

# Contexts.
my @contexts = ('', 'a', 'A', 'a ', ' a', 'ab', 'b', "a\n", 'a.b', 'ab.', "\x{e4}", "a\x{308}", 'x' x 255, 'x' x 256, 'x' x 257, 'x' x 100_000);
{
	my $list = join ', ', map { utf8::encode(my $copy = $_); "'$copy'" } @contexts;
	my $count = @contexts;
	gives($node, <<SQL, "f|KF002|${\($count * ($count - 1))}\nt|=value|$count", 'a context opens with itself and no other');
CREATE TEMP TABLE c AS SELECT c AS context, fieldcrypt.encrypt_field('value', c) AS value FROM unnest(ARRAY[$list]) AS c;
SELECT a.context = b.context, outcome(format('SELECT fieldcrypt.decrypt_field(%L, %L)', a.value, b.context)), count(*) FROM c AS a, c AS b GROUP BY 1, 2 ORDER BY 1;
SQL
}

# The doors: text, bytes, binary COPY.
my $text = value($node, q{SELECT value::fieldcrypt.encrypted FROM samples WHERE name = 'short'});
my $body = substr $text, 4;
my @junk = (
	'', ' ', 'fc1', 'fc1:', 'fc1: ', 'FC1:' . $body, 'fc2:' . $body, $body, " $text", "$text ", "$text\n", "\t$text", "fc1: $body",
	"$text=", "$text==", "fc1:=$body", "$text.", "fc1:$text", "$text$text", 'fc1:' . substr($body, 0, 20) . "\n" . substr($body, 20),
	'fc1:' . substr($body, 0, 20) . ' ' . substr($body, 20), 'fc1:' . substr($body, 0, 20) . '=' . substr($body, 20),
	'fc1:' . substr($body, 0, 20) . '%' . substr($body, 21), 'fc1:' . substr($body, 0, 20) . '+' . substr($body, 21),
	'fc1:' . substr($body, 0, 20) . '/' . substr($body, 21), "fc1:\x{e4}\x{e4}", 'fc1:' . '-' x 57, 'fc1:' . 'A' x 1_000_000,
	'fc1:' . '!' x 1_000_000, 'x' x 1_000_000, 'fc1:%s%n%d', "fc1:''; DROP TABLE samples; --", '\xf901', '{}', 'null', 'NaN',
	'fc1:' . encode_base64("\xF9\x7F" . "\1" x 60, '') =~ tr{+/}{-_}r =~ s/=//gr);
foreach my $length (0 .. length($body) - 1)
{
	push @junk, 'fc1:' . substr $body, 0, $length if $length < 56 || $length % 4 == 1;
}
utf8::encode($_) foreach @junk;
{
	my @outcomes = outcomes($node, [ map { "SELECT '" . s/'/''/gr . "'::fieldcrypt.encrypted" } @junk ]);
	my @wrong = grep { $outcomes[$_] !~ /^KF001 not an encrypted value: / } 0 .. $#junk;
	is(join("\n", map { substr($junk[$_], 0, 80) . " gave $outcomes[$_]" } @wrong), '', 'text that is no value: KF001');
	my @quoting = grep { length $junk[$_] > 20 && index($outcomes[$_], substr $junk[$_], 5, 12) >= 0 } 0 .. $#junk;
	is(scalar @quoting, 0, 'no message quotes it');
}
gives($node, "SELECT count(DISTINCT v) FROM (SELECT outcome(format('SELECT %L::fieldcrypt.encrypted::bytea', 'fc1:' || left('$body', -1) || c)) AS v FROM regexp_split_to_table('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_', '') AS c) AS x WHERE v LIKE '=%'",
	qr/^(4|16|64)$/, 'no two texts that differ in their last digit alone are the same value');
foreach my $bytes ('', '\xf9', '\x00', '\xf901', '\xf901' . '00' x 40, '\xf901' . 'ff' x 40, '\xf901' . '80' . '01' x 39, '\xf900' . '01' x 40, '\xf802' . '01' x 40, '\xf9' . '01' x 40)
{
	my $length = (length($bytes) - 2) / 2;
	refused($node, "SELECT '$bytes'::bytea::fieldcrypt.encrypted", 'KF001', 'bytes that are no value: ' . substr($bytes, 0, 12) . ", $length long");
}
refused($node, 'SELECT repeat($$x$$, 1000000)::bytea::fieldcrypt.encrypted', 'KF001', 'a megabyte that is no value');
refused($node, q{SELECT 'plaintext'::text::fieldcrypt.encrypted}, 'KF001', 'a text that is cast must be the text form');
refused($node, 'CREATE TEMP TABLE t (value fieldcrypt.encrypted); INSERT INTO t SELECT $$x$$::text', '42804', 'a text is no value without a cast');
refused($node, 'CREATE TEMP TABLE t (value fieldcrypt.encrypted); INSERT INTO t SELECT $$x$$::bytea', '42804', 'bytes are no value without a cast');

value($node, 'CREATE TABLE copied (value fieldcrypt.encrypted)');
foreach my $case (
	[ 'nothing', '' ], [ 'one byte', "\xF9" ], [ 'plaintext', 'a plaintext that is longer than forty-two bytes are' ],
	[ 'a value cut short', substr(decode_base64($body =~ tr{-_}{+/}r), 0, 41) ], [ 'a NUL', "\0" ], [ 'a text form', $text ])
{
	my ($name, $bytes) = @$case;
	my $path = PostgreSQL::Test::Utils::tempdir() . '/copy';
	open my $file, '>:raw', $path or die $!;
	print $file "PGCOPY\n\xFF\r\n\0", pack('NN', 0, 0), pack('nN', 1, length $bytes), $bytes, pack('n', 0xFFFF);
	close $file;
	refused($node, "\\copy copied FROM '$path' (FORMAT binary)", 'KF001', "binary COPY of $name");
}
refused($node, "COPY copied FROM STDIN;\nplaintext\n\\.\n", 'KF001', 'text COPY of a plaintext');
gives($node, 'SELECT count(*) FROM copied', '0', 'nothing was copied');

# The rows of encryption_keys, edited by a superuser who goes past the guard. In a new session, then
# in one that has the key in its cache: that one may go on with the key it knows, or refuse.
value($node, <<'SQL');
CREATE TABLE saved AS SELECT * FROM fieldcrypt.encryption_keys;
CREATE TABLE saved_master_keys AS SELECT * FROM fieldcrypt.master_keys;
CREATE FUNCTION restore() RETURNS void LANGUAGE sql AS $$
    SET LOCAL session_replication_role = replica;
    DELETE FROM fieldcrypt.encryption_keys;
    INSERT INTO fieldcrypt.encryption_keys SELECT * FROM saved;
    DELETE FROM fieldcrypt.master_keys;
    INSERT INTO fieldcrypt.master_keys SELECT * FROM saved_master_keys;
$$;
SQL
value($node, <<'SQL');
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'fieldcrypt.encryption_keys'::regclass AND contype = 'c' LOOP
        EXECUTE format('ALTER TABLE fieldcrypt.encryption_keys DROP CONSTRAINT %I', name);
    END LOOP;
END $$;
SQL
my $second = unpack 'H*', hkdf(pack('H*', key_text(2)), 'mek-fingerprint', 16);
my $third = unpack 'H*', hkdf(pack('H*', key_text(3)), 'mek-fingerprint', 16);
my $one = 'UPDATE fieldcrypt.encryption_keys SET %s WHERE tenant = \'one\'';
my $swap = <<'SQL';
UPDATE fieldcrypt.encryption_keys AS k SET %s FROM (SELECT * FROM saved) AS s
 WHERE k.tenant IN ('one', 'two') AND s.tenant = CASE k.tenant WHEN 'one' THEN 'two' ELSE 'one' END
SQL
foreach my $case (
	[ 'wrapped keys swapped between rows', sprintf($swap, 'wrapped_key = s.wrapped_key'), 'KF011' ],
	[ 'wrapped keys swapped with their check values', sprintf($swap, 'wrapped_key = s.wrapped_key, key_check = s.key_check'), 'KF011' ],
	[ 'tenants swapped', sprintf($swap, 'tenant = s.tenant || \'!\'') . '; UPDATE fieldcrypt.encryption_keys SET tenant = rtrim(tenant, \'!\')', 'KF011' ],
	[ 'key ids swapped', sprintf($swap, 'key_id = -s.key_id') . '; UPDATE fieldcrypt.encryption_keys SET key_id = -key_id WHERE key_id < 0', 'KF011' ],
	[ 'key ids swapped with their check values', sprintf($swap, 'key_id = -s.key_id, key_check = s.key_check') . '; UPDATE fieldcrypt.encryption_keys SET key_id = -key_id WHERE key_id < 0', 'KF011' ],
	[ 'tenant', sprintf($one, q{tenant = 'three'}), 'KF011' ],
	[ 'tenant\'s case', sprintf($one, q{tenant = 'ONE'}), 'KF011' ],
	[ 'version', sprintf($one, 'version = 2'), 'KF011' ],
	[ 'version 0', sprintf($one, 'version = 0'), 'KF011' ],
	[ 'version -1', sprintf($one, 'version = -1'), qr/KF01[12]/ ],
	[ 'check value', sprintf($one, 'key_check = set_byte(key_check, 0, get_byte(key_check, 0) # 1)'), 'KF011' ],
	[ 'check value of 15 bytes', sprintf($one, 'key_check = substr(key_check, 2)'), 'KF012' ],
	[ 'check value empty', sprintf($one, 'key_check = $$$$'), 'KF012' ],
	[ 'fingerprint of another loaded master key', sprintf($one, "master_key_fingerprint = '\\x$second'"), 'KF011' ],
	[ 'fingerprint of a master key that is not loaded', sprintf($one, "master_key_fingerprint = '\\x$third'"), 'KF010' ],
	[ 'fingerprint of no master key', sprintf($one, 'master_key_fingerprint = set_byte(master_key_fingerprint, 15, get_byte(master_key_fingerprint, 15) # 1)'), 'KF010' ],
	[ 'fingerprint of 17 bytes', sprintf($one, 'master_key_fingerprint = master_key_fingerprint || $$x$$'), 'KF012' ],
	[ 'algorithm', sprintf($one, q{algorithm = 'AES-128'}), 'KF012' ],
	[ 'algorithm empty', sprintf($one, q{algorithm = ''}), 'KF012' ],
	[ 'purpose', sprintf($one, q{purpose = 'sorting'}), 'KF012' ],
	[ 'state unknown', sprintf($one, q{state = 'revived'}), 'KF012' ],
	[ 'state empty', sprintf($one, q{state = ''}), 'KF012' ],
	[ 'wrapped key NULL', sprintf($one, 'wrapped_key = NULL'), 'KF011' ],
	[ 'wrapped key empty', sprintf($one, 'wrapped_key = $$$$'), 'KF011' ],
	[ 'wrapped key of 72 bytes', sprintf($one, 'wrapped_key = substr(wrapped_key, 1, 72)'), 'KF011' ],
	[ 'wrapped key of 74 bytes', sprintf($one, 'wrapped_key = wrapped_key || $$x$$'), 'KF011' ],
	[ 'wrapped key of a megabyte', sprintf($one, 'wrapped_key = repeat($$x$$, 1000000)::bytea'), 'KF011' ],
	[ 'suspended', sprintf($one, q{state = 'suspended'}), 'KF004' ],
	[ 'destroyed', sprintf($one, q{state = 'destroyed', wrapped_key = NULL}), 'KF005' ],
	[ 'destroyed, the key left there', sprintf($one, q{state = 'destroyed'}), 'KF005' ],
	[ 'the row is gone', q{DELETE FROM fieldcrypt.encryption_keys WHERE tenant = 'one'}, 'KF003' ],
	[ 'all rows are gone', q{DELETE FROM fieldcrypt.encryption_keys}, 'KF003' ])
{
	my ($name, $sql, $sqlstate) = @$case;
	my $cached = session($node);
	my $decrypt = q{SELECT fieldcrypt.decrypt_field(value::fieldcrypt.encrypted, context) FROM samples WHERE name = 'short'};
	$cached->value("$decrypt; SELECT fieldcrypt.encrypt_field('x', '', 'one')");
	value($node, "SET session_replication_role = replica; $sql");
	my $result = run_sql($node, $decrypt);
	like("@{ $result->{sqlstates} }", ref $sqlstate ? $sqlstate : qr/^$sqlstate$/, "key table: $name: decryption in a new session") or diag "$result->{out} $result->{err}";
	$result = run_sql($node, q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field('x', '', 'one'))});
	# The tenant may get a new first key where its row is gone or another's; then it must work.
	like("$result->{out}@{ $result->{sqlstates} }", qr/^(x|KF0(04|05|07|10|11|12))$/, "key table: $name: encryption in a new session");
	$result = $cached->run($decrypt);
	like($result->{out} . "@{ $result->{sqlstates} }", qr/^("123-45-6789"|KF0(03|04|05|10|11|12))$/, "key table: $name: decryption in a session that has the key");
	$result = run_sql($node, q{SELECT fieldcrypt.try_decrypt_field(value::fieldcrypt.encrypted, context) IS NULL FROM samples WHERE name = 'short'});
	my $damage = !ref $sqlstate && $sqlstate =~ /KF00[35]/;
	is($result->{out}, $damage ? 't' : '', "key table: $name: try_decrypt_field " . ($damage ? 'gives NULL' : 'fails'));
	is_deeply([ grep { /^XX|^58/ } @{ $result->{sqlstates} } ], [], "key table: $name: no internal error");
	value($node, 'SELECT restore()');
	$cached->gives($decrypt, '"123-45-6789"', "key table: $name: restored, the session reads again");
	$cached->close;
}

# Every byte of a wrapped key and of its check value.
my $bytes = value($node, <<'SQL');
SET session_replication_role = replica;
CREATE FUNCTION flipped(field text, i int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
    EXECUTE format('UPDATE fieldcrypt.encryption_keys SET %1$I = set_byte(%1$I, $1, get_byte(%1$I, $1) # 1) WHERE tenant = ''one''', field) USING i;
    -- Another row's change drops nothing from the cache that is not read again.
    result := outcome('SELECT fieldcrypt.decrypt_field(value::fieldcrypt.encrypted, context) FROM samples WHERE name = ''short''');
    RAISE SQLSTATE 'ZZZZZ' USING MESSAGE = result;
EXCEPTION WHEN SQLSTATE 'ZZZZZ' THEN
    RETURN SQLERRM;
END $$;
SELECT field, flipped(field, i), count(*)
  FROM (VALUES ('wrapped_key', 72), ('key_check', 15), ('master_key_fingerprint', 15)) AS f (field, last), generate_series(0, last) AS i
 GROUP BY 1, 2 ORDER BY 1;
SQL
is($bytes, "key_check|KF011|16\nmaster_key_fingerprint|KF010|16\nwrapped_key|KF011|73", 'every byte of what a key row holds flipped');

# master_keys.
foreach my $case (
	[ 'emptied', 'DELETE FROM fieldcrypt.master_keys', 'KF012' ],
	[ 'no current one', 'UPDATE fieldcrypt.master_keys SET is_current = false', 'KF012' ],
	[ 'another fingerprint', "UPDATE fieldcrypt.master_keys SET fingerprint = '\\x$third'", 'KF010' ],
	[ 'one more that is not loaded', "INSERT INTO fieldcrypt.master_keys VALUES ('\\x$third', false)", 'KF010' ])
{
	my ($name, $sql, $sqlstate) = @$case;
	value($node, "SET session_replication_role = replica; $sql");
	refused($node, q{SELECT fieldcrypt.create_key('new tenant')}, $sqlstate, "master_keys $name: no new key");
	value($node, 'SELECT restore()');
}
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE tenant = 'new tenant'}, '0', 'none was made');

ok(slurp_file($node->logfile) !~ /PANIC|XX000|terminated by signal|was terminated/, 'no internal error, no crash');
$node->stop;
done_testing();
