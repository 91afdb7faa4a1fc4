# shellcheck shell=bash disable=SC2086
# Shared by quickstart and test: what is missing, how it is installed, what is built. Sourced, not run.

say() { printf '\n== %s\n' "$*"; }
# die MESSAGE: what a person can mend. fault MESSAGE: what they cannot.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}
fault() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }
have_file() { # is one of these below /usr or /usr/local?
    local file
    for file in "$@"; do
        [ ! -e "/usr/$file" ] && [ ! -e "/usr/local/$file" ] || return 0
    done
    return 1
}
have_header() { [ -n "$(find /usr/include /usr/local/include -name "$1" -print -quit 2>/dev/null)" ]; }
have_python() { # have_python PACKAGE...: in this Python or in .venv
    local imports
    imports=$(IFS=,; echo "$*")
    python3 -c "import $imports" 2>/dev/null || .venv/bin/python -c "import $imports" 2>/dev/null
}
have_matplotlib() { have_python matplotlib; }

apt_knows() { apt-cache show "$1" >/dev/null 2>&1; }
# oneDNN makes the CPU device faster on x86-64. Where a distribution has OpenBLAS and no oneDNN, it does without.
lacks_onednn() {
    [ "$HOSTTYPE" = x86_64 ] && ! have_file include/oneapi/dnnl/dnnl.h &&
        { apt_knows libdnnl-dev || ! apt_knows libopenblas-openmp-dev; }
}

# ---- Packages: this list, and the line in README.md ----

# The Debian and Ubuntu packages that are missing, one a line. With "tests" also what only the tests need.
missing_packages() {
    have g++ || echo g++
    have cmake || echo cmake
    have ninja || echo ninja-build
    have python3 || echo python3
    have_header cblas.h || echo libopenblas-openmp-dev
    ! lacks_onednn || echo libdnnl-dev
    have_file include/nlohmann/json.hpp || echo nlohmann-json3-dev
    have_file include/CLI/CLI.hpp || echo libcli11-dev
    have_header evp.h || echo libssl-dev
    have_file include/pcre2.h || echo libpcre2-dev
    have_file include/utf8proc.h || echo libutf8proc-dev
    [ "${1:-}" != tests ] || have_file include/gtest/gtest.h || echo libgtest-dev
}

# For .venv, which holds matplotlib and, with "tests", the packages of prepare.py; not worth stopping for.
missing_extras() {
    { have_matplotlib && { [ "${1:-}" != tests ] || have_python $data_packages; }; } ||
        python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

# apt_get OPTIONS: as root or through sudo, or returns 1 where neither can be had without a question.
can_install() { have apt-get && { [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; }; }
apt_get() {
    if [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get "$@"
    else
        sudo DEBIAN_FRONTEND=noninteractive apt-get "$@"
    fi
}

# install_missing [tests]: asks apt-get only when something is missing, so that it works without network otherwise.
install_missing() {
    local packages extras
    packages=$(missing_packages "$@" | tr '\n' ' ')
    extras=$(missing_extras "$@" | tr '\n' ' ')
    if [ -z "$packages" ]; then
        echo "Every package that the build needs is here."
        if [ -n "$extras" ] && can_install; then
            apt_get install -y -q --no-install-recommends $extras || echo "Going on without $extras"
        fi
        return 0
    fi
    local install="apt-get install -y --no-install-recommends $packages$extras"
    have apt-get || die "these packages are missing: $packages; install them with your system's package manager"
    can_install || die "some packages are missing; run this once, then again what you ran:  sudo $install"
    echo "Installing $packages$extras"
    apt_get update -q || echo "Not every package list could be reached: going on with those that are here"
    apt_get install -y -q --no-install-recommends $packages $extras ||
        die "apt-get could not install them: mend what it says above (is there a network?), then run this again"
}

# make_venv [PACKAGE...]: puts them (matplotlib) into .venv unless this Python has them; returns 1 where that fails.
make_venv() {
    [ $# -gt 0 ] || set -- matplotlib
    have_python "$@" && return 0
    .venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv || return 1
    # No builds from source: a picture or a test is not worth a compiler's hour. Few retries: without network it ends soon.
    .venv/bin/python -m pip install -q --disable-pip-version-check --only-binary :all: --retries 1 --timeout 30 "$@"
}
# What prepare.py needs for more than bytes of text; neither it nor the tests of the rest do.
data_packages="tokenizers pyarrow zstandard"

# ---- The GPU ----

has_gpu() { have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU 0'; }

# The newest CUDA that the driver can run, as "13.0"; nothing if it does not say.
driver_cuda() { nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1; }

find_nvcc() {
    local nvcc
    for nvcc in "$(command -v nvcc)" /usr/local/cuda/bin/nvcc /usr/local/cuda-*/bin/nvcc; do
        if [ -x "$nvcc" ]; then
            echo "$nvcc"
            return 0
        fi
    done
    return 1
}
toolkit_cuda() { "$1" --version | sed -n 's/.*release \([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p'; }

# at_least A B: is version A = x.y not below B?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# toolkit_fits DRIVER TOOLKIT: prints why not. Within one major version an older driver runs a newer toolkit's programs.
toolkit_fits() {
    if ! at_least "$2" 12.4; then
        echo "the CUDA toolkit is $2, Ingot needs 12.4 or later"
    elif ! at_least "$1" "${2%%.*}.0"; then
        echo "the driver runs CUDA $1, the toolkit is $2: update the driver, or install a toolkit ${1%%.*}.x"
    else
        return 0
    fi
    return 1
}

# Which GPU architecture to build for: that of the first GPU here, else sm_80, so that the code is at least compiled.
cuda_architecture() {
    local capability=""
    if have nvidia-smi; then
        capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
    fi
    case $capability in
        [0-9]*) echo "$capability" ;;
        *) echo 80 ;;
    esac
}

# ---- Building ----

# build PRESET [cmake options]
build() {
    local preset=$1 log
    shift
    mkdir -p build
    log=build/configure-$preset.log
    if ! cmake --preset "$preset" "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fault "cmake could not configure the build: its last lines stand above, all of them in $log"
    fi
    grep -E '^-- (CUDA device|BLAS)' "$log" || true
    cmake --build --preset "$preset" ||
        fault "the build failed: the compiler's message stands above; with little memory try again (it goes on)"
}
