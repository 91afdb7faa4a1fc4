// Embedding on CUDA against the CPU twin in double precision.
//
// Seen to catch: equal tokens in reverse order; the tile itself counted as one before it; a run that goes on taken for
// one that ends; the search for a run's end stopped after one round; dweight overwritten; both passes of the sort by
// the same digit.
#include <cmath>
#include <cstdlib>

#include "kernels/core/rng.h"
#include "kernels/embedding.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

enum class Tokens { uniform, frequent, one, sorted };

// `frequent`: one token in five is the same, and not the first.
std::vector<double> make_tokens(Tokens kind, int64_t N, int64_t V) {
    std::vector<double> tokens(static_cast<size_t>(N));
    for (size_t n = 0; n < tokens.size(); ++n) {
        const auto any = static_cast<int64_t>(random_bits(7, 1, n) % static_cast<uint64_t>(V));
        int64_t token = any;
        if (kind == Tokens::frequent && random_bits(7, 2, n) % 5 == 0) token = V / 2;
        if (kind == Tokens::one) token = V - 1;
        if (kind == Tokens::sorted) token = static_cast<int64_t>(n) * V / N;
        tokens[n] = static_cast<double>(token);
    }
    return tokens;
}

std::vector<double> backward_twin(DType scalar, const std::vector<double>& dout, const std::vector<double>& tokens,
                                  const std::vector<double>& before, int64_t V, int64_t C) {
    const Device cpu = Device::cpu();
    const auto N = static_cast<int64_t>(tokens.size());
    const Buffer dweight(cpu, scalar, {V, C}, before), d(cpu, scalar, {N, C}, dout), t(cpu, DType::i32, {N}, tokens);
    embedding_backward(cpu, {.dweight = dweight, .dout = d, .tokens = t});
    return dweight.values();
}

void check_backward(const Device& device, DType dtype, int64_t N, int64_t V, int64_t C, Tokens kind,
                    int64_t misalignment = 0) {
    SCOPED_TRACE(join(name_of(dtype), " N ", N, " V ", V, " C ", C, " tokens ", static_cast<int>(kind),
                      " misalignment ", misalignment));
    const std::vector<double> tokens = make_tokens(kind, N, V), dout = rounded(normals(N * C, 1), dtype);
    const std::vector<double> before = rounded(normals(V * C, 2), DType::f32);
    const std::vector<double> exact = backward_twin(DType::f64, dout, tokens, before, V, C);
    const std::vector<double> plain = backward_twin(DType::f32, dout, tokens, before, V, C);
    std::vector<double> moved(static_cast<size_t>(misalignment));
    moved.insert(moved.end(), dout.begin(), dout.end());
    const Buffer buffer(device, dtype, {misalignment + N * C}, moved), t(device, DType::i32, {N}, tokens);
    const Tensor d = buffer.tensor().slice(0, misalignment, misalignment + N * C).view({N, C});
    const Buffer dweight(device, DType::f32, {V, C}, before);
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(embedding_backward_workspace(device, d))});
    embedding_backward(device, {.dweight = dweight, .dout = d, .tokens = t, .workspace = workspace});
    const std::vector<double> actual = dweight.values();
    EXPECT_TRUE(close(actual, exact, precision_bound(DType::f32, plain, exact)));
    EXPECT_TRUE(same(buffer.values(), moved));
    // Rows of tokens that never occur keep their bits.
    std::vector<bool> occurs(static_cast<size_t>(V));
    for (const double token : tokens) occurs[static_cast<size_t>(token)] = true;
    for (size_t i = 0; i < actual.size(); ++i)
        ASSERT_TRUE(occurs[i / static_cast<size_t>(C)] || actual[i] == before[i]) << "at " << i;
}

}  // namespace

TEST(EmbeddingCuda, ForwardCopiesRows) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t C : {1, 8, 100, 768, 1032})
            for (const int64_t N : {1, 9, 500}) {
                SCOPED_TRACE(join(name_of(dtype), " C ", C, " N ", N));
                const int64_t V = 37;
                const std::vector<double> tokens = make_tokens(Tokens::uniform, N, V),
                                          table = rounded(normals(V * C, 3), dtype);
                const Buffer weight(device, dtype, {V, C}, table), out(device, dtype, {N, C}),
                    t(device, DType::i32, {N}, tokens);
                embedding_forward(device, {.out = out, .weight = weight, .tokens = t});
                std::vector<double> expected;
                for (const double token : tokens) {
                    const auto* const row = &table[static_cast<size_t>(token) * static_cast<size_t>(C)];
                    expected.insert(expected.end(), row, row + C);
                }
                EXPECT_TRUE(same(out.values(), expected));
            }
}

TEST(EmbeddingCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t C : {10, 64}) {
            const Buffer weight(device, dtype, {9, C}, rounded(normals(9 * C, 3), dtype)), out(device, dtype, {3, C});
            const Buffer t(device, DType::i32, {3}, {8, 0, 8});
            embedding_forward(device, {.out = out, .weight = weight, .tokens = t});
            check_backward(device, dtype, 300, 600, C, Tokens::frequent);
            check_backward(device, dtype, 200, 9, C, Tokens::one);
        }
}

