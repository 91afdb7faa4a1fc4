// `./train eval` measures the loss of a checkpoint on token shards, or its accuracy on HellaSwag.
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
    std::vector<std::string> data;  // paths or globs; empty if hellaswag is given
    std::string hellaswag = "";     // a file (hellaswag.h); empty if data are given
    // Both hold for all files of `data`. Raw ids need a dtype; other formats name it themselves (RawType::automatic).
    DataFormat format = DataFormat::automatic;
    RawType dtype = RawType::automatic;
    std::string device = "auto";  // auto, cpu, cuda
    bool is_json = false;
};

struct Evaluation {
    double loss_sum = 0;  // nats, summed over the targets that are not ignored, without z-loss
    int64_t targets = 0;
    std::optional<int64_t> bytes;  // of the targets' text, where it is known
    double loss() const { return loss_sum / static_cast<double>(targets); }
    double perplexity() const;
    std::optional<double> bits_per_byte() const;
};

// Returns "loss 3.41273 | perplexity 30.35 | bits/byte 1.23 | targets 864".
std::string evaluation_line(const Evaluation& evaluation);
// Returns the same in full precision. perplexity is null beyond the range of a double, and bits_per_byte where
// unknown.
nlohmann::ordered_json evaluation_json(const Evaluation& evaluation);

// Prints evaluation_line() or hellaswag_line() on stdout, and everything else on stderr. Returns the exit code; throws
// Error.
int evaluate(const EvaluateOptions& options);

}  // namespace ingot
