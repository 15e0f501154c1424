#!/usr/bin/env bash
# deb.sh: Debian packages for PostgreSQL $PG, in the folder deb of cargo's: the extension and the offline tool, each with its
# debugging symbols. dpkg-buildpackage in a copy of the source tree, so that nothing is written here.
source "$(dirname "$0")/lib.sh"

mkdir -p "$target/deb"
packages=$(cd "$target/deb" && pwd)
build=$packages/build # the same one for all versions, since cargo compiles everything anew for another path
source_tree=$build/pg-fieldcrypt

main() {
    copy_sources
    for_postgresql
    say "Making the Debian packages for PostgreSQL $pg"
    # In folders of its own, since it is built with other paths and with debugging symbols.
    cd "$source_tree"
    CARGO_TARGET_DIR=$packages/cargo watched "$packages/build.log" last_line dpkg-buildpackage --build=binary -uc -us "${unchecked[@]}"
    rm -f "$packages"/{postgresql-"$pg"-,}fieldcrypt{,-dbgsym}_*.deb
    cp "$build"/*.deb "$packages"
    say "The packages: $packages/*.deb"
}

# What git knows or would add; the archive of PGXN has no git, and nothing that was built but cargo's folder.
copy_sources() {
    rm -rf "$build"
    mkdir -p "$source_tree"
    if [[ -e .git ]]; then
        git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
            if [[ -e $file ]]; then printf '%s\0' "$file"; fi
        done
    else
        find . -path ./target -prune -o -type f -print0
    fi | tar --null --files-from=- -cf - | tar -C "$source_tree" -xf -
}

# debian/ is written for one version of PostgreSQL, as Debian wants it; the number is all that differs for another.
for_postgresql() {
    local written
    written=$(sed -nE 's/^Package: postgresql-([0-9]+)-fieldcrypt$/\1/p' debian/control)
    sed -i -E "s/(postgresql-(server-dev-)?|PostgreSQL )$written\b/\1$pg/g" "$source_tree/debian/control"
    # Headers that are no Debian package: dpkg can't know that they are there.
    unchecked=()
    if [[ -n ${PG_CONFIG:-}$server_folder ]]; then unchecked=(-d); fi
}

main "$@"
