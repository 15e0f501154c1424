#!/usr/bin/env bash
# A script that was released never changes: databases were made by it (sql/released/README.md).
source "$(dirname "$0")/../../pgrx-config/lib.sh"

cd "${1:-sql/released}" # another folder, for the test of this test
diff <(awk '{print $2}' SHA256SUMS | sort) <(find . -maxdepth 1 -name '*.sql' -printf '%f\n' | sort) >&2 ||
    die "SHA256SUMS does not list each script of sql/released once ('<' is the list, '>' the folder)"
sha256sum --check --strict --quiet SHA256SUMS ||
    die "a released script has changed: databases were made by it as it was. What is to be another now is said in sql/, and reaches them by sql/updates/"
