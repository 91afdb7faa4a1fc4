// What the bits of a run depend on besides its config.
//
// Seen to catch: the kernel of attention not recorded, or that of other heads; what a checkpoint lacks told as null.
#include "src/checkpoint/environment.h"

#include <gtest/gtest.h>

#include "src/base/text.h"

namespace ingot::test {
namespace {

Config config_with(const std::string& precision, const std::string& attention, int64_t head_dim) {
    return parse_config(R"({"model": {"n_layers": 1, "d_model": 64, "n_heads": 1, "context_length": 16,
                            "vocab_size": 100}, "data": {"train": ["x.bin"]},
                            "training": {"steps": 1, "batch_tokens": 16, "micro_batch_size": 1}})",
                        "test",
                        {"training.precision=" + precision, "training.attention=" + attention,
                         "model.head_dim=" + std::to_string(head_dim)});
}

// "auto" may be another kernel in another build, or on another GPU: a resumed run then says that its bits may differ.
TEST(Environment, TellsTheKernelOfAttention) {
    const Device planned = Device::planned_cuda();
    const auto kernel = [&](const char* precision, const char* attention, int64_t head_dim = 64) {
        return environment(planned, config_with(precision, attention, head_dim), 1).at("attention").get<std::string>();
    };
    EXPECT_EQ(kernel("bf16", "sm80"), name_of(AttentionKernel::sm80));
    EXPECT_EQ(kernel("bf16", "sm90"), name_of(AttentionKernel::sm90));
    EXPECT_EQ(kernel("bf16", "auto", 32), name_of(AttentionKernel::sm80));
    EXPECT_EQ(kernel("fp32", "auto"), name_of(AttentionKernel::simt));
    EXPECT_THROW(kernel("bf16", "sm90", 32), UserError);
    EXPECT_FALSE(environment(Device::cpu(), config_with("fp32", "auto", 64), 1).contains("attention"));

    const auto then = environment(planned, config_with("bf16", "sm80", 64), 1),
               now = environment(planned, config_with("bf16", "sm90", 64), 1);
    using Changes = std::vector<std::string>;
    EXPECT_EQ(environment_changes(then, then), Changes{});
    EXPECT_EQ(environment_changes(then, now), Changes{"attention was \"sm80\", is \"sm90\""});
    EXPECT_NE(environment_hash(then), environment_hash(now));

    // Checkpoints of before the kernel was recorded, and those of a GPU that a CPU goes on from.
    auto silent = now;
    silent.erase("attention");
    EXPECT_EQ(environment_changes(silent, now),
              Changes{"the checkpoint does not say what attention was, here it is \"sm90\""});
    EXPECT_EQ(environment_changes(now, silent), Changes{"attention was \"sm90\", here is none"});
    EXPECT_EQ(environment_changes(silent, silent), Changes{});

    // A file may name any key and any text.
    silent["\x1b[2J"] = std::string(5000, 'x') + "\u009b";
    const Changes hostile = environment_changes(silent, now);
    ASSERT_EQ(hostile.size(), 2u);
    for (const std::string& change : hostile) {
        EXPECT_EQ(change, printable_line(change));
        EXPECT_LT(change.size(), 300u);
    }
}

}  // namespace
}  // namespace ingot::test
