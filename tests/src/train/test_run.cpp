// Schedules, the log and its lines, samples' text, checkpoint names.
// Seen to catch: warm-up that ends one step late; a torn log line that is kept.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <sstream>

#include "src/base/text.h"
#include "src/checkpoint/store.h"
#include "src/commands/generate.h"
#include "src/optimizer/schedule.h"
#include "src/train/log.h"
#include "tests/support/in_folder.h"

namespace ingot::test {

namespace {

namespace fs = std::filesystem;

class Log : public InFolder {
  protected:
    std::vector<std::string> lines() const {
        std::istringstream text(read("log.jsonl"));
        std::vector<std::string> lines;
        for (std::string line; std::getline(text, line);) lines.push_back(line);
        return lines;
    }
};
class Checkpoint : public InFolder {};

}  // namespace

TEST(Schedule, WarmsUpLinearlyAndReachesTheFullRate) {
    for (const ScheduleType type :
         {ScheduleType::constant, ScheduleType::linear, ScheduleType::cosine, ScheduleType::wsd}) {
        const ScheduleConfig schedule{.type = type, .warmup_steps = 10, .final_lr_fraction = 0.1, .decay_steps = 20};
        for (int64_t step = 1; step <= 10; ++step)
            EXPECT_DOUBLE_EQ(learning_rate(schedule, 2.0, 100, step), 0.2 * static_cast<double>(step));
    }
}

TEST(Schedule, EndsWhereItShould) {
    ScheduleConfig schedule{
        .type = ScheduleType::cosine, .warmup_steps = 10, .final_lr_fraction = 0.1, .decay_steps = 20};
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 60), 0.55, 1e-12);  // half way
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 110), 0.1, 1e-12);
    schedule.type = ScheduleType::linear;
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 60), 0.55, 1e-12);
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 35), 0.775, 1e-12);
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 110), 0.1, 1e-12);
    schedule.type = ScheduleType::constant;
    EXPECT_EQ(learning_rate(schedule, 1.0, 110, 110), 1.0);
    schedule.type = ScheduleType::wsd;
    EXPECT_EQ(learning_rate(schedule, 1.0, 110, 90), 1.0);
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 100), 0.55, 1e-12);
    EXPECT_NEAR(learning_rate(schedule, 1.0, 110, 110), 0.1, 1e-12);
}

TEST(Schedule, WithoutWarmupStartsAtTheFullRate) {
    const ScheduleConfig schedule{.type = ScheduleType::constant, .warmup_steps = 0};
    EXPECT_EQ(learning_rate(schedule, 3e-4, 1, 1), 3e-4);
}

TEST_F(Log, ReportsSurviveJson) {
    StepReport report{.step = 7,
                      .loss = 1.0 / 3,
                      .grad_norm = std::numeric_limits<double>::infinity(),
                      .lr = 3e-4,
                      .tokens = int64_t{1} << 40,
                      .skipped = true};
    const nlohmann::ordered_json object = nlohmann::ordered_json::parse(report_to_json(report).dump());
    EXPECT_EQ(object["grad_norm"], "inf");
    EXPECT_TRUE(object["val_loss"].is_null());
    EXPECT_TRUE(object["mfu"].is_null());
    const nlohmann::json read = object;
    const StepReport again = report_from_json(JsonFields(read, "manifest.json", "report", "check it"));
    EXPECT_EQ(again.loss, report.loss);  // shortest form that reads back as the same bits
    EXPECT_EQ(again.grad_norm, report.grad_norm);
    EXPECT_EQ(again.tokens, report.tokens);
    EXPECT_EQ(again.skipped, true);
    report.loss = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(report_to_json(report)["loss"], "nan");
    for (const char* const key : {"loss", "tokens", "memory_bytes", "skipped"})
        for (const nlohmann::json& value : {nlohmann::json("abc"), nlohmann::json(-1.5), nlohmann::json()}) {
            if (std::string(key) == "loss" && value.is_number()) continue;
            nlohmann::json changed = object;
            changed[key] = value;
            EXPECT_THROW(report_from_json(JsonFields(changed, "manifest.json", "report", "check it")), UserError)
                << key;
        }
}

