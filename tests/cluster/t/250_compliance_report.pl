# The compliance report: its figures are those of the database, it shows no secret and no other tenant, only who
# may read the log gets it, and names that strangers chose stay names, in a real browser too.

use strict;
use warnings;

use Encode ();
use FieldcryptTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $secret = 'canary-Axolotl-5519-plaintext';
my @hostile = (
	q{"><script>document.title='pwned'</script>},
	q{'><img src=x onerror="document.title='pwned'"><svg onload=document.title='pwned'>},
	"]]> --> </style></title></svg></bdi></td> \n\r\t second line \\",
	"\x{202E}\x{2066}evil\x{200F} \x{5D0}\x{5D1}\x{5D2} \x{E9}\x{1F600}",
	'javascript:document.title=1//&lt;script&gt;&amp;{{7*7}}${7*7}',
	'x' x 990 . '<b>tail</b>');

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
sub quoted { my ($text) = @_; return "'" . (Encode::encode('UTF-8', $text) =~ s/'/''/gr) . "'"; }

# Data: roles, tenants, keys in all states, values on old keys.
value($node, <<'SQL');
CREATE ROLE auditor LOGIN; CREATE ROLE manager LOGIN; CREATE ROLE second LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE writer LOGIN;
CREATE ROLE dumper LOGIN; CREATE ROLE mover LOGIN; CREATE ROLE outsider LOGIN; CREATE ROLE support; CREATE ROLE member LOGIN;
CREATE ROLE files LOGIN; CREATE ROLE sneaky LOGIN; CREATE ROLE "<script>document.title='pwned'</script>" LOGIN;
GRANT support TO member; GRANT pg_read_server_files TO files;
SELECT fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('manager', 'manage'), fieldcrypt.grant_access('second', 'manage'),
       fieldcrypt.grant_access('reader', 'decrypt'), fieldcrypt.grant_access('writer', 'encrypt'), fieldcrypt.grant_access('dumper', 'backup'),
       fieldcrypt.grant_access('mover', 'reencrypt'), fieldcrypt.grant_access('support', 'decrypt'),
       fieldcrypt.grant_access('"<script>document.title=''pwned''</script>"', 'decrypt', 'encrypt');
SELECT fieldcrypt.grant_access('outsider', 'decrypt'), fieldcrypt.revoke_access('outsider', 'decrypt');
GRANT SELECT (wrapped_key) ON fieldcrypt.encryption_keys TO sneaky;
GRANT EXECUTE ON FUNCTION fieldcrypt_internal.count_keys(oid) TO sneaky;
GRANT USAGE ON SCHEMA fieldcrypt TO PUBLIC;
GRANT EXECUTE ON FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text) TO PUBLIC;
CREATE TABLE people (id int PRIMARY KEY, ssn fieldcrypt.encrypted, notes fieldcrypt.encrypted[]);
CREATE TABLE "<b>""odd" (id int PRIMARY KEY, "c]]>" fieldcrypt.encrypted);
CREATE TABLE empty (id int, value fieldcrypt.encrypted);
SQL
value($node, <<SQL);
INSERT INTO people SELECT i, fieldcrypt.encrypt_field('$secret', tenant => 'tenant ' || i % 5), ARRAY[fieldcrypt.encrypt_field('$secret', tenant => 'tenant ' || i % 5)]
  FROM generate_series(1, 100) AS i;
INSERT INTO "<b>""odd" SELECT i, fieldcrypt.encrypt_field('$secret', tenant => 'leaky corp') FROM generate_series(1, 10) AS i;
SQL
value($node, "SELECT fieldcrypt.create_key(" . quoted($_) . ")") foreach @hostile[ 0, 1, 4, 5 ], 'gone corp', 'idle corp', 'renamed 2', 'renamed 3';
rename_tenant($node, quoted("renamed $_"), quoted($hostile[$_])) foreach 2, 3;
value($node, "CALL fieldcrypt.rotate_keys('tenant $_', reason => 'of the year <i>')", user => 'manager') foreach 1, 2;
value($node, 'CALL fieldcrypt.rotate_keys(' . quoted($hostile[0]) . ', reason => ' . quoted($hostile[1]) . ')', user => 'manager');
value($node, q{SELECT fieldcrypt.mark_compromised((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'leaky corp'), 'laptop <stolen>')}, user => 'manager');
value($node, q{SELECT fieldcrypt.suspend_key((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 3'), 'looked into')}, user => 'manager');
refused($node, q{CALL fieldcrypt.rotate_keys(repeat('y', 1025))}, '22023', 'a rotation that fails', user => 'manager');
my $request = value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'gone corp', 'contract ended')}, user => 'manager');
value($node, "CALL fieldcrypt.approve($request)", user => 'second');
value($node, q{CALL fieldcrypt.shred_tenant('gone corp', 'contract ended')}, user => 'manager');
value($node, q{SELECT fieldcrypt.request_approval('shred_tenant', 'tenant 4', 'still open')}, user => 'manager');
value($node, 'SELECT fieldcrypt.export_keys()', user => 'dumper');

# A past: older keys, and events as another year would have left them.
my @hostile_sql = map { quoted($_) } @hostile;
value($node, <<SQL);
SET session_replication_role = replica;
UPDATE fieldcrypt.encryption_keys SET created_at = created_at - interval '100 days' WHERE tenant IN ('tenant 0', 'tenant 4');
UPDATE fieldcrypt.encryption_keys SET created_at = created_at - interval '45 days' WHERE tenant = 'idle corp';
CREATE FUNCTION pg_temp.logged(at timestamptz, event text, actor text, role text, tenant text, value_count bigint, error_code text DEFAULT NULL, reason text DEFAULT NULL,
    client_address inet DEFAULT NULL) RETURNS void LANGUAGE sql AS \$\$
    INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, tenant, value_count, error_code, reason, client_address, backend_pid)
    VALUES (nextval('fieldcrypt_internal.audit_log_id_seq'), \$1, \$2, \$3, \$4, \$5, \$6, \$7, \$8, \$9, 1) \$\$;
SELECT pg_temp.logged(now() - d * interval '1 day', 'values_decrypted', CASE d % 2 WHEN 0 THEN 'reader' ELSE 'member' END, CASE d % 2 WHEN 0 THEN 'reader' ELSE 'support' END, 'tenant ' || d % 5, 100 + d)
  FROM generate_series(1, 300) AS d;
SELECT pg_temp.logged(now() - d * interval '1 day', 'decrypt_failed', 'reader', 'reader', 'tenant ' || d % 5, 1 + d % 3, CASE d % 2 WHEN 0 THEN 'KF002' ELSE 'KF004' END, 'why')
  FROM generate_series(1, 300, 7) AS d;
SELECT pg_temp.logged(now() - interval '1 hour', 'call_refused', $hostile_sql[0], $hostile_sql[1], $hostile_sql[2], NULL, '42501', $hostile_sql[3], '192.0.2.7'),
       pg_temp.logged(now() - interval '2 days', 'audit_gap', 'postgres', 'postgres', NULL, 17, NULL, 'the queue was full'),
       pg_temp.logged(now() - interval '2 years', 'values_decrypted', 'reader', 'reader', 'tenant 1', 1000000);
SQL

sub report
{
	my ($arguments, %options) = @_;
	return JSON::PP->new->utf8->decode(value($node, "SELECT fieldcrypt.compliance_report($arguments)", user => 'auditor', %options));
}
sub page
{
	my ($arguments, %options) = @_;
	return value($node, "SELECT fieldcrypt.compliance_report_html($arguments)", user => 'auditor', %options);
}
my $no_check = 'verify => false';

# Who gets it.
foreach my $role ('outsider', 'reader', 'writer', 'mover', 'dumper', 'member', 'sneaky')
{
	refused($node, 'SELECT fieldcrypt.compliance_report()', '42501', qr/permission denied/, "$role gets no report", user => $role);
	refused($node, 'SELECT fieldcrypt.compliance_report_html()', '42501', qr/permission denied/, "$role gets no page", user => $role);
}
gives($node, "SELECT fieldcrypt.compliance_report($no_check) ->> 'format'", 'pg_fieldcrypt compliance report', "$_ gets it", user => $_) foreach 'auditor', 'manager';
my @steps = split /\n/, value($node, q{SELECT format('SELECT fieldcrypt_internal.%I(%s)', proname, array_to_string(ARRAY(SELECT 'NULL' FROM generate_series(1, pronargs)), ', '))
    FROM pg_proc WHERE pronamespace = 'fieldcrypt_internal'::regnamespace AND proname ~ '^report_'});
cmp_ok(scalar @steps, '>', 15, 'it has steps');
refused($node, $_, '42501', qr/permission denied/, "the auditor has no step of it: $_", user => 'auditor') foreach @steps;

# Arguments.
refused($node, "SELECT fieldcrypt.compliance_report($_->[0])", $_->[1], $_->[2], "refused: $_->[0]", user => 'auditor') foreach
	[ "'nobody'", '22023', qr/tenant "nobody" has no keys/ ],
	[ "''", '22023', qr/has no keys/ ],
	[ "from_time => 'infinity'", '22023', qr/must not be infinite.*HINT/s ],
	[ "to_time => '-infinity'", '22023', qr/must not be infinite/ ],
	[ "from_time => '-infinity'", '22023', qr/must not be infinite/ ],
	[ "from_time => '2026-02-01', to_time => '2026-01-01'", '22023', qr/begin before it ends/ ],
	[ "from_time => '2026-02-01', to_time => '2026-02-01'", '22023', qr/begin before it ends/ ],
	[ "from_time => '1900-01-01', to_time => '2026-01-01'", '22023', qr/100 years/ ],
	[ "verify => NULL", '22004', qr/must not be NULL/ ],
	[ "count_values => NULL", '22004', qr/must not be NULL/ ];

# Figures, counted another way.
my $rows_before = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log');
my $report = report($no_check);
is($report->{version}, 1, 'the version of the format');
is($report->{generated}{by}, 'auditor', 'who made it');
my %states = map { split /\|/ } split /\n/, value($node, 'SELECT state, count(*) FROM fieldcrypt.encryption_keys WHERE purpose = \'field\' GROUP BY 1');
is($report->{keys}{totals}{$_}, $states{$_} // 0, "keys that are $_") foreach 'active', 'deactivated', 'suspended', 'compromised', 'destroyed';
cmp_ok($states{$_}, '>', 0, "there are some $_") foreach 'active', 'deactivated', 'suspended', 'compromised', 'destroyed';
is($report->{keys}{totals}{overdue}, 2, 'keys past their policy');
is(join(' ', map { "$_->{from_days}:$_->{keys}/$_->{overdue}" } @{ $report->{keys}{ages} }),
	'0:' . ($states{active} - 3) . '/0 30:1/0 60:0/0 90:2/2 180:0/0 365:0/0', 'ages of active keys');
is_deeply([ sort map { $_->{tenant} } grep { $_->{is_overdue} } @{ $report->{keys}{tenants}{rows} } ], [ 'tenant 0', 'tenant 4' ], 'whose they are');
is($report->{keys}{totals}{tenants_shredded}, 1, 'shredded tenants');
is($report->{rotation}{rotated}, value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'key_rotated'}), 'rotations');
is($report->{rotation}{failed}, 1, 'failed rotations');
is(sum(map { $_->{rotated} } @{ $report->{rotation}{over_time} }), $report->{rotation}{rotated}, 'rotations over time add up');
is(sum(map { $_->{failed} } @{ $report->{rotation}{over_time} }), 1, 'and those that failed');
sub sum { my $sum = 0; $sum += $_ foreach @_; return $sum; }

my $use = $report->{use};
is($use->{decrypted}, sum(map { 100 + $_ } 1 .. 300), 'values decrypted in the period, not two years ago');
is($use->{failed}, sum(map { 1 + $_ % 3 } grep { $_ % 7 == 1 } 1 .. 300), 'failed decrypts');
is($use->{refused}, value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event IN ('call_refused', 'key_refused', 'approval_refused') AND at <= '} . $report->{generated}{at} . q{'::timestamptz}), 'refusals of all kinds');
is_deeply([ sort grep { /_refused/ } map { $_->{event} } @{ $use->{by_code}{rows} } ], [ 'call_refused', 'key_refused' ], 'each by its kind');
is(sum(map { $_->{refused} } @{ $use->{over_time} }), $use->{refused}, 'refusals a day add up');
is(sum(map { $_->{decrypted} } @{ $use->{over_time} }), $use->{decrypted}, 'values a day add up');
is(sum(map { $_->{failed} } @{ $use->{over_time} }), $use->{failed}, 'failures a day add up');
is($use->{bucket} . ' ' . scalar @{ $use->{over_time} }, 'day 366', 'a year has a row for each day');
is_deeply({ map { ("$_->{role}/$_->{actor}" => $_->{decrypted}) } grep { $_->{decrypted} } @{ $use->{by_role}{rows} } },
	{ 'reader/reader' => sum(map { 100 + $_ } grep { $_ % 2 == 0 } 1 .. 300), 'support/member' => sum(map { 100 + $_ } grep { $_ % 2 } 1 .. 300) }, 'use by role');
