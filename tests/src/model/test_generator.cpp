// Text generation: the cache against full forward passes, drawing against brute force, streaming.
// Seen to catch: keys cached without RoPE, positions that start at 0 for every new token, top-p that drops the token
// which reaches P, a cut character passed on.
#include "src/model/generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "src/base/output.h"
#include "src/base/text.h"
#include "tests/src/model/small_model.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A model for text alone, with its generator; the weights are those of SmallModel with the same seed.
class TextModel {
  public:
    TextModel(const ModelConfig& config, DType dtype, int64_t max_tokens, int64_t capacity)
        : model(cpu, config, {.dtype = dtype, .max_tokens = max_tokens, .max_positions = config.context_length}, &plan),
          buffers(cpu, max_tokens, &plan),
          generator(model, buffers, capacity, &plan),
          memory(plan.allocate(cpu, true)),
          full(config, {.dtype = dtype, .max_tokens = config.context_length, .is_training = false}) {
        model.initialize_constants();
        cpu.copy(model.weights(), full.model.weights());
    }
    // Logits of the last of `tokens` by a full forward pass.
    std::vector<double> full_logits(const std::vector<int32_t>& tokens) {
        Row row;
        row.starts = {0};
        for (const int32_t token : tokens) {
            row.tokens.push_back(token);
            row.targets.push_back(-1);
        }
        const Buffer logits(cpu, model.dtype(), {1, model.config().padded_vocab_size()});
        full.model.logits(RowBuffers(row), {row.size() - 1}, logits);
        std::vector<double> values = logits.values();
        values.resize(static_cast<size_t>(model.config().vocab_size));
        return values;
    }

    MemoryPlan plan;
    Model model;
    BatchBuffers buffers;
    Generator generator;
    std::shared_ptr<void> memory;
    SmallModel full;
};

ModelConfig long_config(const ModelConfig& config) {
    ModelConfig result = config;
    result.context_length = 24;
    result.n_layers = 3;
    return result;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i)
        tokens.push_back(
            static_cast<int32_t>(random_bits(5, 6, static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab_size)));
    return tokens;
}

// In fp32 both passes sum the same products in other orders. Each logit is a sum of a few dozen terms after three
// layers; 1e-5 relative is about 80 ulps, and an error of structure shows at 1e-2.
TEST(Generator, CacheGivesTheLogitsOfTheFullPass) {
    for_all_configs([](const ModelConfig& tiny, const std::string& name) {
        SCOPED_TRACE(name);
        const ModelConfig config = long_config(tiny);
        const std::vector<int32_t> tokens = random_tokens(24, config.vocab_size);
        for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-12}, {DType::f32, 1e-5}})
            for (const int64_t prompt : {1, 7, 24}) {
                TextModel text(config, dtype, prompt, 24);
                text.generator.start({tokens.begin(), tokens.begin() + prompt});
                for (int64_t n = prompt;; ++n) {
                    EXPECT_TRUE(
                        close(text.generator.logits(), text.full_logits({tokens.begin(), tokens.begin() + n}), bound))
                        << n << " tokens, prompt of " << prompt;
                    if (n == 24) break;
                    text.generator.append(tokens[static_cast<size_t>(n)]);
                }
            }
    });
}

TEST(Generator, GreedyTextIsThatOfFullPasses) {
    for_all_configs([](const ModelConfig& tiny, const std::string& name) {
        SCOPED_TRACE(name);
        const ModelConfig config = long_config(tiny);
        TextModel text(config, DType::f64, 3, 24);
        std::vector<int32_t> tokens = random_tokens(3, config.vocab_size), written = tokens;
        text.generator.start(tokens);
        for (uint64_t i = 0; i < 20; ++i) {
            const std::vector<double> logits = text.full_logits(tokens);
            tokens.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
            written.push_back(text.generator.next({.temperature = 0}, 1, 2, i));
            if (i < 19) text.generator.append(written.back());
        }
        EXPECT_EQ(written, tokens);
    });
}

