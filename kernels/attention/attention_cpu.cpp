// Attention in tiles of queries x keys through the BLAS.
//
// A task is one key/value head of one segment: a range of tokens that no other token sees or is seen by (a document, or
// a sequence). Tasks write disjoint memory and each runs its tiles in index order, so the bits do not depend on
// threads.
#include "kernels/attention/attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/blas.h"
#include "kernels/core/math.h"
#include "kernels/core/parallel.h"

namespace ingot {

namespace {

constexpr int64_t kTile = 64;

struct Intervals {
    explicit Intervals(const AttentionMask& mask)
        : first_key(mask.first_key.get<int32_t>()), end_key(mask.end_key.get<int32_t>()), N(mask.first_key.shape[0]) {
        for (int64_t i = 0; i < N; ++i)
            CHECK(0 <= first_key[i] && end_key[i] <= N &&
                      (i == 0 || (first_key[i - 1] <= first_key[i] && end_key[i - 1] <= end_key[i])),
                  "attention: query ", i, " sees keys [", first_key[i], ", ", end_key[i],
                  "): intervals must lie in the row and be non-decreasing");
    }
    // Cuts the row wherever no query on one side sees a key on the other.
    std::vector<std::pair<int64_t, int64_t>> segments() const {
        std::vector<std::pair<int64_t, int64_t>> result;
        int64_t begin = 0;
        for (int64_t t = 1; t <= N; ++t) {
            if (t < N && (first_key[t] < t || end_key[t - 1] > t)) continue;
            result.emplace_back(begin, t);
            begin = t;
        }
        return result;
    }
    const int32_t *first_key, *end_key;
    int64_t N;
};

// A tile of scores: rows are queries [q0, q1), columns keys [k0, k1).
struct Tile {
    int64_t q0, q1, k0, k1;
    int64_t rows() const { return q1 - q0; }
    int64_t columns() const { return k1 - k0; }
};

// Calls visit(tile) for the tiles of queries [q0, q1) in ascending key order.
template <typename Visit>
void for_key_tiles(const Intervals& intervals, int64_t q0, int64_t q1, Visit&& visit) {
    const int64_t end = intervals.end_key[q1 - 1];
    for (int64_t k0 = intervals.first_key[q0]; k0 < end; k0 += kTile)
        visit(Tile{q0, q1, k0, std::min(k0 + kTile, end)});
}

// Rows as the BLAS reads them: `stride` elements apart.
template <typename T>
struct Rows {
    const T* data;
    int64_t stride;
};

// The rows of one head of an input (N, heads, HS), a tile at a time. A BLAS takes no stride that is shorter than a row:
// where rows share memory, as those of keys that are expanded over the tokens, the tile is copied.
template <typename T>
class HeadRows {
  public:
    HeadRows(const Tensor& tensor, int64_t head)
        : head_(tensor.get<T>() + head * tensor.stride[1]), stride_(tensor.stride[0]), HS_(tensor.shape[2]) {
        if (stride_ < HS_) copy_.resize(static_cast<size_t>(kTile * HS_));
    }
    const T* row(int64_t i) const { return head_ + i * stride_; }
    // Rows [begin, end), at most kTile; valid until the next call.
    Rows<T> tile(int64_t begin, int64_t end) {
        if (copy_.empty()) return {row(begin), stride_};
        for (int64_t i = begin; i < end; ++i) std::copy_n(row(i), HS_, copy_.data() + (i - begin) * HS_);
        return {copy_.data(), HS_};
    }

