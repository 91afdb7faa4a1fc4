#include "src/parallel/tcp_ranks.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/core/measure.h"
#include "src/parallel/handshake.h"

namespace ingot {

namespace {

constexpr int kControlChannel = ControlPlane::kNumChannels - 1;  // for the addresses; the others are the callers'
constexpr int kMostMilliseconds = 1000;  // that a wait lasts before the control plane is asked whether all live

constexpr double kSecondsToKnow = 5;  // in which the control plane learns why a connection has ended

// Precedes what a rank sends in a collective, so that ranks which do not call the same one find out.
struct Header {
    uint64_t number;  // of the collective, counted from the start
    uint64_t bytes;
};

// What one collective exchanges with one rank: header and elements out, header and elements in.
struct Transfer {
    std::vector<char> out, in;
    size_t sent = 0, received = 0;
    bool is_done() const { return sent == out.size() && received == in.size(); }
};

class TcpRanks final : public Ranks {
  public:
    TcpRanks(const World& world, std::shared_ptr<ControlPlane> control);

    int64_t size() const override { return size_; }
    int64_t rank() const override { return rank_; }
    int local_rank() const override { return local_rank_; }
    void check() const override;
    void leave(const std::string& reason) override { control_->leave(reason); }
    void start_reduce_scatter(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) override;
    void start_all_reduce(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) override;
    void finish_reduce(const Device&) override {}
    void start_all_gather(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) override;
    void finish_all_gather(const Device&, std::span<const OwnedRange>) override {}
    void all_reduce(const Device& device, StepSums* sums) override;
    std::vector<std::string> exchange(const std::string& text, Channel channel) override {
        return control_->exchange(text, static_cast<int>(channel));
    }

  private:
    void connect_all(const World& world);
    void begin(const Device& device, const char* collective, std::span<const OwnedRange> bucket);
    // Returns a transfer for each rank, with so many bytes in either direction; that of this rank is empty.
    std::vector<Transfer> transfers(const std::vector<size_t>& out, const std::vector<size_t>& in) const;
    void perform(std::vector<Transfer>* transfers);
    bool move(Transfer* transfer, int descriptor, short events) const;
    [[noreturn]] void end(int64_t rank, const std::string& what) const;
    template <typename T>
    void reduce_scatter(std::span<const OwnedRange> bucket, T* flat);
    void gather(std::span<const OwnedRange> bucket, const Tensor& flat);

