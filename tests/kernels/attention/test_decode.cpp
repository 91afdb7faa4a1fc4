// ALiBi, groups, tiles whose maximum grows: all against attention_forward and plain softmax.
// Seen to catch: the group's key/value head mistaken, a sum that does not shrink with a new maximum, ALiBi's sign.
#include "kernels/attention/decode.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "tests/kernels/attention/attention_case.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

// The keys and values of a causal document of N tokens in a cache, and the last token's query against them.
std::vector<double> decode(const AttentionRun& run, DType dtype) {
    const AttentionCase& c = run.c;
    const AttentionForward f = run.forward_arguments();
    // Room for one token more, which stays poisoned: it must not be read.
    const Buffer k(cpu, dtype, {c.N + 1, c.NKV, c.HS}), v(cpu, dtype, {c.N + 1, c.NKV, c.HS});
    const Buffer out(cpu, dtype, {c.NH, c.HS});
    // All but the last token at once, as a prompt is read, then the last.
    for (const auto& [begin, end] : {std::pair{int64_t{0}, c.N - 1}, {c.N - 1, c.N}})
        kv_cache_append(cpu, {.cache_k = k.tensor().slice(0, begin, end),
                              .cache_v = v.tensor().slice(0, begin, end),
                              .k = f.k.slice(0, begin, end),
                              .v = f.v.slice(0, begin, end)});
    attention_decode(cpu, {.out = out,
                           .q = f.q.slice(0, c.N - 1, c.N).view({c.NH, c.HS}),
                           .k = k.tensor().slice(0, 0, c.N),
                           .v = v.tensor().slice(0, 0, c.N),
                           .slopes = f.slopes,
                           .scale = f.scale});
    return out.values();
}

std::vector<double> last_row(const std::vector<double>& out, const AttentionCase& c) {
    return {out.end() - c.NH * c.HS, out.end()};
}

const AttentionCase kCases[] = {
    {.N = 1, .NH = 1, .NKV = 1, .HS = 2},
    {.N = 2, .NH = 2, .NKV = 1, .HS = 16, .alibi = true},
    {.N = 127, .NH = 3, .NKV = 3, .HS = 32, .alibi = true},
    {.N = 128, .NH = 6, .NKV = 2, .HS = 64},
    {.N = 129, .NH = 12, .NKV = 4, .HS = 16, .alibi = true},
    {.N = 300, .NH = 14, .NKV = 7, .HS = 8, .alibi = true},
    {.N = 300, .NH = 4, .NKV = 1, .HS = 256},
    // Scores far apart, so that the maximum grows from tile to tile.
    {.N = 500, .NH = 4, .NKV = 2, .HS = 16, .alibi = true, .value_scale = 6},
    {.N = 500, .NH = 4, .NKV = 2, .HS = 16, .value_scale = 6},
};

TEST(AttentionDecode, IsTheLastRowOfAttention) {
    for (const AttentionCase& c : kCases) {
        SCOPED_TRACE(c.describe());
        const AttentionRun run(c, DType::f64);
        run.forward();
        const std::vector<double> out = decode(run, DType::f64);
        EXPECT_TRUE(close(out, last_row(run.out.values(), c), 1e-12));
        EXPECT_TRUE(close(out, last_row(reference_attention(run).out, c), 1e-12));
    }
}

// The bound is that of the tiled forward pass in fp32, twice, plus two ulps: both sum the same terms in other orders.
TEST(AttentionDecode, SingleIsAsGoodAsTheForwardPass) {
    for (const AttentionCase& c : kCases) {
        SCOPED_TRACE(c.describe());
        const AttentionRun single(c, DType::f32), exact(c, DType::f64);
        single.forward();
        const std::vector<double> expected = decode(exact, DType::f64);
        const double plain = relative_error(last_row(reference_attention<float>(single).out, c), expected);
        const double tiled = relative_error(last_row(single.out.values(), c), expected);
        EXPECT_TRUE(close(decode(single, DType::f32), expected, 2 * std::max(plain, tiled) + 2 * 0x1p-23));
    }
}

TEST(AttentionDecode, BitsDoNotDependOnThreads) {
    const int threads = omp_get_max_threads();
    const AttentionRun run({.N = 300, .NH = 6, .NKV = 3, .HS = 16, .alibi = true}, DType::f32);
    omp_set_num_threads(1);
    const std::vector<double> one = decode(run, DType::f32);
    for (const int count : {2, 5}) {
        omp_set_num_threads(count);
        EXPECT_TRUE(same(decode(run, DType::f32), one));
    }
    omp_set_num_threads(threads);
}

TEST(AttentionDecode, NanIsPassedOn) {
    const Buffer q(cpu, DType::f32, {1, 2}, {1, 1}), out(cpu, DType::f32, {1, 2});
    const Buffer k(cpu, DType::f32, {2, 1, 2}, {1, 1, std::numeric_limits<double>::quiet_NaN(), 1});
    const Buffer v(cpu, DType::f32, {2, 1, 2}, {1, 2, 3, 4});
    attention_decode(cpu, {.out = out, .q = q, .k = k, .v = v, .scale = 1});
    EXPECT_TRUE(std::isnan(out.values()[0]));
}

TEST(AttentionDecode, Refuses) {
    const Buffer q(cpu, DType::f32, {4, 8}, normals(32, 1)), out(cpu, DType::f32, {4, 8}),
        k(cpu, DType::f32, {5, 2, 8}, normals(80, 2)), v(cpu, DType::f32, {5, 2, 8}, normals(80, 3)),
        three(cpu, DType::f32, {5, 3, 8}, normals(120, 4)), slopes(cpu, DType::f32, {2}, {1, 1});
    const auto run = [&](AttentionDecode a) { attention_decode(cpu, a); };
    EXPECT_NO_THROW(run({.out = out, .q = q, .k = k, .v = v, .scale = 1}));
    EXPECT_THROW(run({.out = out, .q = q, .k = three, .v = three, .scale = 1}), Error);
    EXPECT_THROW(run({.out = out, .q = q, .k = k.tensor().slice(0, 0, 0), .v = v.tensor().slice(0, 0, 0), .scale = 1}),
                 Error);
    EXPECT_THROW(run({.out = out, .q = q, .k = k, .v = v.tensor().slice(0, 0, 4), .scale = 1}), Error);
    EXPECT_THROW(run({.out = out, .q = q, .k = k, .v = v, .slopes = slopes, .scale = 1}), Error);
    const Buffer odd(cpu, DType::f32, {4, 7}), odd_k(cpu, DType::f32, {5, 2, 7});
    EXPECT_THROW(run({.out = odd, .q = odd, .k = odd_k, .v = odd_k, .scale = 1}), Error);
    EXPECT_THROW(kv_cache_append(cpu, {.cache_k = k, .cache_v = v, .k = three, .v = three}), Error);
}

}  // namespace
}  // namespace ingot::test
