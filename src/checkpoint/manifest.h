// manifest.json of a checkpoint: what the checkpoint is, and the checksums of its files and of itself.
//
// Its last key, "sha256", is the SHA-256 of all bytes that stand before that key's opening quote, so that any damage to
// the manifest is found, and through the files' checksums any damage to them. It finds no intent: anybody can compute a
// SHA-256. So each value is checked for its type and range before it is used.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/step.h"
#include "kernels/matmul/choices.h"
#include "src/base/checksum.h"
#include "src/checkpoint/step_report.h"
#include "src/config/config.h"
#include "src/data/blend.h"

namespace ingot {

// A checkpoint of several ranks has a version of its own, so that a program that reads one rank's files alone says that
// it does not know it.
constexpr int kCheckpointFormatVersion = 2, kSeveralRanksFormatVersion = 3;

// The files of a checkpoint that `num_ranks` ranks wrote, each its own: "model-00002-of-00008.safetensors". The
// optimizer's are missing at step 0, where nothing was trained yet (an imported model); the last one is there if the
// run has a tokenizer.
std::string model_file(int64_t rank = 0, int64_t num_ranks = 1);
std::string optimizer_file(int64_t rank = 0, int64_t num_ranks = 1);
constexpr const char* kTokenizerFile = "tokenizer.json";

// The content of a manifest.
struct Manifest {
    std::string run_id;         // of the run that wrote it; empty: a run that an older version began
    int64_t step = 0;           // optimizer steps attempted
    int64_t rows_consumed = 0;  // of the training data
    BlendState data;            // after them
    StepState state;
    std::vector<float> fp8_recent;       // TrainingState::fp8_recent
    StepReport report;                   // of step `step`
    nlohmann::ordered_json environment;  // an object of texts, numbers and truth values
    std::vector<MatmulChoice> matmul_choices;
    int64_t num_ranks = 1;  // that wrote it
    std::vector<FileRecord> files;
    Config config;  // resolved, of the run that wrote it

    const FileRecord* find(const std::string& file) const;  // null: none
    bool has_moments() const { return find(optimizer_file(0, num_ranks)) != nullptr; }
};

// The text of a manifest, sealed with its own checksum.
std::string manifest_text(const nlohmann::ordered_json& manifest);

// A manifest that cannot be trusted, or a folder that is not what the manifest says: the checkpoint is passed over.
// Other errors (a format that this program does not read, values that cannot be) are plain UserErrors.
class DamagedCheckpoint : public UserError {
  public:
    using UserError::UserError;
};

// Reads and checks FOLDER/manifest.json. Throws DamagedCheckpoint for one that is cut short or changed, or that leaves
// out a file which a checkpoint has; UserError if it is whole, and of another format version or with a value that
// cannot be. Keys that are not known are ignored: a later program may have more to say.
Manifest read_manifest(const std::string& folder);
// Parses the bytes of a manifest; `path` is for messages.
Manifest parse_manifest(const std::string& text, const std::string& path);

nlohmann::ordered_json to_json(const std::vector<FileRecord>& files);

// Compares the sizes of all files of the list and reads them, every num_ranks-th chunk, from chunk `rank` on, to
// compare checksums: the ranks of a run read each byte once together. Throws DamagedCheckpoint.
void verify_files(const std::string& folder, const std::vector<FileRecord>& files, int64_t rank = 0,
                  int64_t num_ranks = 1);

}  // namespace ingot
