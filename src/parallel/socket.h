// TCP sockets that never block, and messages over them. A message is a kind and some bytes. What comes from the network
// is not trusted: nobody's length makes us allocate more than the caller allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>

namespace ingot {

// Owns a descriptor.
class Socket {
  public:
    Socket() = default;
    explicit Socket(int descriptor) : descriptor_(descriptor) {}
    Socket(Socket&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
    Socket& operator=(Socket&& other) noexcept;
    ~Socket() { close(); }
    int descriptor() const { return descriptor_; }
    bool is_open() const { return descriptor_ >= 0; }
    void close();

  private:
    int descriptor_ = -1;
};

// Listens at the port, or at a free one if it is 0. If `address` is a loopback address, only processes of this machine
// can connect; otherwise the socket listens at all addresses of the machine. Throws UserError naming the port.
Socket listen_at(const std::string& address, int port);
// Returns the next connection that waits, or a closed socket if there is none.
Socket accept_from(const Socket& listener);
// Reserves a free port of 127.0.0.1 as long as the socket lives: nobody else gets it by chance, and listen_at() can
// take it.
Socket reserve_port();
// Tries each address of the host for at most `seconds` in all. Returns a closed socket, and the reason in *why, if none
// of them answers.
Socket connect_to(const std::string& host, int port, double seconds, std::string* why);

// Lets the connection live through a cut of the link of at least so many seconds.
void outlast_cuts(const Socket& socket, double seconds);

int port_of(const Socket& socket);
// Return the numeric address of this end of a connection, or of the other.
std::string own_address(const Socket& socket);
std::string peer_address(const Socket& socket);
std::string host_name();

// A descriptor that makes poll() return: another thread wakes one that waits.
class Waker {
  public:
    Waker();
    int descriptor() const { return event_.descriptor(); }
    void wake() const;
    void clear() const;

  private:
    Socket event_;
};

// Puts values and texts into the bytes of a message. All hosts of a run are little-endian, as CUDA's are.
class MessageWriter {
  public:
    template <typename T>
    MessageWriter& number(T value) {
        static_assert(std::is_arithmetic_v<T>);
        bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
        return *this;
    }
    MessageWriter& text(const std::string& value) {
        number(static_cast<uint64_t>(value.size()));
        bytes_ += value;
        return *this;
    }
    const std::string& bytes() const { return bytes_; }

  private:
    std::string bytes_;
};

// Takes them out again. After a read beyond the end, or with bytes left over, is_whole() is false.
class MessageReader {
  public:
    explicit MessageReader(const std::string& bytes) : bytes_(bytes) {}
    template <typename T>
    T number() {
        static_assert(std::is_arithmetic_v<T>);
        T value{};
        if (bytes_.size() - at_ < sizeof value) {
            is_short_ = true;
            return value;
        }
        std::memcpy(&value, bytes_.data() + at_, sizeof value);
        at_ += sizeof value;
        return value;
    }
    std::string text();
    bool is_whole() const { return !is_short_ && at_ == bytes_.size(); }

  private:
    const std::string& bytes_;
    size_t at_ = 0;
    bool is_short_ = false;
};

struct Message {
    uint32_t kind;
    std::string bytes;
};

// A connection that sends and receives messages without waiting. After the first failure it is broken for good.
class Connection {
  public:
    Connection() = default;
    explicit Connection(Socket socket) : socket_(std::move(socket)) {}

    const Socket& socket() const { return socket_; }
    // Hands the socket over to a protocol of its own. What was received so far was taken.
    Socket release() && { return std::move(socket_); }
    bool is_open() const { return socket_.is_open() && !is_broken_; }
    // Queues a message.
    void send(uint32_t kind, const std::string& bytes);
    size_t queued() const { return out_.size() - sent_; }
    // Sends of the queue what the socket takes.
    void flush();
    // Reads what has arrived, a bounded amount at a time. Messages that arrived before the connection broke can still
    // be taken.
    void receive();
    // Returns the next whole message. Breaks the connection if a message is longer than `longest` bytes.
    std::optional<Message> take(size_t longest);
    // Tells the peer that nothing more follows.
    void finish();
    void close();

  private:
    Socket socket_;
    std::string in_, out_;
    size_t sent_ = 0;
    bool is_broken_ = false;
};

}  // namespace ingot
