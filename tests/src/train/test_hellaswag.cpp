// Files of multiple-choice examples: what is read, and that no damage is read as something else.
// Seen to catch: a length that is believed (a read outside of the file), a file that ends between two examples.
#include "src/train/hellaswag.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "kernels/core/check.h"
#include "tests/src/model/small_model.h"

namespace ingot::test {
namespace {

std::vector<std::byte> llmc_file(const std::vector<std::vector<uint16_t>>& bodies) {
    std::vector<int32_t> header(256);
    header[0] = 20240522;
    header[1] = 1;
    header[2] = static_cast<int32_t>(bodies.size());
    std::vector<uint16_t> stream;
    for (size_t i = 0; i < bodies.size(); ++i) {
        stream.insert(stream.end(),
                      {65535, static_cast<uint16_t>(2 * (bodies[i].size() + 3)), static_cast<uint16_t>(i)});
        stream.insert(stream.end(), bodies[i].begin(), bodies[i].end());
    }
    std::vector<std::byte> bytes(header.size() * 4 + stream.size() * 2);
    std::memcpy(bytes.data(), header.data(), header.size() * 4);
    std::memcpy(bytes.data() + header.size() * 4, stream.data(), stream.size() * 2);
    return bytes;
}

// Label, number of endings, context, endings.
const std::vector<std::vector<uint16_t>> kBodies = {{1, 2, 3, 7, 8, 9, 1, 4, 2, 5, 6},
                                                    {0, 3, 1, 65534, 1, 1, 1, 2, 2, 3, 3}};

// A copy in memory of its own size, so that a sanitizer sees a read behind its end.
std::vector<MultipleChoice> parse(const std::vector<std::byte>& bytes, size_t size) {
    const auto copy = std::make_unique<std::byte[]>(size);
    std::memcpy(copy.get(), bytes.data(), size);
    return parse_llmc_examples({copy.get(), size}, "x.bin");
}

TEST(HellaSwag, BinaryExamples) {
    const std::vector<std::byte> bytes = llmc_file(kBodies);
    const std::vector<MultipleChoice> examples = parse(bytes, bytes.size());
    ASSERT_EQ(examples.size(), 2u);
    EXPECT_EQ(examples[0].context, (std::vector<int32_t>{7, 8, 9}));
    EXPECT_EQ(examples[0].endings, (std::vector<std::vector<int32_t>>{{4}, {5, 6}}));
    EXPECT_EQ(examples[0].label, 1);
    EXPECT_EQ(examples[1].context, std::vector<int32_t>{65534});
    EXPECT_EQ(examples[1].endings, (std::vector<std::vector<int32_t>>{{1}, {2}, {3, 3}}));
}

TEST(HellaSwag, EveryCutFileIsRefused) {
    const std::vector<std::byte> bytes = llmc_file(kBodies);
    for (size_t size = 0; size < bytes.size(); ++size) EXPECT_THROW(parse(bytes, size), UserError) << size;
    std::vector<std::byte> longer = bytes;
    longer.resize(bytes.size() + 2);
    EXPECT_THROW(parse(longer, longer.size()), UserError);
}

TEST(HellaSwag, DamageIsRefusedOrIsAnExample) {
    const std::vector<std::byte> bytes = llmc_file(kBodies);
    std::mt19937 chance(1);
    int refused = 0;
    for (int round = 0; round < 20000; ++round) {
        std::vector<std::byte> damaged = bytes;
        for (int i = 0; i < 1 + round % 3; ++i) {
            const size_t at = round % 2 ? 1024 + chance() % (bytes.size() - 1024) : chance() % bytes.size();
            damaged[at] = static_cast<std::byte>(chance() % 256);
        }
        try {
            for (const MultipleChoice& example : parse(damaged, damaged.size())) {
                ASSERT_FALSE(example.context.empty());
                ASSERT_GE(example.endings.size(), 2u);
                ASSERT_LT(example.label, static_cast<int64_t>(example.endings.size()));
                for (const std::vector<int32_t>& ending : example.endings) ASSERT_FALSE(ending.empty());
            }
        } catch (const UserError&) {
            ++refused;
        }
    }
    EXPECT_GT(refused, 5000);
    EXPECT_LT(refused, 20000);  // another token is another example
}

// A file that goes with the test.
struct ExampleFile {
    explicit ExampleFile(const std::vector<std::byte>& bytes)
        : path(testing::TempDir() + "hellaswag-" + std::to_string(getpid()) + ".bin") {
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    ~ExampleFile() { std::filesystem::remove(path); }
    std::string path;
};

// Seen to catch: documents of a batch that see each other, positions that run on from one to the next (RoPE's table is
// left), losses of the token before.
TEST(HellaSwag, PackedLossesAreThoseOfSingleDocuments) {
    std::vector<std::vector<uint16_t>> bodies;
    std::mt19937 chance(3);
    for (uint16_t i = 0; i < 7; ++i) {
        std::vector<uint16_t> body = {0, 3};
        for (int part = 0; part < 4; ++part) {
            body.push_back(static_cast<uint16_t>(1 + chance() % 6));
            for (uint16_t n = body.back(); n > 0; --n) body.push_back(static_cast<uint16_t>(chance() % 11));
        }
        bodies.push_back(body);
    }
    const ExampleFile file(llmc_file(bodies));
    for (const Position position : {Position::alibi, Position::rope, Position::none})
        for (const int64_t num_tokens : {12, 31, 64}) {
            ModelConfig config = tiny_config();
            config.position = position;
            config.context_length = 11;
            MemoryPlan plan;
            Model model(Device::cpu(), config, {.max_tokens = num_tokens, .max_positions = config.context_length},
                        &plan);
            BatchBuffers buffers(Device::cpu(), num_tokens, &plan);
            const DeviceStep step(Device::cpu(), "step", &plan);
            const std::shared_ptr<void> memory = plan.allocate(Device::cpu(), true);
            SmallModel single(config, {.dtype = DType::f32, .max_tokens = 16, .is_training = false});
            model.initialize_constants();
            Device::cpu().copy(model.weights(), single.model.weights());
            step.write(StepBlock{});
            const HellaSwag hellaswag(file.path, "key", nullptr, config);
            const auto losses = hellaswag.losses(&model, &buffers, step, one_rank().get(), [] { return false; });
            ASSERT_TRUE(losses.has_value());
            for (size_t e = 0; e < bodies.size(); ++e)
                for (size_t c = 0; c < 3; ++c) {
                    const MultipleChoice& example = hellaswag.examples()[e];
                    Row row;
                    row.starts = {0};
                    row.tokens.assign(example.context.begin(), example.context.end());
                    row.tokens.insert(row.tokens.end(), example.endings[c].begin(), example.endings[c].end());
                    row.targets.assign(row.tokens.begin() + 1, row.tokens.end());
                    row.tokens.pop_back();
                    single.evaluate(row);
                    const std::vector<double> values = single.losses(row.size());
                    const auto first = static_cast<int64_t>(example.context.size()) - 1;
                    const double sum = std::accumulate(values.begin() + first, values.end(), 0.0);
                    // Sums of the same products in another order: 1e-5 is about 80 ulps.
                    EXPECT_NEAR((*losses)[e][c], sum, 1e-5 * sum) << "example " << e << ", ending " << c;
                }
            EXPECT_FALSE(hellaswag.losses(&model, &buffers, step, one_rank().get(), [] { return true; }).has_value());
        }
}

TEST(HellaSwag, ResultsAreCountedOnce) {
    const HellaSwagResult result = {.examples = 8, .correct_by_mean = 3, .correct_by_sum = 2};
    EXPECT_EQ(hellaswag_line(result), "hellaswag 0.3750 | acc 0.2500 | 8 examples");
    EXPECT_EQ(hellaswag_json(result).dump(), R"({"hellaswag":0.375,"acc":0.25,"examples":8})");
}

}  // namespace
}  // namespace ingot::test
