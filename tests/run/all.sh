#!/usr/bin/env bash
# Everything that `make test` promises. A failing suite does not keep the others from running.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

FIELDCRYPT_RESULTS=$(mktemp)
export FIELDCRYPT_RESULTS
trap 'rm -f "$FIELDCRYPT_RESULTS"*' EXIT

# A suite that ends badly before it could count is one failure.
suite() {
    local name=$1 began=$SECONDS
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
    if grep -q '^build 0 0' "$FIELDCRYPT_RESULTS"; then "$@"; else say "not run: the extension was not built" && false; fi
}

pgrx-config/setup.sh
suite core tests/run/core.sh
suite build pgrx-config/build.sh install
suite regress on_server tests/run/regress.sh regress
suite isolation on_server tests/run/regress.sh isolation
suite cluster on_server tests/run/cluster.sh
suite fuzz tests/run/fuzz.sh

say "Summary"
awk '{printf "    %-10s %5d passed %5d failed\n", $1, $2, $3}' "$FIELDCRYPT_RESULTS"
if [[ -s $FIELDCRYPT_RESULTS.failures ]]; then
    say "What failed"
    head -n 40 "$FIELDCRYPT_RESULTS.failures"
fi
say "$((SECONDS / 60)) min $((SECONDS % 60)) s"
awk '{passed += $2; failed += $3} END {printf "%d passed, %d failed\n", passed, failed; exit failed > 0}' "$FIELDCRYPT_RESULTS"
