#!/usr/bin/env bash
# build.sh build | is-built | install | uninstall | package | into: the extension for PostgreSQL $PG, always in release mode.
# build.sh release: keeps the scripts of this version for ever.
#
# All that an extension consists of is put together here: the library, which cargo builds; the script, which
# is the SQL files one after the other; the scripts that update to it, and those of earlier versions; the control file.
# The tool of pgrx (cargo-pgrx) would do no more, since no function is declared in Rust, and takes longer to compile than all
# this.
source "$(dirname "$0")/lib.sh"

tree=$target/package/pg$pg # the files as they lie on a server: usr/lib/…, usr/share/…
if [[ -n ${PG_CONFIG:-} ]]; then tree+=$(tr / - <<<"$pg_config"); fi
stamp=$tree.stamp

main() {
    case ${1:-} in
        build) build ;;
        is-built) is_built ;;
        install) build && install_tree ;;
        uninstall) uninstall ;;
        package) build && archive ;;
        into) build && put_into "$2" "$3" ;;
        release) release ;;
        *) die "usage: build.sh build | is-built | install | uninstall | package | into LIBRARIES EXTENSIONS | release" ;;
    esac
}

build() {
    if is_built; then
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

is_built() { [[ -e $stamp && -z $(changed_since_stamp) ]]; }

# Folders count too: their time tells of files removed.
changed_since_stamp() {
    find Cargo.toml Cargo.lock ./*.control rust-toolchain.toml .cargo src sql crates pgrx-config/build.sh \
        pgrx-config/update_script.pl -name fuzz -prune -o -newer "$stamp" -print -quit 2>/dev/null || true
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
    # Earlier versions, and what updates from the last of them: PostgreSQL finds a way through all of these.
    install -m 644 -t "$extension" sql/released/*.sql
    update_scripts "$extension"
}

# What ALTER EXTENSION UPDATE runs, from the last version that was released to this one.
update_scripts() {
    local written from
    for written in sql/updates/*--"$version".sql; do
        if [[ ! -e $written ]]; then return; fi # released already: the script is kept
        from=$(basename "${written%%--*}")
        pgrx-config/update_script.pl "$from" "$version" "sql/released/pg_fieldcrypt--$from.sql" <(script) "$written" \
            >"$1/pg_fieldcrypt--$from--$version.sql"
    done
}

# The written part of the update is in what is kept; the next version begins another.
release() {
    [[ ! -e sql/released/pg_fieldcrypt--$version.sql ]] || die "$version was released already"
    script >"sql/released/pg_fieldcrypt--$version.sql"
    update_scripts sql/released
    rm -f sql/updates/*--"$version".sql
    (cd sql/released && sha256sum -- *.sql >SHA256SUMS)
    say "Kept the scripts of $version in sql/released. The version in Cargo.toml is to be the next one, with a file sql/updates/$version--NEXT.sql"
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
        <(find sql -maxdepth 1 -name '*.sql' -printf '%f\n' | sort) >&2 ||
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

# By names, since what was installed may be of another version, or built in another folder. Not what is a package's.
uninstall() {
    local library extension file removed=0
    library=$("$pg_config" --pkglibdir)/pg_fieldcrypt.so
    extension=$("$pg_config" --sharedir)/extension/pg_fieldcrypt
    for file in "$library" "$extension".control "$extension"--*.sql "$server_root/usr/local/bin/fieldcrypt"; do
        if [[ ! -e $file ]]; then continue; fi
        if dpkg-query --search "$file" >/dev/null 2>&1; then die "$file belongs to a Debian package: remove that"; fi
        as_root rm -f "$file"
        removed=$((removed + 1))
    done
    say "Removed $removed files from PostgreSQL $pg"
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
