#!/usr/bin/env bash
# Installs the Debian packages that are missing, by name, and says which: what everything needs, and those given.
set -euo pipefail

packages=(
    g++ cmake ninja-build pkg-config make             # to build
    libhwy-dev libcli11-dev libfmt-dev nlohmann-json3-dev   # SIMD, command line, text, JSON
    libgtest-dev libbenchmark-dev libboost-context-dev      # tests and benchmarks
    python3 python3-pip python3-venv                  # to fetch the engine and the models, and the client of a test
    bible-kjv bible-kjv-text                          # a long text that everyone may use
    "$@"                                              # what one command needs besides
)

if ! command -v dpkg-query >/dev/null; then
    echo "adamas: this is not Debian, so what is needed is not checked: ${packages[*]}"
    exit 0
fi

installed=" $(dpkg-query --show --showformat '${binary:Package} ${db:Status-Status}\n' | sed -n 's/\(:[a-z0-9]*\)\? installed$//p' | tr '\n' ' ')"
missing=()
for package in "${packages[@]}"; do
    [[ $installed == *" $package "* ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

install=(apt-get install --yes --no-install-recommends "${missing[@]}")
root=()
if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "adamas: some packages are missing; run this as root, then try again:" >&2
        echo "    apt-get update && ${install[*]}" >&2
        exit 1
    fi
    root=(sudo)
fi

echo "adamas: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for step in "apt-get update" "${install[*]}"; do
    if ! "${root[@]}" $step >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "adamas: '$step' failed" >&2
        exit 1
    fi
done
