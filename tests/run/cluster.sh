#!/usr/bin/env bash
# Tests on real clusters: restarts, crashes, standbys, dumps (perl, PostgreSQL::Test::Cluster).
# T=name runs one file, with all its output, T="name name" several; JOBS=2 says how many at once.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

tests=()
for name in ${T:-""}; do
    for file in tests/cluster/t/*"$name"*.pl; do
        if [[ -e $file ]]; then tests+=("t/$(basename "$file")"); fi
    done
done
((${#tests[@]} > 0)) || die "there is no test${T:+ named $T} in tests/cluster/t"

open_work
clear_folder cluster
copy_in tests cluster/tests
copy_in docs/monitoring cluster/monitoring
copy_in docs cluster/docs
as_server dd of="$work/cluster/README.md" status=none <README.md
copy_in src/api cluster/api
copy_in sql cluster/sql
as_server tee "$work/cluster/README.md" >/dev/null <README.md
# The offline tool, where the server's user can run it.
cargo build --quiet --locked -p fieldcrypt-offline
as_server dd of="$work/cluster/fieldcrypt" status=none <"$target/debug/fieldcrypt"
as_server chmod 755 "$work/cluster/fieldcrypt"

options=(--jobs "${JOBS:-6}") # most of the time they wait
if ((${#tests[@]} == 1)); then options=(--verbose); fi
say "prove: ${tests[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# shellcheck disable=SC2016 # expanded by the inner shell
# TESTDIR up to PostgreSQL 15, the other two from 16 on
as_server env \
    FIELDCRYPT_TOOL="$work/cluster/fieldcrypt" \
    PG_REGRESS="$pg_test/regress/pg_regress" PG_CONFIG="$pg_bin/pg_config" \
    TESTDIR="$work/cluster" TESTDATADIR="$work/cluster/tmp_check" TESTLOGDIR="$work/cluster/tmp_check/log" \
    PG_TEST_TIMEOUT_DEFAULT="${PG_TEST_TIMEOUT_DEFAULT:-180}" \
    bash -c 'cd cluster/tests/cluster && exec prove --timer -I lib -I "$0" "$@"' "$pg_test/perl" \
    "${options[@]}" "${tests[@]}" 2>&1 </dev/null | tee "$log" || status=$?

total=$(sed -nE 's/^Files=[0-9]+, Tests=([0-9]+).*/\1/p' "$log")
failed=$(sed -nE 's/.*\(Wstat: .*Tests: [0-9]+ Failed: ([0-9]+)\).*/\1/p' "$log" | awk '{n += ($1 > 0 ? $1 : 1)} END {print n + 0}')
if ((status != 0 && failed == 0)); then failed=1; fi
ended_badly=$(sed -nE 's#^t/([^ ]+)\.pl +\(Wstat.*#\1#p' "$log")
for name in $ended_badly; do
    say "the end of $name's log; all of it, and the servers' logs: $work/cluster/tmp_check/log"
    as_server tail -n 40 "$work/cluster/tmp_check/log/regress_log_$name" || true
done
passed=$((${total:-0} - failed))

# The tests that failed with what they got, the files that ended badly, and what they died of.
failures() {
    grep -E -A 8 '^# +Failed test' "$log" | grep '^#' || true
    for name in $ended_badly; do
        grep -E "^t/$name" "$log" | tail -n 1
        as_server grep -hE -A 2 '^failed: | line [0-9]+\.$' "$work/cluster/tmp_check/log/regress_log_$name" | grep -v '^#' | tail -n 4 || true
    done
}
sed -nE "s#^(\[.*\] )?t/([^ ]+)\.pl \.* ?(skipped: .*)#    ${FIELDCRYPT_SUITES_OF:-} \2 \3#p" "$log" >>"${FIELDCRYPT_RESULTS:-/dev/null}${FIELDCRYPT_RESULTS:+.skipped}"
report cluster "$((passed > 0 ? passed : 0))" "$failed" < <(failures)
