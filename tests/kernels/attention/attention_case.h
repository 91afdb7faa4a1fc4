// A case of attention for tests: fused buffers as a transformer has them, and the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/attention/attention.h"
#include "tests/support/tensors.h"

namespace ingot::test {

struct AttentionCase {
    int64_t N, NH, NKV, HS;
    bool is_causal = true, alibi = false;
    std::vector<int64_t> starts = {0};
    double value_scale = 1;
    double score_shift = 0;  // of every score: the first element of a query's head, times 1 in the keys'
    // {before, after}: query i sees keys [i - before, i + after] of the row. {-1, -1}: documents instead.
    std::pair<int64_t, int64_t> window = {-1, -1};
    AttentionOptions options = {};  // for a run on a GPU
    bool is_decoded = false;        // a case of attention_decode(), which takes more head sizes
    bool favours_far = false;       // ALiBi with negative slopes: far keys count more
    std::string describe() const {
        return join("N ", N, ", NH ", NH, ", NKV ", NKV, ", HS ", HS, is_causal ? ", causal" : ", full",
                    alibi ? ", ALiBi" : "", favours_far ? " negative" : "", ", documents ", starts.size(), ", window ",
                    window.first, " ", window.second,
                    score_shift == 0 ? "" : join(", scores shifted by ", score_shift));
    }
};

struct MaskValues {
    std::vector<double> arrays[4];  // first_key, end_key, first_query, end_query
};
// Six tokens: three queries see no key, and two keys are seen by no query.
inline MaskValues some_see_nothing() {
    return {{{0, 0, 0, 1, 2, 4}, {0, 0, 2, 3, 4, 4}, {2, 2, 3, 4, 6, 6}, {3, 4, 5, 5, 6, 6}}};
}
inline MaskValues all_see_nothing(int64_t N) {
    const std::vector<double> zeros(static_cast<size_t>(N));
    return {{zeros, zeros, zeros, zeros}};
}

// Returns the ALiBi slope of each query head.
inline std::vector<double> slopes_of(const AttentionCase& c) {
    std::vector<double> slopes = alibi_slopes(c.NH);
    if (c.favours_far)
        for (double& slope : slopes) slope = -slope;
    return slopes;
}

// out (N, NH, HS), lse (NH, N), dq (N, NH, HS), dk and dv (N, NKV, HS).
struct AttentionResult {
    std::vector<double> out, lse, dq, dk, dv;
};
// The members that are rows of tokens, and then all, for tests that treat them alike: `a.*values` is one of `a`.
struct AttentionMember {
    const char* name;
    std::vector<double> AttentionResult::*values;
};
constexpr AttentionMember kOut = {"out", &AttentionResult::out}, kLse = {"lse", &AttentionResult::lse},
                          kDq = {"dq", &AttentionResult::dq}, kDk = {"dk", &AttentionResult::dk},
                          kDv = {"dv", &AttentionResult::dv};
constexpr AttentionMember kOutAndGradients[] = {kOut, kDq, kDk, kDv}, kAllMembers[] = {kOut, kLse, kDq, kDk, kDv};

inline testing::AssertionResult same_bits(const AttentionResult& a, const AttentionResult& b) {
    for (const auto& [name, values] : kAllMembers)
        if (const auto result = same(a.*values, b.*values); !result)
            return testing::AssertionFailure() << name << ": " << result.message();
    return testing::AssertionSuccess();
}

// q, k and v are slices of one (N, (NH + 2 NKV) HS) buffer, and so are their gradients; out and dout are (N, NH HS).
// With margins of odd widths no 16-byte access fits the views. The inputs are rounded to `rounding` first, so that runs
// in several types can see the same numbers.
struct AttentionRun {
    AttentionRun(const AttentionCase& c, DType dtype, DType rounding = DType::f32, const Device& device = Device::cpu(),
                 Margins margins = {})
        : c(c),
          device(device),
          qkv(margins, device, dtype, {c.N, qkv_width()}),
          dqkv(margins, device, dtype, {c.N, qkv_width()}),
          out(margins, device, dtype, {c.N, out_width()}),
          dout(margins, device, dtype, {c.N, out_width()}),
          lse(device, accumulation_dtype(dtype), {c.NH, c.N}),
          slopes(device, accumulation_dtype(dtype), {c.NH}, slopes_of(c)),
          first_key(device, DType::i32, {c.N}),
          end_key(device, DType::i32, {c.N}),
          first_query(device, DType::i32, {c.N}),
          end_query(device, DType::i32, {c.N}),
          workspace(device, DType::u8,
                    {c.is_decoded ? 0
                                  : static_cast<int64_t>(
                                        attention_backward_workspace(device, heads(qkv, 0, c.NH), options()))}) {
        qkv.set(rounded(inputs(), rounding));
        dout.set(rounded(normals(c.N * out_width(), 22), rounding));
        if (c.window.first < 0) {
            const Device cpu = Device::cpu();
            const Buffer arrays[] = {
                {cpu, DType::i32, {c.N}}, {cpu, DType::i32, {c.N}}, {cpu, DType::i32, {c.N}}, {cpu, DType::i32, {c.N}}};
            fill_document_mask({arrays[0], arrays[1], arrays[2], arrays[3]}, c.starts, c.is_causal);
            set_mask({{arrays[0].values(), arrays[1].values(), arrays[2].values(), arrays[3].values()}});
            return;
        }
        MaskValues mask;
        auto& columns = mask.arrays;
        const auto clamp = [&](int64_t i) { return static_cast<double>(std::clamp<int64_t>(i, 0, c.N)); };
        for (int64_t i = 0; i < c.N; ++i) {
            columns[0].push_back(clamp(i - c.window.first));
            columns[1].push_back(clamp(i + c.window.second + 1));
            columns[2].push_back(clamp(i - c.window.second));
            columns[3].push_back(clamp(i + c.window.first + 1));
        }
        set_mask(mask);
    }

