// Manifests that somebody changed and sealed anew: a run that goes on from one, and an evaluation of it, end with an
// error that the user can read, or do what they would have done without the change. INGOT_LONG=1 tries 2,000 of them;
// under AddressSanitizer and UndefinedBehaviorSanitizer nothing is read or computed outside its bounds either.
//
// Seen to catch: an environment that is no object, a bookmark of group -1, a report that is "abc", a step that is not
// the folder's.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <random>
#include <sstream>

#include "src/base/text.h"
#include "src/checkpoint/checkpoint.h"
#include "src/commands/evaluate.h"
#include "src/data/rows.h"
#include "src/train/train.h"
#include "tests/src/data/token_files.h"
#include "tests/support/words.h"

namespace ingot {
namespace {

using nlohmann::ordered_json;
using Pointer = ordered_json::json_pointer;
namespace fs = std::filesystem;

constexpr const char* kRaw = "@raw@";  // stands for text that no JSON library would write

// Appends the places of all values within, parents first.
void collect(const ordered_json& value, const Pointer& at, std::vector<Pointer>* out) {
    if (!at.empty()) out->push_back(at);
    if (value.is_object())
        for (const auto& [key, inner] : value.items()) collect(inner, at / key, out);
    if (value.is_array())
        for (size_t i = 0; i < value.size(); ++i) collect(value[i], at / i, out);
}

std::string nested(size_t depth, const std::string& open, const std::string& close) {
    std::string text;
    for (size_t i = 0; i < depth; ++i) text += open;
    text += "1";
    for (size_t i = 0; i < depth; ++i) text += close;
    return text;
}

// Returns texts that may stand in a value's place.
std::vector<std::string> replacements() {
    std::vector<std::string> texts = test::words(
        "null|true|false|0|1|-1|2|3|4|5|7|1000|-0.0|1.5|0.5|1e308|1e-320|1e999|2147483647|"
        "2147483648|-2147483649|4503599627370496|1152921504606846976|9223372036854775807|"
        "9223372036854775808|18446744073709551615|18446744073709551616|-9223372036854775808|"
        R"(-9223372036854775809|[]|{}|[[]]|[0]|{"a": 1}|{"": {}}|""|"abc"|"nan"|"inf"|"1"|"."|)"
        R"(".."|"../../../etc/passwd"|"/dev/zero"|"a/b"|"\u0000"|"\u001b[2J\u001b]0;x\u0007"|)"
        R"("\u009b31m"|"\u2028line"|"\u202egnp"|"\n\r\t"|"\ud800"|)"
        "\"\xff\"|"
        R"(NaN|Infinity|nul||1,|"open)",
        '|');
    texts.push_back("\"" + std::string(200'000, 'x') + "\"");
    texts.push_back("1" + std::string(400, '0'));
    texts.push_back(nested(100, "[", "]"));
    texts.push_back(nested(200'000, "[", "]"));
    texts.push_back(nested(200'000, "{\"a\":", "}"));
    return texts;
}

class HostileManifest : public TokenFiles {
  protected:
    void SetUp() override {
        std::vector<int64_t> ids;
        for (int64_t i = 0; i < 3000; ++i) ids.push_back(i % 37 == 0 ? 256 : i * 7 % 256);
        write("train.bin", llmc(ids));
        write("other.bin", llmc({ids.rbegin(), ids.rend()}));
        write("val.bin", llmc({ids.begin(), ids.begin() + 200}));
    }

    // A run of three steps, whose checkpoint of step 2 is the newest.
    void begin(const std::string& data) {
        config_ = write("config.json", R"({"model": {"n_layers": 1, "d_model": 8, "n_heads": 1, "context_length": 16,
            "vocab_size": 257}, "data": {"eot_token": 256, "tokenizer": "bytes", "val": [")" +
                                           path("val.bin") + R"("], )" + data + R"(}, "run_dir": ")" + path("run") +
                                           R"(", "training":
            {"steps": 3, "batch_tokens": 32, "micro_batch_size": 1, "device": "cpu"}, "checkpoint": {"every": 2}})");
        ASSERT_EQ(train("none"), "");
        right_loss_ = last_loss();
        ASSERT_NE(right_loss_, "");
        fs::remove_all(path("run/checkpoints/step-00000003"));
        fs::copy(path("run"), path("kept"), fs::copy_options::recursive);
        manifest_ = ordered_json::parse(read("run/checkpoints/step-00000002/manifest.json"));
        manifest_.erase("sha256");
    }

    // The run as it was, with this manifest.
    void put(const std::string& manifest) {
        fs::remove_all(path("run"));
        fs::copy(path("kept"), path("run"), fs::copy_options::recursive);
        const std::string body = manifest.substr(0, manifest.rfind('}') - 1) + ",\n  ";
        write("run/checkpoints/step-00000002/manifest.json",
              body + "\"sha256\": \"" + sha256(body.data(), body.size()) + "\"\n}\n");
    }

    // Returns the error of a command, or an empty string. Whatever it prints must be fit for a terminal.
    std::string outcome(const std::function<int()>& command) {
        std::string error;
        testing::internal::CaptureStdout();
        testing::internal::CaptureStderr();
        try {
            EXPECT_EQ(command(), 0);
        } catch (const UserError& fault) {
            error = fault.what();
            EXPECT_NE(error, "");
        } catch (const std::exception& fault) {
            ADD_FAILURE() << "no error of the user's: " << excerpt(fault.what(), 500);
            error = "fault";
        }
        for (const std::string& text :
             {testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()}) {
            EXPECT_EQ(text, printable(text));
            std::istringstream lines(text);
            for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), kLongestMessage + 100);
        }
        return error;
    }
    std::string train(const std::string& resume) {
        TrainOptions options;
        options.config_file = config_;
        options.resume = resume;
        return outcome([&] { return ingot::train(options); });
    }
    std::string evaluate() {
        return outcome([&] {
            return ingot::evaluate(
                {.checkpoint = path("run/checkpoints/step-00000002"), .data = {path("val.bin")}, .device = "cpu"});
        });
    }
    // Returns the losses of step 3 as the log has them, to the last bit.
    std::string last_loss() const {
        std::ifstream log(path("run/log.jsonl"));
        std::string loss;
        for (std::string line; std::getline(log, line);) {
            const ordered_json object = ordered_json::parse(line);
            if (object["step"] == 3) loss = object["loss"].dump() + " " + object["val_loss"].dump();
        }
        return loss;
    }

    // Runs both commands on one changed manifest.
    void try_one(const std::string& manifest, const std::string& what, bool may_differ) {
        SCOPED_TRACE(excerpt(what, 200));
        put(manifest);
        const std::string evaluated = evaluate();
        const std::string trained = train("auto");
        num_refused_ += trained.empty() ? 0 : 1;
        num_tried_ += 1;
        if (!trained.empty()) return;
        // An evaluation reads less: it may do what training refuses, but not the other way round.
        EXPECT_EQ(evaluated, "");
        if (!may_differ) {
            EXPECT_EQ(last_loss(), right_loss_);
        }
    }

    void try_random(int count, uint64_t seed) {
        std::mt19937_64 random(seed);
        const auto below = [&](size_t bound) { return static_cast<size_t>(random() % bound); };
        std::vector<Pointer> places;
        collect(manifest_, Pointer(), &places);
        const std::vector<std::string> texts = replacements();
        for (int i = 0; i < count; ++i) {
            ordered_json changed = manifest_;
            const Pointer place = places[below(places.size())];
            std::string what = place.to_string(), raw;
            const Pointer other = places[below(places.size())];
            switch (below(8)) {
                case 0:  // left out
                    what += " is left out";
                    if (changed[place.parent_pointer()].is_array())
                        changed[place.parent_pointer()].erase(std::stoul(place.back()));
                    else
                        changed[place.parent_pointer()].erase(place.back());
                    break;
                case 1: {  // swapped with another
                    what += " swapped with " + other.to_string();
                    const ordered_json here = manifest_[place], there = manifest_[other];
                    changed[place] = there;
                    if (changed.contains(other)) changed[other] = here;
                    break;
                }
                case 2:  // a neighbour
                    if (changed[place].is_number_integer()) {
                        const int64_t by = below(2) == 0 ? 1 : -1;
                        what += join(" moved by ", by);
                        changed[place] = changed[place].get<int64_t>() + by;
                        break;
                    }
                    [[fallthrough]];
                default:  // another value
                    raw = texts[below(texts.size())];
                    what += " is " + raw.substr(0, 100);
                    changed[place] = kRaw;
                    break;
                case 3: {  // there twice
                    ordered_json& parent = changed[place.parent_pointer()];
                    if (!parent.is_object()) break;
                    what += " is there twice";
                    raw = "1, " + ordered_json(place.back()).dump() + ": 1";
                    changed[place] = kRaw;
                    break;
                }
            }
            std::string text = changed.dump(2);
            const std::string mark = join("\"", kRaw, "\"");
            if (const size_t at = text.find(mark); at != std::string::npos) text.replace(at, mark.size(), raw);
            // How often Adam was applied says how it corrects its means: another number is another run.
            const bool may_differ = what.find("/step_state") != std::string::npos;
            try_one(text, what, may_differ);
            if (HasFailure()) FAIL() << "change " << i << " of seed " << seed << ": " << excerpt(what, 200);
        }
    }

    static int count() {
        const char* const is_long = std::getenv("INGOT_LONG");
        return is_long != nullptr && std::string(is_long) == "1" ? 700 : 40;
    }

    std::string config_, right_loss_;
    ordered_json manifest_;
    int num_tried_ = 0, num_refused_ = 0;
};

TEST_F(HostileManifest, OfAStream) {
    begin(R"("train": [")" + path("train.bin") + R"("])");
    try_random(count(), 1);
    EXPECT_GT(num_refused_, num_tried_ / 3);
    EXPECT_LT(num_refused_, num_tried_) << "some changes change nothing";
}

TEST_F(HostileManifest, OfBestFit) {
    begin(R"("packing": "best_fit", "train": [")" + path("train.bin") + R"("])");
    try_random(count(), 2);
    EXPECT_GT(num_refused_, num_tried_ / 3);
}

TEST_F(HostileManifest, OfABlend) {
    begin(R"("train": [{"path": ")" + path("train.bin") + R"(", "weight": 1}, {"path": ")" + path("other.bin") +
          R"(", "weight": 2}])");
    try_random(count(), 3);
    EXPECT_GT(num_refused_, num_tried_ / 3);
}

