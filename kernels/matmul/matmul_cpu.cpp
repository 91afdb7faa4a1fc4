#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/core/blas.h"
#include "kernels/core/parallel.h"
#include "kernels/matmul/matmul.h"

namespace ingot {

namespace {

// The shape alone says into how many blocks the result is cut. The BLAS packs large blocks less often, and many blocks
// feed many threads: so blocks have at most 512 x 1024 elements, and down to 128 x 256 there are at least eight. Their
// number is a power of two, since two threads that share three blocks are no faster than with four.
struct BlockCounts {
    int64_t rows = 1, columns = 1;
};

BlockCounts count_blocks(int64_t M, int64_t N) {
    constexpr int64_t kMaxRows = 512, kMaxColumns = 1024, kMinRows = 128, kMinColumns = 256, kMinBlocks = 8;
    BlockCounts counts;
    while (M > counts.rows * kMaxRows) counts.rows *= 2;
    while (N > counts.columns * kMaxColumns) counts.columns *= 2;
    while (counts.rows * counts.columns < kMinBlocks) {
        const int64_t halves_of_rows = M / (2 * counts.rows * kMinRows),
                      halves_of_columns = N / (2 * counts.columns * kMinColumns);
        if (halves_of_rows == 0 && halves_of_columns == 0) break;
        (halves_of_rows >= halves_of_columns ? counts.rows : counts.columns) *= 2;
    }
    return counts;
}

template <typename T>
void gemm_cpu(const Gemm& p) {
    use_single_threaded_blas();
    const int64_t M = p.out.shape[0], N = p.out.shape[1], K = p.a.shape[p.a_transposed ? 0 : 1];
    const int64_t lda = p.a.stride[0], ldb = p.b.stride[0], ldc = p.out.stride[0];
    const T *const a = p.a.get<T>(), *const b = p.b.get<T>();
    T* const out = p.out.get<T>();
    const T* const addend = p.addend ? p.addend.get<T>() : nullptr;
    const int64_t ldd = p.addend ? p.addend.stride[0] : 0;
    const BlockCounts counts = count_blocks(M, N);
    const int64_t row_blocks = counts.rows, column_blocks = counts.columns;
    const auto multiply_block = [&](int64_t row_block, int64_t column_block) {
        const auto [m0, m1] = block_range(M, row_blocks, row_block);
        const auto [n0, n1] = block_range(N, column_blocks, column_block);
        if (addend != nullptr && addend != out)
            for (int64_t m = m0; m < m1; ++m)
                std::memcpy(out + m * ldc + n0, addend + m * ldd + n0, static_cast<size_t>(n1 - n0) * sizeof(T));
        gemm(p.a_transposed, p.b_transposed, m1 - m0, n1 - n0, K, T(1), p.a_transposed ? a + m0 : a + m0 * lda, lda,
             p.b_transposed ? b + n0 * ldb : b + n0, ldb, addend != nullptr ? T(1) : T(0), out + m0 * ldc + n0, ldc);
        if (!p.bias) return;
        const T* const bias = p.bias.get<T>();
        for (int64_t m = m0; m < m1; ++m)
            for (int64_t n = n0; n < n1; ++n) out[m * ldc + n] += bias[n];
    };
    LoopErrors errors;
#pragma omp parallel for schedule(dynamic)
    for (int64_t block = 0; block < row_blocks * column_blocks; ++block)
        errors.run(block, [&] { multiply_block(block / column_blocks, block % column_blocks); });
    errors.rethrow();
}

// Rows are summed in a fixed number of blocks, whatever the number of threads, and the blocks in index order.
constexpr int64_t kBiasBlocks = 32;

template <typename T>
void backward_bias_cpu(const MatmulBackwardBias& a) {
    const int64_t N = a.dout.shape[0], O = a.dout.shape[1];
    const T* const dout = a.dout.get<T>();
    T* const partial = static_cast<T*>(a.workspace.data);  // (kBiasBlocks, O)
#pragma omp parallel for schedule(static) if (is_worth_threads(N * O))
    for (int64_t block = 0; block < kBiasBlocks; ++block) {
        T* const sums = partial + block * O;
        std::fill_n(sums, O, T(0));
        const auto [begin, end] = block_range(N, kBiasBlocks, block);
        for (int64_t row = begin; row < end; ++row)
#pragma omp simd
            for (int64_t o = 0; o < O; ++o) sums[o] += dout[row * a.dout.stride[0] + o];
    }
    T* const dbias = a.dbias.get<T>();
    for (int64_t o = 0; o < O; ++o) {
        T sum = 0;
        for (int64_t block = 0; block < kBiasBlocks; ++block) sum += partial[block * O + o];
        dbias[o] = a.accumulate ? dbias[o] + sum : sum;
    }
}

// Checks for (rows, columns) of this dtype and device; rows may lie apart, but not overlap, which no BLAS reads.
void check_matrix(const Device& device, const char* op, const char* name, const Tensor& tensor, int64_t rows,
                  int64_t columns, DType dtype) {
    check_view(op, name, tensor, {rows, columns}, dtype, device.kind());
    CHECK(!tensor.overlaps_itself(), op, ": ", name, " is ", tensor.describe(), ", its rows must not overlap");
    CHECK(tensor.stride[0] <= std::numeric_limits<int>::max() && rows <= std::numeric_limits<int>::max(), op, ": ",
          name, " is ", tensor.describe(), ": extents and strides must fit in 31 bits");
}

// The matrix as numbers, exactly, in memory of *values.
template <typename T>
Tensor dequantized(const Tensor& matrix, float scale, std::vector<T>* values) {
    values->resize(static_cast<size_t>(matrix.numel()));
    for (size_t i = 0; i < values->size(); ++i) {
        const float value =
            matrix.dtype == DType::e4m3 ? to_float(matrix.get<e4m3>()[i]) : to_float(matrix.get<e5m2>()[i]);
        (*values)[i] = static_cast<T>(value) * static_cast<T>(scale);
    }
    return Tensor::contiguous(values->data(), kDTypeOf<T>, {matrix.shape[0], matrix.shape[1]});
}

void run(const Device& device, const Gemm& gemm) {
    if (gemm.out.numel() == 0) return;
    if (!device.is_cpu()) return matmul_cuda(device, gemm);
    for_cpu_scalar(gemm.a.dtype, "matmul", [&](auto scalar) { gemm_cpu<decltype(scalar)>(gemm); });
}

}  // namespace

Gemm gemm_of(const MatmulForward& a) {
    return {.out = a.out, .a = a.x, .b = a.weight, .addend = a.residual, .b_transposed = true, .bias = a.bias};
}

Gemm gemm_of(const MatmulBackwardInput& a) {
    return {.out = a.dx, .a = a.dout, .b = a.weight};
}

Gemm gemm_of(const MatmulBackwardWeight& a) {
    return {
        .out = a.dweight, .a = a.dout, .b = a.x, .addend = a.accumulate ? a.dweight : Tensor{}, .a_transposed = true};
}

Gemm gemm_of(const MatmulFp8& a) {
    return {.out = a.out,
            .a = a.a,
            .b = a.b,
            .addend = a.addend,
            .b_transposed = true,
            .bias = a.bias,
            .a_scale = &a.a_scale->dequantize,
            .b_scale = &a.b_scale->dequantize,
            .fast_accumulation = a.fast_accumulation};
}

void matmul_forward(const Device& device, const MatmulForward& a) {
    CHECK(a.x.rank == 2 && a.weight.rank == 2, "matmul_forward: x is ", a.x.describe(), ", weight is ",
          a.weight.describe());
    const int64_t N = a.x.shape[0], I = a.x.shape[1], O = a.weight.shape[0];
    const DType dtype = a.x.dtype;
    check_matrix(device, "matmul_forward", "x", a.x, N, I, dtype);
    check_matrix(device, "matmul_forward", "weight", a.weight, O, I, dtype);
    check_matrix(device, "matmul_forward", "out", a.out, N, O, dtype);
    if (a.residual) check_matrix(device, "matmul_forward", "residual", a.residual, N, O, dtype);
    if (a.bias) check_tensor("matmul_forward", "bias", a.bias, {O}, dtype, device.kind());
    run(device, gemm_of(a));
}

void matmul_backward_input(const Device& device, const MatmulBackwardInput& a) {
    CHECK(a.dout.rank == 2 && a.weight.rank == 2, "matmul_backward_input: dout is ", a.dout.describe(), ", weight is ",
          a.weight.describe());
    const int64_t N = a.dout.shape[0], I = a.weight.shape[1], O = a.weight.shape[0];
    const DType dtype = a.dout.dtype;
    check_matrix(device, "matmul_backward_input", "dout", a.dout, N, O, dtype);
    check_matrix(device, "matmul_backward_input", "weight", a.weight, O, I, dtype);
    check_matrix(device, "matmul_backward_input", "dx", a.dx, N, I, dtype);
    run(device, gemm_of(a));
}

void matmul_backward_weight(const Device& device, const MatmulBackwardWeight& a) {
    CHECK(a.dout.rank == 2 && a.x.rank == 2, "matmul_backward_weight: dout is ", a.dout.describe(), ", x is ",
          a.x.describe());
    const int64_t N = a.x.shape[0], I = a.x.shape[1], O = a.dout.shape[1];
    const DType dtype = a.dout.dtype;
    check_matrix(device, "matmul_backward_weight", "dout", a.dout, N, O, dtype);
    check_matrix(device, "matmul_backward_weight", "x", a.x, N, I, dtype);
    check_matrix(device, "matmul_backward_weight", "dweight", a.dweight, O, I, accumulation_dtype(dtype));
    run(device, gemm_of(a));
}

void matmul_fp8(const Device& device, const MatmulFp8& a) {
    const auto is_fp8 = [](const Tensor& t) { return t.dtype == DType::e4m3 || t.dtype == DType::e5m2; };
    CHECK(a.a.rank == 2 && a.b.rank == 2 && is_fp8(a.a) && is_fp8(a.b), "matmul_fp8: a is ", a.a.describe(), ", b is ",
          a.b.describe());
    CHECK(a.a.dtype == DType::e4m3 || a.b.dtype == DType::e4m3, "matmul_fp8: two operands in e5m2");
    CHECK(a.a_scale != nullptr && a.b_scale != nullptr, "matmul_fp8: an operand without a scale");
    const int64_t M = a.a.shape[0], N = a.b.shape[0], K = a.a.shape[1];
    CHECK(M % 16 == 0 && N % 16 == 0 && K % 16 == 0 && K > 0, "matmul_fp8: ", M, "x", N, "x", K,
          ", not multiples of 16");
    const DType dtype = a.out.dtype;
    check_tensor("matmul_fp8", "a", a.a, {M, K}, a.a.dtype, device.kind());
    check_tensor("matmul_fp8", "b", a.b, {N, K}, a.b.dtype, device.kind());
    check_tensor("matmul_fp8", "out", a.out, {M, N}, dtype, device.kind());
    if (a.addend) check_tensor("matmul_fp8", "addend", a.addend, {M, N}, dtype, device.kind());
    if (a.bias) check_tensor("matmul_fp8", "bias", a.bias, {N}, dtype, device.kind());
    if (a.out.numel() == 0) return;
    if (!device.is_cpu()) {
        CHECK(dtype == DType::bf16 || (dtype == DType::f32 && !a.bias), "matmul_fp8 on CUDA: out is ",
              a.out.describe());
        return matmul_cuda(device, gemm_of(a));
    }
    for_cpu_scalar(dtype, "matmul_fp8", [&](auto scalar) {
        using T = decltype(scalar);
        std::vector<T> a_values, b_values;
        Gemm gemm = gemm_of(a);
        gemm.a = dequantized(a.a, *gemm.a_scale, &a_values);
        gemm.b = dequantized(a.b, *gemm.b_scale, &b_values);
        gemm_cpu<T>(gemm);
    });
}

size_t matmul_backward_bias_workspace(const Device& device, int64_t outputs) {
    if (device.is_planned())
        return Device::Planned::num_multiprocessors * static_cast<size_t>(kMatmulBackwardBiasBlocks * outputs) *
               sizeof(float);
    if (!device.is_cpu()) return matmul_backward_bias_workspace_cuda(device, outputs);
    return static_cast<size_t>(kBiasBlocks * outputs) * sizeof(double);
}

void matmul_backward_bias(const Device& device, const MatmulBackwardBias& a) {
    CHECK(a.dout.rank == 2, "matmul_backward_bias: dout is ", a.dout.describe());
    const int64_t N = a.dout.shape[0], O = a.dout.shape[1];
    check_view("matmul_backward_bias", "dout", a.dout, {N, O}, a.dout.dtype, device.kind());
    check_tensor("matmul_backward_bias", "dbias", a.dbias, {O}, accumulation_dtype(a.dout.dtype), device.kind());
    check_workspace("matmul_backward_bias", a.workspace, matmul_backward_bias_workspace(device, O), device.kind());
    if (!device.is_cpu()) return matmul_backward_bias_cuda(device, a);
    for_cpu_scalar(a.dout.dtype, "matmul_backward_bias", [&](auto scalar) { backward_bias_cpu<decltype(scalar)>(a); });
}

}  // namespace ingot
