// How two ranks of a run recognise each other. Whoever connects says hello; whoever listens lets in only the ranks of
// its own run, and tells all others why not, without being disturbed or kept waiting by them.
#pragma once

#include <poll.h>

#include <functional>
#include <string>
#include <vector>

#include "src/parallel/socket.h"

namespace ingot {

struct Hello {
    std::string nonce, config;  // of the run: both ends must have the same
    int64_t rank = 0, size = 1;
    std::string host;
    int64_t process = 0;

    // "rank 3 (host node1, process 4711)"
    std::string name() const;
    std::string encoded() const;
    // Returns whether the bytes are a hello of this version of Ingot; if not, *why says what they are.
    static bool decode(const std::string& bytes, Hello* hello, std::string* why);
};

// The listening end.
class Door {
  public:
    struct Guest {
        Hello hello;
        Connection connection;
    };
    Door(Socket listener, Hello own) : listener_(std::move(listener)), own_(std::move(own)) {}

    int port() const { return port_of(listener_); }
    // Appends what poll() must watch.
    void watch(std::vector<pollfd>* polled) const;
    // Does what can be done without waiting. Returns those that said hello and belong to this run, unless `objection`
    // returns a reason against them; they have been told that they are welcome. The others are told why not, and the
    // first few are reported on stderr.
    std::vector<Guest> work(const std::function<std::string(const Hello&)>& objection);
    // "process 4711 on node1 was refused: ..." or empty: the last one, for the message about who did not come.
    const std::string& last_refusal() const { return last_refusal_; }

  private:
    struct Newcomer {
        Connection connection;
        double deadline;
        bool is_refused;  // the reason is on its way
    };
    // Returns false when the newcomer is done with.
    bool listen_to(Newcomer* newcomer, const std::function<std::string(const Hello&)>& objection,
                   std::vector<Guest>* guests);
    std::string objection_to(const Hello& hello) const;
    void report(const std::string& text);

    Socket listener_;
    const Hello own_;
    std::vector<Newcomer> newcomers_;
    std::string last_refusal_;
    int num_reports_ = 0;
};

// The connecting end: tries until `deadline` (of seconds_now()), says hello, and waits to be welcome. Throws UserError
// with the reason if it is refused, PeerError if nobody answers in time. `whom` is for messages: "rank 0". Returns at
// the latest when must_stop() returns a reason, which it throws as a PeerError.
Connection greet(const std::string& host, int port, const Hello& own, const std::string& whom, double deadline,
                 const std::function<std::string()>& must_stop = nullptr);

}  // namespace ingot