// The ones that were found, each of which crashed, hung or trained to nonsense.
TEST_F(HostileManifest, Known) {
    begin(R"("packing": "best_fit", "train": [")" + path("train.bin") + R"("])");
    const std::vector<std::pair<std::string, std::string>> known = {
        {"/environment", "3"},
        {"/step", "-1"},
        {"/step", "9223372036854775807"},
        {"/step", "1"},
        {"/rows_consumed", "-1"},
        {"/report/loss", "\"abc\""},
        {"/data/first_row", "-1"},
        {"/data/first_row", "1152921504606846976"},
        {"/data/datasets/0/first_row", "1152921504606846976"},
        {"/data/datasets/0/next_row", "1152921504606846976"},
        {"/data/datasets/0/bookmark/group", "-1"},
        {"/step_state/updates_applied", "9223372036854775807"},
        {"/step_state/good_steps", "2147483647"},
        {"/files/0/bytes", "9223372036854775808"},
        {"/files", "[]"},
    };
    for (const auto& [place, raw] : known) {
        ordered_json changed = manifest_;
        changed[Pointer(place)] = ordered_json::parse(raw);
        put(changed.dump(2));
        EXPECT_NE(train("auto"), "") << place << " " << raw;
        EXPECT_TRUE(fs::exists(path("run/checkpoints/step-00000002"))) << "nothing is set aside";
    }
    // Bookmarks only make it quicker to find a row, and are not needed.
    for (const char* const raw : {"0", "1", "4"}) {
        ordered_json changed = manifest_;
        changed[Pointer("/data/datasets/0/bookmark/group")] = ordered_json::parse(raw);
        try_one(changed.dump(2), raw, false);
    }
}

// A copy may have any name but that of another step.
TEST_F(HostileManifest, FoldersAreOfTheirOwnStep) {
    begin(R"("train": [")" + path("train.bin") + R"("])");
    const auto copy_to = [&](const std::string& name) {
        fs::copy(path("kept/checkpoints/step-00000002"), path(name), fs::copy_options::recursive);
        return path(name);
    };
    EXPECT_EQ(open_checkpoint(copy_to("best")).manifest.step, 2);
    EXPECT_EQ(open_checkpoint(path("best/")).manifest.step, 2);
    const std::string other = copy_to("step-00000007");
    EXPECT_THROW(open_checkpoint(other), DamagedCheckpoint);
    // In the run it is passed over, and not taken for the newest.
    fs::remove_all(path("run"));
    fs::copy(path("kept"), path("run"), fs::copy_options::recursive);
    fs::copy(other, path("run/checkpoints/step-90000000"), fs::copy_options::recursive);
    EXPECT_EQ(train("auto"), "");
    EXPECT_EQ(last_loss(), right_loss_);
}

}  // namespace
}  // namespace ingot
