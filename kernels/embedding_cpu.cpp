#include <cstring>

#include "kernels/core/parallel.h"
#include "kernels/embedding.h"
#include "kernels/embedding_workspace.h"

namespace ingot {

namespace {

// Checks `rows` (N, C), which are looked up in `weight` (VP, C) or added to it, under the names of the direction.
void check(const Device& device, const char* rows_name, const Tensor& rows, const char* weight_name,
           const Tensor& weight, const Tensor& tokens, DType weight_dtype) {
    CHECK(rows.rank == 2 && weight.rank == 2, "embedding: ", rows_name, " is ", rows.describe(), ", ", weight_name,
          " is ", weight.describe(), ", they must be (N, C) and (VP, C)");
    check_tensor("embedding", "tokens", tokens, {rows.shape[0]}, DType::i32, device.kind());
    check_tensor("embedding", weight_name, weight, {weight.shape[0], rows.shape[1]}, weight_dtype, device.kind());
    check_tensor("embedding", rows_name, rows, {rows.shape[0], rows.shape[1]}, rows.dtype, device.kind());
}

const int32_t* checked_tokens(const Tensor& tokens, int64_t vocabulary) {
    const int32_t* const ids = tokens.get<int32_t>();
    for (int64_t n = 0; n < tokens.shape[0]; ++n)
        CHECK(ids[n] >= 0 && ids[n] < vocabulary, "embedding: token ", ids[n], " at position ", n,
              " is outside the vocabulary of ", vocabulary);
    return ids;
}

template <typename T>
void forward_cpu(const EmbeddingForward& a) {
    const int64_t N = a.out.shape[0], C = a.out.shape[1];
    const int32_t* const tokens = checked_tokens(a.tokens, a.weight.shape[0]);
    const T* const weight = a.weight.get<T>();
    T* const out = a.out.get<T>();
#pragma omp parallel for schedule(static) if (is_worth_threads(2 * N * C))
    for (int64_t n = 0; n < N; ++n)
        std::memcpy(out + n * C, weight + tokens[n] * C, static_cast<size_t>(C) * sizeof(T));
}

// Each task owns a block of columns and walks all tokens in order: no two tasks write the same element.
template <typename T>
void backward_cpu(const EmbeddingBackward& a) {
    constexpr int64_t kColumns = 64;
    const int64_t N = a.dout.shape[0], C = a.dout.shape[1];
    const int32_t* const tokens = checked_tokens(a.tokens, a.dweight.shape[0]);
    const T* const dout = a.dout.get<T>();
    T* const dweight = a.dweight.get<T>();
    const int64_t blocks = (C + kColumns - 1) / kColumns;
#pragma omp parallel for schedule(static) if (is_worth_threads(2 * N * C))
    for (int64_t block = 0; block < blocks; ++block) {
        const auto range = block_range(C, blocks, block);
        const int64_t begin = range.first, end = range.second;  // clang takes no structured bindings into a region
        for (int64_t n = 0; n < N; ++n) {
            T* const row = dweight + tokens[n] * C;
#pragma omp simd
            for (int64_t c = begin; c < end; ++c) row[c] += dout[n * C + c];
        }
    }
}

}  // namespace

void embedding_forward(const Device& device, const EmbeddingForward& a) {
    check(device, "out", a.out, "weight", a.weight, a.tokens, a.out.dtype);
    if (!device.is_cpu()) return embedding_forward_cuda(device, a);
    for_cpu_scalar(a.out.dtype, "embedding", [&](auto scalar) { forward_cpu<decltype(scalar)>(a); });
}

void embedding_backward(const Device& device, const EmbeddingBackward& a) {
    check(device, "dout", a.dout, "dweight", a.dweight, a.tokens, accumulation_dtype(a.dout.dtype));
    check_workspace("embedding_backward", a.workspace, embedding_backward_workspace(device, a.dout), device.kind());
    if (!device.is_cpu()) return embedding_backward_cuda(device, a);
    for_cpu_scalar(a.dout.dtype, "embedding", [&](auto scalar) { backward_cpu<decltype(scalar)>(a); });
}

size_t embedding_backward_workspace(const Device& device, const Tensor& dout) {
    CHECK(dout.rank == 2, "embedding_backward: dout is ", dout.describe(), ", it must be (N, C)");
    return device.is_cpu() ? 0 : EmbeddingWorkspace(dout.shape[0], dout.shape[1]).bytes;
}

}  // namespace ingot
