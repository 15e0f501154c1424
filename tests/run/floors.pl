#!/usr/bin/env perl
# The floors of src/: which room may name which, read from the paths in the code. The compiler keeps the walls
# between crates; inside a crate this does. Prints each arrow that points up, the largest circle of files in
# each room, and files that are too long.
#
#   tests/run/floors.pl [FOLDER]      # the repository; by default the one that this file is in
use strict;
use warnings;

# From the roof down. A room may name those behind it, the crates, and itself.
my %MAY_NAME = (
    lib => [qw(api audit columns events fields health keyring lifecycle master_key redaction rotation settings usage)],
    api => [qw(rotation columns fields lifecycle audit usage keyring health redaction master_key events settings)],
    columns => [qw(fields lifecycle usage keyring events settings)],
    rotation => [qw(fields lifecycle audit keyring events)],
    fields => [qw(lifecycle usage keyring events settings)],
    lifecycle => [qw(usage audit keyring master_key events settings)],
    audit => [qw(keyring master_key events)],
    usage => [qw(keyring events)],
    keyring => [qw(master_key settings)],
    health => [qw(settings)],
    redaction => [qw(settings)],
    master_key => [qw(events settings)],
    events => [],
    settings => [],
);
my $LARGEST_CIRCLE = 6;
my $LONGEST_FILE = 500;

my $root = shift // ($0 =~ m{^(.*)/tests/run/} ? $1 : '.');
chdir $root or die "$root: $!\n";

# A crate's files by the path of their module, such as audit::verify::tables.
sub modules {
    my ($folder) = @_;
    my %modules;
    for my $file (split /\n/, `find $folder -name '*.rs' | sort`) {
        my $path = $file =~ s{^\Q$folder\E/}{}r =~ s{(/mod)?\.rs$}{}r =~ s{/}{::}gr;
        $modules{$path} = $file;
    }
    return \%modules;
}

# `a::{b, c::{d}}` as a::b, a::c::d
sub flat {
    my ($tree) = @_;
    $tree =~ s/\s+as\s+\w+|\s+//g;
    return $tree unless $tree =~ /^(.*?)\{(.*)\}$/s;
    my ($before, $inside, $depth, @parts) = ($1, $2, 0, '');
    for my $mark (split //, $inside) {
        $depth += ($mark eq '{') - ($mark eq '}');
        if ($mark eq ',' && !$depth) { push @parts, '' } else { $parts[-1] .= $mark }
    }
    return map { flat($before . $_) } grep { length } @parts;
}

# The modules that a file names.
sub named {
    my ($modules, $own) = @_;
    open my $in, '<', $modules->{$own} or die "$modules->{$own}: $!\n";
    my $text = join '', map { s{//.*}{}r } <$in>;
    my @paths = map { flat($_) } $text =~ /\buse\s+((?:crate|super|self)\b[^;]*);/g;
    push @paths, $text =~ /\b((?:crate|super|self)(?:::\w+)+)/g;
    my $parent = $own =~ /::/ ? $own =~ s/::\w+$//r : '';
    my %named;
    for my $path (@paths) {
        my @names = split /::/, $path;
        my $is_mod = $modules->{$own} =~ m{/(mod|lib)\.rs$};
        my $start = shift @names;
        my @at = $start eq 'crate' ? () : split /::/, $start eq 'self' || $is_mod && $start eq 'super' ? $own : $parent;
        pop @at if $is_mod && $start eq 'super';
        while (@names && $names[0] eq 'super') { shift @names; pop @at }
        # The longest beginning that is a module.
        for (my @try = (@at, @names); @try; pop @try) {
            my $module = join '::', @try;
            if ($modules->{$module}) { $named{$module} = 1 if $module ne $own; last }
        }
    }
    return sort keys %named;
}

# Groups of files that name each other (Tarjan).
sub circles {
    my ($edges) = @_;
    my ($count, @stack, %index, %low, %on, @found) = (0);
    my $visit;
    $visit = sub {
        my ($node) = @_;
        $index{$node} = $low{$node} = ++$count;
        push @stack, $node;
        $on{$node} = 1;
        for my $next (@{ $edges->{$node} // [] }) {
            if (!$index{$next}) { $visit->($next); $low{$node} = $low{$next} if $low{$next} < $low{$node} }
            elsif ($on{$next} && $index{$next} < $low{$node}) { $low{$node} = $index{$next} }
        }
        return if $low{$node} != $index{$node};
        my @group;
        do { push @group, pop @stack; delete $on{ $group[-1] } } until $group[-1] eq $node;
        push @found, [sort @group];
    };
    $index{$_} or $visit->($_) for sort keys %$edges;
    return @found;
}

my $problems = 0;
sub problem { print "floors: @_\n"; $problems++ }

for my $folder ('src', sort glob 'crates/*/src') {
    my $modules = modules($folder);
    my %edges = map { my $own = $_; $own => [named($modules, $own)] } keys %$modules;
    my $room_of = sub { $folder eq 'src' ? $_[0] =~ s/::.*//r : $folder };
    for my $own ($folder eq 'src' ? sort keys %edges : ()) {
        my $room = $room_of->($own);
        problem("$modules->{$own}: room $room has no floor; add it to the table in tests/run/floors.pl") if !$MAY_NAME{$room};
        my %may = map { $_ => 1 } $room, @{ $MAY_NAME{$room} // [] };
        for my $other (grep { !$may{ $room_of->($_) } } @{ $edges{$own} }) {
            problem("$modules->{$own} names $other: $room may name only @{ $MAY_NAME{$room} // [] }");
        }
    }
    my %largest;
    for my $circle (circles(\%edges)) {
        my %rooms = map { $room_of->($_) => 1 } @$circle;
        problem("a circle across rooms: @$circle") if keys %rooms > 1;
        my ($room) = keys %rooms;
        $largest{$room} = $circle if @$circle > @{ $largest{$room} // [] };
    }
    for my $room (sort keys %largest) {
        my $size = @{ $largest{$room} };
        print "floors: largest circle of $room: $size files: @{ $largest{$room} }\n" if $size > 1;
        problem("a circle of $size files in $room") if $size > $LARGEST_CIRCLE;
    }
}
# sql/released is put together from files, as it was released.
for my $file (split /\n/, `find src crates/pg/src sql -path sql/released -prune -o -name '*.rs' -print -o -name '*.sql' -print | sort`) {
    my $lines = () = do { open my $in, '<', $file or die "$file: $!\n"; <$in> };
    problem("$file has $lines lines") if $lines > $LONGEST_FILE;
}
# What is another number, or longer, on another server than the one whose headers this was built with. Keys of a scan are
# passed as an array of theirs, and can't be longer.
for my $file (split /\n/, `find src crates/pg/src -name '*.rs' | sort`) {
    open my $in, '<', $file or die "$file: $!\n";
    my $text = join '', map { s{//.*}{}r } <$in>;
    problem("$file has a number of a catalog: take its name from crates/pg/src/catalogs.rs or pg_sys")
        if $text =~ /\bOid::from(?:_u32)?\(\s*[0-9]|\b(?:oid|int8|text)_key\(\s*[0-9]/;
    problem("$file makes a structure of Postgres's as long as the headers have it: see crates/pg/src/memory.rs")
        if $file ne 'crates/pg/src/memory.rs'
        && $text =~ /palloc0?\w*\([^;]*?size_of|\bpg_sys::\w+::default\(\)|MaybeUninit::<pg_sys::(?!ScanKeyData\b)/;
}
print "floors: no arrow points up\n" if !$problems;
exit($problems > 0);
