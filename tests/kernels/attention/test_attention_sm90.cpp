// Hopper's attention kernel, run on the CPU by tests/emulator/sm90.h, and its index arithmetic.
//
// Seen to catch: V not waited for, K given back while a wgmma reads it, Q or V never given back, a turn not passed
// on, probabilities written while a wgmma reads them, a last output overwritten before it was read or stored before all
// had written it, a parity that stays; accumulators that do not shrink when the running maximum grows, or of the wrong
// row; the first accumulator added to what was there; a running maximum that never moves, or with its neighbours'; lse
// without the maximum; a mask's end off by one, in a row or in what a whole tile sees; ALiBi's part of the query with
// its sign lost, or the diagonal left out in some rows; a group's first query head alone; no key seen taken for a
// number; the panels of V mistaken.
#include <gtest/gtest.h>

#include <set>

#include "tests/emulator/attention.h"
#include "tests/emulator/sm90.h"
// After what they are made of.
#include "kernels/attention/forward_sm90.cuh"

namespace ingot::test {
namespace {

using namespace sm90;

// ---- Index arithmetic ----

// A tile's chunks have places of their own, those where TMA puts them; eight rows of a chunk, which is what
// stmatrix writes at a time, fill all banks.
TEST(AttentionSm90Operands, PlacesAndBanks) {
    for (const int rows : {64, 128}) {
        std::set<uint32_t> places;
        for (int row = 0; row < rows; ++row)
            for (int chunk = 0; chunk < 16; ++chunk) {
                const uint32_t place = panel_offset(row, chunk, rows);
                const auto unswizzled = static_cast<uint32_t>((chunk / 8 * rows + row) * 128 + chunk % 8 * 16);
                EXPECT_EQ(place, swizzled(unswizzled));
                EXPECT_TRUE(place < static_cast<uint32_t>(rows) * 256 && places.insert(place).second);
            }
        for (int row = 0; row < rows; row += 8)
            for (int chunk = 0; chunk < 16; ++chunk) {
                std::set<uint32_t> banks;
                for (int r = 0; r < 8; ++r) banks.insert(panel_offset(row + r, chunk, rows) / 16 % 8);
                EXPECT_EQ(banks.size(), 8u) << row << " " << chunk;
            }
    }
}

// The element that a wgmma reads, by the strides of the descriptor as the PTX ISA has them, is where the tile keeps
// it.
TEST(AttentionSm90Operands, Descriptors) {
    constexpr uint32_t kTile = 0x34000;  // above what fits into 16 bits
    const auto fields = [](uint64_t descriptor) {
        struct {
            uint32_t address, leading, stride;
        } result = {static_cast<uint32_t>(descriptor & 0x3fff) * 16,
                    static_cast<uint32_t>(descriptor >> 16 & 0x3fff) * 16,
                    static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16};
        EXPECT_EQ(descriptor >> 62, 1u);
        EXPECT_EQ(descriptor >> 46 & 0xffff, 0u);  // no base offset
        return result;
    };
    const auto place = [](int row, int column, int rows) {
        return kTile + panel_offset(row, column / 8, rows) + static_cast<uint32_t>(column % 8 * 2);
    };
    for (const int rows : {64, 128}) {
        for (int step = 0; step < 8; ++step) {
            const auto d = fields(descriptor_over_columns(kTile) + step_over_columns(step, rows));
            for (uint32_t row = 0; row < static_cast<uint32_t>(rows); ++row)
                for (uint32_t k = 0; k < 16; ++k)
                    ASSERT_EQ(swizzled(d.address + row / 8 * d.stride + row % 8 * 128 + k * 2),
                              place(static_cast<int>(row), 16 * step + static_cast<int>(k), rows));
        }
        for (int step = 0; step < rows / 16; ++step) {
            const auto d = fields(descriptor_over_rows(kTile, rows) + step_over_rows(step));
            for (uint32_t column = 0; column < 128; ++column)
                for (uint32_t k = 0; k < 16; ++k)
                    ASSERT_EQ(swizzled(d.address + column / 64 * d.leading + k / 8 * d.stride + k % 8 * 128 +
                                       column % 64 * 2),
                              place(16 * step + static_cast<int>(k), static_cast<int>(column), rows));
        }
    }
}

// Tickets cover every unit of every head once, the last rows of all heads first.
TEST(AttentionSm90Operands, TicketsCoverAllWork) {
    for (const int heads : {1, 2, 5})
        for (const int blocks : {1, 4, 7}) {
            constexpr int kConsumers = 3;
            std::set<std::pair<int, int>> taken;
            for (int ticket = 0; ticket < blocks * heads; ++ticket) {
                const ForwardWork work = forward_work(ticket, blocks, heads, kConsumers);
                EXPECT_EQ(work.first_unit, (blocks - 1 - static_cast<int>(taken.size()) / heads) * kConsumers);
                EXPECT_TRUE(work.kv_head >= 0 && work.kv_head < heads);
                EXPECT_TRUE(taken.insert({work.first_unit, work.kv_head}).second);
            }
        }
}

// The pieces of a row's start, and of its step, make up all bits of theirs, and turn their signs together.
TEST(AttentionSm90Operands, AlibiInPieces) {
    const float values[] = {0, 1, 8 * 0.00390625f, 1.0f / 3, -11.313708f * 0.84089642f, 16383.7f, 3e-20f, 3e30f};
    for (const float start : values)
        for (const float step : values)
            for (const uint32_t signs : {0u, kBothSigns}) {
                std::vector<double> columns[2];
                for (int lane = 0; lane < 4; ++lane) {
                    uint32_t operand[4];
                    alibi_operand(operand, {start, 2 * start}, step, lane);
                    for (int half = 0; half < 2; ++half) {
                        const float2 pair = tiles::unpack<DType::bf16>(operand[half] ^ signs);
                        columns[half].insert(columns[half].end(), {pair.x, pair.y});
                    }
                    EXPECT_TRUE(operand[2] == 0 && operand[3] == 0);
                }
                const double sign = signs == 0 ? 1 : -1;
                for (int half = 0; half < 2; ++half) {
                    const std::vector<double>& c = columns[half];
                    EXPECT_EQ(c[0] + c[1] + c[2], sign * start * (1 + half));
                    EXPECT_EQ(c[3] + c[4] + c[5], sign * step);
                    EXPECT_TRUE(c[6] == 0 && c[7] == 0);
                }
            }
}

// A wgmma reads these elements of the tile that the pieces are multiplied with.
TEST(AttentionSm90Operands, AlibiTile) {
    constexpr int kThreads = 96;
    for (const int columns : {64, 128}) {
        EmulatedCounts counts;
        EmulatedBlock block(kThreads, static_cast<size_t>(alibi_elements(columns)) * 2, 1, &counts);
        block.run([&] {
            write_alibi_tile(0, columns, static_cast<int>(threadIdx.x), kThreads);
            __syncthreads();
            if (threadIdx.x > 0) return;
            for (uint32_t row = 0; row < 16; ++row)
                for (uint32_t column = 0; column < static_cast<uint32_t>(columns); ++column)
                    ASSERT_EQ(operand_element<DType::bf16>(alibi_descriptor(0), true, column, row),
                              row % 8 < 3   ? 1.0f
                              : row % 8 < 6 ? static_cast<float>(column)
                                            : 0.0f);
        });
    }
}

// ---- The kernel ----

struct Emulated {
    Emulated(const AttentionCase& c, DType dtype, uint64_t seed = 1, Margins margins = {})
        : run(c, dtype, dtype, Device::cpu(), margins), seed(seed) {}

