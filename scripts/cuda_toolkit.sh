# shellcheck shell=bash disable=SC2086,SC2034,SC1090
# What quickstart does about a GPU: whether to build for it, and the toolkit that it takes. Sourced, after common.sh.

# choose_devices SAYS_YES: sets cuda_options for cmake, and says why in a line.
choose_devices() {
    local nvcc driver why
    cuda_options=(-DINGOT_CUDA=OFF)
    if ! has_gpu; then
        if grep -qs 0x10de /sys/bus/pci/devices/*/vendor; then
            echo "Device: CPU. An NVIDIA card is here, but no driver answers (nvidia-smi): install one to use the card."
        else
            echo "Device: CPU (there is no NVIDIA GPU here)."
        fi
        return 0
    fi
    driver=$(driver_cuda)
    [ -n "$driver" ] || { echo "Device: CPU (nvidia-smi does not say which CUDA the driver runs)."; return 0; }
    nvcc=$(find_nvcc) || { offer_toolkit "$driver" "$1" && nvcc=$(find_nvcc); } || return 0
    if ! why=$(toolkit_fits "$driver" "$(toolkit_cuda "$nvcc")"); then
        echo "Device: CPU, because $why."
        return 0
    fi
    cuda_options=(-DINGOT_CUDA=ON -DINGOT_NVCC="$nvcc" -DINGOT_CUDA_ARCHITECTURES="$(cuda_architecture)")
    echo "Devices: CPU and $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)."
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

# offer_toolkit DRIVER SAYS_YES: the parts of the toolkit that the build needs, after asking. Returns 1: the CPU it is.
offer_toolkit() {
    local version system packages keyring answer=""
    version=$(toolkit_for_driver "$1")
    system=$(nvidia_system)
    if [ -z "$version" ]; then
        echo "Device: CPU, because the driver runs CUDA $1, and Ingot needs 12.0: update the driver to use the GPU."
        return 1
    fi
    if [ -z "$system" ]; then
        echo "Device: CPU. A GPU is here, but no nvcc: install the CUDA toolkit ${version/-/.} to use it."
        return 1
    fi
    packages="cuda-nvcc-$version cuda-cudart-dev-$version libcublas-dev-$version"
    echo "A GPU is here, but no nvcc to build for it. The driver runs CUDA $1, so this toolkit fits: ${version/-/.}"
    echo "To install: NVIDIA's package repository for this system, and from it $packages"
    echo "That is about 1 GB to download and 2.5 GB on the disk."
    echo "This version still trains on the CPU then; the GPU runs its kernels in ./bench and in the tests."
    if ! can_install; then
        echo "Device: CPU (installing needs root, or sudo without a question)."
        return 1
    fi
    if [ "$2" != 1 ]; then
        [ ! -t 0 ] || read -r -p "Install it? [y/N] " answer || true
        case $answer in
            [yY]*) ;;
            *)
                echo "Device: CPU (run ./scripts/quickstart --yes to install the toolkit)."
                return 1
                ;;
        esac
    fi
    keyring=$(mktemp --suffix=.deb)
    # Fetched by Python: a fresh system has neither curl nor wget. The package holds the key and the list's address.
    if python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' \
        "https://developer.download.nvidia.com/compute/cuda/repos/$system/cuda-keyring_1.1-1_all.deb" "$keyring" &&
        chmod 644 "$keyring" && apt_get install -y -q "$keyring" && apt_get update -q &&
        apt_get install -y -q --no-install-recommends $packages; then
        rm -f "$keyring"
        return 0
    fi
    rm -f "$keyring"
    echo "Device: CPU, because the toolkit could not be installed: the lines above say why."
    return 1
}
