#!/usr/bin/env bash
# Every C and C++ file is laid out as .clang-format says. Other versions lay out otherwise, so only clang-format 14 (Debian 12) decides.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! clang-format --version 2>/dev/null | grep -q 'version 14\.'; then
    echo "clang-format 14 is not here, so nothing is compared"
    exit 77
fi
find include src doors tests bench examples -regex '.*\.\(h\|hpp\|c\|cc\|cpp\|cu\|cuh\)' -print0 | xargs -0 clang-format --dry-run --Werror
