// Attention on the CPU against its definition, on CUDA against the CPU twin in double precision by is_as_good()
// (attention_compared.h), and what must hold on both.
//
// Seen to catch: |i - j| with its sign lost, end_key off by one, documents ignored, partial sums that do not shrink
// when the maximum grows, lse without the maximum, dk without the scale, delta left out, the group's key/value head
// mistaken, a group's first query head alone in dk and dv, the first tile of queries skipped, rows past the end not
// zeroed, a query without keys divided by 0; and, with the SIMT kernel's source compiled for the host and run there, a
// fiber for each thread, a barrier lost before a tile is overwritten or before a warp's probabilities are.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <span>

#include "kernels/attention/policy.h"
#include "kernels/attention/sm90.h"
#include "tests/kernels/attention/attention_compared.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

const Device cpu = Device::cpu();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- On the CPU ----

TEST(AttentionOnCpu, AgreesWithTheDefinitionInDouble) {
    const AttentionCase cases[] = {
        // Sizes round the tile, one document each, causal and full.
        {.N = 1, .NH = 1, .NKV = 1, .HS = 2},
        {.N = 2, .NH = 2, .NKV = 1, .HS = 16, .alibi = true},
        {.N = 63, .NH = 1, .NKV = 1, .HS = 16, .alibi = true},
        {.N = 64, .NH = 2, .NKV = 2, .HS = 2, .is_causal = false},
        {.N = 65, .NH = 2, .NKV = 1, .HS = 32, .alibi = true},
        {.N = 127, .NH = 1, .NKV = 1, .HS = 64, .is_causal = false, .alibi = true},
        {.N = 128, .NH = 1, .NKV = 1, .HS = 96},
        {.N = 130, .NH = 3, .NKV = 1, .HS = 16, .is_causal = false},
        {.N = 200, .NH = 2, .NKV = 1, .HS = 16, .alibi = true},
        {.N = 65, .NH = 1, .NKV = 1, .HS = 256, .alibi = true},
        // Head counts and groups.
        {.N = 40, .NH = 12, .NKV = 4, .HS = 8, .alibi = true},
        {.N = 40, .NH = 12, .NKV = 3, .HS = 8},
        {.N = 40, .NH = 14, .NKV = 2, .HS = 8, .alibi = true},
        {.N = 40, .NH = 14, .NKV = 7, .HS = 8, .is_causal = false, .alibi = true},
        // Documents: of one token, empty ones, longer than a tile, the last one empty.
        {.N = 9, .NH = 2, .NKV = 1, .HS = 4, .alibi = true, .starts = {0, 1, 2, 3, 4, 5, 6, 7, 8}},
        {.N = 150, .NH = 2, .NKV = 1, .HS = 16, .alibi = true, .starts = {0, 0, 1, 66, 66, 66, 131, 150}},
        {.N = 150, .NH = 4, .NKV = 2, .HS = 16, .is_causal = false, .alibi = true, .starts = {0, 3, 67, 68, 70, 149}},
        {.N = 130, .NH = 3, .NKV = 1, .HS = 32, .starts = {0, 64, 128}},
        // Scores far apart, so that the running maximum moves.
        {.N = 140, .NH = 2, .NKV = 2, .HS = 16, .value_scale = 6},
        // ... and far below 0.
        {.N = 70, .NH = 2, .NKV = 1, .HS = 16, .is_causal = false, .alibi = true, .score_shift = -150},
        // Slopes that favour far keys.
        {.N = 200, .NH = 2, .NKV = 1, .HS = 16, .alibi = true, .favours_far = true},
        far_keys_on_both_sides(150, 16),
        // Sliding windows: causal over 5 and over 70 keys, and looking 40 both ways.
        {.N = 100, .NH = 2, .NKV = 1, .HS = 16, .alibi = true, .window = {4, 0}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 16, .window = {69, 0}},
        {.N = 170, .NH = 2, .NKV = 1, .HS = 16, .alibi = true, .window = {40, 40}},
    };
    for (const AttentionCase& c : cases) {
        SCOPED_TRACE(c.describe());
        const AttentionResult result = AttentionRun(c, DType::f64).both(), expected = reference_attention(c);
        for (const auto& [name, values] : {kOut, kLse, kDv})
            EXPECT_TRUE(close(result.*values, expected.*values, 1e-12)) << name;
        // Where every document has a single token, the softmax is 1 whatever the score: dq = dk = 0 but for rounding.
        const bool is_flat = static_cast<int64_t>(c.starts.size()) == c.N;
        for (const auto& [name, values] : {kDq, kDk})
            EXPECT_TRUE(is_flat ? max_abs_error(result.*values, expected.*values) <= 1e-12
                                : close(result.*values, expected.*values, 1e-12))
                << name;
    }
}

