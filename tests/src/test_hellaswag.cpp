// Files of multiple-choice examples: what is read, and that no damage is read as something else.
// Seen to catch: a length that is believed (a read outside of the file), a file that ends between two examples.
#include "src/hellaswag.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "kernels/core/check.h"

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

TEST(HellaSwag, ResultsAreCountedOnce) {
    const HellaSwagResult result = {.examples = 8, .correct_by_mean = 3, .correct_by_sum = 2};
    EXPECT_EQ(hellaswag_line(result), "hellaswag 0.3750 | acc 0.2500 | 8 examples");
    EXPECT_EQ(hellaswag_json(result).dump(), R"({"hellaswag":0.375,"acc":0.25,"examples":8})");
}

}  // namespace
}  // namespace ingot::test
