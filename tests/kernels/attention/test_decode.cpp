// Decoding attention against the definition, attention_forward and, on CUDA, the CPU twin in double precision by
// precision_bound().
//
// Seen to catch, on CUDA with the kernels' source compiled for the host and run there, a fiber for each thread: the
// group's key/value head mistaken, a sum that does not shrink with a new maximum or when warps are merged, ALiBi's
// sign, keys past the end counted, the barrier before the merge lost, values appended from the keys.
#include "kernels/attention/decode.h"

#include <cmath>
#include <limits>

#include "tests/kernels/attention/attention_case.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Decoding);

const Device cpu = Device::cpu();

AttentionCase decoded(AttentionCase c) {
    c.is_decoded = true;
    return c;
}

// The keys and values of a causal document of N tokens in a cache, and the last token's query against them.
struct Decode {
    Decode(const AttentionCase& c, DType dtype, DType rounding, const Device& device, Margins margins = {})
        : run(decoded(c), dtype, rounding, device, margins),
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

std::vector<double> last_row(const std::vector<double>& out, const AttentionCase& c) {
    return {out.end() - c.NH * c.HS, out.end()};
}

// On the CPU fp32 may err twice as much as the definition or the tiled forward pass in fp32, plus two ulps: all three
// sum the same terms in other orders.
double bound_of(const AttentionCase& c, const Device& device, DType dtype, const std::vector<double>& exact) {
    if (dtype == DType::f64) return 1e-12;
    if (!device.is_cpu()) return precision_bound(dtype, rounded(Decode(c, DType::f32, dtype, cpu)(), dtype), exact);
    const AttentionRun single(c, DType::f32);
    single.forward();
    return 2 * std::max(relative_error(last_row(reference_attention<float>(single).out, c), exact),
                        relative_error(last_row(single.out.values(), c), exact)) +
           2 * 0x1p-23;
}

void check(const Device& device, const AttentionCase& c, DType dtype, Margins margins = {}) {
    SCOPED_TRACE(join(c.describe(), ", ", name_of(dtype), ", margins ", margins.before, " ", margins.after));
    const DType rounding = dtype == DType::f64 ? DType::f32 : dtype;
    const Decode decode(c, dtype, rounding, device, margins), twin(c, DType::f64, rounding, cpu);
    const std::vector<double> exact = device.is_cpu() ? last_row(reference_attention(twin.run).out, c) : twin(),
                              actual = decode();
    EXPECT_TRUE(close(actual, exact, bound_of(c, device, dtype, exact)));
    // The cache holds the very bits, and nothing beyond them was written.
    const std::vector<double> qkv = decode.run.qkv.values();
    for (const auto& [cache, head] : {std::pair{&decode.k, c.NH}, {&decode.v, c.NH + c.NKV}}) {
        const std::vector<double> values = cache->values();
        EXPECT_TRUE(same(rows(values, c.N + 1, 0, c.N), decode.run.part(qkv, head, c.NKV)));
        for (const double value : rows(values, c.N + 1, c.N, c.N + 1)) EXPECT_TRUE(std::isnan(value));
    }
}

// Every instantiation.
TEST_P(Decoding, Small) {
    for (const DType dtype : dtypes())
        for (const int64_t HS : {32, 64, 96, 128, 256})
            check(device(), {.N = 70, .NH = 4, .NKV = 2, .HS = HS, .alibi = true}, dtype, {.before = 3});
}

TEST_P(Decoding, Shapes) {
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
        {.N = 500, .NH = 4, .NKV = 2, .HS = 16, .alibi = true, .value_scale = 6},
        {.N = 500, .NH = 4, .NKV = 2, .HS = 16, .value_scale = 6},
        // Lengths round the CPU's tile.
        {.N = 127, .NH = 3, .NKV = 3, .HS = 32, .alibi = true},
        {.N = 128, .NH = 6, .NKV = 2, .HS = 64},
        {.N = 129, .NH = 12, .NKV = 4, .HS = 16, .alibi = true},
        {.N = 300, .NH = 4, .NKV = 1, .HS = 256},
    };
    for (const AttentionCase& c : cases)
        for (const DType dtype : dtypes())
            for (const int64_t before : {0, 1}) {
                // The definition of a long row takes a second on the CPU, whose loops are the same for all.
                if (is_cuda() ? c.value_scale > 3 : c.N > 500 || (before > 0 && c.N > 100)) continue;
                check(device(), c, dtype, {.before = before});
            }
}

TEST_P(Decoding, IsTheLastRowOfAttention) {
    for (const bool alibi : {true, false}) {
        const AttentionCase c = {.N = 333, .NH = 6, .NKV = 2, .HS = 64, .alibi = alibi};
        const DType dtype = is_cuda() ? DType::f32 : DType::f64;
        // The forward pass on CUDA needs a workspace of its kind.
        const AttentionRun run(c, dtype, DType::f32, device());
        run.forward();
        EXPECT_TRUE(
            close(Decode(c, dtype, DType::f32, device())(), last_row(run.out.values(), c), is_cuda() ? 1e-5 : 1e-12));
    }
}

TEST_P(Decoding, SameBitsEveryTime) {
    for (const DType dtype : dtypes()) {
        const Decode decode({.N = 777, .NH = 12, .NKV = 4, .HS = 64, .alibi = true}, dtype, DType::f32, device());
        const std::vector<double> first = decode();
        for (int repeat = 1; repeat < (is_cuda() ? 20 : 6); ++repeat) {
            device().fill_bytes(decode.out, 0xff);
            with_threads(repeat, [&] { ASSERT_TRUE(same(decode(), first)); });
        }
    }
}

TEST_P(Decoding, NanIsPassedOn) {
    for (const int64_t token : {0, 69}) {
        const Decode decode({.N = 70, .NH = 1, .NKV = 1, .HS = 32}, DType::f32, DType::f32, device());
        std::vector<double> k = decode.k.values();
        k[static_cast<size_t>(token * 32 + 7)] = std::numeric_limits<double>::quiet_NaN();
        decode.k.set(k);
        for (const double value : decode()) EXPECT_TRUE(std::isnan(value));
    }
}

TEST(DecodingArguments, Refuses) {
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

TEST(DecodingCuda, Refuses) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase c = {.N = 4, .NH = 2, .NKV = 1, .HS = 32};
    EXPECT_THROW(Decode(c, DType::f64, DType::f64, device)(), Error);
    AttentionCase wide = c;
    wide.HS = 258;
    EXPECT_THROW(Decode(wide, DType::f32, DType::f32, device)(), Error);
}

}  // namespace
}  // namespace ingot::test
