// Attention on CUDA against the CPU twin in double precision.
//
// Tolerance: is_as_good() below.
//
// Seen to catch, with the kernels' source compiled for the host and run there, a fiber for each thread:
// |i - j| with its sign lost, end_key off by one, sums that do not shrink when the maximum grows, lse
// without the maximum, dk without the scale, delta left out, the group's key/value head mistaken, a group's first query
// head alone in dk and dv, the first tile of queries skipped, rows past the end not zeroed, a query without keys
// divided by 0, a barrier lost before a tile is overwritten or before a warp's weights are.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/attention/attention_compared.h"

namespace ingot::test {
namespace {

// Every case runs on every kernel; on sm90 with its head sizes, and if the GPU is one that it runs on.
struct Variant {
    DType dtype;
    AttentionRequest request;
    std::string describe() const {
        const char* const kernels[] = {"automatic", "simt", "sm80", "sm90"};
        return join(name_of(dtype), ", ", kernels[static_cast<int>(request)]);
    }
};
constexpr AttentionRequest kPlain = AttentionRequest::simt, kSm80 = AttentionRequest::sm80,
                           kSm90 = AttentionRequest::sm90;
std::vector<Variant> variants(const Device& device) {
    std::vector<Variant> result = {
        {DType::f32, kPlain}, {DType::bf16, kPlain}, {DType::f16, kPlain}, {DType::bf16, kSm80}, {DType::f16, kSm80}};
    if (choose_attention(device, DType::bf16, 64).kernel == AttentionKernel::sm90)
        result.insert(result.end(), {{DType::bf16, kSm90}, {DType::f16, kSm90}});
    return result;
}
constexpr int64_t kHeadSizes[] = {32, 64, 96, 128};
// Rows that start at 2 bytes past a multiple of 16, and rows at odd distances.
constexpr AttentionPadding kPaddings[] = {{}, {.before = 1, .after = 7}, {.before = 0, .after = 5}};
constexpr AttentionPadding kAlignedPaddings[] = {{}, {.before = 8, .after = 16}, {.before = 0, .after = 24}};

AttentionPadding padding_of(const Variant& variant, size_t index) {
    return variant.request == kPlain ? kPaddings[index] : kAlignedPaddings[index];
}

AttentionCase with(AttentionCase c, const Variant& variant) {
    c.options.request = variant.request;
    if (variant.request == kSm90) c.HS = c.HS <= 64 ? 64 : 128;
    return c;
}

void check(const Device& device, const AttentionCase& c, const Variant& variant, size_t padding = 0) {
    const AttentionRun run(with(c, variant), variant.dtype, variant.dtype, device, padding_of(variant, padding));
    SCOPED_TRACE(join(run.c.describe(), ", ", variant.describe(), ", padding ", padding));
    run.forward();
    run.backward();
    Compared(run.c, variant.dtype).expect(run);
}

// ---- Every instantiation, in little time: for tools that are slow ----

TEST(AttentionCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const Variant& variant : variants(device))
        for (const int64_t HS : kHeadSizes)
            for (const bool alibi : {true, false})
                for (const size_t padding : {0, 1, 2})
                    check(device, {.N = 70, .NH = 2, .NKV = 1, .HS = HS, .alibi = alibi, .starts = {0, 5, 6, 6, 40}},
                          variant, padding);
}

// Queries 0, 1 and 5 see nothing; key 4 is seen by nobody.
TEST(AttentionCuda, AQueryThatSeesNoKeySmall) {
    INGOT_CUDA_OR_SKIP(device);
    const std::vector<double> mask[4] = {
        {0, 0, 0, 1, 2, 4}, {0, 0, 2, 3, 4, 4}, {2, 2, 3, 4, 6, 6}, {3, 4, 5, 5, 6, 6}};
    for (const Variant& variant : variants(device)) {
        const DType dtype = variant.dtype;
        SCOPED_TRACE(variant.describe());
        const AttentionCase c = with({.N = 6, .NH = 2, .NKV = 1, .HS = 32, .alibi = true}, variant);
        AttentionRun run(c, dtype, dtype, device);
        run.set_mask(mask[0], mask[1], mask[2], mask[3]);
        run.forward();
        run.backward();
        Compared compared(c, dtype);
        compared.set_mask(mask);
        compared.expect(run);
        const AttentionResult result = run.result();
        for (const int64_t i : {0, 1, 5}) {
            const std::vector<double> zeros(static_cast<size_t>(c.NH * c.HS));
            EXPECT_TRUE(same(rows(result.out, 6, i, i + 1), zeros));
            EXPECT_TRUE(same(rows(result.dq, 6, i, i + 1), zeros));
            for (int64_t h = 0; h < 2; ++h)
                EXPECT_EQ(result.lse[static_cast<size_t>(h * 6 + i)], -std::numeric_limits<double>::infinity());
        }
        for (const std::vector<double>* gradient : {&result.dk, &result.dv})
            for (const double value : rows(*gradient, 6, 4, 5)) EXPECT_EQ(value, 0);
    }
}

TEST(AttentionCuda, ScoresFarBelowZeroSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const AttentionCase& c : low_score_cases())
        for (const Variant& variant : variants(device)) check(device, c, variant);
}

