#include "src/parallel/control_plane.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "kernels/core/measure.h"
#include "src/base/checksum.h"
#include "src/base/text.h"
#include "src/parallel/ranks.h"

namespace ingot {

namespace {

constexpr double kSecondsBetweenBeats = 1;
constexpr double kSecondsForGoodbye = 5;  // in which the peers read it and close their end
constexpr double kSecondsOfSilence = 3;   // after a failure: who sent no beat in them does not say goodbye either
constexpr double kSecondsForStart = 10;   // that rank 0 may be later than the others
constexpr size_t kLongestNote = 256;
constexpr size_t kMostQueuedBeats = 64 << 10;  // bytes; a peer that hangs gets no more
constexpr int64_t kManyRanks = 256;            // whose connections may be more than the usual limit of open files

// To rank 0: start is not sent, text {channel, text}. From rank 0: text {channel, rank, text}.
enum Kind : uint32_t { kStart = 16, kBeat, kText, kFailed, kGoodbye };

void raise_limit_of_files() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

void wait(std::vector<pollfd>* polled, double seconds) {
    poll(polled->data(), polled->size(), std::max(0, static_cast<int>(seconds * 1000)) + 1);
}

}  // namespace

// ---- The start ----

ControlPlane::ControlPlane(const World& world, const std::string& config, double timeout_seconds)
    : timeout_(timeout_seconds) {
    CHECK(0 <= world.rank && world.rank < world.size, "rank ", world.rank, " of ", world.size);
    own_ = {.nonce = world.nonce,
            .config = sha256(config.data(), config.size()),
            .rank = world.rank,
            .size = world.size,
            .host = host_name(),
            .process = getpid()};
    if (own_.nonce.empty()) own_.nonce = own_.config;
    for (Channel& channel : channels_) channel.resize(static_cast<size_t>(own_.size));
    if (own_.size > kManyRanks) raise_limit_of_files();
    std::optional<Door> door;
    if (own_.rank == 0) {
        door.emplace(listen_at(world.master_address, world.master_port), own_);
        wait_for_all(&*door);
    } else {
        join_rank_0(world);
    }
    for (Peer& peer : peers_) {
        peer.heard = seconds_now();
        outlast_cuts(peer.connection.socket(), timeout_);
    }
    thread_ = std::thread([this, door = std::move(door)]() mutable { run(std::move(door)); });
}

void ControlPlane::wait_for_all(Door* door) {
    peers_.resize(static_cast<size_t>(own_.size) - 1);
    const double deadline = seconds_now() + timeout_;
    const auto end = [&](const std::string& text) {
        send_all(kFailed, text);
        throw PeerError(text);
    };
    for (;;) {
        std::vector<int64_t> missing;
        for (size_t i = 0; i < peers_.size(); ++i)
            if (!peers_[i].connection.is_open()) missing.push_back(rank_of_peer(i));
        if (missing.empty()) break;
        const double left = deadline - seconds_now();
        if (left <= 0)
            end(join(list_of_ranks(missing), missing.size() == 1 ? " is" : " are", " not there after ", timeout_,
                     " s (distributed.timeout_seconds), at port ", door->port(), " of rank 0 (host ", own_.host, ")",
                     door->last_refusal().empty() ? "" : "; " + door->last_refusal()));
        std::vector<pollfd> polled;
        door->watch(&polled);
        for (const Peer& peer : peers_)
            if (peer.connection.is_open()) polled.push_back({peer.connection.socket().descriptor(), POLLIN, 0});
        wait(&polled, std::min(left, 1.0));
        for (Peer& peer : peers_) {
            if (!peer.connection.is_open()) continue;
            peer.connection.flush();
            peer.connection.receive();
            if (!peer.connection.is_open()) end(peer.name + " ended before all ranks were there");
        }
        std::vector<Door::Guest> guests = door->work([&](const Hello& hello) {
            const Peer& peer = peers_[static_cast<size_t>(hello.rank) - 1];
            return peer.connection.is_open() ? join("rank ", hello.rank, " is here already: ", peer.name) : "";
        });
        // Of two that came at the same moment with the same rank the first stays.
        for (Door::Guest& guest : guests) {
            Peer& peer = peers_[static_cast<size_t>(guest.hello.rank) - 1];
            if (peer.connection.is_open()) continue;
            peer.name = guest.hello.name();
            peer.connection = std::move(guest.connection);
        }
    }
    send_all(kStart, own_.name());
}

void ControlPlane::join_rank_0(const World& world) {
    peers_.resize(1);
    Peer& first = peers_.front();
    first.connection = greet(world.master_address, world.master_port, own_, "rank 0", seconds_now() + timeout_);
    const std::string address = ingot::own_address(first.connection.socket());
    own_address_ = is_loopback(address) && !is_loopback(world.master_address) ? own_.host : address;
    const std::string where = join("rank 0 at ", world.master_address, ":", world.master_port);
    for (const double deadline = seconds_now() + timeout_ + kSecondsForStart;;) {
        if (const std::optional<Message> message = first.connection.take(kLongestText)) {
            if (message->kind == kFailed) throw PeerError(excerpt(message->bytes, kLongestMessage));
            CHECK(message->kind == kStart, "rank 0 began with message ", message->kind);
            first.name = excerpt(message->bytes, kLongestNote);
            return;
        }
        if (!first.connection.is_open()) throw PeerError(where + " ended before all ranks were there");
        const double left = deadline - seconds_now();
        if (left <= 0) throw PeerError(where + " has not been heard of since this rank connected to it");
        std::vector<pollfd> polled = {{first.connection.socket().descriptor(), POLLIN, 0}};
        wait(&polled, left);
        first.connection.receive();
    }
}

// ---- The callers ----

ControlPlane::~ControlPlane() {
    leave("");
}

void ControlPlane::note(const std::string& last_collective) {
    const std::lock_guard lock(mutex_);
    last_collective_.assign(last_collective, 0, kLongestNote);
}

std::vector<std::string> ControlPlane::exchange(const std::string& text, int channel) {
    CHECK(0 <= channel && channel < kNumChannels && text.size() <= kLongestText, "exchange of ", text.size(),
          " bytes over channel ", channel);
    Channel& texts = channels_[channel];
    std::unique_lock lock(mutex_);
    CHECK(!goodbye_, "exchange() after leave()");
    texts[static_cast<size_t>(own_.rank)].push_back(text);
    outbox_.push_back(MessageWriter().number(static_cast<int32_t>(channel)).number(own_.rank).text(text).bytes());
    waker_.wake();
    const auto is_complete = [&] {
        return std::none_of(texts.begin(), texts.end(), [](const auto& queue) { return queue.empty(); });
    };
    changed_.wait(lock, [&] { return failure_ || is_complete(); });
    if (!is_complete()) throw PeerError(*failure_);
    std::vector<std::string> all;
    for (std::deque<std::string>& queue : texts) {
        all.push_back(std::move(queue.front()));
        queue.pop_front();
    }
    return all;
}

std::optional<std::string> ControlPlane::failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
}

