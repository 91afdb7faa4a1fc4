// Checkpoints: runs/NAME/checkpoints/step-00001000/ with manifest.json, model-00000-of-00001.safetensors and
// optimizer-00000-of-00001.safetensors (fp32, the names and shapes of LlamaForCausalLM, vocabulary unpadded), and with
// the run's tokenizer.json if it has one, so that a step folder writes text wherever it is taken. Of R ranks each has
// two files of its own, model-0000r-of-0000R.safetensors and optimizer-0000r-of-0000R.safetensors (tensor_files.h); any
// number of ranks reads them, since names and indices are those of the model, not of its layout in memory.
//
// A checkpoint is committed by one rename: everything is written into step-00001000.tmp-NONCE and synced before. What a
// kill leaves behind has the wrong name and is removed by the next run. Writing: writer.h; which are kept:
// store.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/step.h"
#include "src/checkpoint/manifest.h"
#include "src/checkpoint/safetensors.h"
#include "src/checkpoint/step_report.h"
#include "src/checkpoint/tensor_files.h"
#include "src/config/config.h"
#include "src/data/blend.h"
#include "src/model/model.h"
#include "src/optimizer/optimizer.h"
#include "src/parallel/ranks.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

// The state that a run needs besides weights and moments to go on exactly.
struct TrainingState {
    int64_t step = 0;           // optimizer steps attempted
    int64_t rows_consumed = 0;  // of the training data
    BlendState data;            // after them
    StepState state;
    std::vector<float> fp8_recent;  // Fp8Buffers::recent() of training in fp8; empty without it
    StepReport report;              // of step `step`, so that the log line of that step is written by whoever goes on
};

// A committed checkpoint that was found whole: its manifest and every byte of its files match their checksums.
struct Checkpoint {
    std::string folder;
    Manifest manifest;
    // Mapped, so that they can be read after a run that goes on has removed it. Moments are null where nobody asked for
    // them, and where nothing was trained yet (an imported model).
    std::shared_ptr<const TensorFiles> weights, moments;
    std::string tokenizer_json;  // the bytes of its file; empty if the run has none
};

// The tokenizer of the run; null if it has none.
std::unique_ptr<Tokenizer> checkpoint_tokenizer(const Checkpoint& checkpoint);

// Opens a step folder, or the newest checkpoint of a run folder that verifies; damaged ones are named on stderr and
// passed over, and so is one that is not of the step in its folder's name. Takes no lock: a run may go on there. Throws
// UserError if there is none, if none is whole, or if a whole one cannot be read by this program. Without moments their
// file is neither read nor asked for: two thirds of the bytes, which those who only want the model need not wait for.
Checkpoint open_checkpoint(const std::string& folder, bool with_moments = true);
// The same for the ranks of a run, which call it together: the first one chooses and says what it passes over, and each
// verifies its share. An error is the first rank's; the others then wait for it, which ends with a PeerError.
Checkpoint open_checkpoint(const std::string& folder, bool with_moments, Ranks* ranks);

// Copies weights into a model of the checkpoint's configuration, rounded to its compute type: for evaluation.
void load_weights(const Checkpoint& checkpoint, const Model& model);
// Copies weights into the optimizer's masters and the model: a run that begins with them. Each rank reads what it holds
// of them; all ranks call it together.
void load_weights(const Checkpoint& checkpoint, const Model& model, Optimizer* optimizer);
// Copies the optimizer's state, which must be there, as far as this rank holds it, and returns the rest that training
// goes on from.
TrainingState load_training(const Checkpoint& checkpoint, const Model& model, Optimizer* optimizer);

// Returns what pieces of the flat space hold of a checkpoint's tensors, whose names begin with `prefix`, in the order
// in which a file has them: whole tensors with their shapes, and fragments (tensor_files.h). Padding is left out.
std::vector<NamedTensor> checkpoint_tensors(const ParameterTable& table, const std::vector<StatePiece>& pieces,
                                            const std::string& prefix);

}  // namespace ingot