TEST(AttentionCuda, NoQuerySeesAnyKeySmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const Variant& variant : variants(device)) {
        AttentionRun run(with({.N = 70, .NH = 1, .NKV = 1, .HS = 32}, variant), variant.dtype, variant.dtype, device);
        const std::vector<double> zeros(70);
        run.set_mask(zeros, zeros, zeros, zeros);
        run.forward();
        run.backward();
        const AttentionResult result = run.result();
        for (const std::vector<double>* values : {&result.out, &result.dq, &result.dk, &result.dv})
            for (const double value : *values) ASSERT_EQ(value, 0);
    }
}

// All tensors as (heads, N, HS) in memory: the same bits as from the fused buffer.
TEST(AttentionCuda, AnyStridesSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const Variant& variant : variants(device)) {
        const DType dtype = variant.dtype;
        const AttentionCase c = with({.N = 45, .NH = 6, .NKV = 2, .HS = 32, .alibi = true}, variant);
        AttentionRun run(c, dtype, dtype, device);
        run.forward();
        run.backward();
        const AttentionResult expected = run.result();
        // (N, heads, HS) to (heads, N, HS) and back.
        const auto turned = [&](const std::vector<double>& values, int64_t outer, int64_t inner) {
            std::vector<double> result;
            for (int64_t b = 0; b < inner; ++b)
                for (int64_t a = 0; a < outer; ++a)
                    result.insert(result.end(), values.begin() + (a * inner + b) * c.HS,
                                  values.begin() + (a * inner + b + 1) * c.HS);
            return result;
        };
        const std::vector<double> qkv = run.qkv.values();
        const Buffer q(device, dtype, {c.NH, c.N, c.HS}, turned(run.part(qkv, 0, c.NH), c.N, c.NH));
        const Buffer k(device, dtype, {c.NKV, c.N, c.HS}, turned(run.part(qkv, c.NH, c.NKV), c.N, c.NKV));
        const Buffer v(device, dtype, {c.NKV, c.N, c.HS}, turned(run.part(qkv, c.NH + c.NKV, c.NKV), c.N, c.NKV));
        const Buffer dout(device, dtype, {c.NH, c.N, c.HS}, turned(run.dout.values(), c.N, c.NH));
        const Buffer out(device, dtype, {c.NH, c.N, c.HS}), dq(device, dtype, {c.NH, c.N, c.HS});
        const Buffer dk(device, dtype, {c.NKV, c.N, c.HS}), dv(device, dtype, {c.NKV, c.N, c.HS});
        const auto view = [](const Buffer& buffer) {
            Tensor tensor = buffer;
            std::swap(tensor.shape[0], tensor.shape[1]);
            std::swap(tensor.stride[0], tensor.stride[1]);
            return tensor;
        };
        AttentionForward f = run.forward_arguments();
        f.q = view(q), f.k = view(k), f.v = view(v), f.out = view(out);
        attention_forward(device, f);
        AttentionBackward b = run.backward_arguments();
        b.q = f.q, b.k = f.k, b.v = f.v, b.out = f.out;
        b.dout = view(dout), b.dq = view(dq), b.dk = view(dk), b.dv = view(dv);
        attention_backward(device, b);
        EXPECT_TRUE(same(turned(out.values(), c.NH, c.N), expected.out));
        EXPECT_TRUE(same(turned(dq.values(), c.NH, c.N), expected.dq));
        EXPECT_TRUE(same(turned(dk.values(), c.NKV, c.N), expected.dk));
        EXPECT_TRUE(same(turned(dv.values(), c.NKV, c.N), expected.dv));
    }
}

// ---- Shapes ----

TEST(AttentionCuda, Lengths) {
    INGOT_CUDA_OR_SKIP(device);
    size_t turn = 0;
    for (const int64_t N : {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 1000})
        for (const Variant& variant : variants(device))
            for (const bool is_causal : {true, false}) {
                ++turn;
                check(device,
                      {.N = N,
                       .NH = 2,
                       .NKV = 1,
                       .HS = kHeadSizes[turn % 4],
                       .is_causal = is_causal,
                       .alibi = turn % 3 != 0},
                      variant, turn % 7 == 0 ? 1 : 0);
            }
}

