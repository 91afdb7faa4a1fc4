// Decoding attention on CUDA against the CPU twin in double precision, by the tolerance of precision_bound()
// (tests/support/tensors.h).
//
// Seen to catch, with the kernels' source compiled for the host and run there, a fiber for each thread:
// the group's key/value head mistaken, a sum that does not shrink with a new maximum or when warps are
// merged, ALiBi's sign, keys past the end counted, the barrier before the merge lost, values appended from the keys.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/attention/decode.h"
#include "tests/kernels/attention/attention_case.h"

namespace ingot::test {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

AttentionCase decoded(AttentionCase c) {
    c.is_decoded = true;
    return c;
}

// The keys and values of a causal document of N tokens in a cache, and the last token's query against them.
struct Decode {
    Decode(const AttentionCase& c, DType dtype, DType rounding, const Device& device, AttentionPadding padding = {})
        : run(decoded(c), dtype, rounding, device, padding),
          k(device, dtype, {c.N + 1, c.NKV, c.HS}),
          v(device, dtype, {c.N + 1, c.NKV, c.HS}),
          out(device, dtype, {c.NH, c.HS}) {
        // Room for one token more, which stays poisoned: it must not be read. All but the last token at once, as a
        // prompt is read, then the last.
        const AttentionForward f = run.forward_arguments();
        for (const auto& [begin, end] : {std::pair{int64_t{0}, c.N - 1}, {c.N - 1, c.N}})
            kv_cache_append(device, {.cache_k = k.tensor().slice(0, begin, end),
                                     .cache_v = v.tensor().slice(0, begin, end),
                                     .k = f.k.slice(0, begin, end),
                                     .v = f.v.slice(0, begin, end)});
    }
    std::vector<double> operator()() const {
        const AttentionForward f = run.forward_arguments();
        const int64_t N = run.c.N;
        Tensor q = f.q.slice(0, N - 1, N);  // (1, NH, HS), as it lies in the fused buffer
        q.rank = 2;
        for (int axis = 0; axis < 2; ++axis) {
            q.shape[axis] = q.shape[axis + 1];
            q.stride[axis] = q.stride[axis + 1];
        }
        attention_decode(run.device, {.out = out,
                                      .q = q,
                                      .k = k.tensor().slice(0, 0, N),
                                      .v = v.tensor().slice(0, 0, N),
                                      .slopes = f.slopes,
                                      .scale = f.scale});
        return out.values();
    }
    AttentionRun run;
    Buffer k, v, out;
};

void check(const Device& device, const AttentionCase& c, DType dtype, AttentionPadding padding = {}) {
    SCOPED_TRACE(join(c.describe(), ", ", name_of(dtype), ", padding ", padding.before, " ", padding.after));
    const Device cpu = Device::cpu();
    const Decode decode(c, dtype, dtype, device, padding), exact(c, DType::f64, dtype, cpu),
        plain(c, DType::f32, dtype, cpu);
    const std::vector<double> expected = exact();
    EXPECT_TRUE(close(decode(), expected, precision_bound(dtype, rounded(plain(), dtype), expected)));
    // The cache holds the very bits, and nothing beyond them was written.
    const std::vector<double> qkv = decode.run.unpad(decode.run.qkv.values());
    for (const auto& [cache, head] : {std::pair{&decode.k, c.NH}, {&decode.v, c.NH + c.NKV}}) {
        const std::vector<double> values = cache->values();
        EXPECT_TRUE(same(rows(values, c.N + 1, 0, c.N), decode.run.part(qkv, head, c.NKV)));
        for (const double value : rows(values, c.N + 1, c.N, c.N + 1)) EXPECT_TRUE(std::isnan(value));
    }
}

// Every instantiation.
TEST(AttentionDecodeCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t HS : {32, 64, 96, 128, 256})
            check(device, {.N = 70, .NH = 4, .NKV = 2, .HS = HS, .alibi = true}, dtype, {.before = 3});
}

TEST(AttentionDecodeCuda, Shapes) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase cases[] = {
        {.N = 1, .NH = 1, .NKV = 1, .HS = 2},
        {.N = 2, .NH = 2, .NKV = 1, .HS = 16, .alibi = true},
        {.N = 4, .NH = 2, .NKV = 1, .HS = 64},
        {.N = 5, .NH = 2, .NKV = 1, .HS = 66, .alibi = true},
        {.N = 63, .NH = 3, .NKV = 3, .HS = 32, .alibi = true},
        {.N = 64, .NH = 6, .NKV = 2, .HS = 64},
        {.N = 65, .NH = 12, .NKV = 4, .HS = 98, .alibi = true},
        {.N = 129, .NH = 12, .NKV = 4, .HS = 128, .alibi = true},
        {.N = 300, .NH = 14, .NKV = 7, .HS = 8, .alibi = true},
        {.N = 1000, .NH = 14, .NKV = 2, .HS = 250},
        {.N = 1000, .NH = 12, .NKV = 3, .HS = 64, .alibi = true},
        // Scores far apart, so that the maximum grows from key to key.
        {.N = 500, .NH = 4, .NKV = 2, .HS = 16, .alibi = true, .value_scale = 3},
        {.N = 500, .NH = 4, .NKV = 2, .HS = 64, .value_scale = 3},
    };
    for (const AttentionCase& c : cases)
        for (const DType dtype : kDTypes)
            for (const int64_t before : {0, 1}) check(device, c, dtype, {.before = before});
}

TEST(AttentionDecodeCuda, IsTheLastRowOfAttention) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase c = {.N = 333, .NH = 6, .NKV = 2, .HS = 64, .alibi = true};
    const Decode decode(c, DType::f32, DType::f32, device);
    decode.run.forward();
    const std::vector<double> out = decode.run.out.values();
    EXPECT_TRUE(close(decode(), {out.end() - c.NH * c.HS, out.end()}, 1e-5));
}

TEST(AttentionDecodeCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) {
        const Decode decode({.N = 777, .NH = 12, .NKV = 4, .HS = 64, .alibi = true}, dtype, dtype, device);
        const std::vector<double> first = decode();
        for (int repeat = 1; repeat < 20; ++repeat) {
            device.fill_bytes(decode.out, 0xff);
            ASSERT_TRUE(same(decode(), first));
        }
    }
}

TEST(AttentionDecodeCuda, NanIsPassedOn) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t token : {0, 69}) {
        Decode decode({.N = 70, .NH = 1, .NKV = 1, .HS = 32}, DType::f32, DType::f32, device);
        std::vector<double> k = decode.k.values();
        k[static_cast<size_t>(token * 32 + 7)] = std::numeric_limits<double>::quiet_NaN();
        decode.k.set(k);
        for (const double value : decode()) EXPECT_TRUE(std::isnan(value));
    }
}

TEST(AttentionDecodeCuda, Refuses) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase c = {.N = 4, .NH = 2, .NKV = 1, .HS = 32};
    EXPECT_THROW(Decode(c, DType::f64, DType::f64, device)(), Error);
    AttentionCase wide = c;
    wide.HS = 258;
    EXPECT_THROW(Decode(wide, DType::f32, DType::f32, device)(), Error);
}

}  // namespace
}  // namespace ingot::test
