// Seen to catch: dweight overwritten instead of added to; the row index without the factor C.
#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/embedding.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();

// Repeats, the first row and the last one that is not padding; rows 2 and 5 never occur.
const std::vector<double> kTokens = {4, 0, 3, 4, 4, 1, 0};
constexpr int64_t N = 7, V = 5, VP = 8;

TEST(Embedding, GradientAgreesWithFiniteDifferences) {
    for (const int64_t C : {1, 6, 131}) {
        const std::vector<double> w = normals(N * C, 1);
        const Buffer tokens(cpu, DType::i32, {N}, kTokens), weight(cpu, DType::f64, {VP, C}, normals(VP * C, 2));
        const Buffer out(cpu, DType::f64, {N, C}), dout(cpu, DType::f64, {N, C}, w);
        const Buffer dweight(cpu, DType::f64, {VP, C}, std::vector<double>(static_cast<size_t>(VP * C)));
        embedding_backward(cpu, {.dweight = dweight, .dout = dout, .tokens = tokens});
        const auto loss = [&] {
            embedding_forward(cpu, {.out = out, .weight = weight, .tokens = tokens});
            double sum = 0;
            const double* const data = out.tensor().get<double>();
            for (size_t i = 0; i < w.size(); ++i) sum += w[i] * data[i];
            return sum;
        };
        check_gradients(loss, {{"weight", weight, dweight.values()}});
    }
}

TEST(Embedding, ForwardCopiesRows) {
    for (const DType dtype : {DType::f32, DType::f64}) {
        const int64_t C = 3;
        const std::vector<double> table = rounded(normals(VP * C, 3), dtype);
        const Buffer tokens(cpu, DType::i32, {N}, kTokens), weight(cpu, dtype, {VP, C}, table), out(cpu, dtype, {N, C});
        embedding_forward(cpu, {.out = out, .weight = weight, .tokens = tokens});
        std::vector<double> expected;
        for (const double token : kTokens)
            for (int64_t c = 0; c < C; ++c) expected.push_back(table[static_cast<size_t>(token) * C + c]);
        EXPECT_TRUE(same(out.values(), expected));
    }
}

// The same loop in the same order, so the bits agree; rows of other tokens keep theirs.
TEST(Embedding, BackwardAddsInTokenOrder) {
    const int64_t C = 70;
    const std::vector<double> before = rounded(normals(VP * C, 4), DType::f32), d = normals(N * C, 5);
    std::vector<double> expected = before;
    for (int64_t n = 0; n < N; ++n)
        for (int64_t c = 0; c < C; ++c) {
            double& cell = expected[static_cast<size_t>(kTokens[static_cast<size_t>(n)]) * C + c];
            cell = static_cast<float>(cell) + static_cast<float>(d[static_cast<size_t>(n * C + c)]);
            cell = static_cast<float>(cell);
        }
    const int threads = omp_get_max_threads();
    for (const int count : {1, 2, 3}) {
        omp_set_num_threads(count);
        const Buffer tokens(cpu, DType::i32, {N}, kTokens), dout(cpu, DType::f32, {N, C}, d);
        const Buffer dweight(cpu, DType::f32, {VP, C}, before);
        embedding_backward(cpu, {.dweight = dweight, .dout = dout, .tokens = tokens});
        EXPECT_TRUE(same(dweight.values(), expected)) << count << " threads";
    }
    omp_set_num_threads(threads);
}

TEST(Embedding, Refuses) {
    const Buffer weight(cpu, DType::f32, {VP, 4}), out(cpu, DType::f32, {2, 4}), narrow(cpu, DType::f32, {2, 3});
    const Buffer wide(cpu, DType::f64, {2, 4}), good(cpu, DType::i32, {2}, {0, 1}),
        three(cpu, DType::i32, {3}, {0, 1, 2});
    const Buffer negative(cpu, DType::i32, {2}, {0, -1}), large(cpu, DType::i32, {2}, {0, VP});
    const Buffer floats(cpu, DType::f32, {2}, {0, 1});
    EXPECT_THROW(embedding_forward(cpu, {.out = narrow, .weight = weight, .tokens = good}), Error);
    EXPECT_THROW(embedding_forward(cpu, {.out = wide, .weight = weight, .tokens = good}), Error);
    EXPECT_THROW(embedding_forward(cpu, {.out = out, .weight = weight, .tokens = three}), Error);
    EXPECT_THROW(embedding_forward(cpu, {.out = out, .weight = weight, .tokens = floats}), Error);
    EXPECT_THROW(embedding_forward(cpu, {.out = out, .weight = weight, .tokens = negative}), Error);
    EXPECT_THROW(embedding_backward(cpu, {.dweight = weight, .dout = out, .tokens = large}), Error);
    EXPECT_THROW(embedding_backward(cpu, {.dweight = weight, .dout = wide, .tokens = good}), Error);
}

}  // namespace
}  // namespace ingot::test
