// How a run's steps connect the ranks. Seen to catch: ranks that stay connected while the memory that they share is
// freed, a rank that waits for the others while an error ends it.
#include "src/train/step_runner.h"

#include <gtest/gtest.h>

#include <string>

#include "src/bench/synthetic_run.h"
#include "src/parallel/alone.h"

namespace ingot::test {
namespace {

// One rank, which writes to the memory that others would have open. The sanitizer sees it where that is freed.
class Connected final : public Alone {
  public:
    std::string connect(const Device&, const Shared& shared) override {
        events += "connect ";
        gradients_ = shared.gradients;
        return "";
    }
    void disconnect() noexcept override {
        events += "disconnect ";
        Device::cpu().fill_bytes(gradients_, 1);
    }
    std::string events;

  private:
    Tensor gradients_;
};

Config config() {
    return parse_config(R"({
        "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "context_length": 8, "vocab_size": 50},
        "data": {"train": ["not-there.bin"]},
        "training": {"steps": 10, "batch_tokens": 16, "micro_batch_size": 2}
    })",
                        "test", {});
}

TEST(StepRunner, DisconnectsTheRanksBeforeTheirMemoryIsFreed) {
    Connected ranks;
    for (int run = 0; run < 2; ++run) {
        ranks.events.clear();
        SyntheticRun(config(), Device::cpu(), {}, &ranks).run_to(1, true);
        EXPECT_EQ(ranks.events, "connect disconnect ");
    }
}

TEST(StepRunner, DoesNotWaitForOtherRanksAfterAnError) {
    Connected ranks;
    const auto fail = [&] {
        SyntheticRun run(config(), Device::cpu(), {}, &ranks);
        throw UserError("the disk is full");
    };
    EXPECT_THROW(fail(), UserError);
    EXPECT_EQ(ranks.events, "connect ");
}

}  // namespace
}  // namespace ingot::test
