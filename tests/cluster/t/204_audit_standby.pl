# On a standby events go to its server log; when it is promoted, its log goes on as a log of its own, and
# verification says so until somebody says why.

use strict;
use warnings;

use FieldcryptTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_cluster('primary', init => { allows_streaming => 1 }, conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = '500ms'
CONF
value($primary, q{CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value});
# Tenants whose names would be another line, another field or markup, if they were not written as JSON.
my %hostile = (
	quotes => q{a "quoted", 'single', back\slash \"},
	field => q{","event":"key_created","tenant":"},
	newline => "one\ntwo\r\nfieldcrypt audit: {\"event\":\"forged\"}",
	markup => '<script>alert(1)</script>-->]]>&amp;',
	control => join('', map { chr } 1 .. 31, 127),
	escape => "\e[2J\e]0;title\a \\u0022 \\n %s %n",
	unicode => "\x{85}\x{a0}\x{2028}\x{2029}\x{202e}\x{feff}\x{1f512}",
);
my %is_imported = map { $_ => 1 } qw(newline control escape unicode);
value($primary, 'CREATE TABLE hostile (name text, value fieldcrypt.encrypted)');
foreach my $name (sort keys %hostile)
{
	my $hex = unpack 'H*', $hostile{$name} =~ s/(.)/my $c = $1; utf8::encode($c); $c/gser;
	my $tenant = "convert_from('\\x$hex', 'UTF8')";
	# Keys have such names by an import only; then they don't open here.
	my $new = $is_imported{$name} ? "'to be $name'" : $tenant;
	value($primary, "INSERT INTO hostile SELECT '$name', fieldcrypt.encrypt_field('x', 'place', $new)");
	rename_tenant($primary, $new, $tenant) if $is_imported{$name};
}
my $failing = 'SELECT fieldcrypt.decrypt_field(value) FROM kept';
my $failed = q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'};
refused($primary, $failing, 'KF002', 'a failure on the primary');
ok(eventually($primary, $failed, 1), 'is recorded there');
ok(eventually($primary, q{SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), 'and sealed');

$primary->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'copy', has_streaming => 1);
use_key_file($standby, key_text(1));
$standby->start;
$primary->wait_for_catchup($standby);

refused($standby, $failing, 'KF002', 'a failure on the standby');
my ($line) = slurp_file($standby->logfile) =~ /fieldcrypt audit: (\{.*"event":"decrypt_failed".*\})/;
ok(defined $line, 'is in its server log');
like($line // '', qr/"error_code":"KF002".*"tenant":"default"/, 'with code and tenant, as JSON');
foreach my $name (sort keys %hostile)
{
	my $before = -s $standby->logfile;
	refused($standby, "SELECT fieldcrypt.decrypt_field(value) FROM hostile WHERE name = '$name'", $is_imported{$name} ? 'KF011' : 'KF002', "a failure of a hostile tenant: $name");
	my @lines = grep { /fieldcrypt audit: |forged|key_created/ } split /\n/, slurp_file($standby->logfile, $before);
	my @events = map { eval { JSON::PP->new->utf8->decode(/ LOG:  fieldcrypt audit: (\{.*\})$/ ? $1 : '') } // { event => 'no JSON' } } @lines;
	is(join(' ', map { $_->{event} } @events), 'decrypt_failed', "is a line of JSON: $name") or diag @lines;
	is($events[0]{tenant}, $hostile{$name}, "which tells its name: $name");
	unlike(join('', @lines), qr/[\x00-\x1f]/, "without control characters: $name");
}
is(value($standby, 'SELECT is_standby, worker_pid IS NULL FROM fieldcrypt.audit_status()'), 't|t', 'the status says that it is a standby, without a worker');
is(scalar(processes(command => 'pg_fieldcrypt audit launcher', parent => postmaster($standby))), 0, 'nor has it a launcher');
is(value($standby, q{SELECT status FROM fieldcrypt.verify_audit_log() LIMIT 1}), 'ok', 'its log can be verified');

$standby->promote;
refused($standby, $failing, 'KF002', 'a failure after the promotion');
ok(eventually($standby, $failed, 2), 'is recorded in its own log');
ok(eventually($standby, q{SELECT count(*) FROM fieldcrypt.audit_origins}, 2), 'which has a new origin');
ok(eventually($standby, q{SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), 'is sealed');
like(value($standby, q{SELECT string_agg(finding, ' ') FROM fieldcrypt.verify_audit_log()}), qr/fork/, 'and verification tells of the fork');
gives($standby, q{SELECT fieldcrypt.acknowledge_audit_fork('promoted in the exercise of today')}, '1', 'until it is acknowledged');
ok(eventually($standby, q{SELECT is_final FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1}, 't'), 'which is sealed, too');
is(value($standby, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE finding LIKE '%fork%' AND status <> 'ok'}), 0, 'then it does not');

# Nobody hears of it on the primary, which goes on under its own name.
refused($primary, $failing, 'KF002', 'the primary goes on');
ok(eventually($primary, $failed, 2), 'with its own log');
is(value($primary, q{SELECT count(*) FROM fieldcrypt.audit_origins}), 1, 'under its own name');

no_crash($primary);
no_crash($standby);
done_testing();