is(sum(map { $_->{decrypted} } @{ $use->{by_tenant}{rows} }), $use->{decrypted}, 'use by tenant adds up');
my ($day) = grep { $_->{decrypted} == 101 } @{ $use->{over_time} };
is($day->{from}, value($node, q{SELECT ((now() - interval '1 day') AT TIME ZONE 'UTC')::date}), 'a day is a day in UTC');
is(report("$no_check, from_time => now() - interval '10 years'")->{use}{decrypted}, $use->{decrypted} + 1000000, 'a longer period has more');
is(report("$no_check, from_time => now() - interval '10 years'")->{use}{bucket}, 'month', 'and is shown by the month');
is(report("$no_check, from_time => now() - interval '3 days'")->{use}{decrypted}, 101 + 102, 'a shorter one has less');
is(report("$no_check, to_time => now() - interval '1 year 6 months'")->{use}{decrypted}, 1000000, 'another one has other events');

# Coverage: what is on which key.
my %coverage = map { ("$_->{table}.$_->{column}" => $_) } @{ $report->{reencryption}{columns}{rows} };
is_deeply([ sort keys %coverage ], [ 'public."<b>""odd".c]]>', 'public.empty.value', 'public.people.notes', 'public.people.ssn' ], 'columns with encrypted values');
foreach my $column ('public.people.ssn', 'public.people.notes')
{
	is(join(' ', map { $coverage{$column}{$_} } 'active', 'deactivated', 'suspended', 'compromised', 'destroyed', 'unknown'), '40 40 20 0 0 0', "$column: values by the state of their key");
}
is($coverage{'public."<b>""odd".c]]>'}{compromised}, 10, 'values on a compromised key');
is($coverage{'public.empty.value'}{active}, 0, 'no values');
ok(!defined $coverage{$_}{not_counted}, "$_ was counted") foreach sort keys %coverage;
my $uncounted = report("$no_check, count_values => false")->{reencryption};
is($uncounted->{totals}{columns_not_counted}, 4, 'not counted, it says so for each column');
ok(!exists $_->{active} && $_->{not_counted} =~ /^not counted: count_values was false/, "$_->{table}: and has no figure") foreach @{ $uncounted->{columns}{rows} };
{
	my $lock = session($node);
	$lock->value('BEGIN; LOCK TABLE people IN ACCESS EXCLUSIVE MODE');
	my $locked = report($no_check)->{reencryption};
	like($locked->{problem}, qr/^not counted: .*lock timeout.*\(55P03\)/, 'a locked table: it waits no longer than a moment, and says what was not counted');
	is($locked->{totals}{active}, undef, 'and gives no figure');
	$lock->value('ROLLBACK');
	$lock->close;
}

