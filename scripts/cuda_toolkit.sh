# shellcheck shell=bash disable=SC2086,SC2034,SC1090
# What quickstart and test do about a GPU: whether to build for it, and the toolkit for that. Sourced, after common.sh.

has_gpu() { have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU [0-9]'; }

# The newest CUDA that the driver can run, as "13.0"; nothing if it does not say.
driver_cuda() { nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1; }

# The GPUs, one a line: "9.0, GPU-<uuid>, NVIDIA H100 80GB HBM3". Lines without a capability say nothing of use.
list_gpus() {
    nvidia-smi --query-gpu=compute_cap,uuid,name --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]'
}

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

# The GPUs of the lines on standard input that the kernels run on: sm_80 and later.
new_enough() { while IFS= read -r gpu; do [ "${gpu%%.*}" -lt 8 ] || echo "$gpu"; done; }
# Those that this nvcc can build for.
known_to() {
    local known capability
    known=$("$1" --list-gpu-arch 2>/dev/null)
    while IFS= read -r gpu; do
        capability=${gpu%%,*}
        ! grep -qx "compute_${capability/./}" <<<"$known" || echo "$gpu"
    done
}
# names GPUS: "NVIDIA T4 (sm_75) and NVIDIA L4 (sm_89)"
names() {
    sed 's/^\([0-9]*\)\.\([0-9]*\), *[^,]*, *\(.*\)/\3 (sm_\1\2)/' <<<"$1" | sort -u |
        paste -sd '|' - | sed 's/|/ and /g'
}

# choose_devices MODE: sets cuda_options for cmake and visible_gpus, and says why in a line. MODE is "ask" before a
# missing toolkit is installed, "yes" to install it, or "test": nothing is installed, and where there is no GPU the
# kernels are compiled all the same.
choose_devices() {
    local mode=$1 all usable buildable left_out driver nvcc why toolkit architectures
    cuda_options=(-DINGOT_CUDA=OFF)
    visible_gpus=""
    if ! has_gpu; then
        if [ "$mode" = test ] && nvcc=$(find_nvcc) && at_least "$(toolkit_cuda "$nvcc")" 12.4; then
            echo "Devices: CPU. There is no NVIDIA GPU with a driver here, but nvcc: the kernels are compiled for" \
                "sm_80, and their tests are skipped."
            cuda_options=(-DINGOT_CUDA=ON -DINGOT_NVCC="$nvcc" -DINGOT_CUDA_ARCHITECTURES=80)
        elif grep -qs 0x10de /sys/bus/pci/devices/*/vendor; then
            echo "Device: CPU. An NVIDIA card is here, but no driver answers (nvidia-smi): install one to use the card."
        else
            echo "Device: CPU (there is no NVIDIA GPU here)."
        fi
        return 0
    fi
    # The cards first: what they cannot run need not be installed or built.
    driver=$(driver_cuda)
    all=$(list_gpus) || true
    if [ -z "$driver" ] || [ -z "$all" ]; then
        echo "Device: CPU (nvidia-smi does not say which GPU this is, or which CUDA it runs: is the driver old?)."
        return 0
    fi
    usable=$(new_enough <<<"$all")
    if [ -z "$usable" ]; then
        echo "Device: CPU. The kernels need a GPU of sm_80 or later (A100, RTX 30, newer), and here is $(names "$all")."
        return 0
    fi
    nvcc=$(find_nvcc) || { offer_toolkit "$driver" "$mode" && nvcc=$(find_nvcc); } || return 0
    toolkit=$(toolkit_cuda "$nvcc")
    if ! why=$(toolkit_fits "$driver" "$toolkit"); then
        echo "Device: CPU, because $why."
        return 0
    fi
    buildable=$(known_to "$nvcc" <<<"$usable")
    if [ -z "$buildable" ]; then
        echo "Device: CPU. The CUDA toolkit $toolkit is older than the GPU and cannot build for it:" \
            "$(names "$usable"). Install a newer toolkit to use it."
        return 0
    fi
    architectures=$(sed 's/^\([0-9]*\)\.\([0-9]*\),.*/\1\2/' <<<"$buildable" | sort -un | paste -sd ';' -)
    cuda_options=(-DINGOT_CUDA=ON -DINGOT_NVCC="$nvcc" -DINGOT_CUDA_ARCHITECTURES="$architectures")
    echo "Devices: CPU and $(names "$buildable")."
    if [ "$buildable" != "$all" ]; then
        visible_gpus=$(sed 's/^[^,]*, *\([^,]*\),.*/\1/' <<<"$buildable" | paste -sd ',' -)
        left_out=$(grep -vxF "$buildable" <<<"$all")
        echo "Left out, since too old for the kernels or too new for the toolkit: $(names "$left_out")."
        echo "To keep ./train off them:  export CUDA_VISIBLE_DEVICES=$visible_gpus"
    fi
}

