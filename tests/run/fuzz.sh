#!/usr/bin/env bash
# The fuzz targets of the core, FUZZ_SECONDS in all.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

if crates/envelope/fuzz/run.sh "${FUZZ_SECONDS:-60}"; then report fuzz 1 0; else report fuzz 0 1; fi
