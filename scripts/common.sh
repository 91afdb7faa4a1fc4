# shellcheck shell=bash disable=SC2086,SC2034
# Shared by quickstart and test: what is missing, how it is installed, what is built. Sourced, not run.

unset PYTHONSAFEPATH # with it Python does not find the packages beside a script

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

# Ctrl-C ends the script, also where the command that ran takes it for a request and ends with 0, as apt-get does.
end_on_interrupt() { trap 'printf "\nStopped: run it again to go on.\n" >&2; exit 130' INT; }

have() { command -v "$1" >/dev/null 2>&1; }
have_python() { # have_python PACKAGE...: in this Python or in .venv
    local imports
    imports=$(IFS=,; echo "$*")
    python3 -c "import $imports" 2>/dev/null || .venv/bin/python -c "import $imports" 2>/dev/null
}
have_matplotlib() { have_python matplotlib; }

# at_least A B: is version A = x.y not below B?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# ---- Who runs this ----

# Through sudo? Then only apt-get runs as root, and all else as the person, who owns what is built and trained.
is_through_sudo() { [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; }

# become_person SCRIPT ARGUMENTS...: starts the script again as that person; it does not return.
become_person() {
    echo "Going on as $SUDO_USER: only installing needs root."
    exec sudo -u "$SUDO_USER" -H -- env INGOT_TOOLKIT_OFFERED=1 bash "$@"
}

# Ends with what to do where files of an earlier run, as root for example, could not be written.
check_owner() {
    local me first
    me=$(id -u)
    first=$(
        for folder in . data runs; do
            [ ! -e "$folder" ] || find "$folder" -maxdepth 0 ! -writable ! -user "$me"
        done
        for place in build data/tiny runs/tiny .venv .venv-interop train bench libingot.so; do
            [ ! -e "$place" ] || find "$place" ! -type l ! -writable ! -user "$me" -print -quit
        done
    )
    first=${first%%$'\n'*}
    [ -z "$first" ] || die "$first belongs to $(stat -c %U "$first"), and $(id -un) cannot write it (was this run as" \
        "root before?). Take over all of this folder, then run this again:  sudo chown -R $(id -un): '$PWD'"
}

# ---- Packages ----

# The packages of cmake/packages.txt that this machine may need; with "tests" also what only the tests need.
all_packages() {
    local package condition machine compiler
    machine=$(uname -m)
    compiler=$({ ${CXX:-c++} --version || true; } 2>/dev/null)
    while read -r package condition; do
        case $package/$condition in
            \#* | /*) ;;
            */ | */"$machine") echo "$package" ;;
            */tests) [ "${1:-}" != tests ] || echo "$package" ;;
            */clang) case $compiler in *clang*) echo "$package" ;; esac ;;
        esac
    done <cmake/packages.txt
}

# What must be there before CMake can say what else is missing.
missing_tools() {
    local version
    if [ -n "${CXX:-}" ]; then
        have "${CXX%% *}" || die "CXX is $CXX, and there is no such compiler: install it, or unset CXX"
    else
        have c++ || have g++ || have clang++ || echo g++
    fi
    if have cmake; then
        version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
        at_least "$version" 3.22 || die "cmake is $version, and the build needs 3.22 or later: install a newer one" \
            "(python3 -m pip install cmake), first in PATH"
    else
        echo cmake
    fi
    have ninja || echo ninja-build
    have python3 || echo python3
}

# The Debian and Ubuntu packages that are missing, one a line: what the build itself would not find. Without the tools
# to ask it, all that it may need; apt-get passes over what is installed.
missing_packages() {
    local tools folder tests=OFF
    tools=$(missing_tools) || exit $?
    if [ -n "$tools" ]; then
        # A compiler or a cmake that is here is the right one, whichever package it came from.
        { echo "$tools" && all_packages "$@" | grep -vxE 'g\+\+|cmake|ninja-build|python3'; } | leave_out_unknown
        return
    fi
    [ "${1:-}" != tests ] || tests=ON
    folder=$(mktemp -d)
    if ! cmake -G Ninja -S . -B "$folder" -DINGOT_LIST_MISSING="$folder/missing" -DINGOT_TESTS=$tests \
        >"$folder/log" 2>&1; then
        tail -n 20 "$folder/log" >&2
        rm -rf "$folder"
        die "cmake cannot say what is missing: its last lines stand above"
    fi
    grep . "$folder/missing" | leave_out_unknown || true
    rm -rf "$folder"
}

