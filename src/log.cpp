#include "src/log.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/core/device.h"
#include "src/files.h"
#include "src/text.h"

namespace ingot {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

ordered_json number(double value) {
    if (std::isfinite(value)) return value;
    return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

double parse_number(const ordered_json& value) {
    return value.is_string() ? std::stod(value.get<std::string>()) : value.get<double>();
}

}  // namespace

ordered_json report_to_json(const StepReport& report) {
    ordered_json object;
    object["step"] = report.step;
    object["loss"] = number(report.loss);
    object["val_loss"] = report.val_loss ? number(*report.val_loss) : ordered_json(nullptr);
    object["grad_norm"] = number(report.grad_norm);
    object["lr"] = number(report.lr);
    object["tokens"] = report.tokens;
    object["tokens_per_second"] = number(report.tokens_per_second);
    object["mfu"] = report.mfu ? number(*report.mfu) : ordered_json(nullptr);
    object["memory_bytes"] = report.memory_bytes;
    object["step_seconds"] = number(report.step_seconds);
    object["data_wait_seconds"] = number(report.data_wait_seconds);
    object["loss_scale"] = number(report.loss_scale);
    object["skipped"] = report.skipped;
    return object;
}

StepReport report_from_json(const ordered_json& object) {
    StepReport report;
    report.step = object.at("step");
    report.loss = parse_number(object.at("loss"));
    report.grad_norm = parse_number(object.at("grad_norm"));
    report.lr = parse_number(object.at("lr"));
    report.tokens = object.at("tokens");
    report.tokens_per_second = parse_number(object.at("tokens_per_second"));
    report.step_seconds = parse_number(object.at("step_seconds"));
    report.data_wait_seconds = parse_number(object.at("data_wait_seconds"));
    report.memory_bytes = object.at("memory_bytes");
    report.loss_scale = parse_number(object.at("loss_scale"));
    report.skipped = object.at("skipped");
    return report;
}

std::string report_line(const StepReport& report, int64_t steps) {
    char text[256], val[32] = "", mfu[32] = "", skipped[16] = "";
    if (report.val_loss) std::snprintf(val, sizeof val, " | val %.4f", *report.val_loss);
    if (report.mfu) std::snprintf(mfu, sizeof mfu, " | %.1f%% MFU", 100 * *report.mfu);
    if (report.skipped) std::snprintf(skipped, sizeof skipped, " | SKIPPED");
    const double remaining = static_cast<double>(steps - report.step) * report.step_seconds;
    std::snprintf(text, sizeof text, "step %6ld/%ld | loss %.4f%s | norm %.2f | lr %.1e | %s tok/s%s | %s%s | eta %s",
                  static_cast<long>(report.step), static_cast<long>(steps), report.loss, val, report.grad_norm,
                  report.lr, short_count(report.tokens_per_second).c_str(), mfu,
                  format_bytes(report.memory_bytes).c_str(), skipped, short_duration(remaining).c_str());
    return text;
}

RunLog::RunLog(const std::string& path, int64_t last_step) : path_(path) {
    // What is kept is written anew and renamed, so that a kill at any moment leaves a whole file.
    std::string kept;
    std::ifstream old(path_);
    bool is_cut = false;
    for (std::string line; std::getline(old, line);) {
        const json object = json::parse(line, nullptr, false);
        const bool is_whole = !old.eof() && object.is_object() && object.contains("step") &&
                              object["step"].is_number_integer() && object["step"].get<int64_t>() <= last_step;
        if (is_whole) {
            kept += line + "\n";
            has_last_step_ = has_last_step_ || object["step"] == last_step;
        } else {
            is_cut = true;
        }
    }
    old.close();
    if (is_cut) {
        const std::string temporary = path_ + ".tmp";
        OutputFile file(temporary);
        file.write(kept.data(), kept.size());
        file.sync_and_close();
        std::filesystem::rename(temporary, path_);
    }
    open();
    REQUIRE(file_ != nullptr, "cannot open ", path_, ": ", std::strerror(errno));
}

RunLog::~RunLog() {
    if (file_ != nullptr) std::fclose(file_);
}

void RunLog::open() {
    if (file_ != nullptr) std::fclose(file_);
    file_ = std::fopen(path_.c_str(), "ae");
    // Unbuffered: what a full disk refuses must not come back to haunt a later line.
    if (file_ != nullptr) std::setvbuf(file_, nullptr, _IONBF, 0);
}

void RunLog::write(const StepReport& report) {
    // Two calls a step that never wait for a disk: a folder that was moved away must not take the log with it unseen.
    struct stat info {
    }, there{};
    const bool is_there = file_ != nullptr && fstat(fileno(file_), &info) == 0 && stat(path_.c_str(), &there) == 0 &&
                          info.st_ino == there.st_ino && info.st_dev == there.st_dev;
    if (!is_there) {
        std::fprintf(stderr, "WARNING: %s was removed: a new one begins at step %ld\n", path_.c_str(),
                     static_cast<long>(report.step));
        std::error_code ignored;
        std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
        open();
        info.st_size = 0;
    }
    const std::string line = report_to_json(report).dump() + "\n";
    if (file_ == nullptr || std::fwrite(line.data(), 1, line.size(), file_) != line.size()) {
        std::fprintf(stderr, "WARNING: the line of step %ld cannot be written to %s: %s\n",
                     static_cast<long>(report.step), path_.c_str(), std::strerror(errno));
        if (file_ == nullptr) return;
        std::clearerr(file_);
        // Half a line would spoil the next one.
        if (ftruncate(fileno(file_), info.st_size) != 0) std::fprintf(stderr, "WARNING: %s ends torn\n", path_.c_str());
    }
}

}  // namespace ingot
