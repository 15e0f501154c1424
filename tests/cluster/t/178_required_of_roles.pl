# Whether a required tenant is required of who comes in, and what health says where it is not: settings of a role are
# for who logs in as that role, and what is temporary stays for the next client of a connection.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
value($node, <<'SQL');
CREATE ROLE app NOLOGIN; CREATE ROLE authenticator LOGIN NOINHERIT; GRANT app TO authenticator;
CREATE ROLE bystander LOGIN; CREATE ROLE reader LOGIN;
SELECT fieldcrypt.grant_access('app', 'encrypt', 'decrypt'), fieldcrypt.grant_access('reader', 'decrypt');
CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('of acme', tenant => 'acme') AS v;
GRANT SELECT ON t TO app;
REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC;
SQL
my $read = 'SET ROLE app; SELECT fieldcrypt.decrypt_field(v) FROM t';
my @in = (user => 'authenticator');

sub health
{
	my ($expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return gives($node, q{SELECT status || ': ' || detail || coalesce(' HINT ' || hint, '') FROM fieldcrypt.health() WHERE "check" = 'require_tenant'}, $expected, "health: $name");
}

health(qr/^ok: no role .* is required/, 'nothing is required');

# SET ROLE brings no settings along.
value($node, 'ALTER ROLE app SET fieldcrypt.require_tenant = locked');
gives($node, $read, 'of acme', 'the trap: a setting of the role that a client becomes is not in force', @in);
health(qr/^warning: .* has no effect for role "authenticator" \(who becomes "app"\).* HINT ALTER ROLE .*ALTER DATABASE.*docs\/poolers/, 'and health says so');
value($node, 'ALTER ROLE app IN DATABASE postgres SET fieldcrypt.require_tenant = on; ALTER ROLE app RESET fieldcrypt.require_tenant');
health(qr/^warning: .* has no effect for role "authenticator"/, 'set in this database alone');
value($node, 'ALTER ROLE app IN DATABASE postgres RESET fieldcrypt.require_tenant; CREATE ROLE "group" NOLOGIN; GRANT app TO "group"; CREATE ROLE member LOGIN; GRANT "group" TO member; ALTER ROLE app SET fieldcrypt.require_tenant = locked');
health(qr/^warning: .* 2 roles: "authenticator" \(who becomes "app"\), "member" \(who becomes "app"\)/, 'members of members, who inherit, too');
value($node, 'DROP ROLE member; DROP ROLE "group"');
value($node, 'ALTER ROLE app LOGIN');
health(qr/^warning: .* has no effect for role "authenticator"/, 'the role may log in itself, too');
value($node, 'ALTER ROLE app NOLOGIN');
value($node, 'ALTER ROLE authenticator SET fieldcrypt.require_tenant = off');
health(qr/^warning: .* has no effect for role "authenticator"/, 'off for the role that logs in');

# Where it is in force.
value($node, 'ALTER ROLE authenticator SET fieldcrypt.require_tenant = locked');
refused($node, $read, 'KF029', 'set for the role that logs in', @in);
health(qr/^ok: roles that are required/, 'set for the role that logs in');
value($node, 'ALTER ROLE authenticator RESET fieldcrypt.require_tenant; ALTER DATABASE postgres SET fieldcrypt.require_tenant = on');
refused($node, $read, 'KF029', 'set for the database', @in);
health(qr/^ok/, 'set for the database');
value($node, 'ALTER ROLE authenticator SET fieldcrypt.require_tenant = off');
gives($node, $read, 'of acme', 'set for the database, and off for the role that logs in', @in);
health(qr/^warning: .* has no effect for role "authenticator"/, 'set for the database, and off for the role that logs in');
value($node, 'ALTER ROLE authenticator RESET fieldcrypt.require_tenant; ALTER DATABASE postgres RESET fieldcrypt.require_tenant');
configure($node, 'fieldcrypt.require_tenant' => 'locked');
refused($node, $read, 'KF029', 'set for the server', @in);
health(qr/^ok: roles that are required/, 'set for the server');
configure($node);

# Temporary objects, of roles of which a tenant is required.
value($node, 'ALTER ROLE app RESET fieldcrypt.require_tenant; GRANT TEMPORARY ON DATABASE postgres TO PUBLIC');
health(qr/^ok: no role/, 'nothing is required of who makes temporary objects');
value($node, 'ALTER ROLE reader SET fieldcrypt.require_tenant = on; ALTER ROLE bystander SET fieldcrypt.require_tenant = on');
health(qr/^warning: a tenant is required of role "reader", and a temporary .* HINT REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC.*docs\/poolers/, 'a role that reads may make temporary objects');
configure($node, 'fieldcrypt.require_tenant' => 'locked');
health(qr/^warning: a tenant is required of 2 roles: "app", "reader"/, 'required by the server: all that may');
configure($node, 'fieldcrypt.health_accepted' => 'require_tenant');
health(qr/^ok: accepted by/, 'accepted');
configure($node);
value($node, 'REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC');
health(qr/^ok: roles that are required/, 'not any more');
value($node, 'GRANT TEMPORARY ON DATABASE postgres TO reader');
health(qr/^warning: a tenant is required of role "reader"/, 'by a grant of its own');
no_crash($node);
$node->stop;
done_testing();
