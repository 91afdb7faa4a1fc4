// The instructions of kernels/cuda/mma_sm90.cuh on the CPU, written down from the PTX ISA a second time. To be included
// before the kernels, in one file; tests/emulator/cuda.h has the block and the language.
//
// What is asynchronous happens late: a copy arrives when no thread can go on without it, and its target is poisoned
// until then; a wgmma reads its operands and writes its accumulators when it is waited for, after other warps have run;
// a store reads shared memory when it is waited for. So a wait that is missing, and a buffer that is given back too
// early, shows. Proxy fences do nothing here, and the registers that a kernel has are not counted: the compiler's
// report says.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>
#include <map>

#include "kernels/core/tensor.h"
#include "tests/emulator/cuda.h"

#define __forceinline__ inline

struct alignas(16) int4 {
    int32_t x, y, z, w;
};
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) {
    return {x, y, z, w};
}
inline unsigned atomicInc(unsigned* data, unsigned last) {
    const unsigned before = *data;
    *data = before >= last ? 0 : before + 1;
    return before;
}

namespace ingot::sm90 {

// A tensor of 16-bit elements with four axes, the first one contiguous, and the box that is copied.
struct TensorMap {
    uint16_t* data;
    int64_t sizes[4], strides[4];  // in elements
    int box[4];
};

struct EmulatedBarrier {
    uint32_t count, pending;
    int64_t bytes = 0;  // announced and not arrived
    uint32_t phase = 0;
    void complete() {
        if (pending > 0 || bytes != 0) return;
        ++phase;
        pending = count;
    }
};
struct EmulatedLoad {
    uint32_t to, barrier;
    std::vector<uint16_t> values;
};
struct EmulatedStore {
    const TensorMap* map;
    std::array<int, 4> at;
    uint32_t from;
};
// Contiguous floats in flight to memory.
struct EmulatedSums {
    float* to;
    uint32_t from, bytes;
    bool adds;
    std::vector<float> values = {};  // once they are read
};
struct EmulatedProduct {
    float* sums;
    int columns;
    bool adds;
    const uint32_t* a_registers;  // or none
    uint64_t a, b;
    bool b_over_rows;
    bool a_over_rows = false;
    bool ends_batch = false;
    void (*run)(const std::array<EmulatedProduct, 32>& lanes, int warp) = nullptr;
};
// The state of the block that runs; each block has a new one.
struct EmulatedHopper {
    std::map<uint32_t, EmulatedBarrier> barriers;
    std::map<int, std::pair<int, int>> named;  // arrived, times that all have
    std::deque<EmulatedLoad> loads;
    std::map<int, std::vector<EmulatedStore>> stores;     // by thread
    std::map<int, std::vector<EmulatedSums>> sums;        // by thread
    std::map<int, std::deque<EmulatedProduct>> products;  // by thread
    int num_delivered = 0;
};
inline thread_local EmulatedHopper* hopper = nullptr;

inline test::EmulatedBlock& block() {
    return *test::current_block;
}
inline void* shared_bytes(uint32_t address, size_t bytes) {
    return block().shared(address, bytes, std::min<size_t>(bytes, 16));
}

inline uint32_t shared_memory() {
    return 0;
}
inline void store_shared(uint32_t address, int4 value) {
    std::memcpy(shared_bytes(address, 16), &value, 16);
}
inline void store_shared(uint32_t address, float4 value) {
    std::memcpy(shared_bytes(address, 16), &value, 16);
}
inline int4 load_shared(uint32_t address) {
    int4 value;
    std::memcpy(&value, shared_bytes(address, 16), 16);
    return value;
}

// ---- Barriers ----

inline EmulatedBarrier& barrier_at(uint32_t barrier) {
    const auto found = hopper->barriers.find(barrier);
    if (found == hopper->barriers.end()) throw std::logic_error(join("no barrier at ", barrier));
    return found->second;
}
inline void init_barrier(uint32_t barrier, uint32_t count) {
    (void)block().shared(barrier, 8, 8);
    hopper->barriers[barrier] = {count, count};
}
inline void publish_barriers() {}
inline void arrive_expecting(uint32_t barrier, uint32_t bytes) {
    EmulatedBarrier& b = barrier_at(barrier);
    if (b.pending == 0) throw std::logic_error(join("too many arrivals at barrier ", barrier));
    b.bytes += bytes;
    --b.pending;
    b.complete();
}
inline void arrive(uint32_t barrier) {
    arrive_expecting(barrier, 0);
}
constexpr uint32_t kArrivalsOfWarp = 1;
inline void arrive_for_warp(uint32_t barrier, int lane) {
    if (lane == 0) arrive(barrier);
}
inline void wait(uint32_t barrier, uint32_t parity) {
    const EmulatedBarrier& b = barrier_at(barrier);
    block().wait_until([&] { return b.phase % 2 != parity; });
}
// A copy arrives: now the oldest, now the latest. False if there is none.
inline bool deliver_load() {
    if (hopper->loads.empty()) return false;
    const auto at = ++hopper->num_delivered % 3 != 0 ? hopper->loads.begin() : hopper->loads.end() - 1;
    const EmulatedLoad load = *at;
    hopper->loads.erase(at);
    const size_t bytes = load.values.size() * sizeof(uint16_t);
    std::memcpy(shared_bytes(load.to, bytes), load.values.data(), bytes);
    EmulatedBarrier& arrived = barrier_at(load.barrier);
    arrived.bytes -= static_cast<int64_t>(bytes);
    arrived.complete();
    return true;
}

inline void announce(int id, int threads) {
    if (id < 1 || id > 15) throw std::logic_error(join("named barrier ", id));
    auto& [arrived, times] = hopper->named[id];
    if (++arrived == threads) arrived = 0, ++times;
}
inline void meet(int id, int threads) {
    const int before = hopper->named[id].second;
    announce(id, threads);
    block().wait_until([&] { return hopper->named[id].second != before; });
}
template <int kRegisters>
void give_back_registers() {}
template <int kRegisters>
void take_registers() {}

// ---- TMA ----

constexpr uint64_t kUsedOnce = 1, kUsedAgain = 2;

// The swizzle of 128 bytes acts on addresses: bits 4 to 6 are those of the row, bits 7 to 9, on top.
inline uint32_t swizzled(uint32_t address) {
    return address ^ (address >> 7 & 7) << 4;
}
template <typename Element>
void for_each_of_box(const TensorMap& map, std::array<int, 4> at, const Element& element) {
    int64_t place = 0;
    for (int d = 0; d < map.box[3]; ++d)
        for (int c = 0; c < map.box[2]; ++c)
            for (int b = 0; b < map.box[1]; ++b)
                for (int a = 0; a < map.box[0]; ++a, ++place) {
                    const int64_t i[] = {at[0] + a, at[1] + b, at[2] + c, at[3] + d};
                    int64_t offset = 0;
                    bool is_inside = true;
                    for (int axis = 0; axis < 4; ++axis) {
                        is_inside = is_inside && i[axis] >= 0 && i[axis] < map.sizes[axis];
                        offset += i[axis] * map.strides[axis];
                    }
                    element(place, is_inside ? map.data + offset : nullptr);
                }
}
inline int64_t box_elements(const TensorMap& map) {
    return int64_t{map.box[0]} * map.box[1] * map.box[2] * map.box[3];
}
inline void start_load(uint32_t to, const TensorMap* map, int c0, int c1, int c2, int c3, uint32_t barrier, uint64_t) {
    if (to % 1024 != 0) throw std::logic_error(join("a swizzled tile at ", to));
    EmulatedLoad load = {to, barrier, std::vector<uint16_t>(static_cast<size_t>(box_elements(*map)))};
    for_each_of_box(*map, {c0, c1, c2, c3}, [&](int64_t place, const uint16_t* element) {
        const auto at = static_cast<size_t>(swizzled(static_cast<uint32_t>(place * 2)) / 2);
        load.values[at] = element == nullptr ? uint16_t{0} : *element;
    });
    std::memset(shared_bytes(to, load.values.size() * 2), 0xff, load.values.size() * 2);
    hopper->loads.push_back(std::move(load));
}
inline void start_store(const TensorMap* map, int c0, int c1, int c2, int c3, uint32_t from) {
    hopper->stores[block().thread()].push_back({map, {c0, c1, c2, c3}, from});
}
inline void await_stores_read() {
    for (const EmulatedStore& store : hopper->stores[block().thread()])
        for_each_of_box(*store.map, store.at, [&](int64_t place, uint16_t* element) {
            const uint32_t from = store.from + swizzled(static_cast<uint32_t>(place * 2));
            if (element != nullptr) std::memcpy(element, shared_bytes(from, 2), 2);
        });
    hopper->stores[block().thread()].clear();
    for (EmulatedSums& sums : hopper->sums[block().thread()])
        if (sums.values.empty()) {
            sums.values.resize(sums.bytes / 4);
            std::memcpy(sums.values.data(), shared_bytes(sums.from, sums.bytes), sums.bytes);
        }
}
inline void await_stores() {
    await_stores_read();
    for (const EmulatedSums& sums : hopper->sums[block().thread()])
        for (size_t i = 0; i < sums.values.size(); ++i)
            sums.to[i] = sums.adds ? sums.to[i] + sums.values[i] : sums.values[i];
    hopper->sums[block().thread()].clear();
}
inline void check_flat_copy(uint32_t shared, const void* data, uint32_t bytes) {
    if (shared % 16 != 0 || reinterpret_cast<uintptr_t>(data) % 16 != 0 || bytes % 16 != 0)
        throw std::logic_error(join("a copy of ", bytes, " bytes at ", shared, ", not at multiples of 16"));
}
inline void start_load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    check_flat_copy(to, from, bytes);
    EmulatedLoad load = {to, barrier, std::vector<uint16_t>(bytes / 2)};
    std::memcpy(load.values.data(), from, bytes);
    std::memset(shared_bytes(to, bytes), 0xff, bytes);
    hopper->loads.push_back(std::move(load));
}
inline void start_floats(float* to, uint32_t from, uint32_t bytes, bool adds) {
    check_flat_copy(from, to, bytes);
    hopper->sums[block().thread()].push_back({to, from, bytes, adds});
}
inline void start_store_floats(float* to, uint32_t from, uint32_t bytes) {
    start_floats(to, from, bytes, false);
}
inline void start_add_floats(float* to, uint32_t from, uint32_t bytes) {
    start_floats(to, from, bytes, true);
}
inline void order_copies() {}
inline float largest_if_positive(float a, float b, float c) {
    const auto bits = [](float value) { return std::bit_cast<int32_t>(value); };
    return std::bit_cast<float>(std::max({bits(a), bits(b), bits(c)}));
}
inline void publish_shared() {}
inline void store_matrices(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
    test::Exchange& e = block().exchange();
    const uint32_t in[] = {address, m0, m1, m2, m3};
    std::copy(std::begin(in), std::end(in), e.in[block().thread() % 32]);
    block().with_warp([&] {
        for (uint32_t i = 0; i < 4; ++i) {
            std::vector<uint32_t> addresses;
            for (uint32_t r = 0; r < 8; ++r) {
                addresses.push_back(e.in[8 * i + r][0]);
                for (uint32_t pair = 0; pair < 4; ++pair)
                    std::memcpy(shared_bytes(addresses.back() + 4 * pair, 4), &e.in[4 * r + pair][1 + i], 4);
            }
            block().count_banks(addresses, 16);
        }
    });
}