# What was counted is not told otherwise by the checks: no value is on a compromised key any more.
sub compromised { my ($of) = @_; my ($check) = grep { $_->{check} eq 'compromised_keys' } @{ $of->{health}{checks} }; return "$check->{status}: $check->{detail}"; }
like(compromised($report), qr/^critical: values may be read with/, 'values on a compromised key');
{
	my $odd = session($node);
	$odd->value('BEGIN');
	$odd->value('DELETE FROM "<b>""odd"');
	my $of = JSON::PP->new->utf8->decode($odd->value("SELECT fieldcrypt.compliance_report($no_check)"));
	is("$of->{reencryption}{totals}{compromised} " . compromised($of), '0 ok: no values are on compromised keys: they were counted for this report', 'counted: none');
	$of = JSON::PP->new->utf8->decode($odd->value("SELECT fieldcrypt.compliance_report($no_check, count_values => false)"));
	like(compromised($of), qr/^critical: values may be read with/, 'not counted: not known');
	$odd->value('ROLLBACK');
	$odd->close;
}

# Access.
my %roles = map { ($_->{role} => $_) } @{ $report->{access}{roles}{rows} };
is_deeply($roles{reader}{privileges}, ['decrypt'], 'a privilege');
is_deeply([ $roles{member}{privileges}, $roles{member}{granted}, $roles{member}{through} ], [ ['decrypt'], [], ['support'] ], 'a privilege through another role');
ok(!exists $roles{outsider}, 'a revoked one is gone');
is_deeply($roles{PUBLIC}{privileges}, ['decrypt'], 'what everybody may is shown');
is($report->{access}{roles}{rows}[0]{role}, 'PUBLIC', 'first of all');
is_deeply($roles{sneaky}{other_rights}, ['SELECT fieldcrypt.encryption_keys (wrapped_key)', 'EXECUTE fieldcrypt_internal.count_keys(oid)'], 'rights on single objects are shown, of internals too');
is_deeply($roles{$_}{other_rights}, [], "$_ has no others") foreach 'auditor', 'manager', 'reader', 'writer', 'dumper', 'mover';
my %powerful = map { ($_->{role} => join ', ', @{ $_->{why} }) } @{ $report->{access}{powerful}{rows} };
is($powerful{files}, 'pg_read_server_files', 'who can read files');
like($powerful{ value($node, 'SELECT session_user') }, qr/superuser, owner of the extension/, 'superusers');
is($report->{access}{changes}{total}, value($node, q{SELECT count(*) FROM fieldcrypt.audit_log WHERE event IN ('access_granted', 'access_revoked')}), 'changes of access');

