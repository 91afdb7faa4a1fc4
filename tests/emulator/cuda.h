// Runs CUDA kernels on the CPU: what their source needs of the language, and the instructions of
// kernels/cuda/mma_sm80.cuh, written down from the PTX ISA a second time. To be included before the kernels, in one
// file.
//
// A block's threads are fibers. Each runs until it meets a barrier, of the block or of its warp; which warp goes on
// next is drawn from a seed, so that a barrier that is missing shows. Asynchronous copies arrive only when they are
// waited for, and their target is poisoned until then. Blocks run one after the other, in the order of the grid, so
// that a block that waits for a later one is found out. Shared memory starts as NaN, its bounds are checked, and bank
// conflicts are counted.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/core/dtype.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

namespace ingot::test {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

class EmulatedBlock;
inline thread_local EmulatedBlock* current_block = nullptr;

// A warp's lanes exchange these words in one instruction.
struct Exchange {
    uint32_t in[32][12];
    uint32_t out[32][4];
};

struct EmulatedCounts {
    int64_t shared_accesses = 0, bank_conflicts = 0, copies = 0;
};

class EmulatedBlock {
  public:
    EmulatedBlock(int num_threads, size_t shared_bytes, uint64_t seed, EmulatedCounts* counts)
        : shared_(shared_bytes, 0xff), counts_(counts), random_(seed), threads_(static_cast<size_t>(num_threads)) {
        if (num_threads % 32 != 0) throw std::logic_error("whole warps only");
    }

    void run(const std::function<void()>& body) {
        body_ = &body;
        current_block = this;
        for (Thread& thread : threads_) {
            thread.stack.reset(new char[kStackBytes]);
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.get();
            thread.context.uc_stack.ss_size = kStackBytes;
            thread.context.uc_link = &scheduler_;
            makecontext(&thread.context, &EmulatedBlock::enter, 0);
        }
        schedule();
        current_block = nullptr;
        if (failure_) std::rethrow_exception(failure_);
    }

    int thread() const { return running_; }

    // ---- Barriers ----

    void sync_block() { wait(State::at_block_barrier); }
    // Runs `work` once per warp when all 32 lanes have come, then lets them go on.
    template <typename Work>
    void with_warp(Work&& work) {
        const int warp = running_ / 32;
        Warp& w = warp_of(warp);
        if (++w.arrived == 32) {
            work();
            w.arrived = 0;
            for (int lane = 0; lane < 32; ++lane)
                if (warp * 32 + lane != running_) threads_[static_cast<size_t>(warp * 32 + lane)].state = State::ready;
            return;
        }
        wait(State::at_warp_barrier);
    }
    // Waits until `holds` does, which is asked again and again and may say so late.
    void wait_until(const std::function<bool()>& holds) {
        if (holds()) return;
        me().holds = &holds;
        wait(State::at_condition);
    }
    // Does what happens by itself, as late as it can: it is called when no thread can run, and says if it has done
    // something.
    std::function<bool()> when_idle = [] { return false; };
    // Runs before other blocks are told that something is there.
    std::function<void()> when_releasing = [] {};
    Exchange& exchange() { return warp_of(running_ / 32).exchange; }

    // ---- Shared memory ----

    void* shared(uint32_t address, size_t bytes, size_t alignment) {
        if (address % alignment != 0 || address + bytes > shared_.size())
            throw std::logic_error(join("shared memory: ", bytes, " bytes at ", address, " of ", shared_.size()));
        return shared_.data() + address;
    }
    // 32-bit words that a warp, or a quarter of it for 16-byte accesses, reads or writes at a time.
    void count_banks(const std::vector<uint32_t>& addresses, uint32_t bytes) {
        std::vector<uint32_t> words[32];
        for (const uint32_t address : addresses)
            for (uint32_t at = address; at < address + bytes; at += 4) {
                std::vector<uint32_t>& bank = words[at / 4 % 32];
                if (std::find(bank.begin(), bank.end(), at) == bank.end()) bank.push_back(at);
            }
        size_t most = 1;
        for (const std::vector<uint32_t>& bank : words) most = std::max(most, bank.size());
        ++counts_->shared_accesses;
        counts_->bank_conflicts += static_cast<int64_t>(most) - 1;
    }

