#include "src/parallel/gpu_ranks.h"

#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "kernels/cuda/nccl.h"
#include "kernels/cuda/peer_copies.h"
#include "src/parallel/host_binding.h"

namespace ingot {

namespace {

// A rank that learns of a failure has so long to end by itself.
constexpr std::chrono::milliseconds kGrace{10000}, kStep{100};

enum { kGradients, kWeights };  // the tensors of PeerCopies

// A launcher may show each rank its own GPU alone (srun --gpus-per-task=1).
int gpu_of(const World& world) {
    std::string why;
    return Device::num_cuda_devices(&why) == 1 ? 0 : static_cast<int>(world.local_rank);
}

// Nothing here may wait: standard error may be a pipe that nobody reads.
[[noreturn]] void end_process(const std::string& failure) {
    const std::string line = "error: " + failure + "\n";
    pollfd polled{STDERR_FILENO, POLLOUT, 0};
    if (poll(&polled, 1, 0) == 1 && (polled.revents & POLLOUT) != 0)
        (void)!write(STDERR_FILENO, line.data(), line.size());
    _exit(kExitPeer);
}

class GpuRanks final : public Ranks {
  public:
    GpuRanks(const World& world, std::shared_ptr<ControlPlane> control, std::string bound)
        : world_(world), control_(std::move(control)), bound_(std::move(bound)) {
        control_->on_failure([links = links_](const std::string& failure) {
            // Whatever hangs, this process ends: in the driver, say, where nothing can be interrupted. So this thread
            // waits for nothing but time, and what may hang has threads of its own.
            std::thread([failure] {
                std::this_thread::sleep_for(kGrace);
                end_process(failure);
            }).detach();
            std::thread([links] {
                for (auto waited = kStep; waited < kGrace; waited += kStep) {
                    links->release_copies();
                    std::this_thread::sleep_for(kStep);
                }
            }).detach();
            std::thread([links] { links->abort_nccl(); }).detach();
        });
    }
    ~GpuRanks() override {
        control_->on_failure({});
        if (control_->failure()) {  // before what waits for the device: the threads may not have come so far
            links_->release_copies();
            links_->abort_nccl();
        }
        set_copies(nullptr);
        const std::lock_guard<std::mutex> lock(links_->nccl_mutex);
        links_->nccl = nullptr;
    }
    GpuRanks(const GpuRanks&) = delete;
    GpuRanks& operator=(const GpuRanks&) = delete;

    int64_t size() const override { return world_.size; }
    int64_t rank() const override { return world_.rank; }
    int local_rank() const override { return gpu_of(world_); }

    std::string connect(const Device& device, const Shared& shared) override {
        if (!links_->nccl) {
            const std::string id = from_first(is_first() ? nccl_new_id() : "");
            auto connection =
                std::make_unique<NcclConnection>(device, id, static_cast<int>(size()), static_cast<int>(rank()));
            begun_ = std::make_unique<DeviceEvent>(device);
            reduced_ = std::make_unique<DeviceEvent>(device);
            const std::lock_guard<std::mutex> lock(links_->nccl_mutex);
            links_->nccl = std::move(connection);
        }
        const std::string why_not = connect_copies(device, shared);
        const std::string bindings = summary_of_ranks(exchange(bound_, Channel::loop));
        return join(size(), " GPUs, ", links_->copies ? "gradients and weights by their copy engines, the rest" : "all",
                    " by NCCL ", nccl_version(), why_not.empty() ? "" : " (" + why_not + ")",
                    bindings.empty() ? "" : "; ", bindings);
    }

    void disconnect() noexcept override {
        if (!links_->copies) return;
        try {
            reduced_->record(Stream::collective);
            reduced_->wait();
            links_->copies->close();
            (void)exchange("", Channel::loop);
        } catch (const Error&) {}  // a rank has failed: all that are left end
        set_copies(nullptr);
    }

    void start_reduce_scatter(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        begin("reduce-scatter", bucket[0].bucket);
        if (links_->copies && flat.data == shared_.gradients.data)
            links_->copies->reduce_scatter(kGradients, static_cast<int>(bucket[0].bucket), ranges_of(bucket));
        else if (is_split_evenly(bucket, size()))
            links_->nccl->reduce_scatter(flat.get<float>() + bucket[0].begin, static_cast<size_t>(bucket[0].numel()));
        else
            reduce_to_owners(device, bucket, flat);
    }

