// Inline PTX for sm_90a: warp-group multiplication (wgmma), TMA, barriers in shared memory, and registers that pass
// between warp groups. Headings name the entries of the PTX ISA.
//
// attention/operands_sm90.h has the layout of operands. Addresses of shared memory are 32-bit. Tests run kernels on the
// CPU with their own versions of these functions (tests/emulator/sm90.h), so that this header is empty there.
//
// With INGOT_SM90_CHECKED defined (-DCMAKE_CUDA_FLAGS=-DINGOT_SM90_CHECKED), a wait that never ends says which one it
// is and fails the launch, and compute-sanitizer's racecheck can follow which warp releases what (arrive_for_warp).
#pragma once

#ifdef __CUDACC__

#include <cuda.h>

#include <cstdint>
#ifdef INGOT_SM90_CHECKED
#include <cstdio>
#endif

#include "kernels/core/dtype.h"

namespace ingot::sm90 {

using TensorMap = CUtensorMap;

// Returns the address of the block's dynamic shared memory, aligned to the swizzle's 1024 bytes.
__device__ inline uint32_t shared_memory() {
    extern __shared__ __align__(1024) unsigned char hopper_shared_memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(hopper_shared_memory));
}
__device__ inline void store_shared(uint32_t address, int4 value) {
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}
__device__ inline void store_shared(uint32_t address, float4 value) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x), "f"(value.y), "f"(value.z),
                 "f"(value.w)
                 : "memory");
}
__device__ inline int4 load_shared(uint32_t address) {
    int4 value;
    asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

// ---- Barriers in shared memory: mbarrier ----
//
// A phase ends after a count of arrivals and the bytes that were announced. `parity` is that of the phase to wait for:
// 0 for the first; 1 returns at once on a new barrier.

__device__ inline void init_barrier(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes new barriers visible to TMA; a barrier of the block must follow.
__device__ inline void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One lane arrives for its warp, once the others have reached a barrier. racecheck ignores that barrier: in the checked
// build every lane arrives.
#ifdef INGOT_SM90_CHECKED
constexpr uint32_t kArrivalsOfWarp = 32;
#else
constexpr uint32_t kArrivalsOfWarp = 1;
#endif
__device__ inline void arrive_for_warp(uint32_t barrier, int lane) {
    if (kArrivalsOfWarp > 1 || lane == 0) arrive(barrier);
}
__device__ inline void arrive_expecting(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline bool has_passed(uint32_t barrier, uint32_t parity) {
    uint32_t passed;
    asm volatile("{\n.reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed != 0;
}
__device__ inline void wait(uint32_t barrier, uint32_t parity) {
#ifdef INGOT_SM90_CHECKED
    for (uint32_t polls = 0; !has_passed(barrier, parity); ++polls)
        if (polls == 1u << 24) {
            printf("block %d, thread %d waits in vain: barrier at %u of shared memory, parity %u\n",
                   static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x), barrier - shared_memory(), parity);
            __trap();
        }
#else
    while (!has_passed(barrier, parity)) {}
#endif
}

// ---- Named barriers: barrier.cta ----

// Waits until `threads` threads have arrived, those of announce() included.
__device__ inline void meet(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void announce(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Registers: setmaxnreg ----

template <int kRegisters>
__device__ void give_back_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- TMA: cp.async.bulk.tensor ----

// L2 cache policies: the values of createpolicy.fractional.L2::evict_first and evict_last for a whole access.
constexpr uint64_t kUsedOnce = 0x12F0000000000000u, kUsedAgain = 0x14F0000000000000u;

// Starts the copy of a box of the tensor to shared memory; zeros outside the tensor. Its bytes count as arrived at
// `barrier`, those outside included. One thread calls it.
__device__ inline void start_load(uint32_t to, const TensorMap* map, int c0, int c1, int c2, int c3, uint32_t barrier,
                                  uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
        "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier), "l"(policy)
        : "memory");
}
// Copies a box from shared memory to the tensor, without what lies outside it. Each store is a group of its own, for
// await_stores_read().
__device__ inline void start_store(const TensorMap* map, int c0, int c1, int c2, int c3, uint32_t from) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];\n"
        "cp.async.bulk.commit_group;" ::"l"(map),
        "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(from)
        : "memory");
}
// Waits until the stores that this thread has started have read shared memory.
__device__ inline void await_stores_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Waits until the stores are written and visible to this thread.
__device__ inline void await_stores() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// These copy contiguous bytes, multiples of 16 at multiples of 16: cp.async.bulk, and cp.reduce.async.bulk, which adds.
__device__ inline void start_load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
                 : "memory");
}
__device__ inline void start_store_floats(float* to, uint32_t from, uint32_t bytes) {
    asm volatile(
        "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
        "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(to)),
        "r"(from), "r"(bytes)
        : "memory");
}
__device__ inline void start_add_floats(float* to, uint32_t from, uint32_t bytes) {
    asm volatile(
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n"
        "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(to)),
        "r"(from), "r"(bytes)
        : "memory");
}
// Orders what this thread has waited for before the copies that it starts: fence.proxy.async for all memory.
__device__ inline void order_copies() {
    asm volatile("fence.proxy.async;" ::: "memory");
}

