#!/usr/bin/env bash
# in_root.sh BASE PACKAGES: copies a fresh root, puts packages and documents into it, and runs the checks there. In namespaces of
# its own: what is mounted and started ends with it.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

base=$1 packages=$2 fresh=$1.run

mount --make-rprivate /
rm -rf --one-file-system "$fresh"
trap 'umount --recursive "$fresh/proc" "$fresh/dev/shm" 2>/dev/null; rm -rf --one-file-system "$fresh"' EXIT
cp -a "$base" "$fresh"
mount -t proc proc "$fresh/proc"
mkdir -p "$fresh/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$fresh/dev/shm"
echo 'APT::Get::Assume-Yes "true";' >"$fresh/etc/apt/apt.conf.d/assume-yes" # nobody is there who could say it

# As a source tree where `make deb` was run.
try=$fresh/try
mkdir -p "$try/target/deb" "$try/raised"
cp README.md tests/packages/{checks,inside}.sh "$try"
cp "$packages"/{"postgresql-$pg-",}fieldcrypt_*.deb "$try/target/deb"

# The same with a higher version, and a library of other bytes: what follows an ELF file's sections nobody reads.
for package in "$try"/target/deb/*.deb; do
    dpkg-deb --raw-extract "$package" "$try/unpacked"
    sed -i 's/^Version: .*/&+raised/' "$try/unpacked/DEBIAN/control"
    find "$try/unpacked/usr/lib" -name pg_fieldcrypt.so -exec sh -c 'echo raised >>"$1"' raise {} \; 2>/dev/null || true
    (cd "$try/unpacked" && find usr -type f -exec md5sum {} +) >"$try/unpacked/DEBIAN/md5sums"
    dpkg-deb --root-owner-group --build "$try/unpacked" "$try/raised" >/dev/null
    rm -rf "$try/unpacked"
done
# Folders of this machine, which no file of a package may name.
printf '%s\n' "$root" "${CARGO_HOME:-$HOME/.cargo}" "$(cd "$target" && pwd)" >"$try/foreign"

chroot "$fresh" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive PG="$pg" \
    bash /try/inside.sh
