#!/usr/bin/env bash
# What an administrator of Debian does with the packages, in a fresh Debian and by the README's own text: installs, upgrades
# while the server runs, removes, purges. A line for each check; "end packages" at the end.
# shellcheck disable=SC2016 # what checks evaluate, and Postgres's $libdir
set -uo pipefail
cd /try || exit
# shellcheck source=checks.sh
source /try/checks.sh

extension=postgresql-$PG-fieldcrypt
library=/usr/lib/postgresql/$PG/lib/pg_fieldcrypt.so
data=/usr/share/postgresql/$PG/extension
settings=/etc/postgresql/$PG/main/postgresql.conf
decrypted="SELECT ssn FROM decrypted_patients WHERE name = 'Ada'"

main() {
    packages_are_sound
    quick_start
    offline_tool
    installed_again
    upgraded
    removed_too_early
    purged
    installed_after_purge
    over_make_install
    echo "end packages"
}

packages_are_sound() {
    check "lintian finds nothing" lintian --allow-root --fail-on error,warning --tag-display-limit 0 target/deb/*.deb
    check "the extension depends on its PostgreSQL and on libc" field "$extension" Depends "(^|, )postgresql-$PG(,|$)" '(^|, )libc6 \(>= 2\.[0-9]+\)'
    check "it suggests pg_cron" field "$extension" Suggests "^postgresql-$PG-cron$"
    check "it recommends the offline tool" field "$extension" Recommends '^fieldcrypt$'
    check "the tool depends on libraries alone" only_libraries
    check "no package runs a script" no_scripts
}

# Of a package's control file, a field that each pattern matches.
field() {
    local package=$1 name=$2 value pattern
    shift 2
    value=$(dpkg-deb --field target/deb/"$package"_*.deb "$name")
    echo "$name: $value"
    for pattern in "$@"; do
        grep -qE -- "$pattern" <<<"$value" || return 1
    done
}

only_libraries() { dpkg-deb --field target/deb/fieldcrypt_*.deb Depends | tr ',' '\n' | tee /dev/stderr | grep -qvE '^ *(libc6|libgcc-s1)( |$)' && return 1; return 0; }

# Without them, nothing can touch a cluster.
no_scripts() {
    local package
    for package in target/deb/*.deb; do
        [[ -z $(dpkg-deb --ctrl-tarfile "$package" | tar -t | grep -E '(pre|post)(inst|rm)|config|triggers' | tee /dev/stderr) ]] || return 1
    done
}

quick_start() {
    check "README: install, with what is needed" as_root 'install'
    check "the files are those that were expected" files_are_there
    check "each file is of this version of PostgreSQL alone" of_one_version
    check "dpkg finds its files unchanged" dpkg --verify "$extension" fieldcrypt
    check "no file names a folder of the machine that built it" no_foreign_paths
    check "README: quick start, as root" as_root 'quick start, as root'
    check "README: quick start, in SQL" sql_of_readme
    check "the value is decrypted" decrypts
    check "it was ciphertext that was stored" matches "SELECT fieldcrypt.ciphertext_text(ssn) FROM patients" '^fc1:'
    check "the audit log is written" matches "SELECT count(*) > 0 FROM fieldcrypt.audit_log" '^t$'
    check "no server runs as root" nobody_is_root
}

# A recipe of README.md, for this version of PostgreSQL.
recipe() {
    local text
    text=$(perl -0777 -ne 'print $1 if /<!-- tried: \Q'"$1"'\E -->\n```\w*\n(.*?)```/s' README.md | sed -E "s/\b15\b/$PG/g")
    [[ -n $text ]] || { echo "README.md does not show '$1'" >&2 && return 1; }
    printf '%s\n' "$text"
}

# What the packages are made by was done before, outside.
as_root() {
    local text
    text=$(recipe "$1") || return 1
    bash -euxc "$(grep -v '^make deb' <<<"$text")"
}

sql_of_readme() {
    local text
    text=$(recipe 'quick start') || return 1
    sql -v ON_ERROR_STOP=1 -e <<<"$text"
}

sql() { runuser -u postgres -- psql -XAtq -v VERBOSITY=verbose -d postgres "$@"; }

matches() { sql -c "$1" | tee /dev/stderr | grep -qE -- "$2"; }

decrypts() { matches "$decrypted" '^123-45-6789$'; }

files_are_there() {
    local file
    for file in "$library" "$data"/pg_fieldcrypt.control "$data"/pg_fieldcrypt--*.sql /usr/bin/fieldcrypt /usr/share/man/man1/fieldcrypt.1.gz \
        /usr/share/doc/{"$extension",fieldcrypt}/{copyright,changelog.gz,changelog.Debian.gz,licences-of-crates.gz} \
        /usr/share/doc/"$extension"/{README.md,README.Debian,SECURITY.md,docs/operations.md}; do
        [[ -s $file && $(stat -c %U:%G "$file") == root:root ]] || { echo "$file is not there" && return 1; }
        dpkg --search "$file" >/dev/null || return 1
    done
    [[ $(stat -c %a "$library" /usr/bin/fieldcrypt | tr '\n' ' ') == '644 755 ' ]]
}

# What another version's package has, too, can't be installed beside it.
of_one_version() { [[ -z $(files_of "$extension" | grep -vE "/$PG/|/$extension(/|\$)" | tee /dev/stderr) ]]; }

files_of() { dpkg --listfiles "$1" | while read -r file; do if [[ -f $file ]]; then echo "$file"; fi; done; }

no_foreign_paths() {
    [[ -z $({ files_of "$extension" && files_of fieldcrypt; } | xargs grep -alFf foreign | tee /dev/stderr) ]]
}

nobody_is_root() {
    local process servers=0
    for process in /proc/[0-9]*; do
        [[ $(readlink "$process/exe") == /usr/lib/postgresql/*/bin/postgres* ]] || continue
        servers=$((servers + 1))
        [[ $(stat -c %U "$process") == postgres ]] || return 1
    done
    ((servers > 3))
}

