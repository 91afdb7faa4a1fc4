// Learning-rate schedules.
#pragma once

#include "src/config/config.h"

namespace ingot {

// The learning rate of attempted step `step` (1 .. steps). Linear warm-up to `lr` over warmup_steps, then
//   constant: lr;   linear, cosine: down to lr * final_lr_fraction at the last step;
//   wsd: lr, then linearly down to lr * final_lr_fraction over the last decay_steps (Hu et al. 2024, MiniCPM).
double learning_rate(const ScheduleConfig& schedule, double lr, int64_t steps, int64_t step);

}  // namespace ingot
