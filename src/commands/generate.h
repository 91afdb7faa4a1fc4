// `./train generate` continues a text with a checkpoint's model.
#pragma once

#include <cstdint>
#include <string>

#include "src/model/generator.h"

namespace ingot {

struct GenerateOptions {
    std::string checkpoint;  // a step folder or a run folder
    std::string prompt;      // "-" reads standard input; empty: the model starts a document
    int64_t num_tokens = 200;
    Sampling sampling;
    uint64_t seed = 1;
    std::string stop;             // text of one more token that ends the output; empty: none
    std::string device = "auto";  // auto, cpu, cuda
};

// Writes the prompt and its continuation to stdout, and the rest to stderr. Returns the exit code; throws Error.
int generate(const GenerateOptions& options);

}  // namespace ingot
