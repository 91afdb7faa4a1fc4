// A choice of an algorithm is a GEMM as text and a sealed algorithm. No GPU is needed.
// Seen to catch: a key's field left out of the text; a seal without the machine.
#include "kernels/matmul/choices.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

namespace ingot::test {
namespace {

// A GEMM of tensors that nobody reads.
Gemm gemm() {
    void* const memory = reinterpret_cast<void*>(uintptr_t{1} << 20);
    void* const other = reinterpret_cast<void*>(uintptr_t{1} << 21);
    return {.out = Tensor::contiguous(memory, DType::bf16, {65536, 2304}, DeviceKind::cuda),
            .a = Tensor::contiguous(memory, DType::bf16, {65536, 768}, DeviceKind::cuda),
            .b = Tensor::contiguous(memory, DType::bf16, {2304, 768}, DeviceKind::cuda),
            .addend = Tensor::contiguous(other, DType::bf16, {65536, 2304}, DeviceKind::cuda),
            .b_transposed = true};
}

TEST(MatmulChoices, GemmsAsText) {
    Gemm p = gemm();
    EXPECT_EQ(text_of(key_of(p)),
              "bf16 65536x2304x768 nt to bf16 with an addend, strides 768 768 2304 2304, align 256 256 256 256");
    p.addend = {};
    EXPECT_EQ(text_of(key_of(p)), "bf16 65536x2304x768 nt to bf16, strides 768 768 2304, align 256 256 256");
    // dweight += dout^T x
    const Gemm gradient = gemm_of(MatmulBackwardWeight{
        .dweight = Tensor::contiguous(p.out.data, DType::f32, {2304, 768}), .dout = p.out, .x = p.a});
    EXPECT_EQ(text_of(key_of(gradient)),
              "bf16 2304x768x65536 tn to fp32 added in place, strides 2304 768 768 768, align 256 256 256 256");
}

TEST(MatmulChoices, GemmsThatDifferHaveTextsThatDiffer) {
    const GemmKey key = key_of(gemm());
    const std::vector<std::function<void(GemmKey*)>> changes = {[](GemmKey*) {},
                                                                [](GemmKey* k) { k->M = 8; },
                                                                [](GemmKey* k) { k->N = 8; },
                                                                [](GemmKey* k) { k->K = 8; },
                                                                [](GemmKey* k) { k->out_stride = 4096; },
                                                                [](GemmKey* k) { k->a_stride = 4096; },
                                                                [](GemmKey* k) { k->b_stride = 4096; },
                                                                [](GemmKey* k) { k->addend_stride = 4096; },
                                                                [](GemmKey* k) { k->out_alignment = 16; },
                                                                [](GemmKey* k) { k->a_alignment = 16; },
                                                                [](GemmKey* k) { k->b_alignment = 16; },
                                                                [](GemmKey* k) { k->addend_alignment = 16; },
                                                                [](GemmKey* k) { k->dtype = DType::f16; },
                                                                [](GemmKey* k) { k->out_dtype = DType::f32; },
                                                                [](GemmKey* k) { k->a_transposed = true; },
                                                                [](GemmKey* k) { k->b_transposed = false; },
                                                                [](GemmKey* k) { k->adds = false; },
                                                                [](GemmKey* k) { k->in_place = true; }};
    std::set<std::string> texts;
    for (const auto& change : changes) {
        GemmKey changed = key;
        change(&changed);
        texts.insert(text_of(changed));
    }
    EXPECT_EQ(texts.size(), changes.size());
}

TEST(MatmulChoices, AlignmentIsThatOfTheData) {
    Gemm p = gemm();
    for (const uint32_t alignment : {1u, 2u, 16u, 128u, 256u}) {
        p.a.data = reinterpret_cast<void*>((uintptr_t{1} << 20) + alignment);
        EXPECT_EQ(key_of(p).a_alignment, alignment);
    }
    p.a.data = reinterpret_cast<void*>((uintptr_t{1} << 20) + 512);
    EXPECT_EQ(key_of(p).a_alignment, 256u);
}

TEST(MatmulChoices, SealedAlgorithms) {
    MatmulAlgorithm algorithm;
    for (size_t i = 0; i < algorithm.size(); ++i) algorithm[i] = static_cast<uint8_t>(7 * i + 3);
    const std::string machine = "GPU, cuBLASLt 13.1.0", gemm = "bf16 8x8x8";
    const std::string sealed = seal_algorithm(machine, gemm, algorithm);
    MatmulAlgorithm found{};
    ASSERT_TRUE(unseal_algorithm(machine, gemm, sealed, &found));
    EXPECT_EQ(found, algorithm);
    EXPECT_FALSE(unseal_algorithm("GPU, cuBLASLt 13.2.0", gemm, sealed, &found));
    EXPECT_FALSE(unseal_algorithm(machine, "bf16 8x8x16", sealed, &found));
    for (size_t i = 0; i < sealed.size(); ++i) {
        std::string damaged = sealed;
        damaged[i] = damaged[i] == '0' ? '1' : '0';
        EXPECT_FALSE(unseal_algorithm(machine, gemm, damaged, &found)) << i;
        EXPECT_FALSE(unseal_algorithm(machine, gemm, sealed.substr(0, i), &found)) << i;
    }
    for (const char* text : {"", "0", "zz", "-", "\xff\xfe"}) {
        EXPECT_FALSE(unseal_algorithm(machine, gemm, text, &found)) << text;
        EXPECT_FALSE(unseal_algorithm(machine, gemm, sealed + text + " ", &found)) << text;
    }
    EXPECT_EQ(found, algorithm);  // what is refused leaves it alone
}

TEST(MatmulChoices, TheCpuHasNone) {
    const Device cpu = Device::cpu();
    set_matmul_tuning(cpu, MatmulTuning::timed);
    prefer_matmul_choices(cpu, {{"gemm", "algorithm"}}, MatmulSource::cache);
    EXPECT_TRUE(matmul_choices(cpu).empty());
    EXPECT_EQ(matmul_counts(cpu).refused, 0);
    EXPECT_EQ(matmul_machine(cpu), "");
}

}  // namespace
}  // namespace ingot::test
