# One statement that reaches its data by two connections, as Citus and foreign tables do: a tenant's first key that one of
# them is making keeps the other waiting. create_key first, and nobody waits.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary');
my $to = sprintf 'host=%s port=%s dbname=postgres', $node->host, $node->port;
value($node, 'CREATE EXTENSION dblink');

my $encrypt = sub { return "SELECT fieldcrypt.key_id(fieldcrypt.encrypt_field(''x'', tenant => ''$_[0]''))"; };
my $both = sub {
	my ($tenant) = @_;
	my $sql = $encrypt->($tenant);
	return <<"SQL";
SELECT dblink_connect('one', '$to'), dblink_connect('two', '$to');
SELECT dblink_exec('one', 'BEGIN'), dblink_exec('two', 'BEGIN');
SELECT dblink_exec('two', 'SET lock_timeout = 500');
SELECT key FROM dblink('one', '$sql') AS d(key bigint);
SELECT key FROM dblink('two', '$sql') AS d(key bigint);
SELECT dblink_exec('one', 'COMMIT'), dblink_exec('two', 'COMMIT');
SQL
};

# Nobody sees that the second waits for the first, which waits for the statement: it ends by a timeout, or where Citus
# looks for such circles, by 40P01.
my $result = run_sql($node, $both->('new'));
like("@{ $result->{sqlstates} }", qr/^55P03/, 'the second connection waits for the first') or diag $result->{err};

value($node, q{SELECT fieldcrypt.create_key('ahead')});
my $key = value($node, q{SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'ahead'});
$result = run_sql($node, $both->('ahead'));
is("@{ $result->{sqlstates} }", '', 'made ahead of time: nobody waits') or diag $result->{err};
is(scalar(() = $result->{out} =~ /^\Q$key\E$/mg), 2, 'both encrypt with it');

no_crash($node);
$node->stop;
done_testing();