    std::vector<double> inputs() const {
        std::vector<double> values = normals(c.N * qkv_width(), 21, c.value_scale);
        if (c.score_shift == 0) return values;
        for (int64_t n = 0; n < c.N; ++n)
            for (int64_t head = 0; head < c.NH + c.NKV; ++head)
                values[static_cast<size_t>(n * qkv_width() + head * c.HS)] = head < c.NH ? c.score_shift / scale() : 1;
        return values;
    }
    int64_t qkv_width() const { return (c.NH + 2 * c.NKV) * c.HS; }
    int64_t out_width() const { return c.NH * c.HS; }

    AttentionMask mask() const { return {first_key, end_key, first_query, end_query}; }
    void set_mask(const MaskValues& values) const {
        const Buffer* const buffers[] = {&first_key, &end_key, &first_query, &end_query};
        for (int i = 0; i < 4; ++i) buffers[i]->set(values.arrays[i]);
    }
    Tensor heads(const Buffer& fused, int64_t begin, int64_t count) const {
        return fused.tensor().split_last(c.NH + 2 * c.NKV, c.HS).slice(1, begin, begin + count);
    }
    AttentionForward forward_arguments() const {
        return {.out = out.tensor().split_last(c.NH, c.HS),
                .lse = lse,
                .q = heads(qkv, 0, c.NH),
                .k = heads(qkv, c.NH, c.NKV),
                .v = heads(qkv, c.NH + c.NKV, c.NKV),
                .slopes = c.alibi ? slopes.tensor() : Tensor{},
                .mask = mask(),
                .scale = scale(),
                .options = options()};
    }
    AttentionBackward backward_arguments() const {
        const AttentionForward f = forward_arguments();
        return {.dq = heads(dqkv, 0, c.NH),
                .dk = heads(dqkv, c.NH, c.NKV),
                .dv = heads(dqkv, c.NH + c.NKV, c.NKV),
                .dout = dout.tensor().split_last(c.NH, c.HS),
                .out = f.out,
                .lse = f.lse,
                .q = f.q,
                .k = f.k,
                .v = f.v,
                .slopes = f.slopes,
                .mask = f.mask,
                .scale = f.scale,
                .workspace = workspace,
                .options = options()};
    }
    void forward() const { attention_forward(device, forward_arguments()); }
    void backward() const { attention_backward(device, backward_arguments()); }
    AttentionResult both() const {
        forward();
        backward();
        return result();
    }
    AttentionOptions options() const { return device.is_cpu() ? AttentionOptions{} : c.options; }
    double scale() const { return 1 / std::sqrt(static_cast<double>(c.HS)); }