// With room for 8 tokens: the ninth makes it read the last 4 again, as a document of their own.
TEST(Generator, FullCacheReadsItsLastHalfAgain) {
    for (const Position position : {Position::alibi, Position::rope, Position::none}) {
        ModelConfig config = tiny_config();
        config.context_length = 8;
        config.position = position;
        const std::vector<int32_t> tokens = random_tokens(30, config.vocab_size);
        TextModel text(config, DType::f64, Generator::prefill(2, 28, 8), 8);
        text.generator.start({tokens.begin(), tokens.begin() + 2});
        int64_t first = 0;
        for (int64_t n = 3; n <= 30; ++n) {
            text.generator.append(tokens[static_cast<size_t>(n - 1)]);
            if (n - first > 8) first = n - 4;
            EXPECT_TRUE(
                close(text.generator.logits(), text.full_logits({tokens.begin() + first, tokens.begin() + n}), 1e-12))
                << n;
        }
        // A prompt that is too long begins with its last half of a cache; a second text forgets the first.
        text.generator.start(tokens);
        EXPECT_TRUE(close(text.generator.logits(), text.full_logits({tokens.end() - 4, tokens.end()}), 1e-12));
    }
    // The smallest context there is.
    ModelConfig config = tiny_config();
    config.context_length = 1;
    TextModel text(config, DType::f64, Generator::prefill(1, 5, 1), 1);
    text.generator.start({3});
    text.generator.append(5);
    EXPECT_TRUE(close(text.generator.logits(), text.full_logits({5}), 1e-12));
}

TEST(Generator, PlansWhatItReadsAtOnce) {
    EXPECT_EQ(Generator::prefill(5, 100, 105), 5);     // all fits
    EXPECT_EQ(Generator::prefill(5, 1000, 256), 128);  // it will read a half again
    EXPECT_EQ(Generator::prefill(200, 1000, 256), 200);
    EXPECT_EQ(Generator::prefill(1000, 10, 256), 128);
    EXPECT_EQ(Generator::prefill(3, 10, 1), 1);
    TextModel text(tiny_config(), DType::f64, 2, 4);
    EXPECT_THROW(text.generator.start({1, 2, 3}), Error);  // planned for two
    EXPECT_THROW(text.generator.start({}), Error);
}

TEST(Generator, SamplesAreReproducible) {
    ModelConfig config = tiny_config();
    config.vocab_size = 257;
    config.context_length = 40;
    TextModel text(config, DType::f32, 3, 40);
    const SampleOptions options = {.num_tokens = 30, .seed = 3};
    const std::unique_ptr<Tokenizer> bytes = bytes_tokenizer();
    const auto sample = [&](const SampleOptions& how) {
        return sample_text(text.generator, *bytes, bytes->encode("abc"), "abc", how);
    };
    const std::string one = sample(options);
    EXPECT_EQ(sample(options), one);
    SampleOptions other = options;
    other.seed = 4;
    EXPECT_NE(sample(other), one);
    EXPECT_LE(one.size(), 30u);
    EXPECT_FALSE(one.empty());
}

// ---- Drawing ----

// The definition: tokens by probability, cut by rank, then by the probability before them; renormalised.
std::vector<double> brute_force(const std::vector<double>& logits, const Sampling& s) {
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    if (s.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(s.top_k)));
    std::vector<double> result(logits.size(), 0.0);
    double total = 0, kept = 0;
    for (const size_t token : order) total += std::exp((logits[token] - logits[order[0]]) / s.temperature);
    for (const size_t token : order) {
        const double p = std::exp((logits[token] - logits[order[0]]) / s.temperature) / total;
        if (s.top_p < 1 && kept >= s.top_p) break;
        result[token] = p;
        kept += p;
    }
    for (double& p : result) p /= kept;
    return result;
}

TEST(DrawToken, FollowsTheDefinition) {
    const std::vector<double> logits = {0.3, 2.0, -1.0, 2.0, 0.7, -30.0, 1.1, 0.3, 0.3};
    constexpr int kPoints = 20000;
    for (const double temperature : {0.5, 1.0, 3.0})
        for (const int64_t top_k : {0, 1, 2, 4, 9, 100})
            for (const double top_p : {1.0, 0.9, 0.5, 0.01}) {
                const Sampling sampling = {temperature, top_k, top_p};
                const std::vector<double> expected = brute_force(logits, sampling);
                std::vector<double> share(logits.size(), 0.0);
                for (int i = 0; i < kPoints; ++i) {
                    const int32_t token = draw_token(logits, sampling, (i + 0.5) / kPoints);
                    ASSERT_GE(token, 0);
                    share[static_cast<size_t>(token)] += 1.0 / kPoints;
                }
                // Points on a grid: a token's share is right up to one point at each end of its interval.
                for (size_t v = 0; v < logits.size(); ++v) {
                    EXPECT_NEAR(share[v], expected[v], 2.0 / kPoints) << "token " << v << " top-k " << top_k;
                    if (expected[v] == 0) {
                        EXPECT_EQ(share[v], 0);
                    }
                }
            }
}

