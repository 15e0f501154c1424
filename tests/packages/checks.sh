# shellcheck shell=bash
# What the tests of packages say, a line a check. Sourced, never run.

# check NAME COMMAND…: the command must succeed. What a failed one said is shown.
check() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "ok $name"
    else
        echo "not ok $name"
        printf '%s\n' "$said" | tail -n 40 | sed 's/^/    # /'
    fi
}

# refused NAME PATTERN COMMAND…: the command must fail, and say so.
refused() {
    local name=$1 pattern=$2 said
    shift 2
    if said=$("$@" 2>&1); then
        echo "not ok $name: it succeeded"
    elif ! grep -qE -- "$pattern" <<<"$said"; then
        echo "not ok $name: it failed with other words"
        printf '%s\n' "$said" | tail -n 40 | sed 's/^/    # /'
    else
        echo "ok $name"
    fi
}
