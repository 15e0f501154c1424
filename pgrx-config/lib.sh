# shellcheck shell=bash
# shellcheck disable=SC2034 # used where this is sourced
# What the scripts behind `make` share: where things are, who runs what. Sourced, never run.
set -euo pipefail
umask 022

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
export HOME
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin"
export LC_ALL=C.UTF-8

# No setting of the caller's may lead a test to a server that is not ours.
unset PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGPASSWORD PGPASSFILE PGSERVICE PGSERVICEFILE \
    PGOPTIONS PGDATA PGSSLMODE PGTZ PGDATESTYLE PGCLIENTENCODING PSQLRC PSQL_HISTORY

pg=${PG:-15} # the PostgreSQL major version; 15 is the tested one
server_folder= # where other_server.sh puts a server that this machine's Debian does not have
server_root= # that folder, if the server sees it as /
if [[ -n ${PG_CONFIG:-} ]]; then
    # A server that somebody installed: all of it is where its pg_config says.
    pg_config=$(command -v "$PG_CONFIG") || { echo "error: PG_CONFIG=$PG_CONFIG is no program" >&2 && exit 1; }
    pg=$("$pg_config" --version | sed -nE 's/^PostgreSQL ([0-9]+).*/\1/p')
    pg_bin=$("$pg_config" --bindir)
    pg_test=$("$pg_config" --pgxs)
    pg_test=${pg_test%/makefiles/*}/test
else
    # Debian's layout, known before it is installed. What this machine's Debian lacks is unpacked elsewhere.
    servers=${FIELDCRYPT_SERVERS:-/var/lib/pg_fieldcrypt/servers}
    pg_bin=/usr/lib/postgresql/$pg/bin
    pg_test=/usr/lib/postgresql/$pg/lib/pgxs/src/test
    pg_config=$pg_bin/pg_config
    declare -A debian_with=([15]=bookworm [17]=trixie [18]=forky)
    debian=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [[ ! -x $pg_config && ${debian_with[$pg]:-} != "$debian" ]] &&
        { [[ -e $servers/$pg/ready ]] || ! apt-cache show "postgresql-$pg" >/dev/null 2>&1; }; then
        server_folder=$servers/$pg
        if [[ $pg == 16 ]]; then
            pg_bin=$server_folder/server/pgsql/bin
            pg_config=$pg_bin/pg_config
            pg_test=/usr/lib/postgresql/15/lib/pgxs/src/test
        else
            server_root=$server_folder
            pg_config=$server_folder.pg_config
        fi
    fi
fi

# PostgreSQL refuses to run as root, and its user may be unable to enter this repository. So the
# server runs as `server_user`, and all that it reads or writes lives in the folder `work`.
if ((EUID == 0)); then server_user=fieldcrypt-dev; else server_user=$(id -un); fi
work=${FIELDCRYPT_WORK:-/var/tmp/pg_fieldcrypt-$EUID}

target=${CARGO_TARGET_DIR:-target} # as cargo has it: seen from the repository
version=$(sed -nE '/^\[workspace\.package\]/,/^\[/s/^version *= *"([^"]*)".*/\1/p' Cargo.toml)
export PGRX_PG_CONFIG_PATH=$pg_config # pgrx makes its bindings from this one's headers

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo. As root, run: $*"
    fi
}

# Runs a command as the server's user, in the work folder.
as_server() (
    cd "$work"
    if [[ -n $server_root ]]; then
        enter_server_root "$@"
    elif ((EUID == 0)); then
        exec runuser -u "$server_user" -- env HOME="$work" USER="$server_user" LOGNAME="$server_user" \
            PATH="$pg_bin:/usr/bin:/bin" "$@"
    else
        exec env PATH="$pg_bin:$PATH" "$@"
    fi
)

# The same in the folder that the server sees as /. Processes, devices, sockets and the work folder are this
# machine's; the mounts go with the namespace.
enter_server_root() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root unshare --mount "$BASH" -euc '
        root=$1 work=$2 user=$3 path=$4
        shift 4
        mkdir -p "$root$work"
        mount -t proc proc "$root/proc"
        for folder in /sys /dev /tmp "$work"; do mount --rbind "$folder" "$root$folder"; done
        exec chroot --userspec="$user" "$root" env -C "$work" HOME="$work" USER="$user" LOGNAME="$user" LC_ALL="$LC_ALL" \
            PATH="$path:/usr/bin:/bin" "$@"' enter "$server_root" "$work" "$server_user" "$pg_bin" "$@"
}

# Runs a command in that folder as root. Nothing of it is a service, nothing asks.
in_server_root() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root unshare --mount "$BASH" -euc '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        exec chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"' enter "$server_root" "$@"
}

# Makes the server's user and the work folder. Somebody else's folder of that name is refused:
# /var/tmp is open to all.
open_work() {
    if ! id "$server_user" >/dev/null 2>&1; then
        say "Creating the system user $server_user, who runs the test servers"
        as_root useradd --system --no-create-home --home-dir "$work" --shell /usr/sbin/nologin "$server_user"
    fi
    if [[ -n $server_root ]]; then known_in_server_root; fi
    if mkdir -m 700 "$work" 2>/dev/null; then chown "$server_user" "$work"; fi
    if [[ -L $work || ! -d $work || $(stat -c %U "$work") != "$server_user" ]]; then
        die "$work is not a folder of $server_user's; remove it, or name another with FIELDCRYPT_WORK"
    fi
}