void ControlPlane::on_failure(std::function<void(const std::string&)> act) {
    const std::lock_guard acting(act_mutex_);
    act_ = std::move(act);
    if (const std::optional<std::string> text = failure(); text && act_) act_(*text);
}

std::optional<std::string> ControlPlane::wait_for_failure(double seconds) const {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return failure_.has_value(); });
    return failure_;
}

void ControlPlane::leave(const std::string& reason) {
    if (!thread_.joinable()) return;
    {
        const std::lock_guard lock(mutex_);
        goodbye_ = excerpt(reason, kLongestMessage);
    }
    waker_.wake();
    thread_.join();
}

// ---- The thread ----

void ControlPlane::run(std::optional<Door> door) {
    double now = seconds_now(), next_beat = now;
    while (!is_leaving()) {
        poll_peers(door, next_beat - now);
        // Strangers, and processes of other runs, are told so. They do not disturb this one.
        if (door) door->work([](const Hello& hello) { return join("rank ", hello.rank, " is here already"); });
        const double then = now;
        now = seconds_now();
        // This process was stopped, or the machine slept: its peers may have been, too.
        if (now - then > std::min(5.0, timeout_ / 2) + kSecondsBetweenBeats)
            for (Peer& peer : peers_) peer.heard += now - then;
        check_peers(now);
        check_waiting();
        if (now < next_beat) continue;
        send_beats();
        next_beat = now + kSecondsBetweenBeats;
    }
    say_goodbye();
}

bool ControlPlane::is_leaving() {
    const std::lock_guard lock(mutex_);
    return goodbye_.has_value();
}

