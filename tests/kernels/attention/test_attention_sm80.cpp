// The tensor-core attention kernels, run on the CPU by tests/emulator/cuda.h, and their index arithmetic.
//
// Seen to catch: a barrier lost before K, V, Q or dout is read, before V's place is dout's, before dS is read, before
// the next Q is; a copy of K, V, Q or dout not waited for; the next Q copied over this one; partial sums that do not
// shrink when the running maximum grows; lse without the maximum; a mask's end off by one; ALiBi's part of the query
// with its sign lost; delta left out; dq without the scale; a group's first query head alone; a turn passed on to the
// wrong tile, or never; the first to add not storing; partial sums that nobody wrote taken for dq; ranks or turns that
// a warp counts in steps of 33; the last key left out of what a warp's keys see, or the highest end taken for the
// lowest; rows past the end loaded or stored; keys past the end seen; accumulators in any order that do not start at 0;
// a section of heads that does not divide them; no swizzle.
//
// Not seen, since blocks run one after the other here: a turn not waited for, or passed on before the barrier. The
// repeats of test_attention_tensor_cores_cuda.cpp are for these.
#include <gtest/gtest.h>

#include <set>

#include "tests/emulator/attention.h"
#include "tests/emulator/cuda.h"
// After what they are made of.
#include "kernels/attention/backward_sm80.cuh"
#include "kernels/attention/forward_sm80.cuh"
#include "kernels/attention/sm80.h"

namespace ingot::test {
namespace {

using namespace tiles;
using namespace sm80;

// ---- Index arithmetic ----

template <int kWidth>
void check_tile() {
    SCOPED_TRACE(join("width ", kWidth));
    // Every chunk has a place of its own.
    std::set<uint32_t> places;
    for (int row = 0; row < 64; ++row)
        for (int chunk = 0; chunk < kWidth / 8; ++chunk) {
            const uint32_t place = tile_offset<kWidth>(row, chunk);
            EXPECT_TRUE(place % 16 == 0 && place < 64 * kWidth * 2 && places.insert(place).second);
        }
    for (int row = 0; row < 64; row += 8)
        for (int chunk = 0; chunk < kWidth / 8; chunk += 2)
            for (int lane = 0; lane < 32; ++lane) {
                const int i = lane / 8, r = lane % 8;
                EXPECT_EQ(rows_first<kWidth>(lane).at(1024, row, chunk),
                          1024 + tile_offset<kWidth>(row + r + i % 2 * 8, chunk + i / 2));
                EXPECT_EQ(chunks_first<kWidth>(lane).at(1024, row, chunk),
                          1024 + tile_offset<kWidth>(row + r + i / 2 * 8, chunk + i % 2));
            }
    // The eight rows of a matrix, and eight lanes of a copy that writes 16 bytes each, touch each bank once.
    for (int row = 0; row < 64; row += 8)
        for (int chunk = 0; chunk < kWidth / 8; ++chunk) {
            std::set<uint32_t> banks;
            for (int r = 0; r < 8; ++r) banks.insert(tile_offset<kWidth>(row + r, chunk) / 16 % 8);
            EXPECT_EQ(banks.size(), 8u) << row << " " << chunk;
        }
    constexpr int kPerRow = kWidth % 64 == 0 ? 8 : 4;
    for (int row = 0; row < 64; row += 8 / kPerRow)
        for (int chunk = 0; chunk < kWidth / 8; chunk += kPerRow) {
            std::set<uint32_t> banks;
            for (int l = 0; l < 8; ++l)
                banks.insert(tile_offset<kWidth>(row + l / kPerRow, chunk + l % kPerRow) / 16 % 8);
            EXPECT_EQ(banks.size(), 8u) << row << " " << chunk;
        }
    // A warp stores its fragments into a tile, 4 bytes a lane: each bank is touched once.
    for (int chunk = 0; chunk < kWidth / 8; ++chunk) {
        std::set<uint32_t> banks;
        for (int lane = 0; lane < 32; ++lane)
            banks.insert((tile_offset<kWidth>(fragment_row(lane, 0), chunk) +
                          static_cast<uint32_t>(fragment_column(lane, 0) * 2)) /
                         4 % 32);
        EXPECT_EQ(banks.size(), 32u) << chunk;
    }
}

TEST(AttentionSm80Tiles, PlacesAndBanks) {
    check_tile<32>();
    check_tile<64>();
    check_tile<96>();
    check_tile<128>();
}

// On 132 multiprocessors, three rounds are 396 tiles.
TEST(AttentionSm80, HeadsOfASection) {
    EXPECT_EQ(heads_per_section(132, 396, 8), 1);
    EXPECT_EQ(heads_per_section(132, 395, 8), 2);
    EXPECT_EQ(heads_per_section(2 * 132, 396, 8), 2);  // two blocks on each
    EXPECT_EQ(heads_per_section(132, 100, 10), 5);     // four do not divide ten
    EXPECT_EQ(heads_per_section(132, 1, 12), 12);
    EXPECT_EQ(heads_per_section(132, 1, 1), 1);
}

// ---- The kernels ----

struct Emulated {
    Emulated(const AttentionCase& c, DType dtype, uint64_t seed = 1, Margins margins = {})
        : run(c, dtype, dtype, Device::cpu(), margins), seed(seed) {}