    // ---- Asynchronous copies ----

    struct Copy {
        uint32_t to;
        std::array<unsigned char, 16> bytes;
    };
    void start_copy(uint32_t to, const void* from, bool is_inside) {
        Copy copy = {to, {}};
        if (is_inside) std::memcpy(copy.bytes.data(), from, 16);
        std::memset(shared(to, 16, 16), 0xff, 16);
        me().open.push_back(copy);
        ++counts_->copies;
    }
    void commit() {
        me().groups.push_back(std::move(me().open));
        me().open.clear();
    }
    void wait_for_groups(size_t left) {
        std::vector<std::vector<Copy>>& groups = me().groups;
        while (groups.size() > left) {
            for (const Copy& copy : groups.front()) std::memcpy(shared(copy.to, 16, 16), copy.bytes.data(), 16);
            groups.erase(groups.begin());
        }
    }

  private:
    static constexpr size_t kStackBytes = 256 << 10;
    enum class State { ready, at_block_barrier, at_warp_barrier, at_condition, done };
    struct Thread {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        State state = State::ready;
        const std::function<bool()>* holds = nullptr;  // at_condition
        std::vector<Copy> open;
        std::vector<std::vector<Copy>> groups;
    };
    struct Warp {
        int arrived = 0;
        Exchange exchange;
    };

    Thread& me() { return threads_[static_cast<size_t>(running_)]; }
    Warp& warp_of(int warp) {
        if (warps_.empty()) warps_.resize(threads_.size() / 32);
        return warps_[static_cast<size_t>(warp)];
    }

    static void enter() {
        EmulatedBlock& block = *current_block;
        try {
            (*block.body_)();
        } catch (...) {
            if (!block.failure_) block.failure_ = std::current_exception();
        }
        block.me().state = State::done;
    }
    void wait(State state) {
        me().state = state;
        swapcontext(&me().context, &scheduler_);
        if (failure_) throw std::runtime_error("another thread failed");
    }
    void schedule() {
        int idle_rounds = 0;
        std::vector<int> order(threads_.size() / 32);
        for (;;) {
            for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
            std::shuffle(order.begin(), order.end(), random_);
            bool has_run = false;
            for (const int warp : order) {
                // A warp runs as far as it can before another does.
                for (bool goes_on = true; goes_on;) {
                    goes_on = false;
                    for (int lane = 0; lane < 32; ++lane) {
                        Thread& thread = threads_[static_cast<size_t>(warp * 32 + lane)];
                        if (thread.state == State::at_condition && (*thread.holds)()) thread.state = State::ready;
                        if (thread.state != State::ready) continue;
                        running_ = warp * 32 + lane;
                        swapcontext(&scheduler_, &thread.context);
                        goes_on = has_run = true;
                    }
                }
            }
            if (failure_) {
                // Lets everyone unwind.
                for (Thread& thread : threads_)
                    if (thread.state != State::done) thread.state = State::ready, has_run = true;
                if (!has_run) return;
            }
            const auto count = [&](State state) {
                return std::count_if(threads_.begin(), threads_.end(),
                                     [&](const Thread& thread) { return thread.state == state; });
            };
            const auto total = static_cast<std::ptrdiff_t>(threads_.size());
            if (count(State::done) == total) return;
            if (count(State::at_block_barrier) == total) {
                for (Thread& thread : threads_) thread.state = State::ready;
                continue;
            }
            idle_rounds = has_run ? 0 : idle_rounds + 1;
            constexpr int kMostIdleRounds = 4;  // conditions that hold late need two
            if (idle_rounds == kMostIdleRounds) {
                if (when_idle())
                    idle_rounds = 0;
                else if (!failure_)
                    failure_ = std::make_exception_ptr(std::logic_error("threads wait for each other"));
            }
        }
    }

