// `./train eval`: the loss of a checkpoint on token shards, or its accuracy on HellaSwag.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "src/config/config.h"
#include "src/model/model.h"

namespace ingot {

struct EvaluateOptions {
    std::string checkpoint;         // a step folder or a run folder
    std::vector<std::string> data;  // paths or globs; empty where hellaswag is given
    std::string hellaswag = "";     // a file (hellaswag.h); empty where data are given
    // Of all of them. raw ids need a dtype, which others say themselves (RawType::automatic).
    DataFormat format = DataFormat::automatic;
    RawType dtype = RawType::automatic;
    std::string device = "auto";  // auto, cpu, cuda
    bool is_json = false;
};

struct Evaluation {
    double loss_sum = 0;  // nats, over the targets that are not ignored; z-loss left out
    int64_t targets = 0;
    std::optional<int64_t> bytes;  // of text that the targets stand for, where that is known
    double loss() const { return loss_sum / static_cast<double>(targets); }
    double perplexity() const;
    std::optional<double> bits_per_byte() const;
};

// "loss 3.41273 | perplexity 30.35 | bits/byte 1.23 | targets 864"
std::string evaluation_line(const Evaluation& evaluation);
// The same in full precision; perplexity beyond the range of a double is null, bits_per_byte too where it is unknown.
nlohmann::ordered_json evaluation_json(const Evaluation& evaluation);

// Prints one line on stdout, everything else on stderr: evaluation_line(), or hellaswag_line(). Returns the exit code;
// throws Error.
int evaluate(const EvaluateOptions& options);

}  // namespace ingot
