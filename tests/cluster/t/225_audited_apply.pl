# Rows of audited tables that no statement of a client changes: what a subscription applies, and what re-encryption
# moves to another key. With ENABLE ALWAYS they are recorded like all others; without it health() says that they
# are not.
use strict;
use warnings;
use lib 'lib';

use FieldcryptTest;
use Test::More;

my $publisher = new_cluster('publisher', init => { allows_streaming => 'logical' }, extension => 0);
my $subscriber = new_cluster('subscriber', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
my $table = 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (1000); CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (1000) TO (9000)';
value($publisher, "$table; INSERT INTO t VALUES (0, 'before'); CREATE PUBLICATION p FOR TABLE t, parts WITH (publish_via_partition_root = true)");
my $from = $publisher->connstr('postgres') =~ s/'/''/gr;
value($subscriber, $_) foreach $table, 'SELECT fieldcrypt.create_key()', q{SELECT fieldcrypt.audit_table('t'), fieldcrypt.audit_table('parts')}, "CREATE SUBSCRIPTION s CONNECTION '$from' PUBLICATION p";

sub caught_up { return $subscriber->wait_for_subscription_sync($publisher, 's', 'postgres') }
my $check = q{SELECT status || ': ' || detail FROM fieldcrypt.health() WHERE "check" = 'audited_tables'};
my $rows = q{SELECT string_agg(format('%s %s %s', event, row_key ->> 'id', n), ', ' ORDER BY first) FROM (SELECT event, row_key, count(*) AS n, min(id) AS first FROM fieldcrypt.audit_log WHERE event LIKE 'row%' AND mac IS NOT NULL GROUP BY 1, 2) AS l};

caught_up();
value($publisher, q{INSERT INTO t VALUES (1, 'x'); UPDATE t SET v = 'y'; DELETE FROM t WHERE id = 0});
caught_up();
gives($subscriber, $rows, '', 'what a subscription applies is not recorded');
like(value($subscriber, $check), qr/^warning: audited tables: .*"public\.parts": what a subscription writes to it is not recorded/, 'and health says so');

value($subscriber, "ALTER TABLE $_ ENABLE ALWAYS TRIGGER fieldcrypt_audit_change") foreach 't', 'parts';
like(value($subscriber, $check), qr/^ok: /, 'until its trigger fires always');
value($publisher, q{INSERT INTO t VALUES (2, 'x'); UPDATE t SET v = 'z' WHERE id = 1; UPDATE t SET id = 3 WHERE id = 2; DELETE FROM t WHERE id = 1});
caught_up();
gives($subscriber, $rows, 'row_inserted 2 1, row_updated 1 1, row_updated 3 1, row_deleted 1 1', 'then it is, in its order');
value($publisher, q{BEGIN; INSERT INTO parts SELECT i * 3, 'x' FROM generate_series(1, 2500) AS i; SAVEPOINT a; UPDATE parts SET v = 'y'; ROLLBACK TO a; UPDATE parts SET id = id + 1; COMMIT});
caught_up();
gives($subscriber, q{SELECT event, partition_name, count(*), count(DISTINCT row_key) FROM fieldcrypt.audit_log WHERE table_name = 'public.parts' AND event LIKE 'row%' GROUP BY 1, 2 ORDER BY 1, 2},
	"row_deleted|public.parts_low|1|1\nrow_inserted|public.parts_high|2168|2168\nrow_inserted|public.parts_low|333|333\nrow_updated|public.parts_high|2167|2167\nrow_updated|public.parts_low|332|332", 'many rows of one transaction, one of them to another partition');

# Re-encryption.
value($subscriber, $_) foreach 'CREATE TABLE moved (id int PRIMARY KEY, v fieldcrypt.encrypted)', q{SELECT fieldcrypt.audit_table('moved')},
  'INSERT INTO moved SELECT i, fieldcrypt.encrypt_field($$x$$) FROM generate_series(1, 2500) AS i', q{CALL fieldcrypt.rotate_keys(force => true)}, q{CALL fieldcrypt.reencrypt('moved', 1000, 0)};
my $moved = q{SELECT event, changed_columns, count(*), count(DISTINCT row_key) FROM fieldcrypt.audit_log WHERE table_name = 'public.moved' AND event LIKE 'row%' GROUP BY 1, 2 ORDER BY 1};
gives($subscriber, $moved, 'row_inserted|{v}|2500|2500', 'rows that re-encryption moves are not listed');
value($subscriber, $_) foreach 'ALTER TABLE moved ENABLE ALWAYS TRIGGER fieldcrypt_audit_change', q{CALL fieldcrypt.rotate_keys(force => true)}, q{CALL fieldcrypt.reencrypt('moved', 1000, 0)};
gives($subscriber, $moved, "row_inserted|{v}|2500|2500\nrow_updated|{v}|2500|2500", 'but by a trigger that fires always');
gives($subscriber, q{SELECT string_agg(finding, ',') FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '', 'all of it is authentic');
value($subscriber, 'DROP SUBSCRIPTION s');
no_crash($_) foreach $publisher, $subscriber;
done_testing();
