// The line that a step prints, and its line in log.jsonl.
#pragma once

#include <cstdint>
#include <string>

#include "src/base/folder.h"
#include "src/checkpoint/step_report.h"

namespace ingot {

// "step   1200/19073 | loss 3.4127 | val 3.4402 | hellaswag 0.2650 | norm 0.41 | lr 5.9e-04 | 612k tok/s | 45.1% MFU |
// 71.2 GiB | eta 4h31m"
std::string report_line(const StepReport& report, int64_t steps);

// runs/NAME/log.jsonl: one object per optimizer step.
class RunLog {
  public:
    // Opens the file in `folder`, which outlives the log, for appending, after cutting off all lines of steps above
    // `last_step`, and a torn last line. A file with lines that no run wrote stays under another name, said on stderr;
    // where nothing in it is a run's, it is refused. Throws Error naming the file, also if it is a link, a FIFO or a
    // device.
    RunLog(const Folder& folder, int64_t last_step);
    RunLog(const RunLog&) = delete;
    RunLog& operator=(const RunLog&) = delete;
    // Returns whether the line of `last_step` was there.
    bool has_last_step() const { return has_last_step_; }
    // A line that cannot be written (a full disk) costs that line and a warning, not the run. A file that was removed
    // under it is begun anew.
    void write(const StepReport& report);

  private:
    static constexpr const char* kName = "log.jsonl";
    void cut_back(int64_t last_step);
    void open();
    const Folder& folder_;
    const std::string path_;  // for messages
    bool has_last_step_ = false;
    Descriptor file_;
};

}  // namespace ingot
