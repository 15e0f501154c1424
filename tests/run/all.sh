#!/usr/bin/env bash
# all.sh [matrix]: everything that `make test` promises, on PostgreSQL 15, the example applications of drivers too; on 18 the SQL and concurrency tests and the
# files on real clusters that meet what differs between versions, on 16 and 17 a few of those. With `matrix` everything on
# each of them.
# VERSIONS="15 18" names others, to be tested whole, PG_CONFIG=/path/to/pg_config one that is there.
# A failing suite does not keep the others from running.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

FIELDCRYPT_RESULTS=$(mktemp)
export FIELDCRYPT_RESULTS
trap 'rm -f "$FIELDCRYPT_RESULTS"*' EXIT

# Files of tests/cluster that meet code which differs between versions of PostgreSQL, or its replication,
# dumps, plans, settings and log lines.
# The first list is that of the newest version, the second that of those between.
differing="003 006 007 009 030 032 033 035 080 085 090 091 092 110 111 180 183 185 189 190 191 192 193 194 199 201 205 213 222 237 240
    260 261 262 264 266 274 277 278 290 293"
smoke="003 009 110 111 180 190"

main() {
    whole=(15)
    partly=(18)
    briefly=(17 16)
    if [[ ${1:-} == matrix ]]; then whole=(15 16 17 18) partly=() briefly=(); fi
    # shellcheck disable=SC2206 # words
    if [[ -n ${PG_CONFIG:-} ]]; then whole=("$pg") partly=() briefly=(); elif [[ -n ${VERSIONS:-} ]]; then whole=($VERSIONS) partly=() briefly=(); fi

    pgrx-config/setup.sh
    suite core tests/run/core.sh
    suite fuzz tests/run/fuzz.sh
    for pg in "${whole[@]}"; do server "$pg" "" required; done
    for pg in "${partly[@]}"; do server "$pg" "$differing"; done
    for pg in "${briefly[@]}"; do server "$pg" "$smoke"; done
    summary
}

# server VERSION FILES [required]: all that runs on a server of one version. One that can't be had here, for want of a
# network or of rights, is skipped by name, unless it is asked for.
server() {
    export PG=$1 FIELDCRYPT_SUITES_OF=$1
    if [[ ${3:-} == required ]]; then
        suite setup pgrx-config/setup.sh
    elif ! pgrx-config/setup.sh; then
        echo "    PostgreSQL $1: it can't be had on this machine, see above" >>"$FIELDCRYPT_RESULTS.skipped"
        unset FIELDCRYPT_SUITES_OF
        return
    fi
    suite build pgrx-config/build.sh install
    # For pg_upgrade from 15: without it t/085 says that it is skipped.
    if (($1 > 16)) && ! on_server pgrx-config/old_server.sh; then say "no server of 15 stands beside $1"; fi
    suite regress on_server tests/run/regress.sh regress
    suite preloaded on_server tests/run/regress.sh preloaded
    suite isolation on_server tests/run/regress.sh isolation
    T=${2//$'\n'/ } suite cluster on_server tests/run/cluster.sh
    # What drivers send does not go by the server's version.
    if (($1 == 15)); then
        pgrx-config/setup.sh drivers || say "what the example applications need can't all be had here"
        suite drivers on_server tests/run/drivers.sh
    fi
    unset FIELDCRYPT_SUITES_OF
}

# A suite that ends badly before it could count is one failure.
suite() {
    local name=$1${FIELDCRYPT_SUITES_OF:+-$FIELDCRYPT_SUITES_OF} began=$SECONDS
    shift
    say "$name"
    if "$@"; then
        grep -q "^$name " "$FIELDCRYPT_RESULTS" || echo "$name 0 0" >>"$FIELDCRYPT_RESULTS"
    else
        awk -v name="$name" '$1 == name && $3 > 0 {found = 1} END {exit !found}' "$FIELDCRYPT_RESULTS" ||
            echo "$name 0 1" >>"$FIELDCRYPT_RESULTS"
    fi
    say "$name took $((SECONDS - began)) s"
    echo
}

on_server() {
    if grep -q "^build-$PG 0 0" "$FIELDCRYPT_RESULTS"; then "$@"; else say "not run: the extension was not built" && false; fi
}

summary() {
    say "Summary"
    awk '{printf "    %-12s %5d passed %5d failed\n", $1, $2, $3}' "$FIELDCRYPT_RESULTS"
    if [[ -s $FIELDCRYPT_RESULTS.skipped ]]; then
        say "What was skipped, and why"
        cat "$FIELDCRYPT_RESULTS.skipped"
    fi
    if [[ -s $FIELDCRYPT_RESULTS.failures ]]; then
        say "What failed"
        head -n 40 "$FIELDCRYPT_RESULTS.failures"
    fi
    say "$((SECONDS / 60)) min $((SECONDS % 60)) s"
    awk '{passed += $2; failed += $3} END {printf "%d passed, %d failed\n", passed, failed; exit failed > 0}' "$FIELDCRYPT_RESULTS"
}

main "$@"
