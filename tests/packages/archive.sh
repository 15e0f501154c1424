#!/usr/bin/env bash
# archive.sh: the archive for PGXN, unpacked in a new folder and built, installed, checked and uninstalled by the commands that
# `pgxn` runs, in a copy of PostgreSQL. A line for each check: "ok …", "not ok …", "skip …"; "end archive" at the end.
source "$(dirname "$0")/../../pgrx-config/lib.sh"
source tests/packages/checks.sh

folder=$work/packages
# A copy, so that nothing is done to the machine's: it says of itself where it is.
postgresql=$folder/postgresql
its_pg_config=$postgresql/usr/lib/postgresql/$pg/bin/pg_config
extension=$postgresql/usr/share/postgresql/$pg/extension
local_bin=$folder/local # instead of the machine's /usr/local/bin
unpacked=$folder/archive/pg_fieldcrypt-$version

main() {
    local missing
    missing=$(what_is_missing)
    if [[ -n $missing ]]; then
        echo "skip archive: $missing"
    else
        try
    fi
    echo "end archive"
}

what_is_missing() {
    if [[ ! -e .git ]] || ! command -v unzip >/dev/null; then
        echo "it is made by git, and unpacked by unzip"
    elif [[ -n $server_folder || $pg_bin != */usr/lib/postgresql/$pg/bin ]]; then
        echo "only a PostgreSQL $pg of this machine, in Debian's folders, can be copied"
    fi
}

try() {
    mkdir -p "$target/archive"
    built=$(cd "$target/archive" && pwd)
    open_work
    unpack
    check "archive: META.json says what PGXN asks for" meta
    if command -v validate_pgxn_meta >/dev/null; then
        check "archive: META.json is valid for PGXN::Meta::Validator" validate_pgxn_meta "$unpacked/META.json"
    else
        echo "skip archive: META.json by PGXN::Meta::Validator, which is not installed"
    fi
    check "archive: make all" make_there all
    if ((EUID == 0)) && unshare --mount true 2>/dev/null; then
        check "archive: make install, by root, who has no Rust" at_home env -i PATH=/usr/bin:/bin HOME=/ CARGO_TARGET_DIR="$built" \
            make -C "$unpacked" install PG_CONFIG="$its_pg_config"
        check "archive: what was installed is all there" is_installed
        check "archive: make installcheck" make_there installcheck T=fields
        refused "archive: make uninstall, of what is a package's" 'belongs to a Debian package' owned_by_package make_there uninstall
        check "archive: make uninstall" at_home make_there uninstall
        check "archive: nothing was left" nothing_left
        check "archive: make uninstall, of what is not there" at_home make_there uninstall
    else
        echo "skip archive: make install and make installcheck need root, and namespaces"
    fi
}

unpack() {
    if [[ -d $folder ]]; then as_root rm -rf "$folder"; fi
    as_server mkdir -m 755 "$folder"
    as_server mkdir "$postgresql" "$folder/archive"
    tar -C "${pg_bin%/usr/lib/*}/" --exclude='pg_fieldcrypt*' -cf - "usr/lib/postgresql/$pg" "usr/share/postgresql/$pg" usr/include/postgresql |
        as_server tar -C "$postgresql" -xf -
    mkdir -p "$local_bin"
    # Of this moment, and not built before, whatever cargo's folder holds.
    rm -rf "$built/package"
    pgrx-config/dist.sh
    unzip -q -DD "$target/pg_fieldcrypt-$version.zip" -d "$folder/archive"
}

make_there() {
    env -u MAKEFLAGS -u MAKELEVEL -u PG -u T CARGO_TARGET_DIR="$built" make -C "$unpacked" "$@" PG_CONFIG="$its_pg_config"
}

# With a /usr/local/bin of its own.
at_home() (
    export -f make_there
    export built unpacked its_pg_config
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec unshare --mount "$BASH" -euc 'mount --bind "$1" /usr/local/bin; shift; "$@"' home "$local_bin" "$@"
)

# A dpkg to which every file belongs to a package.
owned_by_package() (
    mkdir -p "$folder/bin"
    printf '#!/bin/sh\nexit 0\n' >"$folder/bin/dpkg-query"
    chmod 755 "$folder/bin/dpkg-query"
    PATH=$folder/bin:$PATH "$@"
)

# https://pgxn.org/spec/: what must be there, and in which form.
meta() (
    cd "$unpacked"
    # shellcheck disable=SC2016 # perl's
    perl -MJSON::PP -0777 -we '
        my $meta = decode_json(<>);
        my ($version, $term) = (qr/^\d+\.\d+\.\d+(-[A-Za-z][A-Za-z0-9-]*)?$/, qr/^[^\s\/\\\x00-\x1f]{2,}$/);
        my $extensions = $meta->{provides};
        my %wrong;
        defined $meta->{$_} and (ref $meta->{$_} or length $meta->{$_}) or $wrong{$_}++ foreach qw(abstract license maintainer meta-spec name provides version);
        $meta->{name} =~ $term && $meta->{version} =~ $version && $meta->{"meta-spec"}{version} eq "1.0.0" or $wrong{form}++;
        $meta->{license} eq "apache_2_0" && $meta->{release_status} =~ /^(?:stable|testing|unstable)$/ or $wrong{choice}++;
        keys %$extensions or $wrong{provides}++;
        foreach my $name (keys %$extensions) {
            my $extension = $extensions->{$name};
            $name =~ $term && $extension->{version} =~ $version or $wrong{$name}++;
            $extension->{file} =~ /\.sql$/ && -s $extension->{file} && -s $extension->{docfile} or $wrong{"files of $name"}++;
        }
        foreach my $phase (values %{$meta->{prereqs}}) {
            foreach my $names (values %$phase) {
                $_ =~ /^(?:0|\d+\.\d+\.\d+)$/ or $wrong{prereqs}++ foreach values %$names;
            }
        }
        @{$meta->{tags}} && !(grep { !length || length > 255 } @{$meta->{tags}}) or $wrong{tags}++;
        die "wrong: @{[sort keys %wrong]}\n" if %wrong;' META.json
)

is_installed() {
    cmp "$built/release/libpg_fieldcrypt.so" "$postgresql/usr/lib/postgresql/$pg/lib/pg_fieldcrypt.so" &&
        grep -q "^default_version = '$version'" "$extension/pg_fieldcrypt.control" &&
        [[ -s $extension/pg_fieldcrypt--$version.sql ]] && "$local_bin/fieldcrypt" --version | grep -F "$version"
}

nothing_left() { [[ -z $(find "$postgresql" "$local_bin" -name '*fieldcrypt*' | tee /dev/stderr) ]]; }

main "$@"
