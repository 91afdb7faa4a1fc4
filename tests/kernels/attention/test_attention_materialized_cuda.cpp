// Materialized attention (kernels/attention/materialized.h) on a GPU against the CPU twin in double precision.
//
// Tolerance: is_as_good(), where the plain version is the same algorithm in fp32 on the host, rounded where
// materialized.cu rounds: scores, probabilities and their two gradients lie in memory in the tensors' type.
//
// Seen to catch, with materialized.cu's kernels compiled for the host and run there, a fiber for each thread: the
// maximum of each warp alone, the sum of the first warp alone, columns past a block's threads left out, end_key off by
// one, first_key not counted from the row's first token, |i - j| with its sign lost, the first head's slope for all, a
// query without keys divided by 0, the scale left out of dS, sum(P dP) left out, the group's key or value head
// mistaken, a group's last query head alone in dk or dv, the second row's probabilities over the first's, rows of dk
// and dv rounded to the wrong places.
#include <gtest/gtest.h>

#include "kernels/attention/materialized.h"
#include "tests/kernels/attention/attention_compared.h"

namespace ingot::test {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

// out (N, NH, HS) and the gradients, from the inputs of `run` in double precision.
AttentionResult by_the_book(const AttentionRun& run, DType dtype) {
    const AttentionCase& c = run.c;
    const int64_t N = c.N, NH = c.NH, NKV = c.NKV, HS = c.HS, G = NH / NKV;
    const auto floats = [](const std::vector<double>& values) {
        return std::vector<float>(values.begin(), values.end());
    };
    const std::vector<float> q = floats(run.part(run.qkv.values(), 0, NH)),
                             k = floats(run.part(run.qkv.values(), NH, NKV)),
                             v = floats(run.part(run.qkv.values(), NH + NKV, NKV)), dout = floats(run.dout.values());
    const std::vector<double> first_key = run.first_key.values(), end_key = run.end_key.values();
    const std::vector<double> slopes = alibi_slopes(NH);
    const auto scale = static_cast<float>(run.scale());
    const auto dot = [&](const float* a, const float* b) {
        float sum = 0;
        for (int64_t d = 0; d < HS; ++d) sum += a[d] * b[d];
        return sum;
    };
    std::vector<float> out(q.size()), dq(q.size()), dk(k.size()), dv(k.size());
    for (int64_t h = 0; h < NH; ++h)
        for (int64_t i = 0; i < N; ++i) {
            const auto first = static_cast<int64_t>(first_key[static_cast<size_t>(i)]);
            const int64_t count = static_cast<int64_t>(end_key[static_cast<size_t>(i)]) - first;
            if (count <= 0) continue;
            const auto query = static_cast<size_t>((i * NH + h) * HS);
            const auto key = [&](int64_t j) { return static_cast<size_t>(((first + j) * NKV + h / G) * HS); };
            std::vector<double> scores, gradients;
            for (int64_t j = 0; j < count; ++j) {
                scores.push_back(dot(&q[query], &k[key(j)]));
                gradients.push_back(dot(&dout[query], &v[key(j)]));
            }
            scores = rounded(scores, dtype);
            gradients = rounded(gradients, dtype);
            float largest = -std::numeric_limits<float>::infinity(), sum = 0;
            for (int64_t j = 0; j < count; ++j) {
                double& score = scores[static_cast<size_t>(j)];
                const double slope = c.alibi ? slopes[static_cast<size_t>(h)] : 0;
                score = static_cast<float>(scale * score - slope * static_cast<double>(std::abs(i - first - j)));
                largest = std::max(largest, static_cast<float>(score));
            }
            for (const double score : scores) sum += std::exp(static_cast<float>(score) - largest);
            std::vector<double> p, ds;
            for (const double score : scores) p.push_back(std::exp(static_cast<float>(score) - largest) / sum);
            p = rounded(p, dtype);
            float delta = 0;
            for (size_t j = 0; j < p.size(); ++j) delta += static_cast<float>(p[j] * gradients[j]);
            for (size_t j = 0; j < p.size(); ++j) ds.push_back(scale * p[j] * (gradients[j] - delta));
            ds = rounded(ds, dtype);
            for (int64_t j = 0; j < count; ++j) {
                const auto weight = static_cast<float>(p[static_cast<size_t>(j)]);
                const auto gradient = static_cast<float>(ds[static_cast<size_t>(j)]);
                for (size_t d = 0; d < static_cast<size_t>(HS); ++d) {
                    out[query + d] += weight * v[key(j) + d];
                    dq[query + d] += gradient * k[key(j) + d];
                    dv[key(j) + d] += weight * dout[query + d];
                    dk[key(j) + d] += gradient * q[query + d];
                }
            }
        }
    const auto stored = [&](const std::vector<float>& values) {
        return rounded(std::vector<double>(values.begin(), values.end()), dtype);
    };
    return {stored(out), {}, stored(dq), stored(dk), stored(dv)};
}

// The case has rows of T tokens, and documents end with their row.
void check(const Device& device, const AttentionCase& c, int64_t T, DType dtype, Margins margins = {}) {
    SCOPED_TRACE(join(c.describe(), ", rows of ", T, ", ", name_of(dtype), ", margins ", margins.before));
    const AttentionRun run(c, dtype, dtype, device, margins), exact(c, DType::f64, dtype);
    MaterializedAttention attention(device, run.forward_arguments().q, T);
    attention.forward(run.forward_arguments());
    attention.backward(run.backward_arguments());
    exact.forward();
    exact.backward();
    const AttentionResult actual = run.result(), e = exact.result(), plain = by_the_book(exact, dtype);
    const double dout = norm(exact.dout.values());
    for (const auto& [name, values] : kOutAndGradients)
        EXPECT_TRUE(is_as_good(dtype, actual.*values, plain.*values, e.*values, std::max(norm(e.*values), dout)))
            << name;
}

// Every kernel runs in little time, for tools that are slow: two rows, with margins of odd size in memory.
TEST(AttentionNaiveCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const bool is_causal : {true, false})
            for (const bool alibi : {true, false})
                check(device,
                      {.N = 70,
                       .NH = 4,
                       .NKV = 2,
                       .HS = 32,
                       .is_causal = is_causal,
                       .alibi = alibi,
                       .starts = {0, 5, 6, 35, 35, 40}},
                      35, dtype, {8, 16});
}

