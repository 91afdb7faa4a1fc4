#include "src/base/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "kernels/core/check.h"
#include "kernels/core/measure.h"
#include "src/base/text.h"

namespace ingot {

namespace {

constexpr double kSecondsBetweenDrawings = 0.1, kSecondsBetweenLines = 10;

int terminal_width() {
    winsize size{};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

ProgressOutput ProgressOutput::to_stderr() {
    return {
        .is_terminal = isatty(STDERR_FILENO) == 1,
        .write =
            [](const std::string& text) {
                std::fwrite(text.data(), 1, text.size(), stderr);
                std::fflush(stderr);
            },
        .now = seconds_now,
        .width = terminal_width};
}

Progress::Progress(const std::string& what, int64_t total, std::string unit, ProgressOutput output)
    : what_(printable_line(what)),
      unit_(std::move(unit)),
      total_(total),
      output_(std::move(output)),
      begin_(output_.now()) {
    CHECK(total >= 0, "progress of ", total, " ", unit_);
    last_ = begin_;
    if (output_.is_terminal) draw(begin_);
}

void Progress::advance(int64_t count) {
    done_ += count;
    const double now = output_.now();
    if (now - last_ < (output_.is_terminal ? kSecondsBetweenDrawings : kSecondsBetweenLines)) return;
    last_ = now;
    if (output_.is_terminal) {
        draw(now);
    } else if (done_ < total_) {
        output_.write(what_ + ": " + status(now) + "\n");
        has_lines_ = true;
    }
}

void Progress::finish() {
    if (is_finished_) return;
    is_finished_ = true;
    if (output_.is_terminal) {
        erase();
    } else if (has_lines_) {
        output_.write(join(what_, ": ", done_ < total_ ? "stopped at " : "", done_, " ", unit_, " in ",
                           short_duration(output_.now() - begin_), "\n"));
    }
}

std::string Progress::status(double now) const {
    const double seconds = now - begin_, done = static_cast<double>(done_), total = static_cast<double>(total_);
    const int64_t percent = total_ > 0 ? std::min<int64_t>(100 * done_ / total_, 100) : 100;
    std::string text = join(percent, "% | ", done_, "/", total_, " ", unit_);
    if (done_ > 0 && seconds > 0)
        text += join(" | ", short_count(done / seconds), " ", unit_, "/s | eta ",
                     short_duration(std::max(total - done, 0.0) * seconds / done));
    return text;
}

void Progress::draw(double now) {
    // The last column stays free, since a full line would wrap and its first half could not be overwritten.
    const size_t room = static_cast<size_t>(std::max(output_.width() - 1, 1));
    const std::string text = status(now);
    std::string line = what_ + " ";
    constexpr size_t kBar = 16;  // fits 80 columns with any numbers, so that the bar does not come and go
    if (line.size() + kBar + 3 + text.size() <= room) {
        const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1;
        const size_t filled = static_cast<size_t>(std::min(share, 1.0) * static_cast<double>(kBar));
        line.append("[").append(filled, '#').append(kBar - filled, '.').append("] ");
    }
    line = (line + text).substr(0, room);
    const size_t columns = line.size();
    if (columns < drawn_) line.append(std::min(drawn_, room) - std::min(columns, room), ' ');
    drawn_ = columns;
    output_.write("\r" + line);
}

void Progress::erase() {
    std::string line = "\r";
    line.append(drawn_, ' ');
    output_.write(line + "\r");
    drawn_ = 0;
}

}  // namespace ingot
