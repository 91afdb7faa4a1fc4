// `./train import`: a Hugging Face model as a checkpoint to start from (model.init_from), and the config that fits it.
#pragma once

#include <cstdint>
#include <string>

namespace ingot {

struct ImportOptions {
    std::string from;            // the folder of the model
    std::string output;          // a folder that is not there yet
    int64_t context_length = 0;  // 0: the model's own, at most 4096
};

// Writes the checkpoint (fp32 weights, no optimizer state) and config.json, and prints on stderr what was written and
// what to type next. Memory: the mapped files, and a few MiB. Returns the exit code; throws Error.
int import_model(const ImportOptions& options);

}  // namespace ingot