// ---- wgmma ----

template <DType kType>
float element_at(uint32_t address) {
    uint16_t bits;
    std::memcpy(&bits, shared_bytes(swizzled(address), 2), 2);
    return tiles::widened<kType>(bits);
}
inline uint32_t descriptor_address(uint64_t descriptor) {
    if (descriptor >> 62 != 1) throw std::logic_error("a descriptor without the 128-byte swizzle");
    return static_cast<uint32_t>(descriptor & 0x3fff) * 16;
}
// Element (index, k) of an operand with `index` rows of A, or columns of B.
template <DType kType>
float operand_element(uint64_t descriptor, bool is_over_rows, uint32_t index, uint32_t k) {
    const uint32_t leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) * 16;
    const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16;
    const uint32_t at = is_over_rows ? index / 64 * leading + k / 8 * stride + k % 8 * 128 + index % 64 * 2
                                     : index / 8 * stride + index % 8 * 128 + k * 2;
    return element_at<kType>(descriptor_address(descriptor) + at);
}

// Each warp computes its 16 rows.
template <DType kType>
void run_product(const std::array<EmulatedProduct, 32>& lanes, int warp) {
    const EmulatedProduct& first = lanes[0];
    std::vector<float> a(16 * 16), b(static_cast<size_t>(16 * first.columns));
    for (uint32_t lane = 0; lane < 32; ++lane)
        for (uint32_t i = 0; i < 8; ++i) {
            const uint32_t row = lane / 4 + i / 2 % 2 * 8, k = lane % 4 * 2 + i % 2 + i / 4 * 8;
            a[row * 16 + k] =
                first.a_registers == nullptr
                    ? operand_element<kType>(first.a, first.a_over_rows, static_cast<uint32_t>(16 * warp) + row, k)
                    : tiles::widened<kType>(lanes[lane].a_registers[i / 2] >> (i % 2 * 16));
        }
    const auto columns = static_cast<uint32_t>(first.columns);
    for (uint32_t n = 0; n < columns; ++n)
        for (uint32_t k = 0; k < 16; ++k) b[k * columns + n] = operand_element<kType>(first.b, first.b_over_rows, n, k);
    for (uint32_t lane = 0; lane < 32; ++lane)
        for (uint32_t i = 0; i < columns / 2; ++i) {
            const uint32_t row = lane / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = first.adds ? lanes[lane].sums[i] : 0.0f;
            for (uint32_t k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[k * columns + n];
            lanes[lane].sums[i] = sum;
        }
}
inline void begin_gemm() {}
inline void end_batch() {
    hopper->products[block().thread()].back().ends_batch = true;
}
template <int kLeft>
void await_batches() {
    const int warp = block().thread() / 32;
    int times_asked = 0;
    block().wait_until([&] { return ++times_asked > 2; });
    block().with_warp([&] {
        const auto batches = [&] {
            const auto& mine = hopper->products[warp * 32];
            return std::count_if(mine.begin(), mine.end(), [](const EmulatedProduct& p) { return p.ends_batch; });
        };
        while (batches() > kLeft) {
            std::array<EmulatedProduct, 32> lanes;
            for (int lane = 0; lane < 32; ++lane) {
                auto& queue = hopper->products[warp * 32 + lane];
                if (queue.empty()) throw std::logic_error("the lanes of a warp started different wgmmas");
                lanes[static_cast<size_t>(lane)] = queue.front();
                queue.pop_front();
            }
            lanes[0].run(lanes, warp % 4);
        }
    });
}
template <int kCount>
void settle(float (&)[kCount]) {}

template <DType kType>
void start_product(EmulatedProduct product) {
    product.run = run_product<kType>;
    if (!product.adds) std::fill_n(product.sums, product.columns / 2, NAN);
    hopper->products[block().thread()].push_back(product);
}
template <DType kType, bool kAdds, int kSums>
void multiply_over_columns(float (&sums)[kSums], uint64_t a, uint64_t b) {
    start_product<kType>({sums, 2 * kSums, kAdds, nullptr, a, b, false});
}
template <DType kType, bool kAdds, int kSums>
void multiply_rows_over_rows(float (&sums)[kSums], uint64_t a, uint64_t b) {
    start_product<kType>({sums, 2 * kSums, kAdds, nullptr, a, b, true, true});
}
template <DType kType, int kSums>
void multiply_over_rows(float (&sums)[kSums], const uint32_t (&a)[4], uint64_t b, int adds) {
    start_product<kType>({sums, 2 * kSums, adds != 0, a, 0, b, true});
}

// ---- Launches ----

// Of (N, heads, HS), a box being `rows` tokens of a head: what launch_sm90.cuh asks the driver for.
inline TensorMap map_of(const Tensor& tensor, int rows) {
    const int64_t HS = tensor.shape[2];
    return {static_cast<uint16_t*>(tensor.data),
            {64, tensor.shape[0], HS / 64, tensor.shape[1]},
            {1, tensor.stride[0], 64, tensor.stride[1]},
            {64, rows, static_cast<int>(HS / 64), 1}};
}

// Blocks that stay, one after the other: the first takes most of the work. Nothing may be under way when one ends.
inline void emulate_blocks(int num_blocks, int num_threads, size_t shared_bytes, uint64_t seed,
                           test::EmulatedCounts* counts, const std::function<void()>& kernel) {
    gridDim = {static_cast<unsigned>(num_blocks), 1, 1};
    for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, 0, 0};
        EmulatedHopper state;
        hopper = &state;
        test::EmulatedBlock block(num_threads, shared_bytes, seed + x, counts);
        block.when_idle = deliver_load;
        block.when_releasing = [&] {
            if (!state.sums[block.thread()].empty()) throw std::logic_error("a turn is passed on before its sums");
        };
        block.run(kernel);
        hopper = nullptr;
        EXPECT_TRUE(state.loads.empty());
        for (const auto& [thread, stores] : state.stores) EXPECT_TRUE(stores.empty()) << thread;
        for (const auto& [thread, sums] : state.sums) EXPECT_TRUE(sums.empty()) << thread;
        for (const auto& [thread, products] : state.products) EXPECT_TRUE(products.empty()) << thread;
    }
}

}  // namespace ingot::sm90
