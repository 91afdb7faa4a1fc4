// Hopper's backward kernels, run on the CPU by tests/emulator/sm90.h.
//
// Seen to catch: dout not waited for; Q never given back, V given back while a later step reads it; operands
// overwritten while a wgmma reads them; dS read before both groups have written it; dV written where dS is still
// read, or dS where dV has not left; dQ handed over before the last one was taken, or at the other group's place; a
// turn that is not this tile's, or passed on before its partial sums have arrived; the first to add not storing; keys
// past the end seen; a mask's end off by one; the diagonal left out where keys see later and earlier queries, or the
// query's part of ALiBi one off; dK without the scale.
#include <gtest/gtest.h>

#include "tests/emulator/attention.h"
#include "tests/emulator/sm90.h"
// After what they are made of.
#include "kernels/attention/backward_sm90.cuh"
#include "kernels/attention/sm80.h"

namespace ingot::test {
namespace {

using namespace sm90;

struct Emulated {
    // Forward is the CPU's, rounded as a kernel's is.
    Emulated(const AttentionCase& c, DType dtype, uint64_t seed = 1, Margins margins = {})
        : run(c, dtype, dtype, Device::cpu(), margins), dtype(dtype), seed(seed) {}

    void forward() {
        AttentionRun plain(run.c, DType::f32, dtype);
        plain.set_mask(
            {{run.first_key.values(), run.end_key.values(), run.first_query.values(), run.end_query.values()}});
        plain.forward();
        run.out.set(plain.out.values());
        run.lse.set(plain.lse.values());
    }

    template <DType kType, int HS, bool kHasAlibi>
    void backward() {
        using Shape = BackwardShape<HS>;
        AttentionBackward b = run.backward_arguments();
        const int64_t key_tiles = (run.c.N + Shape::kKeys - 1) / Shape::kKeys;
        const AttentionWorkspaceSm80 parts(run.c.N, run.c.NH, HS);
        // Aligned, as memory of a GPU is.
        const Buffer workspace(Device::cpu(), DType::u8, {static_cast<int64_t>(parts.bytes)});
        b.workspace = workspace;
        b.options.is_deterministic = is_deterministic;
        BackwardArgs args = {
            .q = map_of(b.q, Shape::kQueries),
            .k = map_of(b.k, Shape::kKeys),
            .v = map_of(b.v, Shape::kKeys),
            .dout = map_of(b.dout, Shape::kQueries),
            .dk = map_of(b.dk, Shape::kGroupKeys),
            .dv = map_of(b.dv, Shape::kGroupKeys),
            .common = tiles::backward_args(b, Shape::kKeys, 1),
            .total_tiles = static_cast<int>(key_tiles * run.c.NKV),
            .inverse_scale = static_cast<float>(1 / b.scale),
        };
        args.common.heads_per_section = heads_per_section;
        EXPECT_EQ(args.common.is_deterministic, is_deterministic);  // of which results say nothing
        const auto blocks = [&](int64_t rows) {
            return Dim3{static_cast<unsigned>(parts.padded_tokens / rows), static_cast<unsigned>(run.c.NH), 1};
        };
        emulate(blocks(Shape::kQueries), kPrepareThreads, 0, seed, &counts,
                [&] { prepare_kernel<kType, HS>(args.common); });
        emulate_blocks(2, Shape::kThreads, sizeof(BackwardShared<HS>), seed, &counts,
                       [&] { backward_kernel<kType, HS, kHasAlibi>(args); });
        emulate(blocks(tiles::kFinishRows), 32 * kFinishWarps, static_cast<size_t>(tiles::kFinishRows * HS * 2), seed,
                &counts, [&] { finish_kernel<kType, HS>(args.common); });
    }
    void all() {
        forward();
        with_instance<64, 128>(run.c, dtype, [&](auto type, auto size, auto has_alibi) {
            backward<decltype(type)::value, decltype(size)::value, decltype(has_alibi)::value>();
        });
    }