    std::vector<unsigned char> shared_;
    EmulatedCounts* counts_;
    std::mt19937_64 random_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    ucontext_t scheduler_;
    const std::function<void()>* body_ = nullptr;
    std::exception_ptr failure_;
    int running_ = 0;
};

// Every lane puts `words` in, and the last to come runs work(exchange). Returns what it put out for this lane.
template <size_t kIn, typename Work>
std::array<uint32_t, 4> exchanged(const std::array<uint32_t, kIn>& words, Work&& work) {
    EmulatedBlock& block = *current_block;
    Exchange& e = block.exchange();
    const int lane = block.thread() % 32;
    std::copy(words.begin(), words.end(), e.in[lane]);
    block.with_warp([&] { work(e); });
    std::array<uint32_t, 4> result;
    std::copy_n(e.out[lane], 4, result.begin());
    return result;
}

}  // namespace ingot::test

// ---- The language ----

inline thread_local ingot::test::Dim3 gridDim, blockIdx, blockDim;
struct EmulatedThreadIndex {
    struct X {
        operator unsigned() const { return static_cast<unsigned>(ingot::test::current_block->thread()); }
    } x;
};
inline EmulatedThreadIndex threadIdx;

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline void __syncthreads() {
    ingot::test::current_block->sync_block();
}
inline void __syncwarp() {
    ingot::test::current_block->with_warp([] {});
}
// The result is the value of lane source(lane).
template <typename T, typename Source>
T value_of_lane(T value, const Source& source) {
    static_assert(sizeof(T) == 4);
    uint32_t word;
    std::memcpy(&word, &value, 4);
    word = ingot::test::exchanged<1>({word}, [&](ingot::test::Exchange& e) {
        for (int l = 0; l < 32; ++l) e.out[l][0] = e.in[source(l)][0];
    })[0];
    std::memcpy(&value, &word, 4);
    return value;
}
template <typename T>
T __shfl_xor_sync(uint32_t, T value, int distance) {
    return value_of_lane(value, [&](int lane) { return lane ^ distance; });
}
inline bool __any_sync(uint32_t, bool value) {
    return ingot::test::exchanged<1>({value}, [](ingot::test::Exchange& e) {
               uint32_t any = 0;
               for (int l = 0; l < 32; ++l) any |= e.in[l][0];
               for (int l = 0; l < 32; ++l) e.out[l][0] = any;
           })[0] != 0;
}
inline int atomicAdd(int* data, int value) {
    const int before = *data;
    *data += value;
    return before;
}
using std::fmaf;
using std::max;
using std::min;
inline float fmaxf(float a, float b) {
    return std::fmax(a, b);
}

// ---- Instructions ----

