// The report of a finished step: a line of log.jsonl, and a part of the manifest.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "src/base/json_text.h"

namespace ingot {

struct StepReport {
    int64_t step = 0;  // 1 .. steps
    double loss = 0, grad_norm = 0, lr = 0;
    std::optional<double> val_loss = std::nullopt, hellaswag = std::nullopt;
    int64_t tokens = 0;                                                     // consumed since the run began
    double tokens_per_second = 0, step_seconds = 0, data_wait_seconds = 0;  // the slowest rank's
    std::optional<double> fastest_rank_seconds = std::nullopt;              // where there are several ranks
    std::optional<double> mfu = std::nullopt;  // share of the device's peak; none where no peak is known
    uint64_t memory_bytes = 0;
    double loss_scale = 1;
    bool skipped = false;
};

// Returns one JSON object; floats in shortest round-trip form, non-finite ones as strings, null where a value does not
// apply.
nlohmann::ordered_json report_to_json(const StepReport& report);
// Reads what a checkpoint keeps of a report: all but the values that a resumed run finds anew (val_loss, hellaswag,
// mfu). Throws UserError for a value that cannot be.
StepReport report_from_json(const JsonFields& fields);

}  // namespace ingot