    template <DType kType, int HS, bool kHasAlibi>
    void forward() {
        using Shape = ForwardShape<HS>;
        const AttentionForward f = run.forward_arguments();
        const int64_t N = run.c.N, NKV = run.c.NKV, G = run.c.NH / NKV;
        const int64_t units = (N + Shape::kUnitRows - 1) / Shape::kUnitRows * G;
        const auto blocks_per_head = static_cast<int>((units + Shape::kConsumers - 1) / Shape::kConsumers);
        int tickets = 0;
        const ForwardArgs args = {
            .q = map_of(f.q, Shape::kUnitRows),
            .k = map_of(f.k, Shape::kKeys),
            .v = map_of(f.v, Shape::kKeys),
            .out = map_of(f.out, Shape::kUnitRows),
            .lse = f.lse.get<float>(),
            .slopes = kHasAlibi ? f.slopes.get<float>() : nullptr,
            .first_key = f.mask.first_key.get<int32_t>(),
            .end_key = f.mask.end_key.get<int32_t>(),
            .tickets = &tickets,
            .N = static_cast<int>(N),
            .NKV = static_cast<int>(NKV),
            .G = static_cast<int>(G),
            .blocks_per_head = blocks_per_head,
            .total_blocks = static_cast<int>(blocks_per_head * NKV),
            .inverse_scale = static_cast<float>(1 / f.scale),
            .scale_log2 = static_cast<float>(f.scale * kLog2E),
        };
        emulate_blocks(std::min(args.total_blocks, 2), Shape::kThreads, sizeof(ForwardShared<HS>), seed, &counts,
                       [&] { forward_kernel<kType, HS, kHasAlibi>(args); });
        EXPECT_EQ(tickets, 0);
    }
    void forward(DType dtype) {
        with_instance<64, 128>(run.c, dtype, [&](auto type, auto size, auto has_alibi) {
            forward<decltype(type)::value, decltype(size)::value, decltype(has_alibi)::value>();
        });
    }