// Waits for something to do, or for so many seconds; then sends and receives what can be.
void ControlPlane::poll_peers(const std::optional<Door>& door, double seconds) {
    send_what_was_passed();
    std::vector<pollfd> polled = {{waker_.descriptor(), POLLIN, 0}};
    std::vector<size_t> indices;
    for (size_t i = 0; i < peers_.size(); ++i) {
        const Connection& connection = peers_[i].connection;
        if (!connection.is_open()) continue;
        indices.push_back(i);
        polled.push_back({connection.socket().descriptor(),
                          static_cast<short>(POLLIN | (connection.queued() > 0 ? POLLOUT : 0)), 0});
    }
    if (door) door->watch(&polled);
    wait(&polled, seconds);
    waker_.clear();
    for (size_t i = 0; i < indices.size(); ++i) {
        Peer& peer = peers_[indices[i]];
        const short events = polled[i + 1].revents;
        if ((events & POLLOUT) != 0) peer.connection.flush();
        if ((events & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
        peer.connection.receive();
        peer.heard = seconds_now();
        take_messages(indices[i]);
    }
}

void ControlPlane::send_what_was_passed() {
    std::deque<std::string> texts;
    {
        const std::lock_guard lock(mutex_);
        texts.swap(outbox_);
    }
    for (const std::string& text : texts) send_all(kText, text);
}

void ControlPlane::take_messages(size_t index) {
    while (const std::optional<Message> message = peers_[index].connection.take(kLongestText + kLongestNote))
        take(index, *message);
}

void ControlPlane::take(size_t index, const Message& message) {
    Peer& peer = peers_[index];
    MessageReader reader(message.bytes);
    if (message.kind == kBeat) {
        peer.last_collective = excerpt(message.bytes, kLongestNote);
    } else if (message.kind == kText) {
        const auto channel = reader.number<int32_t>();
        const auto rank = reader.number<int64_t>();
        std::string text = reader.text();
        const bool is_possible = reader.is_whole() && 0 <= channel && channel < kNumChannels && 0 <= rank &&
                                 rank < own_.size && (own_.rank != 0 || rank == rank_of_peer(index));
        if (!is_possible) return fail(peer.name + " sent what no rank sends");
        if (own_.rank == 0) send_all(kText, message.bytes, rank);
        const std::lock_guard lock(mutex_);
        channels_[channel][static_cast<size_t>(rank)].push_back(std::move(text));
        changed_.notify_all();
    } else if (message.kind == kFailed) {
        fail(excerpt(message.bytes, kLongestMessage));
    } else if (message.kind == kGoodbye) {
        peer.has_left = true;
        peer.connection.close();
        if (!message.bytes.empty()) fail(peer.name + " ended: " + excerpt(message.bytes, kLongestMessage));
    } else {
        fail(peer.name + " sent what no rank sends");
    }
}

void ControlPlane::check_peers(double now) {
    for (Peer& peer : peers_) {
        if (peer.has_left || failure()) continue;
        const std::string last =
            peer.last_collective.empty() ? "" : "; its last collective was " + peer.last_collective;
        if (!peer.connection.is_open())
            fail(peer.name + " is gone without a word: it was killed, or it crashed" + last);
        else if (now - peer.heard > timeout_)
            fail(join(peer.name, " has not been heard of for ", timeout_, " s: it hangs, or it cannot be reached",
                      last));
    }
}

// A rank that has said goodbye passes nothing more, and over a rank 0 that has, nothing comes any more.
void ControlPlane::check_waiting() {
    std::string text;
    {
        const std::lock_guard lock(mutex_);
        for (size_t i = 0; i < peers_.size(); ++i) {
            if (!peers_[i].has_left) continue;
            const auto rank = static_cast<size_t>(rank_of_peer(i));
            for (const Channel& channel : channels_) {
                const auto is_empty = [](const auto& queue) { return queue.empty(); };
                const bool waits = !std::all_of(channel.begin(), channel.end(), is_empty);
                const bool lacks =
                    own_.rank == 0 ? channel[rank].empty() : std::any_of(channel.begin(), channel.end(), is_empty);
                if (waits && lacks) text = peers_[i].name + " has ended, while others wait for it";
            }
        }
    }
    if (!text.empty()) fail(text);
}

void ControlPlane::send_beats() {
    std::string last;
    {
        const std::lock_guard lock(mutex_);
        last = last_collective_;
    }
    for (Peer& peer : peers_) {
        if (peer.connection.queued() < kMostQueuedBeats) peer.connection.send(kBeat, last);
        peer.connection.flush();
    }
}

void ControlPlane::fail(const std::string& text) {
    {
        const std::lock_guard lock(mutex_);
        if (failure_) return;
        failure_ = text;
        changed_.notify_all();
    }
    if (own_.rank == 0) send_all(kFailed, text);
    const std::lock_guard acting(act_mutex_);
    if (act_) act_(text);
}

void ControlPlane::send_all(uint32_t kind, const std::string& bytes, int64_t but) {
    for (size_t i = 0; i < peers_.size(); ++i) {
        if (rank_of_peer(i) == but) continue;
        peers_[i].connection.send(kind, bytes);
        peers_[i].connection.flush();
    }
}

void ControlPlane::say_goodbye() {
    send_what_was_passed();
    {
        const std::lock_guard lock(mutex_);
        for (Peer& peer : peers_) peer.connection.send(kGoodbye, *goodbye_);
    }
    // After a failure a rank that hangs, or whose host is lost, is not waited for: others than the first may be, too.
    const bool has_failed = failure().has_value();
    const double end = seconds_now() + kSecondsForGoodbye, silence = std::min(kSecondsOfSilence, timeout_);
    // Closing while something is unread would throw away what the peer has not read. So each end reads to the end.
    for (;;) {
        const double now = seconds_now();
        std::vector<pollfd> polled;
        for (Peer& peer : peers_) {
            Connection& connection = peer.connection;
            connection.flush();
            if (connection.queued() == 0) connection.finish();
            connection.receive();
            while (connection.take(kLongestText + kLongestNote)) continue;
            if (!connection.is_open() || now >= (has_failed ? std::min(end, peer.heard + silence) : end)) continue;
            polled.push_back({connection.socket().descriptor(),
                              static_cast<short>(POLLIN | (connection.queued() > 0 ? POLLOUT : 0)), 0});
        }
        if (polled.empty()) return;
        wait(&polled, 0.2);
    }
}

}  // namespace ingot
