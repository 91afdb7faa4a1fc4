// collectives_rank copies|ranks large|many ROUNDS: one rank of a run whose collectives are checked element by element
// (tests/scripts/test_collectives_cuda.py starts all of them). RANK, WORLD_SIZE, MASTER_ADDR, ... say which.
//
// copies: PeerCopies alone, all ranks on the first GPU. ranks: gpu_ranks(), each rank on a GPU of its own.
//
// Every round fills the gradients, sums them over the ranks, and gives every rank all weights. No host waits for its
// GPU before all rounds are done, so that a rank that does not wait for another one's GPU reads or overwrites too
// early.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/peer_copies.h"
#include "src/parallel/control_plane.h"
#include "src/parallel/gpu_ranks.h"
#include "src/parallel/partition.h"
#include "src/parallel/ranks.h"
#include "src/parallel/world.h"

namespace ingot {
namespace {

constexpr double kTimeoutSeconds = 120;

// 64 bits that follow from the arguments (the finalizer of SplitMix64).
uint64_t mixed(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t x = a * 0x9e3779b97f4a7c15ull + b * 0xbf58476d1ce4e5b9ull + c * 0x94d049bb133111ebull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

using Buckets = std::vector<std::vector<OwnedRange>>;

int64_t num_elements(const Buckets& buckets) {
    return buckets.back().back().end;
}

// Puts ranges of so many elements, each with its owner, one after the other into a new bucket.
void add_bucket(Buckets* buckets, const std::vector<std::pair<int64_t, int64_t>>& owners_and_sizes) {
    int64_t at = buckets->empty() ? 0 : num_elements(*buckets);
    std::vector<OwnedRange> bucket;
    for (const auto& [rank, size] : owners_and_sizes) {
        bucket.push_back({static_cast<int64_t>(buckets->size()), rank, at, at + size});
        at += size;
    }
    buckets->push_back(bucket);
}

// Sizes around that of a chunk of PeerCopies.
Buckets large_buckets(int64_t size) {
    const int64_t chunk =
        PeerCopies::chunk_bytes(static_cast<int>(size)) / static_cast<int64_t>(sizeof(float)) / 64 * 64;
    Buckets buckets;
    std::vector<std::pair<int64_t, int64_t>> even, uneven;
    for (int64_t rank = 0; rank < size; ++rank) {
        even.emplace_back(rank, 3 * chunk + 64 * 7);
        // The first rank has nothing, the others one chunk, one block more, one less.
        for (const int64_t blocks : {0, 1, -1})
            if (rank > 0 || size == 1) uneven.emplace_back(rank, chunk + 64 * blocks);
    }
    add_bucket(&buckets, even);
    add_bucket(&buckets, uneven);
    // Whole tensors: the last rank's exactly two chunks, and the first rank's one block.
    add_bucket(&buckets, {{size - 1, 2 * chunk}, {0, 64}});
    return buckets;
}

// Many buckets of ranges whose owners and sizes are drawn; some ranks have several of a bucket, and some none.
Buckets many_buckets(int64_t size) {
    Buckets buckets;
    for (uint64_t bucket = 0; bucket < 40; ++bucket) {
        std::vector<std::pair<int64_t, int64_t>> ranges;
        const uint64_t num_ranges = 1 + mixed(1, bucket, 0) % 7;
        for (uint64_t i = 1; i <= num_ranges; ++i)
            ranges.emplace_back(static_cast<int64_t>(mixed(2, bucket, i) % static_cast<uint64_t>(size)),
                                64 * static_cast<int64_t>(1 + mixed(3, bucket, i) % 40));
        if (bucket % 4 == 0) {  // what NCCL has a collective for
            ranges.clear();
            for (int64_t rank = 0; rank < size; ++rank)
                ranges.emplace_back(rank, 64 * static_cast<int64_t>(1 + bucket));
        }
        add_bucket(&buckets, ranges);
    }
    return buckets;
}

// PeerCopies as ranks: what gpu_ranks() does on one machine, without NCCL, which takes one rank of each GPU alone.
class CopyingRanks final : public Ranks {
  public:
    CopyingRanks(const World& world, std::shared_ptr<ControlPlane> control) : world_(world), control_(control) {}
    int64_t size() const override { return world_.size; }
    int64_t rank() const override { return world_.rank; }
    int local_rank() const override { return 0; }

    std::string connect(const Device& device, const Shared& shared) override {
        const Tensor tensors[] = {shared.gradients, shared.weights};
        copies_ = std::make_unique<PeerCopies>(device, static_cast<int>(size()), static_cast<int>(rank()), tensors,
                                               static_cast<int>(shared.num_buckets), shared.staging);
        CHECK(copies_->open(exchange(copies_->handle(), Channel::loop)), "the ranks cannot open each other's memory");
        event_ = std::make_unique<DeviceEvent>(device);
        return "copies alone";
    }
    void start_reduce_scatter(const Device&, std::span<const OwnedRange> bucket, const Tensor&) override {
        follow(Stream::collective, Stream::compute);
        copies_->reduce_scatter(0, static_cast<int>(bucket[0].bucket), ranges_of(bucket));
    }
    void finish_reduce(const Device&) override { follow(Stream::compute, Stream::collective); }
    void start_all_gather(const Device&, std::span<const OwnedRange> bucket, const Tensor&) override {
        follow(Stream::collective, Stream::compute);
        copies_->all_gather(1, static_cast<int>(bucket[0].bucket), ranges_of(bucket));
    }
    void finish_all_gather(const Device&, std::span<const OwnedRange>) override {
        follow(Stream::compute, Stream::collective);
    }
    void start_all_reduce(const Device&, std::span<const OwnedRange>, const Tensor&) override { refuse(); }
    void all_reduce(const Device&, StepSums*) override {}  // compare() asks for none
    std::vector<std::string> exchange(const std::string& text, Channel channel) override {
        return control_->exchange(text, static_cast<int>(channel));
    }

  private:
    [[noreturn]] static void refuse() { throw Error(kExitFault, "PeerCopies has no such collective"); }
    void follow(Stream later, Stream earlier) {
        event_->record(earlier);
        event_->block(later);
    }
    static std::vector<PeerCopies::Range> ranges_of(std::span<const OwnedRange> bucket) {
        std::vector<PeerCopies::Range> ranges;
        for (const OwnedRange& range : bucket) ranges.push_back({static_cast<int>(range.rank), range.begin, range.end});
        return ranges;
    }
    const World world_;
    const std::shared_ptr<ControlPlane> control_;
    std::unique_ptr<PeerCopies> copies_;
    std::unique_ptr<DeviceEvent> event_;
};

class Check {
  public:
    // `is_copies`: the sums of all buckets have the bits of the order of the ranks, and what others own stays as it is;
    // else only those of uneven buckets do.
    Check(const Device& device, Ranks* ranks, Buckets buckets, int64_t num_rounds, bool is_copies)
        : device_(device),
          ranks_(*ranks),
          buckets_(std::move(buckets)),
          n_(num_elements(buckets_)),
          is_copies_(is_copies),
          rounds_(static_cast<size_t>(num_rounds)) {}

    // Throws Error at the first element that is not what it should be.
    void run() {
        allocate();
        DeviceGraph graph(device_);
        const auto sum_gradients = [&] {
            for (size_t bucket = buckets_.size(); bucket-- > 0;)
                ranks_.start_reduce_scatter(device_, buckets_[bucket], gradients_);
            ranks_.finish_reduce(device_);
        };
        for (size_t round = 0; round < rounds_.size(); ++round) {
            const Round& r = rounds_[round];
            device_.start_copy(gradients_, r.gradients);
            device_.start_copy(weights_, r.weights);
            // As in training: the sums in a graph (whose first launch must not be the kernels' first), the rest not.
            if (round % 2 == 0)
                sum_gradients();
            else
                graph.run(sum_gradients);
            device_.start_copy(r.sums, gradients_);
            ranks_.all_reduce(device_, static_cast<StepSums*>(r.step_sums.data));
            for (const auto& bucket : buckets_) ranks_.start_all_gather(device_, bucket, weights_);
            for (const auto& bucket : buckets_) ranks_.finish_all_gather(device_, bucket);
            device_.start_copy(r.gathered, weights_);
        }
        device_.synchronize();
        for (size_t round = 0; round < rounds_.size(); ++round) compare(round);
        ranks_.exchange("");  // no memory is freed that another rank uses
    }

  private:
    // What a round begins with, and what it leaves: gradients and weights are used by all rounds.
    struct Round {
        Tensor gradients, sums;    // (n) fp32
        Tensor weights, gathered;  // (n) bf16
        Tensor step_sums;          // a StepSums
    };

    void allocate() {
        plan_.add("gradients", DType::f32, {n_}, &gradients_);
        plan_.add("weights", DType::bf16, {n_}, &weights_);
        Tensor staging;
        plan_.add("staging", DType::u8, {staging_bytes_of_gpu_ranks(ranks_.size())}, &staging);
        for (size_t i = 0; i < rounds_.size(); ++i) {
            Round& round = rounds_[i];
            inputs_.add(join("gradients.", i), DType::f32, {n_}, &round.gradients);
            inputs_.add(join("sums.", i), DType::f32, {n_}, &round.sums);
            inputs_.add(join("weights.", i), DType::bf16, {n_}, &round.weights);
            inputs_.add(join("gathered.", i), DType::bf16, {n_}, &round.gathered);
            inputs_.add(join("step_sums.", i), DType::u8, {sizeof(StepSums)}, &round.step_sums);
        }
        memory_ = plan_.allocate(device_, true);
        inputs_memory_ = inputs_.allocate(device_, true);
        for (size_t i = 0; i < rounds_.size(); ++i) {
            std::vector<float> gradients = gradients_of(i, ranks_.rank());
            std::vector<bf16> weights(static_cast<size_t>(n_));
            for (int64_t e = 0; e < n_; ++e) weights[static_cast<size_t>(e)] = weight_of(i, ranks_.rank(), e);
            StepSums sums = step_sums_of(i, ranks_.rank());
            device_.copy(rounds_[i].gradients, Tensor::contiguous(gradients.data(), DType::f32, {n_}));
            device_.copy(rounds_[i].weights, Tensor::contiguous(weights.data(), DType::bf16, {n_}));
            device_.copy(rounds_[i].step_sums, Tensor::contiguous(&sums, DType::u8, {sizeof sums}));
        }
        const std::string connection = ranks_.connect(device_, {.gradients = gradients_,
                                                                .weights = weights_,
                                                                .num_buckets = static_cast<int64_t>(buckets_.size()),
                                                                .staging = staging});
        if (ranks_.is_first()) std::printf("%s\n", connection.c_str());
    }

    // Whole numbers, whose sums are exact in any order; in every other round numbers of many sizes where the order of
    // the sum is fixed.
    std::vector<float> gradients_of(size_t round, int64_t rank) const {
        std::vector<float> values(static_cast<size_t>(n_));
        for (const auto& bucket : buckets_) {
            const bool is_whole = round % 2 == 0 || (!is_copies_ && is_split_evenly(bucket, ranks_.size()));
            for (int64_t i = bucket.front().begin; i < bucket.back().end; ++i) {
                const uint64_t bits = mixed(100 + round, static_cast<uint64_t>(rank), static_cast<uint64_t>(i));
                values[static_cast<size_t>(i)] =
                    is_whole ? static_cast<float>(static_cast<int64_t>(bits % 2001) - 1000)
                             : std::ldexp(static_cast<float>(static_cast<int64_t>(bits % (1 << 24)) - (1 << 23)),
                                          static_cast<int>(bits >> 60) - 20);
            }
        }
        return values;
    }
    static bf16 weight_of(size_t round, int64_t rank, int64_t i) {
        const auto bits =
            static_cast<uint16_t>(mixed(200 + round, static_cast<uint64_t>(rank), static_cast<uint64_t>(i)));
        bf16 weight;
        static_assert(sizeof weight == sizeof bits);
        std::memcpy(&weight, &bits, sizeof bits);
        return weight;
    }
    static StepSums step_sums_of(size_t round, int64_t rank) {
        StepSums sums;
        sums.loss = std::ldexp(static_cast<double>(mixed(300 + round, static_cast<uint64_t>(rank), 0) >> 12), -40);
        sums.targets = 1000 + rank;
        sums.squared_norm = std::ldexp(sums.loss, static_cast<int>(rank % 3) * 20);
        return sums;
    }

    template <typename T>
    std::vector<T> read(const Tensor& tensor, DType dtype) const {
        std::vector<T> values(static_cast<size_t>(n_));
        device_.copy(Tensor::contiguous(values.data(), dtype, {n_}), tensor);
        return values;
    }

    void compare(size_t round) const {
        const auto fail = [&](const char* what, const OwnedRange& range, int64_t i, float is, float should) {
            char values[64];
            std::snprintf(values, sizeof values, "%.9g, not %.9g", static_cast<double>(is),
                          static_cast<double>(should));
            throw Error(kExitFault, join(what, " of round ", round, ", bucket ", range.bucket, ", element ", i, " (",
                                         i - range.begin, " of a range of ", range.numel(), " of rank ", range.rank,
                                         "): ", values));
        };
        std::vector<float> expected = gradients_of(round, 0);
        for (int64_t rank = 1; rank < ranks_.size(); ++rank) {
            const std::vector<float> more = gradients_of(round, rank);
            for (size_t i = 0; i < expected.size(); ++i) expected[i] += more[i];
        }
        const std::vector<float> own = gradients_of(round, ranks_.rank());
        const std::vector<float> sums = read<float>(rounds_[round].sums, DType::f32);
        const std::vector<bf16> gathered = read<bf16>(rounds_[round].gathered, DType::bf16);
        for (const auto& bucket : buckets_)
            for (const OwnedRange& range : bucket)
                for (int64_t i = range.begin; i < range.end; ++i) {
                    const auto at = static_cast<size_t>(i);
                    const bool is_own = range.rank == ranks_.rank();
                    const float sum = is_own ? expected[at] : own[at];
                    if ((is_own || is_copies_) && std::memcmp(&sums[at], &sum, sizeof sum) != 0)
                        fail("gradient", range, i, sums[at], sum);
                    const bf16 weight = weight_of(round, range.rank, i);
                    if (std::memcmp(&gathered[at], &weight, sizeof weight) != 0)
                        fail("weight", range, i, to_float(gathered[at]), to_float(weight));
                }
        if (is_copies_) return;
        StepSums total, is;
        for (int64_t rank = 0; rank < ranks_.size(); ++rank) {
            const StepSums part = step_sums_of(round, rank);
            total.loss += part.loss;
            total.targets += part.targets;
            total.squared_norm += part.squared_norm;
        }
        device_.copy(Tensor::contiguous(&is, DType::u8, {sizeof is}), rounds_[round].step_sums);
        CHECK(is.loss == total.loss && is.targets == total.targets && is.squared_norm == total.squared_norm,
              "the step's sums of round ", round, ": ", is.loss, ", ", is.targets, ", ", is.squared_norm, ", not ",
              total.loss, ", ", total.targets, ", ", total.squared_norm);
    }

    const Device device_;
    Ranks& ranks_;
    const Buckets buckets_;
    const int64_t n_;
    const bool is_copies_;
    std::vector<Round> rounds_;
    MemoryPlan plan_, inputs_;
    std::shared_ptr<void> memory_, inputs_memory_;
    Tensor gradients_, weights_;
};

void check_rank(const std::string& collectives, const std::string& buckets, int64_t num_rounds) {
    const std::optional<World> world = world_of_process();
    REQUIRE(world, "RANK and WORLD_SIZE are not set: start this as tests/scripts/test_collectives_cuda.py does");
    REQUIRE(has_nccl(), "this build has no NCCL");
    const bool is_copies = collectives == "copies";
    const auto control = std::make_shared<ControlPlane>(*world, collectives + buckets, kTimeoutSeconds);
    std::unique_ptr<Ranks> ranks;
    if (is_copies)
        ranks = std::make_unique<CopyingRanks>(*world, control);
    else
        ranks = gpu_ranks(*world, control, prepare_for_gpu(*world, true));
    Check check(Device::cuda(ranks->local_rank()), ranks.get(),
                buckets == "large" ? large_buckets(world->size) : many_buckets(world->size), num_rounds, is_copies);
    check.run();
    ranks->disconnect();
    ranks = nullptr;  // before the memory that it has opened
}

}  // namespace
}  // namespace ingot

int main(int argc, char** argv) {
    const std::string collectives = argc == 4 ? argv[1] : "", buckets = argc == 4 ? argv[2] : "";
    const long rounds = argc == 4 ? std::strtol(argv[3], nullptr, 10) : 0;
    if ((collectives != "copies" && collectives != "ranks") || (buckets != "large" && buckets != "many") ||
        rounds < 1) {
        std::fprintf(stderr, "usage: collectives_rank copies|ranks large|many ROUNDS\n");
        return 2;
    }
    try {
        ingot::check_rank(collectives, buckets, rounds);
    } catch (const ingot::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.exit_code;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