    AttentionRun run;
    uint64_t seed;
    EmulatedCounts counts;
};

void check(const AttentionCase& c, DType dtype, const MaskValues* mask = nullptr) {
    check_emulated<Emulated>(c, dtype, false, mask, [&](Emulated& emulated) { emulated.forward(dtype); });
}

TEST(AttentionSm90, EveryHeadSize) {
    side_by_side(head_size_cases({64, 128}), [](const AttentionCase& c) {
        for (const DType dtype : {DType::bf16, DType::f16}) check(c, dtype);
    });
}

TEST(AttentionSm90, MasksAndGroups) {
    const std::vector<AttentionCase> cases = {
        {.N = 1, .NH = 1, .NKV = 1, .HS = 64},
        {.N = 700, .NH = 1, .NKV = 1, .HS = 64, .alibi = true},
        {.N = 700, .NH = 1, .NKV = 1, .HS = 128, .is_causal = false, .alibi = true},
        {.N = 257, .NH = 3, .NKV = 1, .HS = 64, .is_causal = false},
        {.N = 300, .NH = 4, .NKV = 1, .HS = 64, .alibi = true, .starts = {0, 3, 67, 68, 130, 249}},
        {.N = 260, .NH = 8, .NKV = 2, .HS = 128, .is_causal = false, .alibi = true, .starts = {0, 3, 67, 68, 130, 249}},
        {.N = 300, .NH = 1, .NKV = 1, .HS = 64, .is_causal = false, .starts = {0, 255}},  // ends one before a tile does
        {.N = 140, .NH = 2, .NKV = 2, .HS = 64, .value_scale = 3},
        {.N = 640, .NH = 2, .NKV = 1, .HS = 128, .value_scale = 3},
        {.N = 270, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .window = {4, 0}},
        {.N = 600, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .favours_far = true},
        far_keys_on_both_sides(400, 128),
        {.N = 600, .NH = 1, .NKV = 1, .HS = 64, .window = {139, 0}},
        {.N = 600, .NH = 1, .NKV = 1, .HS = 128, .alibi = true, .window = {40, 40}},
        {.N = 800, .NH = 1, .NKV = 1, .HS = 64, .alibi = true, .window = {500, -250}},
        {.N = 360, .NH = 8, .NKV = 2, .HS = 64, .alibi = true, .window = {300, -250}},  // biases of -180 and below
    };
    side_by_side(cases, [](const AttentionCase& c) { check(c, DType::bf16); });
}

// Scores grow by far more than 2^16 from one tile to the next: probabilities against the maximum of before would not
// fit into fp16.
TEST(AttentionSm90, RunningMaximaMove) {
    side_by_side({{.N = 640, .NH = 1, .NKV = 1, .HS = 64, .alibi = true, .value_scale = 3},
                  {.N = 640, .NH = 1, .NKV = 1, .HS = 128, .value_scale = 3}},
                 [](const AttentionCase& c) { check(c, DType::f16); });
}

TEST(AttentionSm90, ScoresFarBelowZero) {
    const std::vector<AttentionCase> cases = low_score_cases();
    side_by_side(cases.size(), [&](size_t i) {
        if (cases[i].HS == 64 || cases[i].HS == 128) check(cases[i], i % 2 == 0 ? DType::bf16 : DType::f16);
    });
}

TEST(AttentionSm90, AQueryThatSeesNoKey) {
    const MaskValues some = some_see_nothing(), none = all_see_nothing(300);
    check({.N = 6, .NH = 2, .NKV = 1, .HS = 64, .alibi = true}, DType::f16, &some);
    check({.N = 300, .NH = 2, .NKV = 1, .HS = 128}, DType::bf16, &none);
}

// Rows whose largest scores make their running maxima move leave those beside them alone.
TEST(AttentionSm90, BitsDoNotDependOnOtherRows) {
    const AttentionCase c = {.N = 520, .NH = 1, .NKV = 1, .HS = 64, .is_causal = false, .value_scale = 2};
    const auto is_changed = [](int64_t row) { return row % 16 == 3 || row % 16 == 10; };
    std::vector<double> out[2], lse[2];
    for (const bool changes : {false, true}) {
        Emulated emulated(c, DType::bf16);
        std::vector<double> qkv = emulated.run.qkv.values();
        for (int64_t row = 0; row < c.N; ++row)
            for (int64_t d = 0; changes && is_changed(row) && d < c.HS; ++d)
                qkv[static_cast<size_t>(row * 3 * c.HS + d)] *= 8;
        emulated.run.qkv.set(qkv);
        emulated.forward(DType::bf16);
        out[changes ? 1 : 0] = emulated.run.out.values(), lse[changes ? 1 : 0] = emulated.run.lse.values();
    }
    for (int64_t row = 0; row < c.N; ++row) {
        const auto of_row = [&](int run) {
            return std::vector(out[run].begin() + row * c.HS, out[run].begin() + (row + 1) * c.HS);
        };
        EXPECT_EQ(same(of_row(0), of_row(1)), !is_changed(row)) << row;
        EXPECT_EQ(lse[0][static_cast<size_t>(row)] == lse[1][static_cast<size_t>(row)], !is_changed(row)) << row;
    }
}

// Where documents begin at multiples of the tiles, a document has the bits that it has alone, though its rows may share
// a block, and so tiles that they do not see, with the next one's.
TEST(AttentionSm90, AlignedDocumentsHaveTheBitsThatTheyHaveAlone) {
    const AttentionCase packed_case = {.N = 512, .NH = 4, .NKV = 2, .HS = 64, .alibi = true, .starts = {0, 128, 384}};
    Emulated packed(packed_case, DType::bf16);
    packed.forward(DType::bf16);
    const std::vector<double> qkv = packed.run.qkv.values(), out = packed.run.out.values(),
                              lse = packed.run.lse.values();
    const int64_t boundaries[] = {0, 128, 384, 512};
    for (int d = 0; d < 3; ++d) {
        SCOPED_TRACE(d);
        const int64_t begin = boundaries[d], end = boundaries[d + 1], N = end - begin;
        AttentionCase alone_case = packed_case;
        alone_case.N = N;
        alone_case.starts = {0};
        Emulated alone(alone_case, DType::bf16);
        alone.run.qkv.set(rows(qkv, packed_case.N, begin, end));
        alone.forward(DType::bf16);
        EXPECT_TRUE(same(alone.run.out.values(), rows(out, packed_case.N, begin, end)));
        const std::vector<double> alone_lse = alone.run.lse.values();
        for (int64_t h = 0; h < packed_case.NH; ++h)
            for (int64_t i = 0; i < N; ++i)
                EXPECT_EQ(alone_lse[static_cast<size_t>(h * N + i)],
                          lse[static_cast<size_t>(h * packed_case.N + begin + i)]);
    }
}

// The order in which warps run changes no bit.
TEST(AttentionSm90, BitsDoNotDependOnTheOrderOfWarps) {
    for (const int64_t HS : {64, 128}) {
        const AttentionCase c = {.N = 400, .NH = 4, .NKV = 2, .HS = HS, .alibi = true, .starts = {0, 20, 150}};
        std::vector<double> out, lse;
        for (const uint64_t seed : {1, 2}) {
            Emulated emulated(c, DType::bf16, seed);
            emulated.forward(DType::bf16);
            if (seed == 1) {
                out = emulated.run.out.values(), lse = emulated.run.lse.values();
                continue;
            }
            EXPECT_TRUE(same(emulated.run.out.values(), out));
            EXPECT_TRUE(same(emulated.run.lse.values(), lse));
        }
    }
}

}  // namespace
}  // namespace ingot::test
