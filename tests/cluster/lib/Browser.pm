# A headless Chromium that looks at pages: what is shown where, what ran, and what was requested.
#
#   my $browser = Browser->new;
#   my $page = $browser->visit('/path/page.html');
#   $page->evaluate('document.title');        # the page's own policy doesn't forbid this
#   $page->requests;                          # (addresses), the page's own left out
#   $browser->connections;                    # (first lines) of what pages made leave the browser
#   $page->screenshot($path, width => 1100); $page->pdf($path);
#
# It is spoken to over pipes, and sees the network through a proxy that notes and refuses.
package Browser;

use strict;
use warnings;

use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use MIME::Base64 ();
use POSIX ();
use PostgreSQL::Test::Utils;

my $json = JSON::PP->new->utf8->allow_nonref;

sub new
{
	my ($class) = @_;
	die 'a browser is not started as root' if $> == 0;
	my $home = PostgreSQL::Test::Utils::tempdir();
	my $proxy = IO::Socket::INET->new(Listen => 50, LocalAddr => '127.0.0.1', Proto => 'tcp') or die "no proxy: $!";
	my $port = $proxy->sockport;
	pipe my $its_in, my $out or die $!;
	pipe my $in, my $its_out or die $!;
	my $process = fork // die $!;
	if ($process == 0)
	{
		# It reads from 3 and writes to 4. What is there may be one of these: copies first.
		POSIX::dup2(fileno $its_in, 100);
		POSIX::dup2(fileno $its_out, 101);
		POSIX::dup2(100, 3);
		POSIX::dup2(101, 4);
		POSIX::close($_) foreach 5 .. 101;
		open STDOUT, '>', '/dev/null';
		open STDERR, '>', "$home/browser.log";
		$ENV{HOME} = $home;
		delete @ENV{ grep { /_proxy$/i } keys %ENV };
		exec 'chromium', '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
		  '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-default-apps',
		  '--disable-extensions', '--disable-breakpad', '--disable-dev-shm-usage', '--no-default-browser-check',
		  '--hide-scrollbars', "--user-data-dir=$home/profile", "--proxy-server=http://127.0.0.1:$port",
		  '--proxy-bypass-list=<-loopback>', '--remote-debugging-pipe', 'about:blank'
		  or POSIX::_exit(127);
	}
	close $its_in;
	close $its_out;
	$out->autoflush(1);
	return bless {
		process => $process, in => $in, out => $out, proxy => $proxy, home => $home,
		buffer => '', serial => 0, answers => {}, events => [], connections => []
	}, $class;
}

# Opens a file and waits until it is loaded, unless wait => 0.
sub visit
{
	my ($self, $path, %options) = @_;
	my $target = $self->call('Target.createTarget', { url => 'about:blank' })->{targetId};
	my $session = $self->call('Target.attachToTarget', { targetId => $target, flatten => JSON::PP::true })->{sessionId};
	my $page = bless { browser => $self, session => $session, path => $path }, 'Browser::Page';
	$page->call($_) foreach 'Page.enable', 'Network.enable', 'Log.enable', 'Runtime.enable';
	$page->call('Page.navigate', { url => "file://$path" });
	$page->wait_for('Page.loadEventFired') if $options{wait} // 1;
	return $page;
}

