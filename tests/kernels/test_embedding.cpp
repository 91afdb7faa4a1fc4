// Seen to catch: dweight overwritten; the row index without the factor C; equal tokens in reverse order; on CUDA, the
// tile itself counted as one before it; a run that goes on taken for one that ends; the search for a run's end stopped
// after one round; both passes of the sort by the same digit.
#include <cstdlib>

#include "kernels/core/rng.h"
#include "kernels/embedding.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Embedding);

// `frequent`: one token in five is the same, and not the first. `alternate`: two tokens in turns.
enum class Tokens { uniform, frequent, one, sorted, alternate };

struct Case {
    Case(int64_t N, int64_t V, int64_t C, Tokens kind, DType dtype, Margins margins = {})
        : N(N), V(V), C(C), margins(margins), tokens(static_cast<size_t>(N)) {
        for (size_t n = 0; n < tokens.size(); ++n) {
            auto token = static_cast<int64_t>(random_bits(7, 1, n) % static_cast<uint64_t>(V));
            if (kind == Tokens::frequent && random_bits(7, 2, n) % 5 == 0) token = V / 2;
            if (kind == Tokens::one) token = V - 1;
            if (kind == Tokens::sorted) token = static_cast<int64_t>(n) * V / N;
            if (kind == Tokens::alternate) token = n % 3 == 0 ? 0 : 1;
            tokens[n] = static_cast<double>(token);
        }
        table = rounded(normals(V * C, 3), dtype);
        dout = rounded(normals(N * C, 1), dtype);
        before = rounded(normals(V * C, 2), accumulation_dtype(dtype));
        trace = join(name_of(dtype), " N ", N, " V ", V, " C ", C, " tokens ", static_cast<int>(kind), " margins ",
                     margins.before);
    }
    size_t row(size_t n) const { return static_cast<size_t>(tokens[n]) * static_cast<size_t>(C); }
    int64_t N, V, C;
    Margins margins;  // of the gradient, so that rows begin anywhere
    std::vector<double> tokens, table, dout, before;
    std::string trace;
};

// Sums in the order of tokens, in T.
template <typename T>
Outputs definition(const Case& c) {
    std::vector<double> out(c.dout.size()), dweight = c.before;
    const auto C = static_cast<size_t>(c.C);
    for (size_t n = 0; n < c.tokens.size(); ++n)
        for (size_t i = 0; i < C; ++i) {
            out[n * C + i] = c.table[c.row(n) + i];
            double& sum = dweight[c.row(n) + i];
            sum = static_cast<T>(static_cast<T>(sum) + static_cast<T>(c.dout[n * C + i]));
        }
    return {{"out", {}, out}, {"dweight", {}, dweight}};
}

Outputs run(const Case& c, const Device& device, DType dtype) {
    const Buffer weight(device, dtype, {c.V, c.C}, c.table), out(device, dtype, {c.N, c.C});
    const Buffer tokens(device, DType::i32, {c.N}, c.tokens), flat(c.margins, device, dtype, {c.N * c.C}, c.dout);
    embedding_forward(device, {.out = out, .weight = weight, .tokens = tokens});
    const Tensor dout = flat.tensor().view({c.N, c.C});
    const Buffer dweight(device, accumulation_dtype(dtype), {c.V, c.C}, c.before);
    const Buffer workspace(device, DType::u8, {static_cast<int64_t>(embedding_backward_workspace(device, dout))});
    static uint8_t rubbish = 0;  // another one each time, on which nothing may depend
    device.fill_bytes(workspace, rubbish += 37);
    embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = tokens, .workspace = workspace});
    EXPECT_TRUE(same(flat.values(), c.dout));
    return {{"out", dtype, out.values()}, {"dweight", accumulation_dtype(dtype), dweight.values()}};
}

Run run_of(const Case& c) {
    return [&c](const Device& device, DType dtype) { return run(c, device, dtype); };
}