offline_tool() {
    check "keys can be exported" eval "sql -c 'SELECT fieldcrypt.export_keys()' >keys.json && [[ -s keys.json ]]"
    check "fieldcrypt opens them" eval "fieldcrypt check keys.json --master-key /etc/pg_fieldcrypt/master.key | tee /dev/stderr | grep -q ^GOOD"
    check "fieldcrypt(1) is there, and says nothing wrong" eval '[[ -z $(man --warnings fieldcrypt 2>&1 >manual) ]] && grep -q EXIT manual'
}

# Nothing happens to a cluster, running or not.
installed_again() {
    remember_cluster
    check "dpkg -i a second time" dpkg -i target/deb/*.deb
    check "the cluster was not touched" cluster_is_as_remembered
    check "and decrypts" decrypts
}

postmaster() { head -n 1 "/var/lib/postgresql/$PG/main/postmaster.pid"; }
state() { postmaster && find /etc/postgresql -type f -exec md5sum {} + | sort && pg_lsclusters; }
remember_cluster() { remembered=$(state); }
cluster_is_as_remembered() { diff <(echo "$remembered") <(state); }

# While the server runs and a session is open, which has the library from its start.
upgraded() {
    open_session
    remember_cluster
    check "an open session decrypts" session_decrypts
    check "apt upgrades while the server runs" apt-get install ./raised/*.deb
    check "the higher version is there" eval "dpkg-query -W '$extension' | grep 'raised$' && tail -n 1 '$library' | grep -qa 'raised\$'"
    check "the cluster was not touched" cluster_is_as_remembered
    check "the session decrypts with the library that it has" session_decrypts
    check "a new session decrypts" decrypts
    check "the server still has the old library" eval 'grep -q "pg_fieldcrypt.so.*deleted" "/proc/$(postmaster)/maps"'
    check "it restarts" restart
    check "now it has the new one" eval 'grep -q "pg_fieldcrypt.so$" "/proc/$(postmaster)/maps"'
    check "and decrypts" decrypts
    check "apt goes back to the lower version" apt-get install --allow-downgrades ./target/deb/*.deb
    check "it restarts" restart
    check "and decrypts" decrypts
}

restart() { pg_ctlcluster "$PG" main restart; }

open_session() {
    rm -f session.in session.out
    mkfifo session.in
    sql <session.in >session.out 2>&1 &
    exec 9>session.in
}

session_decrypts() {
    local before
    before=$(wc -l <session.out)
    echo "$decrypted;" >&9
    for _ in {1..100}; do
        if (($(wc -l <session.out) > before)); then break; fi
        sleep 0.1
    done
    tail -n 1 session.out | tee /dev/stderr | grep -q '^123-45-6789$'
}

# README.Debian tells what happens then.
removed_too_early() {
    remember_cluster
    check "it is removed while the server has it preloaded" apt-get remove "$extension"
    check "the cluster was not touched" cluster_is_as_remembered
    check "the server runs on" matches 'SELECT count(*) FROM patients' '^1$'
    refused "values do not open without the library" 'could not access file "\$libdir/pg_fieldcrypt"' sql -c "$decrypted"
    refused "the server does not start with the preload line" 'could not access file "pg_fieldcrypt"' restart
    check "README.Debian says so" eval "dpkg-deb --fsys-tarfile target/deb/${extension}_*.deb | tar -xO ./usr/share/doc/$extension/README.Debian |
        tr -s ' \n' ' ' | grep -qF 'could not access file \"pg_fieldcrypt\": No such file or directory'"
    check "it is installed again" apt-get install ./target/deb/*.deb
    check "the server starts" pg_ctlcluster "$PG" main start
    check "and decrypts" decrypts
}

purged() {
    sed -i "s/^shared_preload_libraries = 'pg_fieldcrypt'/#&/" "$settings"
    check "without the preload line it restarts" restart
    check "and decrypts" decrypts
    remember_cluster
    check "both are purged" apt-get purge "$extension" fieldcrypt
    check "no file of theirs is left" nothing_left
    check "the master key is" test -s /etc/pg_fieldcrypt/master.key
    check "the cluster was not touched" cluster_is_as_remembered
    check "it restarts" restart
    check "its rows are there" matches 'SELECT count(*) FROM patients' '^1$'
    refused "nothing opens" 'could not access file "\$libdir/pg_fieldcrypt"' sql -c "$decrypted"
}

# But the key, what the server wrote for itself, and man's cache.
nothing_left() {
    [[ -z $(find / -xdev \( -path /try -o -path /etc/pg_fieldcrypt -o -path /var/lib/postgresql -o -path /var/cache/man \) -prune -o -name '*fieldcrypt*' -print | tee /dev/stderr) ]]
}

installed_after_purge() {
    check "it is installed after the purge" apt-get install ./target/deb/*.deb
    check "a session that is new decrypts, without a restart" decrypts
}

# `make install` writes where the packages do, and its tool to /usr/local.
over_make_install() {
    local files
    files=$(files_of "$extension" | grep -v /usr/share/doc/)
    # shellcheck disable=SC2086 # names without spaces
    tar -cf installed.tar $files 2>/dev/null
    check "all of it is purged" apt-get purge "$extension" fieldcrypt
    tar -C / -xf installed.tar
    for file in $files; do echo 'of make install' >"$file"; done
    install -m 755 /dev/null /usr/local/bin/fieldcrypt
    check "it is installed over files of make install" apt-get install ./target/deb/*.deb
    check "which are the package's now" dpkg --verify "$extension"
    check "and decrypts" decrypts
    check "both are purged" apt-get purge "$extension" fieldcrypt
    rm /usr/local/bin/fieldcrypt
    check "nothing is left of both" nothing_left
    pg_ctlcluster "$PG" main stop --mode fast
}

main
