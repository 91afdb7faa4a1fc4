// TMA descriptors of tensors, for the launches of Hopper's attention kernels.
#pragma once

#include "kernels/attention/launch.cuh"
#include "kernels/attention/operands_sm90.h"
#include "kernels/cuda/mma_sm90.cuh"

namespace ingot::sm90 {

constexpr size_t kMostSharedBytesSm90 = 227 * 1024;  // Hopper's limit for a block

using EncodeTiled = CUresult(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                             const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                             CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
inline EncodeTiled* encode_tiled() {
    static auto* const found = reinterpret_cast<EncodeTiled*>(cuda_driver_function("cuTensorMapEncodeTiled"));
    return found;
}

// (N, heads, HS) as panels of 64 columns; a box is `rows` tokens of one head.
inline TensorMap tensor_map(const char* name, const Tensor& tensor, int rows) {
    const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
    const int64_t N = tensor.shape[0], heads = tensor.shape[1], HS = tensor.shape[2];
    const int64_t token_bytes = tensor.stride[0] * 2;
    const int64_t head_bytes = heads > 1 ? tensor.stride[1] * 2 : HS * 2;  // with one head nothing reads it
    const cuuint64_t sizes[] = {kPanelColumns, size(N), size(HS / kPanelColumns), size(heads)};
    const cuuint64_t strides[] = {size(token_bytes), kPanelRowBytes, size(head_bytes)};
    const cuuint32_t box[] = {kPanelColumns, static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(HS / kPanelColumns),
                              1};
    const cuuint32_t steps[] = {1, 1, 1, 1};
    TensorMap map{};
    const CUresult status = encode_tiled()(
        &map, tensor.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
        tensor.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    // Strides that TMA refuses are the caller's error; everything else is a fault of ours.
    if (status != CUDA_SUCCESS && status != CUDA_ERROR_INVALID_VALUE)
        throw CudaError(join("attention (sm90): cuTensorMapEncodeTiled returned ", static_cast<int>(status)));
    CHECK(status == CUDA_SUCCESS, "attention: ", name, " is ", tensor.describe(), " with strides of ", tensor.stride[0],
          " and ", tensor.stride[1], " elements, which the kernel sm90 cannot take (cuTensorMapEncode",
          "Tiled: ", static_cast<int>(status), "): ask for the kernel sm80, or copy the tensor");
    return map;
}

}  // namespace ingot::sm90
