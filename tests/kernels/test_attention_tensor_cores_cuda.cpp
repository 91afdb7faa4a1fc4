// The tensor-core attention kernels on a GPU, beyond what test_attention_cuda.cpp asks of every kernel: more lengths,
// rows too long for the CPU, repeats, and dq in any order.
#include <gtest/gtest.h>

#include "tests/kernels/attention_compared.h"

namespace ingot::test {
namespace {

constexpr AttentionOptions kDeterministic = {.request = AttentionRequest::sm80};
constexpr AttentionOptions kAnyOrder = {.request = AttentionRequest::sm80, .is_deterministic = false};
constexpr int64_t kHeadSizes[] = {32, 64, 96, 128};

void check(const Device& device, const AttentionCase& c, DType dtype) {
    SCOPED_TRACE(join(c.describe(), ", ", name_of(dtype), c.options.is_deterministic ? "" : ", any order"));
    const AttentionRun run(c, dtype, dtype, device);
    run.forward();
    run.backward();
    Compared(c, dtype).expect(run);
}

// Every remainder of the tiles, as one document and with one that ends within the last tiles.
TEST(AttentionSm80Cuda, EveryLength) {
    INGOT_CUDA_OR_SKIP(device);
    for (int64_t rest = 0; rest < 128; ++rest) {
        const int64_t N = 128 * (1 + rest % 3) + rest;
        check(device,
              {.N = N,
               .NH = 2,
               .NKV = 1 + rest % 2,
               .HS = kHeadSizes[rest % 4],
               .is_causal = rest % 5 != 0,
               .alibi = rest % 3 == 0,
               .starts = rest % 2 == 0 ? std::vector<int64_t>{0} : std::vector<int64_t>{0, N / 2, N - 1},
               .options = kDeterministic},
              rest % 7 == 0 ? DType::f16 : DType::bf16);
    }
}

TEST(AttentionSm80Cuda, GroupsAndHeads) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t G : {1, 2, 3, 4, 7, 8})
        for (const int64_t HS : {64, 128})
            check(device,
                  {.N = 333,
                   .NH = 2 * G,
                   .NKV = 2,
                   .HS = HS,
                   .alibi = true,
                   .starts = {0, 100},
                   .options = kDeterministic},
                  DType::bf16);
    for (const int64_t NH : {12, 14})
        check(device, {.N = 400, .NH = NH, .NKV = 2, .HS = 64, .alibi = true, .options = kDeterministic}, DType::bf16);
}

TEST(AttentionSm80Cuda, AnyOrderIsAsGood) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t HS : kHeadSizes)
        for (const bool is_causal : {true, false})
            check(device,
                  {.N = 1000,
                   .NH = 4,
                   .NKV = 2,
                   .HS = HS,
                   .is_causal = is_causal,
                   .alibi = true,
                   .starts = {0, 100, 700},
                   .options = kAnyOrder},
                  DType::bf16);
}

// 40,000 tokens, against the plain kernel in fp32 on the same numbers: its own error is a thousandth of what bf16
// rounds.
TEST(AttentionSm80Cuda, LongRows) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t HS : {64, 128})
        for (const bool has_documents : {false, true}) {
            AttentionCase c = {
                .N = 40000,
                .NH = 2,
                .NKV = 1,
                .HS = HS,
                .alibi = HS == 64,
                .starts = has_documents ? std::vector<int64_t>{0, 1, 129, 20000, 39999} : std::vector<int64_t>{0}};
            SCOPED_TRACE(c.describe());
            const AttentionRun exact(c, DType::f32, DType::bf16, device);
            exact.forward();
            exact.backward();
            c.options = kDeterministic;
            const AttentionRun run(c, DType::bf16, DType::bf16, device);
            run.forward();
            run.backward();
            const AttentionResult a = run.result(), e = exact.result();
            const double dout = norm(exact.dout.values());
            for (const auto& [name, member] : {std::pair{"out", &AttentionResult::out},
                                               {"dq", &AttentionResult::dq},
                                               {"dk", &AttentionResult::dk},
                                               {"dv", &AttentionResult::dv}})
                EXPECT_TRUE(is_as_good(DType::bf16, a.*member, rounded(e.*member, DType::bf16), e.*member,
                                       std::max(norm(e.*member), dout)))
                    << name;
            // Both sum the same products in another order.
            EXPECT_LE(max_abs_error(a.lse, e.lse), 1e-4);
        }
}

