#!/bin/sh
# Fuzzes a crate for SECONDS, the time split over its targets (building is extra: a minute at first).
# Exits non-zero on a crash.
#
#   tests/run/fuzz_crate.sh CRATE SECONDS      # CRATE has a folder fuzz/
#
# FUZZ_TARGET_DIR and FUZZ_WORK_DIR say where to build, and where to keep the corpus and what crashed;
# by default both are the folder fuzz/.
#
# libFuzzer comes with the crate libfuzzer-sys and is compiled by the C++ compiler that is there. The
# stable toolchain can't ask for coverage by name (-Zsanitizer), but it can run LLVM's coverage pass
# by hand: that, and nothing unstable, is what the flags below do. No sanitizer: what is fuzzed has no
# unsafe code; overflow checks and debug assertions are on.
set -eu

crate=${1:?usage: fuzz_crate.sh CRATE SECONDS}
seconds=${2:?usage: fuzz_crate.sh CRATE SECONDS}
case $seconds in '' | *[!0-9]*) echo "fuzz_crate.sh: SECONDS is a whole number" >&2; exit 2 ;; esac
cd "$crate/fuzz"

targets=$(cd fuzz_targets && for file in *.rs; do echo "${file%.rs}"; done)
each=$((seconds / $(echo "$targets" | wc -l)))
[ "$each" -gt 0 ] || each=1

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${FUZZ_TARGET_DIR:-$PWD/target}"
work="${FUZZ_WORK_DIR:-$PWD}"
if [ -z "${CXX:-}" ]; then
    CXX=$(command -v c++ || command -v g++ || command -v clang++) || {
        echo "fuzz_crate.sh: no C++ compiler (g++ or clang++); libFuzzer needs one" >&2
        exit 1
    }
    export CXX
fi

echo "fuzz: building libFuzzer and the targets with coverage ($host, $CXX)"
# With --target, the flags are not given to build scripts and procedural macros.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebuginfo=1" \
    cargo build --quiet --locked --release --target "$host"

failed=""
for target in $targets; do
    corpus="$work/corpus/$target"
    artifacts="$work/artifacts/$target"
    mkdir -p "$corpus" "$artifacts"
    log="$artifacts/log"
    echo "fuzz: $target for $each s; corpus of $(find "$corpus" -type f | wc -l) in $corpus"
    longest=2048
    [ "$target" != audit_export ] || longest=16384
    status=0
    "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$each" -max_len="$longest" -timeout=10 \
        -dict="dictionaries/$target" -artifact_prefix="$artifacts/" -print_final_stats=1 \
        "$corpus" "seeds/$target" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 40 "$log"
        echo "fuzz: $target CRASHED (status $status); what did it is in $artifacts" >&2
        failed="$failed $target"
        continue
    fi
    # Without coverage the fuzzer would be guessing, and must not pass for one that looked.
    first=$(sed -n 's/.*INITED cov: \([0-9]*\).*/\1/p' "$log" | head -n 1)
    last=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
    if [ "${last:-0}" -lt 50 ]; then
        tail -n 40 "$log"
        echo "fuzz: $target saw no coverage: the build has lost its instrumentation" >&2
        failed="$failed $target"
        continue
    fi
    echo "fuzz: $target: no crash in $runs runs; coverage ${first:-?} -> $last"
done

[ -z "$failed" ] || exit 1
