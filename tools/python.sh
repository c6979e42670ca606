#!/usr/bin/env bash
# A Python of its own in the cache, with what tests take from PyPI: the client that speaks to llama-server, and what the Python package is
# tested with. Debian's own Python takes no packages of PyPI.
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

packages=(openai==3.57.0 numpy cffi ml_dtypes pytest mypy torch==2.13.0 transformers accelerate nbclient ipykernel
    gguf matplotlib tqdm rouge rapidfuzz jieba lm_eval)
environment=$cache/python

lock_cache
[[ $(cat "$environment/packages" 2>/dev/null) == "${packages[*]}" ]] && exit 0
say "fetching Python packages for the tests: ${packages[*]}"
rm -rf "$environment"
logged "$python" -m venv "$environment"
logged "$environment/bin/python3" -m pip install --quiet "${packages[@]}"
echo "${packages[*]}" >"$environment/packages"