TEST(AttentionCuda, Groups) {
    INGOT_CUDA_OR_SKIP(device);
    for (const auto& [NH, NKV] :
         {std::pair<int64_t, int64_t>{12, 12}, {12, 6}, {12, 4}, {12, 3}, {14, 2}, {14, 1}, {3, 3}, {8, 1}})
        for (const Variant& variant : variants(device))
            check(device, {.N = 200, .NH = NH, .NKV = NKV, .HS = 64, .alibi = true, .starts = {0, 37}}, variant);
}

TEST(AttentionCuda, Documents) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase cases[] = {
        {.N = 9, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .starts = {0, 1, 2, 3, 4, 5, 6, 7, 8}},
        {.N = 150, .NH = 2, .NKV = 1, .HS = 96, .alibi = true, .starts = {0, 0, 1, 66, 66, 66, 131, 150}},
        {.N = 150, .NH = 4, .NKV = 2, .HS = 32, .is_causal = false, .alibi = true, .starts = {0, 3, 67, 68, 70, 149}},
        {.N = 130, .NH = 3, .NKV = 1, .HS = 128, .starts = {0, 64, 128}},
        {.N = 500, .NH = 4, .NKV = 2, .HS = 64, .starts = {0, 200, 201, 255, 256, 400}},
        {.N = 500, .NH = 4, .NKV = 2, .HS = 64, .is_causal = false, .alibi = true, .starts = {0, 200, 201, 255, 400}},
        // Scores far apart, so that the running maximum moves.
        {.N = 140, .NH = 2, .NKV = 2, .HS = 64, .value_scale = 3},
        // Slopes that favour far keys, so that it moves with each tile.
        {.N = 700, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .favours_far = true},
        {.N = 700,
         .NH = 2,
         .NKV = 1,
         .HS = 128,
         .is_causal = false,
         .alibi = true,
         .starts = {0, 70},
         .favours_far = true},
        // Sliding windows: causal over 5 and over 70 keys, and looking 40 both ways.
        {.N = 100, .NH = 2, .NKV = 1, .HS = 32, .alibi = true, .window = {4, 0}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 64, .window = {69, 0}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 96, .alibi = true, .window = {40, 40}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .window = {100, -50}},  // not even the query itself
    };
    for (const AttentionCase& c : cases)
        for (const Variant& variant : variants(device)) check(device, c, variant);
}

// ---- Bits ----

TEST(AttentionCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    for (const auto& [dtype, request] : variants(device))
        for (const int64_t HS : {64, 128}) {
            const AttentionCase c = {
                .N = 700, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .starts = {0, 20, 90, 91, 400}};
            const AttentionRun run(with(c, {dtype, request}), dtype, dtype, device);
            run.forward();
            run.backward();
            const AttentionResult first = run.result();
            for (int repeat = 1; repeat < 20; ++repeat) {
                for (const Buffer* buffer : {&run.out, &run.lse, &run.dqkv, &run.workspace})
                    device.fill_bytes(*buffer, 0xff);
                run.forward();
                run.backward();
                ASSERT_TRUE(same_bits(run.result(), first));
            }
        }
}

TEST(AttentionCuda, AnotherDocumentChangesNotOneBit) {
    INGOT_CUDA_OR_SKIP(device);
    for (const auto& [dtype, request] : variants(device))
        for (const bool is_causal : {true, false}) {
            const AttentionCase c = {.N = 170,
                                     .NH = 2,
                                     .NKV = 1,
                                     .HS = 32,
                                     .is_causal = is_causal,
                                     .alibi = true,
                                     .starts = {0, 30, 101, 102}};
            const AttentionRun unchanged(with(c, {dtype, request}), dtype, dtype, device);
            unchanged.forward();
            unchanged.backward();
            const AttentionResult before = unchanged.result();
            for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 30}, {30, 101}, {101, 102}, {102, 170}}) {
                AttentionRun run(with(c, {dtype, request}), dtype, dtype, device);
                perturb(run.qkv, begin, end, 3);
                perturb(run.dout, begin, end, 2);
                run.forward();
                run.backward();
                const AttentionResult after = run.result();
                for (const auto& [b, e] : {std::pair<int64_t, int64_t>{0, begin}, {end, c.N}}) {
                    EXPECT_TRUE(same(rows(after.out, c.N, b, e), rows(before.out, c.N, b, e)));
                    EXPECT_TRUE(same(rows(after.dq, c.N, b, e), rows(before.dq, c.N, b, e)));
                    EXPECT_TRUE(same(rows(after.dk, c.N, b, e), rows(before.dk, c.N, b, e)));
                    EXPECT_TRUE(same(rows(after.dv, c.N, b, e), rows(before.dv, c.N, b, e)));
                }
                EXPECT_GT(max_abs_error(rows(after.out, c.N, begin, end), rows(before.out, c.N, begin, end)), 0.1);
            }
        }
}

