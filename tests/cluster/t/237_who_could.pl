# "Who could decrypt on 1 March?": which roles each privilege reaches stands in the log whenever it has changed, whether
# that was grant_access, a plain GRANT, a membership or an attribute of a role; and who_could tells it for any time.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('primary', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_worker_linger = 500
fieldcrypt.audit_seal_interval = 200
CONF
value($node, <<'SQL');
SET password_encryption = 'md5';
CREATE ROLE app LOGIN; CREATE ROLE readers; CREATE ROLE heir LOGIN INHERIT IN ROLE readers; CREATE ROLE switcher LOGIN NOINHERIT IN ROLE readers;
CREATE ROLE "O'Neil ""x"" /" LOGIN; CREATE ROLE boss LOGIN SUPERUSER; CREATE ROLE maker LOGIN CREATEROLE; CREATE ROLE plain LOGIN; CREATE ROLE nobody LOGIN;
CREATE ROLE auditor LOGIN; CREATE ROLE keeper LOGIN; CREATE ROLE all_data LOGIN IN ROLE pg_read_all_data;
SELECT fieldcrypt.grant_access('readers', 'decrypt'), fieldcrypt.grant_access('app', 'encrypt'), fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('keeper', 'backup');
SQL
my @auditor = (user => 'auditor');
# From PostgreSQL 16 on CREATEROLE opens no role but those that it was given with ADMIN OPTION, and whether rights are inherited
# is said of each membership when it is granted.
my $is_open = server_version($node) < 16;
sub maker { return $is_open ? "maker=CREATEROLE: GRANT $_[0], " : '' }

# Nothing is known, and that is not said by an empty answer.
refused($node, q{SELECT * FROM fieldcrypt.who_could('decrypt')}, 'P0002', qr/does not tell who could what/, 'nothing is known', @auditor);
refused($node, q{SELECT * FROM fieldcrypt.who_could('Decrypt')}, '22023', qr/none of the privileges/, 'a privilege that is none', @auditor);
refused($node, q{SELECT * FROM fieldcrypt.who_could(NULL)}, '22004', 'NULL', @auditor);
gives($node, 'SELECT fieldcrypt.snapshot_access()', '0', 'before there is a key nobody can do anything');
value($node, q{SELECT fieldcrypt.create_key('default')});
refused($node, $_, '42501', "$_: not for everybody", user => 'nobody') foreach 'SELECT fieldcrypt.snapshot_access()', q{SELECT * FROM fieldcrypt.who_could('decrypt')}, 'SELECT fieldcrypt_internal.access_step()', 'SELECT fieldcrypt_internal.effective_access()';
gives($node, 'SELECT fieldcrypt.snapshot_access()', '6', 'a row for each privilege', @auditor);
gives($node, 'SELECT fieldcrypt.snapshot_access()', '0', 'and none if nothing has changed', @auditor);

my $superuser = value($node, 'SELECT current_user');
sub who
{
	my ($privilege, $at) = @_;
	$at //= 'clock_timestamp()';
	return value($node, "SELECT string_agg(role || '=' || how, ', ' ORDER BY role COLLATE \"C\") FROM fieldcrypt.who_could('$privilege', $at) WHERE role NOT IN ('$superuser', 'boss')", @auditor);
}
is(value($node, q{SELECT string_agg(concat_ws('=', role, how, can_login), ', ' ORDER BY role) FROM fieldcrypt.who_could('decrypt') WHERE how = 'superuser'}, @auditor), "boss=superuser=t, $superuser=superuser=t", 'superusers');
is(who('decrypt'), 'heir=inherits from readers, ' . maker('readers') . 'readers=granted, switcher=SET ROLE readers', 'who could decrypt');
is(who('encrypt') . ', ', 'app=granted, ' . maker('app'), 'who could encrypt');
is(who('reencrypt'), '', 'who could re-encrypt');
is(who('audit'), 'all_data=inherits from pg_read_all_data, auditor=granted, keeper=granted, ' . maker('auditor') . 'pg_read_all_data=granted',
	'who could read the log: who backs it up, too');