# The rest.
is(join(' ', map { "$_=$report->{approvals}{counts}{$_}" } 'requested', 'given', 'used', 'refused'), 'requested=2 given=1 used=1 refused=0', 'approvals');
is_deeply([ map { $_->{subject} } @{ $report->{approvals}{open}{rows} } ], ['tenant 4'], 'an open request');
is_deeply($report->{approvals}{required_for}, ['shred_tenant'], 'what needs one');
is($report->{exports}{exports}, 1, 'exports of keys');
cmp_ok($report->{audit_log}{rows}, '>=', $rows_before, 'rows of the log');
cmp_ok($report->{audit_log}{rows}, '<=', value($node, 'SELECT count(*) FROM fieldcrypt.audit_log'), 'and no more than there are');
is("$report->{audit_log}{gaps} $report->{audit_log}{events_in_gaps}", '1 17', 'gaps of the log');
is($report->{verification}{status}, 'not run', 'not verified, it says so');
is($report->{destruction}{destroyed}{total}, $states{destroyed}, 'destroyed keys');
my %mapped = map { map { ($_ => 1) } @{ $_->{figures} } } @{ $report->{requirements} };
my @figures = grep { ref $report->{$_} eq 'HASH' && exists $report->{$_}{supports} } keys %$report;
is_deeply([ sort @figures ], [ sort keys %mapped ], 'each figure supports some requirement, and no other is named');
cmp_ok(scalar @{ $report->{$_}{supports} }, '>', 0, "$_ says which") foreach @figures;
is_deeply([ grep { !/^(HIPAA 164\.312\((a\)\(2\)\(iv|b|c\)\(1)\)|PCI DSS v4 3\.[67]\.\d(\.\d)?|GDPR Art\. 32\(1\)\([a-d]\))$/ } map { @{ $report->{$_}{supports} } } @figures ], [], 'all of the three standards');

