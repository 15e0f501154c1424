# What a cluster writes into its log, in all formats that can be written to files.

package ServerLog;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;
use Time::HiRes ();

our @EXPORT = qw(everything_logged since rotate_log log_files);

# Settings with which everything that can be logged is.
sub everything_logged
{
	return <<'CONF';
shared_preload_libraries = 'pg_fieldcrypt'
logging_collector = on
log_destination = 'stderr,csvlog,jsonlog'
log_directory = 'log'
log_filename = 'server.log'
log_rotation_age = 0
log_rotation_size = 0
log_statement = all
log_min_duration_statement = 0
log_parameter_max_length = -1
log_parameter_max_length_on_error = -1
log_error_verbosity = verbose
log_min_messages = notice
log_lock_waits = on
deadlock_timeout = 200ms
CONF
}

# The files of the log: { stderr => path, csvlog => path, jsonlog => path }.
sub log_files
{
	my ($node) = @_;
	my $folder = $node->data_dir . '/log';
	return { stderr => "$folder/server.log", csvlog => "$folder/server.csv", jsonlog => "$folder/server.json" };
}

# How long each file is now.
sub rotate_log
{
	my ($node) = @_;
	my $files = log_files($node);
	return { map { ($_ => -s $files->{$_} // 0) } keys %$files };
}

my $serial = 0;

# What was written since rotate_log: { stderr => text, ... }. The collector is behind: for a last line, which is an
# error and so is always logged, is waited.
sub since
{
	my ($node, $from) = @_;
	my $end = 'end_of_test_' . ++$serial . '_';
	$node->psql('postgres', "SELECT $end");
	my $files = log_files($node);
	my %text;
	foreach my $format (keys %$files)
	{
		foreach (1 .. 200)
		{
			my $all = -e $files->{$format} ? slurp_file($files->{$format}) : '';
			$text{$format} = substr $all, $from->{$format};
			last if index($text{$format}, $end) >= 0;
			Time::HiRes::usleep(50_000);
		}
	}
	return \%text;
}

1;
