#!/usr/bin/env bash
# The queue of events under miri: threads that really meet, with weak memory. Needs a nightly Rust with miri.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

export RUSTUP_AUTO_INSTALL=0
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    say "miri: not run, it is not installed (rustup toolchain install nightly --component miri)"
    exit 0
fi
MIRIFLAGS="${MIRIFLAGS:-} -Zmiri-many-seeds=0..${MIRI_SEEDS:-16}" \
    cargo +nightly miri test --locked -p fieldcrypt-event-queue --test threads
