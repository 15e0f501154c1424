# Verification of a log with a history: years that were retired, a restore that went on as a fork, another
# encoding, a crash.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $node = new_cluster('history', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_seal_interval = 200
fieldcrypt.audit_retention = '2 years'
fieldcrypt.audit_worker_linger = '10min'
CONF
my @master = ('--master-key', $node->basedir . '/master.key');

sub sealed
{
	my ($db) = @_;
	$node->poll_query_until($db, <<'SQL') or die 'not sealed';
SELECT count(*) > 0 AND count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
	return;
}

# Findings that are not mere information.
sub findings
{
	my ($db, $anchor) = @_;
	$anchor = ($anchor // '') =~ s/'/''/gr;
	return value($node, "SELECT coalesce(string_agg(DISTINCT finding, ' ' ORDER BY finding), '') FROM fieldcrypt.verify_audit_log(anchor => '$anchor') WHERE status <> 'ok' AND finding <> 'summary'", db => $db);
}

# The outside checker agrees: its exit status.
sub checked
{
	my ($db, @arguments) = @_;
	my $export = write_file('export', value($node, 'SELECT fieldcrypt.audit_export()', db => $db) . "\n");
	my $keys = write_file('keys', value($node, 'SELECT fieldcrypt.export_keys()', db => $db));
	my $result = tool('verify-log', $export, @master, '--keys', $keys, @arguments);
	note $result->{out}, $result->{err};
	return $result->{code};
}

sub last_note
{
	return value($node, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY size DESC, id DESC LIMIT 1', db => $_[0]);
}

# A year that is retired, and a straggler of it that lies behind rows that stay.
value($node, q{SELECT fieldcrypt.create_key('acme')});
foreach my $year (2020 .. 2022)
{
	value($node, "CREATE TABLE fieldcrypt_internal.audit_log_$year PARTITION OF fieldcrypt.audit_log FOR VALUES FROM ('$year-01-01 00:00:00+00') TO ('" . ($year + 1) . "-01-01 00:00:00+00')");
}
foreach my $step (1 .. 3)
{
	value($node, <<"SQL");
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid)
SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), '2020-06-01', 'row_inserted', 'x', 'x', 1 FROM generate_series(1, 30);
SQL
	value($node, "SELECT fieldcrypt.create_key('of $step')");
	sealed('postgres');
}
value($node, q{SELECT fieldcrypt.create_key('later ' || i) FROM generate_series(1, 20) AS i});
sealed('postgres');
is(findings('postgres'), 'mac_missing', 'before: nothing is wrong but that rows were put in here without a MAC');
my $before = last_note('postgres');
value($node, 'CALL fieldcrypt.apply_audit_retention()');
sealed('postgres');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE at < '2021-01-01'}, '0', 'the year is gone');
is(findings('postgres'), '', 'behind it: nothing is wrong');
gives($node, q{SELECT count(*), min(leaf) = (SELECT max(size) FROM fieldcrypt.audit_retirements) FROM fieldcrypt.verify_audit_log() WHERE finding = 'retired'}, '1|t', 'which says up to where it is gone');
is(findings('postgres', $before), '', 'a checkpoint from before still fits');
is(checked('postgres'), 0, 'the outside checker agrees');
my $id = value($node, 'SELECT id FROM fieldcrypt.audit_log WHERE leaf < (SELECT max(size) FROM fieldcrypt.audit_checkpoints) ORDER BY leaf DESC LIMIT 1');
my $proof = write_file('proof', value($node, "SELECT fieldcrypt.audit_proof($id)"));
is(tool('verify-proof', $proof)->{code}, 0, 'a later row is proven');

