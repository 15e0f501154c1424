#!/usr/bin/env bash
# old_server.sh: puts a server of PostgreSQL 15 with the extension beside that of $PG, 17 or 18, where other_server.sh has
# unpacked it: pg_upgrade from 15 is tried there (tests/cluster/t/085). Where it is not, that test is skipped.
#
# Its packages are unpacked, not installed: of libraries only what the newer release lacks. They come from Debian's release,
# not from its security updates: 15.20 of these writes what other minor releases' pg_upgrade refuses (pg_attver), with any
# database.
source "$(dirname "$0")/lib.sh"

if [[ -z $server_root ]]; then
    say "PostgreSQL $pg is this machine's own: no server of 15 is put beside it"
    exit
fi
[[ -e $server_folder/ready ]] || die "PostgreSQL $pg is not there yet: run pgrx-config/setup.sh first"

release=${debian_with[15]}
packages=(postgresql-15 postgresql-client-15)
libraries=(libicu72 libldap-2.5-0 libunistring2 libxml2)

main() {
    as_root true
    if [[ ! -x $server_root/usr/lib/postgresql/15/bin/postgres ]]; then unpack; fi
    # The same sources, for 15. It has been built before where all versions are tried.
    env PG=15 PG_CONFIG="${OLD_PG_CONFIG:-}" pgrx-config/build.sh into \
        "$server_root/usr/lib/postgresql/15/lib" "$server_root/usr/share/postgresql/15/extension"
    as_root chroot "$server_root" /usr/lib/postgresql/15/bin/postgres -V >/dev/null || die "PostgreSQL 15 does not run in $server_root"
    say "PostgreSQL 15 stands beside $pg"
}

unpack() {
    local mirror folder package file
    say "Unpacking PostgreSQL 15 of Debian $release into $server_root"
    mirror=$(sed -nE 's#^(deb )?(.*)#\2#; s#^.*(https?://[^ ]+).*#\1#p' "$server_root"/etc/apt/sources.list | head -n 1)
    folder=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" EXIT
    wget -q -O "$folder/Packages.xz" "${mirror%/}/dists/$release/main/binary-$(dpkg --print-architecture)/Packages.xz" ||
        die "there are no lists of Debian $release at $mirror"
    xz -d "$folder/Packages.xz"
    for package in "${packages[@]}" "${libraries[@]}"; do
        file=$(awk -v name="$package" '/^Package: / {found = $2 == name} found && /^Filename: / {print $2; exit}' "$folder/Packages")
        wget -q -O "$folder/$package.deb" "${mirror%/}/$file" || die "can't fetch $package from $mirror"
        dpkg-deb -x "$folder/$package.deb" "$folder/unpacked"
    done
    # Compiled queries would need another LLVM.
    rm -rf "$folder"/unpacked/usr/lib/postgresql/15/lib/{llvmjit.so,bitcode}
    for file in usr/lib/postgresql/15 usr/share/postgresql/15; do
        as_root mkdir -p "$server_root/$file"
        as_root cp -r "$folder/unpacked/$file/." "$server_root/$file/"
    done
    # Nothing of the newer release is replaced.
    as_root cp --no-clobber --no-dereference "$folder"/unpacked/usr/lib/*-linux-gnu/lib*.so.* "$server_root$(cd "$folder/unpacked" && echo /usr/lib/*-linux-gnu)/"
}

main
