#include "tests/src/parallel/thread_ranks.h"

#include <cstring>
#include <limits>
#include <thread>

namespace ingot::test {

class ThreadRanks::Rank final : public Ranks {
  public:
    Rank(ThreadRanks* group, int64_t rank) : group_(*group), rank_(rank) {}
    void begin() { loop_exchanges_ = save_exchanges_ = 0; }
    int64_t size() const override { return group_.size_; }
    int64_t rank() const override { return rank_; }
    int local_rank() const override { return static_cast<int>(rank_); }

    void check() const override {
        const std::lock_guard lock(group_.mutex_);
        group_.require_alive();
    }

    void start_reduce_scatter(const Device&, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        bring(flat.data);
        // Nobody else reads or writes this rank's pieces in this rank's memory.
        for (const OwnedRange& piece : bucket)
            if (piece.rank == rank_) set(flat, piece, sum_of(piece));
        depart();
        const std::vector<float> nothing(count_of(bucket), std::numeric_limits<float>::quiet_NaN());
        for (const OwnedRange& piece : bucket)
            if (piece.rank != rank_) set(flat, piece, nothing);
    }

    void start_all_reduce(const Device&, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        bring(flat.data);
        std::vector<std::vector<float>> sums;
        for (const OwnedRange& piece : bucket) sums.push_back(sum_of(piece));
        depart();
        for (size_t i = 0; i < bucket.size(); ++i) set(flat, bucket[i], sums[i]);
    }

    void finish_reduce(const Device&) override {}

    void start_all_gather(const Device&, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        bring(flat.data);
        for (const OwnedRange& piece : bucket) {
            if (piece.rank == rank_) continue;
            const int64_t bytes = size_of(flat.dtype), begin = piece.begin * bytes;
            std::memcpy(static_cast<uint8_t*>(flat.data) + begin,
                        static_cast<const uint8_t*>(brought_by(piece.rank)) + begin,
                        static_cast<size_t>(piece.numel() * bytes));
        }
        depart();
    }

    void finish_all_gather(const Device&, std::span<const OwnedRange>) override {}

    void all_reduce(const Device&, StepSums* sums) override {
        bring(sums);
        StepSums all = *static_cast<const StepSums*>(brought_by(0));
        for (int64_t rank = 1; rank < size(); ++rank) {
            const StepSums& other = *static_cast<const StepSums*>(brought_by(rank));
            all.loss += other.loss;
            all.targets += other.targets;
            all.squared_norm += other.squared_norm;
        }
        depart();
        *sums = all;
    }

    std::vector<std::string> exchange(const std::string& text, Channel channel) override {
        const bool is_loop = channel == Channel::loop;
        int64_t& number = is_loop ? loop_exchanges_ : save_exchanges_;
        try {
            if (group_.before_exchange) group_.before_exchange(rank_, channel, number);
        } catch (...) {
            group_.leave(rank_, "has died");
            throw;
        }
        number += 1;
        return group_.meet(is_loop ? loop : save, rank_, text);
    }

  private:
    // Every rank has brought its memory, and none changes it, until all have departed.
    void bring(void* address) {
        group_.addresses_[static_cast<size_t>(rank_)] = address;
        group_.meet(device, rank_, "");
    }
    void depart() { group_.meet(device, rank_, ""); }
    const void* brought_by(int64_t rank) const { return group_.addresses_[static_cast<size_t>(rank)]; }

    static size_t count_of(std::span<const OwnedRange> bucket) {
        return static_cast<size_t>(bucket.back().end - bucket.front().begin);
    }
    std::vector<float> sum_of(const OwnedRange& piece) const {
        std::vector<float> sum(static_cast<size_t>(piece.numel()));
        for (int64_t rank = 0; rank < size(); ++rank) {
            const float* const values = static_cast<const float*>(brought_by(rank)) + piece.begin;
            for (size_t i = 0; i < sum.size(); ++i) sum[i] = rank == 0 ? values[i] : sum[i] + values[i];
        }
        return sum;
    }
    static void set(const Tensor& flat, const OwnedRange& piece, const std::vector<float>& values) {
        std::memcpy(flat.get<float>() + piece.begin, values.data(), static_cast<size_t>(piece.numel()) * sizeof(float));
    }

    ThreadRanks& group_;
    const int64_t rank_;
    int64_t loop_exchanges_ = 0, save_exchanges_ = 0;
};

ThreadRanks::ThreadRanks(int64_t size) : size_(size), addresses_(static_cast<size_t>(size)) {
    for (int64_t rank = 0; rank < size; ++rank) ranks_.push_back(std::make_unique<Rank>(this, rank));
    for (Meeting& meeting : meetings_) meeting.texts.resize(static_cast<size_t>(size));
}

ThreadRanks::~ThreadRanks() = default;

Ranks* ThreadRanks::rank(int64_t rank) {
    return ranks_[static_cast<size_t>(rank)].get();
}

void ThreadRanks::require_alive() const {
    if (!who_left_.empty()) throw PeerError(who_left_);
}

void ThreadRanks::leave(int64_t rank, const char* how) {
    const std::lock_guard lock(mutex_);
    if (who_left_.empty()) who_left_ = join("rank ", rank, " ", how);
    changed_.notify_all();
}

std::vector<std::string> ThreadRanks::meet(Room room, int64_t rank, const std::string& text) {
    std::unique_lock lock(mutex_);
    require_alive();
    Meeting& meeting = meetings_[room];
    meeting.texts[static_cast<size_t>(rank)] = text;
    const int64_t number = meeting.number;
    if (++meeting.arrived == size_) {
        meeting.told = meeting.texts;
        meeting.arrived = 0;
        meeting.number += 1;
        changed_.notify_all();
    }
    changed_.wait(lock, [&] { return meeting.number != number || !who_left_.empty(); });
    // The next meeting ends only when this rank has come to it, so that what was told here still stands.
    if (meeting.number == number) require_alive();
    return meeting.told;
}

std::vector<std::exception_ptr> ThreadRanks::run(const std::function<void(Ranks*)>& work) {
    who_left_.clear();
    for (Meeting& meeting : meetings_) meeting.arrived = 0;
    for (const std::unique_ptr<Rank>& rank : ranks_) rank->begin();
    std::vector<std::exception_ptr> thrown(static_cast<size_t>(size_));
    std::vector<std::thread> threads;
    for (int64_t rank = 0; rank < size_; ++rank)
        threads.emplace_back([this, rank, &work, &thrown] {
            try {
                work(this->rank(rank));
                leave(rank, "is gone");
            } catch (...) {
                thrown[static_cast<size_t>(rank)] = std::current_exception();
                leave(rank, "has died");
            }
        });
    for (std::thread& thread : threads) thread.join();
    return thrown;
}

void ThreadRanks::run_all(const std::function<void(Ranks*)>& work) {
    std::exception_ptr of_peer;
    for (const std::exception_ptr& thrown : run(work)) {
        if (!thrown) continue;
        try {
            std::rethrow_exception(thrown);
        } catch (const PeerError&) {
            of_peer = thrown;
        }
    }
    if (of_peer) std::rethrow_exception(of_peer);
}

}  // namespace ingot::test