# Who calls his deletion a retention.
{
	my $forge = sub {
		my ($sql) = @_;
		my $found = run_sql($node, "BEGIN; SET LOCAL session_replication_role = replica; ALTER TABLE fieldcrypt.audit_retirements DISABLE TRIGGER ALL; ALTER TABLE fieldcrypt.audit_log DISABLE TRIGGER ALL; $sql; SELECT string_agg(DISTINCT finding, ' ' ORDER BY finding) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical' AND finding <> 'summary'; ROLLBACK");
		return $found->{out};
	};
	my $last = '(SELECT c.* FROM fieldcrypt.audit_checkpoints AS c ORDER BY c.size DESC, c.id DESC LIMIT 1)';
	my $retire = "INSERT INTO fieldcrypt.audit_retirements SELECT c.id + 1000, now(), 'audit_log_2026', 10, c.size, c.root, c.frontier FROM $last AS c; DELETE FROM fieldcrypt.audit_log WHERE leaf < (SELECT max(size) FROM fieldcrypt.audit_retirements)";
	like($forge->($retire), qr/retention_unknown/, 'a retirement that the log does not tell of');
	like($forge->("$retire; INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, value_count, reason) SELECT -1, now(), 'audit_retired', 'x', 'x', 1, c.size, '10 rows: leaves below ' || c.size || ', root ' || encode(c.root, 'hex') FROM $last AS c"), qr/retention_unknown/, 'nor if a row without a MAC does');
	like($forge->('UPDATE fieldcrypt.audit_retirements SET frontier = set_byte(frontier, 12, get_byte(frontier, 12) # 1)'), qr/root_mismatch/, 'another edge of the tree');
	like($forge->('UPDATE fieldcrypt.audit_retirements SET size = size - 1, frontier = (SELECT c.frontier FROM fieldcrypt.audit_checkpoints AS c ORDER BY c.size LIMIT 1)'), qr/\w/, 'the edge of another size');
	like($forge->('DELETE FROM fieldcrypt.audit_retirements'), qr/leaf_missing/, 'no retirement at all');
	like($forge->(q{DELETE FROM fieldcrypt.audit_log WHERE event = 'audit_retired'}), qr/leaf_missing.*retention_unknown/, 'the row that tells of it taken out');
}

# A dump that is restored elsewhere, and goes on there; and so does the first.
{
	my $dump = dump_database($node, 'postgres', "$folder/dump.sql");
	create_database($node, 'copy', extension => 0);
	my $result = restore_database($node, 'copy', $dump);
	# The partitions of the years before the extension was made are tables of the dump's own.
	is("@{[ grep { $_ ne '42P07' } @{ $result->{sqlstates} } ]}", '', 'a dump is restored');
	is(findings('copy', $before), '', 'as long as it is not gone on with, a copy is as good');
	value($node, q{SELECT fieldcrypt.create_key('goes on')});
	sealed('postgres');
	my $later = last_note('postgres');
	value($node, q{SELECT fieldcrypt.create_key('goes on there')}, db => 'copy');
	sealed('copy');
	is(findings('postgres', $later), '', 'the first one is whole');
	is(findings('copy'), 'fork', 'the copy is a fork');
	is(findings('copy', $before), 'fork', 'of what is known from before');
	is(findings('copy', $later), 'anchor_mismatch fork', 'but not of what came later');
	isnt(checked('copy'), 0, 'the outside checker says so, too');
	value($node, q{SELECT fieldcrypt.acknowledge_audit_fork('a copy for tests')}, db => 'copy');
	sealed('copy');
	is(findings('copy'), '', 'acknowledged');
	is(checked('copy'), 0, 'also for the outside checker');
	is(findings('copy', $later), 'anchor_mismatch', 'which hides nothing that is known outside');
	my $note = write_file('later', "$later\n");
	is(checked('copy', '--checkpoint', $note), 1, 'not from the outside checker either');
	refused($node, q{SELECT fieldcrypt.acknowledge_audit_fork('')}, 'KF028', qr/reason/, 'a fork is not acknowledged without a reason', db => 'copy');
}

# A stop: the next key is introduced by the audit key. After a crash it says so.
{
	my $introduced = 'SELECT introduced_by, is_clean FROM fieldcrypt.audit_signers ORDER BY id DESC LIMIT 1';
	$node->restart;
	value($node, q{SELECT fieldcrypt.create_key('after a restart')});
	sealed('postgres');
	gives($node, $introduced, 'mac|t', 'a restart: the audit key vouches for the new key');
	is(findings('postgres'), '', 'and nothing is wrong');
	gives($node, 'SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1', 'f', 'the worker is still there');
	$node->stop('immediate');
	$node->start;
	value($node, q{SELECT fieldcrypt.create_key('after the crash')});
	sealed('postgres');
	is(findings('postgres'), 'unclean_handover', 'a crash: what was before it may be unsealed');
	gives($node, $introduced, 'mac|f', 'the audit key vouches for the new key');
}

# Without the master key what is there is told apart from what can't be checked.
{
	my $path = $node->basedir . '/master.key';
	rename $path, "$path.away" or die;
	my $found = findings('postgres');
	like($found, qr/mac_not_checked/, 'without a master key MACs are not checked');
	unlike($found, qr/row_changed|root_mismatch|not_introduced/, 'and nothing is called forged');
	rename "$path.away", $path or die;
}

# Another encoding.
create_database($node, 'latin', with => q{ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
value($node, qq{SELECT fieldcrypt.create_key(convert_from('\\x5afc72696368', 'LATIN1'))}, db => 'latin');
sealed('latin');
is(findings('latin'), '', 'in a database of another encoding nothing is wrong');
is(checked('latin'), 0, 'the outside checker agrees');
is(findings('latin', last_note('latin')), '', 'a checkpoint goes out and comes back');

no_crash($node);
$node->stop;
done_testing();