# The toolkit for a driver that runs programs of CUDA $1, as in package names; nothing for a driver that is too old.
toolkit_for_driver() {
    if at_least "$1" 13.0; then
        echo 13-0
    elif at_least "$1" 12.0; then # any 12.x driver runs what a 12.8 toolkit builds for its own GPU
        echo 12-8
    fi
}

# The name of this system in NVIDIA's package repository; nothing where it has none that we know.
nvidia_system() {
    (
        . "${OS_RELEASE:-/etc/os-release}"
        case "$ID$VERSION_ID-$(uname -m)" in
            debian12-x86_64) echo debian12/x86_64 ;;
            ubuntu22.04-x86_64) echo ubuntu2204/x86_64 ;;
            ubuntu24.04-x86_64) echo ubuntu2404/x86_64 ;;
        esac
    ) 2>/dev/null
}

# offer_toolkit DRIVER MODE: the parts of the toolkit that the build needs, after asking. Returns 1: the CPU it is.
offer_toolkit() {
    local version system packages keyring root answer=""
    version=$(toolkit_for_driver "$1")
    system=$(nvidia_system)
    if [ -z "$version" ]; then
        echo "Device: CPU, because the driver runs CUDA $1, and Ingot needs 12.0: update the driver to use the GPU."
        return 1
    fi
    if [ -z "$system" ] || [ "$2" = test ]; then
        echo "Device: CPU. A GPU is here, but no nvcc: install the CUDA toolkit ${version/-/.} to use it."
        return 1
    fi
    if [ -n "${INGOT_TOOLKIT_OFFERED:-}" ]; then # before this script became a person again
        echo "Device: CPU (a GPU is here, but no nvcc to build for it)."
        return 1
    fi
    packages="cuda-nvcc-$version cuda-cudart-dev-$version libcublas-dev-$version"
    echo "A GPU is here, but no nvcc to build for it. The driver runs CUDA $1, so this toolkit fits: ${version/-/.}"
    echo "To install: NVIDIA's package repository for this system, and from it $packages"
    echo "That is about 1 GB to download and 2.5 GB on the disk."
    root=$(way_to_root)
    if [ "$root" = none ]; then
        echo "Device: CPU (installing needs root, or sudo)."
        return 1
    fi
    if [ "$2" != yes ]; then
        [ ! -t 0 ] || read -r -p "Install it? [y/N] " answer || true
        case $answer in
            [yY]*) ;;
            *)
                echo "Device: CPU (run ./scripts/quickstart --yes to install the toolkit)."
                return 1
                ;;
        esac
    fi
    if [ "$root" = password ] && ! ask_sudo "$packages"; then
        echo "Device: CPU (sudo does not let $(id -un) install the toolkit)."
        return 1
    fi
    keyring=$(mktemp --suffix=.deb)
    # Fetched by Python: a fresh system has neither curl nor wget. The package holds the key and the list's address.
    if python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' \
        "https://developer.download.nvidia.com/compute/cuda/repos/$system/cuda-keyring_1.1-1_all.deb" "$keyring" &&
        chmod 644 "$keyring" && apt_get install -y -q "$keyring" && apt_update &&
        apt_get install -y -q --no-install-recommends $packages; then
        rm -f "$keyring"
        return 0
    fi
    rm -f "$keyring"
    echo "Device: CPU, because the toolkit could not be installed: the lines above say why."
    return 1
}
