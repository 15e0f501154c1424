# A plaintext that came as a bind parameter is on no disk: no heap, index, statistic, WAL, temporary
# file, audit row or log line, with everything tried that would store it. The same search finds a
# value that was not encrypted in each of these places.

use strict;
use warnings;

use FieldcryptTest;
use MIME::Base64 ();
use PostgreSQL::Test::Utils;
use Test::More;

my $secret = 'canary-Quetzal-7731-plaintext';
my $control = 'control-Ocelot-8842-plaintext';

# The statements of Test::Cluster's own configuration are not logged: defaults, as on a user's server.
my $node = new_cluster('primary', conf => <<CONF);
log_statement = none
wal_level = replica
autovacuum = off
full_page_writes = on
CONF

value($node, <<'SQL');
CREATE TABLE secrets (id int PRIMARY KEY, value fieldcrypt.encrypted CHECK (octet_length(value::bytea) < 100000));
CREATE TABLE plain (id int PRIMARY KEY, value text);
CREATE TABLE hurt (id int PRIMARY KEY, value fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('secrets');
CREATE FUNCTION shown(value fieldcrypt.encrypted) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT fieldcrypt.decrypt_field($1)';
CREATE FUNCTION shown_plpgsql(value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN fieldcrypt.decrypt_field($1); END';
CREATE FUNCTION shown_try(value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN fieldcrypt.try_decrypt_field($1); END';
CREATE FUNCTION shown_bytes(value fieldcrypt.encrypted) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN fieldcrypt.decrypt_field_bytea($1); END';
CREATE FUNCTION shown_as(value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN fieldcrypt.decrypt_field_as($1, NULL::text); END';
CREATE FUNCTION shown_caught(value fieldcrypt.encrypted) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN fieldcrypt.decrypt_field($1);
EXCEPTION WHEN OTHERS THEN
    RETURN 'refused';
END $$;
SQL

# In: by bind, with every protocol that binds, text and json and bytes, update and re-encryption.
foreach my $protocol ('extended', 'prepared')
{
	foreach my $case (
		[ 'INSERT INTO secrets SELECT coalesce(max(id), 0) + 1, fieldcrypt.encrypt_field(:secret, :context) FROM secrets', 'insert' ],
		[ q{INSERT INTO secrets SELECT max(id) + 1, fieldcrypt.encrypt_field_bytea(convert_to(:secret, 'UTF8'), :context) FROM secrets}, 'bytes' ],
		[ 'INSERT INTO secrets SELECT max(id) + 1, fieldcrypt.encrypt_field_jsonb(to_jsonb(:secret::text), :context) FROM secrets', 'json' ],
		[ 'UPDATE secrets SET value = fieldcrypt.encrypt_field(:secret, :context) WHERE id = 1', 'update' ],
		[ 'SELECT fieldcrypt.decrypt_field(value, :context) FROM secrets WHERE fieldcrypt.decrypt_field(value, :context) = :secret', 'search' ],
		[ 'SELECT set_config($$my.secret$$, :secret, false), fieldcrypt.encrypt_field(current_setting($$my.secret$$))', 'a setting' ])
	{
		my ($sql, $name) = @$case;
		my $result = bind($node, $sql, { secret => $secret, context => 'row context' }, protocol => $protocol, transactions => 3);
		is($result->{code}, 0, "$protocol protocol: $name") or diag $result->{err};
	}
}
# Values without a context, that the wrappers above could show; one longer than a page, out of line.
is(bind($node, 'INSERT INTO secrets SELECT max(id) + 1, fieldcrypt.encrypt_field(:secret) FROM secrets', { secret => $secret }, transactions => 20)->{code},
	0, 'values without a context');
is(bind($node, 'INSERT INTO secrets SELECT max(id) + 1, fieldcrypt.encrypt_field(repeat(:secret, 1000)) FROM secrets', { secret => $secret })->{code},
	0, 'a long value');
is(bind($node, 'INSERT INTO plain SELECT g, :control FROM generate_series(1, 500) AS g', { control => $control })->{code}, 0, 'the control');
value($node, q{SELECT fieldcrypt_internal.rotate_active_key('default', NULL, false, NULL)});
is(value($node, q{DELETE FROM secrets WHERE fieldcrypt.try_decrypt_field(value) IS NULL; UPDATE secrets SET value = fieldcrypt.reencrypt_field(value);
	SELECT count(*) > 20 AND bool_and(fieldcrypt.decrypt_field(value) LIKE '%Quetzal%') FROM secrets}), 't', 'the canary is in every row');

# Re-encryption, with rows that can't be: of a wrong context, tampered with, refused by the table.
is(bind($node, q{INSERT INTO hurt SELECT g, fieldcrypt.encrypt_field(:secret, 'hurt/' || CASE g WHEN 2 THEN 'wrong' ELSE g::text END) FROM generate_series(1, 9) AS g}, { secret => $secret })->{code},
	0, 'rows to be re-encrypted');
value($node, <<'SQL');
UPDATE hurt SET value = set_byte(value::bytea, 30, get_byte(value::bytea, 30) # 1)::fieldcrypt.encrypted WHERE id = 3;
ALTER TABLE hurt ADD CHECK (id <> 4) NOT VALID;
SELECT fieldcrypt.set_column_context('hurt', 'value', expression => $$'hurt/' || id + 0 / (id - 5)$$);
CALL fieldcrypt.rotate_keys('default');
SQL
like(run_sql($node, 'CALL fieldcrypt.reencrypt(rows_per_second => 0)')->{err}, qr/WARNING:  KF025: 4 rows have values/, 're-encrypted, as far as it goes');
gives($node, q{SELECT string_agg((row_key ->> 'id') || ' ' || error_code, ', ' ORDER BY row_key ->> 'id') FROM fieldcrypt.reencryption_failures},
	'2 KF002, 3 KF002, 4 23514, 5 22012', 'and the rest is listed');
gives($node, q{SELECT count(*) FROM fieldcrypt.reencryption_failures AS f WHERE f::text LIKE '%Quetzal%'}, '0', 'without a value');

# What would store it. Every one of these is refused.
foreach my $case (
	[ 'an expression index', 'CREATE INDEX ON secrets (WRAPPER(value))' ],
	[ 'an expression index, concurrently', 'CREATE INDEX CONCURRENTLY ON secrets (WRAPPER(value))' ],
	[ 'a unique expression index', 'CREATE UNIQUE INDEX ON secrets ((WRAPPER(value)))' ],
	[ 'a partial index', 'CREATE INDEX ON secrets (id) WHERE WRAPPER(value) IS NULL' ],
	[ 'an exclusion constraint', 'ALTER TABLE secrets ADD EXCLUDE USING hash ((WRAPPER(value)) WITH =)' ],
	[ 'a materialized view', 'CREATE MATERIALIZED VIEW view AS SELECT id, WRAPPER(value) FROM secrets' ],
	[ 'a refreshed materialized view', 'CREATE MATERIALIZED VIEW view AS SELECT id, WRAPPER(value) FROM secrets WITH NO DATA; REFRESH MATERIALIZED VIEW view' ],
	[ 'extended statistics', 'CREATE STATISTICS statistic ON (WRAPPER(value)) FROM secrets; ANALYZE secrets' ],
	[ 'extended statistics of two expressions', 'CREATE STATISTICS statistic ON (WRAPPER(value)), (id + 1) FROM secrets; ANALYZE secrets (id)' ],
	[ 'extended statistics, VACUUM ANALYZE', 'CREATE STATISTICS statistic ON (WRAPPER(value)) FROM secrets; VACUUM ANALYZE secrets' ],
	[ 'an index made on an empty table, rebuilt', 'CREATE TABLE rebuilt (value fieldcrypt.encrypted); CREATE INDEX ON rebuilt (WRAPPER(value)) WHERE false; ALTER TABLE rebuilt ADD COLUMN more int; CREATE INDEX ON secrets (WRAPPER(value))' ])
{
	my ($name, $sql) = @$case;
	foreach my $wrapper (qw(shown shown_plpgsql shown_try shown_bytes shown_as))
	{
		(my $statement = $sql) =~ s/WRAPPER/$wrapper/g;
		refused($node, $statement, 'KF014', qr/decryption is refused here/, "$name: $wrapper is refused", on_error_stop => 0);
		value($node, 'DROP MATERIALIZED VIEW IF EXISTS view; DROP STATISTICS IF EXISTS statistic; DROP TABLE IF EXISTS rebuilt');
	}
}
# An INVALID index of CREATE INDEX CONCURRENTLY that failed would be filled by the next INSERT.
value($node, join ';', split /\n/, value($node, q{SELECT format('DROP INDEX %s', indexrelid::regclass) FROM pg_index WHERE indrelid = 'secrets'::regclass AND NOT indisprimary}));
foreach my $function ('fieldcrypt.decrypt_field(value)', 'fieldcrypt.decrypt_field_bytea(value)', 'fieldcrypt.try_decrypt_field(value)')
{
	refused($node, "CREATE INDEX ON secrets (($function))", '42P17', "an index of $function itself is refused: it is not immutable");
	refused($node, "CREATE TABLE generated (value fieldcrypt.encrypted, shown text GENERATED ALWAYS AS ($function) STORED)",
		'42P17', "a generated column of $function itself is refused") if $function !~ /bytea/;
	value($node, "CREATE STATISTICS statistic ON ($function) FROM secrets");
	refused($node, 'ANALYZE secrets', 'KF014', "statistics of $function itself are refused");
	value($node, 'DROP STATISTICS statistic');
}
# The refusal can be caught; the plaintext is not there then either.
value($node, 'CREATE INDEX caught ON secrets (shown_caught(value)); DROP INDEX caught');
value($node, 'CREATE STATISTICS caught ON (shown_caught(value)) FROM secrets; ANALYZE secrets; DROP STATISTICS caught; ANALYZE; CREATE STATISTICS kept ON id, (id % 2) FROM secrets; ANALYZE secrets');
value($node, 'CREATE MATERIALIZED VIEW caught AS SELECT shown_caught(value) AS value FROM secrets; REFRESH MATERIALIZED VIEW caught');
gives($node, 'SELECT DISTINCT value FROM caught', 'refused', 'a caught refusal gives no plaintext');
value($node, 'CREATE STATISTICS of_control ON (value || $$!$$), (value || $$?$$) FROM plain; ANALYZE plain; CREATE MATERIALIZED VIEW plain_view AS SELECT * FROM plain; CREATE INDEX plain_index ON plain (value)');

# Errors, with the value in hand. Nothing of the statement, its context or its parameters may be logged.
foreach my $case (
	[ 'plaintext into an encrypted column', 'INSERT INTO secrets VALUES (1000, :secret)', 'KF001' ],
	[ 'plaintext into an encrypted column, cast', 'INSERT INTO secrets VALUES (1000, :secret::fieldcrypt.encrypted)', 'KF001' ],
	[ 'plaintext as bytes', q{INSERT INTO secrets VALUES (1000, convert_to(:secret, 'UTF8')::fieldcrypt.encrypted)}, 'KF001' ],
	[ 'the wrong context', q{SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field(:secret, 'a'), 'b')}, 'KF002' ],
	[ 'no date', 'SELECT fieldcrypt.decrypt_field_as(fieldcrypt.encrypt_field(:secret), NULL::date)', '22018' ],
	[ 'no JSON', 'SELECT fieldcrypt.decrypt_field_jsonb(fieldcrypt.encrypt_field(:secret))', '22018' ],
	[ 'a NULL context', 'SELECT fieldcrypt.encrypt_field(:secret, NULL)', '22004' ],
	[ 'a tenant too long', q{SELECT fieldcrypt.encrypt_field(:secret, '', repeat('x', 1025))}, '22023' ],
	[ 'a unique violation', 'INSERT INTO secrets SELECT max(id), fieldcrypt.encrypt_field(:secret) FROM secrets', '23505' ],
	[ 'a CHECK constraint', 'INSERT INTO secrets VALUES (1000, fieldcrypt.encrypt_field(repeat(:secret, 10000)))', '23514' ],
	[ 'a read-only first key', q{SELECT fieldcrypt.encrypt_field(:secret, '', 'readonly')}, 'KF013', { PGOPTIONS => '-c default_transaction_read_only=on' } ])
{
	my ($name, $sql, $sqlstate, $env) = @$case;
	my $offset = -s $node->logfile;
	my $result = bind($node, $sql, { secret => $secret }, protocol => 'prepared', env => $env // {});
	isnt($result->{code}, 0, "error by bind: $name");
	my $log = slurp_file($node->logfile, $offset);
	like($log, qr/ERROR:  /, "error by bind: $name: it is in the log");
	unlike($log, qr/Quetzal/, "error by bind: $name: the value is not");
	unlike($log, qr/STATEMENT:/, "error by bind: $name: nor the statement") if $sqlstate =~ /^KF|^22/;

	# The same as a literal, where the statement itself holds the value.
	next if $sqlstate !~ /^KF|^22/;
	(my $literal = $sql) =~ s/:secret/'$secret'/g;
	$offset = -s $node->logfile;
	refused($node, $literal, $sqlstate, "error by literal: $name", env => $env // {});
	unlike(slurp_file($node->logfile, $offset), qr/Quetzal/, "error by literal: $name: not in the log");
}
{
	# COPY puts the line into the context; PL/pgSQL the statement.
	my $offset = -s $node->logfile;
	refused($node, "COPY secrets FROM STDIN;\n1000\t$secret\n\\.\n", 'KF001', 'COPY of plaintext');
	refused($node, "DO \$\$ DECLARE v fieldcrypt.encrypted; BEGIN v := '$secret'; END \$\$", 'KF001', 'PL/pgSQL assignment of plaintext');
	refused($node, "DO \$\$ BEGIN EXECUTE 'SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field(''$secret'', ''a''))'; END \$\$", 'KF002', 'dynamic SQL');
	refused($node, "INSERT INTO secrets VALUES (1000, '$secret')", 'KF001', 'INSERT of a plaintext literal');
	unlike(slurp_file($node->logfile, $offset), qr/Quetzal/, 'none of them is in the log');
}

# Spilled: the column itself, not what it decrypts to.
my $spill = session($node);
$spill->value("SET work_mem = '64kB'; SET temp_buffers = '800kB'");
$spill->value('BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT s.* FROM secrets AS s, generate_series(1, 500) ORDER BY s.id; COMMIT');
$spill->value('BEGIN; DECLARE held_plain CURSOR WITH HOLD FOR SELECT p.* FROM plain AS p, generate_series(1, 50) ORDER BY p.id; COMMIT');
$spill->value('CREATE TEMP TABLE temporary AS SELECT s.* FROM secrets AS s, generate_series(1, 500)');

value($node, 'CHECKPOINT');
my $data = $node->data_dir;
my $control_hits = join "\n", @{ files_with([$control], $data)->{$control} };
like($control_hits, qr{/base/\d+/\d+$}m, 'the search finds the control in tables');
like($control_hits, qr{/pg_wal/}, 'the search finds the control in WAL');
like($control_hits, qr{/pgsql_tmp/}, 'the search finds the control in temporary files');
my %file_of = map { split /\|/ } split /\n/, value($node, <<'SQL');
SELECT c.relname, pg_relation_filepath(c.oid) FROM pg_class AS c
 WHERE c.relname IN ('pg_statistic', 'pg_statistic_ext_data', 'plain_index', 'plain_view')
SQL
like($control_hits, qr/\Q$file_of{$_}\E$/m, "the search finds the control in $_") foreach sort keys %file_of;

my @forms = ($secret, scalar reverse($secret), uc unpack('H*', $secret), unpack('H*', $secret), substr(MIME::Base64::encode_base64($secret, ''), 0, -4));
is_deeply(files_with(\@forms, $data, $node->basedir . '/backup'), {}, 'the canary is in no file of the data directory');
is_deeply(files_with([ $secret, unpack('H*', $secret) ], $node->logfile), {}, 'the canary is in no log line');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log AS a WHERE a::text LIKE '%Quetzal%'}, '0', 'the canary is in no audit row');
gives($node, q{SELECT count(*) > 5 FROM fieldcrypt.audit_log WHERE table_name = 'public.secrets'}, 't', 'though its rows were recorded');
$spill->close;

# A crash writes nothing of it either: the server's state files, and WAL written again.
$node->stop('immediate');
$node->start;
$node->stop;
is_deeply(files_with(\@forms, $data), {}, 'nor after a crash, recovery and shutdown');
$node->start;

# What SQL can't keep a user from, and SECURITY.md says: an IMMUTABLE wrapper on an empty table, or
# in a generated column, stores what it returns at INSERT. ANALYZE and REINDEX still refuse.
value($node, <<'SQL');
CREATE TABLE empty (value fieldcrypt.encrypted);
CREATE INDEX empty_index ON empty (shown_plpgsql(value));
CREATE TABLE generated (value fieldcrypt.encrypted, shown text GENERATED ALWAYS AS (shown_plpgsql(value)) STORED);
INSERT INTO empty SELECT fieldcrypt.encrypt_field('x');
INSERT INTO generated SELECT fieldcrypt.encrypt_field('x');
SQL
gives($node, 'SELECT shown FROM generated', 'x', 'a generated column through a false IMMUTABLE wrapper holds the plaintext');
refused($node, 'REINDEX TABLE empty', 'KF014', 'a wrapped index, made while the table was empty, is not rebuilt');
refused($node, 'VACUUM FULL empty', 'KF014', 'nor by VACUUM FULL');
refused($node, 'ANALYZE empty', 'KF014', 'nor analyzed');

ok(slurp_file($node->logfile) !~ /PANIC|XX000|terminated by signal/, 'no internal error');
$node->stop;
done_testing();