TEST(AttentionOnCpu, GradientsAgreeWithFiniteDifferences) {
    for (const AttentionCase& c :
         {AttentionCase{.N = 7, .NH = 3, .NKV = 1, .HS = 4, .alibi = true, .starts = {0, 3, 4}},
          AttentionCase{.N = 6, .NH = 2, .NKV = 2, .HS = 2, .is_causal = false, .alibi = true},
          AttentionCase{.N = 6, .NH = 2, .NKV = 1, .HS = 2, .window = {2, 0}}}) {
        SCOPED_TRACE(c.describe());
        AttentionRun run(c, DType::f64);
        const std::vector<double> w = run.dout.values();
        const auto loss = [&] {
            run.forward();
            return dot(w, run.out.values());
        };
        loss();
        run.backward();
        check_gradients(loss, {{"qkv", run.qkv, run.dqkv.values()}});
    }
}

// The bound is that of a plain fp32 version, twice: scores of order 3 carry a few ulp, sums over up to 200 keys more.
TEST(AttentionOnCpu, SingleAgreesWithDouble) {
    for (const AttentionCase& c :
         {AttentionCase{.N = 200, .NH = 4, .NKV = 2, .HS = 64, .alibi = true, .starts = {0, 5, 100}},
          AttentionCase{.N = 130, .NH = 2, .NKV = 1, .HS = 96, .is_causal = false}}) {
        SCOPED_TRACE(c.describe());
        const AttentionResult single = AttentionRun(c, DType::f32).both(), exact = AttentionRun(c, DType::f64).both();
        const AttentionResult plain = reference_attention<float>(c);
        for (const auto& [name, values] : kAllMembers)
            EXPECT_TRUE(
                close(single.*values, exact.*values, 2 * relative_error(plain.*values, exact.*values) + 2 * 0x1p-24))
                << name;
    }
}

// ---- On every device ----

INGOT_ON_EACH_DEVICE(Attention);

// On the CPU nothing but its own definition is left to compare with: a mask that is given, in a case that is small.
void expect_right(const AttentionRun& run, DType dtype, const MaskValues* mask = nullptr) {
    if (!run.device.is_cpu()) return expect_as_good(run, dtype, true, mask);
    const AttentionResult actual = run.result(), expected = reference_attention(run);
    const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
    for (const auto& [name, values] : kOutAndGradients)
        EXPECT_TRUE(close(actual.*values, expected.*values, bound)) << name;
}

// Queries 0, 1 and 5 see nothing; key 4 is seen by nobody.
TEST_P(Attention, AQueryThatSeesNoKeySmall) {
    const MaskValues mask = some_see_nothing();
    for (const Variant& variant : variants(device())) {
        SCOPED_TRACE(variant.describe());
        const AttentionRun run = run_of({.N = 6, .NH = 2, .NKV = 1, .HS = 32, .alibi = true}, variant, device());
        run.set_mask(mask);
        const AttentionResult result = run.both();
        expect_right(run, variant.dtype, &mask);
        for (const int64_t i : {0, 1, 5}) {
            const std::vector<double> zeros(static_cast<size_t>(run.out_width()));
            EXPECT_TRUE(same(rows(result.out, 6, i, i + 1), zeros));
            EXPECT_TRUE(same(rows(result.dq, 6, i, i + 1), zeros));
            for (int64_t h = 0; h < 2; ++h) EXPECT_EQ(result.lse[static_cast<size_t>(h * 6 + i)], -kInfinity);
        }
        for (const std::vector<double>* gradient : {&result.dk, &result.dv})
            for (const double value : rows(*gradient, 6, 4, 5)) EXPECT_EQ(value, 0);
    }
}

