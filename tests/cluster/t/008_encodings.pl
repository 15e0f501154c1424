# Databases of other encodings and collations: keys are found, plaintext is stored as UTF-8, and what
# an encoding can't show is an error.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', extension => 0);
$ENV{PGCLIENTENCODING} = 'UTF8';

# Each tenant is one to itself, however a collation would compare them.
my @tenants = ('Zürich', 'zürich', 'ZÜRICH', 'Zurich', 'a b', 'ab', 'a-b', 'AB', 'a_b', 'ß', 'ss', 'é', 'ÿ');
my $list = join ', ', map { "('$_')" } @tenants;
my %unicode = map { $_ => 1 } 'c_utf8', 'en_us', 'icu', 'icu_phonebook';

my %databases = (
	c_utf8 => q{ENCODING 'UTF8' LOCALE 'C.UTF-8'},
	en_us => q{ENCODING 'UTF8' LOCALE 'en_US.UTF-8'},
	icu => q{ENCODING 'UTF8' LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US-u-ka-shifted'},
	icu_phonebook => q{ENCODING 'UTF8' LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'de-u-co-phonebk'},
	latin1 => q{ENCODING 'LATIN1' LOCALE 'C'},
	win1252 => q{ENCODING 'WIN1252' LOCALE 'C'},
	sql_ascii => q{ENCODING 'SQL_ASCII' LOCALE 'C'},
);
my $has_en_us = value($node, q{SELECT count(*) FROM pg_collation WHERE collname = 'en_US.utf8'});
delete $databases{en_us} unless $has_en_us;

foreach my $db (sort keys %databases)
{
	create_database($node, $db, with => "TEMPLATE template0 $databases{$db}");
	my @in = (db => $db);
	gives($node, <<"SQL", '13|13|14', "$db: each tenant has a key of its own, and the same one again", @in);
CREATE TABLE t (tenant text, value fieldcrypt.encrypted, again fieldcrypt.encrypted);
INSERT INTO t SELECT tenant, fieldcrypt.encrypt_field('of ' || tenant, 'Größe', tenant) FROM (VALUES $list) AS list (tenant);
UPDATE t SET again = fieldcrypt.encrypt_field(tenant, 'Größe', tenant);
SELECT count(DISTINCT fieldcrypt.key_id(value)), count(*) FILTER (WHERE fieldcrypt.key_id(value) = fieldcrypt.key_id(again)),
       (SELECT count(*) FROM fieldcrypt.encryption_keys) FROM t;
SQL
	my $result = run_sql($node, 'CALL fieldcrypt.rotate_keys(force => true)', @in);
	like($result->{err}, qr/\b13 rotated, 0 failed/, "$db: rotation finds each tenant once");
	gives($node, <<'SQL', '13|13|13', "$db: another session reads all, and encrypts with the new keys", @in);
SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value, 'Größe') = 'of ' || tenant),
       count(*) FILTER (WHERE fieldcrypt.key_id(fieldcrypt.encrypt_field('x', tenant => tenant)) <> fieldcrypt.key_id(value)),
       (SELECT count(*) FROM fieldcrypt.audit_log JOIN t USING (tenant) WHERE event = 'key_rotated') FROM t;
