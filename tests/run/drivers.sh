#!/usr/bin/env bash
# drivers.sh: example applications, one for each framework or driver, written as for a table of plain columns; all have to
# print the same. And programs that send a parameter of every type into one column.
# T=django runs what is of that name, T="knex prisma" several, T=parameters those programs, T=docs compares
# docs/frameworks.md with the applications.
# FIELDCRYPT_DRIVERS_PLAIN=1 does it without the extension, on plain columns.
# What they need goes into the work folder, once. What can't be had is named and skipped.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

here=$work/drivers
data=$here/data
cache=$work/drivers-cache # stays from run to run
apps=(psycopg3 psycopg2 asyncpg sqlalchemy django node-pg knex drizzle prisma jdbc jpa activerecord)
parameters=(psycopg3 psycopg2 asyncpg node-pg jdbc)
jars_jpa=(eclipselink eclipselink-jpa-2.1-spec geronimo-jta-1.2-spec javax.json)
schema=schema.sql column=fieldcrypt.encrypted_text libraries=pg_fieldcrypt
if [[ -n ${FIELDCRYPT_DRIVERS_PLAIN:-} ]]; then schema=plain_schema.sql column=text libraries=''; fi
port='' password='' results=''

main() {
    local name
    open_work
    clear_folder drivers
    copy_in tests/drivers drivers/tests
    as_server mkdir -p "$cache"
    as_server ln -s "$cache/node/node_modules" "$here/tests/node_modules"
    results=$(mktemp)
    trap 'stop; rm -f "$results"*' EXIT
    start
    for name in "${apps[@]}"; do if wanted "$name"; then application "$name"; fi; done
    for name in "${parameters[@]}"; do if wanted "$name" parameters; then sent_by "$name"; fi; done
    if wanted docs; then snippets; fi
    if wanted hibernate; then skip "hibernate: its releases are in Maven's registry alone, docs/frameworks.md has it from documentation"; fi
    if wanted postgrest; then skip "postgrest: no registry that is used here has it, docs/frameworks.md has it from documentation"; fi
    [[ -s $results ]] || die "there is nothing named $T in tests/drivers"

    local passed failed
    passed=$(grep -c '^ok ' "$results" || true)
    failed=$(grep -c '^not ok ' "$results" || true)
    if ((passed + failed == 0)); then
        say "drivers: nothing of it can be tried here"
        return
    fi
    report drivers "$passed" "$failed" < <(grep '^not ok ' "$results" || true)
}

# wanted NAME…: whether T names one of these, or nothing.
wanted() {
    local name
    if [[ -z ${T:-} ]]; then return; fi
    for name in "$@"; do if [[ " $T " == *" $name "* ]]; then return; fi; done
    false
}

skip() {
    echo "skip $1" | tee -a "$results"
    if [[ -n ${FIELDCRYPT_RESULTS:-} ]]; then echo "    ${FIELDCRYPT_SUITES_OF:-} drivers: $1" >>"$FIELDCRYPT_RESULTS.skipped"; fi
}

application() {
    local program
    if ! can "$1"; then return; fi
    case $1 in
        node-pg | knex | drizzle | prisma) program=(node "$1/app.mjs") ;;
        jdbc) program=(java -cp "$(jars postgresql)" jdbc/App.java) ;;
        jpa) program=(java -cp "jpa:$(jars postgresql "${jars_jpa[@]}")" App) ;;
        activerecord) program=(ruby activerecord/app.rb) ;;
        *) program=(python "$1/app.py") ;;
    esac
    new_database
    super --file "$here/tests/$schema" clinic
    if [[ $1 == jpa ]]; then as_client javac -cp "$(jars "${jars_jpa[@]}")" jpa/App.java; fi
    if [[ $1 == prisma ]]; then
        # Told to download its engine for migrations, it would; the client has no need of it.
        as_client env PRISMA_SCHEMA_ENGINE_BINARY=/bin/true CHECKPOINT_DISABLE=1 \
            prisma generate --schema prisma/schema.prisma >"$results.prisma" 2>&1 || cat "$results.prisma"
    fi
    compare "$1" "$here/tests/expected.out" "${program[@]}"
}