TEST(AttentionCuda, TheFutureChangesNotOneBit) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase c = {.N = 140, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .starts = {0, 10}};
    for (const Variant& variant : variants(device)) {
        const DType dtype = variant.dtype;
        const AttentionRun unchanged(with(c, variant), dtype, dtype, device);
        unchanged.forward();
        unchanged.backward();
        const AttentionResult before = unchanged.result();
        for (const int64_t from : {1, 11, 31, 32, 33, 63, 64, 65, 74, 100, 139}) {
            AttentionRun run(with(c, variant), dtype, dtype, device);
            perturb(run.qkv, from, c.N, -4);
            run.forward();
            run.backward();
            const AttentionResult after = run.result();
            EXPECT_TRUE(same(rows(after.out, c.N, 0, from), rows(before.out, c.N, 0, from))) << "from " << from;
            EXPECT_TRUE(same(rows(after.dq, c.N, 0, from), rows(before.dq, c.N, 0, from))) << "from " << from;
        }
    }
}

TEST(AttentionCuda, PackedEqualsEachDocumentAlone) {
    INGOT_CUDA_OR_SKIP(device);
    const std::vector<int64_t> starts = {0, 30, 31, 300, 365, 700};
    for (const auto& [dtype, request] : variants(device)) {
        // In 16 bits two runs round probabilities and results, at other places: each errs by less than an ulp of the
        // whole, 2^-8 or 2^-11. In fp32 what counts is the order of the sums.
        const double tolerance = dtype == DType::bf16 ? 0x1p-7 : dtype == DType::f16 ? 0x1p-10 : 1e-5;
        for (const int64_t HS : {64, 128}) {
            const AttentionCase c =
                with({.N = 700, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .starts = starts}, {dtype, request});
            SCOPED_TRACE(join(Variant{dtype, request}.describe(), ", HS ", HS));
            const AttentionRun packed(c, dtype, dtype, device);
            packed.forward();
            packed.backward();
            const AttentionResult together = packed.result();
            for (size_t document = 0; document + 1 < starts.size(); ++document) {
                const int64_t begin = starts[document], end = starts[document + 1];
                AttentionCase alone_case = c;
                alone_case.N = end - begin;
                alone_case.starts = {0};
                AttentionRun alone(alone_case, dtype, dtype, device);
                alone.qkv.set(rows(packed.qkv.values(), c.N, begin, end));
                alone.dout.set(rows(packed.dout.values(), c.N, begin, end));
                alone.forward();
                alone.backward();
                const AttentionResult apart = alone.result();
                const double scale = norm(alone.dout.values());
                for (const auto& member :
                     {&AttentionResult::out, &AttentionResult::dq, &AttentionResult::dk, &AttentionResult::dv})
                    EXPECT_LE(distance(rows(together.*member, c.N, begin, end), apart.*member),
                              tolerance * std::max(scale, norm(apart.*member)));
            }
        }
    }
}

// ---- NaN and refusals ----

TEST(AttentionCuda, NanIsPassedOn) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase c = {.N = 40, .NH = 1, .NKV = 1, .HS = 32};
    for (const int64_t part : {0, 1, 2}) {  // of query, key or value 39, which query 39 alone sees
        AttentionRun run(c, DType::f32, DType::f32, device);
        std::vector<double> qkv = run.qkv.values();
        qkv[static_cast<size_t>((39 * 3 + part) * 32 + 5)] = std::numeric_limits<double>::quiet_NaN();
        run.qkv.set(qkv);
        run.forward();
        const std::vector<double> out = run.out.values();
        EXPECT_TRUE(std::isnan(out[39 * 32 + 5])) << part;
        EXPECT_EQ(std::isnan(run.lse.values()[39]), part < 2);
    }
}

TEST(AttentionCuda, Refuses) {
    INGOT_CUDA_OR_SKIP(device);
    const auto forward = [&](int64_t HS, DType dtype) {
        AttentionRun({.N = 4, .NH = 2, .NKV = 1, .HS = HS}, dtype, DType::f32, device).forward();
    };
    EXPECT_NO_THROW(forward(32, DType::f32));
    EXPECT_THROW(forward(16, DType::f32), Error);
    EXPECT_THROW(forward(48, DType::bf16), Error);
    EXPECT_THROW(forward(256, DType::bf16), Error);
    EXPECT_THROW(forward(64, DType::f64), Error);
    const AttentionRun run({.N = 4, .NH = 2, .NKV = 1, .HS = 32}, DType::f32, DType::f32, device);
    run.forward();
    AttentionBackward b = run.backward_arguments();
    b.workspace = {};
    EXPECT_THROW(attention_backward(device, b), Error);
    b.workspace = run.workspace.tensor().slice(0, 0, 31);
    EXPECT_THROW(attention_backward(device, b), Error);
}

}  // namespace
}  // namespace ingot::test