is(who('backup'), 'all_data=inherits from pg_read_all_data, keeper=granted, ' . maker('keeper') . 'pg_read_all_data=granted', 'who could read the wrapped keys');
# It is so: who is listed can, who is not can not.
value($node, q{CREATE TABLE t AS SELECT fieldcrypt.encrypt_field('x') AS v; GRANT SELECT ON t TO PUBLIC});
gives($node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'heir can', user => 'heir');
gives($node, 'SET ROLE readers; SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', 'switcher can', user => 'switcher');
maker_can('readers', 'readers');
refused($node, 'SELECT fieldcrypt.decrypt_field(v) FROM t', '42501', "$_ can't", user => $_) foreach qw(app auditor keeper nobody plain);

# Whether a role with CREATEROLE becomes a member of another, and with that of one whose values it reads.
sub maker_can
{
	my ($door, $reader) = @_;
	my $sql = "GRANT $door TO maker; SET ROLE $reader; SELECT fieldcrypt.decrypt_field(v) FROM t; RESET ROLE; REVOKE $door FROM maker";
	return gives($node, $sql, 'x', "maker can by $door", user => 'maker') if $is_open;
	is((run_sql($node, $sql, user => 'maker'))->{out}, '', "maker can't by $door");
	value($node, "GRANT $door TO maker WITH ADMIN OPTION");
	gives($node, "SET ROLE $reader; SELECT fieldcrypt.decrypt_field(v) FROM t", 'x', "maker can with ADMIN OPTION on $door", user => 'maker');
	return value($node, "REVOKE $door FROM maker");
}

