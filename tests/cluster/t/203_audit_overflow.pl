# A full queue: the server log and a counted gap, or a refusal. Never a silent loss, never a stuck session.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_queue_size = '64kB'
fieldcrypt.audit_master_key_loads = sessions
CONF
value($node, <<'SQL');
CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value;
CREATE TABLE seen (code text);
-- Fails so many times, and says with which codes.
CREATE FUNCTION fail(times int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    codes jsonb := '{}';
BEGIN
    FOR i IN 1 .. times LOOP
        BEGIN
            PERFORM fieldcrypt.decrypt_field(value) FROM kept;
        EXCEPTION WHEN OTHERS THEN
            codes := codes || jsonb_build_object(SQLSTATE, coalesce((codes ->> SQLSTATE)::int, 0) + 1);
        END;
    END LOOP;
    RETURN codes;
END $$;
SQL
my $failed = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'};
my $gaps = q{SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'audit_gap'};
my $line = qr/fieldcrypt audit: .*"event":"decrypt_failed".*"remark":"overflow"/;

sub logged { my $count = () = slurp_file($node->logfile) =~ /$line/g; return $count }

# The worker can't write: somebody holds a lock on the log
sub stuck
{
	my $holder = session($node);
	$holder->value('BEGIN; LOCK TABLE fieldcrypt.audit_log IN ACCESS EXCLUSIVE MODE; SELECT 1');
	return $holder;
}

{
	my $holder = stuck();
	my $began = Time::HiRes::time();
	is(value($node, 'SELECT fail(1000)'), '{"KF002": 1000}', 'log: what fails goes on to say why');
	cmp_ok(Time::HiRes::time() - $began, '<', 10, 'no session waits for the worker');
	my $overflowed = logged();
	cmp_ok($overflowed, '>', 0, "some events found no room ($overflowed): they are in the server log");
	$holder->value('ROLLBACK; SELECT 1');
	$holder->close;
	ok(eventually($node, $failed, 1000 - $overflowed), 'the others are written') or diag(value($node, $failed));
	ok(eventually($node, $gaps, $overflowed), 'and the log tells how many are not in it') or diag(value($node, $gaps));
	is(value($node, 'SELECT gap_events FROM fieldcrypt.audit_status()'), $overflowed, 'the status too');
	like(value($node, q{SELECT status FROM fieldcrypt.health() WHERE "check" = 'audit_gaps'}), qr/warning|critical/, 'and health');
}

{
	configure($node, 'fieldcrypt.audit_on_overflow' => 'error');
	my ($written, $gap, $lines) = (value($node, $failed), value($node, $gaps), logged());
	my $before = session($node);
	is($before->value(q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept}), 'kept', 'a session has loaded the master key');
	my $holder = stuck();
	my $codes = value($node, 'SELECT fail(1000)');
	my ($told) = $codes =~ /"KF002": (\d+)/;
	my ($refused) = $codes =~ /"KF026": (\d+)/;
	is(($told // 0) + ($refused // 0), 1000, 'error: each failure is told or refused') or diag($codes);
	cmp_ok($refused // 0, '>', 0, 'what can\'t be recorded is refused');
	refused($node, 'SELECT fieldcrypt.decrypt_field(value) FROM kept', 'KF026', qr/audit queue is full/, 'a refusal says so');
	refused($node, 'DELETE FROM fieldcrypt.encryption_keys', 'KF026', 'another refused call is refused still');
	is($before->value(q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept}), 'kept', 'what needs no record goes on');
	refused($node, q{SELECT fieldcrypt.decrypt_field(value, 'place') FROM kept}, 'KF026', 'a load of the master key that can\'t be recorded is refused');
	$holder->value('ROLLBACK; SELECT 1');
	$holder->close;
	ok(eventually($node, $failed, $written + $told), 'none that was told is lost') or diag(value($node, $failed) . " instead of $written + $told");
	cmp_ok(logged() - $lines, '>=', $refused, 'those that were refused are in the server log');
	is(value($node, 'SELECT fail(10)'), '{"KF002": 10}', 'then all goes on');
}

# Nobody but the administrator chooses
refused($node, q{SET fieldcrypt.audit_on_overflow = 'log'}, '55P02', 'a session can\'t choose what an overflow does');
refused($node, q{ALTER ROLE CURRENT_USER SET fieldcrypt.audit_on_overflow = 'log'}, '55P02', 'nor a role');

no_crash($node);
done_testing();