TEST_P(Attention, NoQuerySeesAnyKeySmall) {
    for (const Variant& variant : variants(device())) {
        const AttentionRun run = run_of({.N = 70, .NH = 1, .NKV = 1, .HS = 32}, variant, device());
        run.set_mask(all_see_nothing(70));
        const AttentionResult result = run.both();
        for (const std::vector<double>* values : {&result.out, &result.dq, &result.dk, &result.dv})
            for (const double value : *values) ASSERT_EQ(value, 0);
    }
}

// Everything that a run writes is poisoned again before each repeat.
TEST_P(Attention, SameBitsEveryTime) {
    for (const Variant& variant : variants(device()))
        for (const int64_t HS : {16, 64, 128}) {
            if (is_cuda() == (HS == 16)) continue;
            const AttentionCase c = {
                .N = is_cuda() ? 700 : 190, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .starts = {0, 20, 90, 91}};
            const AttentionRun run = run_of(c, variant, device());
            const AttentionResult first = run.both();
            for (int repeat = 1; repeat < (is_cuda() ? 20 : 4); ++repeat) {
                for (const Buffer* buffer : {&run.out, &run.lse, &run.dqkv, &run.workspace})
                    device().fill_bytes(*buffer, 0xff);
                with_threads(repeat, [&] { ASSERT_TRUE(same_bits(run.both(), first)) << repeat; });
            }
        }
}

// Fails the test unless rows [begin, end) have the same bits in both.
void expect_same_rows(const AttentionResult& a, const AttentionResult& b, int64_t N, int64_t begin, int64_t end,
                      std::span<const AttentionMember> members) {
    for (const auto& [name, values] : members)
        EXPECT_TRUE(same(rows(a.*values, N, begin, end), rows(b.*values, N, begin, end)))
            << name << " " << begin << " " << end;
}

TEST_P(Attention, AnotherDocumentChangesNotOneBit) {
    for (const Variant& variant : variants(device()))
        for (const bool is_causal : {true, false}) {
            const AttentionCase c = {.N = 170,
                                     .NH = 2,
                                     .NKV = 1,
                                     .HS = 32,
                                     .is_causal = is_causal,
                                     .alibi = true,
                                     .starts = {0, 30, 101, 102}};
            const AttentionResult before = run_of(c, variant, device()).both();
            for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 30}, {30, 101}, {101, 102}, {102, 170}}) {
                const AttentionRun run = run_of(c, variant, device());
                perturb(run.qkv, begin, end, 3);
                perturb(run.dout, begin, end, 2);
                const AttentionResult after = run.both();
                for (const auto& [b, e] : {std::pair<int64_t, int64_t>{0, begin}, {end, c.N}})
                    expect_same_rows(after, before, c.N, b, e, kOutAndGradients);
                EXPECT_GT(max_abs_error(rows(after.out, c.N, begin, end), rows(before.out, c.N, begin, end)), 0.1);
            }
        }
}

TEST_P(Attention, TheFutureChangesNotOneBit) {
    const AttentionCase c = {.N = 140, .NH = 2, .NKV = 1, .HS = 64, .alibi = true, .starts = {0, 10}};
    for (const Variant& variant : variants(device())) {
        const AttentionResult before = run_of(c, variant, device()).both();
        for (const int64_t from : {1, 11, 31, 32, 33, 63, 64, 65, 74, 100, 139}) {
            const AttentionRun run = run_of(c, variant, device());
            perturb(run.qkv, from, c.N, -4);
            expect_same_rows(run.both(), before, c.N, 0, from, std::array{kOut, kDq});
        }
    }
}

