#include "src/parallel/nccl_ranks.h"

#include <map>
#include <mutex>

#include "kernels/cuda/nccl.h"

namespace ingot {

namespace {

class NcclRanks final : public Ranks {
  public:
    NcclRanks(const World& world, std::shared_ptr<ControlPlane> control) : world_(world), control_(std::move(control)) {
        control_->on_failure([this](const std::string&) {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (connection_) connection_->abort();
        });
    }
    ~NcclRanks() override { control_->on_failure({}); }
    NcclRanks(const NcclRanks&) = delete;
    NcclRanks& operator=(const NcclRanks&) = delete;

    int64_t size() const override { return world_.size; }
    int64_t rank() const override { return world_.rank; }
    int local_rank() const override { return static_cast<int>(world_.local_rank); }

    void connect(const Device& device, bool deterministic) override {
        if (connection_) return;
        const std::string id = from_first(is_first() ? nccl_new_id() : "");
        auto connection = std::make_unique<NcclConnection>(device, id, static_cast<int>(size()),
                                                           static_cast<int>(rank()), deterministic);
        begun_ = std::make_unique<DeviceEvent>(device);
        reduced_ = std::make_unique<DeviceEvent>(device);
        const std::lock_guard<std::mutex> lock(mutex_);
        connection_ = std::move(connection);
    }

    void start_reduce_scatter(const Device& device, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        begin("reduce-scatter", bucket[0].bucket);
        if (is_split_evenly(bucket, size()))
            connection_->reduce_scatter(flat.get<float>() + bucket[0].begin, static_cast<size_t>(bucket[0].numel()));
        else
            reduce_to_owners(device, bucket, flat);
    }

    void start_all_reduce(const Device&, std::span<const OwnedRange> bucket, const Tensor& flat) override {
        begin("all-reduce", bucket[0].bucket);
        connection_->all_reduce(flat.get<float>() + bucket[0].begin,
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
        if (is_split_evenly(bucket, size())) {
            connection_->all_gather(data + bucket[0].begin * element, static_cast<size_t>(bucket[0].numel() * element));
        } else {
            connection_->begin_group();
            for (const OwnedRange& range : bucket)
                for (int64_t other = 0; other < size(); ++other) {
                    char* const at = data + range.begin * element;
                    const auto bytes = static_cast<size_t>(range.numel() * element);
                    if (range.rank == rank() && other != rank()) connection_->send(at, bytes, static_cast<int>(other));
                    if (range.rank == other && other != rank())
                        connection_->receive(at, bytes, static_cast<int>(other));
                }
            connection_->end_group();
        }
        gathered(device, bucket[0].bucket).record(Stream::collective);
    }

    void finish_all_gather(const Device& device, std::span<const OwnedRange> bucket) override {
        gathered(device, bucket[0].bucket).block_from_outside(Stream::compute);
    }

    void all_reduce(const Device&, StepSums* sums) override {
        begin("all-reduce of the step's sums", -1);
        connection_->all_reduce(sums);
        reduced_->record(Stream::collective);
        reduced_->block(Stream::compute);
    }

    std::vector<std::string> exchange(const std::string& text, Channel channel) override {
        return control_->exchange(text, static_cast<int>(channel));
    }

    void check() const override {
        if (const std::optional<std::string> failure = control_->failure()) throw PeerError(*failure);
    }

  private:
    // What the collective stream is given from now on begins after what the compute stream was given so far.
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
        connection_->begin_group();
        int64_t at = 0;
        for (const OwnedRange& range : bucket) {
            const auto count = static_cast<size_t>(range.numel()) * sizeof(float);
            connection_->send(data + range.begin, count, static_cast<int>(range.rank));
            if (range.rank != rank()) continue;
            for (int64_t other = 0; other < size(); ++other)
                connection_->receive(staging + other * own + at, count, static_cast<int>(other));
            at += range.numel();
        }
        connection_->end_group();
        at = 0;
        for (const OwnedRange& range : bucket) {
            if (range.rank != rank()) continue;
            connection_->sum(data + range.begin, staging + at, static_cast<size_t>(range.numel()),
                             static_cast<size_t>(own));
            at += range.numel();
        }
    }

    const World world_;
    const std::shared_ptr<ControlPlane> control_;
    std::mutex mutex_;  // guards connection_ against the control plane's thread
    std::unique_ptr<NcclConnection> connection_;
    std::unique_ptr<DeviceEvent> begun_, reduced_;
    std::map<int64_t, DeviceEvent> gathered_;  // by bucket
    std::shared_ptr<void> staging_;
    size_t staging_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Ranks> nccl_ranks(const World& world, std::shared_ptr<ControlPlane> control) {
    return std::make_unique<NcclRanks>(world, std::move(control));
}

}  // namespace ingot