TEST(DrawToken, Edges) {
    EXPECT_EQ(draw_token({1, 3, 3, 2}, {.temperature = 0}, 0.999), 1);  // the first of equals
    EXPECT_EQ(draw_token({5}, {}, 0.5), 0);
    EXPECT_EQ(draw_token({1, 3, 3, 2}, {.temperature = 1, .top_k = 1, .top_p = 1}, 0.999), 1);
    EXPECT_EQ(draw_token({0, 1000, 0}, {.temperature = 1e-300, .top_k = 0, .top_p = 1}, 0.5), 1);
    // The last possible number draws a token that has weight, also when the last in order has none.
    EXPECT_EQ(draw_token({0, 0, -1e9}, {.temperature = 1, .top_k = 0, .top_p = 1}, 1 - 0x1p-32), 1);
    EXPECT_EQ(draw_token({0, 0, -1e9}, {.temperature = 1, .top_k = 0, .top_p = 1}, 0), 0);
    for (const double bad : {kNan, std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()})
        for (const double temperature : {0.0, 1.0})
            EXPECT_EQ(draw_token({0, bad, 1}, {.temperature = temperature}, 0.5), -1);
}

// ---- Text ----

TEST(TextStream, PassesOnWholeCharacters) {
    std::vector<std::string> pieces;
    const auto collect = [&](const std::string& piece) { pieces.push_back(piece); };
    TextStream raw(false, collect);
    for (const char c : std::string("a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80!")) raw.put(std::string(1, c));
    EXPECT_EQ(pieces, (std::vector<std::string>{"a", "\xc3\xbc", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "!"}));
    pieces.clear();
    // A lead byte without its follower, a follower without its lead, an overlong form, a surrogate, a cut end.
    const std::string broken("\xc3(\x80\xc0\x80\xed\xa0\x80z\xe2\x82", 11);
    for (const char c : broken) raw.put(std::string(1, c));
    raw.finish();
    std::string all;
    for (const std::string& piece : pieces) all += piece;
    EXPECT_EQ(all, broken);
    pieces.clear();
    TextStream visible(true, collect);
    for (const char c : broken) visible.put(std::string(1, c));
    visible.finish();
    all.clear();
    for (const std::string& piece : pieces) all += piece;
    EXPECT_EQ(all, "\\xc3(\\x80\\xc0\\x80\\xed\\xa0\\x80z\\xe2\\x82");
    EXPECT_FALSE(visible.ends_line());
    visible.put("\n");
    EXPECT_TRUE(visible.ends_line());
}

TEST(Text, ShowsWhatIsNoText) {
    EXPECT_EQ(printable("\xc2\x9b[2J"), "\\xc2\\x9b[2J");  // a control character of two bytes
    EXPECT_EQ(printable("\xc2\xa0"), "\xc2\xa0");
    EXPECT_EQ(printable_line("a\nb\tc"), "a\\nb\\tc");
    EXPECT_EQ(nearest_word("--confg", {"--config", "--set"}), "--config");
    EXPECT_EQ(nearest_word("evla", {"eval", "info"}), "eval");
    EXPECT_EQ(nearest_word("something", {"eval", "info"}), "");
    EXPECT_EQ(short_count(1317373952), "1.32B");
    EXPECT_EQ(short_count(999.6e6), "1B");
    EXPECT_EQ(short_count(612345), "612k");
    EXPECT_EQ(counted(0, "document"), "0 documents");
    EXPECT_EQ(counted(1, "document"), "1 document");
    EXPECT_EQ(counted(1234567, "token"), "1,234,567 tokens");
    EXPECT_EQ(short_duration(3725), "1h02m");
}

}  // namespace
}  // namespace ingot::test
