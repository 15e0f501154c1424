#!/usr/bin/env bash
# packages.sh: what users get who take no source tree: the Debian packages, in a fresh Debian in a folder of its own, and the
# archive for PGXN. What can't be tried on this machine is named and skipped. PG=NN, as everywhere.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

suite=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
# Root's own, since root enters it; the fresh root of the last run is kept there, so that the next run need not make one.
cache=/var/lib/pg_fieldcrypt/packages
base=$cache/$suite-$(dpkg --print-architecture 2>/dev/null || true)-pg$pg
results=$(mktemp)
trap 'rm -f "$results"' EXIT

main() {
    try_archive
    try_packages
    local passed failed
    passed=$(grep -c '^ok ' "$results" || true)
    failed=$(grep -c '^not ok ' "$results" || true)
    sed -n 's/^skip /    skipped: /p' "$results"
    if ((passed + failed == 0)); then
        say "packages: nothing of it can be tried here"
        return
    fi
    report packages "$passed" "$failed" < <(grep '^not ok ' "$results" || true)
}

try_archive() {
    tests/packages/archive.sh 2>&1 </dev/null | tee -a "$results" || true
    ended archive
}

try_packages() {
    local missing
    if ((EUID == 0)) && [[ -z $server_folder ]] && command -v apt-get >/dev/null; then pgrx-config/setup.sh packages; fi
    missing=$(what_is_missing)
    if [[ -n $missing ]]; then
        echo "skip packages: $missing" | tee -a "$results"
        return
    fi
    pgrx-config/deb.sh
    make_base
    # All that is mounted and started there goes with the namespaces.
    unshare --mount --pid --fork --kill-child tests/packages/in_root.sh "$base" "$target/deb" 2>&1 </dev/null |
        tee -a "$results" || true
    ended packages
}

# A script that ends before its last line has tried less than it should.
ended() {
    grep -q "^end $1\$" "$results" || echo "not ok $1: it ended early" | tee -a "$results"
}

what_is_missing() {
    if ((EUID != 0)); then
        echo "a fresh root needs root"
    elif ! command -v debootstrap >/dev/null; then
        echo "debootstrap is not installed"
    elif ! command -v dpkg-buildpackage >/dev/null || ! command -v dh >/dev/null; then
        echo "dpkg-dev and debhelper are not installed (make deb installs them)"
    elif ! unshare --mount --pid --fork true 2>/dev/null; then
        echo "namespaces can't be made here"
    elif [[ -z $(sources) ]]; then
        echo "apt has no lists of Debian $suite (apt-get update)"
    elif [[ $(apt-cache policy "postgresql-$pg" 2>/dev/null) != *'Candidate: '[0-9]* ]]; then
        echo "Debian $suite has no postgresql-$pg"
    fi
}

# The machine's own archives of Debian, as lines of sources.list.
sources() {
    # shellcheck disable=SC2016 # apt's
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" '$1 == "Debian" && ($2 == suite || index($2, suite "-") == 1) && $4 !~ /backports|proposed/ {print "deb", $3, $4, $5}' | sort -u
}

# Debian's smallest system with what looks at packages, and what PostgreSQL needs as files that wait to be installed.
make_base() {
    # Not older than a month: what waits there is of an archive that moves on.
    if [[ -n $(find "$base.ready" -mtime -30 2>/dev/null) ]]; then return; fi
    local archive
    archive=$(sources | awk -v suite="$suite" '$3 == suite {print $2; exit}')
    say "Making a fresh Debian $suite in $base (a minute or two, once)"
    mkdir -p "$cache"
    chmod 700 "$cache"
    rm -rf "$base"
    watched "$target/packages/debootstrap.log" last_line fresh_debian "$suite" "$base" "$archive"
    sources >"$base/etc/apt/sources.list"
    apt-config dump | grep -iE '^Acquire::(http|https)::Proxy' >"$base/etc/apt/apt.conf.d/proxy" || true
    cp /etc/resolv.conf "$base/etc/resolv.conf"
    watched "$target/packages/apt.log" last_line unshare --mount --pid --fork --kill-child chroot "$base" sh -ec "
        export DEBIAN_FRONTEND=noninteractive
        mount -t proc proc /proc
        apt-get -q update
        apt-get -q -y --no-install-recommends install lintian openssl man-db
        apt-get -q -y --download-only install postgresql-$pg"
    touch "$base.ready"
}

main "$@"