# The table of docs/compliance-report.md says the same.
my ($table) = slurp_file('../../docs/compliance-report.md') =~ /^## Requirements\n(.*?)^## /ms;
my @told = map { [ s/\xc2\xa7//r, split(/, /, ($table =~ /^\| \Q$_\E \| [^|]+ \| ([^|]+) \|$/m)[0]) ] } $table =~ /^\| ((?:HIPAA|PCI|GDPR) [^|]+?) \|/mg;
cmp_ok(scalar @told, '>', 10, 'the requirements are in the docs');
is_deeply([ map { my ($name, @of) = @$_; [ $name, map { tr/ /_/r =~ s/^re-/re/r } @of ] } @told ],
	[ map { [ "$_->{standard} $_->{section}", @{ $_->{figures} } ] } @{ $report->{requirements} } ], 'with the same figures, in the same order');

# Of one tenant: no other is named.
my @others = grep { $_ ne 'tenant 1' } split /\n/, value($node, q{SELECT DISTINCT tenant FROM fieldcrypt.encryption_keys WHERE purpose = 'field' AND tenant ~ '^[a-z0-9 ]{5,}$'});
cmp_ok(scalar @others, '>', 5, 'there are others');
my ($one, $one_page) = (value($node, "SELECT fieldcrypt.compliance_report('tenant 1')", user => 'auditor'), page("'tenant 1'"));
my $decoded = JSON::PP->new->utf8->decode($one);
is_deeply([ grep { index($one, $_) >= 0 } @others ], [], 'a report about one tenant names no other');
is_deeply([ grep { index($one_page, $_) >= 0 } @others ], [], 'nor does its page');
is($decoded->{keys}{totals}{keys}, 2, 'it has the keys of that tenant');
is($decoded->{use}{decrypted}, sum(map { 100 + $_ } grep { $_ % 5 == 1 } 1 .. 300), 'and its use');
is($decoded->{audit_log}{gaps}, undef, 'and no figure that is of all');
# Page 1 says why of each tile that is amber or red, as health() and the log say it; what is small is counted.
{
	my ($first) = page('NULL') =~ /\A(.*?)<nav /s;
	foreach my $tone ('noted', 'alarming')
	{
		my $tiles = () = $first =~ /class="tile $tone"/g;
		my $reasons = () = $first =~ /class="reason $tone"/g;
		cmp_ok($tiles, '>', 0, "there are tiles that are $tone");
		is($reasons, $tiles, "and each says why");
	}
	like($first, qr/Compromised or suspended<\/dt><dd><bdi>1 key is marked as compromised[^<]*<\/bdi> <span class="to-do">CALL fieldcrypt\.reencrypt/, 'why, and what to do');
	like($first, qr/Rotations<\/dt><dd><bdi>1 rotation failed in the period\. The last, of tenant y+[^<]*\(22023\)/, 'with the error, where there was one');
	like($first, qr/not on active keys \(counted\)/, 'small tables are counted, whatever statistics there are');
	my ($one) = page(q{'tenant 3'}) =~ /\A(.*?)<nav /s;
	unlike($one, qr/leaky corp|tenant [124]|gone corp/, 'and for one tenant they name no other');
}

like(page(quoted($hostile[0])), qr/Scope<\/dt><dd><bdi>tenant &quot;&gt;&lt;script&gt;/, 'a hostile name as the scope');

# Secrets.
my $page = page('');
my $document = value($node, 'SELECT fieldcrypt.compliance_report()', user => 'auditor');
my @secrets = ($secret, key_text(1), split /\n/, value($node, <<'SQL'));
SELECT encode(wrapped_key, 'hex') FROM fieldcrypt.encryption_keys WHERE wrapped_key IS NOT NULL
UNION SELECT encode(key_check, 'hex') FROM fieldcrypt.encryption_keys
SQL
cmp_ok(scalar @secrets, '>', 30, 'there are secrets to look for');
is_deeply([ grep { index($page, $_) >= 0 || index($document, $_) >= 0 } @secrets ], [], 'no plaintext, master key, wrapped key or check value in report and page');
ok(index($document, value($node, q{SELECT encode(fingerprint, 'hex') FROM fieldcrypt.master_keys})) >= 0, 'a fingerprint would have been found');

# The page as a text.
ok($page !~ /[^\n\x20-\x7e]/, 'the page is ASCII');
like($page, qr/<meta http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;; img-src data:"\/>/, 'its policy');
unlike($page, qr/<(script|img|iframe|object|embed|form|base)\b|<[^>]*\son[a-z]+=|\@import|url\(|https?:/i, 'nothing that runs or is fetched');
my $words = $page =~ s/<[^>]*>/ /gr;
unlike($words, qr/(?<!not )\bcompliant\b|\bcomplies with\b|\bcertified\b(?! cryptographic)/i, 'it never says compliant');
cmp_ok(length $page, '<', 600_000, 'its size');

# What the database's encoding can't show, and what is no text at all.
value($node, q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0; CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0;});
value($node, "CREATE EXTENSION pg_fieldcrypt; SELECT fieldcrypt.grant_access('auditor', 'audit')", db => $_) foreach 'latin', 'bytes';
value($node, q{SET client_encoding = 'UTF8'; SELECT fieldcrypt.create_key(E'caf\u00e9')}, db => 'latin');
value($node, qq{CREATE ROLE "r\xe9gie"; GRANT EXECUTE ON FUNCTION fieldcrypt.decrypt_field(fieldcrypt.encrypted, text) TO "r\xe9gie"; GRANT support TO "r\xe9gie"}, db => 'bytes');
foreach my $case ([ 'latin', 'caf&#xE9;' ], [ 'bytes', 'r&#xFFFD;gie' ], [ 'postgres', 'r&#xFFFD;gie' ])
{
	my ($db, $name) = @$case;
	my $other = page($no_check, db => $db);
	ok($other !~ /[^\n\x20-\x7e]/, "$db: the page is ASCII");
	like($other, qr/<bdi>\Q$name\E<\/bdi>/, "$db: the name is shown");
}
value($node, qq{DROP OWNED BY "r\xe9gie"; DROP ROLE "r\xe9gie"}, db => 'bytes');

# A report changes nothing, so it works where nothing can be written.
gives($node, "BEGIN READ ONLY; SELECT fieldcrypt.compliance_report($no_check) ->> 'version'; COMMIT", '1', 'in a READ ONLY transaction', user => 'auditor');

# The checks that others make, and a log that was forged.
create_database($node, 'forged');
value($node, q{SELECT fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.create_key('acme'), fieldcrypt.create_key('globex')}, db => 'forged');
ok($node->poll_query_until('forged', q{SELECT count(*) > 2 AND count(*) = count(leaf) AND count(*) <= (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log}), 'the log is sealed');
my $whole = report('', db => 'forged');
is($whole->{verification}{status}, value($node, q{SELECT status FROM fieldcrypt.verify_audit_log() WHERE finding = 'summary'}, db => 'forged'), 'verified');
isnt($whole->{verification}{status}, 'critical', 'and whole');
like($whole->{audit_log}{checkpoint}{note}, qr{^pg_fieldcrypt/[0-9a-f]{32}\n}, 'the signed checkpoint');
is($whole->{audit_log}{checkpoint}{size}, value($node, 'SELECT size FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1', db => 'forged'), 'its size');
is(join(' ', sort map { $_->{check} } @{ $whole->{health}{checks} }), value($node, q{SELECT string_agg("check", ' ' ORDER BY "check" COLLATE "C") FROM fieldcrypt.health()}, db => 'forged'), 'all checks of health()');
is(sum(map { $whole->{health}{$_} } 'ok', 'warning', 'critical'), scalar @{ $whole->{health}{checks} }, 'each is ok, a warning or critical');
my $forged = value($node, q{SET session_replication_role = replica; UPDATE fieldcrypt.audit_log SET actor = 'nobody' WHERE event = 'key_created' AND tenant = 'globex' RETURNING id}, db => 'forged');
my $found = report('', db => 'forged')->{verification};
is($found->{status}, 'critical', 'a forged row is found');
ok((grep { ($_->{log_id} // '') eq $forged && $_->{status} eq 'critical' } @{ $found->{findings}{rows} }), 'and named');
like(page('', db => 'forged'), qr/<strong class="badge alarming">critical<\/strong>/, 'the page says so');
my $of_one = value($node, q{SELECT fieldcrypt.compliance_report('acme')}, db => 'forged', user => 'auditor');
like($of_one, qr/"status": "critical"/, "and so does one tenant's");
unlike($of_one, qr/globex/, 'without naming the other');
value($node, q{CALL fieldcrypt.check_audit_log()}, db => 'forged');
is(report($no_check, db => 'forged')->{verification}{stored}{rows}[0]{status}, 'critical', 'verifications of the period are listed');

# Many tenants: a report that can be read, in a time that can be waited for.
create_database($node, 'many');
value($node, <<'SQL', db => 'many');
SELECT fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.create_key('first');
SET session_replication_role = replica;
INSERT INTO fieldcrypt.encryption_keys (key_id, tenant, purpose, version, state, algorithm, wrapped_key, master_key_fingerprint, key_check, created_at)
SELECT i, 'tenant ' || i, 'field', 1, 'active', 'XAES-256-GCM', decode(repeat('00', 73), 'hex'), m.fingerprint, decode(repeat('00', 16), 'hex'), now() - i * interval '1 minute'
  FROM generate_series(1, 100000) AS i, fieldcrypt.master_keys AS m;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, tenant, value_count, backend_pid)
SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), now() - i % 300 * interval '1 day', 'values_decrypted', 'reader', 'reader', 'tenant ' || i, 3, 1 FROM generate_series(1, 5000) AS i;
SQL
my $began = time;
my $many = page($no_check, db => 'many');
my $seconds = time - $began;
note "100,000 tenants: $seconds s, " . length($many) . ' bytes';
cmp_ok($seconds, '<', 60, 'a report about 100,000 tenants is made in a minute');
cmp_ok(length $many, '<', 600_000, 'and is no longer than others');
like($many, qr/Tenants, those with the oldest active keys first<span class="share"> 50 of 100,001<\/span>/, 'it shows the first and says how many there are');
like($many, qr/99,951 more not listed here/, 'and how many are not shown');
like($many, qr/<bdi>tenant 100000<\/bdi>/, 'the oldest key is there');

no_crash($node);
$node->stop;
done_testing();