    template <DType kType, int HS, bool kHasAlibi>
    void forward() {
        const AttentionForward f = run.forward_arguments();
        const ForwardArgs args = {
            .out = view_of(f.out),
            .q = view_of(f.q),
            .k = view_of(f.k),
            .v = view_of(f.v),
            .lse = f.lse.get<float>(),
            .slopes = kHasAlibi ? f.slopes.get<float>() : nullptr,
            .first_key = f.mask.first_key.get<int32_t>(),
            .end_key = f.mask.end_key.get<int32_t>(),
            .N = static_cast<int>(run.c.N),
            .G = static_cast<int>(run.c.NH / run.c.NKV),
            .scale = static_cast<float>(f.scale),
            .scale_log2 = static_cast<float>(f.scale * kLog2E),
        };
        constexpr int kQueries = ForwardShape<HS>::kQueries;
        emulate({static_cast<unsigned>((args.N + kQueries - 1) / kQueries), static_cast<unsigned>(run.c.NH), 1},
                ForwardShape<HS>::kThreads, sizeof(ForwardShared<HS>), seed, &counts,
                [&] { forward_kernel<kType, HS, kHasAlibi>(args); });
    }

    template <DType kType, int HS, bool kHasAlibi>
    void backward() {
        AttentionBackward b = run.backward_arguments();
        const AttentionWorkspaceSm80 parts(run.c.N, run.c.NH, HS);
        const Buffer workspace(Device::cpu(), DType::u8, {static_cast<int64_t>(parts.bytes)});
        b.workspace = workspace;
        b.options.is_deterministic = is_deterministic;
        using Shape = BackwardShape<HS>;
        BackwardArgs args = backward_args(b, Shape::kKeys, 1);
        args.heads_per_section = heads_per_section;
        const auto heads = static_cast<unsigned>(run.c.NH);
        const auto query_tiles = static_cast<unsigned>(parts.num_query_tiles);
        emulate({query_tiles, heads, 1}, kPrepareThreads, 0, seed, &counts, [&] { prepare_kernel<kType, HS>(args); });
        const auto key_tiles = static_cast<unsigned>((args.N + Shape::kKeys - 1) / Shape::kKeys);
        emulate({key_tiles * static_cast<unsigned>(run.c.NKV), 1, 1}, Shape::kThreads, sizeof(BackwardShared<HS>), seed,
                &counts, [&] { backward_kernel<kType, HS, kHasAlibi>(args); });
        emulate({query_tiles, heads, 1}, 32 * kFinishWarps, 16 * kFinishWarps * HS * 2, seed, &counts,
                [&] { finish_kernel<kType, HS>(args); });
    }

    void all(DType dtype) {
        with_instance<32, 64, 96, 128>(run.c, dtype, [&](auto type, auto size, auto has_alibi) {
            forward<decltype(type)::value, decltype(size)::value, decltype(has_alibi)::value>();
            backward<decltype(type)::value, decltype(size)::value, decltype(has_alibi)::value>();
        });
    }

