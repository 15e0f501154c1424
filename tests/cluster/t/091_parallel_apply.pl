# From PostgreSQL 16 on a subscriber applies large transactions while they run, in workers of their own (streaming =
# parallel): what is recorded and checked there, and what is one database's own, is as with the one worker.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'streaming = parallel came with PostgreSQL 16' if server_version() < 16;

my $conf = "shared_preload_libraries = 'pg_fieldcrypt'\nmax_worker_processes = 24\nmax_logical_replication_workers = 12\nwal_retrieve_retry_interval = '100ms'\n";
my $publisher = new_cluster('publisher', init => { allows_streaming => 'logical' }, conf => $conf . "logical_decoding_work_mem = 64kB\ndebug_logical_replication_streaming = immediate\n");
my $subscriber = new_cluster('subscriber', init => { allows_streaming => 'logical' }, conf => $conf . "log_min_messages = debug1\n");
value($_, <<'SQL') foreach $publisher, $subscriber;
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);
SQL
my $from = $publisher->connstr('postgres') =~ s/'/''/gr;
value($publisher, 'CREATE PUBLICATION everything FOR ALL TABLES');
value($subscriber, "CREATE SUBSCRIPTION follower CONNECTION '$from' PUBLICATION everything WITH (streaming = parallel)");
$subscriber->wait_for_subscription_sync($publisher, 'follower');
value($publisher, q{SELECT fieldcrypt.audit_table('patients'); SELECT fieldcrypt.create_key('acme')});
$publisher->wait_for_catchup('follower');
value($subscriber, <<'SQL');
SELECT fieldcrypt.audit_table('patients');
ALTER TABLE patients ENABLE ALWAYS TRIGGER fieldcrypt_audit_change;
SQL
my $recorded = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'row_inserted'};
my $insert = sub { return "INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('value ' || i, 'ssn', 'acme') FROM generate_series($_[0], $_[1]) AS i" };

value($publisher, 'BEGIN; ' . $insert->(1, 2000) . "; SAVEPOINT s; " . $insert->(5001, 5100) . '; ROLLBACK TO s; ' . $insert->(2001, 2500) . '; COMMIT');
$publisher->wait_for_catchup('follower');
like(slurp_file($subscriber->logfile), qr/parallel apply worker/, 'a parallel worker applied it');
gives($subscriber, q{SELECT count(*) FROM patients WHERE fieldcrypt.decrypt_field(ssn, 'ssn') = 'value ' || id}, '2500', 'the rows are there, and readable');
gives($subscriber, $recorded, '2500', 'each is recorded by the subscriber, once');
gives($publisher, $recorded, '2500', 'as by the publisher');

value($publisher, 'BEGIN; ' . $insert->(6001, 7000) . '; ROLLBACK');
value($publisher, $insert->(3000, 3000));
$publisher->wait_for_catchup('follower');
gives($subscriber, $recorded, '2501', 'what was rolled back is not recorded');
gives($subscriber, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE mac IS NULL}, '0', 'the rows of the log are authenticated');

# Keys, in a large transaction.
value($publisher, q{BEGIN; SELECT count(fieldcrypt.create_key('tenant ' || i)) FROM generate_series(1, 200) AS i; COMMIT});
$publisher->wait_for_catchup('follower');
my $keys = 'SELECT key_id, state, tenant FROM fieldcrypt.encryption_keys ORDER BY key_id';
same_contents(value($subscriber, $keys), value($publisher, $keys), 'keys arrive');
gives($subscriber, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'key_created'}, '0', 'and none of the publisher\'s log');

# Contexts that are checked where it is applied.
value($subscriber, q{SELECT fieldcrypt.set_column_context('patients', 'ssn', constant => 'ssn', enforce => true)});
value($subscriber, qq{ALTER TABLE patients ENABLE ALWAYS TRIGGER "$_"}) foreach split /\n/, value($subscriber, q{SELECT tgname FROM pg_trigger WHERE tgrelid = 'patients'::regclass AND tgfoid = 'fieldcrypt_internal.refuse_foreign'::regproc});
value($publisher, $insert->(8001, 8500));
$publisher->wait_for_catchup('follower');
gives($subscriber, q{SELECT count(*) FROM patients WHERE id > 8000}, '500', 'values of the right context are applied');
value($subscriber, 'ALTER SUBSCRIPTION follower SET (disable_on_error = true)');
value($publisher, q{INSERT INTO patients SELECT i, fieldcrypt.encrypt_field('x', 'elsewhere', 'acme') FROM generate_series(9001, 9500) AS i});
ok(eventually($subscriber, 'SELECT subenabled FROM pg_subscription', 'f'), 'others stop it');
gives($subscriber, q{SELECT count(*) FROM patients WHERE id > 9000}, '0', 'and are not applied');

no_crash($_) foreach $publisher, $subscriber;
value($subscriber, 'ALTER SUBSCRIPTION follower SET (slot_name = NONE); DROP SUBSCRIPTION follower');
$_->stop foreach $subscriber, $publisher;
done_testing();
