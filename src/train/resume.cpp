#include "src/train/resume.h"

#include <algorithm>

#include "kernels/matmul/choices.h"
#include "src/base/text.h"
#include "src/checkpoint/environment.h"
#include "src/config/fields.h"

namespace ingot {

namespace {

// Returns how many of the choices `now` are not in the record.
int64_t num_new_choices(const std::vector<MatmulChoice>& record, const std::vector<MatmulChoice>& now) {
    return std::count_if(now.begin(), now.end(), [&](const MatmulChoice& choice) {
        return std::none_of(record.begin(), record.end(), [&](const MatmulChoice& recorded) {
            return recorded.gemm == choice.gemm && recorded.algorithm == choice.algorithm;
        });
    });
}

std::string list_of(const std::vector<std::string>& parts, const char* separator) {
    std::string text;
    for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
    return text;
}

// Says whether a resumed run has the bits of an uninterrupted one. `sampled` names data whose bytes were compared in
// part.
std::string bits_promise(const std::vector<std::string>& differences, const std::vector<std::string>& sampled) {
    if (!differences.empty())
        return excerpt("bits: not promised to be those of an uninterrupted run, since " + list_of(differences, "; "),
                       kLongestMessage);
    std::string text =
        "bits: as if the run had not stopped (config, data, device and libraries are those of the checkpoint";
    if (!sampled.empty())
        text += join("; ", list_of(sampled, " and "), sampled.size() == 1 ? " is" : " are",
                     " too large to be compared whole: as far as sizes, times and samples of the files say");
    return text + ")";
}

}  // namespace

Resume::Resume(const Checkpoint& checkpoint, const Config& config, Tokenizer* tokenizer, const Console& console)
    : checkpoint_(checkpoint), config_(config), console_(console) {
    for (const ConfigChange& change : config_changes(config_to_json(checkpoint.manifest.config), config)) {
        const std::string then = excerpt(change.then, 200), now = excerpt(change.now, 200);
        REQUIRE(change.on_resume != OnResume::fixed, checkpoint.folder, " was trained with ", change.path, " = ", then,
                ", the config says ", now, ": a resumed run cannot change the ",
                change.path == "seed" ? "seed" : "model", "; set it back, or use another name or run_dir");
        if (change.on_resume == OnResume::free) continue;
        differences_.push_back(change.path + " was changed");
        console.line("changed from now on: ", change.path, " was ", then, ", is ", now);
    }
    if (tokenizer != nullptr && !checkpoint.tokenizer_json.empty() && tokenizer->source() != checkpoint.tokenizer_json)
        console.line("changed from now on: the tokenizer.json of data.tokenizer is another file than the checkpoint's");
}

void Resume::describe(const TrainingState& training, const Device& device, int64_t num_ranks, TrainingData* data) {
    const Manifest& manifest = checkpoint_.manifest;
    console_.line("resumed from step ", training.step, " of ", checkpoint_.folder);
    for (const std::string& line : data->resume(training.data, training.rows_consumed)) {
        differences_.push_back(line);
        console_.line("data: ", excerpt(line, kLongestMessage));
    }
    console_.text(data->describe_blend(training.rows_consumed));
    for (const std::string& line : environment_changes(manifest.environment, environment(device, config_, num_ranks)))
        differences_.push_back(line);
    if (const int64_t count = num_new_choices(manifest.matmul_choices, matmul_choices(device)); count > 0)
        differences_.push_back(join(count, " GEMMs have another algorithm than in the checkpoint"));
    if (!config_.training.deterministic && !device.is_cpu()) differences_.push_back("training.deterministic is false");
    console_.line(bits_promise(differences_, data->sampled()));
}

}  // namespace ingot
