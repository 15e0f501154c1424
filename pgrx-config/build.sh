#!/usr/bin/env bash
# build.sh build | install | package | into: the extension for PostgreSQL $PG, always in release mode.
#
# All that an extension consists of is put together here: the library, which cargo builds; the script, which
# is the SQL files one after the other; the control file. The tool of pgrx (cargo-pgrx) would do no more,
# since no function is declared in Rust, and takes longer to compile than all this.
source "$(dirname "$0")/lib.sh"

tree=$target/package/pg$pg # the files as they lie on a server: usr/lib/…, usr/share/…
if [[ -n ${PG_CONFIG:-} ]]; then tree+=$(tr / - <<<"$pg_config"); fi
stamp=$tree.stamp

main() {
    case ${1:-} in
        build) build ;;
        install) build && install_tree ;;
        package) build && archive ;;
        into) build && put_into "$2" "$3" ;;
        *) die "usage: build.sh build | install | package | into LIBRARIES EXTENSIONS" ;;
    esac
}

build() {
    if [[ -e $stamp && -z $(changed_since_stamp) ]]; then
        say "The extension is built and nothing has changed"
        return
    fi
    say "Compiling the extension for PostgreSQL $pg (the first time takes some minutes; the last step is the longest)"
    mkdir -p "$target/package"
    rm -rf "$tree" "$stamp"
    touch "$stamp.new" # before the build: what changes meanwhile is built next time
    # In one call, so that they are compiled side by side. The offline tool travels with the extension: who
    # has the one should have the other.
    compiled "$target/build.log" --package pg_fieldcrypt --package fieldcrypt-offline \
        --no-default-features --features "pg_fieldcrypt/pg$pg"
    put_together
    mv "$stamp.new" "$stamp"
}

# Folders count too: their time tells of files removed.
changed_since_stamp() {
    find Cargo.toml Cargo.lock ./*.control rust-toolchain.toml .cargo src sql crates pgrx-config/build.sh \
        -name fuzz -prune -o -newer "$stamp" -print -quit 2>/dev/null || true
}

put_together() {
    local library extension
    library=$tree$(seen_by_server --pkglibdir)
    extension=$tree$(seen_by_server --sharedir)/extension
    install -D -m 755 "$target/release/libpg_fieldcrypt.so" "$library/pg_fieldcrypt.so"
    install -D -m 755 "$target/release/fieldcrypt" "$tree/usr/local/bin/fieldcrypt"
    mkdir -p "$extension"
    sed "s/@CARGO_VERSION@/$version/" pg_fieldcrypt.control >"$extension/pg_fieldcrypt.control"
    script >"$extension/pg_fieldcrypt--$version.sql"
    find sql -maxdepth 1 -name 'pg_fieldcrypt--*--*.sql' -exec install -m 644 -t "$extension" {} +
}

seen_by_server() {
    local path
    path=$("$pg_config" "$1")
    echo "${path#"$server_root"}"
}

# The SQL files in the order of the list. A file that the list forgets would be missed by nobody until
# somebody calls what it makes.
script() {
    local files file
    mapfile -t files < <(grep -v '^#' sql/order.txt)
    diff <(printf '%s\n' "${files[@]}" | sort) \
        <(find sql -maxdepth 1 -name '*.sql' ! -name 'pg_fieldcrypt--*' -printf '%f\n' | sort) >&2 ||
        die "sql/order.txt does not name each file of sql/ once ('<' is the list, '>' the folder)"
    printf '%s\n' '\echo Use "CREATE EXTENSION pg_fieldcrypt" to load this file. \quit'
    for file in "${files[@]}"; do
        printf '\n-- sql/%s\n' "$file"
        cat "sql/$file"
    done
}

install_tree() {
    local file mode copied=0
    while IFS= read -r file; do
        if cmp -s "$tree/$file" "$server_root/$file"; then continue; fi
        mode=644
        if [[ $file == *.so || $file == */bin/* ]]; then mode=755; fi
        # `install` unlinks first: a running server keeps the library that it has mapped
        as_root install -D -m "$mode" "$tree/$file" "$server_root/$file"
        copied=$((copied + 1))
    done < <(cd "$tree" && find . -type f -printf '%P\n')
    if ((copied > 0)); then
        say "Installed $copied files for PostgreSQL $pg"
    else
        say "PostgreSQL $pg has this build already"
    fi
}

# For a server that stands elsewhere than its pg_config says.
put_into() {
    as_root install -D -m 755 -t "$1" "$tree$(seen_by_server --pkglibdir)/pg_fieldcrypt.so"
    as_root install -D -m 644 -t "$2" "$tree$(seen_by_server --sharedir)/extension/"*
}

archive() {
    local archive
    archive=$target/pg_fieldcrypt-$version-pg$pg-$(uname -m).tar.gz
    tar -C "$tree" --owner=0 --group=0 --sort=name -czf "$archive" usr
    say "The package: $archive (unpack it in / of the server)"
}

main "$@"
