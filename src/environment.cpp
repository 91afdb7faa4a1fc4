#include "src/environment.h"

#include <fstream>
#include <set>

#include "kernels/attention/attention.h"
#include "kernels/core/blas.h"
#include "kernels/core/check.h"
#include "kernels/matmul_choices.h"
#include "src/checksum.h"
#include "src/device_choice.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

// The value after "KEY<blanks>:" in a /proc file of such lines; the first one.
std::string proc_value(const char* file, const std::string& key) {
    std::ifstream stream(file);
    for (std::string line; std::getline(stream, line);) {
        if (line.rfind(key, 0) != 0) continue;
        const size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        const size_t begin = line.find_first_not_of(" \t", colon + 1);
        return begin == std::string::npos ? "" : line.substr(begin);
    }
    return "";
}

}  // namespace

std::string cpu_model() {
    const std::string model = proc_value("/proc/cpuinfo", "model name");
    return model.empty() ? "unknown CPU" : model;
}

uint64_t available_memory() {
    const std::string value = proc_value("/proc/meminfo", "MemAvailable");  // "24048264 kB"
    return value.empty() ? 0 : std::strtoull(value.c_str(), nullptr, 10) * 1024;
}

ordered_json environment(const Device& device, const Config& config) {
    ordered_json result;
    result["ingot"] = INGOT_VERSION;
    result["device"] = device.is_cpu() ? cpu_model() : device.name();
#ifdef INGOT_MARCH
    result["march"] = INGOT_MARCH;
#endif
    result["compiler"] = __VERSION__;
    result["blas"] = blas_description();
    if (!device.is_cpu()) {
        const TrainingConfig& t = config.training;
        result["attention"] = name_of(
            choose_attention(device, compute_type(t.precision, device), config.model.head_dim, t.attention_options())
                .kernel);
    }
    if (!device.is_cpu() && !device.is_planned()) result["products"] = matmul_machine(device);
    result["world_size"] = 1;
    return result;
}

std::string environment_hash(const ordered_json& environment) {
    const std::string text = environment.dump();
    return sha256(text.data(), text.size()).substr(0, 8);
}

std::string environment_changes(const ordered_json& then, const ordered_json& now) {
    std::set<std::string> keys;
    for (const ordered_json& side : {then, now})
        for (const auto& [key, value] : side.items()) keys.insert(key);
    std::string text;
    for (const std::string& key : keys) {
        const ordered_json before = then.value(key, ordered_json()), after = now.value(key, ordered_json());
        if (before != after) text += join(text.empty() ? "" : "; ", key, " was ", before.dump(), ", is ", after.dump());
    }
    return text;
}

}  // namespace ingot