// The CPU adds in the order of tokens, and so does the definition: the same bits.
void check(const Device& device, DType dtype, const Case& c) {
    SCOPED_TRACE(c.trace);
    const Outputs exact = dtype == DType::f32 && device.is_cpu() ? definition<float>(c) : definition<double>(c);
    const Outputs actual = check_outputs(device, dtype, 0, exact, run_of(c));
    EXPECT_TRUE(same(values_of(actual, "out"), values_of(exact, "out")));
    // Rows of tokens that never occur keep their bits.
    std::vector<bool> occurs(static_cast<size_t>(c.V));
    for (const double token : c.tokens) occurs[static_cast<size_t>(token)] = true;
    const std::vector<double>& dweight = values_of(actual, "dweight");
    for (size_t i = 0; i < dweight.size(); ++i)
        ASSERT_TRUE(occurs[i / static_cast<size_t>(c.C)] || dweight[i] == c.before[i]) << "at " << i;
}

TEST_P(Embedding, Small) {
    for (const DType dtype : dtypes())
        for (const int64_t C : {10, 64}) {
            check(device(), dtype, Case(3, 9, C, Tokens::uniform, dtype));
            check(device(), dtype, Case(300, 600, C, Tokens::frequent, dtype));
            check(device(), dtype, Case(200, 9, C, Tokens::one, dtype));
        }
}

TEST_P(Embedding, ForwardShapes) {
    for (const DType dtype : dtypes())
        for (const int64_t C : {1, 3, 8, 100, 768, 1032})
            for (const int64_t N : {1, 9, 500})
                if (!skips(N * C)) check(device(), dtype, Case(N, 37, C, Tokens::uniform, dtype));
}

TEST_P(Embedding, BackwardShapes) {
    for (const DType dtype : dtypes())
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
                if (skips(V * C)) continue;
                check(device(), dtype, Case(N, V, C, kind, dtype));
                if (HasFailure()) return;
            }
}

TEST_P(Embedding, BackwardMisaligned) {
    for (const DType dtype : dtypes())
        check(device(), dtype, Case(500, 20, 64, Tokens::frequent, dtype, {.before = 1}));
}

// A run of 26,000 tokens: on CUDA hundreds of partial sums, and several rounds of the search for its end.
TEST_P(Embedding, BackwardOfALongRun) {
    const DType dtype = dtypes()[1];
    check(device(), dtype, Case(130000, 1000, 8, Tokens::frequent, dtype));
    check(device(), dtype, Case(40000, 3, 136, Tokens::one, dtype));
}

// The order of a run is that of the batch: sums that depend on it in every bit.
TEST_P(Embedding, AddsInTokenOrder) {
    Case c(50, 2, 4, Tokens::alternate, DType::f32);
    if (is_cuda()) c.before.assign(c.before.size(), 0);  // CUDA adds up a run before it adds it to dweight
    EXPECT_TRUE(same(values_of(run(c, device(), DType::f32), "dweight"), values_of(definition<float>(c), "dweight")));
}

TEST_P(Embedding, SameBitsEveryTime) {
    check_same_bits(device(), dtypes()[1], run_of(Case(30000, 5000, 64, Tokens::frequent, dtypes()[1])));
}

TEST(EmbeddingGradient, AgreesWithFiniteDifferences) {
    for (const int64_t C : {1, 6, 131}) {
        Case c(7, 8, C, Tokens::frequent, DType::f64);
        c.before.assign(c.before.size(), 0);
        const auto outputs = [&] { return run(c, Device::cpu(), DType::f64); };
        check_host_gradients([&] { return dot(c.dout, values_of(outputs(), "out")); },
                             {{"weight", &c.table, values_of(outputs(), "dweight")}});
    }
}

TEST(EmbeddingArguments, Refuses) {
    const Device cpu = Device::cpu();
    constexpr int64_t VP = 8;
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

TEST(EmbeddingCuda, RefusesASmallWorkspace) {
    INGOT_CUDA_OR_SKIP(device);
    const Buffer dout(device, DType::bf16, {4, 8}), dweight(device, DType::f32, {3, 8}), small(device, DType::u8, {64});
    const Buffer t(device, DType::i32, {4}, {0, 1, 2, 0});
    EXPECT_THROW(embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = t}), Error);
    EXPECT_THROW(embedding_backward(device, {.dweight = dweight, .dout = dout, .tokens = t, .workspace = small}),
                 Error);
}

// Ends the process, with 42 after a CUDA error.
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

}  // namespace
}  // namespace ingot::test
