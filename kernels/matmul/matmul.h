// The GEMMs of a linear layer. Weights are stored (O, I): O outputs, I inputs.
//
//   forward          out (N, O)     = x (N, I) weight^T [+ bias (O), in every row] [+ residual (N, O)]
//   backward, input  dx (N, I)      = dout (N, O) weight
//   backward, weight dweight (O, I) [+]= dout^T x
//   backward, bias   dbias (O) [+]= the sum of dout's rows
//
// dtypes: x, weight, bias, out, residual, dout, dx in the compute type; dweight and dbias in fp32 (fp64 for fp64
// input), into which the GEMM itself accumulates. Sums in fp32 (fp64), one rounding at the store. Rows (first axis)
// may be strided, the last axis is contiguous. Deterministic; on the CPU also independent of the number of threads,
// because the result is cut into fixed blocks and each block is one single-threaded BLAS call.
#pragma once

#include <cstddef>

#include "kernels/core/device.h"
#include "kernels/core/fp8.h"

namespace ingot {

struct MatmulForward {
    Tensor out;
    Tensor x, weight;
    Tensor residual = {};  // optional; may be `out`
    Tensor bias = {};      // optional, contiguous
};
void matmul_forward(const Device&, const MatmulForward&);

struct MatmulBackwardInput {
    Tensor dx;
    Tensor dout, weight;
};
void matmul_backward_input(const Device&, const MatmulBackwardInput&);

struct MatmulBackwardWeight {
    Tensor dweight;
    Tensor dout, x;
    bool accumulate = true;  // false: dweight is overwritten
};
void matmul_backward_weight(const Device&, const MatmulBackwardWeight&);

// The shape alone (on CUDA also the GPU) fixes the order of the sum.
struct MatmulBackwardBias {
    Tensor dbias;
    Tensor dout;
    Tensor workspace;        // uint8, at least matmul_backward_bias_workspace(device, O)
    bool accumulate = true;  // false: dbias is overwritten
};
void matmul_backward_bias(const Device&, const MatmulBackwardBias&);
// Returns the bytes of the scratch memory for O outputs of any type.
size_t matmul_backward_bias_workspace(const Device&, int64_t outputs);

// out (M, N) = a (M, K) b (N, K)^T [+ bias (N), in every row] [+ addend (M, N)], a and b in fp8 with their scales.
//
//   forward          a = x, b = weight           backward, input    a = dout, b = weight transposed
//   backward, weight a = dout transposed, b = x transposed
//
// So both operands are read along their rows, as Hopper's fp8 tensor cores do. At most one is in e5m2. On CUDA (sm_89
// and up) out, addend and bias are in bf16, or out and addend in fp32; the CPU twin takes fp32 and fp64. M, N and K are
// multiples of 16; all tensors contiguous. Products are exact; sums are in fp32, one rounding at the store. With
// fast_accumulation Hopper's tensor cores add with 14 bits of mantissa over all of K, else over 128 of it at a time.
struct MatmulFp8 {
    Tensor out;
    Tensor a, b;
    const Fp8Scale *a_scale, *b_scale;  // in the memory of the device
    Tensor addend = {};                 // optional; may be `out`
    Tensor bias = {};                   // optional
    bool fast_accumulation = false;
};
void matmul_fp8(const Device&, const MatmulFp8&);

// A GEMM as the twins see it: out (M, N) = op(a) op(b) [+ bias] [+ addend], all row-major. a is (M, K), or (K, M)
// if a_transposed; b is (K, N), or (N, K) if b_transposed. addend is null, or has the shape and dtype of out (and may
// be it); bias is null, or has out's dtype and the shape (N).
struct Gemm {
    Tensor out, a, b;
    Tensor addend = {};
    bool a_transposed = false, b_transposed = false;
    Tensor bias = {};
    const float *a_scale = nullptr, *b_scale = nullptr;  // of operands in fp8, in the memory of the device
    bool fast_accumulation = false;
};

// Return the GEMM that the functions above compute, without checking shapes.
Gemm gemm_of(const MatmulForward&);
Gemm gemm_of(const MatmulBackwardInput&);
Gemm gemm_of(const MatmulBackwardWeight&);
Gemm gemm_of(const MatmulFp8&);

// The CUDA twins, which the functions above call once shapes are checked. kernels/matmul/choices.h chooses the
// algorithm.
void matmul_cuda(const Device&, const Gemm&);
void matmul_backward_bias_cuda(const Device&, const MatmulBackwardBias&);
// The kernel has at most so many blocks on a multiprocessor; each has a row of partial sums.
constexpr int kMatmulBackwardBiasBlocks = 4;
size_t matmul_backward_bias_workspace_cuda(const Device&, int64_t outputs);

}  // namespace ingot
