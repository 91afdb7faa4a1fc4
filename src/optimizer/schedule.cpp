#include "src/optimizer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ingot {

double learning_rate(const ScheduleConfig& schedule, double lr, int64_t steps, int64_t step) {
    const int64_t warmup = *schedule.warmup_steps;
    if (step <= warmup) return lr * static_cast<double>(step) / static_cast<double>(warmup);
    const double low = schedule.final_lr_fraction;
    // The progress from `begin` (0) to the last step (1).
    const auto progress = [&](int64_t begin) {
        return static_cast<double>(step - begin) / static_cast<double>(std::max<int64_t>(1, steps - begin));
    };
    switch (schedule.type) {
        case ScheduleType::constant:
            return lr;
        case ScheduleType::linear:
            return lr * (1 - (1 - low) * progress(warmup));
        case ScheduleType::cosine:
            return lr * (low + (1 - low) * 0.5 * (1 + std::cos(std::numbers::pi * progress(warmup))));
        case ScheduleType::wsd: {
            const int64_t begin = steps - *schedule.decay_steps;
            return step <= begin ? lr : lr * (1 - (1 - low) * progress(begin));
        }
    }
    return lr;
}

}  // namespace ingot
