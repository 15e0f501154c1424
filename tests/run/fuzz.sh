#!/usr/bin/env bash
# The fuzz targets of the cores and of the masking of SQL, FUZZ_SECONDS in all.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

seconds=${FUZZ_SECONDS:-60}
if tests/run/fuzz_crate.sh crates/envelope "$((seconds * 9 / 20))" &&
    tests/run/fuzz_crate.sh crates/audit "$((seconds * 6 / 20))" &&
    tests/run/fuzz_crate.sh crates/sql-text "$((seconds / 4 + 1))"; then
    report fuzz 1 0 </dev/null
else
    report fuzz 0 1 </dev/null
fi
