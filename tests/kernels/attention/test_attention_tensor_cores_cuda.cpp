// The tensor-core attention kernels on a GPU, beyond what test_attention_cuda.cpp asks of every kernel: more lengths,
// rows too long for the CPU, repeats, graphs, and dq in any order. sm90 where the GPU is a Hopper one.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>

#include "tests/kernels/attention/attention_compared.h"

namespace ingot::test {
namespace {

class AttentionTensorCoresCuda : public testing::TestWithParam<AttentionRequest> {
  protected:
    AttentionOptions deterministic() const { return {.request = GetParam()}; }
    AttentionOptions any_order() const { return {.request = GetParam(), .is_deterministic = false}; }
    bool is_sm90() const { return GetParam() == AttentionRequest::sm90; }
    std::vector<int64_t> head_sizes() const {
        return is_sm90() ? std::vector<int64_t>{64, 128} : std::vector<int64_t>{32, 64, 96, 128};
    }
};
INSTANTIATE_TEST_SUITE_P(Kernels, AttentionTensorCoresCuda,
                         testing::Values(AttentionRequest::sm80, AttentionRequest::sm90),
                         [](const auto& info) { return info.param == AttentionRequest::sm90 ? "sm90" : "sm80"; });

bool has_sm90(const Device& device) {
    return choose_attention(device, DType::bf16, 64).kernel == AttentionKernel::sm90;
}
#define INGOT_KERNEL_OR_SKIP(device) \
    INGOT_CUDA_OR_SKIP(device);      \
    if (is_sm90() && !has_sm90(device)) GTEST_SKIP() << "not a Hopper GPU"

void check(const Device& device, const AttentionCase& c, DType dtype) {
    SCOPED_TRACE(join(c.describe(), ", ", name_of(dtype), c.options.is_deterministic ? "" : ", any order"));
    const AttentionRun run(c, dtype, dtype, device);
    run.forward();
    run.backward();
    expect_as_good(run, dtype);
}

// Every remainder of the tiles, as one document and with one that ends within the last tiles.
TEST_P(AttentionTensorCoresCuda, EveryLength) {
    INGOT_KERNEL_OR_SKIP(device);
    const std::vector<int64_t> sizes = head_sizes();
    for (int64_t rest = 0; rest < 128; ++rest) {
        const int64_t N = 128 * (1 + rest % 3) + rest;
        check(device,
              {.N = N,
               .NH = 2,
               .NKV = 1 + rest % 2,
               .HS = sizes[static_cast<size_t>(rest) % sizes.size()],
               .is_causal = rest % 5 != 0,
               .alibi = rest % 3 == 0,
               .starts = rest % 2 == 0 ? std::vector<int64_t>{0} : std::vector<int64_t>{0, N / 2, N - 1},
               .options = deterministic()},
              rest % 7 == 0 ? DType::f16 : DType::bf16);
    }
}

TEST_P(AttentionTensorCoresCuda, GroupsAndHeads) {
    INGOT_KERNEL_OR_SKIP(device);
    for (const int64_t G : {1, 2, 3, 4, 7, 8})
        for (const int64_t HS : {64, 128})
            check(device,
                  {.N = 333,
                   .NH = 2 * G,
                   .NKV = 2,
                   .HS = HS,
                   .alibi = true,
                   .starts = {0, 100},
                   .options = deterministic()},
                  DType::bf16);
    for (const int64_t NH : {12, 14})
        check(device, {.N = 400, .NH = NH, .NKV = 2, .HS = 64, .alibi = true, .options = deterministic()}, DType::bf16);
}

TEST_P(AttentionTensorCoresCuda, AnyOrderIsAsGood) {
    INGOT_KERNEL_OR_SKIP(device);
    for (const int64_t HS : head_sizes())
        for (const bool is_causal : {true, false})
            check(device,
                  {.N = 1000,
                   .NH = 4,
                   .NKV = 2,
                   .HS = HS,
                   .is_causal = is_causal,
                   .alibi = true,
                   .starts = {0, 100, 700},
                   .options = any_order()},
                  DType::bf16);
}

// 40,000 tokens, against the SIMT kernel in fp32 on the same numbers: its own error is a thousandth of what bf16
// rounds.
TEST_P(AttentionTensorCoresCuda, LongRows) {
    INGOT_KERNEL_OR_SKIP(device);
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
            // Once for both kernels.
            static std::map<std::string, std::pair<AttentionResult, double>> known;
            auto& [e, dout] = known[c.describe()];
            if (e.out.empty()) {
                const AttentionRun exact(c, DType::f32, DType::bf16, device);
                e = exact.both();
                dout = norm(exact.dout.values());
            }
            c.options = deterministic();
            const AttentionResult a = AttentionRun(c, DType::bf16, DType::bf16, device).both();
            for (const auto& [name, values] : kOutAndGradients)
                EXPECT_TRUE(is_as_good(DType::bf16, a.*values, rounded(e.*values, DType::bf16), e.*values,
                                       std::max(norm(e.*values), dout)))
                    << name;
            // Both add the same terms in another order.
            EXPECT_LE(max_abs_error(a.lse, e.lse), 1e-4);
        }
}

// Keeps the bytes of contiguous tensors, and compares others with them: in page-locked memory, to which a hundred
// repeats are copied soon.
class Bytes {
  public:
    using Buffers = std::initializer_list<const Buffer*>;
    Bytes(const Device& device, Buffers buffers) : device_(device) { copy(kept_, buffers); }
    bool are(Buffers buffers) {
        constexpr int64_t kPart = 1 << 20;
        copy(again_, buffers);
        bool is_same = true;
#pragma omp parallel for reduction(&& : is_same)
        for (int64_t begin = 0; begin < size_; begin += kPart)
            is_same = is_same && std::memcmp(static_cast<uint8_t*>(kept_.get()) + begin,
                                             static_cast<uint8_t*>(again_.get()) + begin,
                                             static_cast<size_t>(std::min(kPart, size_ - begin))) == 0;
        return is_same;
    }

