# What is called or changed in ways that no application does gives a clear error, never an internal one: functions by the
# fast path of the protocol, tables whose columns have other types, schemas with other names, the audit trigger before a
# change, the report for clients and databases of every encoding.

use strict;
use warnings;

use FieldcryptTest;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\nfieldcrypt.require_approval = ''\n");
value($node, <<'SQL');
CREATE TABLE vals (id int PRIMARY KEY, sealed fieldcrypt.encrypted);
INSERT INTO vals VALUES (1, fieldcrypt.encrypt_field('note'));
SQL

note 'the fast path';
{
	my $wire = Wire->new($node);
	my $call = sub { $wire->call(@_) };
	my $oid = sub { value($node, "SELECT '$_[0]'::regprocedure::oid") };
	my $sealed = value($node, 'SELECT sealed FROM vals');
	my $bytes = pack 'H*', value($node, q{SELECT encode(sealed::bytea, 'hex') FROM vals});

	# It works where the types are plain.
	my $decrypt = $oid->('fieldcrypt.decrypt_field(fieldcrypt.encrypted, text)');
	is($call->($decrypt, [0], [ $sealed, '' ], 0), 'note', 'a value in text form');
	is($call->($decrypt, [ 1, 0 ], [ $bytes, '' ], 1), 'note', 'a value in binary form');
	like($call->($oid->('fieldcrypt.encrypt_field(text, text, text)'), [0], [ 'x', '', '' ], 0), qr/^fc1:/, 'encryption');
	is($call->($decrypt, [0], [ $sealed, undef ], 0), 'ERROR 22004', 'a NULL context');
	is($call->($decrypt, [0], [ $sealed, 'there' ], 0), 'ERROR KF002', 'another context');
	is($call->($decrypt, [1], [ 'junk', '' ], 0), 'ERROR KF001', 'bytes that are no value');
	is($call->($decrypt, [0], [$sealed], 0), 'ERROR 08P01', 'an argument too few');
	is($call->($decrypt, [0], [ $sealed, '', '' ], 0), 'ERROR 08P01', 'an argument too many');
	my $as = $oid->('fieldcrypt.decrypt_field_as(fieldcrypt.encrypted, anyelement, text)');
	is($call->($as, [0], [ $sealed, undef, '' ], 0), 'ERROR 42P18', 'a type that nobody names');

	# Every function, with nothing and with odd things.
	my @functions = map { [ split /\|/, $_, -1 ] } split /\n/, value($node, <<'SQL');
SELECT p.oid, p.oid::regprocedure, p.pronargs FROM pg_proc AS p
 WHERE p.pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND p.prokind = 'f'
   AND p.proname NOT LIKE 'unschedule%' AND p.proname NOT LIKE 'schedule%' ORDER BY 2
SQL
	cmp_ok(scalar @functions, '>', 100, 'all functions: ' . @functions);
	my @bad;
	foreach my $function (@functions)
	{
		my ($number, $name, $count) = @$function;
		my %calls = (
			nothing => [ [0], [ (undef) x $count ], 0 ], 'empty texts' => [ [0], [ ('') x $count ], 0 ],
			texts => [ [0], [ ('x') x $count ], 0 ], numbers => [ [0], [ ('1') x $count ], 0 ], negative => [ [0], [ ('-1') x $count ], 1 ],
			values => [ [0], [ ($sealed) x $count ], 0 ], 'no bytes' => [ [1], [ ('') x $count ], 1 ], 'four bytes' => [ [1], [ ("\0\0\0\1") x $count ], 1 ],
			'eight bytes' => [ [1], [ ("\377" x 8) x $count ], 1 ], 'one fewer' => [ [0], [ ('1') x ($count - 1) ], 0 ], 'one more' => [ [0], [ ('1') x ($count + 1) ], 0 ]);
		foreach my $kind (sort keys %calls)
		{
			$wire->begin;
			my $outcome = $call->($number, @{ $calls{$kind} });
			push @bad, "$name of $kind: $outcome " . $wire->message 
			  # Postgres itself reads binary JSON so.
			  if $outcome =~ /^ERROR (?:XX|58|53)|^gone/ && $wire->message !~ /^unsupported jsonb version number/;
			$wire = Wire->new($node) if $outcome eq 'gone';
			$wire->rollback;
		}
	}
	is(join("\n", @bad), '', 'no function gives an internal error');
}

