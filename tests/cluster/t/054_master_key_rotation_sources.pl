# The master key rotates from a command, and from the setting, as it does from a file.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

sub fingerprint { return unpack 'H*', hkdf(pack('H*', key_text(shift)), 'mek-fingerprint', 16); }

my $node = new_cluster('primary', start => 0);
my $folder = $node->basedir;
my $store = "$folder/store";
# What a key management service would be: a script that prints what it has, and counts its calls.
my $command = "$folder/command.sh";
open my $script, '>', $command or die;
print $script "#!/bin/sh\necho >> $folder/calls\ncat $store\n";
close $script or die;
chmod 0700, $command;
$node->append_conf('postgresql.conf', "fieldcrypt.master_key_file = ''\nfieldcrypt.master_key_command = '$command'\n");

sub store { return write_key_file($store, map { key_text($_) } @_); }
sub calls { return -e "$folder/calls" ? scalar(() = slurp_file("$folder/calls") =~ /\n/g) : 0; }

store(1);
$node->start;
value($node, <<'SQL');
CREATE EXTENSION pg_fieldcrypt;
CREATE TABLE kept (tenant text, value fieldcrypt.encrypted);
INSERT INTO kept SELECT t, fieldcrypt.encrypt_field('of ' || t, tenant => t) FROM (SELECT 'tenant ' || i AS t FROM generate_series(1, 30) AS i) AS t;
SQL
my $readable = q{SELECT count(*) FILTER (WHERE fieldcrypt.decrypt_field(value) = 'of ' || tenant) FROM kept};
my $wrapped = q{SELECT DISTINCT encode(master_key_fingerprint, 'hex') FROM fieldcrypt.encryption_keys};

# Running sessions with the old key; nobody reloads. What needs the new key asks the command again.
my ($reader, $writer) = map { session($node) } 1, 2;
$_->value(q{SELECT fieldcrypt.decrypt_field(value) FROM kept WHERE tenant = 'tenant 1'}) foreach $reader, $writer;
store(2, 1);
my $before = calls();
my $result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()');
like($result->{err}, qr/: 31 wrapped again; master key @{[ uc substr fingerprint(2), 0, 8 ]}/, 'command: it rotates') or diag $result->{err};
gives($node, $wrapped, fingerprint(2), 'command: all keys are under the new one');
cmp_ok(calls() - $before, '<=', 4, 'command: which runs a few times, not once a key');
$before = calls();
$reader->gives($readable, '30', 'command: a session that was not told reads on');
$writer->gives(q{SELECT fieldcrypt.create_key('new') > 0}, 't', 'command: and makes keys');
is(calls() - $before, 2, 'command: each asked once more');
gives($node, $wrapped, fingerprint(2), 'command: their keys are under the new one');
store(2);
$node->reload;
gives($node, $readable, '30', 'command: without the old one all is readable');
gives($node, q{SELECT fieldcrypt.create_key('newer') > 0}, 't', 'command: without the old one new tenants work');

# A command that fails, or gives the wrong key.
store(3);
refused($node, 'CALL fieldcrypt.rotate_master_key()', 'KF010', qr/wrapped by master key @{[ uc substr fingerprint(2), 0, 8 ]}/, 'command: the old key left out');
unlink $store;
refused($node, 'CALL fieldcrypt.rotate_master_key()', 'KF009', 'command: it fails');
$before = calls();
refused($node, q{DO $$ BEGIN FOR i IN 1 .. 200 LOOP BEGIN PERFORM fieldcrypt.decrypt_field(value) FROM kept; EXCEPTION WHEN SQLSTATE 'KF009' THEN NULL; END; END LOOP; RAISE 'over' USING ERRCODE = 'KF999'; END $$},
	'KF999', 'command: it goes on failing');
store(3);
my $wrong = session($node);
$wrong->refused($readable, 'KF010', 'command: a wrong key');
$before = calls();
$wrong->refused(q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP BEGIN PERFORM fieldcrypt.decrypt_field(value) FROM kept; EXCEPTION WHEN SQLSTATE 'KF010' THEN NULL; END; END LOOP; RAISE 'over' USING ERRCODE = 'KF999'; END $$},
	'KF999', 'command: used by an application that tries again and again');
cmp_ok(calls() - $before, '<=', 5, 'command: is asked once a second at most');
gives($node, $wrapped, fingerprint(2), 'command: nothing was changed') if store(2);
$_->close foreach $reader, $writer, $wrong;

# The setting: needs restarts, and works.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.master_key_command = ''\nfieldcrypt.master_key = '" . join(q{\n}, map { key_text($_) } 4, 2) . "'\n");
$node->restart;
$result = run_sql($node, 'CALL fieldcrypt.rotate_master_key()');
like($result->{err}, qr/: 33 wrapped again; master key @{[ uc substr fingerprint(4), 0, 8 ]}/, 'setting: it rotates') or diag $result->{err};
unlike(slurp_file($node->logfile), qr/@{[ key_text(4) ]}/, 'setting: the log does not show the key');
$node->append_conf('postgresql.conf', "fieldcrypt.master_key = '" . key_text(4) . "'\n");
$node->restart;
gives($node, $readable, '30', 'setting: without the old one all is readable');
gives($node, q{SELECT fieldcrypt.create_key('newest') > 0}, 't', 'setting: without the old one new tenants work');

no_crash($node);
$node->stop;
done_testing();