apt_knows() { apt-cache show "$1" >/dev/null 2>&1; }
# oneDNN makes the CPU device faster. A release of the system that has OpenBLAS and no oneDNN does without.
leave_out_unknown() {
    local package
    while read -r package; do
        [ "$package" = libdnnl-dev ] && ! apt_knows libdnnl-dev && apt_knows libopenblas-openmp-dev || echo "$package"
    done
}

# For .venv, which holds matplotlib and, with "tests", the packages of prepare.py; not worth stopping for.
missing_extras() {
    { have_matplotlib && { [ "${1:-}" != tests ] || have_python $data_packages; }; } ||
        python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    [ "${1:-}" != tests ] || missing_launchers
}

# Slurm and Open MPI, under which a test starts several ranks for real, as far as this system has them.
missing_launchers() {
    local pair
    for pair in slurmctld:slurmctld slurmd:slurmd srun:slurm-client munged:munge mpirun:openmpi-bin; do
        PATH=$PATH:/usr/sbin:/sbin have "${pair%:*}" || ! apt_knows "${pair#*:}" || echo "${pair#*:}"
    done
}

# How apt-get becomes root here: "root" it is already, "sudo" that asks nothing, "password" that sudo asks for at this
# terminal, or "none".
way_to_root() {
    if [ "$(id -u)" = 0 ]; then
        echo root
    elif ! have sudo; then
        echo none
    elif sudo -n DEBIAN_FRONTEND=noninteractive apt-get --version >/dev/null 2>&1; then
        echo sudo
    elif [ -t 0 ]; then
        echo password
    else
        echo none
    fi
}

