#!/usr/bin/env bash
# A Python of its own in the cache, with the OpenAI client: the test of llama-server speaks through it. Debian's own Python takes
# no packages of PyPI.
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

version=3.57.0
environment=$cache/python

lock_cache
"$environment/bin/python3" -c "import openai; exit(openai.__version__ != '$version')" 2>/dev/null && exit 0
say "fetching the OpenAI client for Python"
rm -rf "$environment"
logged "$python" -m venv "$environment"
logged "$environment/bin/python3" -m pip install --quiet "openai==$version"
