#!/usr/bin/env bash
# The crates that need no PostgreSQL, the floors of the others, and the table of errors.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

status=0
tests/run/floors.pl || status=1
tests/run/errors.pl || status=1
tests/run/released.sh || status=1
cargo test --locked --workspace --exclude pg_fieldcrypt --exclude fieldcrypt-pg --no-fail-fast 2>&1 | tee "$log" || status=$?
# All orders in which the processes of a server can meet at a queue of events. Built apart: the flag is
# of every crate.
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/loom CARGO_PROFILE_RELEASE_LTO=off \
    timeout 300 cargo test --locked --release -p fieldcrypt-event-queue --test loom 2>&1 | tee -a "$log" || status=$?

counts=$(awk '/^test result:/ {passed += $4; failed += $6} END {print passed + 0, failed + 0}' "$log")
read -r passed failed <<<"$counts"
if ((status != 0 && failed == 0)); then failed=1; fi # it did not even build
report core "$passed" "$failed" < <(grep -E '^test .* FAILED|panicked at|^error' "$log" || true)
