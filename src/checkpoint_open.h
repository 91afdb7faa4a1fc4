// A checkpoint as a reader sees it: its config, and its weights for a model planned from that.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "src/config.h"
#include "src/model.h"
#include "src/safetensors.h"

namespace ingot {

struct Checkpoint {
    std::string folder;
    int64_t step;
    nlohmann::ordered_json manifest;
    Config config;
    // Mapped, so that they can be read after a training run that goes on has removed the folder.
    std::shared_ptr<const SafetensorsFile> weights = nullptr;
};

// A step folder, or a run folder: its newest checkpoint that verifies. Takes no lock: a run may train there. Throws
// UserError.
Checkpoint open_checkpoint(const std::string& folder);

// Into a model planned from checkpoint.config.model.
void load_weights(const Checkpoint& checkpoint, const Model& model);

}  // namespace ingot
