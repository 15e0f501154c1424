#!/usr/bin/env bash
# run.sh [--quick] [--only PART]: the benchmark, or a part of it, on a private throw-away cluster with the
# installed extension. The whole writes docs/bench/bench.json and docs/bench/bench.svg; the exit code says
# nothing about speed.
source "$(dirname "$0")/../pgrx-config/lib.sh"

home=$work/bench
port=$((28100 + pg)) # names the socket; no TCP port is opened

main() {
    command -v python3 >/dev/null || die "the benchmark needs python3"
    build_baselines
    open_work
    clear_folder bench
    trap stop EXIT
    start
    as_server mkdir "$home/output"
    copy_in bench bench/programs
    as_server env PGHOST="$home" PGPORT="$port" PGUSER=postgres PGDATABASE=postgres \
        python3 "$home/programs/bench.py" "$home/bare.so" "$home/output" "$@"
    if [[ " $* " == *" --only "* ]]; then return; fi
    mkdir -p docs/bench
    for file in bench.json bench.svg; do
        as_server cat "$home/output/$file" >"docs/bench/$file"
    done
    say "Written: docs/bench/bench.json, docs/bench/bench.svg"
}

# A library of functions that do less than the extension's do. It is loaded by its path, not installed.
build_baselines() {
    say "Building the baselines (the first time takes two minutes)"
    compiled "$target/bench.log" --target-dir "$target/bench" --manifest-path bench/bare/Cargo.toml \
        --no-default-features --features "pg$pg"
}

start() {
    as_server initdb --pgdata "$home/data" --username postgres --auth trust --encoding UTF8 --locale C.UTF-8 \
        --no-sync >/dev/null
    as_server tee "$home/bare.so" <"$target/bench/release/libbare.so" >/dev/null
    new_master_key "$home/master.key"
    # Large enough that every measured table stays in memory, and that nothing runs beside a measurement.
    as_server tee -a "$home/data/postgresql.conf" >/dev/null <<-CONF
		listen_addresses = ''
		unix_socket_directories = '$home'
		port = $port
		cluster_name = 'fieldcrypt benchmark'
		shared_buffers = 1GB
		max_wal_size = 8GB
		checkpoint_timeout = 1h
		autovacuum = off
		fieldcrypt.master_key_file = '$home/master.key'
	CONF
    as_server pg_ctl --pgdata "$home/data" --log "$home/server.log" --wait start >/dev/null </dev/null ||
        { as_server tail -n 20 "$home/server.log" >&2 && die "the benchmark's cluster does not start"; }
}

stop() {
    if as_server test -e "$home/data/postmaster.pid" 2>/dev/null; then
        as_server pg_ctl --pgdata "$home/data" --mode immediate --wait stop >/dev/null 2>&1 || true
    fi
}

main "$@"
