#include "src/checkpoint/step_report.h"

#include <cmath>
#include <limits>

namespace ingot {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

ordered_json number(double value) {
    if (std::isfinite(value)) return value;
    return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

// Reads what number() wrote.
double parse_number(const JsonFields& fields, const char* key) {
    const json& value = fields.at(key);
    if (value.is_number()) return value.get<double>();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    for (const double special : {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity})
        if (value.is_string() && value.get_ref<const std::string&>() == number(special).get<std::string>())
            return special;
    fields.refuse(key, "a number, \"nan\", \"inf\" or \"-inf\"");
}

}  // namespace

ordered_json report_to_json(const StepReport& report) {
    ordered_json object;
    object["step"] = report.step;
    object["loss"] = number(report.loss);
    object["val_loss"] = report.val_loss ? number(*report.val_loss) : ordered_json(nullptr);
    object["hellaswag"] = report.hellaswag ? number(*report.hellaswag) : ordered_json(nullptr);
    object["grad_norm"] = number(report.grad_norm);
    object["lr"] = number(report.lr);
    object["tokens"] = report.tokens;
    object["tokens_per_second"] = number(report.tokens_per_second);
    object["mfu"] = report.mfu ? number(*report.mfu) : ordered_json(nullptr);
    object["memory_bytes"] = report.memory_bytes;
    object["step_seconds"] = number(report.step_seconds);
    if (report.fastest_rank_seconds) object["fastest_rank_seconds"] = number(*report.fastest_rank_seconds);
    object["data_wait_seconds"] = number(report.data_wait_seconds);
    object["loss_scale"] = number(report.loss_scale);
    object["skipped"] = report.skipped;
    return object;
}

StepReport report_from_json(const JsonFields& fields) {
    constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
    StepReport report;
    report.step = fields.integer("step", 0, kLargest);
    report.loss = parse_number(fields, "loss");
    report.grad_norm = parse_number(fields, "grad_norm");
    report.lr = parse_number(fields, "lr");
    report.tokens = fields.integer("tokens", 0, kLargest);
    report.tokens_per_second = parse_number(fields, "tokens_per_second");
    report.step_seconds = parse_number(fields, "step_seconds");
    report.data_wait_seconds = parse_number(fields, "data_wait_seconds");
    report.memory_bytes = static_cast<uint64_t>(fields.integer("memory_bytes", 0, kLargest));
    report.loss_scale = parse_number(fields, "loss_scale");
    report.skipped = fields.boolean("skipped");
    return report;
}

}  // namespace ingot
