// The connection between the processes of a run beside the collectives: rank 0 listens, all others connect to it, and
// stay connected to the end. Over it the ranks find each other, agree, and learn which of them died or hangs: NCCL does
// not see a process that was killed or stopped.
//
// A thread of its own sends a sign of life ("beat") once a second with what the rank does, and watches those of the
// others. A rank has failed if its connection closes before it said goodbye, or if nothing was heard of it for the
// timeout. Rank 0 tells all others. Time in which this process itself was stopped does not count. A link that is cut
// for less than the timeout does no harm, since TCP sends again what was lost.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "src/parallel/handshake.h"
#include "src/parallel/socket.h"
#include "src/parallel/world.h"

namespace ingot {

class ControlPlane {
  public:
    // Waits until all ranks are there. `config` is the same text on all ranks of a run: its hash is compared. Throws
    // UserError if the port is taken, or if rank 0 refuses this process; PeerError naming the ranks that are not there
    // after the timeout.
    ControlPlane(const World& world, const std::string& config, double timeout_seconds);
    // Says goodbye, so that the end is no failure: leave("").
    ~ControlPlane();
    ControlPlane(const ControlPlane&) = delete;
    ControlPlane& operator=(const ControlPlane&) = delete;

    int64_t rank() const { return own_.rank; }
    int64_t size() const { return own_.size; }
    double timeout_seconds() const { return timeout_; }
    // Returns what the ranks say to each other to be recognised, on connections of their own too.
    const Hello& own_hello() const { return own_; }
    // The address at which the other ranks can reach this process, which rank 0 itself does not know: "".
    std::string own_address() const { return own_address_; }

    // Sets what the others name if this rank fails: "reduce_scatter of layer 3, step 812".
    void note(const std::string& last_collective);

    // Each rank passes a text; returns all of them, by rank. Within a channel all ranks call it equally often, one
    // thread at a time; the channels are independent of each other. Waits as long as all ranks live; throws PeerError
    // when one has failed, or has ended.
    static constexpr int kNumChannels = 4;
    static constexpr size_t kLongestText = size_t{64} << 20;
    std::vector<std::string> exchange(const std::string& text, int channel);

    // The first failure of a rank, in a sentence that names it.
    std::optional<std::string> failure() const;
    // Calls the function once with the first failure, from the thread of the control plane, or at once if there was
    // one. An empty function takes the former one back; it does not run any more when this returns.
    void on_failure(std::function<void(const std::string&)> act);
    // Waits for a failure for at most so many seconds: who sees a collective break asks here which rank it was.
    std::optional<std::string> wait_for_failure(double seconds) const;

    // Says goodbye. With a reason the end counts as a failure of this rank, which the others are told. Nothing can be
    // exchanged any more.
    void leave(const std::string& reason);

  private:
    struct Peer {
        std::string name;
        Connection connection;
        double heard = 0;  // when something came, by seconds_now()
        std::string last_collective;
        bool has_left = false;  // it said goodbye
    };
    using Channel = std::vector<std::deque<std::string>>;  // by rank: what it passed, and exchange() did not return yet

    void wait_for_all(Door* door);
    void join_rank_0(const World& world);
    void run(std::optional<Door> door);
    bool is_leaving();
    void poll_peers(const std::optional<Door>& door, double seconds);
    void send_what_was_passed();
    void take_messages(size_t index);
    void take(size_t index, const Message& message);
    void check_peers(double now);
    void check_waiting();
    void send_beats();
    void say_goodbye();
    void fail(const std::string& text);
    void send_all(uint32_t kind, const std::string& bytes, int64_t but = -1);
    int64_t rank_of_peer(size_t index) const { return own_.rank == 0 ? static_cast<int64_t>(index) + 1 : 0; }

    const double timeout_;
    Hello own_;
    std::string own_address_;
    // Rank 0 has all others as peers, by rank; the others have rank 0. They belong to the thread once it runs.
    std::vector<Peer> peers_;
    Waker waker_;

    mutable std::mutex mutex_;
    mutable std::condition_variable changed_;
    Channel channels_[kNumChannels];
    std::deque<std::string> outbox_;  // encoded texts of this rank, not sent yet
    std::string last_collective_ = "none";
    std::optional<std::string> failure_;
    std::optional<std::string> goodbye_;  // the reason with which this rank leaves
    std::mutex act_mutex_;                // held while the function of on_failure() runs
    std::function<void(const std::string&)> act_;
    std::thread thread_;
};

}  // namespace ingot
