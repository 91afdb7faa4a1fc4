# Shared by quickstart and test: installs what is missing, and builds. Sourced, not run.

say() { printf '\n== %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

have() { command -v "$1" >/dev/null 2>&1; }

# The Debian and Ubuntu packages that are missing, one line.
missing_packages() {
    have g++ || echo g++
    have cmake || echo cmake
    have ninja || echo ninja-build
    have git || echo git
    have python3 || echo python3
    [ -n "$(find /usr/include /usr/local/include -name cblas.h -print -quit 2>/dev/null)" ] || echo libopenblas-openmp-dev
    # oneDNN makes the CPU device faster on x86-64; where the distribution has none, the CBLAS does its work.
    if [ "$(uname -m)" = x86_64 ] && [ ! -e /usr/include/oneapi/dnnl/dnnl.h ] &&
        [ ! -e /usr/local/include/oneapi/dnnl/dnnl.h ] && apt-cache show libdnnl-dev >/dev/null 2>&1; then
        echo libdnnl-dev
    fi
    [ -e /usr/include/nlohmann/json.hpp ] || [ -e /usr/local/include/nlohmann/json.hpp ] || echo nlohmann-json3-dev
    [ -e /usr/include/CLI/CLI.hpp ] || [ -e /usr/local/include/CLI/CLI.hpp ] || echo libcli11-dev
    [ -e /usr/include/gtest/gtest.h ] || [ -e /usr/local/include/gtest/gtest.h ] || echo libgtest-dev
}

install_missing() {
    local packages
    packages=$(missing_packages | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    local install="apt-get install -y --no-install-recommends $packages"
    have apt-get || die "these packages are missing: $packages; install them with your system's package manager"
    if [ "$(id -u)" = 0 ]; then
        say "Installing: $packages"
        apt-get update -q && DEBIAN_FRONTEND=noninteractive $install
    elif have sudo && sudo -n true 2>/dev/null; then
        say "Installing: $packages"
        sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive $install
    else
        die "some packages are missing; run this once, then again what you ran:  sudo $install"
    fi
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

# build PRESET [cmake options]
build() {
    local preset=$1
    shift
    cmake --preset "$preset" "$@"
    cmake --build --preset "$preset"
}
