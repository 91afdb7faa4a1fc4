#include "src/train/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/device.h"
#include "src/base/text.h"

namespace ingot {

using nlohmann::json;

namespace {

// A line of 300 bytes for each of ten million steps fits twice.
constexpr size_t kMaxLogBytes = size_t{1} << 33;

}  // namespace

std::string report_line(const StepReport& report, int64_t steps) {
    char text[256], val[32] = "", hellaswag[32] = "", mfu[32] = "", skipped[16] = "";
    if (report.val_loss) std::snprintf(val, sizeof val, " | val %.4f", *report.val_loss);
    if (report.hellaswag) std::snprintf(hellaswag, sizeof hellaswag, " | hellaswag %.4f", *report.hellaswag);
    if (report.mfu) std::snprintf(mfu, sizeof mfu, " | %.1f%% MFU", 100 * *report.mfu);
    if (report.skipped) std::snprintf(skipped, sizeof skipped, " | SKIPPED");
    const double remaining = static_cast<double>(steps - report.step) * report.step_seconds;
    std::snprintf(text, sizeof text, "step %6ld/%ld | loss %.4f%s%s | norm %.2f | lr %.1e | %s tok/s%s | %s%s | eta %s",
                  static_cast<long>(report.step), static_cast<long>(steps), report.loss, val, hellaswag,
                  report.grad_norm, report.lr, short_count(report.tokens_per_second).c_str(), mfu,
                  format_bytes(report.memory_bytes).c_str(), skipped, short_duration(remaining).c_str());
    return text;
}

RunLog::RunLog(const Folder& folder, int64_t last_step) : folder_(folder), path_(folder.path_of(kName)) {
    if (folder_.has(kName)) cut_back(last_step);
    open();
    REQUIRE(file_.get() >= 0, "cannot open ", path_, ": ", std::strerror(errno),
            ": move it away, or set log.jsonl to false");
}

// Writes the lines that stay into a new file and renames it, so that a kill at any moment leaves a whole file.
void RunLog::cut_back(int64_t last_step) {
    const Descriptor old = folder_.open(kName, O_RDONLY);
    REQUIRE(old.get() >= 0, "cannot open ", path_, ": ",
            errno == EINVAL ? "it is no regular file" : std::strerror(errno), ": move it away");
    struct stat info {};
    REQUIRE(fstat(old.get(), &info) == 0, "cannot look at ", path_, ": ", std::strerror(errno));
    const std::string text = read_file(old, path_, kMaxLogBytes);
    std::string kept;
    int64_t num_ours = 0, num_foreign = 0;
    for (size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
        const json object = json::parse(text.begin() + static_cast<int64_t>(begin),
                                        text.begin() + static_cast<int64_t>(end), nullptr, false);
        const bool is_ours = object.is_object() && object.contains("step") && object["step"].is_number_integer();
        (is_ours ? num_ours : num_foreign) += 1;
        if (!is_ours || object["step"].get<int64_t>() > last_step) continue;
        kept.append(text, begin, end + 1 - begin);
        has_last_step_ = has_last_step_ || object["step"] == last_step;
    }
    REQUIRE(num_ours > 0 || num_foreign == 0, path_,
            " was not written by a run, and a run writes a file of this name into its run_dir: move it, or set another "
            "run_dir");
    // A copy that shares the file (cp -l) keeps what it has.
    if (kept.size() == text.size() && info.st_nlink == 1) return;
    if (num_foreign > 0) {
        const std::string aside =
            join(kName, ".set-aside-", std::chrono::system_clock::now().time_since_epoch().count());
        folder_.rename(kName, aside);
        std::fprintf(stderr, "WARNING: %s has lines that no run wrote: it stays as %s\n", path_.c_str(),
                     folder_.path_of(aside).c_str());
    }
    const std::string temporary = std::string(kName) + ".tmp";
    OutputFile file = folder_.create(temporary);
    file.write(kept.data(), kept.size());
    file.sync_and_close();
    folder_.rename(temporary, kName);
}

void RunLog::open() {
    file_ = folder_.open(kName, O_WRONLY | O_APPEND | O_CREAT);
}

void RunLog::write(const StepReport& report) {
    // Two calls a step that never wait for a disk: a log that was moved away must not take the lines with it unseen.
    struct stat info {
    }, there{};
    const bool is_there = file_.get() >= 0 && fstat(file_.get(), &info) == 0 &&
                          fstatat(folder_.descriptor(), kName, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
                          info.st_ino == there.st_ino && info.st_dev == there.st_dev;
    if (!is_there) {
        std::fprintf(stderr, "WARNING: %s was removed: a new one begins at step %ld\n", path_.c_str(),
                     static_cast<long>(report.step));
        open();
        info.st_size = 0;
        if (file_.get() >= 0) fstat(file_.get(), &info);
    }
    const std::string line = report_to_json(report).dump() + "\n";
    const ssize_t written = file_.get() < 0 ? -1 : ::write(file_.get(), line.data(), line.size());
    if (written == static_cast<ssize_t>(line.size())) return;
    std::fprintf(stderr, "WARNING: the line of step %ld cannot be written to %s: %s\n", static_cast<long>(report.step),
                 path_.c_str(), std::strerror(written < 0 ? errno : ENOSPC));
    // Half a line would spoil the next one.
    if (written > 0 && ftruncate(file_.get(), info.st_size) != 0)
        std::fprintf(stderr, "WARNING: %s ends torn\n", path_.c_str());
}

}  // namespace ingot
