// What a run does, in words.
#pragma once

#include <string>

#include "src/config/config.h"
#include "src/train/training_plan.h"

namespace ingot {

// What is really active, one line each: model, FLOPs, attention, optimizer, step, checkpoints, device. `config` is
// resolved.
std::string describe_features(const Config& config, const TrainingPlan& plan);

}  // namespace ingot