TEST(EmbeddingCuda, BackwardShapes) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const auto& [N, V, C] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                      {1, 5, 8},
                                      {63, 2, 3},
                                      {64, 512, 16},
                                      {65, 513, 24},
                                      {128, 257, 768},
                                      {4096, 300, 40},
                                      {4097, 1000, 64},
                                      {9000, 50304, 8},
                                      {700, 1000, 2056},
                                      {10000, 300000, 4}})
            for (const Tokens kind : {Tokens::uniform, Tokens::frequent, Tokens::one, Tokens::sorted}) {
                check_backward(device, dtype, N, V, C, kind);
                if (testing::Test::HasFailure()) return;
            }
}

TEST(EmbeddingCuda, BackwardMisaligned) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) check_backward(device, dtype, 500, 20, 64, Tokens::frequent, 1);
}

// A run of 26,000 tokens: hundreds of partial sums, and several rounds of the search for its end.
TEST(EmbeddingCuda, BackwardOfALongRun) {
    INGOT_CUDA_OR_SKIP(device);
    check_backward(device, DType::bf16, 130000, 1000, 8, Tokens::frequent);
    check_backward(device, DType::bf16, 40000, 3, 136, Tokens::one);
}

// The order of a run is that of the batch: sums that depend on it in every bit.
TEST(EmbeddingCuda, AddsInTokenOrder) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t N = 50, C = 4;
    const std::vector<double> d = rounded(normals(N * C, 5), DType::f32);
    std::vector<double> expected(static_cast<size_t>(2 * C)), tokens(static_cast<size_t>(N));
    for (size_t n = 0; n < tokens.size(); ++n) {
        tokens[n] = n % 3 == 0 ? 0 : 1;
        for (size_t c = 0; c < static_cast<size_t>(C); ++c) {
            double& sum = expected[static_cast<size_t>(tokens[n]) * static_cast<size_t>(C) + c];
            sum = static_cast<float>(sum + d[n * static_cast<size_t>(C) + c]);
        }
    }
    const Buffer dout(device, DType::f32, {N, C}, d), t(device, DType::i32, {N}, tokens);
    const Buffer dweight(device, DType::f32, {2, C}, std::vector<double>(static_cast<size_t>(2 * C)));
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(embedding_backward_workspace(device, dout))});
    embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = t, .workspace = workspace});
    EXPECT_TRUE(same(dweight.values(), expected));
}

TEST(EmbeddingCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t N = 30000, V = 5000, C = 64;
    const std::vector<double> tokens = make_tokens(Tokens::frequent, N, V), d = normals(N * C, 1),
                              before = normals(V * C, 2);
    const Buffer dout(device, DType::bf16, {N, C}, d), t(device, DType::i32, {N}, tokens);
    Buffer dweight(device, DType::f32, {V, C});
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(embedding_backward_workspace(device, dout))});
    std::vector<double> first;
    for (int repeat = 0; repeat < 20; ++repeat) {
        dweight.set(before);
        device.fill_bytes(workspace, static_cast<uint8_t>(repeat * 37));
        embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = t, .workspace = workspace});
        if (repeat == 0)
            first = dweight.values();
        else
            ASSERT_TRUE(same(dweight.values(), first));
    }
}

TEST(EmbeddingCuda, Refuses) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer dout(device, DType::bf16, {4, 8}), dweight(device, DType::f32, {3, 8}), small(device, DType::u8, {64});
    const Buffer t(device, DType::i32, {4}, {0, 1, 2, 0});
    EXPECT_THROW(embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = t}), Error);
    EXPECT_THROW(embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = t, .workspace = small}),
                 Error);
}

// Ends the process: 42 after a CUDA error.
[[noreturn]] void embed_and_exit(double token) {
    const Device own = Device::cuda(0);
    const Buffer weight(own, DType::f32, {3, 8}, std::vector<double>(24)), out(own, DType::f32, {2, 8});
    const Buffer t(own, DType::i32, {2}, {0, token});
    try {
        embedding_forward(own, {.out = out, .weight = weight, .tokens = t});
        own.synchronize();
    } catch (const Error& error) {
        std::_Exit(error.exit_code == kExitFault ? 42 : 43);
    }
    std::_Exit(0);
}

// In a process of its own: an error of a kernel ends its CUDA context.
TEST(EmbeddingCudaDeathTest, ATokenOutsideTheVocabularyStopsTheProgram) {
    INGOT_CUDA_OR_SKIP(device);
    EXPECT_EQ(device.kind(), DeviceKind::cuda);
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(embed_and_exit(-1), testing::ExitedWithCode(42), "");
    EXPECT_EXIT(embed_and_exit(3), testing::ExitedWithCode(42), "");
}

}  // namespace ingot::test
