// Ranks as threads of one process, which share nothing but sockets.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/check.h"
#include "src/parallel/control_plane.h"
#include "src/parallel/socket.h"
#include "src/parallel/tcp_ranks.h"
#include "src/parallel/world.h"

namespace ingot::test {

// A port of the loopback address that is free as long as this lives.
class FreePort {
  public:
    int number() const { return port_of(socket_); }

  private:
    Socket socket_ = reserve_port();
};

inline World world_at(const FreePort& port, int64_t rank, int64_t size, const std::string& nonce = "nonce") {
    World world;
    world.rank = world.local_rank = rank;
    world.size = size;
    world.master_address = "127.0.0.1";
    world.master_port = port.number();
    world.nonce = nonce;
    return world;
}

// Runs act(rank) in a thread for each rank. Returns what each throws, as "4 text"; empty where it throws nothing.
inline std::vector<std::string> in_threads(int64_t size, const std::function<void(int64_t rank)>& act) {
    std::vector<std::string> errors(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (int64_t rank = 0; rank < size; ++rank)
        threads.emplace_back([&, rank] {
            try {
                act(rank);
            } catch (const Error& error) {
                errors[static_cast<size_t>(rank)] = join(static_cast<int>(error.exit_code), " ", error.what());
            }
        });
    for (std::thread& thread : threads) thread.join();
    return errors;
}

// Runs act(ranks) for each of so many ranks on the CPU. None may fail.
inline void with_ranks(int64_t size, const std::function<void(Ranks& ranks)>& act) {
    const FreePort port;
    const auto errors = in_threads(size, [&](int64_t rank) {
        const World world = world_at(port, rank, size);
        const auto control = std::make_shared<ControlPlane>(world, "config", 60);
        const std::unique_ptr<Ranks> ranks = cpu_ranks(world, control);
        ASSERT_EQ(ranks->size(), size);
        ASSERT_EQ(ranks->rank(), rank);
        act(*ranks);
        ranks->exchange("");  // all are done before one ends
    });
    EXPECT_EQ(errors, std::vector<std::string>(static_cast<size_t>(size)));
}

}  // namespace ingot::test
