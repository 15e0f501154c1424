# The client's side of the protocol, message by message: what libpq and psql have no way to send.
#
#   my $wire = Wire->connect($node);
#   $wire->parse('', 'SELECT $1::int')->bind('', '', 'x')->execute('')->sync;
#   my $answer = $wire->answer;     # up to ReadyForQuery: { errors => [{ C => '22P02', M => … }], rows => [[…]] }

package Wire;

use strict;
use warnings;

use IO::Socket::UNIX;

sub connect
{
	my ($class, $node, %options) = @_;
	my $path = $node->host . '/.s.PGSQL.' . $node->port;
	my $socket = IO::Socket::UNIX->new(Peer => $path) or die "$path: $!";
	my $self = bless { socket => $socket }, $class;
	my %startup = (user => $options{user} // scalar getpwuid($<), database => $options{db} // 'postgres', %{ $options{startup} // {} });
	my $body = pack('N', 196608) . join('', map { "$_\0$startup{$_}\0" } sort keys %startup) . "\0";
	$self->write(pack('N', 4 + length $body) . $body);
	my $answer = $self->answer;
	die "refused: $answer->{errors}[0]{M}" if @{ $answer->{errors} };
	return $self;
}

sub write
{
	my ($self, $bytes) = @_;
	$self->{socket}->syswrite($bytes) == length $bytes or die "write: $!";
	return $self;
}

sub message
{
	my ($self, $type, $body) = @_;
	return $self->write($type . pack('N', 4 + length $body) . $body);
}

sub query { return $_[0]->message('Q', "$_[1]\0") }
sub parse { return $_[0]->message('P', "$_[1]\0$_[2]\0" . pack('n', 0)) }

# All parameters and results as text.
sub bind
{
	my ($self, $portal, $statement, @values) = @_;
	my $values = join '', map { pack('N', length) . $_ } @values;
	return $self->message('B', "$portal\0$statement\0" . pack('n', 0) . pack('n', scalar @values) . $values . pack('n', 0));
}

sub execute { return $_[0]->message('E', "$_[1]\0" . pack('N', $_[2] // 0)) }
sub sync { return $_[0]->message('S', '') }

# The fast path: a function by its number, arguments and result as text.
sub call
{
	my ($self, $function, @values) = @_;
	my $values = join '', map { pack('N', length) . $_ } @values;
	return $self->message('F', pack('N', $function) . pack('n', 0) . pack('n', scalar @values) . $values . pack('n', 0));
}

sub read
{
	my ($self, $length) = @_;
	my $bytes = '';
	while (length $bytes < $length)
	{
		$self->{socket}->sysread($bytes, $length - length $bytes, length $bytes) or die 'the server has closed the connection';
	}
	return $bytes;
}

# What the server says up to the next ReadyForQuery.
sub answer
{
	my ($self) = @_;
	my %answer = (errors => [], rows => []);
	while (1)
	{
		my $type = $self->read(1);
		my $body = $self->read(unpack('N', $self->read(4)) - 4);
		if ($type eq 'R') { die 'a password is wanted' if unpack('N', $body) != 0 }
		elsif ($type eq 'E') { push @{ $answer{errors} }, { map { /^(.)(.*)$/s ? ($1 => $2) : () } split /\0/, $body } }
		elsif ($type eq 'D')
		{
			my ($count, @row) = (unpack('n', $body));
			my $at = 2;
			for (1 .. $count)
			{
				my $length = unpack 'N', substr $body, $at, 4;
				$at += 4;
				if ($length == 0xFFFFFFFF) { push @row, undef; next }
				push @row, substr $body, $at, $length;
				$at += $length;
			}
			push @{ $answer{rows} }, \@row;
		}
		elsif ($type eq 'Z') { return \%answer }
		# A client that was refused at its start gets no ReadyForQuery.
		return \%answer if @{ $answer{errors} } && $answer{errors}[-1]{S} eq 'FATAL';
	}
}

1;
