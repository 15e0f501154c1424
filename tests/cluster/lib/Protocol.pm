# A client that speaks the protocol itself: pipelines, and what the server reports of settings.
#
#   my $client = Protocol->new(host => $node->host, port => $node->port, user => 'bob', db => 'postgres');
#   $client->simple('SELECT 1; SELECT 2');                  # [ 'row 1', 'row 2' ]: rows and errors in their order
#   $client->pipeline('BEGIN', [ 'SELECT $1', 'x' ]);       # parsed, bound and executed before one Sync
#   $client->{reported}{'fieldcrypt.tenant'};               # the last ParameterStatus
package Protocol;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;

my $PATIENCE = 60;

sub new
{
	my ($class, %at) = @_;
	my $socket =
	  $at{host} =~ m{^/}
	  ? IO::Socket::UNIX->new(Peer => "$at{host}/.s.PGSQL.$at{port}")
	  : IO::Socket::INET->new(PeerAddr => $at{host}, PeerPort => $at{port});
	die "can't connect: $!" if !$socket;
	binmode $socket;
	my $self = bless { socket => $socket, buffer => '', reported => {}, history => [] }, $class;
	my %startup = (user => $at{user} // scalar getpwuid($<), database => $at{db} // 'postgres', %{ $at{startup} // {} });
	my $body = pack('N', 196608) . join('', map { "$_\0$startup{$_}\0" } sort keys %startup) . "\0";
	syswrite $socket, pack('N', 4 + length $body) . $body;
	my @outcome = $self->until_ready;
	die "can't log in: @outcome" if grep { /^error/ } @outcome;
	return $self;
}

sub message
{
	my ($type, $body) = @_;
	return $type . pack('N', 4 + length $body) . $body;
}

sub simple
{
	my ($self, $sql) = @_;
	syswrite $self->{socket}, message('Q', "$sql\0");
	return [ $self->until_ready ];
}

# Statements, each a text or a text with its parameters.
sub pipeline
{
	my ($self, @statements) = @_;
	my $all = '';
	foreach my $statement (@statements)
	{
		my ($sql, @values) = ref $statement ? @$statement : $statement;
		$all .= message('P', "\0$sql\0" . pack('n', 0));
		$all .= message('B', "\0\0" . pack('nn', 0, scalar @values)
			. join('', map { defined $_ ? pack('N', length $_) . $_ : pack('N', 0xFFFFFFFF) } @values) . pack('n', 0));
		$all .= message('E', "\0" . pack('N', 0));
	}
	syswrite $self->{socket}, $all . message('S', '');
	return [ $self->until_ready ];
}

# "row …" and "error SQLSTATE message", up to the next ReadyForQuery.
sub until_ready
{
	my ($self) = @_;
	my @outcome;
	while (1)
	{
		my ($type, $body) = $self->next_message;
		if ($type eq 'Z') { $self->{state} = $body; return @outcome }
		elsif ($type eq 'D') { push @outcome, 'row ' . join '|', columns($body) }
		elsif ($type eq 'E' || $type eq 'N')
		{
			my %field = map { substr($_, 0, 1) => substr $_, 1 } split /\0/, $body;
			push @outcome, ($type eq 'E' ? 'error' : 'notice') . " $field{C} $field{M}";
			push @{ $self->{hints} }, $field{H} // ();
			return @outcome if $type eq 'E' && ($field{V} // $field{S}) eq 'FATAL';
		}
		elsif ($type eq 'S')
		{
			my ($name, $value) = split /\0/, $body, -1;
			$self->{reported}{$name} = $value;
			push @{ $self->{history} }, "$name=$value";
		}
	}
}

sub columns
{
	my ($body) = @_;
	my ($count) = unpack 'n', $body;
	my ($at, @columns) = (2);
	foreach (1 .. $count)
	{
		my $length = unpack 'N', substr $body, $at, 4;
		$at += 4;
		if ($length == 0xFFFFFFFF) { push @columns, 'NULL'; next }
		push @columns, substr $body, $at, $length;
		$at += $length;
	}
	return @columns;
}

sub next_message
{
	my ($self) = @_;
	my ($type, $length) = unpack 'aN', $self->bytes(5);
	return ($type, $self->bytes($length - 4));
}

sub bytes
{
	my ($self, $count) = @_;
	while (length $self->{buffer} < $count)
	{
		die 'the server does not answer' if !IO::Select->new($self->{socket})->can_read($PATIENCE);
		sysread $self->{socket}, my $more, 65536 or die 'the server has hung up';
		$self->{buffer} .= $more;
	}
	return substr $self->{buffer}, 0, $count, '';
}

sub close
{
	my ($self) = @_;
	syswrite $self->{socket}, message('X', '');
	close $self->{socket};
	return;
}

1;