TEST_P(Attention, PackedEqualsEachDocumentAlone) {
    const std::vector<int64_t> starts = {0, 30, 31, 300, 365, 700};
    for (const Variant& variant : variants(device())) {
        // In 16 bits two runs round probabilities and results, at other places: each errs by less than an ulp of the
        // whole, 2^-8 or 2^-11. In fp32 and fp64 what counts is the order of the sums.
        const DType dtype = variant.dtype;
        const double tolerance = dtype == DType::bf16  ? 0x1p-7
                                 : dtype == DType::f16 ? 0x1p-10
                                 : dtype == DType::f32 ? 1e-5
                                                       : 1e-14;
        for (const int64_t HS : {8, 64, 128}) {
            if (is_cuda() == (HS == 8)) continue;
            const AttentionCase c = {.N = 700, .NH = 6, .NKV = 2, .HS = HS, .alibi = true, .starts = starts};
            SCOPED_TRACE(join(variant.describe(), ", HS ", HS));
            const AttentionRun packed = run_of(c, variant, device());
            const AttentionResult together = packed.both();
            for (size_t document = 0; document + 1 < starts.size(); ++document) {
                const int64_t begin = starts[document], end = starts[document + 1];
                AttentionCase alone_case = c;
                alone_case.N = end - begin;
                alone_case.starts = {0};
                const AttentionRun alone = run_of(alone_case, variant, device());
                alone.qkv.set(rows(packed.qkv.values(), c.N, begin, end));
                alone.dout.set(rows(packed.dout.values(), c.N, begin, end));
                const AttentionResult apart = alone.both();
                const double scale = norm(alone.dout.values());
                for (const auto& [name, values] : kOutAndGradients)
                    EXPECT_LE(distance(rows(together.*values, c.N, begin, end), apart.*values),
                              tolerance * std::max(scale, norm(apart.*values)))
                        << name;
            }
        }
    }
}

TEST_P(Attention, NanIsPassedOn) {
    const AttentionCase c = {.N = 40, .NH = 1, .NKV = 1, .HS = 32};
    for (const int64_t part : {0, 1, 2}) {  // of query, key or value 39, which query 39 alone sees
        const AttentionRun run(c, DType::f32, DType::f32, device());
        std::vector<double> qkv = run.qkv.values();
        qkv[static_cast<size_t>((39 * 3 + part) * 32 + 5)] = std::numeric_limits<double>::quiet_NaN();
        run.qkv.set(qkv);
        run.forward();
        EXPECT_TRUE(std::isnan(run.out.values()[39 * 32 + 5])) << part;
        if (is_cuda()) {
            EXPECT_EQ(std::isnan(run.lse.values()[39]), part < 2);
        }
    }
}

// ---- Masks and choices ----

TEST(DocumentMask, IntervalsByHand) {
    const Buffer arrays[] = {
        {cpu, DType::i32, {5}}, {cpu, DType::i32, {5}}, {cpu, DType::i32, {5}}, {cpu, DType::i32, {5}}};
    const AttentionMask mask = {arrays[0], arrays[1], arrays[2], arrays[3]};
    fill_document_mask(mask, {0, 2, 2, 5}, true);
    EXPECT_TRUE(same(arrays[0].values(), {0, 0, 2, 2, 2}));
    EXPECT_TRUE(same(arrays[1].values(), {1, 2, 3, 4, 5}));
    EXPECT_TRUE(same(arrays[2].values(), {0, 1, 2, 3, 4}));
    EXPECT_TRUE(same(arrays[3].values(), {2, 2, 5, 5, 5}));
    fill_document_mask(mask, {0, 4}, false);
    EXPECT_TRUE(same(arrays[0].values(), {0, 0, 0, 0, 4}));
    EXPECT_TRUE(same(arrays[1].values(), {4, 4, 4, 4, 5}));
    EXPECT_TRUE(same(arrays[2].values(), {0, 0, 0, 0, 4}));
    EXPECT_TRUE(same(arrays[3].values(), {4, 4, 4, 4, 5}));
    EXPECT_THROW(fill_document_mask(mask, {}, true), Error);
    EXPECT_THROW(fill_document_mask(mask, {1}, true), Error);
    EXPECT_THROW(fill_document_mask(mask, {0, 3, 2}, true), Error);
    EXPECT_THROW(fill_document_mask(mask, {0, 6}, true), Error);
}