    AttentionRun run;
    DType dtype;
    uint64_t seed;
    bool is_deterministic = true;
    int heads_per_section = 1;
    EmulatedCounts counts;
};

void check(const AttentionCase& c, DType dtype, bool is_deterministic = true, const MaskValues* mask = nullptr) {
    SCOPED_TRACE(is_deterministic ? "in one order" : "in any order");
    check_emulated<Emulated>(c, dtype, true, mask, [&](Emulated& emulated) {
        emulated.is_deterministic = is_deterministic;
        emulated.all();
    });
}

TEST(AttentionBackwardSm90, EveryHeadSize) {
    side_by_side(head_size_cases({64, 128}), [](const AttentionCase& c) {
        for (const DType dtype : {DType::bf16, DType::f16}) check(c, dtype);
    });
}

TEST(AttentionBackwardSm90, MasksAndGroups) {
    const std::vector<AttentionCase> cases = {
        {.N = 1, .NH = 1, .NKV = 1, .HS = 64},
        {.N = 1, .NH = 1, .NKV = 1, .HS = 128},
        {.N = 400, .NH = 1, .NKV = 1, .HS = 64, .alibi = true},
        {.N = 300, .NH = 1, .NKV = 1, .HS = 128, .is_causal = false, .alibi = true},
        {.N = 257, .NH = 3, .NKV = 1, .HS = 64, .is_causal = false},
        {.N = 260, .NH = 4, .NKV = 2, .HS = 128, .is_causal = false, .alibi = true, .starts = {0, 3, 67, 68, 130, 249}},
        {.N = 140, .NH = 2, .NKV = 2, .HS = 64, .value_scale = 3},
        {.N = 140, .NH = 2, .NKV = 2, .HS = 128, .value_scale = 3},
        {.N = 270, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .window = {4, 0}},
        {.N = 300, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .favours_far = true},
        far_keys_on_both_sides(260, 128),
        {.N = 270, .NH = 1, .NKV = 1, .HS = 128, .window = {139, 0}},
        {.N = 270, .NH = 1, .NKV = 1, .HS = 128, .alibi = true, .window = {40, 40}},
        {.N = 500, .NH = 1, .NKV = 1, .HS = 64, .alibi = true, .window = {300, -150}},
    };
    side_by_side(cases, [](const AttentionCase& c) { check(c, DType::bf16); });
    check(cases[3], DType::bf16, false);
    check(cases[4], DType::bf16, false);
}

TEST(AttentionBackwardSm90, ScoresFarBelowZero) {
    const std::vector<AttentionCase> cases = low_score_cases();
    side_by_side(cases.size(), [&](size_t i) {
        if (cases[i].HS == 64 || cases[i].HS == 128) check(cases[i], i % 2 == 0 ? DType::bf16 : DType::f16);
    });
}

TEST(AttentionBackwardSm90, AQueryThatSeesNoKey) {
    const MaskValues some = some_see_nothing(), none = all_see_nothing(300);
    check({.N = 6, .NH = 2, .NKV = 1, .HS = 64, .alibi = true}, DType::f16, true, &some);
    check({.N = 300, .NH = 2, .NKV = 1, .HS = 128}, DType::bf16, true, &none);
}

// The order in which warps run, and the size of the sections of heads, change no bit.
TEST(AttentionBackwardSm90, BitsDoNotDependOnTheOrderOfWarps) {
    const AttentionCase small = {.N = 300, .NH = 4, .NKV = 2, .HS = 64, .alibi = true, .starts = {0, 20, 150}};
    AttentionCase large = small;
    large.HS = 128;
    side_by_side({small, large}, [](const AttentionCase& c) {
        AttentionResult first;
        for (const uint64_t seed : {1, 2, 3}) {
            Emulated emulated(c, DType::bf16, seed);
            emulated.heads_per_section = seed == 3 ? 2 : 1;
            emulated.all();
            if (seed == 1)
                first = emulated.run.result();
            else
                EXPECT_TRUE(same_bits(emulated.run.result(), first));
        }
    });
}

}  // namespace
}  // namespace ingot::test