    const int64_t rank_, size_;
    const int local_rank_;
    std::shared_ptr<ControlPlane> control_;
    std::vector<Socket> sockets_;  // by rank; that of this rank is closed
    uint64_t number_ = 0;          // of the collective that runs
};

// ---- The mesh ----

TcpRanks::TcpRanks(const World& world, std::shared_ptr<ControlPlane> control)
    : rank_(world.rank),
      size_(world.size),
      local_rank_(static_cast<int>(world.local_rank)),
      control_(std::move(control)),
      sockets_(static_cast<size_t>(world.size)) {
    connect_all(world);
}

// Each rank listens at a port of its own, which the control plane tells the others. Of two ranks the later connects.
void TcpRanks::connect_all(const World& world) {
    Door door(listen_at(world.master_address, 0), control_->own_hello());
    const std::vector<std::string> places = control_->exchange(
        MessageWriter().number(static_cast<int32_t>(door.port())).text(control_->own_address()).bytes(),
        kControlChannel);
    const double deadline = seconds_now() + control_->timeout_seconds();
    const auto failure = [&] { return control_->failure().value_or(""); };
    for (int64_t rank = 0; rank < rank_; ++rank) {
        MessageReader place(places[static_cast<size_t>(rank)]);
        const auto port = place.number<int32_t>();
        const std::string address = place.text();
        Connection connection = greet(address.empty() ? world.master_address : address, port, control_->own_hello(),
                                      join("rank ", rank), deadline, failure);
        sockets_[static_cast<size_t>(rank)] = std::move(connection).release();
    }
    const auto is_missing = [&](int64_t rank) { return !sockets_[static_cast<size_t>(rank)].is_open(); };
    for (int64_t rank = rank_ + 1; rank < size_;) {
        if (!is_missing(rank)) {
            ++rank;
            continue;
        }
        if (const std::string text = failure(); !text.empty()) throw PeerError(text);
        if (seconds_now() > deadline)
            throw PeerError(join("rank ", rank, " has not connected to rank ", rank_, " (host ",
                                 control_->own_hello().host, ", port ", door.port(), "): is there a firewall?"));
        std::vector<pollfd> polled;
        door.watch(&polled);
        poll(polled.data(), polled.size(), kMostMilliseconds);
        std::vector<Door::Guest> guests = door.work([&](const Hello& hello) {
            return hello.rank > rank_ && is_missing(hello.rank) ? "" : join("rank ", hello.rank, " is here already");
        });
        for (Door::Guest& guest : guests) {
            Socket& socket = sockets_[static_cast<size_t>(guest.hello.rank)];
            if (!socket.is_open()) socket = std::move(guest.connection).release();
        }
    }
    // Before this no rank sends elements, so that none are taken for a part of the greeting.
    control_->exchange("", kControlChannel);
}

// ---- One collective ----

void TcpRanks::check() const {
    if (const std::optional<std::string> text = control_->failure()) throw PeerError(*text);
}

void TcpRanks::begin(const Device& device, const char* collective, std::span<const OwnedRange> bucket) {
    CHECK(device.is_cpu(), "CPU ranks were asked for a collective of ", device.name());
    control_->note(join(collective, bucket.empty() ? "" : join(" of bucket ", bucket.front().bucket), ", number ",
                        ++number_, " of this rank"));
}

std::vector<Transfer> TcpRanks::transfers(const std::vector<size_t>& out, const std::vector<size_t>& in) const {
    std::vector<Transfer> all(static_cast<size_t>(size_));
    for (size_t rank = 0; rank < all.size(); ++rank) {
        if (static_cast<int64_t>(rank) == rank_) continue;
        all[rank].out.resize(sizeof(Header) + out[rank]);
        all[rank].in.resize(sizeof(Header) + in[rank]);
        const Header header{number_, out[rank]};
        std::memcpy(all[rank].out.data(), &header, sizeof header);
    }
    return all;
}

// Sends to and receives from all ranks at once: ranks that all sent first would wait for each other.
void TcpRanks::perform(std::vector<Transfer>* transfers) {
    for (;;) {
        std::vector<pollfd> polled;
        std::vector<size_t> ranks;
        for (size_t rank = 0; rank < transfers->size(); ++rank) {
            const Transfer& transfer = (*transfers)[rank];
            if (transfer.is_done()) continue;
            const short events = static_cast<short>((transfer.sent < transfer.out.size() ? POLLOUT : 0) |
                                                    (transfer.received < transfer.in.size() ? POLLIN : 0));
            polled.push_back({sockets_[rank].descriptor(), events, 0});
            ranks.push_back(rank);
        }
        if (polled.empty()) return;
        poll(polled.data(), polled.size(), kMostMilliseconds);
        check();
        for (size_t i = 0; i < ranks.size(); ++i) {
            Transfer& transfer = (*transfers)[ranks[i]];
            const auto rank = static_cast<int64_t>(ranks[i]);
            if (!move(&transfer, polled[i].fd, polled[i].revents)) end(rank, "closed its connection");
            if (transfer.received < sizeof(Header)) continue;
            Header header{};
            std::memcpy(&header, transfer.in.data(), sizeof header);
            CHECK(header.number == number_ && header.bytes == transfer.in.size() - sizeof header, "rank ", rank,
                  " is in collective ", header.number, " with ", header.bytes, " bytes, and rank ", rank_, " in ",
                  number_, " with ", transfer.in.size() - sizeof header);
        }
    }
}

// Returns false if the connection has ended.
bool TcpRanks::move(Transfer* transfer, int descriptor, short events) const {
    const auto is_over = [](ssize_t count) { return count == 0 || (errno != EAGAIN && errno != EINTR); };
    if ((events & (POLLOUT | POLLHUP | POLLERR)) != 0 && transfer->sent < transfer->out.size()) {
        const ssize_t count = send(descriptor, transfer->out.data() + transfer->sent,
                                   transfer->out.size() - transfer->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count > 0)
            transfer->sent += static_cast<size_t>(count);
        else if (is_over(count))
            return false;
    }
    if ((events & (POLLIN | POLLHUP | POLLERR)) != 0 && transfer->received < transfer->in.size()) {
        // No more than belongs to this collective: what follows is the next one's.
        const ssize_t count = recv(descriptor, transfer->in.data() + transfer->received,
                                   transfer->in.size() - transfer->received, MSG_DONTWAIT);
        if (count > 0)
            transfer->received += static_cast<size_t>(count);
        else if (is_over(count))
            return false;
    }
    return true;
}

// A rank that ends closes this connection and that of the control plane, which knows more.
void TcpRanks::end(int64_t rank, const std::string& what) const {
    throw PeerError(control_->wait_for_failure(kSecondsToKnow).value_or(join("rank ", rank, " ", what)));
}

// ---- The collectives ----

std::vector<int64_t> elements_by_rank(std::span<const OwnedRange> bucket, int64_t size) {
    std::vector<int64_t> elements(static_cast<size_t>(size));
    for (const OwnedRange& each : bucket) elements[static_cast<size_t>(each.rank)] += each.numel();
    return elements;
}

template <typename T>
void TcpRanks::reduce_scatter(std::span<const OwnedRange> bucket, T* flat) {
    // Every rank gets its pieces of this one, which gets its own pieces of every rank.
    const std::vector<int64_t> elements = elements_by_rank(bucket, size_);
    const auto own = static_cast<size_t>(elements[static_cast<size_t>(rank_)]);
    std::vector<size_t> out;
    for (const int64_t count : elements) out.push_back(static_cast<size_t>(count) * sizeof(T));
    std::vector<Transfer> all = transfers(out, std::vector<size_t>(out.size(), own * sizeof(T)));
    std::vector<size_t> filled(out.size(), sizeof(Header));
    for (const OwnedRange& piece : bucket) {
        const auto rank = static_cast<size_t>(piece.rank);
        if (piece.rank == rank_) continue;
        const size_t bytes = static_cast<size_t>(piece.numel()) * sizeof(T);
        std::memcpy(all[rank].out.data() + filled[rank], flat + piece.begin, bytes);
        filled[rank] += bytes;
    }
    perform(&all);
    size_t before = 0;  // elements of this rank in earlier pieces
    for (const OwnedRange& piece : bucket) {
        if (piece.rank != rank_) continue;
        const auto count = static_cast<size_t>(piece.numel());
        std::vector<T> sum(flat + piece.begin, flat + piece.end);
        const auto part = [&](int64_t rank) -> const T* {
            if (rank == rank_) return flat + piece.begin;
            // The header has the size of two elements of fp64, so that the elements are aligned.
            return reinterpret_cast<const T*>(all[static_cast<size_t>(rank)].in.data() + sizeof(Header)) + before;
        };
        std::copy(part(0), part(0) + count, sum.begin());
        for (int64_t rank = 1; rank < size_; ++rank) {
            const T* const from = part(rank);
            for (size_t i = 0; i < count; ++i) sum[i] += from[i];
        }
        std::copy(sum.begin(), sum.end(), flat + piece.begin);
        before += count;
    }
}

void TcpRanks::gather(std::span<const OwnedRange> bucket, const Tensor& flat) {
    const auto width = static_cast<size_t>(size_of(flat.dtype));
    const std::vector<int64_t> elements = elements_by_rank(bucket, size_);
    std::vector<size_t> in;
    for (const int64_t count : elements) in.push_back(static_cast<size_t>(count) * width);
    std::vector<Transfer> all = transfers(std::vector<size_t>(in.size(), in[static_cast<size_t>(rank_)]), in);
    auto* const bytes = static_cast<char*>(flat.data);
    size_t filled = sizeof(Header);
    for (const OwnedRange& piece : bucket) {
        if (piece.rank != rank_) continue;
        const size_t count = static_cast<size_t>(piece.numel()) * width;
        for (Transfer& each : all)
            if (!each.out.empty())
                std::memcpy(each.out.data() + filled, bytes + static_cast<size_t>(piece.begin) * width, count);
        filled += count;
    }
    perform(&all);
    std::vector<size_t> taken(all.size(), sizeof(Header));
    for (const OwnedRange& piece : bucket) {
        const auto rank = static_cast<size_t>(piece.rank);
        if (piece.rank == rank_) continue;
        const size_t count = static_cast<size_t>(piece.numel()) * width;
        std::memcpy(bytes + static_cast<size_t>(piece.begin) * width, all[rank].in.data() + taken[rank], count);
        taken[rank] += count;
    }
}

void TcpRanks::start_reduce_scatter(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) {
    begin(device, "reduce_scatter", bucket);
    if (flat.dtype == DType::f64)
        reduce_scatter(bucket, flat.get<double>());
    else
        reduce_scatter(bucket, flat.get<float>());
}

void TcpRanks::start_all_reduce(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) {
    start_reduce_scatter(device, bucket, flat);
    start_all_gather(device, bucket, flat);
}

void TcpRanks::start_all_gather(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) {
    begin(device, "all_gather", bucket);
    gather(bucket, flat);
}

void TcpRanks::all_reduce(const Device& device, StepSums* sums) {
    begin(device, "all_reduce of loss and norm", {});
    const std::vector<size_t> bytes(static_cast<size_t>(size_), sizeof(StepSums));
    std::vector<Transfer> all = transfers(bytes, bytes);
    for (Transfer& each : all)
        if (!each.out.empty()) std::memcpy(each.out.data() + sizeof(Header), sums, sizeof *sums);
    perform(&all);
    StepSums total;
    for (int64_t rank = 0; rank < size_; ++rank) {
        StepSums part = *sums;
        if (rank != rank_) std::memcpy(&part, all[static_cast<size_t>(rank)].in.data() + sizeof(Header), sizeof part);
        total.loss += part.loss;
        total.targets += part.targets;
        total.squared_norm += part.squared_norm;
    }
    *sums = total;
}

class PlannedRanks final : public Ranks {
  public:
    explicit PlannedRanks(int64_t size) : size_(size) {}
    int64_t size() const override { return size_; }
    int64_t rank() const override { return 0; }
    int local_rank() const override { return 0; }
    void start_reduce_scatter(const Device&, std::span<const OwnedRange>, const Tensor&) override { refuse(); }
    void start_all_reduce(const Device&, std::span<const OwnedRange>, const Tensor&) override { refuse(); }
    void finish_reduce(const Device&) override { refuse(); }
    void start_all_gather(const Device&, std::span<const OwnedRange>, const Tensor&) override { refuse(); }
    void finish_all_gather(const Device&, std::span<const OwnedRange>) override { refuse(); }
    void all_reduce(const Device&, StepSums*) override { refuse(); }
    // All ranks have the same plan, so the others would pass the same.
    std::vector<std::string> exchange(const std::string& text, Channel) override {
        return std::vector<std::string>(static_cast<size_t>(size_), text);
    }

  private:
    [[noreturn]] static void refuse() { throw Error(kExitFault, "the ranks of a plan compute nothing"); }
    const int64_t size_;
};

}  // namespace

std::unique_ptr<Ranks> cpu_ranks(const World& world, std::shared_ptr<ControlPlane> control) {
    return std::make_unique<TcpRanks>(world, std::move(control));
}

std::unique_ptr<Ranks> planned_ranks(int64_t size) {
    return std::make_unique<PlannedRanks>(size);
}

}  // namespace ingot
