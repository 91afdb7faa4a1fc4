#include "src/commands/info.h"

#include <dlfcn.h>
#include <omp.h>
#include <openssl/crypto.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <utf8proc.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/attention/attention.h"
#include "kernels/core/blas.h"
#include "kernels/core/check.h"
#include "kernels/cuda/system.h"
#include "src/base/output.h"
#include "src/base/spinning.h"
#include "src/checkpoint/environment.h"
#include "src/model/device_choice.h"
#include "src/model/matmul_cache.h"
#include "src/tokenizer/pattern.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

// Returns the text after the first colon of the line that begins with `key`, or "" if there is no such line.
std::string line_value(const char* path, const std::string& key) {
    std::ifstream stream(path);
    for (std::string line; std::getline(stream, line);) {
        const size_t colon = line.find(':');
        if (line.rfind(key, 0) == 0 && colon != std::string::npos && colon + 2 <= line.size())
            return line.substr(colon + 2);
    }
    return "";
}

std::string operating_system() {
    utsname name{};
    uname(&name);
    std::ifstream stream("/etc/os-release");
    std::string pretty;
    for (std::string line; std::getline(stream, line);)
        if (line.rfind("PRETTY_NAME=\"", 0) == 0 && line.size() > 14) pretty = line.substr(13, line.size() - 14) + ", ";
    return join(pretty, name.sysname, " ", name.release, " ", name.machine);
}

std::string processor_features() {
#if defined(__x86_64__)
    std::string text;
    const auto add = [&](const char* name, int has) {
        if (has != 0) text += (text.empty() ? "" : " ") + std::string(name);
    };
    add("avx2", __builtin_cpu_supports("avx2"));
    add("fma", __builtin_cpu_supports("fma"));
    add("avx512f", __builtin_cpu_supports("avx512f"));
    add("avx512bf16", __builtin_cpu_supports("avx512bf16"));
    return text;
#else
    return "";
#endif
}

// Returns the path of the BLAS library that was loaded.
std::string blas_file() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(&cblas_sgemm), &info) == 0 || info.dli_fname == nullptr) return "linked in";
    char* const resolved = realpath(info.dli_fname, nullptr);
    const std::string path = resolved != nullptr ? resolved : info.dli_fname;
    std::free(resolved);
    return path;
}

// Returns the version from "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  ...", also without CUDA
// support.
std::string kernel_driver() {
    const std::string text = line_value("/proc/driver/nvidia/version", "NVRM version");
    // The version is the first word that begins with a digit, also in "... Kernel Module for x86_64  580.159.04 ...".
    std::istringstream words(text);
    for (std::string word; words >> word;)
        if (word[0] >= '0' && word[0] <= '9') return word;
    return text;
}

ordered_json cuda_section() {
    ordered_json section;
    section["built"] = Device::has_cuda();
    section["why"] = INGOT_CUDA_REASON;
    const std::string driver = kernel_driver();
    section["driver"] = driver.empty() ? ordered_json(nullptr) : ordered_json(driver);
    std::string why;
    Device::num_cuda_devices(&why);
    const CudaSystem system = describe_cuda_system();
    if (Device::has_cuda()) {
        section["architectures"] = INGOT_CUDA_ARCHITECTURES;
        section["toolkit"] = system.toolkit;
        section["driver_supports"] = system.driver.empty() ? ordered_json(nullptr) : ordered_json(system.driver);
        section["cublaslt"] = system.cublaslt;
    } else {
        why += driver.empty() ? ", and no NVIDIA driver is loaded here"
                              : ", but an NVIDIA driver is loaded here: install the CUDA toolkit and build again with "
                                "-DINGOT_CUDA=ON";
    }
    section["gpus"] = ordered_json::array();
    for (const GpuDescription& gpu : system.gpus)
        section["gpus"].push_back(join(gpu.name, ", sm_", gpu.major, gpu.minor, ", ", format_bytes(gpu.memory_bytes)));
    if (system.gpus.empty()) section["no_gpu_because"] = why;
    return section;
}

ordered_json describe() {
    ordered_json info;
    info["ingot"] = {{"version", INGOT_VERSION},
                     {"compiler", INGOT_COMPILER},
                     {"build_type", INGOT_BUILD_TYPE},
#ifdef INGOT_MARCH
                     {"march", INGOT_MARCH},
#else
                     {"march", "the compiler's default"},
#endif
                     {"system", operating_system()}};
    info["cuda"] = cuda_section();
    const auto [device, reason] = choose_device("auto");
    const bool is_cpu = device.is_cpu();
    const AttentionChoice attention = choose_attention(device, compute_type(Precision::automatic, device), 64);
    info["device"] = {{"auto_means", device.name()},
                      {"why", reason},
                      {"precision", name_of(compute_type(Precision::automatic, device))},
                      {"attention", is_cpu ? "tiles of queries and keys through the BLAS, documents skipped as a whole"
                                           : join(name_of(attention.kernel), ", since ", attention.reason)},
                      {"products", is_cpu ? "the BLAS, one single-threaded call for each fixed block of the result"
                                          : join("cuBLASLt, algorithms timed once on this machine: ",
                                                 matmul_cache_path(matmul_machine(device)))},
                      {"generation", "a cache of keys and values, one token at a time"}};
    const char* const threads = std::getenv("OMP_NUM_THREADS");
    info["cpu"] = {{"model", cpu_model()},
                   {"features", processor_features()},
                   {"processors", std::thread::hardware_concurrency()},
                   {"threads", omp_get_max_threads()},
                   {"threads_why", threads != nullptr ? join("OMP_NUM_THREADS=", threads) : "one for each processor"},
                   {"waiting_threads", describe_waiting_threads()},
                   {"memory", format_bytes(static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) *
                                           static_cast<size_t>(sysconf(_SC_PAGESIZE)))}};
    info["libraries"] = {{"blas", blas_description()},
                         {"blas_file", blas_file()},
                         {"libcrypto", OpenSSL_version(OPENSSL_VERSION)},
                         {"openmp", _OPENMP},
                         {"nlohmann_json", join(NLOHMANN_JSON_VERSION_MAJOR, ".", NLOHMANN_JSON_VERSION_MINOR, ".",
                                                NLOHMANN_JSON_VERSION_PATCH)},
                         {"cli11", CLI11_VERSION},
                         {"pcre2", join(Pattern::library_version(), ", Unicode ", Pattern::unicode_version())},
                         {"utf8proc", join(utf8proc_version(), ", Unicode ", utf8proc_unicode_version())}};
    return info;
}

std::string value_text(const ordered_json& value) {
    if (value.is_null()) return "none";
    if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
    if (value.is_array()) {
        std::string text;
        for (const ordered_json& item : value) text += (text.empty() ? "" : "; ") + value_text(item);
        return text.empty() ? "none" : text;
    }
    return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

int print_info(bool is_json) {
    const ordered_json info = describe();
    if (is_json) {
        write_output(info.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
        return kExitDone;
    }
    std::string text;
    for (const auto& [section, entries] : info.items()) {
        text += section + "\n";
        for (const auto& [key, value] : entries.items()) {
            std::string label = "  " + key;
            for (char& c : label)
                if (c == '_') c = ' ';
            label.append(label.size() < 20 ? 20 - label.size() : 1, ' ');
            text += label + value_text(value) + "\n";
        }
    }
    write_output(text);
    return kExitDone;
}

}  // namespace ingot
