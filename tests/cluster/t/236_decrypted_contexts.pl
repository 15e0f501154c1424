# fieldcrypt.audit_decrypt_contexts: which records somebody saw. Each context of a statement is named once, with the
# number of its values; what is not named is counted; nothing is lost however the statement ends, and a session does
# not grow. The numbers of values are what they are without it.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_decrypt = 'statements'
fieldcrypt.audit_worker_linger = 60000
fieldcrypt.audit_queue_size = 64MB
parallel_setup_cost = 0
parallel_tuple_cost = 0
min_parallel_table_scan_size = 0
CONF
value($node, <<'SQL');
SELECT fieldcrypt.create_key('default');
CREATE ROLE app LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted) WITH (parallel_workers = 0);
INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('s' || i, 'patients.ssn/' || i) FROM generate_series(1, 3000) AS i;
GRANT ALL ON patients TO app;
SQL
my $last = 0;
sub from_now_on { $last = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log'); return }

# When all values since then are recorded: the sum of a figure of their rows.
sub recorded
{
	my ($values) = @_;
	return eventually($node, "SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE id > $last AND event = 'values_decrypted'", $values);
}
sub shows
{
	my ($what, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return gives($node, "SELECT $what FROM fieldcrypt.audit_log WHERE id > $last AND event = 'values_decrypted'", $expected, $name);
}

# Off: no context.
my $app = session($node, user => 'app');
from_now_on();
$app->value(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id < 4});
ok(recorded(3), 'recorded');
shows('count(*), count(contexts)', '1|0', 'off by default: no context');
$app->refused(q{SET fieldcrypt.audit_decrypt_contexts = 10}, '42501', 'the administrator decides');
$app->close;

value($node, q{ALTER SYSTEM SET fieldcrypt.audit_decrypt_contexts = 2500; SELECT pg_reload_conf()});
eventually($node, 'SELECT fieldcrypt.decrypt_field(fieldcrypt.encrypt_field($$x$$)) || current_setting($$fieldcrypt.audit_decrypt_contexts$$)', 'x2500');
$app = session($node, user => 'app');

# "Who saw record 4711?": by its context, whatever else the statement did.
from_now_on();
$app->value(q{SELECT set_config('fieldcrypt.audit_subject', 'dr. li', false)});
$app->value(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients, generate_series(1, 2) WHERE id IN (7, 8)});
ok(recorded(4), 'recorded');
gives($node, "SELECT actor, subject, contexts, value_count FROM fieldcrypt.audit_log WHERE id > $last AND 'patients.ssn/7' = ANY (contexts)", 'app|dr. li|{patients.ssn/7,patients.ssn/8}|4', 'who saw the record: one row');
from_now_on();
$app->run('BEGIN');
$app->value(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/9') FROM patients WHERE id = 9});
$app->run('ROLLBACK');
$app->run('BEGIN');
$app->refused(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id), 1 / (12 - id) FROM patients WHERE id BETWEEN 10 AND 14}, '22012', 'a statement that fails');
$app->run('ROLLBACK');
ok(recorded(4), 'rolled back, and failed: recorded');
shows(q{string_agg(contexts::text, ' ' ORDER BY id)}, '{patients.ssn/9} {patients.ssn/10,patients.ssn/11,patients.ssn/12}', 'and what was seen until then');

# None, empty ones, long ones, strange ones, of several tenants.
from_now_on();
my $long = 'x' x 499;
$app->value(<<"SQL");
WITH v AS MATERIALIZED (
    SELECT c.context, c.tenant, fieldcrypt.encrypt_field('v', c.context, c.tenant) AS v
      FROM (VALUES ('', ''), ('', 'acme'), ('{"a, b}\\', 'acme'), ('${long}\x{c3}\x{bc}y', ''), (repeat('y', 100000), ''), (E'two\nlines', '')) AS c (context, tenant))
SELECT count(fieldcrypt.decrypt_field(v.v, v.context)) FROM v
SQL
ok(recorded(6), 'recorded');
gives($node, "SELECT tenant, c = '', length(c), c = '{\"a, b}\\', c = E'two\nlines' FROM fieldcrypt.audit_log, unnest(contexts) AS c WHERE id > $last AND event = 'values_decrypted' ORDER BY tenant, length(c)",
	"acme|t|0|f|f\nacme|f|8|t|f\ndefault|t|0|f|f\ndefault|f|9|f|t\ndefault|f|502|f|f\ndefault|f|503|f|f", 'each as it is; of a long one the beginning');