// Queries 0 to 9 see nothing, keys 23 to 32 are seen by nobody.
TEST(AttentionNaiveCuda, AQueryThatSeesNoKeySmall) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        check(device, {.N = 33, .NH = 1, .NKV = 1, .HS = 32, .alibi = true, .window = {20, -10}}, 33, dtype);
}

// Longer rows than a block has threads, and groups of several sizes.
TEST(AttentionNaiveCuda, LengthsAndGroups) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) {
        check(device, {.N = 333, .NH = 6, .NKV = 2, .HS = 64, .alibi = true, .starts = {0, 100}}, 333, dtype);
        check(device, {.N = 333, .NH = 4, .NKV = 4, .HS = 128, .is_causal = false, .starts = {0, 111, 222}}, 111,
              dtype);
        check(device, {.N = 600, .NH = 8, .NKV = 1, .HS = 96, .starts = {0, 300}}, 300, dtype);
        check(device, {.N = 1, .NH = 1, .NKV = 1, .HS = 64, .alibi = true}, 1, dtype);
    }
}

TEST(AttentionNaiveCuda, CountsItsMatricesAndRefusesPartsOfRows) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionRun run({.N = 64, .NH = 4, .NKV = 2, .HS = 32}, DType::bf16, DType::bf16, device);
    const Tensor q = run.forward_arguments().q;
    // It holds the probabilities of 2 rows and 4 heads, one gradient, and the fp32 accumulators of dk and dv.
    EXPECT_EQ(MaterializedAttention(device, q, 32).bytes(), (2u * 4 + 1) * 32 * 32 * 2 + 2 * 32 * 32 * 4);
    EXPECT_THROW(MaterializedAttention(device, q, 60), Error);
    EXPECT_THROW(MaterializedAttention(device, q, 0), Error);
}

}  // namespace
}  // namespace ingot::test
