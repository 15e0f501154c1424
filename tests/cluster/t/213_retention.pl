# Retention: years that are old enough, sealed and behind a checkpoint are emptied, and nothing else.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('retention', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_seal_interval = 200\nfieldcrypt.audit_retention = '2 years'\n");
my $apply = 'CALL fieldcrypt.apply_audit_retention()';

sub sealed
{
	return $node->poll_query_until('postgres', <<'SQL');
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
}

# Years before the extension was made, as the years to come will be.
value($node, <<'SQL');
CREATE ROLE manager LOGIN;
CREATE ROLE auditor LOGIN;
SELECT fieldcrypt.grant_access('manager', 'manage');
SELECT fieldcrypt.grant_access('auditor', 'audit');
SELECT fieldcrypt.create_key('acme');
DO $$
BEGIN
    FOR year IN 2020 .. 2022 LOOP
        EXECUTE format('CREATE TABLE fieldcrypt_internal.audit_log_%s PARTITION OF fieldcrypt.audit_log FOR VALUES FROM (%L) TO (%L)', year, year || '-01-01 00:00:00+00', year + 1 || '-01-01 00:00:00+00');
    END LOOP;
END $$;
SQL
sub old_rows
{
	my ($year, $count) = @_;
	value($node, <<SQL);
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid)
SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), '$year-06-01', 'row_inserted', 'x', 'x', 1 FROM generate_series(1, $count);
SQL
	value($node, q{SELECT fieldcrypt.create_key('of ' || gen_random_uuid())});
	return;
}
my $count = 'SELECT count(*) FROM fieldcrypt.audit_log WHERE at < $$2026-01-01$$';

refused($node, 'BEGIN; CALL fieldcrypt.apply_audit_retention()', '2D000', 'not in a transaction block');
refused($node, $apply, '42501', 'an auditor retires nothing', user => 'auditor');
like(run_sql($node, $apply, user => 'manager')->{err}, qr/0 partitions retired/, 'nothing is old enough');

# Two years, and a row of the first that commits after rows of the second.
old_rows(2020, 30);
ok(sealed(), 'rows of 2020 are sealed');
old_rows(2021, 20);
ok(sealed(), 'rows of 2021 are sealed');
old_rows(2020, 1);
ok(sealed(), 'a straggler of 2020 is sealed');

# What is not sealed stays. What comes after it is sealed together with it: no checkpoint ends where the year does.
value($node, 'ALTER SYSTEM SET fieldcrypt.audit_worker_linger = 0');
$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
value($node, q{SET session_replication_role = replica; INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid) SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), '2020-07-01', 'row_inserted', 'x', 'x', 1});
value($node, q{SELECT fieldcrypt.create_key('behind it ' || i) FROM generate_series(1, 5) AS i});
refused($node, $apply, 'KF028', qr/1 rows of audit_log_2020 are not sealed yet/, 'a row that is not sealed keeps its year');
gives($node, $count, '52', 'and all others');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
value($node, q{SELECT fieldcrypt.create_key('wakes the worker')});
ok(sealed(), 'sealed in the end');

# A log that does not match its checkpoints stays.
my ($edited, $leaf) = split /\|/, value($node, q{SELECT id, leaf FROM fieldcrypt.audit_log WHERE at < '2021-01-01' ORDER BY leaf DESC LIMIT 1});
gives($node, "SELECT bool_or(size <= $leaf), bool_or(size = $leaf + 1), bool_or(size > $leaf + 1) FROM fieldcrypt.audit_checkpoints", 't|f|t',
	'the last row of the year lies between two checkpoints');
value($node, "SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET reason = 'forged' WHERE id = $edited");
refused($node, $apply, 'KF028', qr/does not match its checkpoint/, 'a changed log is not retired');
gives($node, $count, '52', 'all is still there');
value($node, "SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET reason = NULL WHERE id = $edited");
my $early = value($node, q{SELECT id FROM fieldcrypt.audit_log WHERE at < '2021-01-01' ORDER BY leaf LIMIT 1});
isnt($early, $edited, 'the first row of the year is another');
value($node, "SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET reason = 'forged' WHERE id = $early");
refused($node, $apply, 'KF028', qr/does not match its checkpoint/, 'wherever in the year it was changed');
gives($node, $count, '52', 'and all is still there');
value($node, "SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET reason = NULL WHERE id = $early");

# Others' settings don't count.
refused($node, q{SET fieldcrypt.audit_retention = '1 day'}, '55P02', 'a session does not set it');
like(run_sql($node, $apply, user => 'manager')->{err}, qr/\b2 partitions retired/, 'two years are retired');
gives($node, $count, '0', 'their rows are gone');
gives($node, q{SELECT partition_name, row_count, size > 0, octet_length(root) FROM fieldcrypt.audit_retirements ORDER BY id}, "audit_log_2020|32|t|32\naudit_log_2021|20|t|32", 'what was retired is noted');
gives($node, q{SELECT l.table_name, l.value_count = r.size, l.reason = format('%s rows: leaves below %s, root %s', r.row_count, r.size, encode(r.root, 'hex')), l.mac IS NOT NULL FROM fieldcrypt.audit_log AS l JOIN fieldcrypt.audit_retirements AS r ON r.partition_name = l.table_name WHERE l.event = 'audit_retired' ORDER BY l.id},
	"audit_log_2020|t|t|t\naudit_log_2021|t|t|t", 'and recorded');
gives($node, 'SELECT count(*) > 0 FROM fieldcrypt.audit_log WHERE at >= $$2026-01-01$$', 't', 'the rest is there');
value($node, q{SELECT fieldcrypt.create_key('goes on')});
ok(sealed(), 'sealing goes on');
note value($node, q{SELECT * FROM fieldcrypt.verify_audit_log()});
gives($node, q{SELECT count(*) FILTER (WHERE status = 'critical'), count(*) FILTER (WHERE finding = 'retired') > 0 FROM fieldcrypt.verify_audit_log()}, '0|t', 'what is left is proved, and verification says what was retired');
value($node, q{CREATE TABLE saved AS SELECT * FROM fieldcrypt.audit_retirements; SET session_replication_role = replica; UPDATE fieldcrypt.audit_retirements SET frontier = set_byte(frontier, 20, get_byte(frontier, 20) # 1)});
gives($node, q{SELECT count(*) FILTER (WHERE status = 'critical') > 0 FROM fieldcrypt.verify_audit_log()}, 't', 'from another tree than the retired one nothing is proved');
value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.audit_retirements AS r SET frontier = s.frontier FROM saved AS s WHERE s.id = r.id});
$node->stop('immediate');
$node->start;
value($node, q{SELECT fieldcrypt.create_key('goes on after a crash')});
ok(sealed(), 'also after a crash');
like(run_sql($node, $apply)->{err}, qr/0 partitions retired/, 'nothing is left to be retired');
refused($node, q{SELECT fieldcrypt_internal.retire_audit_step('audit_log_2026')}, 'KF028', qr/not the next one/, 'this year is not retired by hand', user => 'manager');
refused($node, q{SELECT fieldcrypt_internal.retire_audit_partition('audit_log_2026')}, '42501', 'nor past the step', user => 'manager');

# A senseless setting.
foreach my $setting ('', 'soon', '0', '1 hour', '-1 year')
{
	$node->append_conf('postgresql.conf', "fieldcrypt.audit_retention = '$setting'");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('fieldcrypt.audit_retention') = '$setting'") or die;
	refused($node, $apply, '22023', qr/must be an interval of at least a day/, "audit_retention '$setting'");
}

no_crash($node);
$node->stop;
done_testing();
