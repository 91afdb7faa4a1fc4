// Manifests of checkpoints (src/checkpoint/manifest.h) from any bytes, as a program might have written them: the
// checksum is made to fit after each change, so that what is behind it is reached. A UserError, or values that a run
// can go on from. scripts/dev/fuzz builds and runs it.
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/core/check.h"
#include "src/base/checksum.h"
#include "src/checkpoint/manifest.h"

namespace {

using namespace ingot;

// manifest.h: the last key and its value.
constexpr const char *kKey = "\"sha256\": \"", *kEnd = "\"\n}\n";
constexpr size_t kTailBytes = 11 + 64 + 4;

void must(bool holds) {
    if (!holds) std::abort();
}

void check(const Manifest& manifest) {
    const int64_t T = manifest.config.model.context_length;
    must(manifest.step >= 0 && manifest.rows_consumed >= 0 && T > 0);
    must(manifest.rows_consumed <= INT64_MAX / T && (manifest.step > 0 || manifest.rows_consumed == 0));
    must(manifest.state.updates_applied >= 0 && manifest.state.updates_applied <= manifest.step);
    must(manifest.state.loss_scale > 0 && manifest.report.step == manifest.step);
    must(manifest.num_ranks >= 1 && manifest.find("another") == nullptr);
    must(manifest.has_moments() || manifest.step == 0);
    for (int64_t rank = 0; rank < manifest.num_ranks; ++rank) {
        must(manifest.find(model_file(rank, manifest.num_ranks)) != nullptr);
        must((manifest.find(optimizer_file(rank, manifest.num_ranks)) != nullptr) == manifest.has_moments());
    }
    const size_t num_files = static_cast<size_t>(manifest.num_ranks) * (manifest.has_moments() ? 2 : 1);
    must(manifest.files.size() <= num_files + 1);
    for (const FileRecord& file : manifest.files) {
        must(file.name.find('/') == std::string::npos && file.bytes > 0);
        must(file.sha256.size() == (file.bytes + FileRecord::kChunkBytes - 1) / FileRecord::kChunkBytes);
    }
    must(manifest.environment.is_object());
    // What was read can be written and read again: the same config, and the same list of files.
    const nlohmann::ordered_json config = config_to_json(manifest.config);
    must(config_to_json(config_from_json(config, "config")) == config);
    must(to_json(manifest.files).size() == manifest.files.size());
    must(manifest_text({{"config", config}}).size() > kTailBytes);
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    if (seed % 8 == 0 || size < kTailBytes || max_size < kTailBytes) return LLVMFuzzerMutate(data, size, max_size);
    const size_t body = LLVMFuzzerMutate(data, size - kTailBytes, max_size - kTailBytes);
    const std::string tail = kKey + sha256(data, body) + kEnd;
    std::memcpy(data + body, tail.data(), kTailBytes);
    return body + kTailBytes;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        check(parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json"));
    } catch (const UserError& error) {
        // Something is said, in at most one line once it is printed.
        must(std::strlen(error.what()) > 10);
    }
    return 0;
}
