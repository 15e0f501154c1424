# Values that occur nowhere else, put in by some way, and the server's log searched for them: as they are, folded to lower
# case, in hex.
#
#   my $log = LogCanary->new($node);
#   $log->hides(sub { my ($canary) = @_; … }, 'a name', qr/what is logged all the same/);
#   $log->shows(sub { … }, 'another name');

package LogCanary;

use strict;
use warnings;

use ServerLog;
use Test::More;

sub new
{
	my ($class, $node) = @_;
	return bless { node => $node, serial => 0 }, $class;
}

# The next word and what it looks like in a log.
sub next_canary
{
	my ($self) = @_;
	my $canary = sprintf 'Zq%06dCanary', ++$self->{serial};
	my $hex = unpack 'H*', $canary;
	return ($canary, qr/$canary|$hex/i);
}

# Runs something with a canary: { canary, pattern, log, result }.
sub run
{
	my ($self, $run) = @_;
	my ($canary, $pattern) = $self->next_canary;
	my $from = rotate_log($self->{node});
	my $result = $run->($canary);
	return { canary => $canary, pattern => $pattern, log => since($self->{node}, $from), result => $result };
}

# A test: no trace of the canary is in the log in any format, but this is.
sub hides
{
	my ($self, $run, $name, $logged) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $outcome = $self->run($run);
	my ($log, $pattern) = @$outcome{qw(log pattern)};
	my @found = grep { $log->{$_} =~ $pattern } sort keys %$log;
	my @missing = grep { defined $logged && $log->{$_} !~ $logged } sort keys %$log;
	ok(!@found && !@missing, "hidden: $name");
	diag "in @found: " . join "\n", grep { /$pattern/ } split /\n/, $log->{ $found[0] } if @found;
	diag "not logged in @missing: $logged\n$log->{stderr}" if @missing;
	return $outcome;
}

# A test: the canary, or something else, is in the log in every format.
sub shows
{
	my ($self, $run, $name, $logged) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $outcome = $self->run($run);
	my $log = $outcome->{log};
	my @missing = grep { $log->{$_} !~ ($logged // $outcome->{pattern}) } sort keys %$log;
	ok(!@missing, "shown: $name");
	diag "not in @missing\n$log->{stderr}" if @missing;
	return $outcome;
}

1;