  private:
    const T* head_;
    int64_t stride_, HS_;
    std::vector<T> copy_;
};

// The columns of a tile's row that need work: those that the query sees, extended to whole vectors.
struct Columns {
    int64_t begin, end;
};

// scores (rows, kTile) = scale * q k^T - slope * |i - j| in each row's Columns, -inf there where the query does not see
// the key; elements outside them are not scores.
template <typename T>
void score_tile(const Intervals& intervals, const Tile& tile, Rows<T> q, Rows<T> k, int64_t HS, T scale, T slope,
                T* scores, Columns* visible) {
    constexpr int64_t kVector = 8;
    gemm(false, true, tile.rows(), tile.columns(), HS, scale, q.data, q.stride, k.data, k.stride, T(0), scores, kTile);
    const T infinity = std::numeric_limits<T>::infinity();
    for (int64_t r = 0; r < tile.rows(); ++r) {
        T* const row = scores + r * kTile;
        const int64_t i = tile.q0 + r;
        const int64_t begin = std::clamp<int64_t>(intervals.first_key[i] - tile.k0, 0, tile.columns());
        const int64_t end = std::clamp<int64_t>(intervals.end_key[i] - tile.k0, begin, tile.columns());
        const int64_t first = begin / kVector * kVector,
                      last = std::min((end + kVector - 1) / kVector * kVector, tile.columns());
        if (slope != 0) {
            const T offset = static_cast<T>(i - tile.k0);
#pragma omp simd
            for (int64_t c = first; c < last; ++c)
                row[c] -= slope * std::abs(offset - static_cast<T>(static_cast<int32_t>(c)));
        }
        for (int64_t c = first; c < begin; ++c) row[c] = -infinity;
        for (int64_t c = end; c < last; ++c) row[c] = -infinity;
        visible[r] = {first, last};
    }
}

// Zeroes a row outside its visible columns, so that GEMMs over the whole tile may read it.
template <typename T>
void zero_beyond(T* row, Columns visible, int64_t columns) {
    for (int64_t c = 0; c < visible.begin; ++c) row[c] = 0;
    for (int64_t c = visible.end; c < columns; ++c) row[c] = 0;
}

// Calls work(segment, kv_head) for all tasks; the largest segments first, so that no thread is left with one at the
// end.
template <typename Work>
void for_tasks(const Intervals& intervals, int64_t NKV, Work&& work) {
    auto segments = intervals.segments();
    std::stable_sort(segments.begin(), segments.end(),
                     [](const auto& a, const auto& b) { return a.second - a.first > b.second - b.first; });
    const int64_t num_tasks = static_cast<int64_t>(segments.size()) * NKV;
    LoopErrors errors;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < num_tasks; ++task)
        errors.run(task, [&] { work(segments[static_cast<size_t>(task / NKV)], task % NKV); });
    errors.rethrow();
}

template <typename T>
void forward_cpu(const AttentionForward& a) {
    const int64_t NKV = a.k.shape[1], G = a.q.shape[1] / NKV, HS = a.q.shape[2], N = a.q.shape[0];
    const T scale = static_cast<T>(a.scale);
    const Intervals intervals(a.mask);
    for_tasks(intervals, NKV, [&](std::pair<int64_t, int64_t> segment, int64_t kv_head) {
        T scores[kTile * kTile], maximum[kTile], sum[kTile];
        Columns visible[kTile];
        HeadRows<T> k(a.k, kv_head), v(a.v, kv_head);
        for (int64_t head = kv_head * G; head < (kv_head + 1) * G; ++head) {
            HeadRows<T> q(a.q, head);
            T* const out = a.out.get<T>() + head * a.out.stride[1];
            T* const lse = a.lse.get<T>() + head * N;
            const T slope = a.slopes ? a.slopes.get<T>()[head] : T(0);
            for (int64_t q0 = segment.first; q0 < segment.second; q0 += kTile) {
                const int64_t q1 = std::min(q0 + kTile, segment.second);
                const Rows<T> q_tile = q.tile(q0, q1);
                for (int64_t i = q0; i < q1; ++i) {
                    maximum[i - q0] = -std::numeric_limits<T>::infinity();
                    sum[i - q0] = 0;
                    for (int64_t d = 0; d < HS; ++d) out[i * a.out.stride[0] + d] = 0;
                }
                for_key_tiles(intervals, q0, q1, [&](const Tile& tile) {
                    const Rows<T> v_tile = v.tile(tile.k0, tile.k1);
                    score_tile(intervals, tile, q_tile, k.tile(tile.k0, tile.k1), HS, scale, slope, scores, visible);
                    // Online softmax (Milakov and Gimelshein 2018): when the maximum grows, the partial sums are
                    // rescaled.
                    for (int64_t r = 0; r < tile.rows(); ++r) {
                        T* const row = scores + r * kTile;
                        const int64_t begin = visible[r].begin, end = visible[r].end;
                        T row_maximum = maximum[r];
#pragma omp simd reduction(max : row_maximum)
                        for (int64_t c = begin; c < end; ++c) row_maximum = row[c] > row_maximum ? row[c] : row_maximum;
                        // With no key seen so far every exponential must be 0, and its argument finite.
                        const T reference = row_maximum == -std::numeric_limits<T>::infinity() ? T(0) : row_maximum;
                        const T shrink = fast_exp(maximum[r] - reference);
                        T row_sum = 0;
#pragma omp simd reduction(+ : row_sum)
                        for (int64_t c = begin; c < end; ++c) row_sum += row[c] = fast_exp(row[c] - reference);
                        zero_beyond(row, visible[r], tile.columns());
                        sum[r] = sum[r] * shrink + row_sum;
                        maximum[r] = row_maximum;
                        T* const out_row = out + (tile.q0 + r) * a.out.stride[0];
#pragma omp simd
                        for (int64_t d = 0; d < HS; ++d) out_row[d] *= shrink;
                    }
                    gemm(false, false, tile.rows(), HS, tile.columns(), T(1), scores, kTile, v_tile.data, v_tile.stride,
                         T(1), out + tile.q0 * a.out.stride[0], a.out.stride[0]);
                });
                for (int64_t i = q0; i < q1; ++i) {
                    const T total = sum[i - q0];
                    lse[i] = total > 0 ? maximum[i - q0] + std::log(total) : -std::numeric_limits<T>::infinity();
                    const T inverse = total > 0 ? 1 / total : T(0);
                    for (int64_t d = 0; d < HS; ++d) out[i * a.out.stride[0] + d] *= inverse;
                }
            }
        }
    });
}

template <typename T>
void backward_cpu(const AttentionBackward& a) {
    const int64_t NKV = a.k.shape[1], G = a.q.shape[1] / NKV, HS = a.q.shape[2], N = a.q.shape[0];
    const T scale = static_cast<T>(a.scale);
    const Intervals intervals(a.mask);
    for_tasks(intervals, NKV, [&](std::pair<int64_t, int64_t> segment, int64_t kv_head) {
        T probabilities[kTile * kTile], dscores[kTile * kTile], delta[kTile];
        Columns visible[kTile];
        HeadRows<T> k(a.k, kv_head), v(a.v, kv_head);
        T *const dk = a.dk.get<T>() + kv_head * a.dk.stride[1], *const dv = a.dv.get<T>() + kv_head * a.dv.stride[1];
        for (int64_t j = segment.first; j < segment.second; ++j)
            for (int64_t d = 0; d < HS; ++d) dk[j * a.dk.stride[0] + d] = dv[j * a.dv.stride[0] + d] = 0;
        for (int64_t head = kv_head * G; head < (kv_head + 1) * G; ++head) {
            HeadRows<T> q(a.q, head), dout(a.dout, head);
            const HeadRows<T> out(a.out, head);
            T* const dq = a.dq.get<T>() + head * a.dq.stride[1];
            const T* const lse = a.lse.get<T>() + head * N;
            const T slope = a.slopes ? a.slopes.get<T>()[head] : T(0);
            for (int64_t q0 = segment.first; q0 < segment.second; q0 += kTile) {
                const int64_t q1 = std::min(q0 + kTile, segment.second);
                const Rows<T> q_tile = q.tile(q0, q1), dout_tile = dout.tile(q0, q1);
                for (int64_t i = q0; i < q1; ++i) {
                    const T *const out_row = out.row(i), *const dout_row = dout.row(i);
                    // D = rowsum(dout * out) (Dao 2023, algorithm 2), the term of the softmax's normalisation.
                    T sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t d = 0; d < HS; ++d) sum += dout_row[d] * out_row[d];
                    delta[i - q0] = sum;
                    for (int64_t d = 0; d < HS; ++d) dq[i * a.dq.stride[0] + d] = 0;
                }
                for_key_tiles(intervals, q0, q1, [&](const Tile& tile) {
                    const int64_t rows = tile.rows(), columns = tile.columns();
                    const Rows<T> k_tile = k.tile(tile.k0, tile.k1), v_tile = v.tile(tile.k0, tile.k1);
                    score_tile(intervals, tile, q_tile, k_tile, HS, scale, slope, probabilities, visible);
                    gemm(false, true, rows, columns, HS, T(1), dout_tile.data, dout_tile.stride, v_tile.data,
                         v_tile.stride, T(0), dscores, kTile);
                    for (int64_t r = 0; r < rows; ++r) {
                        T *const p = probabilities + r * kTile, *const ds = dscores + r * kTile;
                        const int64_t begin = visible[r].begin, end = visible[r].end;
                        const T row_lse =
                            lse[tile.q0 + r] > -std::numeric_limits<T>::infinity() ? lse[tile.q0 + r] : T(0);
#pragma omp simd
                        for (int64_t c = begin; c < end; ++c) {
                            p[c] = fast_exp(p[c] - row_lse);
                            ds[c] = p[c] * (ds[c] - delta[r]);
                        }
                        zero_beyond(p, visible[r], columns);
                        zero_beyond(ds, visible[r], columns);
                    }
                    gemm(true, false, columns, HS, rows, T(1), probabilities, kTile, dout_tile.data, dout_tile.stride,
                         T(1), dv + tile.k0 * a.dv.stride[0], a.dv.stride[0]);
                    gemm(false, false, rows, HS, columns, scale, dscores, kTile, k_tile.data, k_tile.stride, T(1),
                         dq + tile.q0 * a.dq.stride[0], a.dq.stride[0]);
                    gemm(true, false, columns, HS, rows, scale, dscores, kTile, q_tile.data, q_tile.stride, T(1),
                         dk + tile.k0 * a.dk.stride[0], a.dk.stride[0]);
                });
            }
        }
    });
}

}  // namespace

void attention_forward_cpu(const AttentionForward& a) {
    use_single_threaded_blas();
    for_cpu_scalar(a.q.dtype, "attention", [&](auto scalar) { forward_cpu<decltype(scalar)>(a); });
}

void attention_backward_cpu(const AttentionBackward& a) {
    use_single_threaded_blas();
    for_cpu_scalar(a.q.dtype, "attention", [&](auto scalar) { backward_cpu<decltype(scalar)>(a); });
}

}  // namespace ingot
