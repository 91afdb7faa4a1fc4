#include "src/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "kernels/fill.h"
#include "src/base/text.h"
#include "src/checkpoint/manifest.h"
#include "src/checkpoint/safetensors.h"
#include "src/checkpoint/store.h"

namespace ingot {

namespace fs = std::filesystem;

namespace {

// Calls `visit` with each part that a piece holds elements of: with the index in the part's tensor of the first, and a
// view of them (n).
template <typename Visit>
void for_each_part(const ParameterTable& table, const std::vector<StatePiece>& pieces, const Visit& visit) {
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts) {
            const int64_t part_begin = parameter.offset + part.begin * parameter.columns;
            const int64_t part_end = part_begin + part.rows * parameter.columns;
            for (const StatePiece& piece : pieces) {
                const int64_t begin = std::max(part_begin, piece.begin);
                const int64_t end = std::min(part_end, piece.begin + piece.tensor.numel());
                if (begin < end)
                    visit(parameter, part, begin - part_begin,
                          piece.tensor.slice(0, begin - piece.begin, end - piece.begin));
            }
        }
}

void load_pieces(const Device& device, const TensorFiles& files, const ParameterTable& table,
                 const std::vector<StatePiece>& pieces, const std::string& prefix) {
    std::vector<uint8_t> rounded;
    const auto copy = [&](const Tensor& to, Tensor from) {
        if (to.dtype != DType::f32) {
            rounded.resize(static_cast<size_t>(to.bytes()));
            Tensor host = to;
            host.data = rounded.data();
            host.device = DeviceKind::cpu;
            round_to(Device::cpu(), {.out = host, .in = from});
            from = host;
        }
        try {
            device.copy(to, from);
        } catch (const CudaError&) {  // a page that is gone fails in the driver, without a signal
            files.require_intact();
            throw;
        }
    };
    for_each_part(
        table, pieces, [&](const Parameter& parameter, const CheckpointPart& part, int64_t begin, const Tensor& slot) {
            const Tensor all = files.describe(prefix + part.name);
            CHECK(all.numel() == part.rows * parameter.columns, prefix, part.name, " is ", all.describe(),
                  ", this model has ", part.rows, " x ", parameter.columns);
            files.read(prefix + part.name, begin, begin + slot.numel(), [&](int64_t at, const Tensor& source) {
                copy(slot.slice(0, at - begin, at - begin + source.numel()), source);
            });
        });
    files.require_intact();
}

// The folder's own name, also for "." and with a slash at the end.
std::string name_of_folder(const std::string& folder) {
    std::error_code error;
    const fs::path absolute = fs::absolute(folder, error);  // fails where the current folder is gone
    const fs::path path = (error ? fs::path(folder) : absolute).lexically_normal();
    return (path.filename().empty() ? path.parent_path() : path).filename().string();
}

// Throws DamagedCheckpoint if anything in it, as far as this rank looks, is not what was written.
Checkpoint verified_checkpoint(const std::string& folder, bool with_moments, const Ranks& ranks) {
    Checkpoint checkpoint;
    checkpoint.folder = folder;
    checkpoint.manifest = read_manifest(folder);
    // Whoever copies a checkpoint elsewhere may call it anything, but not by another step.
    const std::string name = name_of_folder(folder);
    if (is_step_name(name) && name != step_name(checkpoint.manifest.step))
        throw DamagedCheckpoint(join(folder, ": its manifest is that of step ", checkpoint.manifest.step,
                                     ": was the folder renamed? give it its own name again"));
    const Manifest& manifest = checkpoint.manifest;
    std::vector<std::string> model, optimizer;
    for (int64_t rank = 0; rank < manifest.num_ranks; ++rank) {
        model.push_back(folder + "/" + model_file(rank, manifest.num_ranks));
        optimizer.push_back(folder + "/" + optimizer_file(rank, manifest.num_ranks));
    }
    std::vector<FileRecord> files = manifest.files;
    if (!with_moments)
        std::erase_if(files, [&](const FileRecord& file) {
            return std::find(optimizer.begin(), optimizer.end(), folder + "/" + file.name) != optimizer.end();
        });
    verify_files(folder, files, ranks.rank(), ranks.size());
    // Checked before any memory is taken for the model: its sizes come from the manifest too.
    const ParameterTable table(manifest.config.model);
    checkpoint.weights = std::make_shared<TensorFiles>(model, table, std::vector<std::string>{""});
    if (with_moments && manifest.has_moments())
        checkpoint.moments = std::make_shared<TensorFiles>(optimizer, table, Optimizer::moment_prefixes());
    if (checkpoint.manifest.find(kTokenizerFile) != nullptr)
        checkpoint.tokenizer_json = read_tokenizer_file(folder + "/" + kTokenizerFile);
    return checkpoint;
}

// The checkpoints that a folder means, the newest first: one step folder, or those of a run folder.
class Candidates {
  public:
    explicit Candidates(const std::string& folder) : folder_(folder) {
        std::error_code error;
        const bool exists = fs::exists(folder, error);
        REQUIRE(exists, "there is no checkpoint ", folder, ": name a run folder, or a step folder in its checkpoints/");
        REQUIRE(fs::is_directory(folder, error), folder,
                " is a file: name the folder of a run, or a step folder in its checkpoints/");
        is_step_ = is_step_name(name_of_folder(folder)) || fs::exists(folder + "/manifest.json", error);
        all_ = is_step_ ? std::vector<std::string>{folder} : list_checkpoints(folder);
        REQUIRE(!all_.empty(), folder,
                " holds no checkpoint: name a run folder with some in its checkpoints/, or a step folder");
        count_ = all_.size();
    }

