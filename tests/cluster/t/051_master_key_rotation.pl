# The master key rotates while sessions encrypt and decrypt: no statement fails, every key comes under
# the new one, and then the old line goes away and nothing is missed.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

sub fingerprint { return unpack 'H*', hkdf(pack('H*', key_text(shift)), 'mek-fingerprint', 16); }

my $tenants = 2000;
my $node = new_cluster('primary');
my $file = $node->basedir . '/master.key';
my ($old, $new) = (fingerprint(1), fingerprint(2));

# Gives the file other keys, and waits until a running session has read them.
sub load_keys
{
	my (@numbers) = @_;
	write_key_file($file, map { key_text($_) } @numbers);
	configure($node);
	return;
}

my $status = 'SELECT fingerprint, is_loaded, is_current, encryption_keys, advice FROM fieldcrypt.master_key_status()';
my %advice = (
	current => 'new keys are wrapped by it',
	unused => 'not in use: CALL fieldcrypt.rotate_master_key() makes it the current one',
	done => 'nothing in this database needs it: its line can be removed, if no other database needs it',
);
my $readable = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'of ' || tenant), count(*) FROM kept};

# 0 tenants: nothing is touched.
my $result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()');
like($result->{err}, qr/nothing to do: this database has no encryption keys yet/, 'no keys: nothing to do');
gives($node, 'SELECT count(*) FROM fieldcrypt.master_keys', '0', 'no keys: no master key is written');

value($node, <<SQL);
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT t, fieldcrypt.encrypt_field('of ' || t, tenant => t) FROM (SELECT format('tenant %s', i) AS t FROM generate_series(1, $tenants) AS i) AS t;
CALL fieldcrypt.rotate_keys(force => true);
SQL
past_the_guard($node, <<'SQL');
UPDATE fieldcrypt.encryption_keys SET state = 'suspended' WHERE tenant = 'tenant 1' AND version = 1;
UPDATE fieldcrypt.encryption_keys SET state = 'compromised' WHERE tenant = 'tenant 2' AND version = 1;
UPDATE fieldcrypt.encryption_keys SET state = 'destroyed', wrapped_key = NULL WHERE tenant = 'tenant 3' AND version = 1;
SQL
value($node, q{DELETE FROM kept WHERE tenant IN ('tenant 1', 'tenant 3')});
# Two versions of each but one, and of the key of the audit log.
my ($values, $keys) = ($tenants - 2, 2 * $tenants + 1);

# The current one already.
$result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()');
like($result->{err}, qr/nothing to do: master key @{[ uc substr $old, 0, 8 ]}\.\.\. is the current one/, 'the current one: nothing to do');
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event LIKE 'master_key%'}, '0', 'the current one: nothing is recorded');

load_keys(2, 1);
gives($node, $status, "$old|t|t|$keys|$advice{current}\n$new|t|f|0|$advice{unused}", 'before: the status says what is to be done');
value($node, q{SELECT fieldcrypt.create_key('before')});
gives($node, q{SELECT encode(master_key_fingerprint, 'hex') FROM fieldcrypt.encryption_keys WHERE tenant = 'before'},
	$old, 'before: a new key is still wrapped by the current one');
++$keys;

# Sessions at work: they encrypt for known and new tenants, decrypt, and count what fails.
my $work = <<SQL;
DO \$\$
DECLARE
    t text;
BEGIN
    FOR i IN 1 .. 100000 LOOP
        EXIT WHEN EXISTS (SELECT FROM stop);
        t := format('tenant %s', 4 + (i * 37 + ID) % ($tenants - 4));
        INSERT INTO kept VALUES (t, fieldcrypt.encrypt_field('of ' || t, tenant => t));
        t := format('new %s of ID', i);
        INSERT INTO kept VALUES (t, fieldcrypt.encrypt_field('of ' || t, tenant => t));
        PERFORM fieldcrypt.decrypt_field(value) FROM kept TABLESAMPLE SYSTEM (1) LIMIT 20;
        COMMIT;
    END LOOP;
END \$\$;
SQL
value($node, 'CREATE TABLE stop ()');
my @workers = map { session($node) } 1 .. 2;
$workers[$_]->send($work =~ s/ID/$_/gr) foreach 0, 1;
my $open = session($node);
$open->value(q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 9'});
$node->poll_query_until('postgres', q{SELECT count(*) > 10 FROM kept WHERE tenant LIKE 'new %'}) or die;

$result = run_sql($node, 'CALL fieldcrypt.rotate_master_key(batch_size => 100)');
is("@{ $result->{sqlstates} }", '', 'the rotation succeeds') or diag $result->{err};
unlike($result->{err}, qr/WARNING/, 'the rotation: no warning');
like($result->{err}, qr/switched to master key @{[ uc substr $new, 0, 8 ]}\.\.\.: \d+ keys to wrap again/, 'the rotation says what it will do');
like($result->{err}, qr/\d+ wrapped again; master key @{[ uc substr $new, 0, 8 ]}\.\.\. wraps all keys of this database/, 'the rotation says what it did');
my ($rewrapped) = $result->{err} =~ /(\d+) wrapped again;/;
cmp_ok($rewrapped, '>=', $keys, "every key was wrapped again ($rewrapped)");

$open->gives(q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant IN ('tenant 10', 'tenant 9') AND value IS NOT NULL ORDER BY 1 LIMIT 1}, 'of tenant 10', 'a transaction that was open goes on');
$open->value('COMMIT');
my $before_stop = value($node, q{SELECT count(*) FROM kept WHERE tenant LIKE 'new %'});
$node->poll_query_until('postgres', qq{SELECT count(*) > $before_stop FROM kept WHERE tenant LIKE 'new %'}) or die 'the workers do not go on';
value($node, 'INSERT INTO stop DEFAULT VALUES');
foreach my $worker (@workers)
{
	my $done = $worker->run('SELECT 1');
	is("@{ $done->{sqlstates} }", '', 'a session at work throughout: nothing failed') or diag $done->{err};
}
$values = value($node, 'SELECT count(*) FROM kept');

