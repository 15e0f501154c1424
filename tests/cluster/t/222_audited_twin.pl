# What is recorded of audited tables is what happened to their rows: as many rows of the log as an ordinary row
# trigger sees, in its order, with the same keys, whatever statement, trigger, cascade, partition or savepoint
# brings them about.
use strict;
use warnings;
use lib 'lib';

use FieldcryptTest;
use Test::More;

my $seed = $ENV{TWIN_SEED} // 20260222;
note "TWIN_SEED=$seed";
srand $seed;

my @nodes = (
	[ 'with preload', new_cluster('preloaded', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nmax_prepared_transactions = 5\n") ],
	[ 'without preload', new_cluster('bare', conf => "max_prepared_transactions = 5\n") ]);

# The twin is a row trigger beside that of audit_table, whose name comes next in the order in which triggers
# fire. It knows nothing of the extension.
my $setup = <<'SQL';
SELECT fieldcrypt.create_key();
CREATE ROLE app; GRANT pg_read_all_data, pg_write_all_data TO app; SELECT fieldcrypt.grant_access('app', 'encrypt');
CREATE TABLE twin (n bigserial, op text, relation text, key jsonb, old_key jsonb, changed text[], who text[]);
CREATE FUNCTION twin() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    columns text[] := TG_ARGV[0]::text[];
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    old_key jsonb := (SELECT jsonb_object_agg(c, before -> c) FROM unnest(columns) AS c WHERE before IS NOT NULL);
    new_key jsonb := (SELECT jsonb_object_agg(c, after -> c) FROM unnest(columns) AS c WHERE after IS NOT NULL);
BEGIN
    INSERT INTO twin (op, relation, key, old_key, changed, who) VALUES (lower(TG_OP), TG_RELID::regclass::text,
        coalesce(new_key, old_key), CASE WHEN TG_OP = 'UPDATE' AND old_key <> new_key THEN old_key END,
        CASE WHEN before -> 'v' IS DISTINCT FROM after -> 'v' AND (before -> 'v', after -> 'v') IS DISTINCT FROM ('null', NULL)
                  AND (before -> 'v', after -> 'v') IS DISTINCT FROM (NULL, 'null') THEN '{v}'::text[] ELSE '{}' END,
        ARRAY[CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END, current_setting('application_name'),
              pg_current_xact_id()::text, pg_backend_pid()::text]);
    RETURN NULL;
END $$;
CREATE FUNCTION c() RETURNS fieldcrypt.encrypted LANGUAGE sql AS $$ SELECT fieldcrypt.encrypt_field('x') $$;

CREATE TABLE plain (id int PRIMARY KEY, n int DEFAULT 0, v fieldcrypt.encrypted);
CREATE TABLE parts (id int, region int, n int DEFAULT 0, v fieldcrypt.encrypted, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
CREATE TABLE parts_1 (v fieldcrypt.encrypted, gone int, id int NOT NULL, region int NOT NULL, n int DEFAULT 0);
ALTER TABLE parts_1 DROP gone;
ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES IN (1);
CREATE TABLE parts_rest PARTITION OF parts DEFAULT PARTITION BY HASH (id);
CREATE TABLE parts_rest_0 PARTITION OF parts_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_rest_1 PARTITION OF parts_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE owner (name text PRIMARY KEY, n int DEFAULT 0, v fieldcrypt.encrypted);
CREATE TABLE owned (id int PRIMARY KEY, owner text REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE, n int DEFAULT 0, v fieldcrypt.encrypted);
CREATE TABLE orphan (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text REFERENCES owner ON DELETE SET NULL ON UPDATE CASCADE, v fieldcrypt.encrypted);
CREATE TABLE echoed (id text PRIMARY KEY, n int DEFAULT 0, v fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table(t) FROM unnest('{plain,parts,owner,owned,orphan,echoed}'::regclass[]) AS t;
CREATE TRIGGER fieldcrypt_audit_change_twin AFTER INSERT OR UPDATE OR DELETE ON plain FOR EACH ROW EXECUTE FUNCTION twin('{id}');
CREATE TRIGGER fieldcrypt_audit_change_twin AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW EXECUTE FUNCTION twin('{id,region}');
CREATE TRIGGER fieldcrypt_audit_change_twin AFTER INSERT OR UPDATE OR DELETE ON owner FOR EACH ROW EXECUTE FUNCTION twin('{name}');
CREATE TRIGGER fieldcrypt_audit_change_twin AFTER INSERT OR UPDATE OR DELETE ON owned FOR EACH ROW EXECUTE FUNCTION twin('{id}');
CREATE TRIGGER fieldcrypt_audit_change_twin AFTER INSERT OR UPDATE OR DELETE ON orphan FOR EACH ROW EXECUTE FUNCTION twin('{id}');
CREATE TRIGGER fieldcrypt_audit_change_twin AFTER INSERT OR UPDATE OR DELETE ON echoed FOR EACH ROW EXECUTE FUNCTION twin('{id}');

-- A trigger of the user's after each row, with statements of its own: some of them fail, and take only
-- themselves back.
CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        INSERT INTO echoed VALUES ('"' || NEW.id || E'"\t' || NEW.n, NEW.n, c());
        IF NEW.id % 3 = 0 THEN
            UPDATE echoed SET n = n + 1;
            RAISE EXCEPTION 'not this one';
        END IF;
    EXCEPTION WHEN raise_exception OR unique_violation THEN
        INSERT INTO echoed VALUES ('failed ' || NEW.id || ' é') ON CONFLICT (id) DO UPDATE SET n = echoed.n + 1, v = c();
    END;
    IF NEW.id % 7 = 0 THEN
        DELETE FROM echoed WHERE id LIKE 'failed%';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER zz_echo AFTER INSERT OR UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION echo();
CREATE TRIGGER aa_echo AFTER UPDATE ON plain FOR EACH ROW WHEN (NEW.n % 5 = 0) EXECUTE FUNCTION echo();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON owned DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION echo();

CREATE FUNCTION many(low int, high int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    touched bigint := 0;
BEGIN
    FOR i IN low .. high LOOP
        BEGIN
            UPDATE plain SET n = n + 1 WHERE id % 20 = i % 20;
            touched := touched + 1;
            IF i % 2 = 0 THEN RAISE division_by_zero; END IF;
        EXCEPTION WHEN division_by_zero THEN
            UPDATE parts SET n = n + 1 WHERE id % 20 = i % 20;
        END;
    END LOOP;
    RETURN touched;
END $$;
CREATE PROCEDURE in_steps(low int, high int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN low .. high LOOP
        INSERT INTO plain VALUES (i, 0, c()) ON CONFLICT DO NOTHING;
        IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
    END LOOP;
END $$;
SQL

# A statement, of some rows at random.
sub statement
{
	my $id = int rand 60;
	my $to = $id + int rand 20;
	my $region = int rand 4;
	my $other = int rand 4;
	my $name = 'o' . int rand 6;
	my @all = (
		"INSERT INTO plain SELECT i, i, CASE WHEN i % 4 > 0 THEN c() END FROM generate_series($id, $to) AS i ON CONFLICT DO NOTHING",
		"INSERT INTO plain AS p SELECT i, i, c() FROM generate_series($id, $to) AS i ON CONFLICT (id) DO UPDATE SET n = p.n + 1, v = CASE WHEN excluded.id % 2 = 0 THEN p.v ELSE excluded.v END WHERE p.id % 5 > 0",
		"INSERT INTO plain VALUES ($id, 1, c()), ($id, 2, c())",
		"UPDATE plain SET n = n + 1 WHERE id BETWEEN $id AND $to",
		"UPDATE plain SET v = CASE WHEN id % 2 = 0 THEN c() END WHERE id > $to",
		"UPDATE plain SET id = id + 1000 WHERE id = $id",
		"UPDATE plain SET id = -id WHERE id BETWEEN $id AND $to",
		"DELETE FROM plain WHERE id > 50 OR id < 0",
		"DELETE FROM plain USING echoed WHERE plain.id = echoed.n",
		"WITH gone AS (DELETE FROM plain WHERE id BETWEEN $id AND $to RETURNING *), new AS (INSERT INTO parts SELECT id, $region, n, v FROM gone ON CONFLICT DO NOTHING RETURNING id) UPDATE owned SET n = n + 1 WHERE id IN (SELECT id FROM new)",
		"INSERT INTO parts SELECT i, i % 4, i, c() FROM generate_series($id, $to) AS i ON CONFLICT (region, id) DO UPDATE SET n = parts.n + 1",
		"INSERT INTO parts_1 (id, region, v) VALUES ($id, 1, c()) ON CONFLICT DO NOTHING",
		"INSERT INTO parts_rest (id, region, v) SELECT i, 7, c() FROM generate_series($id, $to) AS i ON CONFLICT DO NOTHING",
		"UPDATE parts SET region = $region WHERE region = $other AND id <> ALL (SELECT id FROM parts WHERE region = $region)",
		"UPDATE parts SET id = id + 100, v = c() WHERE id = $id",
		"UPDATE parts_0 SET n = n + 1 WHERE id > $id",
		"DELETE FROM parts WHERE id BETWEEN $id AND $to",
		"DELETE FROM parts_rest_1 WHERE id < $id",
		"INSERT INTO owner SELECT 'o' || i, i, c() FROM generate_series(0, 5) AS i ON CONFLICT DO NOTHING",
		"INSERT INTO owned SELECT i, '$name', i, c() FROM generate_series($id, $to) AS i WHERE EXISTS (SELECT FROM owner WHERE name = '$name') ON CONFLICT (id) DO UPDATE SET n = owned.n + 1",
		"INSERT INTO orphan (owner, v) SELECT '$name', c() FROM owner WHERE name = '$name'",
		"INSERT INTO orphan (v) SELECT CASE WHEN i % 3 = 0 THEN c() END FROM generate_series(1, 900 + 40 * $id) AS i",
		"DELETE FROM orphan WHERE owner IS NULL",
		"DO \$\$ BEGIN UPDATE orphan SET v = c(); BEGIN DELETE FROM orphan; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN UPDATE orphan SET v = NULL; END; END \$\$",
		"UPDATE owner SET name = 'O' || n WHERE name = '$name'",
		"UPDATE owner SET name = lower(name), v = c() WHERE name LIKE 'O%'",
		"DELETE FROM owner WHERE name = '$name'",
		"SELECT many($id, $id + 6)",
		"DO \$\$ BEGIN FOR i IN $id .. $to LOOP UPDATE plain SET n = n + 1 WHERE id = i; END LOOP; END \$\$",
		"MERGE INTO plain AS p USING generate_series($id, $to) AS s (id) ON p.id = s.id WHEN MATCHED AND p.n % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = p.n + 1, v = c() WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0, c())",
		"COPY owned (id, n) FROM stdin;\n" . join('', map { "1$id$_\t$_\n" } 0 .. int rand 30) . "\\.\n",
		"COPY parts (id, region) FROM stdin;\n" . join('', map { (9000 + $_ * 60 + $id) . "\t" . ($_ % 5) . "\n" } 0 .. int rand 30) . "\\.\n",
		"SET LOCAL ROLE app", "SET LOCAL ROLE NONE", "SET LOCAL application_name = 'app $id'",
		"DO \$\$ BEGIN UPDATE plain SET n = n + 1 WHERE id < $id; PERFORM set_config('application_name', 'another', true); UPDATE plain SET n = n + 1 WHERE id < $id; END \$\$",
		"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) UPDATE plain SET n = n + 1 WHERE id < $id",
		"DECLARE d CURSOR WITH HOLD FOR SELECT many($id, $to)",
		"PREPARE p AS UPDATE plain SET n = n + 1 WHERE id = \$1; EXECUTE p($id); DEALLOCATE p");
	my $statement = $all[ int rand @all ];
	return $statement =~ /\\\.\n$/ ? $statement : "$statement;\n";
}

# A transaction of some statements, some of them in savepoints that may be rolled back. Some fail, and so does
# the rest up to the next savepoint, or to the end.
sub work
{
	my ($depth) = @_;
	my $script = '';
	foreach (0 .. int rand 4)
	{
		if ($depth < 3 && rand() < 0.35)
		{
			my $name = "s$depth";
			$script .= "SAVEPOINT $name;\n" . work($depth + 1) . (rand() < 0.5 ? "ROLLBACK TO $name;\n" : "RELEASE $name;\n");
		}
		else { $script .= statement() }
	}
	return $script;
}

sub transaction
{
	my ($number) = @_;
	return statement() if rand() < 0.4;
	return "CALL in_steps($number, $number + 5);\n" if rand() < 0.1;
	my $end = rand();
	return "BEGIN;\n" . work(0)
	  . ($end < 0.7 ? 'COMMIT' : $end < 0.85 ? 'ROLLBACK' : "PREPARE TRANSACTION 'p$number'; " . ($end < 0.93 ? 'COMMIT' : 'ROLLBACK') . " PREPARED 'p$number'") . ";\n"
	  . "CLOSE ALL;\n";
}

# The two side by side, in the order of each.
my $logged = <<'SQL';
SELECT replace(event, 'row_', '') AS op, coalesce(partition_name, table_name) AS relation, row_key AS key, old_row_key AS old_key, changed_columns AS changed, ARRAY[role, application, transaction_id::text, backend_pid::text] AS who, id AS n
  FROM fieldcrypt.audit_log WHERE event IN ('row_inserted', 'row_updated', 'row_deleted')
SQL
my $compare = <<SQL;
WITH logged AS (SELECT row_number() OVER (ORDER BY n) AS place, l.* FROM ($logged) AS l),
     twins AS (SELECT row_number() OVER (ORDER BY n) AS place, op || CASE op WHEN 'insert' THEN 'ed' ELSE 'd' END AS op, 'public.' || relation AS relation, key, old_key, changed, who FROM twin),
     differing AS (SELECT coalesce(l.place, t.place) AS place, l AS logged, t AS twin FROM logged AS l FULL JOIN twins AS t ON t.place = l.place
                    WHERE (l.op, l.relation, l.key, l.old_key, l.changed, l.who) IS DISTINCT FROM (t.op, t.relation, t.key, t.old_key, t.changed, t.who))
SELECT (SELECT count(*) FROM logged) > 1000, (SELECT count(*) FROM twins) = (SELECT count(*) FROM logged),
       (SELECT count(*) FROM differing), (SELECT left(d::text, 600) FROM differing AS d ORDER BY place LIMIT 1)
SQL

foreach (@nodes)
{
	my ($name, $node) = @$_;
	value($node, $setup);
	my $errors = 0;
	foreach my $round (1 .. 12)
	{
		# Each in a session of its own, so that the first statement of one is any.
		my $script = join '', map { transaction($round * 1000 + $_ * 20) } 1 .. 14;
		my $result = run_sql($node, $script);
		$errors += @{ $result->{sqlstates} };
		my @unexpected = grep { !/^(23505|25P02|23503|25001|0A000|21000|34000|26000|42601|3B001|55000|42704|42P03)$/ } @{ $result->{sqlstates} };
		is("@unexpected", '', "$name, round $round: no error but those of the statements") or diag $result->{err};
	}
	note "$errors errors";
	gives($node, $compare, 't|t|0|', "$name: the log has what the twin has, in its order");
	cmp_ok($errors, '>', 10, "$name: some statements failed");
	gives($node, 'SELECT count(*), count(mac) = count(*), count(DISTINCT id) = count(*) FROM fieldcrypt.audit_log WHERE event LIKE $$row%$$ AND mac IS NULL', '0|t|t',
		"$name: each row is authenticated");
	gives($node, q{SELECT string_agg(status || ': ' || finding || ' ' || detail, '; ') FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '', "$name: and authentic");
}

no_crash($_->[1]) foreach @nodes;
done_testing();