namespace ingot::tiles {

inline test::EmulatedBlock& block() {
    return *test::current_block;
}
using test::exchanged;

inline uint32_t shared_memory() {
    return 0;
}
// Conflicts are counted where a whole warp stores; some threads alone may store too, and those are not.
inline void store_shared(uint32_t address, uint32_t value) {
    std::memcpy(block().shared(address, 4, 4), &value, 4);
}
template <typename T>
T load_shared_as(uint32_t address) {
    T value;
    std::memcpy(&value, block().shared(address, sizeof value, sizeof value), sizeof value);
    return value;
}
inline uint32_t load_shared(uint32_t address) {
    return load_shared_as<uint32_t>(address);
}
inline float2 load_shared_floats(uint32_t address) {
    return load_shared_as<float2>(address);
}
inline uint4 load_shared_vector(uint32_t address) {
    return load_shared_as<uint4>(address);
}

// Lane l gets of matrix i the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1), or, transposed, (2 (l % 4), l /
// 4) and (2 (l % 4) + 1, l / 4).
inline void load_matrices_as(uint32_t (&registers)[4], uint32_t address, bool is_transposed) {
    const auto result = exchanged<1>({address}, [&](test::Exchange& e) {
        for (uint32_t i = 0; i < 4; ++i) {
            uint16_t matrix[8][8];
            std::vector<uint32_t> addresses;
            for (uint32_t r = 0; r < 8; ++r) {
                addresses.push_back(e.in[8 * i + r][0]);
                std::memcpy(matrix[r], block().shared(addresses.back(), 16, 16), 16);
            }
            block().count_banks(addresses, 16);
            for (uint32_t l = 0; l < 32; ++l) {
                const uint32_t r = l / 4, c = l % 4 * 2;
                const uint16_t low = is_transposed ? matrix[c][r] : matrix[r][c];
                const uint16_t high = is_transposed ? matrix[c + 1][r] : matrix[r][c + 1];
                e.out[l][i] = low | static_cast<uint32_t>(high) << 16;
            }
        }
    });
    std::copy(result.begin(), result.end(), registers);
}
inline void load_matrices(uint32_t (&registers)[4], uint32_t address) {
    load_matrices_as(registers, address, false);
}
inline void load_matrices_transposed(uint32_t (&registers)[4], uint32_t address) {
    load_matrices_as(registers, address, true);
}

template <DType kType>
float widened(uint32_t half_word) {
    const auto bits = static_cast<uint16_t>(half_word);
    if constexpr (kType == DType::bf16)
        return to_float(bf16{bits});
    else
        return to_float(f16{bits});
}
template <DType kType>
uint32_t rounded(float value) {
    if constexpr (kType == DType::bf16)
        return to_bf16(value).bits;
    else
        return to_f16(value).bits;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <DType kType>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
    std::array<uint32_t, 10> words = {a[0], a[1], a[2], a[3], b0, b1};
    std::memcpy(&words[6], c, 16);
    const auto result = exchanged(words, [&](test::Exchange& e) {
        float A[16][16], B[16][8];
        for (uint32_t l = 0; l < 32; ++l) {
            const uint32_t group = l >> 2, in_group = l & 3;
            for (uint32_t i = 0; i < 8; ++i) {
                const uint32_t row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
                const uint32_t column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
                A[row][column] = widened<kType>(e.in[l][i / 2] >> (i % 2 * 16));
            }
            for (uint32_t i = 0; i < 4; ++i)
                B[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] =
                    widened<kType>(e.in[l][4 + i / 2] >> (i % 2 * 16));
        }
        for (uint32_t l = 0; l < 32; ++l)
            for (uint32_t i = 0; i < 4; ++i) {
                const uint32_t row = i < 2 ? l >> 2 : (l >> 2) + 8, column = (l & 3) * 2 + (i & 1);
                float sum;
                std::memcpy(&sum, &e.in[l][6 + i], 4);
                for (uint32_t k = 0; k < 16; ++k) sum += A[row][k] * B[k][column];
                std::memcpy(&e.out[l][i], &sum, 4);
            }
    });
    std::memcpy(d, result.data(), 16);
}

inline int opaque(int value) {
    return value;
}
inline int uniform(int value) {
    return value_of_lane(value, [](int) { return 0; });
}
inline float exp2_fast(float x) {
    return std::exp2(x);
}
template <DType kType>
uint32_t pack(float low, float high) {
    return rounded<kType>(low) | rounded<kType>(high) << 16;
}
template <DType kType>
float2 unpack(uint32_t pair) {
    return {widened<kType>(pair & 0xffff), widened<kType>(pair >> 16)};
}

inline void start_copy(uint32_t shared, const void* data, bool is_inside) {
    block().start_copy(shared, data, is_inside);
}
inline void commit_copies() {
    block().commit();
}
template <int kGroups>
void wait_for_copies() {
    block().wait_for_groups(kGroups);
}

inline int load_relaxed(const int* data) {
    return *data;
}
inline void store_release(int* data, int value) {
    block().when_releasing();
    *data = value;
}
[[noreturn]] inline void give_up() {
    throw std::logic_error("a block waits for one that comes later");
}
constexpr int fragment_float(int lane, int index) {
    return 4 * lane + index;
}
inline void set_fragment(float* first, const float (&sums)[4]) {
    for (int i = 0; i < 4; ++i) first[i] = sums[i];
}
inline void add_fragment(float* first, const float (&sums)[4]) {
    for (int i = 0; i < 4; ++i) first[i] += sums[i];
}

}  // namespace ingot::tiles

namespace ingot::test {

// A launch: kernel() is called in every thread.
inline void emulate(Dim3 grid, int num_threads, size_t shared_bytes, uint64_t seed, EmulatedCounts* counts,
                    const std::function<void()>& kernel) {
    gridDim = grid;
    blockDim = {static_cast<unsigned>(num_threads), 1, 1};
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = {x, y, 0};
            EmulatedBlock(num_threads, shared_bytes, seed + x + 1000 * y, counts).run(kernel);
        }
}

}  // namespace ingot::test
