// Inline PTX for sm_80 and up: tensor-core multiplication of 16-bit types, the loads of its operands, asynchronous
// copies, and memory ordering between blocks. Headings name the entries of the PTX ISA.
//
// attention/fragments.h says which lane holds which element of an operand, and can be tested without a GPU. Addresses
// of shared memory are 32-bit. Tests run kernels on the CPU with their own versions of these
// functions (tests/emulator/cuda.h), so that this header is empty there.
#pragma once

#ifdef __CUDACC__

#include <cstdint>

#include "kernels/core/dtype.h"

namespace ingot::tiles {

// ---- Shared memory ----

// Returns the address of the block's dynamic shared memory, which is aligned to 128 bytes.
__device__ inline uint32_t shared_memory() {
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared_memory));
}
__device__ inline void store_shared(uint32_t address, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline uint32_t load_shared(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
__device__ inline float2 load_shared_floats(uint32_t address) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address) : "memory");
    return pair;
}
__device__ inline uint4 load_shared_vector(uint32_t address) {
    uint4 vector;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(vector.x), "=r"(vector.y), "=r"(vector.z), "=r"(vector.w)
                 : "r"(address)
                 : "memory");
    return vector;
}

// ---- Operands: ldmatrix ----

// Loads four 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i.
__device__ inline void load_matrices(uint32_t (&registers)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&registers)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
}

// ---- Multiplication: mma.m16n8k16 ----

// d (16 x 8) = a (16 x 16) b (16 x 8) + c, with fp32 accumulators.
template <DType kType>
__device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
    static_assert(kType == DType::bf16 || kType == DType::f16);
    if constexpr (kType == DType::bf16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// ---- Arithmetic ----

// Hides from the compiler that the value is the same as before: what depends on it is computed where it is used,
// instead of being kept in registers all through a loop that has none to spare.
__device__ inline int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// Tells the compiler that the value is the same in all lanes of a warp, so that it can use a uniform register.
__device__ inline int uniform(int value) {
    return __shfl_sync(0xffffffffu, value, 0);
}

// 2^x, about 2 ulp; 2^-inf is 0.
__device__ inline float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// Packs two floats, rounded to nearest even, with `low` in the lower half.
template <DType kType>
__device__ uint32_t pack(float low, float high) {
    uint32_t result;
    if constexpr (kType == DType::bf16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
template <DType kType>
__device__ float2 unpack(uint32_t pair) {
    float2 result;
    if constexpr (kType == DType::bf16) {
        result.x = __uint_as_float(pair << 16), result.y = __uint_as_float(pair & 0xffff0000u);
    } else {
        asm("{.reg .f16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;}"
            : "=f"(result.x), "=f"(result.y)
            : "r"(pair));
    }
    return result;
}

// ---- Asynchronous copies: cp.async ----

// Starts a copy of 16 bytes into shared memory, past L1; zeros if not `is_inside`, and nothing is read then.
__device__ inline void start_copy(uint32_t shared, const void* data, bool is_inside) {
    const int bytes = is_inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(__cvta_generic_to_global(data)),
                 "r"(bytes)
                 : "memory");
}
// Commits the copies that this thread has started since the last call as one group.
__device__ inline void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kGroups of this thread's latest groups are in flight.
template <int kGroups>
__device__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- Between blocks: ld.acquire, st.release, red ----

__device__ inline int load_relaxed(const int* data) {
    int value;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(data) : "memory");
    return value;
}
// Whoever loads the value sees what this thread, and those it met at a barrier, wrote before.
__device__ inline void store_release(int* data, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(data), "r"(value) : "memory");
}
// Traps, so that a wait that will never end fails the launch instead of hanging.
__device__ inline void give_up() {
    __trap();
}

// The index, among a fragment's 128 floats in global memory, of a lane's float `index`.
__device__ constexpr int fragment_float(int lane, int index) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return 4 * lane + index;  // one access of 16 bytes
#else
    return 32 * index + lane;  // four, each of a whole line
#endif
}
// Store a warp's accumulator into these floats, or add it to them: four from each lane, whose first is `first`.
__device__ inline void set_fragment(float* first, const float (&sums)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    *reinterpret_cast<float4*>(first) = make_float4(sums[0], sums[1], sums[2], sums[3]);
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) first[fragment_float(0, i)] = sums[i];
#endif
}
__device__ inline void add_fragment(float* first, const float (&sums)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    (void)atomicAdd(reinterpret_cast<float4*>(first), make_float4(sums[0], sums[1], sums[2], sums[3]));
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) (void)atomicAdd(first + fragment_float(0, i), sums[i]);
#endif
}

}  // namespace ingot::tiles

#endif
