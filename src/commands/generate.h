// `./train generate`: text from a checkpoint's model.
#pragma once

#include <cstdint>
#include <string>

#include "src/model/generator.h"

namespace ingot {

struct GenerateOptions {
    std::string checkpoint;  // a step folder or a run folder
    std::string prompt;      // "-": read from standard input; empty: the start of a document
    int64_t num_tokens = 200;
    Sampling sampling;
    uint64_t seed = 1;
    std::string stop;             // the text of a token at which the text ends too; empty: none
    std::string device = "auto";  // auto, cpu, cuda
};

// Writes the prompt and its continuation to stdout, the rest to stderr. Returns the exit code; throws Error.
int generate(const GenerateOptions& options);

}  // namespace ingot