# The server's user has the same number inside as outside.
known_in_server_root() {
    local file
    for file in passwd group; do
        if ! grep -q "^$server_user:" "$server_root/etc/$file"; then
            getent "$file" "$server_user" | as_root tee -a "$server_root/etc/$file" >/dev/null
        fi
    done
}

# Ends server processes that a crashed run left behind in a folder of `work`. Of one in a server root the
# whole path is seen, or that from its root.
end_leftovers() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_server bash -c '
        for process in /proc/[0-9]*; do
            if [[ $(readlink "$process/cwd" 2>/dev/null) == *"$1"/* && $(readlink "$process/exe" 2>/dev/null) == *"$2"/* ]]; then
                kill -QUIT "${process#/proc/}" 2>/dev/null && sleep 0.2
            fi
        done; true' end "$work/$1" "$pg_bin"
}

# Makes a folder in `work`, or empties it.
clear_folder() {
    end_leftovers "$1"
    if as_server test -d "$work/$1"; then as_server chmod -R u+rwX "$work/$1"; fi
    as_server rm -rf "$work/$1"
    as_server mkdir -m 700 "$work/$1"
}

# Copies a folder of the repository into `work`.
copy_in() {
    as_server mkdir -p "$work/$2"
    tar -C "$root/$1" -cf - . | as_server tar -C "$work/$2" --no-same-owner -xf -
}

# Writes a new random master key, readable by the server alone.
new_master_key() {
    # shellcheck disable=SC2016
    as_server bash -c 'umask 077 && od -An -vtx1 -N32 /dev/urandom | tr -d " \n" >"$1" && echo >>"$1"' key "$1"
}

# watched LOG HOW_FAR COMMAND…: runs a command that takes long and says much. All of that goes to a file,
# which is named if the command fails; meanwhile HOW_FAR, a function, reads there how far it is: a line
# every 20 seconds, on a terminal one that changes.
watched() {
    local log=$1 how_far=$2 ticker status=0 command
    shift 2
    command=$*
    mkdir -p "${log%/*}"
    : >"$log"
    tick "$log" "$how_far" &
    ticker=$!
    "$@" >"$log" 2>&1 </dev/null || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [[ -t 1 ]]; then printf '\r\e[K'; fi
    if ((status != 0)); then
        # without the bars that cargo draws
        tr '\r' '\n' <"$log" | grep -vE '^ *[A-Z][a-z]+ \[' | tail -n 40 >&2 || true
        die "failed: ${command#as_root }
       All that it said is in $log"
    fi
}

tick() {
    local began=$SECONDS every=20 next elapsed line
    if [[ -t 1 ]]; then every=1; fi
    next=$every
    while sleep 1 && kill -0 $$ 2>/dev/null; do
        elapsed=$((SECONDS - began))
        if ((elapsed < next)); then continue; fi
        next=$((elapsed + every))
        line=$(printf '    %d:%02d  %s' $((elapsed / 60)) $((elapsed % 60)) "$("$how_far" "$log")")
        if [[ -t 1 ]]; then printf '\r\e[K%s' "${line:0:79}"; else printf '%s\n' "$line"; fi
    done
}

# Builds in release mode, with cargo's arguments: `compiled LOG ARGUMENTS…`.
compiled() {
    local log=$1
    shift
    CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 \
        watched "$log" cargo_how_far cargo build --locked --release "$@"
}

# How far a command is that ends what it says with that.
last_line() { tail -n 1 "$1" | cut -c 1-70; }

# fresh_debian RELEASE FOLDER MIRROR [options]: debootstrap's smallest system. No service starts in there, and nobody waits
# for the disk.
fresh_debian() {
    local release=$1 folder=$2 mirror=$3 script=/usr/share/debootstrap/scripts/$1
    # A release that is newer than debootstrap is made as `sid` is.
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    as_root debootstrap --variant=minbase "${@:4}" "$release" "$folder" "$mirror" "$script" || return
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$folder/usr/sbin/policy-rc.d" >/dev/null
    as_root chmod 755 "$folder/usr/sbin/policy-rc.d"
    as_root tee "$folder/etc/dpkg/dpkg.cfg.d/unsafe-io" >/dev/null <<<force-unsafe-io
}

# From the last bar: "    Building [====>     ] 120/245: pgrx, syn"
cargo_how_far() {
    tail -c 2000 "$1" | tr '\r' '\n' | sed -nE 's#^ *([A-Z][a-z]+) \[.*\] ([0-9]+)/([0-9]+)(.*)#\1: \2 of \3\4#p' |
        tail -n 1 | sed -E 's/ +$//; s/^Building: /compiled /; s/: /, now /'
}

# The last word of a test suite: prints the count, keeps it and the names of what failed (its input) for the
# summary, fails if it must.
report() {
    local failures
    failures=$(cat)
    local name=$1${FIELDCRYPT_SUITES_OF:+-$FIELDCRYPT_SUITES_OF}
    say "$name: $2 passed, $3 failed"
    if [[ -n ${FIELDCRYPT_RESULTS:-} ]]; then
        echo "$name $2 $3" >>"$FIELDCRYPT_RESULTS"
        if [[ -n $failures ]]; then printf '%s\n' "$failures" | sed "s/^/    $name: /" >>"$FIELDCRYPT_RESULTS.failures"; fi
    fi
    (($2 > 0 && $3 == 0))
}