// Pairs of tiles that hold a visible pair are visited from both sides, no tile leaves the row, and with documents, in
// which every token sees itself, no other tile is visited.
TEST(AttentionTiles, BothSidesVisitWhatIsVisible) {
    const AttentionCase cases[] = {
        {.N = 1, .NH = 1, .NKV = 1, .HS = 2},
        {.N = 33, .NH = 1, .NKV = 1, .HS = 2},
        {.N = 200, .NH = 1, .NKV = 1, .HS = 2, .is_causal = false},
        {.N = 150, .NH = 1, .NKV = 1, .HS = 2, .starts = {0, 0, 1, 66, 66, 66, 131, 150}},
        {.N = 150, .NH = 1, .NKV = 1, .HS = 2, .is_causal = false, .starts = {0, 3, 32, 67, 68, 70, 149}},
        {.N = 170, .NH = 1, .NKV = 1, .HS = 2, .window = {69, 0}},
        {.N = 170, .NH = 1, .NKV = 1, .HS = 2, .window = {40, 40}},
        {.N = 170, .NH = 1, .NKV = 1, .HS = 2, .window = {100, -50}},  // the first 50 queries see nothing
    };
    for (const AttentionCase& c : cases)
        for (const auto& [query_tile, key_tile] : {std::pair<int32_t, int32_t>{64, 32}, {32, 32}, {128, 64}}) {
            SCOPED_TRACE(join(c.describe(), ", tiles ", query_tile, " x ", key_tile));
            const AttentionRun run(c, DType::f32);
            const auto data = [](const Buffer& buffer) { return buffer.tensor().get<int32_t>(); };
            const auto N = static_cast<int32_t>(c.N);
            std::set<std::pair<int32_t, int32_t>> visible, by_queries, by_keys;  // tiles by number
            for (int32_t i = 0; i < N; ++i)
                for (int32_t j = data(run.first_key)[i]; j < data(run.end_key)[i]; ++j)
                    visible.insert({i / query_tile, j / key_tile});
            for (int32_t q0 = 0; q0 < N; q0 += query_tile) {
                const TileRange keys = reached_tiles(data(run.first_key), data(run.end_key), q0,
                                                     std::min(q0 + query_tile, N), N, key_tile);
                EXPECT_TRUE(keys.begin >= 0 && keys.begin % key_tile == 0 && keys.end <= N);
                for (int32_t k0 = keys.begin; k0 < keys.end; k0 += key_tile)
                    by_queries.insert({q0 / query_tile, k0 / key_tile});
            }
            for (int32_t k0 = 0; k0 < N; k0 += key_tile) {
                const TileRange queries = reached_tiles(data(run.first_query), data(run.end_query), k0,
                                                        std::min(k0 + key_tile, N), N, query_tile);
                EXPECT_TRUE(queries.begin >= 0 && queries.begin % query_tile == 0 && queries.end <= N);
                for (int32_t q0 = queries.begin; q0 < queries.end; q0 += query_tile)
                    by_keys.insert({q0 / query_tile, k0 / key_tile});
            }
            EXPECT_TRUE(std::includes(by_queries.begin(), by_queries.end(), visible.begin(), visible.end()));
            EXPECT_TRUE(std::includes(by_keys.begin(), by_keys.end(), visible.begin(), visible.end()));
            if (c.window.first < 0) {
                EXPECT_EQ(by_queries, visible);
                EXPECT_EQ(by_keys, visible);
            }
        }
}

TEST(AttentionTiles, AMaskThatLeavesTheRowDoesNotLeadOutOfIt) {
    const int32_t first[] = {-5, 3}, end[] = {1, 900};
    const TileRange range = reached_tiles(first, end, 0, 2, 40, 32);
    EXPECT_EQ(range.begin, 0);
    EXPECT_EQ(range.end, 40);
}