// Makes this thread's writes to shared memory visible to TMA and wgmma: fence.proxy.async.
__device__ inline void publish_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Maximum of three ----

// Returns the largest of three floats if that is positive, else any of them: it compares their bits as integers, which
// Hopper does for three in one instruction. A NaN without a sign is the largest.
__device__ inline float largest_if_positive(float a, float b, float c) {
    return __int_as_float(__vimax3_s32(__float_as_int(a), __float_as_int(b), __float_as_int(c)));
}

// ---- stmatrix ----

// Stores four 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i.
__device__ inline void store_matrices(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m0), "r"(m1),
                 "r"(m2), "r"(m3)
                 : "memory");
}

// ---- Warp-group multiplication: wgmma ----
//
// wgmma is asynchronous: until a wait has passed that covers it, no register that it reads or writes may be touched.
// begin_gemm() stands before the first of a batch, end_batch() after the last; await_batches<n>() waits until at most
// the n latest batches are in flight, and settle() on the accumulator then keeps the compiler from moving uses of it
// before the wait.

__device__ inline void begin_gemm() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void end_batch() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kLeft>
__device__ void await_batches() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
template <int kCount>
__device__ void settle(float (&sums)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Operand lists of accumulators of 32 and 64 registers.
#define INGOT_SUMS_8(d, i)                                                                                      \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define INGOT_SUMS_32(d, i) INGOT_SUMS_8(d, i), INGOT_SUMS_8(d, i + 8), INGOT_SUMS_8(d, i + 16), INGOT_SUMS_8(d, i + 24)
#define INGOT_SUMS_64(d) INGOT_SUMS_32(d, 0), INGOT_SUMS_32(d, 32)
#define INGOT_NAMES_32                                                                                           \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define INGOT_NAMES_64                                                                                           \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "  \
    "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// sums (64 x 128) = a (64 x 16) b^T (128 x 16) [+ sums if kAdds]: K-major tiles, summed over their columns.
template <DType kType, bool kAdds>
__device__ void multiply_over_columns(float (&sums)[64], uint64_t a, uint64_t b) {
    static_assert(kType == DType::bf16 || kType == DType::f16);
#define INGOT_PRODUCT(type)                                                             \
    asm volatile(                                                                       \
        "{\n.reg .pred p;\n setp.ne.b32 p, %66, 0;\n"                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " INGOT_NAMES_64 \
        ", %64, %65, p, 1, 1, 0, 0;\n}"                                                 \
        : INGOT_SUMS_64(sums)                                                           \
        : "l"(a), "l"(b), "n"(static_cast<int>(kAdds)))
    if constexpr (kType == DType::bf16)
        INGOT_PRODUCT("bf16");
    else
        INGOT_PRODUCT("f16");
#undef INGOT_PRODUCT
}

// Computes the same with b (64 x 16): sums (64 x 64).
template <DType kType, bool kAdds>
__device__ void multiply_over_columns(float (&sums)[32], uint64_t a, uint64_t b) {
    static_assert(kType == DType::bf16 || kType == DType::f16);
#define INGOT_PRODUCT(type)                                                                                            \
    asm volatile(                                                                                                      \
        "{\n.reg .pred p;\n setp.ne.b32 p, %34, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " INGOT_NAMES_32 ", %32, %33, p, 1, 1, 0, 0;\n}" \
        : INGOT_SUMS_32(sums, 0)                                                                                       \
        : "l"(a), "l"(b), "n"(static_cast<int>(kAdds)))
    if constexpr (kType == DType::bf16)
        INGOT_PRODUCT("bf16");
    else
        INGOT_PRODUCT("f16");
#undef INGOT_PRODUCT
}

// sums (64 x 64) = a^T (16 x 64) b (16 x 64) [+ sums if kAdds]: MN-major tiles, summed over their rows.
template <DType kType, bool kAdds>
__device__ void multiply_rows_over_rows(float (&sums)[32], uint64_t a, uint64_t b) {
    static_assert(kType == DType::bf16 || kType == DType::f16);
#define INGOT_PRODUCT(type)                                                                                            \
    asm volatile(                                                                                                      \
        "{\n.reg .pred p;\n setp.ne.b32 p, %34, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " INGOT_NAMES_32 ", %32, %33, p, 1, 1, 1, 1;\n}" \
        : INGOT_SUMS_32(sums, 0)                                                                                       \
        : "l"(a), "l"(b), "n"(static_cast<int>(kAdds)))
    if constexpr (kType == DType::bf16)
        INGOT_PRODUCT("bf16");
    else
        INGOT_PRODUCT("f16");
#undef INGOT_PRODUCT
}

// sums (64 x 64 or 128) = a (64 x 16, in registers) b (16 x 64 or 128) [+ sums if `adds`]: b is MN-major.
template <DType kType>
__device__ void multiply_over_rows(float (&sums)[32], const uint32_t (&a)[4], uint64_t b, int adds) {
    static_assert(kType == DType::bf16 || kType == DType::f16);
#define INGOT_PRODUCT(type)                                                            \
    asm volatile(                                                                      \
        "{\n.reg .pred p;\n setp.ne.b32 p, %37, 0;\n"                                  \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " INGOT_NAMES_32 \
        ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"                                  \
        : INGOT_SUMS_32(sums, 0)                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds))
    if constexpr (kType == DType::bf16)
        INGOT_PRODUCT("bf16");
    else
        INGOT_PRODUCT("f16");
#undef INGOT_PRODUCT
}
template <DType kType>
__device__ void multiply_over_rows(float (&sums)[64], const uint32_t (&a)[4], uint64_t b, int adds) {
    static_assert(kType == DType::bf16 || kType == DType::f16);
#define INGOT_PRODUCT(type)                                                             \
    asm volatile(                                                                       \
        "{\n.reg .pred p;\n setp.ne.b32 p, %69, 0;\n"                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " INGOT_NAMES_64 \
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"                                   \
        : INGOT_SUMS_64(sums)                                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds))
    if constexpr (kType == DType::bf16)
        INGOT_PRODUCT("bf16");
    else
        INGOT_PRODUCT("f16");
#undef INGOT_PRODUCT
}
#undef INGOT_NAMES_64
#undef INGOT_NAMES_32
#undef INGOT_SUMS_64
#undef INGOT_SUMS_32
#undef INGOT_SUMS_8

}  // namespace ingot::sm90

#endif