# More than are named: counted. A transaction names no more, its statements together.
from_now_on();
$app->value('BEGIN; ' . ("SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id)) FROM patients; " x 2) . 'COMMIT');
ok(recorded(6000), 'a lot: recorded');
gives($node, "SELECT count(DISTINCT c), count(*) FROM fieldcrypt.audit_log, unnest(contexts) AS c WHERE id > $last", '2500|2500', 'no more are named than is set');
shows(q{sum(value_count) FILTER (WHERE contexts IS NULL), bool_and(reason LIKE 'the contexts of these values are not named: %') FILTER (WHERE contexts IS NULL), max(cardinality(contexts)), max(octet_length(contexts::text)) < 5000}, '3500|t|100|t', 'the others are counted, and it says so; no row is large');
from_now_on();
$app->value(q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id)) FROM patients WHERE id <= 100});
ok(recorded(100), 'recorded');
gives($node, "SELECT count(DISTINCT c) FROM fieldcrypt.audit_log, unnest(contexts) AS c WHERE id > $last", '100', 'the next transaction names its own');

# By all processes of a parallel query.
value($node, 'ALTER TABLE patients SET (parallel_workers = 2)');
from_now_on();
$app->value(q{SET max_parallel_workers_per_gather = 2});
$app->value(q{SELECT count(fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id)) FROM patients WHERE id <= 300});
ok(recorded(300), 'parallel: recorded');
gives($node, "SELECT count(DISTINCT c), string_agg(DISTINCT subject, ' ') FROM fieldcrypt.audit_log, unnest(contexts) AS c WHERE id > $last", '300|dr. li', 'parallel: all are named, for the same subject');

# With a row for each call it has its context.
$app->close;
value($node, q{ALTER ROLE app SET fieldcrypt.audit_decrypt = 'all'});
$app = session($node, user => 'app');
from_now_on();
$app->value(q{SELECT fieldcrypt.decrypt_field(ssn, 'patients.ssn/' || id) FROM patients WHERE id < 4});
ok(recorded(3), 'all: recorded');
shows(q{string_agg(contexts::text, ' ' ORDER BY id)}, '{patients.ssn/1} {patients.ssn/2} {patients.ssn/3}', 'all: each with its own');
$app->close;
value($node, q{ALTER ROLE app RESET fieldcrypt.audit_decrypt});

# Memory: a statement of many contexts takes no more than one of some.
value($node, q{ALTER SYSTEM SET fieldcrypt.audit_decrypt_contexts = 1000000; SELECT pg_reload_conf()});
sub most_memory
{
	my ($repeats) = @_;
	my $session = session($node, user => 'app');
	my $pid = $session->server_process;
	$session->value(qq{SELECT count(fieldcrypt.decrypt_field(v.v, v.context)) FROM (SELECT 'c' || i AS context, fieldcrypt.encrypt_field('v', 'c' || i) AS v FROM generate_series(1, $repeats) AS i OFFSET 0) AS v});
	open my $status, '<', "/proc/$pid/status" or die $!;
	my ($peak) = map { /^VmHWM:\s+(\d+)/ ? $1 : () } <$status>;
	$session->close;
	return $peak;
}
SKIP:
{
	skip 'no /proc', 1 unless -e '/proc/self/status';
	my ($few, $many) = (most_memory(5000), most_memory(100000));
	cmp_ok($many - $few, '<', 20000, "a statement with 100,000 contexts takes no more memory ($few, $many kB)");
}

# The row's contexts are sealed like the rest of it.
eventually($node, 'SELECT count(*) FILTER (WHERE leaf IS NULL) FROM fieldcrypt.audit_log', '0');
my $changed = q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'};
gives($node, $changed, '0', 'verified');
value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET contexts = array_remove(contexts, 'patients.ssn/7') WHERE id = (SELECT min(id) FROM fieldcrypt.audit_log WHERE 'patients.ssn/7' = ANY (contexts))});
ok(value($node, $changed) > 0, 'to take a record out of what somebody saw is found');

no_crash($node);
$node->stop;
done_testing();