TEST(AttentionChoice, IsKnownWithoutAGpu) {
    const Device planned = Device::planned_cuda();
    const AttentionOptions automatic, simt = {.request = AttentionRequest::simt},
                                      sm80 = {.request = AttentionRequest::sm80};
    const Tensor q = Tensor::contiguous(nullptr, DType::bf16, {100, 12, 64}, DeviceKind::cuda);
    EXPECT_EQ(attention_backward_workspace(planned, q, simt), 100u * 12 * 4);
    // It has rows for whole tiles of 64 queries: dq in fp32, two statistics; of each of the two tiles four numbers on
    // who adds to it, a turn for each head, two numbers on the order of the keys' tiles; and one counter.
    EXPECT_EQ(attention_backward_workspace(planned, q), 128u * 12 * (64 + 2) * 4 + 2 * (4 + 12 + 2) * 4 + 4);
    EXPECT_EQ(attention_backward_workspace(cpu, q), 0u);
    EXPECT_EQ(choose_attention(cpu, DType::f32, 250).kernel, AttentionKernel::cpu);
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        for (const int64_t HS : {32, 64, 96, 128}) {
            const AttentionChoice choice = choose_attention(planned, dtype, HS, automatic);
            EXPECT_STREQ(name_of(choice.kernel), dtype == DType::f32 ? "simt" : "sm80");
            EXPECT_FALSE(choice.reason.empty());
            EXPECT_STREQ(name_of(choose_attention(planned, dtype, HS, simt).kernel), "simt");
            if (dtype == DType::f32) continue;
            EXPECT_STREQ(name_of(choose_attention(planned, dtype, HS, sm80).kernel), "sm80");
        }
    EXPECT_THROW(choose_attention(planned, DType::f64, 64), Error);
    EXPECT_THROW(choose_attention(planned, DType::f32, 48), Error);
    EXPECT_THROW(choose_attention(planned, DType::f32, 256), Error);
    EXPECT_THROW(choose_attention(planned, DType::f32, 64, sm80), UserError);
    EXPECT_THROW(choose_attention(cpu, DType::bf16, 64), Error);
    EXPECT_THROW(choose_attention(cpu, DType::f32, 258), Error);
    EXPECT_THROW(choose_attention(cpu, DType::f32, 64, simt), UserError);
}

// sm90 is taken and given on Hopper alone, in 16 bits and with its head sizes; what it is refused for is said. Seen to
// catch: another GPU or a plan for none in particular taken for Hopper, other head sizes taken.
TEST(AttentionChoice, OfAGpu) {
    const auto choose = [](std::optional<bool> is_hopper, DType dtype, int64_t HS, AttentionRequest request) {
        return choose_attention_cuda("GPU X (sm_123)", is_hopper, dtype, HS, {.request = request});
    };
    const auto expect_refused = [&](std::optional<bool> is_hopper, DType dtype, int64_t HS, const char* says) {
        try {
            choose(is_hopper, dtype, HS, AttentionRequest::sm90);
            ADD_FAILURE() << "taken: " << says;
        } catch (const UserError& error) {
            EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
            EXPECT_NE(std::string(error.what()).find("ask for the automatic choice"), std::string::npos);
        }
    };
    const std::optional<bool> no_gpu_in_particular;
    for (const DType dtype : {DType::bf16, DType::f16})
        for (const int64_t HS : {32, 64, 96, 128}) {
            const bool fits = HS == 64 || HS == 128;
            const auto automatic = [&](std::optional<bool> is_hopper) {
                return choose(is_hopper, dtype, HS, AttentionRequest::automatic).kernel;
            };
            EXPECT_EQ(automatic(true), fits ? AttentionKernel::sm90 : AttentionKernel::sm80);
            EXPECT_EQ(automatic(false), AttentionKernel::sm80);
            EXPECT_EQ(automatic(no_gpu_in_particular), AttentionKernel::sm80);
            EXPECT_EQ(choose(true, dtype, HS, AttentionRequest::sm80).kernel, AttentionKernel::sm80);
            if (!fits) {
                expect_refused(true, dtype, HS, "takes heads of 64 or 128 elements");
                continue;
            }
            EXPECT_EQ(choose(true, dtype, HS, AttentionRequest::sm90).kernel, AttentionKernel::sm90);
            EXPECT_EQ(choose(no_gpu_in_particular, dtype, HS, AttentionRequest::sm90).kernel, AttentionKernel::sm90);
            expect_refused(false, dtype, HS, "runs on Hopper GPUs alone (sm_90), not on GPU X (sm_123)");
        }
    EXPECT_EQ(choose(true, DType::f32, 64, AttentionRequest::automatic).kernel, AttentionKernel::simt);
    expect_refused(true, DType::f32, 64, "sm90 multiplies in bf16 or fp16, not in fp32");
    EXPECT_THROW(choose_attention(cpu, DType::f32, 64, {.request = AttentionRequest::sm90}), UserError);
}

