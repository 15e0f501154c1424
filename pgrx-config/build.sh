#!/usr/bin/env bash
# build.sh build | install | package: the extension for PostgreSQL $PG, always in release mode.
source "$(dirname "$0")/lib.sh"

tree=target/package/pg$pg # the files as they lie on a server: usr/lib/…, usr/share/…
stamp=$tree.stamp

main() {
    case ${1:-} in
        build) build ;;
        install) build && install_tree ;;
        package) build && archive ;;
        *) die "usage: build.sh build | install | package" ;;
    esac
}

build() {
    if [[ -e $stamp && -z $(changed_since_stamp) ]]; then
        say "The extension is built and nothing has changed"
        return
    fi
    say "Building the extension (the first time takes some minutes)"
    mkdir -p target/package
    rm -rf "$tree" "$stamp"
    touch "$stamp.new" # before the build: what changes meanwhile is built next time
    logged "$cargo_pgrx" pgrx package --pg-config "$pg_config" --no-default-features --features "pg$pg" --out-dir "$tree"
    # The offline tool travels with the extension: who has the one should have the other.
    logged cargo build --quiet --locked --release --package fieldcrypt-offline
    install -D -m 755 target/release/fieldcrypt "$tree/usr/local/bin/fieldcrypt"
    mv "$stamp.new" "$stamp"
}

# Folders count too: their time tells of files removed.
changed_since_stamp() {
    find Cargo.toml Cargo.lock ./*.control rust-toolchain.toml .cargo src sql crates \
        -name fuzz -prune -o -newer "$stamp" -print -quit 2>/dev/null || true
}

install_tree() {
    local file mode copied=0
    while IFS= read -r file; do
        if cmp -s "$tree/$file" "$pg_root/$file"; then continue; fi
        mode=644
        if [[ $file == *.so || $file == */bin/* ]]; then mode=755; fi
        # `install` unlinks first: a running server keeps the library that it has mapped
        as_root install -D -m "$mode" "$tree/$file" "$pg_root/$file"
        copied=$((copied + 1))
    done < <(cd "$tree" && find . -type f -printf '%P\n')
    if ((copied > 0)); then
        say "Installed $copied files for PostgreSQL $pg"
    else
        say "PostgreSQL $pg has this build already"
    fi
}

archive() {
    local version archive
    version=$(sed -n 's/.*--\([^-]*\)\.sql$/\1/p' <(find "$tree" -name 'pg_fieldcrypt--*.sql' | grep -v -- '--.*--'))
    archive=target/pg_fieldcrypt-$version-pg$pg-$(uname -m).tar.gz
    tar -C "$tree" --owner=0 --group=0 --sort=name -czf "$archive" usr
    say "The package: $archive (unpack it in / of the server)"
}

main "$@"
