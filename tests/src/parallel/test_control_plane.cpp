// Seen to catch: a length that is believed, a nonce that is not compared, a silent rank that nobody misses, an end
// without goodbye taken for a good one, a goodbye that is awaited from ranks that hang, a text of another channel, time
// that counts although the process itself was stopped.
#include "src/parallel/control_plane.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "kernels/core/measure.h"
#include "src/parallel/handshake.h"
#include "tests/src/parallel/ranks_in_threads.h"
#include "tests/support/errors.h"

namespace ingot::test {
namespace {

constexpr double kPatience = 30;  // far more than anything takes
const std::string kConfig = "config";

using Texts = std::vector<std::string>;

void expect_text(const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* const part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << "\nin: " << text;
}

// ---- Messages ----

TEST(ConnectionOfRanks, BreaksAtAMessageThatIsTooLong) {
    const FreePort port;
    const Socket listener = listen_at("127.0.0.1", port.number());
    std::string why;
    Socket sender = connect_to("127.0.0.1", port.number(), kPatience, &why);
    ASSERT_TRUE(sender.is_open()) << why;
    Connection receiver(accept_from(listener));
    const auto take = [&](uint32_t length, const std::string& bytes) {
        const std::string message = MessageWriter().number(length).number(uint32_t{7}).bytes() + bytes;
        (void)!send(sender.descriptor(), message.data(), message.size(), MSG_NOSIGNAL);
        pollfd polled{receiver.socket().descriptor(), POLLIN, 0};
        poll(&polled, 1, 5000);
        receiver.receive();
        return receiver.take(100);
    };
    const std::optional<Message> message = take(100, std::string(100, 'x'));
    ASSERT_TRUE(message.has_value());
    EXPECT_EQ(message->kind, 7u);
    EXPECT_EQ(message->bytes, std::string(100, 'x'));
    EXPECT_FALSE(take(101, "x").has_value());
    EXPECT_FALSE(receiver.is_open());
}

TEST(ConnectionOfRanks, ReadsNoFurtherThanAMessage) {
    const std::string bytes = MessageWriter().number(int32_t{5}).number(uint64_t{1} << 63).bytes();
    MessageReader reader(bytes);
    EXPECT_EQ(reader.number<int32_t>(), 5);
    EXPECT_FALSE(reader.is_whole());
    EXPECT_EQ(reader.text(), "");  // its length is a lie
    EXPECT_FALSE(reader.is_whole());
}

// ---- Agreement ----

class ControlPlaneOf : public testing::TestWithParam<int64_t> {};

TEST_P(ControlPlaneOf, ExchangesInOrder) {
    const int64_t size = GetParam();
    const FreePort port;
    const auto errors = in_threads(size, [&](int64_t rank) {
        ControlPlane control(world_at(port, rank, size), kConfig, kPatience);
        for (int round = 0; round < 50; ++round) {
            const Texts texts = control.exchange(join(rank, " in round ", round), 0);
            ASSERT_EQ(texts.size(), static_cast<size_t>(size));
            for (int64_t other = 0; other < size; ++other)
                ASSERT_EQ(texts[static_cast<size_t>(other)], join(other, " in round ", round));
        }
    });
    EXPECT_EQ(errors, Texts(static_cast<size_t>(size)));
}

TEST_P(ControlPlaneOf, ChannelsAreIndependent) {
    const int64_t size = GetParam();
    const FreePort port;
    const std::string large(3 << 20, 'x');
    const auto errors = in_threads(size, [&](int64_t rank) {
        ControlPlane control(world_at(port, rank, size), kConfig, kPatience);
        std::thread saver([&] {
            for (int round = 0; round < 5; ++round)
                for (const std::string& text : control.exchange(round % 2 == 0 ? large : "", 1))
                    EXPECT_EQ(text.size(), round % 2 == 0 ? large.size() : 0);
        });
        for (int round = 0; round < 20; ++round)
            for (const std::string& text : control.exchange(std::to_string(round), 0))
                EXPECT_EQ(text, std::to_string(round));
        saver.join();
    });
    EXPECT_EQ(errors, Texts(static_cast<size_t>(size)));
}

INSTANTIATE_TEST_SUITE_P(Ranks, ControlPlaneOf, testing::Values(1, 2, 3, 4, 7),
                         [](const auto& info) { return "Of" + std::to_string(info.param); });

// ---- The start ----

TEST(ControlPlane, NamesThePortThatIsTaken) {
    const FreePort port;
    const Socket other = listen_at("127.0.0.1", port.number());
    expect_text(error_of([&] { ControlPlane(world_at(port, 0, 2), kConfig, kPatience); }),
                {"2 port ", std::to_string(port.number()).c_str(), "is taken", "MASTER_PORT"});
}

TEST(ControlPlane, NamesTheRanksThatNeverCome) {
    const FreePort port;
    const auto errors = in_threads(4, [&](int64_t rank) {
        if (rank == 0 || rank == 2) ControlPlane(world_at(port, rank, 4), kConfig, 1.5);
    });
    expect_text(errors[0], {"4 ranks 1, 3 are not there after 1.5 s", std::to_string(port.number()).c_str()});
    EXPECT_EQ(errors[2], errors[0]);
}

TEST(ControlPlane, NamesRank0IfItNeverComes) {
    const FreePort port;
    expect_text(error_of([&] { ControlPlane(world_at(port, 1, 2), kConfig, 1); }),
                {"4 rank 0 at 127.0.0.1:", std::to_string(port.number()).c_str(), "cannot be reached"});
}

TEST(ControlPlane, RefusesProcessesOfOtherRuns) {
    const FreePort port;
    std::atomic<bool> is_done = false;
    const auto errors = in_threads(6, [&](int64_t number) {
        const auto come = [&](int64_t rank, int64_t size, const char* nonce, const std::string& config) {
            ControlPlane control(world_at(port, rank, size, nonce), config, kPatience);
            control.exchange("hello", 0);
        };
        if (number == 0) come(0, 3, "nonce", kConfig);
        if (number == 1) come(1, 3, "nonce", kConfig);
        if (number == 2) come(1, 3, "other", kConfig);
        if (number == 3) come(2, 4, "nonce", kConfig);
        if (number == 4) come(2, 3, "nonce", "another config");
        if (number == 5) {  // rank 2 comes late, so that the others find the run waiting
            std::this_thread::sleep_for(std::chrono::milliseconds(700));
            come(2, 3, "nonce", kConfig);
        }
        is_done = true;
    });
    for (const int good : {0, 1, 5}) EXPECT_EQ(errors[static_cast<size_t>(good)], "");
    expect_text(errors[2], {"2 rank 0 at", "refused this process", "another run"});
    expect_text(errors[3], {"2 rank 0 at", "it counts 4 ranks, and this run has 3"});
    expect_text(errors[4], {"2 rank 0 at", "configuration is not that of rank 0"});
}

TEST(ControlPlane, RefusesARankThatIsThereTwice) {
    const FreePort port;
    std::atomic<int> num_refused = 0;
    const auto errors = in_threads(3, [&](int64_t number) {
        if (number == 2) {  // after all are there
            while (num_refused == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
            expect_text(error_of([&] { ControlPlane(world_at(port, 1, 2), kConfig, kPatience); }),
                        {"2 rank 0 at", "rank 1 is here already"});
            num_refused = 2;
            return;
        }
        ControlPlane control(world_at(port, number, 2), kConfig, kPatience);
        num_refused = 1;
        while (num_refused < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        control.exchange("still here", 0);
    });
    EXPECT_EQ(errors, Texts(3));
}

// Whatever strangers send, before the ranks are there and afterwards, the run goes on.
TEST(ControlPlane, StrangersDoNotDisturb) {
    const FreePort port;
    const std::string hello =
        Hello{.nonce = "nonce", .config = "", .rank = 1, .size = 2, .host = "", .process = 1}.encoded();
    const auto framed = [](uint32_t length, const std::string& bytes) {
        return MessageWriter().number(length).number(uint32_t{1}).bytes() + bytes;
    };
    const Texts messages = {"",
                            "GET / HTTP/1.1\r\n\r\n",
                            std::string(100000, '\xff'),
                            framed(0xffffffff, ""),
                            framed(4000, "abc"),
                            framed(0, ""),
                            framed(static_cast<uint32_t>(hello.size()), hello.substr(0, hello.size() / 2)),
                            framed(static_cast<uint32_t>(hello.size() / 2), hello.substr(0, hello.size() / 2)),
                            framed(static_cast<uint32_t>(hello.size() + 1), hello + "x")};
    std::vector<Socket> strangers;
    const auto come = [&] {
        for (const std::string& message : messages) {
            std::string why;
            Socket socket;
            while (!socket.is_open()) socket = connect_to("127.0.0.1", port.number(), 1, &why);
            (void)!send(socket.descriptor(), message.data(), message.size(), MSG_NOSIGNAL);
            strangers.push_back(std::move(socket));
        }
    };
    const auto errors = in_threads(2, [&](int64_t rank) {
        if (rank == 1) come();
        ControlPlane control(world_at(port, rank, 2), kConfig, kPatience);
        control.exchange("1", 0);
        if (rank == 1) come();
        control.exchange("2", 0);
        EXPECT_EQ(control.failure(), std::nullopt);
    });
    EXPECT_EQ(errors, Texts(2));
}

// ---- Failures ----

TEST(ControlPlane, TellsAllWhyARankEnded) {
    for (int64_t ends = 0; ends < 3; ++ends) {
        const FreePort port;
        std::atomic<int> num_acts = 0;
        const auto errors = in_threads(3, [&](int64_t rank) {
            ControlPlane control(world_at(port, rank, 3), kConfig, kPatience);
            control.on_failure([&](const std::string& text) {
                ++num_acts;
                expect_text(text, {"the disk is full"});
            });
            control.exchange("", 0);
            if (rank == ends) return control.leave("the disk is full");
            control.exchange("", 0);
        });
        for (int64_t rank = 0; rank < 3; ++rank) {
            if (rank == ends) continue;
            expect_text(errors[static_cast<size_t>(rank)],
                        {join("4 rank ", ends, " (host ").c_str(), "ended: the disk is full"});
        }
        EXPECT_EQ(num_acts, 2);
    }
}

TEST(ControlPlane, AGoodEndIsNoFailure) {
    const FreePort port;
    const auto errors = in_threads(3, [&](int64_t rank) {
        ControlPlane control(world_at(port, rank, 3), kConfig, kPatience);
        control.exchange("", 0);
        if (rank == 1) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        EXPECT_EQ(control.failure(), std::nullopt);
    });
    EXPECT_EQ(errors, Texts(3));
}

TEST(ControlPlane, WhoWaitsForARankThatHasEndedIsTold) {
    for (int64_t ends = 0; ends < 3; ++ends) {
        const FreePort port;
        const auto errors = in_threads(3, [&](int64_t rank) {
            ControlPlane control(world_at(port, rank, 3), kConfig, kPatience);
            if (rank != ends) control.exchange("", 0);
        });
        for (int64_t rank = 0; rank < 3; ++rank)
            if (rank != ends)
                expect_text(errors[static_cast<size_t>(rank)],
                            {join("4 rank ", ends).c_str(), "has ended, while others wait"});
    }
}

// A process of its own, in which a rank joins and then notes what it does until it is killed.
class OtherProcess {
  public:
    OtherProcess(const World& world, double timeout) {
        process_ = fork();
        if (process_ != 0) return;
        try {
            ControlPlane control(world, kConfig, timeout);
            control.note("reduce_scatter of layer 3");
            control.on_failure([](const std::string&) { _exit(0); });
            for (;;) pause();
        } catch (...) {}
        _exit(0);
    }
    ~OtherProcess() {
        kill(process_, SIGKILL);
        waitpid(process_, nullptr, 0);
    }
    void send(int signal) const { kill(process_, signal); }
    pid_t id() const { return process_; }

  private:
    pid_t process_;
};

struct Victims {
    std::vector<pid_t> processes;
    double seconds;  // from the signal until all others have ended
};

// The victims, of so many ranks, are other processes. Returns what the others throw once the signal was sent to all.
Texts after_signal(int64_t size, const std::vector<int64_t>& ranks, int signal, double timeout, Victims* victims) {
    const FreePort port;
    std::vector<std::unique_ptr<OtherProcess>> processes;
    for (const int64_t rank : ranks) {
        processes.push_back(std::make_unique<OtherProcess>(world_at(port, rank, size), timeout));
        victims->processes.push_back(processes.back()->id());
    }
    std::atomic<int64_t> num_there = static_cast<int64_t>(ranks.size());
    double sent = 0;
    Texts errors = in_threads(size, [&](int64_t rank) {
        if (rank == ranks[0]) {
            while (num_there < size) std::this_thread::sleep_for(std::chrono::milliseconds(5));
            std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // a beat has brought the note
            sent = seconds_now();
            for (const auto& process : processes) process->send(signal);
            return;
        }
        if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) return;
        ControlPlane control(world_at(port, rank, size), kConfig, timeout);
        ++num_there;
        control.exchange("", 0);
    });
    victims->seconds = seconds_now() - sent;
    return errors;
}

TEST(ControlPlane, NamesARankThatWasKilled) {
    for (const int64_t victim : {0, 2}) {
        Victims victims;
        const Texts errors = after_signal(3, {victim}, SIGKILL, 300, &victims);
        EXPECT_LT(victims.seconds, 60);  // not the timeout
        for (int64_t rank = 0; rank < 3; ++rank) {
            if (rank == victim) continue;
            expect_text(
                errors[static_cast<size_t>(rank)],
                {join("4 rank ", victim, " (host ").c_str(), join("process ", victims.processes[0], ")").c_str(),
                 "is gone without a word", "its last collective was reduce_scatter of layer 3"});
        }
    }
}

// The timeout, a beat until that is seen, and no goodbye of a rank that hangs, for which 5 s would be left.
constexpr double kSecondsForSilence = 2, kMostForSilence = kSecondsForSilence + 1 + 1.5;

TEST(ControlPlane, NamesARankThatIsSilent) {
    for (const int64_t victim : {0, 2}) {
        Victims victims;
        const Texts errors = after_signal(3, {victim}, SIGSTOP, kSecondsForSilence, &victims);
        EXPECT_LT(victims.seconds, kMostForSilence);
        for (int64_t rank = 0; rank < 3; ++rank) {
            if (rank == victim) continue;
            expect_text(errors[static_cast<size_t>(rank)],
                        {join("4 rank ", victim, " (host ").c_str(), "has not been heard of for 2 s",
                         "its last collective was reduce_scatter of layer 3"});
        }
    }
}

TEST(ControlPlane, WaitsForNoGoodbyeOfAHostThatIsLost) {
    Victims victims;
    const Texts errors = after_signal(4, {1, 2}, SIGSTOP, kSecondsForSilence, &victims);
    EXPECT_LT(victims.seconds, kMostForSilence);
    for (const size_t rank : {0, 3}) expect_text(errors[rank], {"4 rank ", "has not been heard of for 2 s"});
}

// All processes of a job are stopped for longer than the timeout and go on, as Slurm does it to make room.
TEST(ControlPlane, TimeInWhichAllWereStoppedDoesNotCount) {
    const FreePort port;
    std::vector<std::unique_ptr<OtherProcess>> others;
    for (int64_t rank = 0; rank < 2; ++rank)
        others.push_back(std::make_unique<OtherProcess>(world_at(port, rank, 2), 3));
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    for (const auto& other : others) other->send(SIGSTOP);
    std::this_thread::sleep_for(std::chrono::milliseconds(6000));
    for (const auto& other : others) {  // one after the other, as it comes
        other->send(SIGCONT);
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2500));
    // They live and hold their port: rank 0 refuses a second rank 1 as always.
    expect_text(error_of([&] { ControlPlane(world_at(port, 1, 2), kConfig, 5); }), {"rank 1 is here already"});
}

}  // namespace
}  // namespace ingot::test
