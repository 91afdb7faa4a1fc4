#include "src/checkpoint/environment.h"

#include <fstream>
#include <set>

#include "kernels/attention/attention.h"
#include "kernels/core/blas.h"
#include "kernels/core/check.h"
#include "kernels/matmul/choices.h"
#include "src/base/checksum.h"
#include "src/base/text.h"
#include "src/model/device_choice.h"

namespace ingot {

using nlohmann::ordered_json;

namespace {

// Returns "attention was "sm80", is "sm90"", or a text for a key that one side lacks.
std::string change(const std::string& name, const ordered_json* before, const ordered_json* after) {
    const std::string key = excerpt(name, 60);
    const auto text = [](const ordered_json* value) { return excerpt(value->dump(), 100); };
    if (before == nullptr) return join("the checkpoint does not say what ", key, " was, here it is ", text(after));
    if (after == nullptr) return join(key, " was ", text(before), ", here is none");
    return join(key, " was ", text(before), ", is ", text(after));
}

}  // namespace

std::string cpu_model() {
    std::ifstream stream("/proc/cpuinfo");
    for (std::string line; std::getline(stream, line);) {  // "model name\t: AMD EPYC"
        if (line.rfind("model name", 0) != 0) continue;
        const size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        const size_t begin = line.find_first_not_of(" \t", colon + 1);
        if (begin != std::string::npos) return line.substr(begin);
    }
    return "unknown CPU";
}

ordered_json environment(const Device& device, const Config& config, int64_t num_ranks) {
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
    result["world_size"] = num_ranks;
    return result;
}

std::string environment_hash(const ordered_json& environment) {
    const std::string text = environment.dump();
    return sha256(text.data(), text.size()).substr(0, 8);
}

std::vector<std::string> environment_changes(const ordered_json& then, const ordered_json& now) {
    std::set<std::string> keys;
    for (const ordered_json& side : {then, now})
        for (const auto& [key, value] : side.items()) keys.insert(key);
    std::vector<std::string> changes;
    for (const std::string& key : keys) {
        const auto before = then.find(key), after = now.find(key);
        if (before != then.end() && after != now.end() && *before == *after) continue;
        changes.push_back(
            change(key, before == then.end() ? nullptr : &*before, after == now.end() ? nullptr : &*after));
    }
    return changes;
}

}  // namespace ingot