# What a browser asks its maker for by itself, whatever page it shows. The proxy refuses this, too.
my $its_own = qr{^\S+ (?:http://)?(?:(?:clients\d|accounts|www|mtalk|android\.clients)\.google|(?:update|optimizationguide-pa|content-autofill|safebrowsing|chromewebstore)\.googleapis|(?:redirector|edgedl\.me)\.gvt1)\.com[:/]};

# The first lines of what came to the proxy so far, without what is the browser's own.
sub connections
{
	my ($self) = @_;
	$self->hear(0.2);
	return grep { $_ ne '' && !/$its_own/ } @{ $self->{connections} };
}

sub call
{
	my ($self, $method, $parameters, $session) = @_;
	my $id = ++$self->{serial};
	my %message = (id => $id, method => $method, params => $parameters // {});
	$message{sessionId} = $session if defined $session;
	print { $self->{out} } $json->encode(\%message) . "\0" or die "the browser is gone: $!";
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	until (exists $self->{answers}{$id})
	{
		die "no answer to $method: " . slurp_file("$self->{home}/browser.log") if time > $until;
		$self->hear(1);
	}
	my $answer = delete $self->{answers}{$id};
	die "$method: $answer->{error}{message}" if exists $answer->{error};
	return $answer->{result};
}

# Takes in what the browser says, and what comes to the proxy, for at most some seconds.
sub hear
{
	my ($self, $seconds) = @_;
	foreach my $ready (IO::Select->new($self->{in}, $self->{proxy})->can_read($seconds))
	{
		if ($ready == $self->{proxy})
		{
			my $client = $self->{proxy}->accept or next;
			my $line = '';
			$line = <$client> // '' if IO::Select->new($client)->can_read(2);
			push @{ $self->{connections} }, $line =~ s/\s+\z//r;
			print $client "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
			close $client;
			next;
		}
		my $read = sysread $self->{in}, $self->{buffer}, 1 << 20, length $self->{buffer};
		die 'the browser has ended: ' . slurp_file("$self->{home}/browser.log") unless $read;
		while ($self->{buffer} =~ s/\A([^\0]*)\0//)
		{
			my $message = $json->decode($1);
			if (exists $message->{id}) { $self->{answers}{ $message->{id} } = $message; }
			else { push @{ $self->{events} }, $message; }
		}
	}
	return;
}

sub quit
{
	my ($self) = @_;
	my $process = delete $self->{process} // return;
	eval { local $SIG{PIPE} = 'IGNORE'; print { $self->{out} } $json->encode({ id => ++$self->{serial}, method => 'Browser.close' }) . "\0"; };
	close $self->{out};
	foreach (1 .. 100)
	{
		return if waitpid($process, POSIX::WNOHANG()) != 0;
		select undef, undef, undef, 0.1;
	}
	kill 'KILL', $process;
	waitpid $process, 0;
	return;
}

sub DESTROY { local ($?, $!, $@); $_[0]->quit; return; }

package Browser::Page;

use strict;
use warnings;

sub call
{
	my ($self, $method, $parameters) = @_;
	return $self->{browser}->call($method, $parameters, $self->{session});
}

# The events of this page of some name.
sub events
{
	my ($self, $method) = @_;
	return map { $_->{params} } grep { ($_->{sessionId} // '') eq $self->{session} && $_->{method} eq $method } @{ $self->{browser}{events} };
}

sub wait_for
{
	my ($self, $method) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;
	until ($self->events($method))
	{
		die "no $method" if time > $until;
		$self->{browser}->hear(1);
	}
	return;
}

# The value of an expression, as plain data.
sub evaluate
{
	my ($self, $expression) = @_;
	my $result = $self->call('Runtime.evaluate', { expression => $expression, returnByValue => JSON::PP::true });
	die "$expression: " . $json->encode($result->{exceptionDetails}) if exists $result->{exceptionDetails};
	return $result->{result}{value};
}

# What the page asked for beside itself, and its picture, which is empty.
sub requests
{
	my ($self) = @_;
	$self->{browser}->hear(0.2);
	return grep { $_ ne "file://$self->{path}" && $_ ne 'data:,' } map { $_->{request}{url} } $self->events('Network.requestWillBeSent');
}

# What the browser complained of, and what the page said itself.
sub messages
{
	my ($self) = @_;
	return (
		(map { "$_->{entry}{source}: $_->{entry}{text}" } $self->events('Log.entryAdded')),
		(map { 'console: ' . $json->encode($_->{args}) } $self->events('Runtime.consoleAPICalled')),
		(map { 'exception: ' . $_->{exceptionDetails}{text} } $self->events('Runtime.exceptionThrown')),
		(map { 'dialog: ' . $_->{message} } $self->events('Page.javascriptDialogOpening')));
}

# The window: width, height, and mobile => 1.
sub size
{
	my ($self, $width, $height, %options) = @_;
	$self->call('Emulation.setDeviceMetricsOverride',
		{ width => $width, height => $height, deviceScaleFactor => 1, mobile => $options{mobile} ? JSON::PP::true : JSON::PP::false });
	return;
}

# screen or print.
sub medium
{
	my ($self, $medium) = @_;
	$self->call('Emulation.setEmulatedMedia', { media => $medium });
	return;
}

sub screenshot
{
	my ($self, $path) = @_;
	return write_file($path, $self->call('Page.captureScreenshot', { format => 'png', captureBeyondViewport => JSON::PP::true })->{data});
}

sub pdf
{
	my ($self, $path) = @_;
	return write_file($path, $self->call('Page.printToPDF', { preferCSSPageSize => JSON::PP::true, printBackground => JSON::PP::true })->{data});
}

sub write_file
{
	my ($path, $base64) = @_;
	open my $file, '>:raw', $path or die "can't write $path: $!";
	print $file MIME::Base64::decode_base64($base64);
	close $file or die "can't write $path: $!";
	return $path;
}

1;