    void start_all_reduce(const Device&, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        begin("all-reduce", bucket[0].bucket);
        links_->nccl->all_reduce(flat.get<float>() + bucket[0].begin,
                                 static_cast<size_t>(bucket.back().end - bucket[0].begin));
    }

    void finish_reduce(const Device&) override {
        reduced_->record(Stream::collective);
        reduced_->block(Stream::compute);
    }

    void start_all_gather(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        begin("all-gather", bucket[0].bucket);
        const int64_t element = size_of(flat.dtype);
        char* const data = static_cast<char*>(flat.data);
        if (links_->copies && flat.data == shared_.weights.data) {
            links_->copies->all_gather(kWeights, static_cast<int>(bucket[0].bucket), ranges_of(bucket));
        } else if (is_split_evenly(bucket, size())) {
            links_->nccl->all_gather(data + bucket[0].begin * element,
                                     static_cast<size_t>(bucket[0].numel() * element));
        } else {
            links_->nccl->begin_group();
            for (const OwnedRange& range : bucket)
                for (int64_t other = 0; other < size(); ++other) {
                    char* const at = data + range.begin * element;
                    const auto bytes = static_cast<size_t>(range.numel() * element);
                    if (range.rank == rank() && other != rank()) links_->nccl->send(at, bytes, static_cast<int>(other));
                    if (range.rank == other && other != rank())
                        links_->nccl->receive(at, bytes, static_cast<int>(other));
                }
            links_->nccl->end_group();
        }
        gathered(device, bucket[0].bucket).record(Stream::collective);
    }

    void finish_all_gather(const Device& device, std::span<const OwnedRange> bucket) override {
        gathered(device, bucket[0].bucket).block_from_outside(Stream::compute);
    }

    void all_reduce(const Device&, StepSums* sums) override {
        begin("all-reduce of the step's sums", -1);
        links_->nccl->all_reduce(sums);
        reduced_->record(Stream::collective);
        reduced_->block(Stream::compute);
    }

    std::vector<std::string> exchange(const std::string& text, Channel channel) override {
        return control_->exchange(text, static_cast<int>(channel));
    }

    void leave(const std::string& reason) override { control_->leave(reason); }

    void check() const override {
        if (const std::optional<std::string> failure = control_->failure()) throw PeerError(*failure);
    }

  private:
    // Returns why NCCL does all, by rank; empty where the copy engines do their part.
    std::string connect_copies(const Device& device, const Shared& shared) {
        const char* const asked = std::getenv("INGOT_COLLECTIVES");
        REQUIRE(asked == nullptr || std::string(asked) == "nccl" || std::string(asked) == "auto",
                "INGOT_COLLECTIVES is ", asked, ": it must be auto or nccl");
        const bool wants_copies = asked == nullptr || std::string(asked) == "auto";
        std::unique_ptr<PeerCopies> copies;
        if (wants_copies) {
            const Tensor tensors[] = {shared.gradients, shared.weights};
            copies = std::make_unique<PeerCopies>(device, static_cast<int>(size()), static_cast<int>(rank()), tensors,
                                                  static_cast<int>(shared.num_buckets), shared.staging);
        }
        const std::string handle = copies ? copies->handle() : "";
        const std::vector<std::string> handles = exchange(handle, Channel::loop);
        const char* why_not = "";
        if (!wants_copies)
            why_not = "INGOT_COLLECTIVES=nccl";
        else if (handle.empty())
            why_not = "the memory of this GPU cannot be shared";
        else if (!copies->open(handles))
            why_not = "another GPU's memory cannot be opened";
        // Either all ranks copy or none does.
        const std::string why_none = summary_of_ranks(exchange(why_not, Channel::loop));
        if (!why_none.empty()) {
            if (copies) copies->close();
            (void)exchange("", Channel::loop);
        }
        set_copies(why_none.empty() ? std::move(copies) : nullptr);
        shared_ = shared;
        return why_none;
    }