    AttentionRun run;
    uint64_t seed;
    bool is_deterministic = true;
    int heads_per_section = 1;
    EmulatedCounts counts;
};

void check(const AttentionCase& c, DType dtype, const MaskValues* mask = nullptr) {
    check_emulated<Emulated>(c, dtype, true, mask, [&](Emulated& emulated) { emulated.all(dtype); });
}

TEST(AttentionSm80, EveryHeadSize) {
    std::vector<AttentionCase> cases = head_size_cases({32, 64, 96, 128});
    for (AttentionCase c : {cases[3], cases[6]}) {  // 64 with ALiBi, 128 without
        c.NH = 1;
        cases.push_back(c);
    }
    side_by_side(cases, [](const AttentionCase& c) { check(c, c.NH == 1 ? DType::f16 : DType::bf16); });
}

TEST(AttentionSm80, MasksAndGroups) {
    const std::vector<AttentionCase> cases = {
        {.N = 1, .NH = 1, .NKV = 1, .HS = 64},
        {.N = 300, .NH = 1, .NKV = 1, .HS = 64, .alibi = true},
        {.N = 300, .NH = 1, .NKV = 1, .HS = 128, .is_causal = false, .alibi = true},
        {.N = 257, .NH = 3, .NKV = 1, .HS = 32, .is_causal = false},
        {.N = 260, .NH = 4, .NKV = 2, .HS = 32, .is_causal = false, .alibi = true, .starts = {0, 3, 67, 68, 130, 249}},
        {.N = 140, .NH = 2, .NKV = 2, .HS = 64, .value_scale = 3},
        {.N = 270, .NH = 2, .NKV = 1, .HS = 32, .alibi = true, .window = {4, 0}},
        {.N = 300, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .favours_far = true},
        far_keys_on_both_sides(260, 128),
        {.N = 270, .NH = 1, .NKV = 1, .HS = 64, .window = {139, 0}},
        {.N = 270, .NH = 1, .NKV = 1, .HS = 96, .alibi = true, .window = {40, 40}},
        {.N = 400, .NH = 1, .NKV = 1, .HS = 32, .alibi = true, .window = {300, -150}},
    };
    side_by_side(cases, [](const AttentionCase& c) { check(c, DType::bf16); });
}

TEST(AttentionSm80, ScoresFarBelowZero) {
    const std::vector<AttentionCase> cases = low_score_cases();
    side_by_side(cases.size(), [&](size_t i) { check(cases[i], i % 2 == 0 ? DType::bf16 : DType::f16); });
}

TEST(AttentionSm80, AQueryThatSeesNoKey) {
    const MaskValues some = some_see_nothing(), none = all_see_nothing(70);
    check({.N = 6, .NH = 2, .NKV = 1, .HS = 32, .alibi = true}, DType::f16, &some);
    check({.N = 70, .NH = 1, .NKV = 1, .HS = 64}, DType::bf16, &none);
}

// More tiles of keys add to the first queries than a warp has lanes, and out of the row's order: the last tile is also
// seen by later queries, goes first, and is the one that a lane counts on its second step. All other queries see
// nothing, so that no more is computed.
TEST(AttentionSm80, MoreAddersThanLanes) {
    constexpr int64_t N = 32 * 128 + 1, kFirst = 64, kBoth = 128;
    MaskValues mask;
    for (int64_t i = 0; i < N; ++i) {
        mask.arrays[0].push_back(static_cast<double>(i < kFirst ? 0 : i < kBoth ? N - 1 : N));
        mask.arrays[1].push_back(static_cast<double>(N));
        mask.arrays[2].push_back(0);
        mask.arrays[3].push_back(static_cast<double>(i < N - 1 ? kFirst : kBoth));
    }
    check({.N = N, .NH = 1, .NKV = 1, .HS = 32}, DType::bf16, &mask);
}

// Query 64 sees all of the first warp's keys but the last, those after it see that one too, and there is nothing else:
// indices must be compared for one pair alone, and few keys share its query's weight.
TEST(AttentionSm80, TheLastKeyOfAWarp) {
    constexpr int kWarpKeys64 = 16 * BackwardShape<64>::kRowBlocks, kWarpKeys128 = 16 * BackwardShape<128>::kRowBlocks;
    for (const auto& [HS, num_keys] : {std::pair<int64_t, int64_t>{64, kWarpKeys64}, {128, kWarpKeys128}}) {
        MaskValues mask;
        for (int64_t i = 0; i < 128; ++i) {
            mask.arrays[0].push_back(0);
            mask.arrays[1].push_back(static_cast<double>(i < 64 ? 0 : i == 64 ? num_keys - 1 : num_keys));
            mask.arrays[2].push_back(i < num_keys - 1 ? 64 : i == num_keys - 1 ? 65 : 128);
            mask.arrays[3].push_back(128);
        }
        check({.N = 128, .NH = 1, .NKV = 1, .HS = HS}, DType::bf16, &mask);
    }
}

TEST(AttentionSm80, AnyOrderIsAsGood) {
    const AttentionCase small = {.N = 200, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .starts = {0, 150}};
    AttentionCase large = small;
    large.HS = 128;
    side_by_side({small, large}, [](const AttentionCase& c) {
        Emulated emulated(c, DType::bf16);
        emulated.is_deterministic = false;
        emulated.all(DType::bf16);
        expect_as_good(emulated.run, DType::bf16);
    });
}

// The order in which warps run, and the size of the sections of heads, change no bit.
TEST(AttentionSm80, BitsDoNotDependOnTheOrderOfWarps) {
    AttentionResult results[4];
    side_by_side(4, [&](size_t i) {
        const uint64_t seed = 1 + i % 2;
        const AttentionCase c = {
            .N = 200, .NH = 4, .NKV = 2, .HS = i < 2 ? 32 : 96, .alibi = true, .starts = {0, 20, 150}};
        Emulated emulated(c, DType::bf16, seed);
        emulated.heads_per_section = static_cast<int>(seed);
        emulated.all(DType::bf16);
        results[i] = emulated.run.result();
    });
    EXPECT_TRUE(same_bits(results[1], results[0]));
    EXPECT_TRUE(same_bits(results[3], results[2]));
}

}  // namespace
}  // namespace ingot::test
