#!/usr/bin/env perl
# errors.pl: the errors of the library (crates/error) and those that SQL raises are one table, which docs/errors.md shows.
# So are the names of events, docs/audit.md and the sentences of sql/audit_trail.sql. Each code of class KF that one of them raises is there, and none besides; one message has one code and one hint.
# A hint that SQL gives to such a code names it, as the library's do by themselves.
use strict;
use warnings;
use File::Find ();

my ($raised, $problems) = ({}, 0);
my %said;    # message => { "code, hint" => file }

sub problem { print "$_[0]\n"; return $problems++ }

sub text
{
	open my $file, '<', $_[0] or die "$_[0]: $!";
	local $/ = undef;
	return scalar <$file>;
}

# What is put into a message is another each time.
sub told
{
	my ($file, $code, $message, $hint) = @_;
	$message =~ s/\{\w*\}|%s|%/%/g;
	$said{$message}{ join ', ', grep { defined && /^KF/ } $code }{ $hint // '' } = $file;
	return;
}

my @files;
# What was released said it as it did then.
File::Find::find({ no_chdir => 1, wanted => sub { push @files, $_ if m{\.(?:rs|sql)$} && !m{^sql/released/} } }, 'src', 'crates/error/src', 'crates/pg/src', 'sql');
foreach my $file (sort @files)
{
	my $text = text($file);
	if ($file =~ /\.rs$/)
	{
		$raised->{$1} //= $file while $text =~ /b"(KF\d{3})"/g;
		# (b"KF003", format!("..."), "..."), also with .into() and on several lines.
		told($file, $1, $2, $3) while $text =~ /b"(\w{5})",\s*(?:format!\()?\s*"((?:[^"\\]|\\.)*)"(?:\)|\s*\.into\(\))?,\s*"((?:[^"\\]|\\.)*)"/g;
	}
	else
	{
		$raised->{$1} //= $file while $text =~ /(?:ERRCODE =|error_code :?=) '(KF\d{3})'/g;
		while ($text =~ /\bRAISE (?:EXCEPTION|WARNING) USING (.*?);\n/gs)
		{
			my $raise = $1;
			my ($code) = $raise =~ /ERRCODE = '?(\w+)/;
			my ($message) = $raise =~ /MESSAGE = (?:(?:pg_catalog\.)?format\()?'((?:[^']|'')*)'/;
			my ($hint) = $raise =~ /HINT = '((?:[^']|'')*)'/;
			problem("$file raises $code with a hint that does not name it") if ($code // '') =~ /^KF/ && defined $hint && $hint !~ s/ \($code, see docs\/errors\.md\)$//;
			told($file, $code, $message =~ s/''/'/gr, ($hint // '') =~ s/''/'/gr) if defined $message;
		}
	}
}

# Events have one list in the library, and one for people.
my %events = map { $_ => 1 } text('src/events/mod.rs') =~ /^    \w+ = "(\w+)",$/mg;
my ($shown) = text('docs/audit.md') =~ /## What is recorded\n(.*?)\n\*\*Key use/s;
my %shown = map { $_ => 1 } map { /`(\w+)`/g } $shown =~ /^\| (`[^|]*`) \|/mg;
problem("the event $_ is not in docs/audit.md") foreach grep { !$shown{$_} } sort keys %events;
problem("docs/audit.md has the event $_, which there is not") foreach grep { !$events{$_} } sort keys %shown;
problem('no events are found') if keys %events < 40;
my ($words) = text('sql/audit_trail.sql') =~ /FUNCTION fieldcrypt_internal\.event_words\(\)(.*?)^\$\$;/ms;
my %worded;
$worded{$_}++ foreach ($words // '') =~ /\('(\w+)', '[^']+', (?:NULL|'[^']+')\)/g;
problem("the event $_ has no sentence in sql/audit_trail.sql") foreach grep { !$worded{$_} } sort keys %events;
problem("sql/audit_trail.sql has the event $_, which there is not, or twice") foreach grep { !$events{$_} || $worded{$_} > 1 } sort keys %worded;

my %listed = map { $_ => 1 } text('docs/errors.md') =~ /^\| (KF\d{3}) \|/mg;
problem("$_ of $raised->{$_} is not in docs/errors.md") foreach grep { !$listed{$_} } sort keys %$raised;
problem("$_ is in docs/errors.md, and nothing raises it") foreach grep { !$raised->{$_} } sort keys %listed;
problem('no errors are found') if keys %$raised < 20 || keys %said < 80;
foreach my $message (sort keys %said)
{
	my @ways = map { my $code = $_; map { [ $code, $_, $said{$message}{$code}{$_} ] } sort keys %{ $said{$message}{$code} } } sort keys %{ $said{$message} };
	problem(qq{"$message" is said in several ways:\n} . join "\n", map { "    $_->[2]: $_->[0] HINT $_->[1]" } @ways) if @ways > 1;
}
exit($problems > 0);
