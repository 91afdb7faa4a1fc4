// HellaSwag (Zellers et al. 2019): which of several endings goes on a text. The model takes the ending with the lowest
// mean loss per token (accuracy, length-normalised) or the lowest sum (acc), as llm.c does.
//
// A file is llm.c's binary evaluation format (dev/data/data_common.py, write_evalfile: token ids, also of other
// multiple-choice sets such as MMLU), or the JSONL of the data set itself, a line an example:
//
//   {"ctx": "A man is sitting on a roof. he", "endings": ["is using ...", ...], "label": 3}
//
// Its context is `ctx`, or `ctx_a` and `ctx_b` with a space between them; an ending follows it after a space. Both are
// tokenised on their own, without a token before them: the ids are those that llm.c's script writes.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/model/batch.h"
#include "src/model/device_step.h"
#include "src/model/model.h"
#include "src/parallel/ranks.h"
#include "src/tokenizer/tokenizer.h"

namespace ingot {

struct MultipleChoice {
    std::vector<int32_t> context;               // at least one token
    std::vector<std::vector<int32_t>> endings;  // at least two, of at least one token each
    int64_t label = 0;                          // the right one
};

// Examples of llm.c's binary format, which `bytes` hold in full. Throws UserError naming `path`, the example, what is
// wrong and what to do; reads nothing outside of `bytes`.
std::vector<MultipleChoice> parse_llmc_examples(std::span<const std::byte> bytes, const std::string& path);
// Examples of JSONL. Throws UserError naming `path` and the line.
std::vector<MultipleChoice> parse_jsonl_examples(std::string_view text, const std::string& path, Tokenizer* tokenizer);

struct HellaSwagResult {
    int64_t examples = 0;
    int64_t correct_by_mean = 0, correct_by_sum = 0;
    bool is_finite = true;  // false: a loss was not; an example with such a loss counts as wrong
    double accuracy() const { return static_cast<double>(correct_by_mean) / static_cast<double>(examples); }
    double sum_accuracy() const { return static_cast<double>(correct_by_sum) / static_cast<double>(examples); }
};

// "hellaswag 0.2650 | acc 0.2510 | 10042 examples"
std::string hellaswag_line(const HellaSwagResult& result);
// {"hellaswag": 0.265, "acc": 0.251, "examples": 10042}
nlohmann::ordered_json hellaswag_json(const HellaSwagResult& result);

class HellaSwag {
  public:
    // Reads and checks the whole file: ids lie below the model's vocabulary, endings fit its context. `key` is the
    // option or the field that names the file, for messages. `tokenizer` may be null for token ids. Throws UserError.
    HellaSwag(const std::string& path, const std::string& key, Tokenizer* tokenizer, const ModelConfig& model);

    // "hellaswag.bin, 10,042 examples"; also of how many endings the context was too long, and lost its beginning.
    std::string describe() const;
    const std::vector<MultipleChoice>& examples() const { return examples_; }

    // Returns, for each example, the sums of its endings' losses. Every ending after its context is a document of its
    // own, and as many as fit are packed into a batch of model.max_tokens() tokens; the ranks take turns with the
    // batches. Asks must_stop() before each turn; nothing if it said so. Changes step->sums.
    std::optional<std::vector<std::vector<double>>> losses(Model* model, BatchBuffers* buffers, const DeviceStep& step,
                                                           Ranks* ranks, const std::function<bool()>& must_stop) const;
    // Returns which endings these sums choose.
    std::optional<HellaSwagResult> measure(Model* model, BatchBuffers* buffers, const DeviceStep& step, Ranks* ranks,
                                           const std::function<bool()>& must_stop) const;

  private:
    std::string path_;
    int64_t context_length_;
    std::vector<MultipleChoice> examples_;
    int64_t num_cut_ = 0;
};

}  // namespace ingot
