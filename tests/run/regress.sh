#!/usr/bin/env bash
# regress.sh regress | preloaded | isolation: SQL files against a temporary server, output compared. `preloaded` is
# `regress` once more with the library preloaded, and everything logged: each line passes it.
# T=name runs one test. A file `schedule` beside the tests decides about order, if there is one.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

suite=${1:-} files=${1:-} libraries='' more=''
case $suite in
    regress) runner=$pg_test/regress/pg_regress tests=(tests/regress/sql/*.sql) ;;
    preloaded)
        runner=$pg_test/regress/pg_regress files=regress libraries=pg_fieldcrypt
        tests=()
        for file in tests/regress/sql/*.sql; do
            # Where settings may be set differs.
            if [[ $file != */settings.sql ]]; then tests+=("$file"); fi
        done
        # The worker of the audit log would write to it meanwhile.
        more=$'log_statement = all\nlog_min_duration_statement = 0\nlog_min_messages = notice\nmax_worker_processes = 0'
        ;;
    isolation) runner=$pg_test/isolation/pg_isolation_regress tests=(tests/isolation/specs/*.spec) ;;
    *) die "usage: regress.sh regress | preloaded | isolation" ;;
esac

[[ -e ${tests[0]} ]] || die "there is no test in tests/$files"
tests=("${tests[@]##*/}")
tests=("${tests[@]%.*}")
if [[ -n ${T:-} ]]; then
    tests=("$T")
elif [[ -e tests/$files/schedule ]]; then
    for name in "${tests[@]}"; do
        grep -qw -- "$name" "tests/$files/schedule" || die "tests/$files/schedule forgets $name"
    done
    tests=("--schedule=$work/$suite/tests/$files/schedule")
fi

open_work
clear_folder "$suite"
copy_in tests "$suite/tests"
new_master_key "$work/$suite/master.key"
as_server tee "$work/$suite/server.conf" >/dev/null <<CONF
shared_preload_libraries = '$libraries'
fieldcrypt.master_key_file = '$work/$suite/master.key'
max_prepared_transactions = 10
log_line_prefix = '%m [%p] %q%a '
$more
CONF

say "$(basename "$runner"): ${tests[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
as_server "$runner" --bindir="$pg_bin" --encoding=UTF8 --inputdir="$work/$suite/tests/$files" \
    --outputdir="$work/$suite/output" --temp-instance="$work/$suite/instance" \
    --temp-config="$work/$suite/server.conf" "${tests[@]}" 2>&1 </dev/null | tee "$log" || status=$?

# "test name ... ok" up to PostgreSQL 15, TAP from 16 on
passed=$(grep -cE '(\.\.\.|^    [^ ]+ +\.\.\.).* ok|^ok ' "$log" || true)
failed=$(grep -cE '\.\.\. .*FAILED|^not ok ' "$log" || true)
if ((status != 0)); then
    if ((failed == 0)); then failed=1; fi
    if as_server test -s "$work/$suite/output/regression.diffs"; then
        as_server head -n 300 "$work/$suite/output/regression.diffs"
        say "all of it: $work/$suite/output/regression.diffs; the server's log: $work/$suite/output/log"
    else
        as_server bash -c "tail -n 30 output/log/*.log 2>/dev/null" || true
    fi
fi
report "$suite" "$passed" "$failed" < <(grep -E '\.\.\. .*FAILED|^not ok ' "$log" || true)