# Whatever changes it is seen: a plain GRANT of any of the functions, a membership, an attribute, PUBLIC; and what it was before stays told.
my @steps = (
	[ q{GRANT EXECUTE ON FUNCTION fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypted, text) TO plain}, 'plain=granted', 'a plain GRANT' ],
	[ q{REVOKE EXECUTE ON FUNCTION fieldcrypt.decrypt_field_bytea(fieldcrypt.encrypted, text) FROM plain}, undef, 'a plain REVOKE' ],
	[ q{GRANT readers TO app}, 'app=inherits from readers', 'a membership' ],
	$is_open
	? ([ q{ALTER ROLE app NOINHERIT}, 'app=SET ROLE readers', 'an attribute' ],
		[ q{REVOKE readers FROM app; ALTER ROLE nobody CREATEROLE}, 'nobody=CREATEROLE: GRANT readers', 'CREATEROLE' ])
	: ([ q{GRANT readers TO app WITH INHERIT FALSE}, 'app=SET ROLE readers', 'an option' ],
		[ q{REVOKE readers FROM app; GRANT readers TO nobody WITH ADMIN OPTION, INHERIT FALSE, SET FALSE}, 'nobody=SET ROLE readers', 'ADMIN OPTION' ],
		[ q{REVOKE readers FROM nobody}, 'heir=inherits from readers', 'and its end' ]),
	[ q{ALTER ROLE nobody SUPERUSER}, 'nobody=superuser', 'a superuser' ],
	[ q{ALTER ROLE nobody NOSUPERUSER NOCREATEROLE; GRANT EXECUTE ON FUNCTION fieldcrypt.try_decrypt_field(fieldcrypt.encrypted, text) TO PUBLIC}, 'nobody=granted to PUBLIC', 'PUBLIC' ],
	[ q{REVOKE EXECUTE ON FUNCTION fieldcrypt.try_decrypt_field(fieldcrypt.encrypted, text) FROM PUBLIC; GRANT readers TO "O'Neil ""x"" /"}, q{O'Neil "x" /=inherits from readers}, 'a strange name' ]);
my @times;
foreach my $step (@steps)
{
	my ($sql, $expected, $name) = @$step;
	push @times, [ value($node, 'SELECT clock_timestamp()'), who('decrypt'), "before $name" ];
	value($node, $sql);
	gives($node, 'SELECT fieldcrypt.snapshot_access() > 0', 't', "$name is seen", @auditor);
	defined $expected ? like(who('decrypt'), qr/\Q$expected\E/, "$name: told") : unlike(who('decrypt'), qr/plain/, "$name: told");
}
is(who('decrypt', "timestamptz '$_->[0]'"), $_->[1], "$_->[2]: as it was") foreach @times;
refused($node, q{SELECT * FROM fieldcrypt.who_could('decrypt', now() - interval '1 day')}, 'P0002', qr/does not tell/, 'before the first: not told', @auditor);
gives($node, "SELECT count(DISTINCT as_of), bool_and(as_of <= now()) FROM fieldcrypt.who_could('decrypt')", '1|t', 'and as of when', @auditor);
# A dropped role is still told of.
value($node, 'DROP ROLE plain');
like(who('decrypt', "timestamptz '$times[1][0]'"), qr/plain=granted/, 'a role that is no more');

# Attack: who is no superuser, but a member of one, says SET ROLE; and who makes himself a member of such a member.
value($node, q{CREATE ROLE root SUPERUSER; CREATE ROLE root_member LOGIN INHERIT IN ROLE root; CREATE ROLE distant LOGIN IN ROLE root_member});
value($node, 'SELECT fieldcrypt.snapshot_access()');
foreach my $privilege (qw(encrypt decrypt reencrypt manage audit backup))
{
	like(who($privilege), qr/distant=SET ROLE root,.*root=superuser, root_member=SET ROLE root(?:,|$)/, "$privilege: members of a superuser");
}
like(who('reencrypt'), qr/maker=CREATEROLE: GRANT distant/, 'and who can become one') if $is_open;
unlike(who('reencrypt'), qr/(?:app|heir|auditor|plain)=/, 'and nobody else');
gives($node, 'SET ROLE root; SELECT fieldcrypt.decrypt_field(v) FROM t', 'x', "$_ can", user => $_) foreach qw(root_member distant);
maker_can('distant', 'root');
is(value($node, q{SELECT string_agg(concat_ws('=', e ->> 'role', e -> 'why' ->> 0), ', ' ORDER BY e ->> 'role') FROM jsonb_array_elements(fieldcrypt.compliance_report(verify => false, count_values => false) #> '{access,powerful,rows}') AS e
	WHERE e ->> 'role' IN ('root_member', 'distant', 'root', 'app')}), 'distant=member of superuser root, root=superuser, root_member=member of superuser root', 'the report tells of them, too');
value($node, 'DROP ROLE distant, root_member, root; SELECT fieldcrypt.snapshot_access()');
# Attack: a state that never was. Of what may be rolled back, and of what was before, nothing is written.
my $count = value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'access_snapshot'});
my $liar = session($node);
foreach my $begin ('BEGIN; REVOKE readers FROM heir', 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'BEGIN ISOLATION LEVEL SERIALIZABLE', 'BEGIN; SAVEPOINT s; REVOKE readers FROM heir; RELEASE s')
{
	$liar->value($begin);
	$liar->refused('SELECT fieldcrypt.snapshot_access()', '25001', "refused: $begin");
	$liar->value('ROLLBACK');
	$liar->value($begin);
	$liar->value('SELECT fieldcrypt_internal.verification_step()');
	$liar->value('COMMIT');
	value($node, 'GRANT readers TO heir');
}
$liar->close;
gives($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'access_snapshot'}, $count, 'nor does a verification look there');
gives($node, "BEGIN; SELECT fieldcrypt.snapshot_access(); COMMIT", '0', 'a block that has written nothing may');