note 'columns of other types';
{
	my $encrypt = q{SELECT fieldcrypt.encrypt_field('x')};
	my $decrypt = q{SELECT fieldcrypt.decrypt_field(sealed) FROM vals};
	foreach my $change (
		[ 'encryption_keys', 'tenant', 'bytea', q{tenant::bytea} ],
		[ 'encryption_keys', 'tenant', 'integer', '1' ], [ 'encryption_keys', 'key_id', 'text', 'key_id::text' ],
		[ 'encryption_keys', 'key_id', 'numeric', 'key_id' ], [ 'encryption_keys', 'version', 'text', 'version::text' ],
		[ 'encryption_keys', 'wrapped_key', 'oid', '1' ], [ 'encryption_keys', 'master_key_fingerprint', 'integer', '1' ],
		[ 'encryption_keys', 'key_check', 'boolean', 'true' ], [ 'encryption_keys', 'algorithm', 'text[]', 'ARRAY[algorithm]' ],
		[ 'master_keys', 'fingerprint', 'integer', '1' ], [ 'master_keys', 'is_current', 'text', 'is_current::text' ])
	{
		my ($table, $column, $type, $using) = @$change;
		# In one transaction that takes it back; constraints and indexes would not follow.
		my $sql = <<"SQL";
SET client_min_messages = error;
BEGIN;
ALTER TABLE fieldcrypt.$table DISABLE TRIGGER ALL;
DO \$\$ DECLARE c text; BEGIN
    FOR c IN SELECT conname FROM pg_constraint WHERE conrelid = 'fieldcrypt.$table'::regclass AND contype = 'c' LOOP EXECUTE format('ALTER TABLE fieldcrypt.$table DROP CONSTRAINT %I CASCADE', c); END LOOP;
END \$\$;
DROP INDEX IF EXISTS fieldcrypt.master_keys_current;
ALTER INDEX fieldcrypt.encryption_keys_active RENAME TO old_active; ALTER INDEX fieldcrypt.encryption_keys_version RENAME TO old_version;
DROP INDEX fieldcrypt.old_active, fieldcrypt.old_version;
CREATE INDEX encryption_keys_active ON fieldcrypt.encryption_keys (tenant, purpose); CREATE INDEX encryption_keys_version ON fieldcrypt.encryption_keys (tenant, purpose, version);
ALTER TABLE fieldcrypt.$table ALTER COLUMN $column DROP DEFAULT, ALTER COLUMN $column TYPE $type USING $using;
SAVEPOINT s; $encrypt; ROLLBACK TO s; $decrypt; ROLLBACK TO s; SELECT fieldcrypt.create_key('new'); ROLLBACK;
SQL
		my $result = run_sql($node, $sql);
		my $states = "@{ $result->{sqlstates} }";
		# Where a key is to be made, it may be Postgres that finds the other type.
		like($states, qr/^KF01[02](?: KF01[02])*(?: 42804)?$/, "$table.$column as $type") or diag $result->{err};
	}
	# The log's own rows.
	foreach my $change ([ 'reason', 'integer', '1' ], [ 'key_id', 'text', 'key_id::text' ], [ 'row_key', 'text', 'row_key::text' ], [ 'mac', 'text', q{encode(mac, 'hex')} ],
		[ 'changed_columns', 'text', q{array_to_string(changed_columns, ' ')} ])
	{
		my ($column, $type, $using) = @$change;
		my $result = run_sql($node, <<"SQL");
SET client_min_messages = error;
BEGIN; SELECT fieldcrypt.create_key('logged');
ALTER TABLE fieldcrypt.audit_log ALTER COLUMN $column TYPE $type USING $using;
SELECT count(*) FROM fieldcrypt.verify_audit_log(); ROLLBACK;
SQL
		unlike("@{ $result->{sqlstates} }", qr/XX|58|53|57/, "audit_log.$column as $type: @{ $result->{sqlstates} }") or diag $result->{err};
	}
	gives($node, $decrypt, 'note', 'all as before');
}

