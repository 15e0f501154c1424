#!/usr/bin/env perl
# licences.pl CRATE: the crates that are linked into what CRATE builds, with their licences and notices as their authors wrote
# them. A text that several crates share is printed once.

use strict;
use warnings;

use JSON::PP;

my ($root) = @ARGV or die "usage: licences.pl CRATE\n";
my ($host) = `rustc -vV` =~ /^host: (\S+)/m or die "rustc says no host\n";
my $metadata = decode_json(`cargo metadata --locked --format-version 1 --filter-platform $host`);
my %packages = map { $_->{id} => $_ } @{ $metadata->{packages} };
my %nodes = map { $_->{id} => $_ } @{ $metadata->{resolve}{nodes} };

my (%linked, %texts, @order);
my @waiting = grep { $packages{$_}{name} eq $root } sort keys %packages;
while (defined(my $id = shift @waiting))
{
	next if $linked{$id}++;
	push @waiting, map { $_->{pkg} } grep { grep { !defined $_->{kind} } @{ $_->{dep_kinds} } } @{ $nodes{$id}{deps} };
}
foreach my $package (sort { "$a->{name} $a->{version}" cmp "$b->{name} $b->{version}" } map { $packages{$_} } keys %linked)
{
	next if !defined $package->{source}; # our own
	my $folder = $package->{manifest_path} =~ s{/[^/]*$}{}r;
	printf "%s %s: %s\n", $package->{name}, $package->{version}, $package->{license} // 'see its text';
	foreach my $file (sort grep { -f } glob("'$folder/'*"))
	{
		next if $file !~ m{/(?:LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)[^/]*$}i;
		my $text = slurp($file);
		push @order, $text if !$texts{$text};
		push @{ $texts{$text} }, "$package->{name} $package->{version}";
	}
}
foreach my $text (@order)
{
	print "\n", '-' x 79, "\n", join(', ', @{ $texts{$text} }), ":\n\n", $text;
}

sub slurp
{
	my ($file) = @_;
	open my $handle, '<', $file or die "$file: $!\n";
	local $/;
	return scalar <$handle>;
}
