// Ranks that are threads of one process, on the CPU, for tests.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "src/parallel/ranks.h"

namespace ingot::test {

class ThreadRanks {
  public:
    explicit ThreadRanks(int64_t size);
    ~ThreadRanks();
    int64_t size() const { return size_; }
    // Outlives the group's threads, and may be used by several at a time, each on a channel of its own.
    Ranks* rank(int64_t rank);

    // Runs the work of every rank in a thread, and waits for all. A rank whose work throws is dead, and one whose work
    // ends is gone: whoever waits for it gets a PeerError that names it. Returns what each threw, null for nothing.
    std::vector<std::exception_ptr> run(const std::function<void(Ranks*)>& work);
    // The same for work that must not throw: throws an error that is no PeerError if there is one, else a PeerError.
    void run_all(const std::function<void(Ranks*)>& work);

    // Is called before a rank tells the others something: what it does may stand for a fault at that moment, and if it
    // throws, the rank is dead. `number` counts the rank's exchanges in that channel in this run from 0.
    std::function<void(int64_t rank, Ranks::Channel channel, int64_t number)> before_exchange;

  private:
    class Rank;
    enum Room { loop, save, device, num_rooms };  // two for the channels, one for collectives of the devices
    struct Meeting {
        std::vector<std::string> texts, told;
        int64_t arrived = 0, number = 0;
    };
    std::vector<std::string> meet(Room room, int64_t rank, const std::string& text);
    void require_alive() const;  // with the mutex held
    void leave(int64_t rank, const char* how);

    const int64_t size_;
    std::vector<std::unique_ptr<Rank>> ranks_;
    std::mutex mutex_;
    std::condition_variable changed_;
    Meeting meetings_[num_rooms];
    std::string who_left_;          // the first rank that left, and how; empty: none
    std::vector<void*> addresses_;  // of what each rank brings to a collective
};

}  // namespace ingot::test