# Of many roles: in several rows, none of them large.
value($node, q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP EXECUTE format('CREATE ROLE %I IN ROLE readers', repeat('"', 40) || i); END LOOP; END $$});
ok(value($node, 'SELECT fieldcrypt.snapshot_access()') > 8, 'many roles: more rows');
is(value($node, q{SELECT count(*) FROM fieldcrypt.who_could('decrypt') WHERE role LIKE '"""%'}, @auditor), '300', 'and all of them told');
gives($node, q{SELECT max(octet_length(reason)) < 8192 FROM fieldcrypt.audit_log WHERE event = 'access_snapshot'}, 't', 'no row is large');
# What is not whole is not told as if it were.
eventually($node, 'SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log', 't');
gives($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '0', 'verified');
value($node, q{CREATE TABLE saved AS SELECT * FROM fieldcrypt.audit_log; SET session_replication_role = replica;
	DELETE FROM fieldcrypt.audit_log WHERE id = (SELECT max(id) FROM fieldcrypt.audit_log WHERE reason LIKE '%"decrypt"%')});
refused($node, q{SELECT * FROM fieldcrypt.who_could('decrypt')}, '22000', qr/not whole/, 'a row is gone: no list without it', @auditor);
ok(value($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}) > 0, 'and verification finds it');
value($node, q{SET session_replication_role = replica; INSERT INTO fieldcrypt.audit_log SELECT * FROM saved AS s WHERE NOT EXISTS (SELECT FROM fieldcrypt.audit_log AS l WHERE l.id = s.id)});
# Attack: a snapshot that its author makes up; another name for pg_catalog's things.
refused($node, q{SELECT fieldcrypt_internal.record_event('access_snapshot', NULL, NULL, '{"privilege": "decrypt", "part": 1, "parts": 1, "roles": [], "taken": "2026-01-01T00:00:00Z"}', NULL)}, '42501', 'nobody makes one up', @auditor);
value($node, 'GRANT CREATE ON DATABASE postgres TO auditor');
gives($node, q{CREATE SCHEMA a; CREATE FUNCTION a.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT false'; SET search_path = a, pg_catalog;
	SELECT fieldcrypt.snapshot_access()}, '0', 'nor changes what is found', @auditor);

# By itself: the worker looks once an interval, also where nothing happens.
my $before = value($node, 'SELECT max(id) FROM fieldcrypt.audit_log');
configure($node, 'fieldcrypt.audit_access_interval' => '1s');
value($node, 'CREATE ROLE late LOGIN IN ROLE readers');
ok(eventually($node, q{SELECT count(*) FROM fieldcrypt.who_could('decrypt', clock_timestamp()) WHERE role = 'late'}, '1'), 'the worker looks by itself');
configure($node, 'fieldcrypt.audit_access_interval' => '0');
# Every night, where no worker does it.
value($node, 'DROP ROLE late');
value($node, 'CALL fieldcrypt.check_audit_log()');
gives($node, q{SELECT count(*) FROM fieldcrypt.who_could('decrypt', clock_timestamp()) WHERE role = 'late'}, '1', 'where it is switched off nobody looks');
configure($node, 'fieldcrypt.audit_access_interval' => '1d');
value($node, 'CALL fieldcrypt.check_audit_log()');
gives($node, q{SELECT count(*) FROM fieldcrypt.who_could('decrypt', clock_timestamp()) WHERE role = 'late'}, '0', 'check_audit_log looks, too');
gives($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status = 'critical'}, '0', 'verified');
no_crash($node);
$node->stop;

# Without preload: by hand, and by check_audit_log.
my $plain = new_cluster('plain', conf => "fieldcrypt.audit_access_interval = 1d\n");
value($plain, q{SELECT fieldcrypt.create_key('default'); CREATE ROLE reader; SELECT fieldcrypt.grant_access('reader', 'decrypt')});
value($plain, 'CALL fieldcrypt.check_audit_log()');
gives($plain, q{SELECT how FROM fieldcrypt.who_could('decrypt', clock_timestamp()) WHERE role = 'reader'}, 'granted', 'without preload');
$plain->stop;
done_testing();
