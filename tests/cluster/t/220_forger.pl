# A forger with full write access to the tables of the audit log, triggers disabled: each single
# manipulation is found by verify_audit_log, or by the outside checker. The master key and the signing
# keys are not his; what he could do with them too is shown in crates/audit/tests/forger.rs, by thousands.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $node = new_cluster('forger', conf => <<'CONF');
shared_preload_libraries = 'pg_fieldcrypt'
fieldcrypt.audit_seal_interval = '100ms'
fieldcrypt.audit_key_epoch = 4
CONF

# Waits until a checkpoint covers all rows, and none is to come.
sub sealed
{
	$node->poll_query_until('postgres', <<'SQL') or die 'not sealed';
SELECT NOT EXISTS (SELECT FROM fieldcrypt.audit_log WHERE leaf IS NULL)
   AND (SELECT max(leaf) + 1 FROM fieldcrypt.audit_log) = (SELECT max(size) FROM fieldcrypt.audit_checkpoints)
   AND (SELECT ring_used = 0 FROM fieldcrypt.audit_status())
SQL
	return;
}

# Findings that are not mere information, as "finding leaf log_id".
sub findings
{
	my ($anchor) = @_;
	$anchor = ($anchor // '') =~ s/'/''/gr;
	return value($node, "SELECT finding, coalesce(leaf::text, '-'), coalesce(log_id::text, '-'), detail FROM fieldcrypt.verify_audit_log(anchor => '$anchor') WHERE status <> 'ok' AND finding <> 'summary'");
}

# A log of several signing keys, a restart, rows with and without MACs, and every column filled somewhere.
value($node, <<'SQL');
CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted, name text);
SELECT fieldcrypt.audit_table('patients');
SQL
gives($node, q{SELECT status, finding FROM fieldcrypt.verify_audit_log() WHERE finding IN ('summary', 'unanchored', 'not_authenticated') ORDER BY finding}, "ok|not_authenticated\nok|summary\nok|unanchored",
	'a log that is not sealed yet has nothing wrong with it');