note 'other names';
{
	foreach my $rename ([ 'ALTER SCHEMA fieldcrypt_internal RENAME TO other', 'fieldcrypt_internal' ],
		[ 'ALTER TABLE fieldcrypt.master_keys RENAME TO other', 'master_keys' ], [ 'ALTER INDEX fieldcrypt.encryption_keys_active RENAME TO other', 'encryption_keys_active' ])
	{
		my ($statement, $what) = @$rename;
		refused($node, "BEGIN; $statement; SELECT fieldcrypt.encrypt_field('x')", '55000',
			qr/$what of the extension pg_fieldcrypt is not there: it was renamed.*HINT:.*RENAME TO/s, $statement);
	}
	create_database($node, 'without', extension => 0);
	value($node, q{CREATE FUNCTION enc(text, text, text) RETURNS bytea LANGUAGE c AS '$libdir/pg_fieldcrypt', 'fieldcrypt_encrypt_field'}, db => 'without');
	refused($node, q{SELECT enc('x', '', '')}, '55000', qr/is not installed in this database/, 'a database without the extension', db => 'without');
}

note 'the audit trigger, before a change';
{
	foreach my $kind ('BEFORE INSERT OR UPDATE OR DELETE ON patients FOR EACH ROW', 'BEFORE INSERT ON patients FOR EACH STATEMENT', 'BEFORE TRUNCATE ON patients FOR EACH STATEMENT')
	{
		my $write = $kind =~ /TRUNCATE/ ? 'TRUNCATE patients' : 'INSERT INTO patients VALUES (1)';
		refused($node, "BEGIN; CREATE TABLE patients (id int PRIMARY KEY); CREATE TRIGGER t $kind EXECUTE FUNCTION fieldcrypt_internal.audit_change(); $write",
			'39P01', qr/by AFTER triggers only.*audit_table/s, $kind);
	}
	refused($node, q{BEGIN; CREATE VIEW seen AS SELECT id FROM vals; CREATE TRIGGER t INSTEAD OF INSERT ON seen FOR EACH ROW EXECUTE FUNCTION fieldcrypt_internal.audit_change(); INSERT INTO seen VALUES (2)},
		'39P01', qr/AFTER/, 'INSTEAD OF');
	gives($node, q{CREATE TABLE patients (id int PRIMARY KEY); SELECT fieldcrypt.audit_table('patients'); INSERT INTO patients VALUES (1); TABLE patients}, "\n1", 'as audit_table makes it');
}

