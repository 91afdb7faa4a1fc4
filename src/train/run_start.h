// The start of a run: its device, its tokenizer, the checkpoint that it goes on from; and `--dry-run`.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kernels/core/device.h"
#include "src/base/console.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/store.h"
#include "src/config/config.h"
#include "src/parallel/ranks.h"
#include "src/tokenizer/tokenizer.h"
#include "src/train/hellaswag.h"
#include "src/train/training_data.h"
#include "src/train/training_plan.h"

namespace ingot {

// The device that training.device means. Throws UserError if there is none, or if it does not compute in
// training.precision.
Device training_device(const Config& config, const Ranks& ranks, const Console& console);

// Returns the checkpoint that --resume means for this run folder, which is whole, or nothing. The first rank, which
// alone has the store (null on the others), decides for all, and throws UserError.
std::optional<Checkpoint> checkpoint_to_resume(const std::string& run_dir, CheckpointStore* store,
                                               const std::string& resume, Ranks* ranks);

// The checkpoint of model.init_from; nothing where the config has none. The first rank throws UserError if there is
// none, or if its model is not the config's in all but context_length.
std::optional<Checkpoint> checkpoint_to_start_from(const Config& config, Ranks* ranks);
// Says on the console what a run takes from it; a tokenizer that is not the checkpoint's is a warning on stderr.
void print_start(const Checkpoint& initial, const Config& config, const Tokenizer* tokenizer, const Console& console);

// Returns null if the config has none. Throws UserError if it cannot be read, or does not fit the model or the samples.
std::unique_ptr<Tokenizer> training_tokenizer(const Config& config);

// Opens eval.hellaswag; returns null if the config has none. `tokenizer` may be null. Throws UserError if it cannot be
// read, or does not fit the model.
std::unique_ptr<HellaSwag> training_hellaswag(const Config& config, Tokenizer* tokenizer);

// A line for each setting that changes nothing.
void print_notes(const Config& config, const Device& device, const Console& console);
void print_plan(const Config& config, const TrainingPlan& plan, const Console& console);
// `hellaswag` may be null.
void print_data(const TrainingData& data, const HellaSwag* hellaswag, const Console& console);

// Says what a run would do, without a run folder. Data that are not there yet are no obstacle: who plans a run may not
// have them on this machine. Returns the exit code.
int dry_run(Config config, Ranks* ranks, const Console& console);

}  // namespace ingot
