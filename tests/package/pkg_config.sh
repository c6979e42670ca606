#!/bin/sh
# Compiles the C example with what pkg-config says about the installation in PREFIX, and runs it.
#   pkg_config.sh COMPILER SOURCE PREFIX LIBDIR OUTPUT [FLAGS]
set -eu
compiler=$1 source=$2 prefix=$3 libdir=$prefix/$4 output=$5
shift 5

export PKG_CONFIG_PATH=$libdir/pkgconfig
[ "$(pkg-config --variable=prefix adamas | xargs realpath)" = "$(realpath "$prefix")" ] || {
  echo "adamas.pc names the prefix $(pkg-config --variable=prefix adamas), not the one it lies in, $prefix" >&2
  exit 1
}
# shellcheck disable=SC2046  # the flags are words
"$compiler" -std=c99 "$@" "$source" $(pkg-config --cflags --libs adamas) -o "$output"
LD_LIBRARY_PATH=$libdir "$output"