note 'the report, in every encoding';
{
	ok(eventually($node, 'SELECT count(*) > 0 FROM fieldcrypt.audit_checkpoints', 't'), 'there is a checkpoint to be shown');
	foreach my $client (qw(UTF8 LATIN1 LATIN2 LATIN9 WIN1252 WIN1251 KOI8R KOI8U SJIS EUC_JP EUC_KR EUC_TW BIG5 GBK GB18030 ISO_8859_5 SQL_ASCII))
	{
		my @as = (env => { PGCLIENTENCODING => $client });
		gives($node, 'SELECT fieldcrypt.compliance_report_html()', qr/^<!DOCTYPE html>.*&#x2014;.*<\/html>\s*$/s, "the page for a client in $client", @as);
		gives($node, q{SELECT fieldcrypt.compliance_report()}, qr/\\\\u2014/, "the document for a client in $client", @as);
	}
	my $note = value($node, q{SELECT fieldcrypt.compliance_report() #>> '{figures,audit_log,checkpoint,note}'});
	gives($node, "SELECT count(*) FILTER (WHERE status = 'critical') FROM fieldcrypt.verify_audit_log(anchor => '$note')", 0, 'its checkpoint is an anchor as it stands');
	foreach my $database (qw(latin1 win1252 koi8r euc_jp euc_tw sql_ascii))
	{
		create_database($node, $database, with => "TEMPLATE template0 ENCODING '$database' LOCALE 'C'");
		my @in = (db => $database);
		value($node, q{SELECT fieldcrypt.create_key('one')}, @in);
		ok(eventually($node, 'SELECT count(*) > 0 FROM fieldcrypt.audit_checkpoints', 't', @in), "$database: there is a checkpoint");
		gives($node, 'SELECT fieldcrypt.compliance_report_html()', qr/^<!DOCTYPE html>.*&#x2014;.*<\/html>\s*$/s, "$database: the page", @in);
		gives($node, 'SELECT fieldcrypt.compliance_report()', qr/\\\\u2014/, "$database: the document", @in);
	}
	# A name that the client can't show is Postgres's own error; the page has it.
	value($node, "SELECT fieldcrypt.create_key(U&'M\\00FCller \\03A9 \\65E5')");
	refused($node, 'SELECT fieldcrypt.compliance_report()', '22P05', 'a tenant that the client can not show', env => { PGCLIENTENCODING => 'LATIN1' });
	gives($node, 'SELECT fieldcrypt.compliance_report_html()', qr/M&#xFC;ller &#x3A9; &#x65E5;/, 'is on the page', env => { PGCLIENTENCODING => 'LATIN1' });
	refused($node, q{SELECT fieldcrypt_internal.report_page('{"secret": 1}')}, '22023', qr/no compliance report/, 'another document is no report');
}

no_crash($node);
done_testing();

# A client that speaks just enough of the protocol to call functions directly.
package Wire;

sub new
{
	my ($class, $node) = @_;
	my $self = bless { message => '' }, $class;
	$self->{socket} = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) or die "no connection: $!";
	my $user = getpwuid $<;
	my $start = pack('N', 196608) . "user\0$user\0database\0postgres\0\0";
	print { $self->{socket} } pack('N', 4 + length $start) . $start;
	$self->{socket}->flush;
	$self->answer;
	return $self;
}

# What a function gives: its result, 'NULL', or "ERROR" and the SQLSTATE.
sub call
{
	my ($self, $function, $formats, $arguments, $format) = @_;
	my $body = pack('N n n*', $function, scalar @$formats, @$formats) . pack('n', scalar @$arguments)
	  . join('', map { defined $_ ? pack('N/a*', $_) : pack('N', 0xFFFFFFFF) } @$arguments) . pack('n', $format);
	return $self->ask('F', $body);
}

sub begin { $_[0]->ask('Q', "BEGIN; SET LOCAL statement_timeout = '20s'; SET LOCAL client_min_messages = error\0"); return; }
sub rollback { $_[0]->ask('Q', "ROLLBACK\0"); return; }
sub message { return $_[0]{message}; }

sub ask
{
	my ($self, $type, $body) = @_;
	local $SIG{PIPE} = 'IGNORE';
	print { $self->{socket} } $type . pack('N', 4 + length $body) . $body;
	$self->{socket}->flush;
	return $self->answer;
}

sub answer
{
	my ($self) = @_;
	my $result = 'nothing';
	while (1)
	{
		my $head = $self->take(5) // return 'gone';
		my ($type, $length) = unpack 'a N', $head;
		my $body = $self->take($length - 4) // return 'gone';
		if ($type eq 'V')
		{
			my ($size) = unpack 'N', $body;
			$result = $size == 0xFFFFFFFF ? 'NULL' : substr $body, 4;
		}
		elsif ($type eq 'E')
		{
			my %fields = map { (substr($_, 0, 1), substr $_, 1) } split /\0/, $body;
			($result, $self->{message}) = ("ERROR $fields{C}", $fields{M});
		}
		return $result if $type eq 'Z';
	}
}

sub take
{
	my ($self, $count) = @_;
	my $bytes = '';
	while (length $bytes < $count)
	{
		my $read = sysread $self->{socket}, $bytes, $count - length $bytes, length $bytes;
		return undef unless $read;
	}
	return $bytes;
}
