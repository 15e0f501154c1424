#!/usr/bin/env bash
# Instructions of one encrypt_field and one decrypt_field call of 40 bytes, counted by valgrind over a million
# calls, without what the queries around them cost: the same number on a busy machine.
source "$(dirname "$0")/../pgrx-config/lib.sh"

# Fewer a statement than a nonce block has: what a new block costs is not counted as a call.
calls=50000
statements=${STATEMENTS:-20}
command -v valgrind >/dev/null || die "valgrind is missing: apt-get install valgrind"

open_work
clear_folder instructions
folder=$work/instructions
new_master_key "$folder/master.key"
as_server initdb --pgdata "$folder/data" --username postgres --encoding UTF8 --locale C.UTF-8 --no-sync >/dev/null 2>&1
as_server tee -a "$folder/data/postgresql.conf" >/dev/null <<CONF
fieldcrypt.master_key_file = '$folder/master.key'
jit = off
max_parallel_workers_per_gather = 0
shared_buffers = 32MB
CONF

single() {
    as_server "$@" postgres --single -j -D "$folder/data" postgres >/dev/null 2>&1
}

# Instructions of a session that runs a query so many times.
counted() {
    local log=$folder/valgrind.log
    yes "$1;"$'\n' | head -n "$((2 * $2))" | single valgrind --tool=callgrind --log-file="$log" --callgrind-out-file=/dev/null
    as_server sed -nE 's/.*Collected : ([0-9]+).*/\1/p' "$log"
}

# Of one call: many statements and one, each with the call and without it.
of_one_call() {
    local name=$1 call=$2 argument=$3 rows="FROM one, generate_series(1, $calls)" many without few fewest
    many=$(counted "SELECT count($call) $rows" "$statements")
    without=$(counted "SELECT count($argument) $rows" "$statements")
    few=$(counted "SELECT count($call) $rows" 1)
    fewest=$(counted "SELECT count($argument) $rows" 1)
    awk -v name="$name" -v n="$((calls * (statements - 1)))" -v many="$many" -v without="$without" \
        -v few="$few" -v fewest="$fewest" \
        'BEGIN {printf "    %-15s %8.1f instructions\n", name, ((many - few) - (without - fewest)) / n}'
}

single env >/dev/null 2>&1 <<'SQL'
CREATE EXTENSION pg_fieldcrypt;

CREATE TABLE one (v text, c fieldcrypt.encrypted);

INSERT INTO one SELECT repeat('x', 40), fieldcrypt.encrypt_field(repeat('x', 40), 'one.c/1');

VACUUM one;

SQL

say "Counting instructions of $((calls * statements)) calls each: some minutes"
of_one_call encrypt_field "fieldcrypt.encrypt_field(v, 'one.c/1')" v
of_one_call decrypt_field "fieldcrypt.decrypt_field(c, 'one.c/1')" c