    // Returns the heads [begin, begin + count) of a fused list.
    std::vector<double> part(const std::vector<double>& fused, int64_t begin, int64_t count) const {
        std::vector<double> result(static_cast<size_t>(c.N * count * c.HS));
        for (int64_t n = 0; n < c.N; ++n)
            std::copy_n(fused.begin() + n * qkv_width() + begin * c.HS, count * c.HS,
                        result.begin() + n * count * c.HS);
        return result;
    }
    AttentionResult result() const {
        const std::vector<double> d = dqkv.values();
        return {out.values(), lse.values(), part(d, 0, c.NH), part(d, c.NH, c.NKV), part(d, c.NH + c.NKV, c.NKV)};
    }

    const AttentionCase c;
    const Device device;
    Buffer qkv, dqkv, out, dout, lse, slopes, first_key, end_key, first_query, end_query, workspace;
};

// Returns the rows [begin, end) of a (N, heads, HS) list.
inline std::vector<double> rows(const std::vector<double>& values, int64_t N, int64_t begin, int64_t end) {
    const int64_t width = static_cast<int64_t>(values.size()) / N;
    return {values.begin() + begin * width, values.begin() + end * width};
}

// Adds `shift` to the rows [begin, end).
inline void perturb(const Buffer& buffer, int64_t begin, int64_t end, double shift) {
    std::vector<double> values = buffer.values();
    const int64_t width = buffer.tensor().shape[1];
    for (int64_t i = begin * width; i < end * width; ++i) values[static_cast<size_t>(i)] += shift;
    buffer.set(values);
}

// Two documents, in which queries see keys on both sides, under slopes that favour the far ones.
inline AttentionCase far_keys_on_both_sides(int64_t N, int64_t HS) {
    return {
        .N = N, .NH = 2, .NKV = 1, .HS = HS, .is_causal = false, .alibi = true, .starts = {0, 70}, .favours_far = true};
}

// Scores so low that a key past the end, of zeros and with a score of 0, would weigh e^-lse: infinity in fp32, or, in
// the last case, in fp16 alone. The last tile of keys has some, and but for one case, which is causal, there are tiles
// of queries that see all other keys of the tile: nothing else asks for indices to be compared.
inline std::vector<AttentionCase> low_score_cases() {
    return {
        {.N = 70, .NH = 2, .NKV = 1, .HS = 32, .is_causal = false, .score_shift = -150},
        {.N = 80, .NH = 1, .NKV = 1, .HS = 64, .is_causal = false, .score_shift = -150},
        {.N = 131, .NH = 1, .NKV = 1, .HS = 64, .is_causal = false, .alibi = true, .score_shift = -150},
        {.N = 131, .NH = 1, .NKV = 1, .HS = 128, .is_causal = false, .alibi = true, .score_shift = -150},
        {.N = 150, .NH = 1, .NKV = 1, .HS = 96, .is_causal = false, .starts = {0, 20}, .score_shift = -150},
        {.N = 70, .NH = 1, .NKV = 1, .HS = 128, .score_shift = -150},
        {.N = 150, .NH = 1, .NKV = 1, .HS = 64, .score_shift = -150, .window = {149, 140}},
        {.N = 75, .NH = 1, .NKV = 1, .HS = 128, .is_causal = false, .score_shift = -20},
    };
}

// The definition, a whole row of scores at a time, in T. Reads the key intervals alone.
template <typename T = double>
AttentionResult reference_attention(const AttentionRun& run) {
    const AttentionCase& c = run.c;
    const int64_t N = c.N, NH = c.NH, NKV = c.NKV, HS = c.HS, G = NH / NKV;
    const auto cast = [](const std::vector<double>& values) { return std::vector<T>(values.begin(), values.end()); };
    const std::vector<T> q = cast(run.part(run.qkv.values(), 0, NH)), k = cast(run.part(run.qkv.values(), NH, NKV));
    const std::vector<T> v = cast(run.part(run.qkv.values(), NH + NKV, NKV)), dout = cast(run.dout.values());
    const std::vector<double> first = run.first_key.values(), end = run.end_key.values(), slopes = slopes_of(c);
    const T scale = static_cast<T>(run.scale());
    std::vector<T> out(q.size()), lse(static_cast<size_t>(NH * N)), dq(q.size()), dk(k.size()), dv(k.size());
    for (int64_t h = 0; h < NH; ++h) {
        const T slope = c.alibi ? static_cast<T>(slopes[static_cast<size_t>(h)]) : T(0);
        for (int64_t i = 0; i < N; ++i) {
            const auto at = [&](int64_t token, int64_t heads, int64_t head) {
                return static_cast<size_t>((token * heads + head) * HS);
            };
            const auto dot = [&](const T* a, const T* b) {
                T sum = 0;
                for (int64_t d = 0; d < HS; ++d) sum += a[d] * b[d];
                return sum;
            };
            const int64_t begin = static_cast<int64_t>(first[static_cast<size_t>(i)]);
            const int64_t count = static_cast<int64_t>(end[static_cast<size_t>(i)]) - begin;
            lse[static_cast<size_t>(h * N + i)] = -std::numeric_limits<T>::infinity();
            if (count <= 0) continue;
            std::vector<T> p(static_cast<size_t>(count));
            T maximum = -std::numeric_limits<T>::infinity(), total = 0, delta = 0;
            for (int64_t j = 0; j < count; ++j) {
                const T distance = static_cast<T>(std::abs(i - begin - j));
                p[static_cast<size_t>(j)] =
                    scale * dot(&q[at(i, NH, h)], &k[at(begin + j, NKV, h / G)]) - slope * distance;
                maximum = std::max(maximum, p[static_cast<size_t>(j)]);
            }
            for (T& s : p) total += s = std::exp(s - maximum);
            lse[static_cast<size_t>(h * N + i)] = maximum + std::log(total);
            for (int64_t j = 0; j < count; ++j) {
                T& weight = p[static_cast<size_t>(j)];
                weight /= total;
                for (int64_t d = 0; d < HS; ++d)
                    out[at(i, NH, h) + static_cast<size_t>(d)] +=
                        weight * v[at(begin + j, NKV, h / G) + static_cast<size_t>(d)];
                delta += weight * dot(&dout[at(i, NH, h)], &v[at(begin + j, NKV, h / G)]);
            }
            for (int64_t j = 0; j < count; ++j) {
                const size_t key = at(begin + j, NKV, h / G), query = at(i, NH, h);
                const T weight = p[static_cast<size_t>(j)], ds = weight * (dot(&dout[query], &v[key]) - delta) * scale;
                for (size_t d = 0; d < static_cast<size_t>(HS); ++d) {
                    dv[key + d] += weight * dout[query + d];
                    dq[query + d] += ds * k[key + d];
                    dk[key + d] += ds * q[query + d];
                }
            }
        }
    }
    const auto widen = [](const std::vector<T>& values) { return std::vector<double>(values.begin(), values.end()); };
    return {widen(out), widen(lse), widen(dq), widen(dk), widen(dv)};
}

template <typename T = double>
AttentionResult reference_attention(const AttentionCase& c) {
    return reference_attention<T>(AttentionRun(c, DType::f64));
}

}  // namespace ingot::test