  private:
    void copy(std::shared_ptr<void>& to, Buffers buffers) {
        size_ = 0;
        for (const Buffer* buffer : buffers) size_ += buffer->tensor().bytes();
        if (!to) to = device_.allocate_host(static_cast<size_t>(size_));
        int64_t begin = 0;
        for (const Buffer* buffer : buffers) {
            Tensor host = buffer->tensor();
            host.data = static_cast<uint8_t*>(to.get()) + begin;
            host.device = DeviceKind::cpu;
            device_.copy(host, buffer->tensor());
            begin += host.bytes();
        }
    }
    Device device_;
    int64_t size_ = 0;
    std::shared_ptr<void> kept_, again_;
};

// More tiles of keys than run at a time, so that blocks wait for each other in many ways.
TEST_P(AttentionTensorCoresCuda, AHundredRepeatsGiveTheSameBits) {
    INGOT_KERNEL_OR_SKIP(device);
    for (const int64_t HS : {64, 128})
        for (const int64_t NKV : {12, 4}) {
            const AttentionCase c = {.N = 4000,
                                     .NH = 12,
                                     .NKV = NKV,
                                     .HS = HS,
                                     .alibi = true,
                                     .starts = {0, 20, 90, 91, 400, 2500},
                                     .options = deterministic()};
            const AttentionRun run(c, DType::bf16, DType::bf16, device);
            run.forward();
            run.backward();
            Bytes first(device, {&run.out, &run.lse, &run.dqkv});
            for (int repeat = 1; repeat < 100; ++repeat) {
                for (const Buffer* buffer : {&run.out, &run.lse, &run.dqkv, &run.workspace})
                    device.fill_bytes(*buffer, 0xff);
                run.forward();
                run.backward();
                ASSERT_TRUE(first.are({&run.out, &run.lse, &run.dqkv}))
                    << "repeat " << repeat << " of " << c.describe();
            }
        }
}

// What is recorded once runs on whatever the buffers hold then, documents included, and every time anew.
TEST_P(AttentionTensorCoresCuda, AGraphGivesTheSameBits) {
    INGOT_KERNEL_OR_SKIP(device);
    for (const int64_t HS : {64, 128}) {
        AttentionCase c = {.N = 1500, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .options = deterministic()};
        const AttentionRun recorded(c, DType::bf16, DType::bf16, device);
        DeviceGraph graph(device);
        double seed = 0;
        for (const std::vector<int64_t>& starts : std::vector<std::vector<int64_t>>{{0}, {0, 700}, {0, 1, 2, 1400}}) {
            c.starts = starts;
            AttentionRun direct(c, DType::bf16, DType::bf16, device);
            perturb(direct.qkv, 0, c.N, seed += 0.5);
            perturb(direct.dout, 0, c.N, seed);
            direct.forward();
            direct.backward();
            Bytes expected(device, {&direct.out, &direct.lse, &direct.dqkv});
            device.copy(recorded.qkv, direct.qkv);
            device.copy(recorded.dout, direct.dout);
            device.copy(recorded.first_key, direct.first_key);
            device.copy(recorded.end_key, direct.end_key);
            device.copy(recorded.first_query, direct.first_query);
            device.copy(recorded.end_query, direct.end_query);
            for (int replay = 0; replay < 50; ++replay) {
                for (const Buffer* buffer : {&recorded.out, &recorded.lse, &recorded.dqkv, &recorded.workspace})
                    device.fill_bytes(*buffer, 0xff);
                graph.run([&] {
                    recorded.forward();
                    recorded.backward();
                });
                ASSERT_TRUE(expected.are({&recorded.out, &recorded.lse, &recorded.dqkv}))
                    << "replay " << replay << " with " << starts.size() << " documents";
            }
        }
    }
}

// Two streams of one GPU, each with launches of its own and replays of a graph, at the same time: no launch counts its
// tickets where another does.
TEST_P(AttentionTensorCoresCuda, StreamsSideBySide) {
    INGOT_KERNEL_OR_SKIP(device);
    const Device other = Device::cuda(0);
    const AttentionCase c = {.N = 3000, .NH = 4, .NKV = 2, .HS = 64, .starts = {0, 100}, .options = deterministic()};
    const Device* const streams[] = {&device, &other};
    std::vector<std::unique_ptr<AttentionRun>> runs;  // for each stream: at once, and by a graph
    for (int i = 0; i < 4; ++i) {
        runs.push_back(std::make_unique<AttentionRun>(c, DType::bf16, DType::bf16, *streams[i / 2]));
        perturb(runs.back()->qkv, 0, c.N, i);
    }
    std::vector<Bytes> expected;
    for (const auto& run : runs) {
        run->forward();
        expected.emplace_back(run->device, Bytes::Buffers{&run->out, &run->lse});
        run->device.synchronize();
    }
    DeviceGraph graphs[] = {DeviceGraph(device), DeviceGraph(other)};
    for (int round = 0; round < 20; ++round) {
        for (const auto& run : runs)
            for (const Buffer* buffer : {&run->out, &run->lse}) run->device.fill_bytes(*buffer, 0xff);
        for (int launch = 0; launch < 10; ++launch)
            for (size_t stream = 0; stream < 2; ++stream) {
                runs[2 * stream]->forward();
                graphs[stream].run([&] { runs[2 * stream + 1]->forward(); });
            }
        for (size_t i = 0; i < runs.size(); ++i)
            ASSERT_TRUE(expected[i].are({&runs[i]->out, &runs[i]->lse})) << "round " << round << ", run " << i;
    }
}

// More launches than counters of tickets, in graphs that do not live long.
TEST_P(AttentionTensorCoresCuda, ManyGraphs) {
    INGOT_KERNEL_OR_SKIP(device);
    const AttentionRun run({.N = 100, .NH = 2, .NKV = 1, .HS = 64, .options = deterministic()}, DType::bf16,
                           DType::bf16, device);
    run.forward();
    Bytes expected(device, {&run.out, &run.lse});
    for (int round = 0; round < 70; ++round) {
        for (const Buffer* buffer : {&run.out, &run.lse}) device.fill_bytes(*buffer, 0xff);
        DeviceGraph graph(device);
        graph.run([&] {
            for (int launch = 0; launch < 1000; ++launch) run.forward();
        });
        ASSERT_TRUE(expected.are({&run.out, &run.lse})) << "round " << round;
    }
}

TEST_P(AttentionTensorCoresCuda, Refuses) {
    INGOT_KERNEL_OR_SKIP(device);
    const auto run = [&](DType dtype, Margins margins, int64_t HS = 64) {
        AttentionRun({.N = 4, .NH = 2, .NKV = 1, .HS = HS, .options = deterministic()}, dtype, dtype, device, margins)
            .forward();
    };
    EXPECT_NO_THROW(run(DType::bf16, {.before = 8, .after = 8}));
    EXPECT_THROW(run(DType::f32, {}), UserError);
    EXPECT_THROW(run(DType::bf16, {.before = 1, .after = 7}), Error);
    EXPECT_THROW(run(DType::f16, {.before = 0, .after = 4}), Error);
    for (const int64_t HS : {32, 96}) {
        if (is_sm90())
            EXPECT_THROW(run(DType::bf16, {}, HS), UserError);
        else
            EXPECT_NO_THROW(run(DType::bf16, {}, HS));
    }
    const AttentionRun good({.N = 4, .NH = 2, .NKV = 1, .HS = 64, .options = deterministic()}, DType::bf16, DType::bf16,
                            device);
    good.forward();
    AttentionForward f = good.forward_arguments();
    f.scale = 0;
    EXPECT_THROW(attention_forward(device, f), Error);
    AttentionBackward b = good.backward_arguments();
    b.workspace = good.workspace.tensor().slice(0, 0, good.workspace.tensor().bytes() - 1);
    EXPECT_THROW(attention_backward(device, b), Error);
}

// A head of keys and values that stands for two, as PyTorch expands it.
TEST(AttentionCuda, ViewsThatRepeat) {
    INGOT_CUDA_OR_SKIP(device);
    const AttentionCase c = {.N = 300, .NH = 4, .NKV = 1, .HS = 64, .starts = {0, 100}};
    const AttentionRun expanded(c, DType::bf16, DType::bf16, device), once(c, DType::bf16, DType::bf16, device);
    AttentionForward f = expanded.forward_arguments();
    for (Tensor* tensor : {&f.k, &f.v}) tensor->shape[1] = 2, tensor->stride[1] = 0;
    attention_forward(device, f);
    AttentionForward expected = once.forward_arguments();
    expected.options.request = AttentionRequest::sm80;
    attention_forward(device, expected);
    EXPECT_TRUE(Bytes(device, {&once.out, &once.lse}).are({&expanded.out, &expanded.lse}));
}

TEST(AttentionCuda, Sm90IsRefusedWhereTheGpuIsNoHopper) {
    INGOT_CUDA_OR_SKIP(device);
    if (has_sm90(device)) GTEST_SKIP() << "a Hopper GPU";
    EXPECT_THROW(choose_attention(device, DType::bf16, 64, {.request = AttentionRequest::sm90}), UserError);
}

}  // namespace
}  // namespace ingot::test
