#!/usr/bin/env bash
# Formatting, clippy, dependencies (licences, sources, advisories), shell scripts.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

failed=0
check() {
    say "$*"
    "$@" || failed=1
}

# META.json, which PGXN reads: it parses, the versions are Cargo.toml's, the files that it names are there. Debian's changelog
# begins with a revision of that version.
meta() {
    # shellcheck disable=SC2016,SC2317 # perl's; called by check
    perl -MJSON::PP -0777 -we '
        my ($version, $meta, $changelog) = (shift, decode_json(scalar <>), <>);
        my $extension = $meta->{provides}{pg_fieldcrypt};
        $_ eq $version or die "META.json has version $_, Cargo.toml $version\n" foreach $meta->{version}, $extension->{version};
        -e or die "META.json names $_, which is not there\n" foreach @$extension{qw(file docfile)};
        $changelog =~ /^pg-fieldcrypt \(\Q$version\E-\d+\)/ or die "debian/changelog does not begin with version $version\n";
        ' "$version" META.json debian/changelog
}

check cargo fmt --all --check
for fuzz in crates/*/fuzz/Cargo.toml; do
    check cargo fmt --manifest-path "$fuzz" --check
done
check tests/run/floors.pl
check tests/run/errors.pl
check tests/run/released.sh
check cargo clippy --locked --workspace --all-targets --no-default-features --features "pg$pg" -- -D warnings

if ! command -v cargo-deny >/dev/null; then
    say "Installing cargo-deny: this takes some minutes, once"
    cargo install --locked cargo-deny
fi
check cargo deny check bans licenses sources
if timeout 60 cargo deny fetch db >/dev/null 2>&1; then
    check cargo deny check advisories
else
    say "the advisory database can't be fetched: advisories are not checked"
fi

check meta

if command -v shellcheck >/dev/null; then
    mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
    check shellcheck -x --source-path=SCRIPTDIR "${scripts[@]}"
else
    say "shellcheck is not installed: the scripts are not checked (apt-get install shellcheck)"
fi
exit "$failed"
