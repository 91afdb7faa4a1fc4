// Writing checkpoints while training goes on.
//
// Weights and moments change in AdamW alone. A save therefore starts a thread and lets the next forward and backward
// run; AdamW waits (wait_until_copied) until everything was either copied to the snapshot in host memory or, where that
// is bounded, written. At most one save is in flight. On a GPU the snapshot is copied by a stream of its own beside the
// computation, and it is the GPU that waits before AdamW, not the program.
//
// All ranks of a run save together, each its part into files of its own, at the same time. The first one makes the
// draft and commits it when every rank has said that its files are whole on disk. A fault of any rank is the fault of
// all: nothing is committed then.
#pragma once

#include <functional>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/store.h"

namespace ingot {

// Returns a manifest without its files, of a checkpoint that so many ranks write. `run_id` may be empty.
nlohmann::ordered_json manifest_head(const std::string& run_id, const Config& config, const TrainingState& training,
                                     const Device& device, int64_t num_ranks);

class CheckpointWriter {
  public:
    // Plans the snapshot into `host_plan`: all of the optimizer's state, the moments alone, or nothing, as
    // checkpoint.async and checkpoint.host_memory say ("auto": what a quarter of the free memory holds). Of the state
    // it is this rank's part.
    CheckpointWriter(const Config& config, const Model& model, const Optimizer& optimizer, Ranks* ranks,
                     MemoryPlan* host_plan);
    // Ends the save in flight first.
    ~CheckpointWriter();
    CheckpointWriter(const CheckpointWriter&) = delete;
    CheckpointWriter& operator=(const CheckpointWriter&) = delete;

    struct Result {  // the same on all ranks
        int64_t step;
        std::string fault;      // empty: committed
        std::string set_aside;  // what had the checkpoint's name and was renamed, or empty
    };
    // Starts to write the checkpoint of training.step, after the one in flight has ended (take its result with poll()
    // before). No update may be launched until wait_until_copied() returns. `config` goes into the manifest, the bytes
    // of the run's tokenizer.json (empty: it has none) into a file beside it. `store` outlives the save, and nobody
    // else uses it before the save has ended; it is the first rank's, null on the others.
    void start(CheckpointStore* store, const Config& config, const TrainingState& training,
               const std::string& tokenizer_json);
    void wait_until_copied();
    // Waits for the save in flight, if any. Throws PeerError if a rank has failed meanwhile: nothing was committed, as
    // far as this rank knows.
    std::optional<Result> wait();
    // The result of a save that has ended since the last call. Throws PeerError likewise.
    std::optional<Result> poll();

    // "asynchronous, from a snapshot of 18.6 MiB", for the log.
    std::string describe() const;

  private:
    struct Job;
    std::string write(const Job& job, std::promise<void>* copied) const;
    std::vector<OptimizerState> copied_state(std::promise<void>* copied) const;
    nlohmann::ordered_json write_files(const Folder& folder, const std::vector<OptimizerState>& state,
                                       std::promise<void>* copied) const;
    std::vector<std::string> together(const std::function<std::string()>& work) const;

    // Returns whether the snapshot has that tensor.
    bool is_in_snapshot(const OptimizerState& state) const {
        return state.is_weights() ? snapshots_weights_ : snapshots_moments_;
    }

    const Model& model_;
    const Optimizer& optimizer_;
    Ranks& ranks_;
    bool is_async_, snapshots_weights_ = false, snapshots_moments_ = false;
    std::vector<Tensor> snapshot_;      // of optimizer_.owned_state(), null where it has none
    DeviceEvent updated_, downloaded_;  // CUDA: the last update; the copies of the snapshot
    std::future<Result> writing_;
    std::future<void> copied_;
};

}  // namespace ingot
