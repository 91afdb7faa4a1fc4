// Attention on CUDA against the CPU twin in double precision, in every kernel. test_attention.cpp has what must hold on
// every device, and names what these tests have been seen to catch; is_as_good() is the tolerance.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/attention/attention_compared.h"

namespace ingot::test {
namespace {

constexpr int64_t kHeadSizes[] = {32, 64, 96, 128};
// Rows start at 2 bytes past a multiple of 16, or lie at odd distances, which the SIMT kernel alone takes.
constexpr Margins kMargins[] = {{}, {.before = 1, .after = 7}, {.before = 0, .after = 5}};
constexpr Margins kAlignedMargins[] = {{}, {.before = 8, .after = 16}, {.before = 0, .after = 24}};

void check(const Device& device, const AttentionCase& c, const Variant& variant, size_t margins = 0) {
    const AttentionRun run =
        run_of(c, variant, device, variant.request == kPlain ? kMargins[margins] : kAlignedMargins[margins]);
    SCOPED_TRACE(join(run.c.describe(), ", ", variant.describe(), ", margins ", margins));
    run.forward();
    run.backward();
    expect_as_good(run, variant.dtype);
}

// ---- Every instantiation, in little time: for tools that are slow ----

TEST(AttentionCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t HS : kHeadSizes)
        for (const bool alibi : {true, false})
            for (const Variant& variant : variants(device))
                for (const size_t margins : {0, 1, 2})
                    check(device, {.N = 70, .NH = 2, .NKV = 1, .HS = HS, .alibi = alibi, .starts = {0, 5, 6, 6, 40}},
                          variant, margins);
}

TEST(AttentionCuda, ScoresFarBelowZeroSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const AttentionCase& c : low_score_cases())
        for (const Variant& variant : variants(device)) check(device, c, variant);
}

// Tensors that lie as (heads, N, HS) in memory give the same bits as views of the fused buffer.
TEST(AttentionCuda, AnyStridesSmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const Variant& variant : variants(device)) {
        const DType dtype = variant.dtype;
        const AttentionRun run = run_of({.N = 45, .NH = 6, .NKV = 2, .HS = 32, .alibi = true}, variant, device);
        const AttentionCase& c = run.c;
        const AttentionResult expected = run.both();
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
        far_keys_on_both_sides(700, 128),
        // Sliding windows: causal over 5 and over 70 keys, and looking 40 both ways.
        {.N = 100, .NH = 2, .NKV = 1, .HS = 32, .alibi = true, .window = {4, 0}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 64, .window = {69, 0}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 96, .alibi = true, .window = {40, 40}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .window = {100, -50}},  // not even the query itself
    };
    for (const AttentionCase& c : cases)
        for (const Variant& variant : variants(device)) check(device, c, variant);
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