    std::string next() const {
        REQUIRE(!all_.empty(), "none of the ", count_, " checkpoints in ", checkpoints_of(folder_),
                " is whole: move the folder away, or start anew with another name");
        return all_.back();
    }

    // Throws the fault of the checkpoint that next() named, unless an older one may serve.
    void pass_over(const std::string& fault, bool is_damage) {
        if (is_step_ && is_damage) throw DamagedCheckpoint(fault);
        // Gone: a run that goes on has removed it, and written a newer one before.
        std::error_code error;
        const bool is_gone = !is_step_ && !fs::exists(all_.back(), error);
        if (!is_gone && !is_damage) throw UserError(fault);
        if (is_gone) {
            all_ = list_checkpoints(folder_);
            return;
        }
        print_warning(join("passing over a damaged checkpoint: ", fault));
        all_.pop_back();
    }

  private:
    std::string folder_;
    bool is_step_;
    std::vector<std::string> all_;
    size_t count_;
};

constexpr char kDamaged = 'd', kUnreadable = 'u';  // the first letter of a fault that a rank tells the others

}  // namespace

std::vector<NamedTensor> checkpoint_tensors(const ParameterTable& table, const std::vector<StatePiece>& pieces,
                                            const std::string& prefix) {
    std::vector<NamedTensor> tensors;
    for_each_part(table, pieces,
                  [&](const Parameter& parameter, const CheckpointPart& part, int64_t begin, const Tensor& elements) {
                      const std::string name = prefix + part.name;
                      if (elements.numel() < part.rows * parameter.columns)
                          tensors.push_back({fragment_name(name, begin, begin + elements.numel()), elements});
                      else
                          tensors.push_back(
                              {name, parameter.is_matrix ? elements.view({part.rows, parameter.columns}) : elements});
                  });
    return tensors;
}

Checkpoint open_checkpoint(const std::string& folder, bool with_moments) {
    const std::unique_ptr<Ranks> alone = one_rank();
    return open_checkpoint(folder, with_moments, alone.get());
}

Checkpoint open_checkpoint(const std::string& folder, bool with_moments, Ranks* ranks) {
    std::optional<Candidates> candidates;
    if (ranks->is_first()) candidates.emplace(folder);
    for (;;) {
        const std::string path = ranks->from_first(candidates ? candidates->next() : "");
        Checkpoint checkpoint;
        std::string own_fault;
        try {
            checkpoint = verified_checkpoint(path, with_moments, *ranks);
        } catch (const DamagedCheckpoint& fault) {
            own_fault = kDamaged + std::string(fault.what());
        } catch (const UserError& fault) {
            own_fault = kUnreadable + std::string(fault.what());
        }
        const std::vector<std::string> faults = ranks->exchange(own_fault);
        const auto fault =
            std::find_if(faults.begin(), faults.end(), [](const std::string& text) { return !text.empty(); });
        if (fault == faults.end()) return checkpoint;
        if (candidates) candidates->pass_over(fault->substr(1), (*fault)[0] == kDamaged);
    }
}

std::unique_ptr<Tokenizer> checkpoint_tokenizer(const Checkpoint& checkpoint) {
    const std::string& name = checkpoint.manifest.config.data.tokenizer;
    if (name.empty()) return nullptr;
    if (name == kBytesTokenizer) return bytes_tokenizer();
    REQUIRE(!checkpoint.tokenizer_json.empty(), checkpoint.folder, " holds no ", kTokenizerFile, ", but its run had ",
            name, ": was the checkpoint put together from two?");
    return parse_tokenizer(checkpoint.tokenizer_json, checkpoint.folder + "/" + kTokenizerFile);
}

void load_weights(const Checkpoint& checkpoint, const Model& model) {
    model.device().zero(model.weights());  // the padding between tensors
    load_pieces(model.device(), *checkpoint.weights, model.table(), {{0, model.weights()}}, "");
}

void load_weights(const Checkpoint& checkpoint, const Model& model, Optimizer* optimizer) {
    load_pieces(model.device(), *checkpoint.weights, model.table(), optimizer->state()[0].pieces, "");
    optimizer->refresh_model();
}

TrainingState load_training(const Checkpoint& checkpoint, const Model& model, Optimizer* optimizer) {
    CHECK(checkpoint.moments != nullptr, checkpoint.folder, " has no optimizer state to go on from");
    for (const OptimizerState& state : optimizer->state())
        load_pieces(model.device(), state.is_weights() ? *checkpoint.weights : *checkpoint.moments, model.table(),
                    state.pieces, state.prefix);
    optimizer->refresh_model();
    const Manifest& manifest = checkpoint.manifest;
    return {.step = manifest.step,
            .rows_consumed = manifest.rows_consumed,
            .data = manifest.data,
            .state = manifest.state,
            .fp8_recent = manifest.fp8_recent,
            .report = manifest.report};
}

}  // namespace ingot
