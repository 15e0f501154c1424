# The MAC of a row covers every column, in every encoding; what is read back from the table is what was
# authenticated when it was written.

use strict;
use warnings;

use FieldcryptTest;
use Test::More;

my $node = new_cluster('rows', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.audit_seal_interval = 200\nfieldcrypt.audit_worker_linger = 60000\n");
value($node, q{SELECT fieldcrypt.create_key('acme')});

sub sealed
{
	my ($db) = @_;
	return $node->poll_query_until($db, <<'SQL');
SELECT count(*) FILTER (WHERE leaf IS NULL) = 0 AND max(leaf) + 1 = (SELECT max(size) FROM fieldcrypt.audit_checkpoints) FROM fieldcrypt.audit_log
SQL
}

# Everything that is worse than a warning about a row or the tree.
my $critical = q{SELECT coalesce(string_agg(DISTINCT finding, ' ' ORDER BY finding), '') FROM fieldcrypt.verify_audit_log() WHERE status = 'critical' AND finding <> 'summary'};

# Texts that are hard to bring back: JSON that is normalised, names in other alphabets, bytes that are none.
my %databases = (
	utf8 => [ q{TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'}, q{U&'M\00FCller \1F511'} =~ s/\\1F511/\\+01F511/r ],
	latin1 => [ q{TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'}, q{U&'M\00FCller'} ],
	win1252 => [ q{TEMPLATE template0 ENCODING 'WIN1252' LOCALE 'C'}, q{U&'\20AC M\00FCller'} ],
	euc_jp => [ q{TEMPLATE template0 ENCODING 'EUC_JP' LOCALE 'C'}, q{U&'\65E5\672C'} ],
	sql_ascii => [ q{TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'}, q{E'M\xfcller'} ]);
foreach my $db (sort keys %databases)
{
	my ($with, $name) = @{ $databases{$db} };
	create_database($node, $db, with => $with);
	my @in = (db => $db, env => { PGCLIENTENCODING => $db eq 'sql_ascii' ? 'SQL_ASCII' : 'UTF8' });
	value($node, q{SELECT fieldcrypt.create_key('first')}, @in);
	# In SQL_ASCII such a name is refused for a key, not for a row.
	my $tenant = $db eq 'sql_ascii' ? q{'Miller'} : $name;
	my $result = run_sql($node, <<"SQL", @in);
SELECT fieldcrypt.create_key($tenant) > 0;
SET application_name = 'the test';
SELECT set_config('fieldcrypt.audit_subject', $name, false);
CREATE TABLE t ("zz ä" text, a numeric, b text, c jsonb, PRIMARY KEY (b, a, "zz ä"), v fieldcrypt.encrypted, "v ""2""" fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('t');
INSERT INTO t SELECT $name, 1.50, E'quote \\" and \\\\ and \\t', '{}', fieldcrypt.encrypt_field('x'), fieldcrypt.encrypt_field('y');
UPDATE t SET a = 2e10, v = fieldcrypt.encrypt_field('z');
DELETE FROM t;
TRUNCATE t;
SQL
	if ($db eq 'sql_ascii' || $db eq 'euc_jp')
	{
		# A name that the database can't hold as UTF-8 keeps nobody from anything but this.
		$result = run_sql($node, q{CREATE TABLE u (id int PRIMARY KEY, v fieldcrypt.encrypted); SELECT fieldcrypt.audit_table('u'); INSERT INTO u VALUES (1, fieldcrypt.encrypt_field('x')); DELETE FROM u}, @in);
		is("@{ $result->{sqlstates} }", '', "$db: rows are recorded");
		$result = run_sql($node, qq{SELECT fieldcrypt.set_rotation_policy('acme', '1 year'); SELECT fieldcrypt_internal.record_event('key_refused', 'acme', NULL, $name, NULL)}, @in);
	}
	is("@{ $result->{sqlstates} }", '', "$db: all is recorded") or diag $result->{err};
	ok(sealed($db), "$db: sealed");
	# In SQL_ASCII the rows themselves are refused.
	gives($node, "SELECT count(*) FROM fieldcrypt.audit_log WHERE subject = $name AND event IN ('table_audited', 'row_inserted', 'row_updated', 'row_deleted', 'table_truncated')", $db eq 'sql_ascii' ? '2' : '5', "$db: whom it was for is as it was claimed", @in);
	gives($node, $critical, '', "$db: every row is what was written", @in);
	gives($node, q{SELECT count(*) FROM fieldcrypt.verify_audit_log(anchor => (SELECT note FROM fieldcrypt.audit_checkpoints ORDER BY id DESC LIMIT 1)) WHERE status = 'critical'}, '0', "$db: checkpoints can be copied from the table", @in);
	gives($node, 'SELECT count(*) > 5 FROM fieldcrypt.audit_export()', 't', "$db: and the log exported", @in);
	gives($node, q{SELECT count(*) > 5, count(*) - count(mac) FROM fieldcrypt.audit_log WHERE event <> 'master_key_loaded'}, 't|0', "$db: all are authenticated", @in);
}

# Each column of a row that has them all.
create_database($node, 'forged');
my @in = (db => 'forged');
value($node, <<'SQL', @in);
SELECT fieldcrypt.create_key('a');
CREATE TABLE t (id int PRIMARY KEY, v fieldcrypt.encrypted) PARTITION BY RANGE (id);
CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (1) TO (100);
SELECT fieldcrypt.audit_table('t');
INSERT INTO t SELECT i, fieldcrypt.encrypt_field('x') FROM generate_series(1, 3) AS i;
UPDATE t SET id = id + 10, v = fieldcrypt.encrypt_field('y');
CALL fieldcrypt.rotate_keys('a', 'a reason');
SQL
ok(sealed('forged'), 'sealed');
gives($node, $critical, '', 'before: nothing to be found', @in);
my %edits = (
	id => q{id + 1000000000},
	at => q{at + interval '1 microsecond'},
	event => q{'row_deleted'},
	actor => q{actor || ' '},
	role => q{'mallory'},
	client_address => q{CASE WHEN client_address IS NULL THEN inet '10.0.0.1' END},
	application => q{coalesce(application, '') || 'x'},
	backend_pid => q{backend_pid + 1},
	transaction_id => q{CASE WHEN transaction_id IS NULL THEN xid8 '1' END},
	tenant => q{coalesce(tenant, '') || 'x'},
	key_id => q{coalesce(key_id, 0) + 1},
	reason => q{coalesce(reason, '') || 'x'},
	table_name => q{coalesce(table_name, '') || 'x'},
	partition_name => q{coalesce(partition_name, '') || 'x'},
	row_key => q{coalesce(row_key, '{}') || '{"x": 1}'},
	old_row_key => q{coalesce(old_row_key, '{}') || '{"x": null}'},
	changed_columns => q{coalesce(changed_columns, '{}') || '{x}'},
	error_code => q{coalesce(error_code, '') || '0'},
	value_count => q{coalesce(value_count, 0) + 1},
	key_ids => q{coalesce(key_ids, '{}') || 1::bigint},
	subject => q{coalesce(subject, '') || 'x'},
	contexts => q{coalesce(contexts, '{}') || '{x}'},
	mac => q{set_byte(mac, 31, get_byte(mac, 31) # 1)},
	mac_key_id => q{mac_key_id + 1});
my %shapes = (
	'reason emptied' => q{reason = CASE WHEN reason IS NULL THEN '' END},
	'changed_columns of two dimensions' => q{changed_columns = ARRAY[coalesce(nullif(changed_columns, '{}'), '{x}')]},
	'changed_columns from 0' => q{changed_columns = ('[0:0]={v}')::text[]},
	'changed_columns with a NULL' => q{changed_columns = changed_columns || NULL::text},
	'a subject that is empty' => q{subject = ''},
	'no contexts in a list' => q{contexts = '{}'},
	'contexts of two dimensions' => q{contexts = '{{x}}'},
	'the MAC gone' => q{mac = NULL, mac_key_id = NULL},
	'the MAC cut' => q{mac = substr(mac, 1, 31)},
	'the key of the MAC gone' => q{mac_key_id = NULL},
	'a time that is none' => q{at = 'infinity'},
	'a mask of the address' => q{client_address = '10.0.0.1/8'});
$shapes{$_} = "$_ = $edits{$_}" foreach keys %edits;
my @rows = map { value($node, "SELECT id FROM fieldcrypt.audit_log WHERE $_ ORDER BY id LIMIT 1", @in) } q{event = 'row_updated'}, q{event = 'key_deactivated'};
value($node, 'CREATE TABLE saved AS SELECT * FROM fieldcrypt.audit_log', @in);
foreach my $row (@rows)
{
	foreach my $name (sort keys %shapes)
	{
		my $changed = value($node, "SET session_replication_role = replica; WITH u AS (UPDATE fieldcrypt.audit_log SET $shapes{$name} WHERE id = $row RETURNING *) SELECT count(*) FROM u", @in);
		is($changed, '1', "$name of row $row: changed");
		my $found = run_sql($node, $critical, @in);
		like($found->{out}, qr/\w/, "$name of row $row: found ($found->{out})") or diag $found->{err};
		value($node, "SET session_replication_role = replica; DELETE FROM fieldcrypt.audit_log WHERE id NOT IN (SELECT id FROM saved) AND leaf IN (SELECT leaf FROM saved); DELETE FROM fieldcrypt.audit_log WHERE id = $row; INSERT INTO fieldcrypt.audit_log SELECT * FROM saved WHERE id = $row", @in);
	}
}
gives($node, $critical, '', 'put back: nothing to be found', @in);

no_crash($node);
$node->stop;
done_testing();