# Every line of code that docs/frameworks.md shows below the name of an application is a line of that application.
snippets() {
    # shellcheck disable=SC2016 # perl's
    if perl -CSD -Mutf8 -we '
        my ($code, $inside, $missing) = ("", 0, 0);
        while (<>) {
            if (!$inside && /^#/) { $code = "" }
            elsif (!$inside && /^`tests\//) {
                for my $path (/`(tests\/[^`]+)`/g) { open my $file, "<:utf8", $path or die "$path: $!\n"; $code .= join "", <$file> }
            }
            elsif (/^```/) { $inside = !$inside }
            elsif ($inside && $code ne "") {
                s/^\s+|\s+$//g;
                if (index($code, $_) < 0) { print "$ARGV:$.: in no application: $_\n"; $missing = 1 }
            }
        }
        exit $missing;' docs/frameworks.md; then
        echo "ok docs" | tee -a "$results"
    else
        echo "not ok docs: docs/frameworks.md shows what no application has" | tee -a "$results"
    fi
}

sent_by() {
    local program
    if ! can "$1"; then return; fi
    case $1 in
        node-pg) program=(node parameters/with_pg.mjs) ;;
        jdbc) program=(java -cp "$(jars postgresql)" parameters/WithJdbc.java) ;;
        *) program=(python "parameters/with_$1.py") ;;
    esac
    new_database
    if [[ $libraries ]]; then super --command "CREATE EXTENSION pg_fieldcrypt" --command "SELECT fieldcrypt.create_loose_key()" clinic; fi
    super --set column="$column" --file "$here/tests/parameters/schema.sql" clinic
    if [[ $libraries ]]; then super --command "SELECT fieldcrypt.grant_access('clinic', 'encrypt', 'decrypt')" clinic; fi
    # What is expected of all drivers is in one file.
    as_client grep "^$1 " "parameters/${column##*.}.out" | as_server tee "$here/parameters-$1.expected" >/dev/null || true
    compare "parameters-$1" "$here/parameters-$1.expected" "${program[@]}"
}

# compare NAME EXPECTED PROGRAM…
compare() {
    local name=$1 expected=$2 output=$here/$1.out status=0
    shift 2
    as_client timeout 120 "$@" 2>&1 </dev/null | as_server tee "$output" >/dev/null || status=$?
    if as_server diff -u "$expected" "$output" && ((status == 0)); then
        echo "ok $name" | tee -a "$results"
    else
        echo "not ok $name: what it printed is in $output" | tee -a "$results"
    fi
}

# Runs a command as a client of the server would: in the folder of the programs, with what was installed for them.
as_client() {
    local server_root='' # the clients are this machine's, wherever the server is
    as_server env -C "$here/tests" PATH="$cache/python/bin:$cache/node/node_modules/.bin:$PATH" PYTHONDONTWRITEBYTECODE=1 \
        RUBYOPT=-W0 PGHOST=127.0.0.1 PGPORT="$port" PGUSER=clinic PGPASSWORD="$password" PGDATABASE=clinic "$@"
}

super() {
    as_server env PGOPTIONS='-c client_min_messages=warning' psql --host "$here" --port "$port" --username postgres --no-psqlrc --quiet --output /dev/null \
        --set ON_ERROR_STOP=1 --set VERBOSITY=terse --dbname "${@: -1}" "${@:1:$#-1}"
}

new_database() {
    super --command "DROP DATABASE IF EXISTS clinic" --command "CREATE DATABASE clinic" postgres
}

# A server with a socket in its folder, for us, and a port on the loopback interface with a password, for the applications:
# JDBC knows no sockets.
start() {
    port=$((20000 + RANDOM % 10000))
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    # Hexadecimal alone, EclipseLink would take it for one that it has encrypted.
    password=word-$(od -An -vtx1 -N16 /dev/urandom | tr -d ' \n')
    as_server initdb --pgdata "$data" --username postgres --auth-local trust --auth-host scram-sha-256 --encoding UTF8 \
        --locale C.UTF-8 --no-sync >/dev/null
    new_master_key "$here/master.key"
    as_server tee -a "$data/postgresql.conf" >/dev/null <<-CONF
		listen_addresses = '127.0.0.1'
		port = $port
		unix_socket_directories = '$here'
		shared_buffers = 32MB
		fsync = off
		log_statement = all
		shared_preload_libraries = '$libraries'
	CONF
    if [[ $libraries ]]; then
        echo "fieldcrypt.master_key_file = '$here/master.key'" | as_server tee -a "$data/postgresql.conf" >/dev/null
    fi
    as_server pg_ctl --pgdata "$data" --log "$here/server.log" --wait start >/dev/null </dev/null ||
        die "the server does not start, see $here/server.log"
    super --command "CREATE ROLE clinic LOGIN PASSWORD '$password'" postgres
}

stop() {
    as_server pg_ctl --pgdata "$data" --mode immediate --wait stop >/dev/null 2>&1 || true
}

# Whether an application can run here. What is missing for it is installed, if it is a package of Python's or npm's.
can() {
    local reason
    case $1 in
        node-pg | knex | drizzle | prisma) reason=$(no_node) ;;
        jdbc) reason=$(no_java postgresql) ;;
        jpa) reason=$(no_java postgresql "${jars_jpa[@]}") ;;
        activerecord) reason=$(no_ruby) ;;
        *) reason=$(no_python) ;;
    esac
    if [[ $reason ]]; then skip "$1: $reason" && false; fi
}

no_java() {
    local name
    if ! command -v javac >/dev/null; then
        echo "no Java compiler is installed (default-jdk-headless)"
    else
        for name in "$@"; do
            if [[ ! -e $(jars "$name") ]]; then echo "there is no $(jars "$name") (libpostgresql-jdbc-java, libeclipselink-java)" && return; fi
        done
    fi
}

# A class path of Debian's.
jars() {
    local all
    all=$(printf ':/usr/share/java/%s.jar' "$@")
    echo "${all#:}"
}

no_ruby() {
    if ! as_client ruby -e 'require "active_record"; require "pg"' >/dev/null 2>&1; then
        echo "ruby-activerecord and ruby-pg are not installed"
    fi
}

no_python() {
    if ! as_client /usr/bin/python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
        echo "no Python from 3.10 on with venv is installed (python3-venv)"
    else
        # shellcheck disable=SC2016 # expanded by the inner shell
        installed python requirements.txt '/usr/bin/python3 -m venv "$1" && "$1/bin/pip" install --no-deps --only-binary :all: -r requirements.txt'
    fi
}

no_node() {
    if ! as_client node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major * 100 + +minor < 2019 ? 1 : 0)' >/dev/null 2>&1; then
        echo "no Node from 20.19 on is installed"
    else
        # shellcheck disable=SC2016 # expanded by the inner shell
        installed node package-lock.json 'mkdir "$1" && cp package.json package-lock.json "$1" && cd "$1" && npm ci --ignore-scripts --no-audit --no-fund'
    fi
}

# installed FOLDER LOCK HOW: makes a folder of the cache anew if the lock file is another than it was made from. Says why if
# that can't be done.
installed() {
    if as_client cmp -s "$2" "$cache/$1.ready"; then return; fi
    if [[ ! -e $results.$1 ]]; then
        say "Installing what $2 names" >&2
        as_client rm -rf "$cache/$1" "$cache/$1.ready"
        if as_client timeout 900 bash -c "$3" install "$cache/$1" >"$results.$1" 2>&1 </dev/null; then
            as_client cp "$2" "$cache/$1.ready"
            return
        fi
        tail -n 5 "$results.$1" >&2
    fi
    echo "what $2 names can't be installed" # and is not tried again in this run
}

main "$@"
