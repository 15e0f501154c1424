#!/usr/bin/env bash
# dist.sh: the archive for PGXN, of what is committed.
source "$(dirname "$0")/lib.sh"

name=pg_fieldcrypt-$version
mkdir -p "$target"
if [[ -n $(git status --porcelain) ]]; then say "What is not committed is not in the archive"; fi
git archive --format=zip --prefix="$name/" --output="$target/$name.zip" HEAD
say "The archive: $target/$name.zip (try it: pgxn install ./$name.zip)"
