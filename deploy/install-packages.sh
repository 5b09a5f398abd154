#!/usr/bin/env bash
# Install the Debian packages listed in a file, without starting any service they bring.
set -euo pipefail
mapfile -t wanted < <(grep -vE '^\s*(#|$)' "$1")
missing=()
for name in "${wanted[@]}"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
[ "$(id -u)" -eq 0 ] || { echo "missing packages: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2; exit 1; }
echo "installing ${missing[*]}"
# A policy that forbids starting services, unless the machine already has one of its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}"
