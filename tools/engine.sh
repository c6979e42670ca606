#!/usr/bin/env bash
# Builds llama.cpp with its tools, once, into the cache, and points build/llama at it:
#
#     build/llama/bin       llama-completion, llama-bench, llama-perplexity, llama-server, llama-tokenize
#     build/llama/source    llama.cpp, unmodified; the back end is compiled against source/ggml
#
# An interrupted build goes on where it stopped; a finished one is never built again.
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

version=0.3.36   # of the Python package llama-cpp-python, whose source carries llama.cpp
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
targets=(llama-completion llama-tokenize llama-bench llama-perplexity llama-server)

# What this processor can do, as options of ggml: the same code that llama.cpp's releases choose at run time on it.
processor_options() {
    local flags; flags=" $(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo | cut -d : -f 2) "
    has() { local flag; for flag; do [[ $flags == *" $flag "* ]] || return 1; done; }

    case $(uname -m) in
    x86_64)
        ! has sse4_2      || echo -DGGML_SSE42=ON
        ! has avx         || echo -DGGML_AVX=ON
        ! has f16c        || echo -DGGML_F16C=ON
        ! has fma         || echo -DGGML_FMA=ON
        ! has bmi2        || echo -DGGML_BMI2=ON
        ! has avx2        || echo -DGGML_AVX2=ON
        ! has avx_vnni    || echo -DGGML_AVX_VNNI=ON
        has avx512f avx512cd avx512bw avx512dq avx512vl || return 0
        echo -DGGML_AVX512=ON
        ! has avx512vbmi  || echo -DGGML_AVX512_VBMI=ON
        ! has avx512_vnni || echo -DGGML_AVX512_VNNI=ON
        ! has avx512_bf16 || echo -DGGML_AVX512_BF16=ON
        ! has amx_tile amx_int8 || echo -DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON
        ;;
    aarch64)
        ! has asimddp || echo "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod$(has asimdhp && echo +fp16)$(has i8mm && echo +i8mm)"
        ;;
    esac
}

options=(
    -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON
    -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DGGML_CCACHE=OFF $(processor_options)
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
)
key=$(echo "${options[@]}" | sha256sum | head -c 8)
engine=$cache/llama.cpp-$version-$(uname -m)-$key

# ninja's own account of itself, as one line with the time left. Files joined into one (engine.cmake) count five times.
progress() {
    local line text weight done=0 total=0 percent left shown=0 begin=$SECONDS
    while read -r line; do
        weight=1
        [[ $line != *Unity* ]] || weight=5
        if [[ $line == plan* ]]; then
            total=$((total + weight))
            continue
        fi
        echo "$line" >>"$log"
        [[ $line == \[* ]] || continue

        done=$((done + weight))
        percent=$((100 * done / total)) left=$(((SECONDS - begin) * (total - done) / done))
        text="adamas: building llama.cpp: $percent %, $left s left"
        if [[ -t 1 ]]; then
            printf '\r%s  ' "$text"
        elif ((percent >= shown + 10)); then
            shown=$((percent / 10 * 10))
            echo "$text"
        fi
    done
    [[ ! -t 1 ]] || echo
}

get_source() {
    say "fetching llama.cpp (in llama-cpp-python $version, 77 MB)"
    fetch "$engine/download" "llama-cpp-python==$version"
    local archive=$engine/download/llama_cpp_python-$version.tar.gz
    checksum $sha256 "$archive"
    logged tar --extract --gzip --file "$archive" --directory "$engine/download" --strip-components 2 \
        "llama_cpp_python-$version/vendor/llama.cpp"
    mv "$engine/download/llama.cpp" "$engine/source"
    rm -r "$engine/download"
}

build() {
    say "building llama.cpp into $engine, once; it takes some minutes"
    logged cmake -S "$engine/source" -B "$engine" "${options[@]}" -DCMAKE_PROJECT_llama.cpp_INCLUDE="$here/engine.cmake"
    : >"$log"
    local plan=(env "NINJA_STATUS=plan " ninja -n -C "$engine" "${targets[@]}")
    { "${plan[@]}" && ninja -C "$engine" "${targets[@]}"; } 2>&1 9>&- | progress ||
        { tail -n 30 "$log" >&2; fail "llama.cpp did not build (all it said: $log)"; }
}

lock_cache
if [[ ! -e $engine/complete ]]; then
    mkdir -p "$engine"
    [[ -d $engine/source ]] || get_source
    build
    touch "$engine/complete"
fi
mkdir -p "$here/../build"
ln -sfn "$engine" "$here/../build/llama"
