#include "src/parallel/socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "kernels/core/check.h"
#include "kernels/core/measure.h"
#include "src/parallel/world.h"

namespace ingot {

namespace {

constexpr size_t kHeaderBytes = 2 * sizeof(uint32_t);  // length, kind
constexpr size_t kReadBytes = 256 << 10;

using Addresses = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

// Returns null, and the reason in *why.
Addresses addresses_of(const std::string& host, int port, int flags, std::string* why) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints, &found);
    if (error != 0) *why = error == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(error);
    return {error == 0 ? found : nullptr, [](addrinfo* list) {
                if (list != nullptr) freeaddrinfo(list);
            }};
}

void set_option(const Socket& socket, int level, int option, int value) {
    setsockopt(socket.descriptor(), level, option, &value, sizeof value);
}

Socket open_socket(const addrinfo& address) {
    return Socket(socket(address.ai_family, address.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, address.ai_protocol));
}

// Small messages leave at once.
void set_up_connection(const Socket& socket) {
    set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
}

std::string numeric(const sockaddr_storage& address, socklen_t length) {
    char host[NI_MAXHOST];
    const int error =
        getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
    if (error != 0) return "?";
    // An IPv4 address as a socket of IPv6 shows it.
    const std::string text = host;
    return text.starts_with("::ffff:") ? text.substr(7) : text;
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
    if (this == &other) return *this;
    close();
    descriptor_ = other.descriptor_;
    other.descriptor_ = -1;
    return *this;
}

void Socket::close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
}

Socket listen_at(const std::string& address, int port) {
    std::string why = "no address";
    const bool is_local = is_loopback(address);
    // IPv6 first, whose socket takes IPv4 too, where the machine has it.
    for (const char* const any : {"::", "0.0.0.0"}) {
        const Addresses found =
            addresses_of(is_local ? address : any, port, AI_PASSIVE | (is_local ? 0 : AI_NUMERICHOST), &why);
        for (const addrinfo* each = found.get(); each != nullptr; each = each->ai_next) {
            Socket socket = open_socket(*each);
            if (!socket.is_open()) {
                why = std::strerror(errno);
                continue;
            }
            set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
            if (each->ai_family == AF_INET6) set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, 0);
            if (bind(socket.descriptor(), each->ai_addr, each->ai_addrlen) == 0 &&
                ::listen(socket.descriptor(), SOMAXCONN) == 0)
                return socket;
            why = std::strerror(errno);
            REQUIRE(errno != EADDRINUSE, "port ", port, " is taken by another program, perhaps by another run: set ",
                    "MASTER_PORT to a free one on all ranks");
        }
    }
    throw UserError(join("cannot listen at port ", port, ": ", why, ": set MASTER_PORT to another one"));
}

Socket accept_from(const Socket& listener) {
    Socket socket(accept4(listener.descriptor(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.is_open()) set_up_connection(socket);
    return socket;
}

Socket reserve_port() {
    // Linux lets another socket listen at a bound port if both have SO_REUSEADDR and this one does not listen, but
    // gives the port to nobody who asks for a free one.
    Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(bind(socket.descriptor(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
            "there is no free port on 127.0.0.1: ", std::strerror(errno));
    return socket;
}

Socket connect_to(const std::string& host, int port, double seconds, std::string* why) {
    const double end = seconds_now() + seconds;
    const Addresses found = addresses_of(host, port, 0, why);
    for (const addrinfo* each = found.get(); each != nullptr; each = each->ai_next) {
        Socket socket = open_socket(*each);
        if (!socket.is_open()) {
            *why = std::strerror(errno);
            continue;
        }
        int error = connect(socket.descriptor(), each->ai_addr, each->ai_addrlen) == 0 ? 0 : errno;
        if (error == EINPROGRESS) {
            pollfd waiting{socket.descriptor(), POLLOUT, 0};
            int ready = 0;
            do ready = poll(&waiting, 1, std::max(0, static_cast<int>((end - seconds_now()) * 1000)));
            while (ready < 0 && errno == EINTR);
            error = ETIMEDOUT;
            socklen_t length = sizeof error;
            if (ready > 0) getsockopt(socket.descriptor(), SOL_SOCKET, SO_ERROR, &error, &length);
        }
        // A socket that connects to a free port of its own machine may be given that very port and meet itself.
        if (error == 0 && port_of(socket) == port && own_address(socket) == peer_address(socket)) error = ECONNREFUSED;
        if (error == 0) {
            set_up_connection(socket);
            return socket;
        }
        *why = std::strerror(error);
    }
    return Socket();
}

void outlast_cuts(const Socket& socket, double seconds) {
    set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(std::min(2 * seconds, 1e6) * 1000));
}

int port_of(const Socket& socket) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    getsockname(socket.descriptor(), reinterpret_cast<sockaddr*>(&address), &length);
    return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                               : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

std::string own_address(const Socket& socket) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    getsockname(socket.descriptor(), reinterpret_cast<sockaddr*>(&address), &length);
    return numeric(address, length);
}

std::string peer_address(const Socket& socket) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    if (getpeername(socket.descriptor(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return "?";
    return numeric(address, length);
}

std::string host_name() {
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    return name;
}

Waker::Waker() : event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    CHECK(event_.is_open(), "eventfd: ", std::strerror(errno));
}

void Waker::wake() const {
    const uint64_t one = 1;
    if (write(event_.descriptor(), &one, sizeof one) < 0) return;  // it is awake already
}

void Waker::clear() const {
    uint64_t count = 0;
    if (read(event_.descriptor(), &count, sizeof count) < 0) return;  // nobody woke it
}

std::string MessageReader::text() {
    const uint64_t size = number<uint64_t>();
    if (is_short_ || size > bytes_.size() - at_) {
        is_short_ = true;
        return "";
    }
    at_ += size;
    return bytes_.substr(at_ - size, size);
}

void Connection::send(uint32_t kind, const std::string& bytes) {
    if (!is_open()) return;
    if (sent_ == out_.size()) {
        out_.clear();
        sent_ = 0;
    }
    out_ += MessageWriter().number(static_cast<uint32_t>(bytes.size())).number(kind).bytes();
    out_ += bytes;
}

void Connection::flush() {
    while (is_open() && sent_ < out_.size()) {
        const ssize_t count =
            ::send(socket_.descriptor(), out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count > 0)
            sent_ += static_cast<size_t>(count);
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            is_broken_ = true;
    }
}

void Connection::receive() {
    if (!is_open()) return;
    const size_t size = in_.size();
    in_.resize(size + kReadBytes);
    ssize_t count = 0;
    do count = recv(socket_.descriptor(), in_.data() + size, kReadBytes, MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    if (count == 0 || (count < 0 && errno != EAGAIN)) is_broken_ = true;
    in_.resize(size + static_cast<size_t>(std::max<ssize_t>(count, 0)));
}

std::optional<Message> Connection::take(size_t longest) {
    if (in_.size() < kHeaderBytes) return std::nullopt;
    MessageReader header(in_);
    const size_t length = header.number<uint32_t>();
    const uint32_t kind = header.number<uint32_t>();
    if (length > longest) {
        is_broken_ = true;
        in_.clear();
        return std::nullopt;
    }
    if (in_.size() < kHeaderBytes + length) return std::nullopt;
    Message message{kind, in_.substr(kHeaderBytes, length)};
    in_.erase(0, kHeaderBytes + length);
    return message;
}

void Connection::finish() {
    if (is_open()) shutdown(socket_.descriptor(), SHUT_WR);
}

void Connection::close() {
    socket_.close();
}

}  // namespace ingot
