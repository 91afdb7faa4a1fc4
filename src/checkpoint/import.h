// `./train import` turns a Hugging Face model into a checkpoint to start from (model.init_from), and a config for it.
#pragma once

#include <cstdint>
#include <string>

namespace ingot {

struct ImportOptions {
    std::string from;            // the folder of the model
    std::string output;          // a folder that does not exist yet
    int64_t context_length = 0;  // 0: the model's own, but at most 4096
};

// Writes the checkpoint (fp32 weights, no optimizer state) and config.json, and prints on stderr what was written and
// the next commands. Takes a few MiB of memory beside the mapped files. Returns the exit code; throws Error.
int import_model(const ImportOptions& options);

}  // namespace ingot