# Waits for another apt-get or a system that updates itself to end.
apt_get() {
    set -- -o DPkg::Lock::Timeout=600 "$@"
    if [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get "$@"
    else
        sudo DEBIAN_FRONTEND=noninteractive apt-get "$@"
    fi
}
# That option is for dpkg's lock; the lock of the package lists needs a loop.
apt_update() {
    local log tries=0
    log=$(mktemp)
    until apt_get update -q 2>&1 | tee "$log"; do
        if ! grep -q lists/lock "$log" || [ "$tries" -ge 60 ]; then
            echo "Not every package list could be reached: going on with those that are here"
            break
        fi
        tries=$((tries + 1))
        echo "Another program reads the package lists: waiting for it"
        sleep 5
    done
    rm -f "$log"
}

# ask_sudo PACKAGES: says what for, and lets sudo ask for the password; 1 if it does not let this person.
ask_sudo() {
    echo "To install from this system's package lists: $1"
    echo "That needs root, so sudo asks for your password (Ctrl-C: nothing is installed)."
    sudo -v
}

# install_missing [tests]: asks apt-get only when something is missing, so that it works without network otherwise.
install_missing() {
    local packages extras root line round
    for round in 1 2; do  # the second for what only a compiler and cmake could tell
        packages=$(missing_packages "$@")
        packages=${packages//$'\n'/ }
        extras=$(missing_extras "$@")
        extras=${extras//$'\n'/ }
        root=$(way_to_root)
        if [ -z "$packages" ]; then
            echo "Every package that the build needs is here."
            case $root in
                root | sudo) [ -z "$extras" ] || apt_get install -y -q --no-install-recommends $extras ||
                    echo "Going on without $extras" ;;
            esac
            return 0
        fi
        have apt-get || die "these packages are missing: $packages; install them with your system's package manager"
        packages="$packages${extras:+ $extras}"
        line="apt-get install -y --no-install-recommends $packages"
        case $root in
            none)
                have sudo || die "some packages are missing, and there is no sudo here: let an administrator run this" \
                    "once, as root, then run yours again:  apt-get update && $line"
                die "some packages are missing; run this once, then again what you ran:  sudo apt-get update &&" \
                    "sudo $line"
                ;;
            password)
                ask_sudo "$packages" || die "sudo does not let $(id -un) install them: let an administrator run this" \
                    "once, as root, then run yours again:  apt-get update && $line"
                ;;
        esac
        [ "$round" = 2 ] || apt_update
        packages=$(leave_out_unknown <<<"${packages// /$'\n'}")
        packages=${packages//$'\n'/ }
        echo "Installing $packages"
        apt_get install -y -q --no-install-recommends $packages ||
            die "apt-get could not install them: mend what it says above (is there a network?), then run this again"
    done
    packages=$(missing_packages "$@")
    [ -z "$packages" ] || die "apt-get has installed them, and yet the build finds nothing of ${packages//$'\n'/ }:" \
        "is another compiler or another prefix in use (CXX is ${CXX:-not set}, PATH is $PATH)?"
}

# make_venv [PACKAGE...]: puts them (matplotlib) into .venv unless this Python has them; returns 1 where that fails.
make_venv() {
    [ $# -gt 0 ] || set -- matplotlib
    have_python "$@" && return 0
    .venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv || return 1
    pip_install .venv "$@"
}
# No builds from source: a picture or a test is not worth a compiler's hour. Few retries: without network it ends soon.
pip_install() { # pip_install VENV [OPTION...] PACKAGE...
    local venv=$1
    shift
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: --retries 1 --timeout 30 "$@"
}
# What prepare.py needs for more than bytes of text; neither it nor the tests of the rest do.
data_packages="tokenizers pyarrow zstandard jinja2"

# What exports and imports are tested against, in .venv-interop, so that .venv stays small: PyTorch from PyPI brings all
# of CUDA along, also for a machine without a GPU. Packages that this Python has are not installed again.
interop_packages="torch transformers"
interop_gib=10  # what has to be free: about 6 GB are installed from 3 GB that are downloaded
# Returns 1 where that fails, and says why.
make_interop_venv() {
    local python imports=${interop_packages// /, } free
    for python in python3 .venv-interop/bin/python; do
        "$python" -c "import $imports" 2>/dev/null && return 0
    done
    if ! python3 -c 'import torch' 2>/dev/null; then
        free=$(df -Pk . | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*% .*/\1/p')
        free=$((free / 1048576))
        [ "$free" -ge "$interop_gib" ] || { echo "$free GiB are free, and they need $interop_gib"; return 1; }
        echo "Downloading PyTorch and transformers into .venv-interop: about 3 GB, 6 GB installed"
    fi
    .venv-interop/bin/python -m pip --version >/dev/null 2>&1 ||
        python3 -m venv --clear --system-site-packages .venv-interop || return 1
    # What pip has downloaded is not kept: it would be another 3 GB.
    pip_install .venv-interop --no-cache-dir $interop_packages
}

# ---- Building ----

# choose_processor: sets processor_options for cmake, and says so where the processor is older than the build's default.
choose_processor() {
    local flags lacking march=x86-64
    processor_options=()
    [ "$(uname -m)" = x86_64 ] || return 0
    flags=$(sed -n '/^flags/{s/.*: //p;q}' "${CPUINFO:-/proc/cpuinfo}" 2>/dev/null)
    [ -n "$flags" ] || return 0
    lacking=$(flags_not_in "$flags" avx avx2 fma bmi1 bmi2 f16c movbe abm)
    [ -n "$lacking" ] || return 0
    [ -n "$(flags_not_in "$flags" pni ssse3 sse4_1 sse4_2 popcnt)" ] || march=x86-64-v2
    echo "This processor lacks$lacking: building for $march, without oneDNN. It works, and is slower."
    processor_options=(-DINGOT_MARCH="$march" -DINGOT_ONEDNN=OFF)
}
flags_not_in() { # flags_not_in FLAGS FLAG...: those of the latter that are not among the former
    local flag flags=" $1 "
    shift
    for flag in "$@"; do
        case $flags in *" $flag "*) ;; *) printf ' %s' "$flag" ;; esac
    done
}

# stale_because FOLDER: why a configured build folder is not for this checkout and this system; nothing if it is.
stale_because() {
    local cache=$1/CMakeCache.txt compiler now name
    [ -e "$cache" ] || return 0
    cached() { sed -n "s/^$1:[A-Z]*=//p" "$cache"; }
    made_with() { sed -n "s/^set($2 \"\(.*\)\")/\1/p" "$1"/CMakeFiles/*/"$3" 2>/dev/null | tail -n 1; }
    if ! [ "$(cached CMAKE_HOME_DIRECTORY)" -ef . ] || ! [ "$(cached CMAKE_CACHEFILE_DIR)" -ef "$1" ]; then
        echo "it was made in $(cached CMAKE_CACHEFILE_DIR)"
        return 0
    fi
    name=$(cached CMAKE_GENERATOR)
    if [ "$name" != Ninja ]; then
        echo "it was made for ${name:-another program} instead of Ninja"
        return 0
    fi
    for name in CMAKE_COMMAND CMAKE_MAKE_PROGRAM CMAKE_CXX_COMPILER INGOT_NVCC; do
        now=$(cached $name)
        case $now in
            '' | *-NOTFOUND) ;;
            *) [ -x "$now" ] || { echo "$now is no longer there"; return 0; } ;;
        esac
    done
    compiler=$(cached CMAKE_CXX_COMPILER)
    if [ -n "${CXX:-}" ] && [ "${CXX#* }" = "$CXX" ] && ! [ "$compiler" -ef "$(command -v "$CXX")" ]; then
        echo "it was made with $compiler, and CXX is $CXX"
        return 0
    fi
    now=$("$compiler" -dumpfullversion -dumpversion 2>/dev/null | head -n 1)
    name=$(made_with "$1" CMAKE_CXX_COMPILER_VERSION CMakeCXXCompiler.cmake)
    [ -z "$name" ] || [ "$name" = "$now" ] || { echo "$compiler was $name then and is $now now"; return 0; }
    name=$(made_with "$1" CMAKE_CUDA_COMPILER_VERSION CMakeCUDACompiler.cmake)
    compiler=$(cached INGOT_NVCC)
    if [ -n "$name" ] && [ -x "$compiler" ]; then
        now=$(toolkit_cuda "$compiler")
        case $name in "$now" | "$now".*) ;; *) echo "$compiler was $name then and is $now now" ;; esac
    fi
}

# build PRESET [cmake options]
build() {
    local preset=$1 log why
    shift
    mkdir -p build
    why=$(stale_because "build/$preset")
    if [ -n "$why" ]; then
        echo "build/$preset is from elsewhere: $why. Removing it, to build anew."
        rm -rf "build/$preset" || die "build/$preset could not be removed: remove it yourself, then run this again"
    fi
    log=build/configure-$preset.log
    { : >"$log"; } 2>/dev/null || die "$log cannot be written: is the disk full? Mend that, then run this again"
    if ! cmake --preset "$preset" "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fault "cmake could not configure the build: its last lines stand above, all of them in $log"
    fi
    grep -E '^-- (CUDA device|Products)' "$log" || true
    log=build/build-$preset.log
    if ! cmake --build --preset "$preset" 2>&1 | tee "$log"; then
        # The kernel kills what takes the last memory, and g++ or ninja says so.
        if grep -qE 'Killed|signal 9|out of memory|virtual memory exhausted' "$log"; then
            die "the compiler was killed, most likely since memory ran out: end other programs, or let one compiler" \
                "run at a time (it goes on where it stopped):  CMAKE_BUILD_PARALLEL_LEVEL=1 $0"
        fi
        fault "the build failed: the compiler's message stands above, and in $log"
    fi
}
