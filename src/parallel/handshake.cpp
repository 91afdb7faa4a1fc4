#include "src/parallel/handshake.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/measure.h"
#include "src/base/text.h"
#include "src/parallel/ranks.h"

namespace ingot {

namespace {

constexpr uint64_t kMagic = 0x3152474e49706374;  // "tcpINGR1"
constexpr uint32_t kHello = 1, kWelcome = 2, kRefused = 3;
constexpr size_t kLongestHello = 4096;
constexpr size_t kMostNewcomers = 256;
constexpr double kSecondsForHello = 10;
constexpr double kSecondsForRefusal = 2;  // in which who is refused closes the connection, having read why
constexpr int kMostReports = 10;
constexpr double kLongestPause = 1;  // between two attempts to connect

void wait_for(const Connection& connection, double seconds) {
    pollfd polled{connection.socket().descriptor(),
                  static_cast<short>(POLLIN | (connection.queued() > 0 ? POLLOUT : 0)), 0};
    poll(&polled, 1, std::max(1, static_cast<int>(seconds * 1000)));
}

}  // namespace

std::string Hello::name() const {
    return join("rank ", rank, " (host ", printable_line(host), ", process ", process, ")");
}

std::string Hello::encoded() const {
    return MessageWriter()
        .number(kMagic)
        .text(INGOT_VERSION)
        .text(nonce)
        .text(config)
        .number(rank)
        .number(size)
        .text(host)
        .number(process)
        .bytes();
}

bool Hello::decode(const std::string& bytes, Hello* hello, std::string* why) {
    MessageReader reader(bytes);
    if (reader.number<uint64_t>() != kMagic) {
        *why = "it is no rank of Ingot";
        return false;
    }
    if (const std::string version = reader.text(); version != INGOT_VERSION) {
        *why = "it is another version of Ingot, " + excerpt(version, 40) + ", and this is " INGOT_VERSION;
        return false;
    }
    hello->nonce = reader.text();
    hello->config = reader.text();
    hello->rank = reader.number<int64_t>();
    hello->size = reader.number<int64_t>();
    hello->host = excerpt(reader.text(), 100);
    hello->process = reader.number<int64_t>();
    if (!reader.is_whole()) *why = "its hello is damaged";
    return reader.is_whole();
}

void Door::watch(std::vector<pollfd>* polled) const {
    polled->push_back({listener_.descriptor(), POLLIN, 0});
    for (const Newcomer& each : newcomers_)
        polled->push_back({each.connection.socket().descriptor(),
                           static_cast<short>(POLLIN | (each.connection.queued() > 0 ? POLLOUT : 0)), 0});
}

std::vector<Door::Guest> Door::work(const std::function<std::string(const Hello&)>& objection) {
    for (;;) {
        Socket socket = accept_from(listener_);
        if (!socket.is_open()) break;
        // Those that have waited longest make room: ranks say hello at once.
        if (newcomers_.size() == kMostNewcomers) newcomers_.erase(newcomers_.begin());
        newcomers_.push_back({Connection(std::move(socket)), seconds_now() + kSecondsForHello, false});
    }
    std::vector<Guest> guests;
    std::erase_if(newcomers_, [&](Newcomer& each) { return !listen_to(&each, objection, &guests); });
    return guests;
}

bool Door::listen_to(Newcomer* newcomer, const std::function<std::string(const Hello&)>& objection,
                     std::vector<Guest>* guests) {
    Connection& connection = newcomer->connection;
    connection.flush();
    connection.receive();
    if (newcomer->is_refused) {
        while (connection.take(kLongestHello)) continue;
        return connection.is_open() && seconds_now() < newcomer->deadline;
    }
    const std::optional<Message> message = connection.take(kLongestHello);
    if (!message) {
        if (connection.is_open() && seconds_now() < newcomer->deadline) return true;
        report("a stranger at " + peer_address(connection.socket()) + " did not say hello");
        return false;
    }
    Hello hello;
    std::string why, who = "a process at " + peer_address(connection.socket());
    if (message->kind != kHello)
        why = "it is no rank of Ingot";
    else if (Hello::decode(message->bytes, &hello, &why)) {
        who = hello.name();
        why = objection_to(hello);
        if (why.empty()) why = objection(hello);
    }
    if (why.empty()) {
        connection.send(kWelcome, "");
        connection.flush();
        guests->push_back({std::move(hello), std::move(connection)});
        return false;
    }
    report(join(who, " was refused: ", why));
    connection.send(kRefused, why);
    connection.flush();
    connection.finish();
    newcomer->is_refused = true;
    newcomer->deadline = seconds_now() + kSecondsForRefusal;
    return true;
}

std::string Door::objection_to(const Hello& hello) const {
    if (hello.nonce != own_.nonce) return "it belongs to another run: set MASTER_PORT to another port for one of them";
    if (hello.size != own_.size)
        return join("it counts ", hello.size, " ranks, and this run has ", own_.size,
                    ": start all ranks with one launcher");
    if (hello.rank < 0 || hello.rank >= own_.size) return join("there is no rank ", hello.rank);
    if (hello.rank == own_.rank) return join("rank ", hello.rank, " is here already: ", own_.name());
    if (hello.config != own_.config)
        return "its configuration is not that of rank 0: give all ranks the same file and options";
    return "";
}

void Door::report(const std::string& text) {
    last_refusal_ = text;
    if (++num_reports_ <= kMostReports) print_warning(join("port ", port(), ": ", text));
}

Connection greet(const std::string& host, int port, const Hello& own, const std::string& whom, double deadline,
                 const std::function<std::string()>& must_stop) {
    const std::string where = join(whom, " at ", host, ":", port);
    std::string why = "no answer";
    const auto seconds_left = [&] {
        if (const std::string reason = must_stop ? must_stop() : ""; !reason.empty()) throw PeerError(reason);
        if (seconds_now() >= deadline)
            throw PeerError(join(where, " cannot be reached: ", why,
                                 ": is it running, and do MASTER_ADDR and MASTER_PORT name it?"));
        return deadline - seconds_now();
    };
    for (double pause = 0.05;; pause = std::min(2 * pause, kLongestPause)) {
        Connection connection(connect_to(host, port, std::min(seconds_left(), 10.0), &why));
        if (connection.is_open()) {
            connection.send(kHello, own.encoded());
            while (connection.is_open()) {
                connection.flush();
                wait_for(connection, std::min(seconds_left(), 0.5));
                connection.receive();
                const std::optional<Message> answer = connection.take(kLongestHello);
                if (!answer) continue;
                if (answer->kind == kWelcome) return connection;
                REQUIRE(answer->kind == kRefused, where, " is no rank of Ingot: set MASTER_PORT to another port");
                throw UserError(join(where, " refused this process: ", excerpt(answer->bytes, 500)));
            }
            why = "it closed the connection";  // it may be about to end, and another about to listen
        }
        pollfd none{-1, 0, 0};
        poll(&none, 1, static_cast<int>(std::min(pause, seconds_left()) * 1000));
    }
}

}  // namespace ingot