TEST(AlibiSlopes, AreThePapers) {
    std::vector<double> eight, twelve;
    for (int i = 1; i <= 8; ++i) eight.push_back(std::pow(2.0, -i));
    EXPECT_TRUE(close(alibi_slopes(8), eight, 1e-15));
    // Twelve heads: the eight above, then every other slope of sixteen heads, 2^(-1/2), 2^(-3/2), ...
    twelve = eight;
    for (int i = 0; i < 4; ++i) twelve.push_back(std::pow(2.0, -0.5 - i));
    EXPECT_TRUE(close(alibi_slopes(12), twelve, 1e-15));
    EXPECT_TRUE(close(alibi_slopes(3), {1.0 / 16, 1.0 / 256, 1.0 / 4}, 1e-15));
    EXPECT_TRUE(close(alibi_slopes(1), {1.0 / 256}, 1e-15));
    EXPECT_THROW(alibi_slopes(0), Error);
}

TEST(AttentionArguments, Refuses) {
    const AttentionCase c = {.N = 4, .NH = 4, .NKV = 2, .HS = 4, .alibi = true};
    const auto refuses = [&](const std::function<void(AttentionForward&)>& spoil) {
        AttentionRun run(c, DType::f32);
        AttentionForward a = run.forward_arguments();
        spoil(a);
        EXPECT_THROW(attention_forward(cpu, a), Error);
    };
    const Buffer odd(cpu, DType::f32, {4, 4, 3}), wide(cpu, DType::f64, {4, 4, 4}), long_lse(cpu, DType::f32, {4, 8});
    const Buffer three(cpu, DType::f32, {4, 3, 4}), floats(cpu, DType::f32, {4}),
        decreasing(cpu, DType::i32, {4}, {0, 1, 0, 1});
    const Buffer beyond(cpu, DType::i32, {4}, {1, 2, 3, 5}), large(cpu, DType::f32, {4, 4, 258}),
        half(cpu, DType::bf16, {4, 4, 4});
    refuses([&](AttentionForward& a) { a.q = odd; });
    refuses([&](AttentionForward& a) { a.q = wide; });
    refuses([&](AttentionForward& a) { a.k = three; });
    refuses([&](AttentionForward& a) { a.v = a.q; });
    refuses([&](AttentionForward& a) { a.out = wide; });
    refuses([&](AttentionForward& a) { a.q = a.k = a.v = a.out = large; });
    refuses([&](AttentionForward& a) { a.q = a.k = a.v = a.out = half; });
    refuses([&](AttentionForward& a) { a.lse = long_lse; });
    // A narrower view of a longer lse has the right shape, but rows that are further apart.
    refuses([&](AttentionForward& a) { a.lse = long_lse.tensor().slice(1, 0, 4); });
    refuses([&](AttentionForward& a) { a.slopes = long_lse; });
    refuses([&](AttentionForward& a) { a.mask.first_key = floats; });
    refuses([&](AttentionForward& a) { a.mask.first_key = decreasing; });
    refuses([&](AttentionForward& a) { a.mask.end_key = beyond; });
    refuses([&](AttentionForward& a) { a.mask.end_query = {}; });
    const Buffer pairs(cpu, DType::i32, {4, 2}), slope_pairs(cpu, DType::f32, {4, 2});
    const auto every_other = [](const Buffer& buffer) {
        Tensor tensor = buffer.tensor().slice(1, 0, 1);
        tensor.rank = 1;
        return tensor;
    };
    refuses([&](AttentionForward& a) { a.mask.first_key = every_other(pairs); });
    refuses([&](AttentionForward& a) { a.slopes = every_other(slope_pairs); });
    AttentionRun run(c, DType::f32);
    AttentionBackward b = run.backward_arguments();
    b.dk = b.dq;
    EXPECT_THROW(attention_backward(cpu, b), Error);
}

}  // namespace
}  // namespace ingot::test
