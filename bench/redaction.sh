#!/usr/bin/env bash
# What the redaction of the server log costs a statement that has nothing to do with encrypted values, in instructions,
# counted by valgrind: without the library, with it while nothing is logged, and while each statement is looked at since
# the log may write it. The same number on a busy machine.
source "$(dirname "$0")/../pgrx-config/lib.sh"

statements=${STATEMENTS:-1000}
command -v valgrind >/dev/null || die "valgrind is missing: apt-get install valgrind"

open_work
clear_folder redaction
folder=$work/redaction
new_master_key "$folder/master.key"
as_server initdb --pgdata "$folder/data" --username postgres --encoding UTF8 --locale C.UTF-8 --no-sync >/dev/null 2>&1
as_server tee -a "$folder/data/postgresql.conf" >/dev/null <<CONF
fieldcrypt.master_key_file = '$folder/master.key'
jit = off
shared_buffers = 32MB
CONF

# Instructions of a session that runs a statement so many times, with these settings; "@" is another number each time.
counted() {
    local log=$folder/valgrind.log times=$1 statement=$2 number
    shift 2
    for ((number = 10001; number <= 10000 + times; number++)); do
        printf '%s;\n\n' "${statement//@/$number}"
    done |
        as_server valgrind --tool=callgrind --log-file="$log" --callgrind-out-file=/dev/null \
            postgres --single -j -D "$folder/data" "$@" postgres >/dev/null 2>&1
    as_server sed -nE 's/.*Collected : ([0-9]+).*/\1/p' "$log"
}

# Of one statement: many and few.
of_one() {
    echo "$((($(counted "$((statements + 200))" "$@") - $(counted 200 "$@")) / statements))"
}

as_server postgres --single -j -D "$folder/data" postgres >/dev/null 2>&1 <<'SQL'
CREATE EXTENSION pg_fieldcrypt;

CREATE TABLE patients (id int PRIMARY KEY, ssn fieldcrypt.encrypted);

CREATE TABLE accounts (id int PRIMARY KEY, balance int, note text);

INSERT INTO accounts SELECT i, i, 'x' FROM generate_series(1, 1000) AS i;

VACUUM ANALYZE accounts;

SQL

preload=(-c shared_preload_libraries=pg_fieldcrypt)
# The first start has more to do.
counted 10 "SELECT 1" >/dev/null
say "Counting instructions of $statements statements each: some minutes"
while IFS= read -r statement; do
    without=$(of_one "$statement")
    quiet=$(of_one "$statement" "${preload[@]}")
    looking=$(of_one "$statement" "${preload[@]}" -c log_min_duration_statement=1h)
    awk -v statement="$statement" -v without="$without" -v quiet="$quiet" -v looking="$looking" 'BEGIN {
        printf "    %s\n        without the library %d, preloaded %d (%.3f times), looked at %d (%.3f times)\n",
            statement, without, quiet, quiet / without, looking, looking / without
    }'
done <<'SQL'
SELECT balance FROM accounts WHERE id = @
SELECT balance FROM accounts WHERE id = 4711
UPDATE accounts SET balance = balance + 1 WHERE id = 471
SELECT 1
DO $$ BEGIN FOR i IN 1 .. 20 LOOP PERFORM balance FROM accounts WHERE id = i; END LOOP; END $$
SQL
