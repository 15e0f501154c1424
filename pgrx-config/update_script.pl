#!/usr/bin/env perl
# update_script.pl FROM TO OLD NEW WRITTEN: what ALTER EXTENSION UPDATE runs, from version FROM, whose script is OLD, to TO,
# whose script is NEW. WRITTEN is the part that is written by hand (sql/updates/README.md says what belongs there).
#
# A statement that both scripts have is left alone. What can be repeated is: functions and views (OR REPLACE), comments,
# and what has no name to be known by (ALTER, SELECT, GRANT). An object that OLD does not make is made, and a DO block that it
# does not have, by the tag of its quotes, is run. All else, a table with another column, an object that is gone, a DO block
# that is another, is for WRITTEN; tests/cluster/t/080 compares what comes of it
# with a new installation, and names whatever is missing.
use strict;
use warnings;

my ($from, $to, $old, $new, $written) = @ARGV;
my %had = map { $_ => 1 } statements(text($old));
my %made = map { my $object = made($_); $object ? ($object => 1) : () } keys %had;
my ($before, $after) = split /^-- what follows from sql\/.*\n/m, text($written), 2;
die "$written has no line '-- what follows from sql/'\n" unless defined $after;

my (@carried, @rights);
foreach my $statement (grep { !$had{$_} } statements(text($new)))
{
	my $object = made($statement);
	if ($statement =~ /^REVOKE\b|^DO \$\$/) { next }
	elsif ($statement =~ /^GRANT\b/) { push @rights, $statement }
	elsif ($statement =~ s/^CREATE (?=FUNCTION|PROCEDURE|VIEW)/CREATE OR REPLACE /) { push @carried, $statement }
	elsif (!$object || !$made{$object}) { push @carried, $statement }
}

print qq{\\echo Use "ALTER EXTENSION pg_fieldcrypt UPDATE" to load this file. \\quit\n};
section('sql/updates/begin.sql', text('sql/updates/begin.sql'));
section($written, $before);
section("what sql/ has, and $from has not or has otherwise", join "\n", map { "$_\n" } @carried);
section($written, $after);
section('sql/updates/end.sql', text('sql/updates/end.sql'));
section('rights of sql/', join "\n", map { "$_\n" } @rights);

sub section
{
	my ($title, $text) = @_;
	$text =~ s/\@FROM\@/$from/g;
	$text =~ s/\@TO\@/$to/g;
	print "\n-- $title\n$text";
	return;
}

# What a statement makes, by the name that it cannot have twice, or the name of a DO block; undef for functions and all that
# makes nothing.
sub made
{
	my ($statement) = @_;
	return $1 if $statement =~ /^(DO \$\w+\$)/;
	my $kinds = 'TABLE|TYPE|DOMAIN|SEQUENCE|SCHEMA|AGGREGATE|EVENT TRIGGER|(?:UNIQUE )?INDEX|OPERATOR(?: CLASS| FAMILY)?|CAST|(?:CONSTRAINT )?TRIGGER|COLLATION|STATISTICS|POLICY';
	my ($kind, $rest) = $statement =~ /^CREATE ($kinds) (.*)/s or return;
	# An operator is known by its arguments as well, a trigger by its table.
	return join ' ', $kind, $rest =~ /^(\S+)/, $rest =~ /\b(?:LEFTARG|RIGHTARG) = ([^,\s]+)/g if $kind eq 'OPERATOR';
	return join ' ', $kind, $rest =~ /^(\S+)/, $rest =~ /\bON (\S+)/ if $kind =~ /TRIGGER$|^POLICY/ && $kind ne 'EVENT TRIGGER';
	return join ' ', $kind, $rest =~ /^\(([^)]*)\)/ if $kind eq 'CAST';
	return join ' ', $kind, $rest =~ /^([^\s(;]+(?:\([^)]*\))?)/ if $kind eq 'AGGREGATE';
	return join ' ', $kind, $rest =~ /^([^\s(;]+)/;
}

# The statements of a script, without what stands between them.
sub statements
{
	my ($script) = @_;
	my (@statements, $statement);
	$script =~ s/^\\.*\n//mg;
	while ($script =~ /\G(--[^\n]*\n|\s+|\$(\w*)\$.*?\$\g2\$|'(?:[^']|'')*'|"[^"]*"|;|[\w.]+|.)/gs)
	{
		my $token = $1;
		die "a block comment\n" if $token eq '/' && substr($script, pos $script, 1) eq '*';
		die "a text with escapes: $token\n" if $token =~ /^[Ee]$/ && substr($script, pos $script, 1) eq q{'};
		die "BEGIN ATOMIC: its statements are not told from others\n" if $token =~ /^atomic$/i;
		next if $token =~ /^(?:--|\s)/ && !defined $statement;
		$statement .= $token;
		next unless $token eq ';';
		push @statements, $statement;
		undef $statement;
	}
	die "the script does not end with its last statement: $statement\n" if defined $statement;
	return @statements;
}

sub text
{
	open my $file, '<', $_[0] or die "$_[0]: $!\n";
	local $/ = undef;
	return scalar <$file>;
}
