#include "src/config/notes.h"

#include "kernels/core/check.h"
#include "src/config/fields.h"

namespace ingot {

std::vector<std::string> settings_without_effect(const Config& c, bool is_cpu) {
    const std::string position = join("model.position is \"", name_of_choice(c.model.position), "\"");
    const std::string schedule = join("schedule.type is \"", name_of_choice(c.schedule.type), "\"");
    const bool has_scaling = c.model.rope_scaling.type != RopeScalingType::none;
    const char* const scaling = "model.rope_scaling.type is \"none\"";
    const char* const no_val = "data.val names nothing to evaluate on";
    const char* const no_samples = "sample.every is 0";
    const char* const on_cpu = "the CPU trains";
    struct Rule {
        const char* path;
        bool has_effect;
        std::string why_not;
    };
    const Rule rules[] = {
        {"model.rope_theta", c.model.position == Position::rope, position},
        {"model.rope_scaling.factor", has_scaling, scaling},
        {"model.rope_scaling.low_freq_factor", has_scaling, scaling},
        {"model.rope_scaling.high_freq_factor", has_scaling, scaling},
        {"model.rope_scaling.original_context_length", has_scaling, scaling},
        {"model.init_std", c.model.init_from.empty(), "the weights come from model.init_from"},
        {"data.eot", c.data.eot_token.has_value(), "there is no data.eot_token, so that every shard is one document"},
        {"training.tune", !is_cpu, on_cpu},
        {"training.deterministic", !is_cpu, join(on_cpu, ", where all sums have one order")},
        {"training.max_skipped_steps", c.training.on_nonfinite == NonFinite::skip, "training.on_nonfinite is \"stop\""},
        {"schedule.decay_steps", c.schedule.type == ScheduleType::wsd, schedule},
        {"schedule.final_lr_fraction", c.schedule.type != ScheduleType::constant, schedule},
        {"eval.every", !c.data.val.empty() || !c.eval.hellaswag.empty(), no_val},
        {"eval.tokens", !c.data.val.empty(), no_val},
        {"sample.prompts", c.sample.every > 0, no_samples},
        {"sample.tokens", c.sample.every > 0, no_samples},
        {"sample.temperature", c.sample.every > 0, no_samples},
        {"checkpoint.host_memory", c.checkpoint.async, "checkpoint.async is false"},
    };
    std::vector<std::string> notes;
    for (const Rule& rule : rules)
        if (!rule.has_effect && c.chosen.count(rule.path) == 1)
            notes.push_back(join(rule.path, " has no effect: ", rule.why_not));
    return notes;
}

}  // namespace ingot