// The bytes of contiguous tensors, one after the other.
std::vector<unsigned char> bytes_of(const Device& device, std::initializer_list<const Buffer*> buffers) {
    std::vector<unsigned char> result;
    for (const Buffer* buffer : buffers) {
        Tensor host = buffer->tensor();
        const size_t begin = result.size();
        result.resize(begin + static_cast<size_t>(host.bytes()));
        host.data = result.data() + begin;
        host.device = DeviceKind::cpu;
        device.copy(host, buffer->tensor());
    }
    return result;
}

// More tiles of keys than run at a time, so that blocks wait for each other in many ways.
TEST(AttentionSm80Cuda, AHundredRepeatsGiveTheSameBits) {
    INGOT_CUDA_OR_SKIP(device);
    for (const int64_t HS : {64, 128})
        for (const int64_t NKV : {12, 4}) {
            const AttentionCase c = {.N = 4000,
                                     .NH = 12,
                                     .NKV = NKV,
                                     .HS = HS,
                                     .alibi = true,
                                     .starts = {0, 20, 90, 91, 400, 2500},
                                     .options = kDeterministic};
            const AttentionRun run(c, DType::bf16, DType::bf16, device);
            std::vector<unsigned char> first;
            for (int repeat = 0; repeat < 100; ++repeat) {
                for (const Buffer* buffer : {&run.out, &run.lse, &run.dqkv, &run.workspace})
                    device.fill_bytes(*buffer, 0xff);
                run.forward();
                run.backward();
                const std::vector<unsigned char> bytes = bytes_of(device, {&run.out, &run.lse, &run.dqkv});
                if (repeat == 0) first = bytes;
                ASSERT_TRUE(bytes == first) << "repeat " << repeat << " of " << c.describe();
            }
        }
}

TEST(AttentionSm80Cuda, PackedEqualsEachDocumentAlone) {
    INGOT_CUDA_OR_SKIP(device);
    const std::vector<int64_t> starts = {0, 30, 31, 300, 365, 700};
    for (const int64_t HS : {64, 128}) {
        const AttentionCase c = {
            .N = 700, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .starts = starts, .options = kDeterministic};
        const AttentionRun packed(c, DType::bf16, DType::bf16, device);
        packed.forward();
        packed.backward();
        const AttentionResult together = packed.result();
        for (size_t document = 0; document + 1 < starts.size(); ++document) {
            const int64_t begin = starts[document], end = starts[document + 1];
            const AttentionCase alone_case = {
                .N = end - begin, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .options = kDeterministic};
            AttentionRun alone(alone_case, DType::bf16, DType::bf16, device);
            alone.qkv.set(rows(packed.qkv.values(), c.N, begin, end));
            alone.dout.set(rows(packed.dout.values(), c.N, begin, end));
            alone.forward();
            alone.backward();
            const AttentionResult apart = alone.result();
            const double scale = norm(alone.dout.values());
            // Two runs that each round probabilities and results to bf16, at other places: each errs by less than an
            // ulp, 2^-8, of the whole.
            for (const auto& member :
                 {&AttentionResult::out, &AttentionResult::dq, &AttentionResult::dk, &AttentionResult::dv})
                EXPECT_LE(distance(rows(together.*member, c.N, begin, end), apart.*member),
                          0x1p-7 * std::max(scale, norm(apart.*member)));
        }
    }
}

TEST(AttentionSm80Cuda, Refuses) {
    INGOT_CUDA_OR_SKIP(device);
    const auto run = [&](DType dtype, AttentionPadding padding) {
        AttentionRun({.N = 4, .NH = 2, .NKV = 1, .HS = 32, .options = kDeterministic}, dtype, dtype, device, padding)
            .forward();
    };
    EXPECT_NO_THROW(run(DType::bf16, {.before = 8, .after = 8}));
    EXPECT_THROW(run(DType::f32, {}), UserError);
    EXPECT_THROW(run(DType::bf16, {.before = 1, .after = 7}), Error);
    EXPECT_THROW(run(DType::f16, {.before = 0, .after = 4}), Error);
    const AttentionRun good({.N = 4, .NH = 2, .NKV = 1, .HS = 32, .options = kDeterministic}, DType::bf16, DType::bf16,
                            device);
    good.forward();
    AttentionForward f = good.forward_arguments();
    f.scale = 0;
    EXPECT_THROW(attention_forward(device, f), Error);
    AttentionBackward b = good.backward_arguments();
    b.workspace = good.workspace.tensor().slice(0, 0, good.workspace.tensor().bytes() - 1);
    EXPECT_THROW(attention_backward(device, b), Error);
}

}  // namespace
}  // namespace ingot::test