    void set_copies(std::unique_ptr<PeerCopies> copies) {
        const std::lock_guard<std::mutex> lock(links_->copies_mutex);
        links_->copies = std::move(copies);
    }

    static std::vector<PeerCopies::Range> ranges_of(std::span<const OwnedRange> bucket) {
        std::vector<PeerCopies::Range> ranges;
        for (const OwnedRange& range : bucket) ranges.push_back({static_cast<int>(range.rank), range.begin, range.end});
        return ranges;
    }

    // Makes the work that the collective stream is given from now on wait for what the compute stream was given so far.
    void begin(const char* what, int64_t bucket) {
        control_->note(bucket < 0 ? what : join(what, " of bucket ", bucket));
        begun_->record(Stream::compute);
        begun_->block(Stream::collective);
    }

    DeviceEvent& gathered(const Device& device, int64_t bucket) {
        return gathered_.try_emplace(bucket, device).first->second;
    }

    // Where the ranks' shares differ, NCCL has no collective: each rank sends what others own, and adds what it gets in
    // the order of the ranks.
    void reduce_to_owners(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) {
        float* const data = flat.get<float>();
        int64_t own = 0;
        for (const OwnedRange& range : bucket)
            if (range.rank == rank()) own += range.numel();
        const size_t bytes = static_cast<size_t>(own * size()) * sizeof(float);
        if (bytes > staging_bytes_) {
            staging_ = device.allocate(bytes);
            staging_bytes_ = bytes;
        }
        float* const staging = static_cast<float*>(staging_.get());  // (ranks, own)
        links_->nccl->begin_group();
        int64_t at = 0;
        for (const OwnedRange& range : bucket) {
            const auto count = static_cast<size_t>(range.numel()) * sizeof(float);
            links_->nccl->send(data + range.begin, count, static_cast<int>(range.rank));
            if (range.rank != rank()) continue;
            for (int64_t other = 0; other < size(); ++other)
                links_->nccl->receive(staging + other * own + at, count, static_cast<int>(other));
            at += range.numel();
        }
        links_->nccl->end_group();
        at = 0;
        for (const OwnedRange& range : bucket) {
            if (range.rank != rank()) continue;
            links_->nccl->sum(data + range.begin, staging + at, static_cast<size_t>(range.numel()),
                              static_cast<size_t>(own));
            at += range.numel();
        }
    }

    const World world_;
    const std::shared_ptr<ControlPlane> control_;
    const std::string bound_;  // where this process runs, for people
    // The links that a failure ends, in threads that may outlive this. The mutexes are for those threads, one each
    // since either may hang: only connect(), disconnect() and the destructor change the pointers.
    struct Links {
        std::mutex nccl_mutex, copies_mutex;
        std::unique_ptr<NcclConnection> nccl;
        std::unique_ptr<PeerCopies> copies;  // null: NCCL does all
        void release_copies() {
            const std::lock_guard<std::mutex> lock(copies_mutex);
            if (copies) copies->release();
        }
        void abort_nccl() {
            const std::lock_guard<std::mutex> lock(nccl_mutex);
            if (nccl) nccl->abort();
        }
    };
    const std::shared_ptr<Links> links_ = std::make_shared<Links>();
    Shared shared_{};
    std::unique_ptr<DeviceEvent> begun_, reduced_;
    std::map<int64_t, DeviceEvent> gathered_;  // by bucket
    std::shared_ptr<void> staging_;
    size_t staging_bytes_ = 0;
};

}  // namespace

int64_t staging_bytes_of_gpu_ranks(int64_t num_ranks) {
    return PeerCopies::staging_bytes(static_cast<int>(num_ranks));
}

std::string prepare_for_gpu(const World& world, bool deterministic) {
    if (deterministic) make_nccl_deterministic();
    return bind_process(binding_near("/sys", Device::pci_bus_id(gpu_of(world)), allowed_cpus())).describe();
}

std::unique_ptr<Ranks> gpu_ranks(const World& world, std::shared_ptr<ControlPlane> control, std::string bound) {
    return std::make_unique<GpuRanks>(world, std::move(control), std::move(bound));
}

}  // namespace ingot
