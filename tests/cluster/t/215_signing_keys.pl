# Signing keys of the audit log: each signs for an epoch, whatever it signs, then its successor, and is gone, also
# where nothing more happens.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;
use Time::HiRes;

my $node = new_cluster('signers', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_key_epoch = 2
fieldcrypt.audit_worker_linger = 0
fieldcrypt.audit_seal_interval = 200
CONF
create_database($node, 'app');

my $sealed = <<'SQL';
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL

sub record
{
	my ($tenant) = @_;
	value($node, "SELECT fieldcrypt.create_key('$tenant')", db => 'app');
	$node->poll_query_until('app', $sealed) or die 'not sealed';
	return;
}

sub is_verified
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $first = value($node, 'SELECT public_key FROM fieldcrypt.audit_signers ORDER BY id LIMIT 1', db => 'app');
	return gives($node, "SELECT count(*), coalesce(string_agg(finding, ' '), '') FROM fieldcrypt.verify_audit_log(anchor => '$first') WHERE status <> 'ok'",
		'0|', "$name: verified from the first key on", db => 'app');
}

# Every worker leaves at once, so every checkpoint closes the log.
foreach my $second (1 .. 12)
{
	record("tenant $second");
	Time::HiRes::sleep(0.5);
}
gives($node, "SELECT count(*) >= 3, count(*) FILTER (WHERE introduced_by = 'mac') FROM fieldcrypt.audit_signers", 't|1',
	'keys follow each other', db => 'app');
gives($node, "SELECT bool_and(introduced_by = 'successor' AND is_clean) FROM fieldcrypt.audit_signers WHERE id > (SELECT min(id) FROM fieldcrypt.audit_signers)", 't',
	'and each is introduced by the one before it', db => 'app');
gives($node, 'SELECT max(c.at) - min(c.at) < interval \'15 s\' FROM fieldcrypt.audit_checkpoints AS c GROUP BY c.signer_id ORDER BY 1 LIMIT 1', 't',
	'none signs for long', db => 'app');
gives($node, 'SELECT bool_or(is_final) FROM fieldcrypt.audit_checkpoints', 't', 'though the checkpoints were final ones', db => 'app');
is_verified('keys that follow each other');

# Nothing happens for several epochs: the key is gone all the same, and its one successor waits.
my $before = value($node, 'SELECT count(*) FROM fieldcrypt.audit_signers', db => 'app');
Time::HiRes::sleep(16);
gives($node, 'SELECT count(*) FROM fieldcrypt.audit_signers', $before, 'a key that has signed nothing is not told of', db => 'app');
record('after a pause');
gives($node, "SELECT count(*) FROM fieldcrypt.audit_signers", $before + 1, 'after a pause of several epochs there is one more key', db => 'app');
gives($node, <<'SQL', 'successor|t', '  which was there, and its predecessor gone, long before it signed', db => 'app');
SELECT s.introduced_by, min(c.at) - s.introduced_at > interval '3 s'
  FROM fieldcrypt.audit_signers AS s JOIN fieldcrypt.audit_checkpoints AS c ON c.signer_id = s.id
 GROUP BY s.id ORDER BY s.id DESC LIMIT 1
SQL
is_verified('a pause');

# A worker that dies between signature and storing, with an epoch's end in between: what was signed is told of with
# the key that signed it.
{
	my $gate = session($node, db => 'app');
	$gate->value('BEGIN; LOCK TABLE fieldcrypt.audit_checkpoints IN ROW SHARE MODE');
	$gate->value('SAVEPOINT s');
	value($node, "SELECT fieldcrypt.create_key('gate')", db => 'app');
	$gate->value('LOCK TABLE fieldcrypt.audit_checkpoints IN SHARE MODE');
	my $waits = q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker' AND datname = 'app' AND wait_event_type = 'Lock'};
	SKIP:
	{
		skip 'the worker was faster', 1 unless $node->poll_query_until('postgres', $waits);
		value($node, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_fieldcrypt audit worker' AND datname = 'app'});
		Time::HiRes::sleep(13);
		$gate->value('ROLLBACK');
		ok($node->poll_query_until('app', $sealed), 'a checkpoint that was signed by a key that is gone is stored by the next worker');
	}
	$gate->close;
}
record('last');
is_verified('a worker that died');

no_crash($node);
$node->stop;
done_testing();