SQL
	gives($node, q{SELECT DISTINCT fieldcrypt.decrypt_field_bytea(value, 'Größe') FROM t WHERE tenant = 'Zürich'},
		'\x' . unpack('H*', 'of Zürich'), "$db: the plaintext is UTF-8", @in);
	gives($node, q{SET fieldcrypt.tenant = 'Zürich'; SELECT fieldcrypt.decrypt_field(value, 'Größe') FROM t WHERE tenant = 'Zürich'},
		'of Zürich', "$db: the session's tenant", @in);
	refused($node, q{SET fieldcrypt.tenant = 'zürich'; SELECT fieldcrypt.decrypt_field(value, 'Größe') FROM t WHERE tenant = 'Zürich'},
		'KF006', "$db: is not another one", @in);
	refused($node, q{SELECT fieldcrypt.decrypt_field(value, 'Grösse') FROM t WHERE tenant = 'Zürich'}, 'KF002', "$db: another context", @in);
	refused($node, q{CALL fieldcrypt.rotate_keys('Köln')}, 'KF007', qr/tenant "Köln"/, "$db: a message names the tenant as it is", @in);
	gives($node, q{SELECT fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field_jsonb('{"Größe": ["ÿ", null]}'))}, '{"Größe": ["ÿ", null]}', "$db: JSON", @in);

	# What is shown is still text, and on one line: characters are no controls because one of their bytes would be.
	gives($node, qq{SELECT fieldcrypt_internal.shown_text(E'ÀÑÜ\\nß\\x7f', 100), fieldcrypt_internal.quoted_name(E'ÀÑÜ\\x7fß')}, 'ÀÑÜ ß |"ÀÑÜ?ß"', "$db: sentences and names", @in);
	my ($few, $many) = $db eq 'sql_ascii' ? (1, 29) : (4, 59);
	gives($node, q{SELECT fieldcrypt_internal.shown_text('üüüüüü', 4), fieldcrypt_internal.quoted_name('x' || repeat('ü', 70))},
		'ü' x $few . '...|"x' . 'ü' x $many . '..."', "$db: and whole characters where they are cut", @in);

	# Bytes that are no text, anywhere.
	foreach my $bytes ('ff', '00', '6100', 'c3', 'eda080', 'f9')
	{
		my $sealed = value($node, "SELECT fieldcrypt.encrypt_field_bytea('\\x$bytes')", @in);
		refused($node, "SELECT $_", '22021', "$db: bytes $bytes are no text: " . (split /\(/)[0], @in)
		  foreach "fieldcrypt.decrypt_field('$sealed')", "fieldcrypt.decrypt_field_as('$sealed', NULL::text)", "fieldcrypt.try_decrypt_field('$sealed')";
		gives($node, "SELECT fieldcrypt.decrypt_field_bytea('$sealed')", "\\x$bytes", "$db: but bytes", @in);
	}

	# What the encoding can't show: the euro sign in LATIN1, an ideograph in WIN1252, everything in UTF-8.
	foreach my $text ('€', '字', '😀')
	{
		my $sealed = value($node, "SELECT fieldcrypt.encrypt_field_bytea('\\x" . unpack('H*', $text) . "')", @in);
		my $json = value($node, "SELECT fieldcrypt.encrypt_field_bytea('\\x" . unpack('H*', qq({"$text": 1})) . "')", @in);
		my $shows = $unicode{$db} || $db eq 'sql_ascii' || ($db eq 'win1252' && $text eq '€');
		foreach my $case (
			[ "fieldcrypt.decrypt_field('$sealed')", $text ],
			[ "fieldcrypt.decrypt_field_as('$sealed', NULL::varchar)", $text ],
			[ "fieldcrypt.try_decrypt_field('$sealed')", $text ],
			[ "fieldcrypt.decrypt_field_jsonb('$json')", qq({"$text": 1}) ])
		{
			my $name = "$db: $text: " . (split /\(/, $case->[0])[0];
			$shows
			  ? gives($node, "SELECT $case->[0]", $case->[1], $name, @in)
			  : refused($node, "SELECT $case->[0]", '22P05', qr/can't show/, $name, @in);
		}
	}
}

# SQL_ASCII takes any bytes as text; sealed is only what is UTF-8.
refused($node, $_, '22021', qr/not valid UTF-8/, "sql_ascii: refused: $_", db => 'sql_ascii') foreach (
	q{SELECT fieldcrypt.encrypt_field(E'M\xfcnchen')},
	q{SELECT fieldcrypt.encrypt_field('x', E'M\xfcnchen')},
	q{SELECT fieldcrypt.encrypt_field('x', tenant => E'M\xfcnchen')},
	q{SELECT fieldcrypt.create_key(E'M\xfcnchen')},
	q{SET fieldcrypt.tenant = E'M\xfcnchen'; SELECT fieldcrypt.encrypt_field('x')});
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE version = 1}, '15', 'sql_ascii: and no key was made but that of the default tenant', db => 'sql_ascii');
gives($node, q{SELECT fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypt_field_bytea('\xfc'))}, '\xfc', 'sql_ascii: bytes go through', db => 'sql_ascii');

# A dump of one encoding restored into another: values unchanged, readable, tenants themselves.
my $values = q{SELECT tenant, value::bytea, fieldcrypt.decrypt_field(value, 'Größe') FROM t ORDER BY tenant COLLATE "C"};
foreach my $case ([ 'latin1', 'c_utf8' ], [ 'latin1', 'icu' ], [ 'win1252', 'icu' ], [ 'icu', 'latin1' ], [ 'c_utf8', 'sql_ascii' ])
{
	my ($from, $to) = @$case;
	my $name = "$from to $to";
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
	# pg_dump writes in the database's own encoding, as it does by default.
	{
		delete local $ENV{PGCLIENTENCODING};
		dump_database($node, $from, $file);
		create_database($node, 'target', with => "TEMPLATE template0 $databases{$to}", extension => 0);
		my $result = restore_database($node, 'target', $file, '-v', 'ON_ERROR_STOP=1', '-1');
		is("$result->{code} $result->{err}", '0 ', "$name: restored");
	}
	same_contents(join("\n", sort split /\n/, value($node, $values, db => 'target')),
		join("\n", sort split /\n/, value($node, $values, db => $from)), "$name: values, byte for byte, and readable");
	my $result = run_sql($node, 'CALL fieldcrypt.rotate_keys(force => true)', db => 'target');
	like($result->{err}, qr/\b14 rotated, 0 failed/, "$name: and rotates");
	value($node, 'DROP DATABASE target');
}

no_crash($node);
$node->stop;
done_testing();
