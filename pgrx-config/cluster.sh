#!/usr/bin/env bash
# cluster.sh fresh | start | stop | status | remove | psql [arguments] | exec command [arguments]
# The demo's private cluster: own folder, a socket there and nothing else, its own user.
source "$(dirname "$0")/lib.sh"

home=$work/demo
data=$home/data
port=$((28000 + pg)) # names the socket; no TCP port is opened

main() {
    local command=${1:-}
    shift || true
    if [[ $command != fresh && $command != remove && ! -d $data ]]; then
        say "There is no demo cluster; make demo creates one"
        [[ $command == stop || $command == status ]]
        return
    fi
    case $command in
        fresh) fresh ;;
        start) start ;;
        stop) stop ;;
        status) status ;;
        psql) client psql "$@" ;;
        exec) client "$@" ;;
        remove) remove ;;
        *) die "usage: cluster.sh fresh | start | stop | status | remove | psql [arguments] | exec command [arguments]" ;;
    esac
}

fresh() {
    open_work
    stop
    clear_folder demo
    as_server initdb --pgdata "$data" --username postgres --auth trust --encoding UTF8 --locale C.UTF-8 --no-sync >/dev/null
    as_server tee -a "$data/postgresql.conf" >/dev/null <<-CONF
		listen_addresses = ''
		unix_socket_directories = '$home'
		port = $port
		cluster_name = 'fieldcrypt demo'
		shared_buffers = 32MB
		shared_preload_libraries = 'pg_fieldcrypt'
	CONF
    start
}

start() {
    if running; then return; fi
    # A crashed run's lock files may name a process number that somebody else has now.
    end_leftovers demo
    as_server rm -f "$data/postmaster.pid" "$home/.s.PGSQL.$port" "$home/.s.PGSQL.$port.lock"
    if ! as_server pg_ctl --pgdata "$data" --log "$home/server.log" --wait start >/dev/null </dev/null; then
        as_server tail -n 20 "$home/server.log" >&2
        die "the demo cluster does not start"
    fi
}

stop() {
    if running; then
        as_server pg_ctl --pgdata "$data" --mode fast --wait stop >/dev/null ||
            as_server pg_ctl --pgdata "$data" --mode immediate --wait stop >/dev/null
        say "The demo cluster is stopped"
    fi
}

# Runs a client program against the cluster.
client() {
    if ! running; then start; fi
    as_server env PGHOST="$home" PGPORT="$port" PGUSER=postgres PGDATABASE=postgres "$@"
}

remove() {
    if [[ ! -d $home ]]; then return; fi
    stop
    as_server rm -rf "$home"
}

status() {
    if running; then say "The demo cluster runs in $data"; else say "The demo cluster is stopped"; fi
}

# A process id in a file proves nothing after a crash: the process must be at home there.
running() {
    local process
    process=$(as_server head -n 1 "$data/postmaster.pid" 2>/dev/null) || return 1
    [[ $(as_server readlink "/proc/$process/cwd" 2>/dev/null) == *"$data" ]]
}

main "$@"
