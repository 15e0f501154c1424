# Literals in the lines of libraries that write statements to the server log themselves: the real pgaudit.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

needs_library('pgaudit');

my $node = new_cluster('libraries', conf => <<'CONF');
shared_preload_libraries = 'pgaudit, pg_fieldcrypt'
pgaudit.log = 'all'
pgaudit.log_parameter = on
CONF
value($node, 'CREATE TABLE patients (id int, ssn fieldcrypt.encrypted); CREATE TABLE others (id int, name text)');

value($node, q{SELECT fieldcrypt.encrypt_field('CANARY of a call')});
value($node, q{INSERT INTO patients SELECT 1, fieldcrypt.encrypt_field('CANARY, with "quotes", ''and'' commas', 'x')});
value($node, q{INSERT INTO others VALUES (1, 'SHOWN')});
value($node, q{PREPARE p AS SELECT fieldcrypt.encrypt_field($1); EXECUTE p('CANARY executed')});
my $script = PostgreSQL::Test::Utils::tempdir() . '/bound.sql';
append_to_file($script, "SELECT fieldcrypt.encrypt_field(:x);\n");

# Runs the script with the value as a bound parameter.
sub bound
{
	my ($protocol) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'pgbench', '-n', '-t', 1, '-M', $protocol, '-D', 'x=CANARYbound', '-f', $script, $node->connstr('postgres') ], '>', \$out, '2>', \$err)
	  or die $err;
	return;
}

bound($_) foreach qw(extended prepared);
configure($node, 'pgaudit.log_parameter' => 'off');
bound('extended');
$node->stop;

my $log = slurp_file($node->logfile);
like($log, qr/AUDIT: SESSION.*encrypt_field\('\*\*\*'\)/, 'pgaudit writes the statement, masked');
like($log, qr/AUDIT: SESSION.*'SHOWN'/, 'and one that is about other tables as it is');
like($log, qr/AUDIT: \*\*\*/, 'nothing of a line with values of parameters');
like($log, qr/AUDIT: SESSION.*encrypt_field\(\$1\).*<not logged>/, 'without values the statement');
unlike($log, qr/CANARY/, 'no literal and no value');
no_crash($node);
done_testing();
