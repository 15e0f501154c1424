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
    local list=/etc/apt/sources.list.d/old.list folder=/var/cache/pg_fieldcrypt mirror from
    say "Unpacking PostgreSQL 15 of Debian $release into $server_root"
    from=$(head -n 1 "$server_root/etc/apt/sources.list")
    mirror=$(grep -oE 'https?://[^ ]+' <<<"$from")
    # By apt, which looks at signatures. The release is asked for once, and nothing is installed from it.
    as_root tee "$server_root$list" >/dev/null <<<"deb $mirror $release main"
    as_root mkdir -p "$server_root$folder"
    # shellcheck disable=SC2016 # expanded by the inner shell
    in_server_root bash -euc '
        folder=$1 release=$2 list=$3
        shift 3
        trap "rm -f $list; apt-get -q update" EXIT
        cd "$folder"
        apt-get -q update
        apt-get -q download "${@/%//$release}"
        for package in *.deb; do dpkg-deb -x "$package" unpacked; done' unpack "$folder" "$release" "$list" "${packages[@]}" "${libraries[@]}" \
        >"$target/old_server.log" 2>&1 || die "PostgreSQL 15 can't be fetched: $target/old_server.log"
    folder=$server_root$folder
    # Compiled queries would need another LLVM.
    as_root rm -rf "$folder"/unpacked/usr/lib/postgresql/15/lib/{llvmjit.so,bitcode}
    for file in usr/lib/postgresql/15 usr/share/postgresql/15; do
        as_root mkdir -p "$server_root/$file"
        as_root cp -r "$folder/unpacked/$file/." "$server_root/$file/"
    done
    # Nothing of the newer release is replaced.
    as_root cp --no-clobber --no-dereference "$folder"/unpacked/usr/lib/*-linux-gnu/lib*.so.* "$server_root$(cd "$folder/unpacked" && echo /usr/lib/*-linux-gnu)/"
    as_root rm -rf "$folder"
}

main