foreach my $round (1 .. 6)
{
	value($node, <<"SQL");
INSERT INTO patients SELECT g, fieldcrypt.encrypt_field('x' || g, tenant => 'clinic $round'), 'n' FROM generate_series($round * 100, $round * 100 + 12) AS g;
UPDATE patients SET id = -id, ssn = fieldcrypt.encrypt_field('y') WHERE id = $round * 100;
CALL fieldcrypt.rotate_keys('clinic $round', 'round $round');
SQL
	run_sql($node, q{SELECT fieldcrypt.decrypt_field(ssn, 'elsewhere') FROM patients LIMIT 1});
	sealed();
	$node->restart if $round == 3 || $round == 5;
	Time::HiRes::usleep(300_000);
}
sealed();
is(findings(), '', 'nothing is wrong with a log that nobody touched');
my $summary = value($node, q{SELECT status, leaf, detail FROM fieldcrypt.verify_audit_log() LIMIT 1});
like($summary, qr/^ok\|\d+\|\d+ sealed rows from leaf 0 on, \d+ not sealed, \d+ authentic; \d+ checkpoints, the last over \d+ rows, root [0-9a-f]{64}; known from outside: the first 0 rows$/, 'the summary comes first');
ok(value($node, 'SELECT count(*) FROM fieldcrypt.audit_signers') >= 3, 'several keys have signed');
my $outside = value($node, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY size DESC, id DESC LIMIT 1') . "\n";
my $middle = value($node, 'SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY size OFFSET 5 LIMIT 1') . "\n";
my $first_key = value($node, 'SELECT public_key FROM fieldcrypt.audit_signers ORDER BY id LIMIT 1');
foreach my $anchor ($outside, $middle, $first_key, "$first_key\n")
{
	is(findings($anchor), '', 'nor with one that is compared with what is known outside');
	like(value($node, "SELECT string_agg(finding, ' ') FROM fieldcrypt.verify_audit_log(anchor => '$anchor')"), qr/\banchored\b/, 'which says so');
}

# Periods.
{
	my $rows = value($node, 'SELECT count(*) FROM fieldcrypt.audit_log WHERE leaf IS NOT NULL');
	my ($at, $size) = split /\|/, value($node, 'SELECT at, size FROM fieldcrypt.audit_checkpoints ORDER BY size, id OFFSET 4 LIMIT 1');
	my ($after) = value($node, "SELECT detail FROM fieldcrypt.verify_audit_log(from_time => '$at') LIMIT 1") =~ /^(\d+) sealed/;
	my ($before) = value($node, "SELECT detail FROM fieldcrypt.verify_audit_log(to_time => '$at') LIMIT 1") =~ /^(\d+) sealed/;
	is($before, $size, 'up to a checkpoint: the rows that it covers');
	# Each session that loads the master key adds a row meanwhile.
	cmp_ok($before + $after, '>=', $rows, 'and from it on: the others');
	gives($node, "SELECT DISTINCT status FROM fieldcrypt.verify_audit_log(from_time => '$at')", 'ok', 'from it on: nothing is wrong');
	gives($node, "SELECT DISTINCT status FROM fieldcrypt.verify_audit_log(to_time => '$at')", 'ok', 'up to it: nothing is wrong');
	gives($node, "SELECT count(*) FROM fieldcrypt.verify_audit_log(to_time => '2001-01-01') WHERE status <> 'ok'", '0', 'a period before all of it: nothing');
}

# Rights and refusals.
value($node, q{CREATE ROLE auditor LOGIN; CREATE ROLE nobody LOGIN; SELECT fieldcrypt.grant_access('auditor', 'audit'); GRANT USAGE ON SCHEMA fieldcrypt TO nobody});
gives($node, q{SELECT status FROM fieldcrypt.verify_audit_log() LIMIT 1}, 'ok', 'who has audit verifies', user => 'auditor');
gives($node, q{SELECT count(*) > 100 FROM fieldcrypt.audit_export()}, 't', 'and exports', user => 'auditor');
refused($node, $_, '42501', 'nobody else does', user => 'nobody') foreach 'SELECT * FROM fieldcrypt.verify_audit_log()', 'SELECT fieldcrypt.audit_export()', 'SELECT fieldcrypt.audit_proof(1)';
refused($node, q{SELECT fieldcrypt_internal.audit_log_findings(NULL, NULL, '')}, '42501', 'nor past the function', user => 'auditor');
refused($node, q{SELECT * FROM fieldcrypt.verify_audit_log(anchor => NULL)}, '22004', qr/anchor/, 'an anchor of NULL');
refused($node, q{SELECT * FROM fieldcrypt.verify_audit_log(anchor => 'yesterday')}, 'KF027', qr/no public key and no checkpoint/, 'an anchor of something else');
refused($node, q{SELECT fieldcrypt.audit_proof(NULL)}, '22004', qr/log_id/, 'a proof of NULL');
refused($node, q{SELECT fieldcrypt.audit_proof(1)}, 'KF027', qr/has no row 1/, 'a proof of a row that is not there');

# The outside checker.
sub export_file
{
	return write_file($_[0], value($node, 'SELECT fieldcrypt.audit_export()') . "\n");
}
my $export = export_file('log.jsonl');
my $keys = write_file('keys.json', value($node, 'SELECT fieldcrypt.export_keys()'));
my @master = ('--master-key', $node->basedir . '/master.key', '--keys', $keys);
my $checkpoint = write_file('outside.note', $outside);
{
	my $checked = tool('verify-log', $export);
	is($checked->{code}, 0, 'an export is good') or diag "$checked->{out}$checked->{err}";
	like($checked->{out}, qr/MACs are not checked/, 'as far as it can be checked without keys');
	$checked = tool('verify-log', $export, @master, '--checkpoint', $checkpoint, '--key', $first_key);
	is($checked->{code}, 0, 'with keys and an outside checkpoint, too') or diag "$checked->{out}$checked->{err}";
	like($checked->{out}, qr/\nGOOD\n$/, 'and says so');
	my $rows = () = slurp_file($export) =~ /"mac":/g;
	like($checked->{out}, qr/, $rows authentic;/, 'every row that has a MAC is authentic');
	is(tool('verify-log', $export, '--key', 'x')->{code}, 2, 'a key that is none');
	is(tool('verify-log', "$folder/none")->{code}, 2, 'no file');
	is(tool('verify-log', $keys)->{code}, 2, 'another file');
	my @lines = split /\n/, slurp_file($export);
	is(tool('verify-log', write_file('cut', join("\n", @lines[ 0 .. $#lines - 1 ]) . "\n"))->{code}, 2, 'an export that was cut off is not taken for a log that was');
	my $later = value($node, q{SELECT string_agg(line, E'\n') FROM fieldcrypt.audit_export(from_time => (SELECT at FROM fieldcrypt.audit_checkpoints ORDER BY size OFFSET 4 LIMIT 1)) AS line});
	is(tool('verify-log', write_file('later', $later), @master)->{code}, 0, 'an export of a period is good');
}

# Proofs.
foreach my $id (split /\n/, value($node, 'SELECT id FROM fieldcrypt.audit_log ORDER BY leaf % 7, leaf LIMIT 12'))
{
	my $proof = value($node, "SELECT fieldcrypt.audit_proof($id)");
	my $path = write_file('proof.json', $proof);
	my $checked = tool('verify-proof', $path);
	is($checked->{code}, 0, "the proof of row $id proves") or diag "$checked->{out}$checked->{err}";
	is(tool('verify-proof', $path, '--key', $first_key)->{code}, 1, 'but not for the log of another key');
	(my $other = $proof) =~ s/"actor": "/"actor": "x/;
	is(tool('verify-proof', write_file('other.json', $other))->{code}, 1, 'of another row it proves nothing');
	(my $moved = $proof) =~ s/"leaf": "(\d+)"/'"leaf": "' . ($1 + 1) . '"'/e;
	is(tool('verify-proof', write_file('moved.json', $moved))->{code}, 1, 'nor at another place');
}
is(tool('verify-proof', $export)->{code}, 2, 'an export is no proof');

# The forger. Each statement on its own, rolled back afterwards.
my $disable = join ' ', map { "ALTER TABLE fieldcrypt.$_ DISABLE TRIGGER ALL;" } qw(audit_log audit_checkpoints audit_signers audit_origins);
my $oracle = <<'SQL';
-- What the tables hold. The transaction has locked them: nobody else changes them meanwhile.
CREATE FUNCTION pg_temp.state() RETURNS text LANGUAGE sql AS $$
SELECT concat_ws(' ',
    (SELECT md5(string_agg(t::text, E'\n' ORDER BY t::text)) FROM fieldcrypt.audit_log AS t),
    (SELECT md5(string_agg(t::text, E'\n' ORDER BY t::text)) FROM fieldcrypt.audit_checkpoints AS t),
    (SELECT md5(string_agg(t::text, E'\n' ORDER BY t::text)) FROM fieldcrypt.audit_signers AS t),
    (SELECT md5(string_agg(t::text, E'\n' ORDER BY t::text)) FROM fieldcrypt.audit_origins AS t))
$$;
CREATE TEMP TABLE known AS SELECT finding, leaf, log_id, detail FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok';
-- "found: …", "undetected", "unchanged", or "refused: " with the name of the constraint. An error of anything
-- else, of the verification too, goes through.
CREATE FUNCTION pg_temp.forge(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before text := pg_temp.state();
    "constraint" text;
    is_changed boolean;
    found text;
BEGIN
    BEGIN
        BEGIN
            EXECUTE $1;
        EXCEPTION WHEN integrity_constraint_violation THEN
            GET STACKED DIAGNOSTICS "constraint" = CONSTRAINT_NAME;
            RETURN 'refused: ' || coalesce(nullif("constraint", ''), SQLERRM);
        END;
        is_changed := pg_temp.state() IS DISTINCT FROM before;
        SELECT string_agg(DISTINCT v.finding, ' ') INTO found FROM fieldcrypt.verify_audit_log() AS v
         WHERE v.status <> 'ok' AND v.finding <> 'summary'
           AND NOT EXISTS (SELECT FROM pg_temp.known AS k WHERE (k.finding, k.leaf, k.log_id, k.detail) IS NOT DISTINCT FROM (v.finding, v.leaf, v.log_id, v.detail));
        RAISE SQLSTATE 'ZZZZZ';
    EXCEPTION WHEN SQLSTATE 'ZZZZZ' THEN
        RETURN CASE WHEN is_changed THEN coalesce('found: ' || found, 'undetected') ELSE coalesce('unchanged, but ' || found, 'unchanged') END;
    END;
END $$;
SQL

sub forge
{
	my ($statements) = @_;
	my $sql = "SET client_min_messages = error; BEGIN; $disable\n$oracle";
	foreach my $statement (@$statements)
	{
		(my $text = $statement) =~ s/'/''/g;
		$sql .= "SELECT pg_temp.forge('$text');\n";
	}
	my $result = run_sql($node, "${sql}ROLLBACK");
	my @outcomes = split /\n/, $result->{out};
	die "not every statement had an outcome: $result->{err}" if @outcomes != @$statements;
	return @outcomes;
}

my $seed = 220;
srand $seed;
sealed();
my @ids = split /\n/, value($node, 'SELECT id FROM fieldcrypt.audit_log WHERE leaf < (SELECT max(size) FROM fieldcrypt.audit_checkpoints) ORDER BY leaf');
my @sizes = split /\n/, value($node, 'SELECT id FROM fieldcrypt.audit_checkpoints ORDER BY id');
sub any { return $_[ int rand @_ ] }

# Another value for each column; NULL becomes one, too.
my %edits = (
	id => ['id + 1000000', '-id'],
	at => [q{at + interval '1 microsecond'}, q{at - interval '1 year'}, q{'infinity'}],
	event => [q{'x'}, q{event || ' '}],
	actor => [q{actor || 'x'}, q{''}],
	role => [q{'postgres ' || role}, q{upper(role) || role}],
	client_address => [q{'10.9.8.7'}, q{CASE WHEN client_address IS NULL THEN '::1'::inet END}],
	application => [q{coalesce(application, '') || 'x'}, q{CASE WHEN application IS NULL THEN '' END}],
	backend_pid => ['backend_pid + 1', '-backend_pid'],
	transaction_id => [q{'12345678'}, q{CASE WHEN transaction_id IS NULL THEN '1'::xid8 END}],
	tenant => [q{coalesce(tenant, '') || 'x'}, q{CASE WHEN tenant IS NULL THEN '' END}],
	key_id => ['coalesce(key_id, 0) + 1', 'CASE WHEN key_id IS NULL THEN 0 END'],
	reason => [q{coalesce(reason, '') || ' '}, q{CASE WHEN reason IS NULL THEN '' END}],
	table_name => [q{coalesce(table_name, '') || 'x'}, q{CASE WHEN table_name IS NULL THEN '' END}],
	partition_name => [q{coalesce(partition_name, '') || 'x'}],
	row_key => [q{'{"id": 7}'}, q{CASE WHEN row_key IS NULL THEN 'null'::jsonb END}],
	old_row_key => [q{'{"id": 7}'}, q{CASE WHEN old_row_key IS NULL THEN 'null'::jsonb END}],
	changed_columns => [q{changed_columns || '{x}'::text[]}, q{'{name,NULL}'}, q{'{}'}],
	error_code => [q{coalesce(error_code, '') || '1'}],
	value_count => ['coalesce(value_count, 0) + 1', 'CASE WHEN value_count IS NULL THEN 0 END'],
	key_ids => [q{coalesce(key_ids, '{}') || 1::bigint}, q{'{NULL}'}],
	subject => [q{coalesce(subject, '') || 'x'}, q{CASE WHEN subject IS NULL THEN '' END}],
	contexts => [q{coalesce(contexts, '{}') || '{x}'}, q{CASE WHEN contexts IS NULL THEN '{}'::text[] END}],
	mac => [q{set_byte(coalesce(mac, sha256('')), 7, (get_byte(coalesce(mac, sha256('')), 7) + 1) % 256)}, q{'\x'}, 'NULL'],
	mac_key_id => ['coalesce(mac_key_id, 0) + 1', 'NULL'],
	leaf => ['leaf + 1000', 'NULL', '-leaf - 1', 'NULL'],
);
my @statements;
foreach my $column (sort keys %edits)
{
	foreach my $value (@{ $edits{$column} })
	{
		push @statements, "UPDATE fieldcrypt.audit_log SET $column = $value WHERE id = " . any(@ids) . " AND $column IS DISTINCT FROM $value" for 1 .. 4;
	}
}
my @columns = sort keys %edits;
foreach (1 .. 20)
{
	my ($one, $two) = (any(@ids), any(@ids));
	my $column = any(grep { $_ ne 'id' && $_ ne 'leaf' } @columns);
	push @statements,
	  'DELETE FROM fieldcrypt.audit_log WHERE id = ' . $one,
	  "DELETE FROM fieldcrypt.audit_log WHERE leaf BETWEEN (SELECT leaf FROM fieldcrypt.audit_log WHERE id = $one) AND (SELECT leaf + 3 FROM fieldcrypt.audit_log WHERE id = $one)",
	  "UPDATE fieldcrypt.audit_log AS l SET $column = o.$column FROM fieldcrypt.audit_log AS o WHERE l.id = $one AND o.id = $two AND l.$column IS DISTINCT FROM o.$column";
	# Leaf numbers exchanged; the unique index is no obstacle to him.
	push @statements, "DO \$x\$ DECLARE a bigint := (SELECT leaf FROM fieldcrypt.audit_log WHERE id = $one); b bigint := (SELECT leaf FROM fieldcrypt.audit_log WHERE id = $two); BEGIN UPDATE fieldcrypt.audit_log SET leaf = NULL WHERE id = $one; UPDATE fieldcrypt.audit_log SET leaf = a WHERE id = $two; UPDATE fieldcrypt.audit_log SET leaf = b WHERE id = $one; END \$x\$"
	  if $one != $two;
	# A row put in: a copy with another id in place of one that is taken out, and one beside the others.
	push @statements, "WITH gone AS (DELETE FROM fieldcrypt.audit_log WHERE id = $one RETURNING *) INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, leaf) SELECT -1, at, event, 'nobody', role, backend_pid, leaf FROM gone";
	push @statements, "INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid, mac, mac_key_id) SELECT -2, at, event, actor, role, backend_pid, mac, mac_key_id FROM fieldcrypt.audit_log WHERE id = $one AND mac IS NOT NULL";
}
push @statements,
  'DELETE FROM fieldcrypt.audit_log WHERE leaf >= (SELECT max(leaf) - 5 FROM fieldcrypt.audit_log)',
  'DELETE FROM fieldcrypt.audit_log WHERE leaf = (SELECT max(leaf) FROM fieldcrypt.audit_log)',
  'DELETE FROM fieldcrypt.audit_log WHERE leaf = 0',
  'DELETE FROM fieldcrypt.audit_log',
  'UPDATE fieldcrypt.audit_log SET leaf = leaf + 1000000',
  # Everything past a checkpoint cut off, the checkpoints too: the process that signs knows better.
  'WITH c AS (DELETE FROM fieldcrypt.audit_checkpoints WHERE size > 40) DELETE FROM fieldcrypt.audit_log WHERE leaf >= 40',
  'WITH c AS (DELETE FROM fieldcrypt.audit_checkpoints), s AS (DELETE FROM fieldcrypt.audit_signers), o AS (DELETE FROM fieldcrypt.audit_origins) DELETE FROM fieldcrypt.audit_log';
my %checkpoint_edits = (
	size => ['size + 1', '0'],
	at => [q{at + interval '2 minutes'}, q{'-infinity'}],
	root => [q{sha256(root)}],
	frontier => [q{set_byte(frontier, 12, (get_byte(frontier, 12) + 1) % 256)}, q{'\x'}, q{frontier || '\x00'}],
	signer_id => ['signer_id + 1', '0'],
	origin_id => ['origin_id + 1'],
	is_final => ['NOT is_final'],
	note => [q{replace(note, E'\n', ' ')}, q{overlay(note PLACING 'B' FROM length(note) - 40)}, q{regexp_replace(note, 'time 2...', 'time 1999')}, q{''}],
);
foreach my $column (sort keys %checkpoint_edits)
{
	push @statements, map { "UPDATE fieldcrypt.audit_checkpoints SET $column = $_ WHERE id = " . any(@sizes) . " AND $column IS DISTINCT FROM $_" } (@{ $checkpoint_edits{$column} }) x 3;
}
# All but the last one, which may state no more than the one before it, that all was sealed.
push @statements, "DELETE FROM fieldcrypt.audit_checkpoints WHERE id = $_ AND id <> (SELECT max(id) FROM fieldcrypt.audit_checkpoints)" foreach @sizes;
push @statements, 'DELETE FROM fieldcrypt.audit_checkpoints', 'DELETE FROM fieldcrypt.audit_checkpoints WHERE size = (SELECT max(size) FROM fieldcrypt.audit_checkpoints)',
  'UPDATE fieldcrypt.audit_checkpoints AS c SET note = o.note FROM fieldcrypt.audit_checkpoints AS o WHERE c.id = ' . $sizes[3] . ' AND o.id = ' . $sizes[4];
my %signer_edits = (
	origin_id => ['origin_id + 1'],
	public_key => [q{replace(public_key, '+', '-')}, q{'x'}],
	introduced_at => [q{introduced_at - interval '1 hour'}],
	introduced_by => [q{'itself'}],
	from_size => ['from_size + 1'],
	is_clean => ['NOT is_clean'],
	proof => [q{replace(proof, 'clean', 'unclean')}, q{''}, q{regexp_replace(proof, 'size \d+', 'size 0') || ' '}],
);
foreach my $id (split /\n/, value($node, 'SELECT id FROM fieldcrypt.audit_signers ORDER BY id'))
{
	push @statements, map { my $column = $_; map { "UPDATE fieldcrypt.audit_signers SET $column = $_ WHERE id = $id" } @{ $signer_edits{$column} } } sort keys %signer_edits;
	push @statements, "DELETE FROM fieldcrypt.audit_signers WHERE id = $id", "UPDATE fieldcrypt.audit_signers SET id = id + 1 WHERE id = $id";
}
push @statements, map { "UPDATE fieldcrypt.audit_origins SET $_" } 'id = id + 1', q{log_id = '\x00112233445566778899aabbccddeeff'}, q{at = at - interval '1 hour'}, 'system_identifier = 1', 'database_oid = 1', 'timeline = 7',
  q{old_log_id = log_id}, 'old_size = 1', q{old_root = sha256(old_root)}, q{cause = 'another cluster'}, q{acknowledged_at = now(), acknowledged_by = 'me', acknowledged_reason = 'why not'};
push @statements, 'DELETE FROM fieldcrypt.audit_origins', q{INSERT INTO fieldcrypt.audit_origins SELECT id + 1, substring(sha256('x') FOR 16), at, system_identifier, database_oid, timeline, log_id, 40, old_root, 'another timeline', at, 'me', 'why not' FROM fieldcrypt.audit_origins};

my ($done, $nothing) = (0, 0);
my %refused;
my @outcomes = forge(\@statements);
foreach my $index (0 .. $#statements)
{
	my ($statement, $outcome) = ($statements[$index], $outcomes[$index]);
	if ($outcome eq 'unchanged')
	{
		# There was no such row, or it had that value already.
		$nothing++;
		note "$outcome: $statement";
		next;
	}
	if ($outcome =~ /^refused: (.*)/)
	{
		$refused{$1}++;
		note "$outcome: $statement";
		next;
	}
	$done++;
	like($outcome, qr/^found: \w/, "found: $statement");
}
cmp_ok($done, '>', 300, "$done manipulations were found");
cmp_ok($nothing, '<', @statements / 10, "$nothing changed nothing");
is(join(' ', sort keys %refused), '', 'no constraint kept him from any');
is(findings(), '', 'all were undone');

# Damage is told where it is.
{
	my ($id, $leaf) = split /\|/, value($node, q{SELECT id, leaf FROM fieldcrypt.audit_log WHERE event = 'row_inserted' AND leaf > 30 ORDER BY leaf LIMIT 1});
	my $found = run_sql($node, "BEGIN; $disable UPDATE fieldcrypt.audit_log SET actor = 'nobody' WHERE id = $id; SELECT finding, leaf, log_id FROM fieldcrypt.verify_audit_log() WHERE finding = 'row_changed'; ROLLBACK");
	is($found->{out}, "row_changed|$leaf|$id", 'which row was changed');
	$found = run_sql($node, "BEGIN; $disable DELETE FROM fieldcrypt.audit_log WHERE id = $id; SELECT finding, leaf FROM fieldcrypt.verify_audit_log() WHERE status = 'critical' AND finding <> 'summary'; ROLLBACK");
	is($found->{out}, "leaf_missing|$leaf", 'which row was deleted');
	$found = run_sql($node, "BEGIN; $disable UPDATE fieldcrypt.audit_log SET actor = 'nobody', mac = NULL, mac_key_id = NULL WHERE id = $id; SELECT finding, leaf > $leaf AND detail LIKE 'the rows of the leaves %' FROM fieldcrypt.verify_audit_log() WHERE status = 'critical' AND finding <> 'summary'; ROLLBACK");
	is($found->{out}, 'root_mismatch|t', 'between which checkpoints one was that lost its MAC');
	$found = run_sql($node, "BEGIN; $disable UPDATE fieldcrypt.audit_log SET actor = 'nobody' WHERE id = $id; SELECT fieldcrypt.audit_proof($id)");
	is($found->{sqlstates}[0], 'KF027', 'what was changed is not proven');
}

# The documented limit: rows that are not sealed.
{
	my $found = run_sql($node, "BEGIN; $disable INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, backend_pid) VALUES (-3, now(), 'x', 'x', 'x', 1); DELETE FROM fieldcrypt.audit_log WHERE leaf IS NULL; SELECT count(*) FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok'; ROLLBACK");
	is($found->{out}, '0', 'rows that are not sealed can be deleted unnoticed') or diag $found->{err};
}

# A forger who has the changed log signed again, as an administrator can: nothing hides it.
{
	run_sql($node, "BEGIN; $disable UPDATE fieldcrypt.audit_log SET actor = 'nobody', mac = NULL, mac_key_id = NULL WHERE leaf = 20; COMMIT");
	isnt(findings(), '', 'a change that stays is found');
	value($node, q{SELECT fieldcrypt.acknowledge_audit_fork('nothing to see here')});
	value($node, q{SELECT fieldcrypt.create_key('after')});
	sealed();
	like(findings(), qr/root_mismatch/, 'also after a new origin has begun');
	# He also takes away what was signed before.
	run_sql($node, "BEGIN; $disable DELETE FROM fieldcrypt.audit_checkpoints WHERE origin_id = (SELECT min(id) FROM fieldcrypt.audit_origins); COMMIT");
	like(findings($outside), qr/^anchor_mismatch/m, 'an outside checkpoint shows it');
	like(findings($middle), qr/^anchor_mismatch/m, 'an earlier one, too');
	my $export = export_file('forged.jsonl');
	is(tool('verify-log', $export, '--checkpoint', $checkpoint, @master)->{code}, 1, 'the outside checker finds it');
}

no_crash($node);
$node->stop;
done_testing();