gives($node, $readable, "$values|$values", 'everything is readable');
gives($node, q{SELECT count(*) FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL AND encode(master_key_fingerprint, 'hex') <> '} . $new . q{'}, '0', 'every key is wrapped by the new one');
gives($node, q{SELECT string_agg(DISTINCT state, ' ' ORDER BY state) FROM fieldcrypt.encryption_keys WHERE tenant IN ('tenant 1', 'tenant 2', 'tenant 3')},
	'active compromised destroyed suspended', 'keys keep their states');
gives($node, $status, qr/^\Q$new|t|t|\E\d+\Q|$advice{current}\E\n\Q$old|t|f|0|$advice{done}\E$/, 'after: the status says that nothing needs the old one');
gives($node, q{SELECT string_agg(event, ' ' ORDER BY id), bool_and(actor = session_user) FROM fieldcrypt.audit_log WHERE event LIKE 'master_key%'},
	'master_key_rotation_started master_key_rotation_finished|t', 'begin and end are recorded');
gives($node, q{SELECT reason ~ '^to [0-9a-f]{32}: \d+ wrapped again, 0 failed, 0 left' FROM fieldcrypt.audit_log WHERE event = 'master_key_rotation_finished'}, 't', 'and what was done');
gives($node, q{SELECT is_current, retired_at IS NULL FROM fieldcrypt.master_keys ORDER BY 1 DESC}, "t|t\nf|f", 'the old one is retired');
$result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()');
like($result->{err}, qr/nothing to do/, 'a second time: nothing to do');

# The old line goes.
load_keys(2);
gives($node, $readable, "$values|$values", 'without the old line: everything is readable');
value($node, q{SELECT fieldcrypt.create_key('after')});
gives($node, q{SELECT encode(master_key_fingerprint, 'hex') FROM fieldcrypt.encryption_keys WHERE tenant = 'after'},
	$new, 'without the old line: new tenants work');
value($node, 'CALL fieldcrypt.rotate_keys(force => true)');
gives($node, $readable, "$values|$values", 'without the old line: rotation works');
gives($node, "$status WHERE NOT is_current", "$old|f|f|0|" . $advice{done}, 'without the old line: the status');
gives($node, 'SELECT count(problem) FROM fieldcrypt.master_key_status()', '0', 'without the old line: no problem');
$node->restart;
gives($node, $readable, "$values|$values", 'after a restart: everything is readable');
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET state = 'deactivated' WHERE tenant = 'tenant 1' AND version = 1});
load_keys(1);
refused($node, 'SELECT fieldcrypt.decrypt_field(value) FROM kept LIMIT 1', 'KF010', qr/wrapped by master key @{[ uc substr $new, 0, 8 ]}/, 'with the old line alone: refused');
refused($node, q{SELECT fieldcrypt.create_key('another')}, 'KF010', 'with the old line alone: no new key');
refused($node, 'CALL fieldcrypt.rotate_master_key()', 'KF010', qr/wrapped by master key/, 'with the old line alone: no rotation either');

# And back again, which an old fingerprint allows.
load_keys(1, 2);
$result = run_sql($node, 'CALL fieldcrypt.rotate_master_key(batch_size => 100000)');
like($result->{err}, qr/master key @{[ uc substr $old, 0, 8 ]}\.\.\. wraps all keys/, 'back to a retired one');
load_keys(1);
gives($node, $readable, "$values|$values", 'back: everything is readable');
gives($node, q{SELECT fieldcrypt.create_key('and back') > 0}, 't', 'back: new tenants work');

# A session's cache survives: what it had unwrapped is only looked up again. So a wrapping that was damaged
# since is seen by others first.
load_keys(2, 1);
my $warm = session($node);
$warm->value(q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 50'});
value($node, 'CALL fieldcrypt.rotate_master_key()');
past_the_guard($node, q{UPDATE fieldcrypt.encryption_keys SET wrapped_key = set_byte(wrapped_key, 70, 1 # get_byte(wrapped_key, 70)) WHERE tenant = 'tenant 50'});
my $fifty = q{SELECT DISTINCT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 50'};
$warm->gives($fifty, 'of tenant 50', 'a session with a full cache goes on, and unwraps nothing again');
refused($node, $fifty, 'KF011', 'a new session has to');
$warm->close;
$_->close foreach @workers, $open;
no_crash($node);
$node->stop;
done_testing();