TEST_F(Log, LineReadsWell) {
    StepReport report{.step = 1200,
                      .loss = 3.41273,
                      .grad_norm = 0.414,
                      .lr = 5.9e-4,
                      .val_loss = 3.44021,
                      .tokens_per_second = 612345,
                      .step_seconds = 1,
                      .memory_bytes = uint64_t{3} << 29};
    EXPECT_EQ(
        report_line(report, 19073),
        "step   1200/19073 | loss 3.4127 | val 3.4402 | norm 0.41 | lr 5.9e-04 | 612k tok/s | 1.50 GiB | eta 4h57m");
    report.mfu = 0.4512;
    EXPECT_NE(report_line(report, 19073).find("| 612k tok/s | 45.1% MFU | 1.50 GiB |"), std::string::npos);
    report.mfu.reset();
    report.val_loss.reset();
    report.tokens_per_second = 5712;
    report.skipped = true;
    EXPECT_EQ(report_line(report, 1300),
              "step   1200/1300 | loss 3.4127 | norm 0.41 | lr 5.9e-04 | 5.7k tok/s | 1.50 GiB | SKIPPED | eta 1m40s");
}

TEST_F(Log, IsCutBackToTheResumedStep) {
    const Folder folder(folder_);
    {
        RunLog log(folder, 0);
        for (int64_t step = 1; step <= 5; ++step) log.write({.step = step, .loss = 1.5});
    }
    EXPECT_EQ(lines().size(), 5u);
    append("log.jsonl", "{\"step\":6,\"lo");  // torn by a kill
    { RunLog log(folder, 9); }
    EXPECT_EQ(lines().size(), 5u);
    {
        RunLog log(folder, 3);
        log.write({.step = 4});
    }
    ASSERT_EQ(lines().size(), 4u);
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(nlohmann::json::parse(lines()[i])["step"], i + 1);
    EXPECT_FALSE(fs::exists(path("log.jsonl.tmp")));
    // Whole but for its newline: a kill came between the two; the line cannot be told from a torn number.
    append("log.jsonl", "{\"step\":1}");
    { RunLog log(folder, 9); }
    EXPECT_EQ(lines().size(), 4u);
}

TEST(Generate, PrintableKeepsTextAndShowsTheRest) {
    EXPECT_EQ(printable("a\tb\n"), "a\tb\n");
    EXPECT_EQ(printable("gr\xc3\xbc\xc3\x9f"), "gr\xc3\xbc\xc3\x9f");
    EXPECT_EQ(printable("\x1b[2J"), "\\x1b[2J");
    EXPECT_EQ(printable("\xc3("), "\\xc3(");
    EXPECT_EQ(printable(std::string("\0\xff", 2)), "\\x00\\xff");
    EXPECT_EQ(printable("\xe2\x82"), "\\xe2\\x82");
}

TEST_F(Checkpoint, ListsCommittedOnesOldestFirst) {
    EXPECT_TRUE(list_checkpoints(folder_).empty());
    for (const char* name : {"step-00000010", "step-00000002", "step-123456789", "step-00000011.tmp-1-2",
                             "step-00000011.tmp-removed-2", "step-00000011.tmp-mine", "other"})
        fs::create_directories(folder_ / "checkpoints" / name);
    write("checkpoints/step-00000099", "a file is no checkpoint");
    std::vector<std::string> names;
    for (const std::string& path : list_checkpoints(folder_)) names.push_back(fs::path(path).filename());
    EXPECT_EQ(names, (std::vector<std::string>{"step-00000002", "step-00000010", "step-123456789"}));
    Config config;
    config.run_dir = folder_;
    const RunFolder run(config);
    CheckpointStore(run).remove_unfinished();
    EXPECT_FALSE(fs::exists(folder_ / "checkpoints/step-00000011.tmp-1-2"));
    EXPECT_FALSE(fs::exists(folder_ / "checkpoints/step-00000011.tmp-removed-2"));
    EXPECT_TRUE(fs::exists(folder_ / "checkpoints/step-00000011.tmp-mine")) << "no run makes such a name";
    EXPECT_TRUE(fs::exists(folder_ / "checkpoints/step-00000010"));
    EXPECT_TRUE(fs::exists(folder_ / "checkpoints/other"));
}

}  // namespace ingot::test
