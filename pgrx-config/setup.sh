#!/usr/bin/env bash
# setup.sh [build | deb | packages | demo | drivers | test]: installs the Debian packages that are missing for building,
# for making packages, for trying those, for running the demo, for the example applications, or for all other tests
# (without an argument). What is
# there is left alone, so a second run costs next to nothing. A PostgreSQL that PG_CONFIG names is there; one that
# this machine's Debian does not have is put into a folder by other_server.sh.
source "$(dirname "$0")/lib.sh"

packages_build=(
    ca-certificates make gcc libc6-dev
    clang                         # with libclang, by which pgrx generates its bindings
)
packages_deb=(dpkg-dev debhelper)
packages_packages=(debootstrap git unzip)
packages_demo=()
# Node is not among these: Prisma wants a newer one than some releases of Debian have.
packages_drivers=(python3-venv ruby-activerecord ruby-pg libpostgresql-jdbc-java libeclipselink-java)
command -v javac >/dev/null || packages_drivers+=(default-jdk-headless)
packages_test=(
    perl libipc-run-perl locales openssl # tests on real clusters
    pgbouncer                     # tenants behind a pooler
    chromium                      # the compliance report is looked at in a browser
    gdb                           # core dumps that are searched for keys
    g++                           # the fuzzer
)
if [[ -n $server_root ]]; then
    packages_build+=(debootstrap wget)
elif [[ -n $server_folder ]]; then
    packages_test+=(postgresql-server-dev-15) # PostgreSQL's test programs, which that build lacks
elif [[ -z ${PG_CONFIG:-} ]]; then
    packages_build+=("postgresql-server-dev-$pg") # headers; for the tests, PostgreSQL's own test programs
    packages_demo+=("postgresql-$pg")
    packages_test+=(
        "postgresql-$pg-cron"     # scheduled rotation
        "postgresql-$pg-pgaudit"  # what it writes to the server log is masked
    )
fi

main() {
    local packages
    case ${1:-test} in
        build) packages=("${packages_build[@]}") ;;
        deb) packages=("${packages_build[@]}" "${packages_deb[@]}") ;;
        packages) packages=("${packages_build[@]}" "${packages_deb[@]}" "${packages_packages[@]}") ;;
        demo) packages=("${packages_build[@]}" "${packages_demo[@]}") ;;
        drivers) packages=("${packages_demo[@]}" "${packages_drivers[@]}") ;;
        test) packages=("${packages_build[@]}" "${packages_demo[@]}" "${packages_test[@]}") ;;
        *) die "usage: setup.sh [build | deb | packages | demo | drivers | test]" ;;
    esac
    command -v cargo >/dev/null || die "Rust is missing: install it from https://rustup.rs, then run this again"
    debian_packages "${packages[@]}"
    if [[ -n $server_folder ]]; then pgrx-config/other_server.sh; fi
    if [[ ${1:-test} == test ]]; then test_locale; fi
    if [[ ${1:-test} == demo || ${1:-test} == test ]]; then open_work; fi
}

debian_packages() {
    local missing
    missing=$(comm -23 <(printf '%s\n' "$@" | sort) \
        <(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null | awk '$1 == "ii" {print $2}' | sort))
    if [[ -z $missing ]]; then return; fi

    missing=${missing//$'\n'/ }
    if ((EUID != 0)) && ! command -v sudo >/dev/null; then
        die "packages are missing, and there is no sudo. As root, run: apt-get install --no-install-recommends $missing"
    fi
    say "Installing Debian packages: $missing"
    as_root true # sudo may ask for a password: now, before a line of progress hides the question
    watched "$target/apt.log" apt_how_far as_root apt-get -q update
    # Debian's package would create and start a cluster `main`. This drop-in forbids it, for as
    # long as the installation takes; clusters that exist are not touched.
    local drop_in=/etc/postgresql-common/createcluster.d/pg_fieldcrypt.conf
    as_root mkdir -p "${drop_in%/*}"
    # shellcheck disable=SC2064
    trap "as_root rm -f $drop_in" EXIT
    echo 'create_main_cluster = false' | as_root tee "$drop_in" >/dev/null
    # shellcheck disable=SC2086
    watched "$target/apt.log" apt_how_far \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
    # The tests start their own, as the server's user.
    if [[ " $missing " == *" pgbouncer "* && -d /run/systemd/system ]]; then
        as_root systemctl disable --quiet --now pgbouncer
    fi
    as_root rm -f "$drop_in"
    as_root rmdir --ignore-fail-on-non-empty "${drop_in%/*}"
    trap - EXIT
}

apt_how_far() {
    awk '
        / newly installed, / {all = $1 + $3} # 3 upgraded, 119 newly installed, …
        /^Get:/ {got++}
        /^Unpacking / {unpacked++}
        /^Setting up / {ready++}
        END {
            if (!all) print "reading the lists of packages"
            else printf "%d packages: %d downloaded, %d unpacked, %d set up\n", all, got, unpacked, ready
        }' "$1"
}

# The tests want one database whose order is not by bytes.
test_locale() {
    if locale -a | grep -qix 'en_US.utf-\?8'; then return; fi
    say "Generating the locale en_US.UTF-8"
    as_root localedef -i en_US -f UTF-8 en_US.UTF-8
}

main "$@"
