#include "src/train/hellaswag.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "kernels/attention/attention.h"
#include "kernels/core/check.h"
#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/progress.h"
#include "src/base/text.h"

namespace ingot {

using nlohmann::json;

namespace {

// The training split of HellaSwag has 47 MB.
constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr size_t kMaxEndings = 64;

constexpr int32_t kLlmcMagic = 20240522, kLlmcVersion = 1;
constexpr size_t kHeaderBytes = 1024;
constexpr uint16_t kLlmcStart = 65535;  // before each example

int32_t header_value(std::span<const std::byte> bytes, size_t index) {
    int32_t value = 0;
    std::memcpy(&value, bytes.data() + index * sizeof value, sizeof value);
    return value;
}

bool is_llmc_examples(std::span<const std::byte> bytes) {
    return bytes.size() >= sizeof kLlmcMagic && header_value(bytes, 0) == kLlmcMagic;
}

// The uint16 values of one example, taken in order.
class ExampleReader {
  public:
    ExampleReader(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}
    uint16_t next() {
        REQUIRE(at_ + sizeof(uint16_t) <= bytes_.size(), where_, " is cut short: copy the file again");
        uint16_t value = 0;
        std::memcpy(&value, bytes_.data() + at_, sizeof value);
        at_ += sizeof value;
        return value;
    }
    std::vector<int32_t> tokens(const char* what) {
        const uint16_t count = next();
        REQUIRE(count > 0, where_, " has an empty ", what, ": make the file again");
        std::vector<int32_t> ids;
        for (uint16_t i = 0; i < count; ++i) ids.push_back(next());
        return ids;
    }
    size_t position() const { return at_; }

  private:
    std::span<const std::byte> bytes_;
    std::string where_;
    size_t at_ = 0;
};

int64_t parse_label(const json& value, size_t num_endings, const std::string& where) {
    // A number, or a number as text, as the data set's copies on the web have it.
    int64_t label = -1;
    if (value.is_number_integer()) label = value.get<int64_t>();
    if (value.is_string() && value.get_ref<const std::string&>().size() == 1)
        label = value.get_ref<const std::string&>()[0] - '0';
    REQUIRE(label >= 0 && label < static_cast<int64_t>(num_endings), where, ": label is ", shown(value),
            ", it must be the number of the right ending, from 0 to ", num_endings - 1,
            " (the test split has none: use the validation split)");
    return label;
}

const std::string& text_of(const json& object, const char* key, const std::string& where) {
    const auto at = object.find(key);
    REQUIRE(at != object.end(), where, " has no \"", key,
            "\": give lines with \"ctx\", \"endings\" and \"label\", as in hellaswag_val.jsonl");
    REQUIRE(at->is_string(), where, ": ", key, " is ", shown(*at), ", it must be a string");
    return at->get_ref<const std::string&>();
}

MultipleChoice parse_example(const json& object, const std::string& where, Tokenizer* tokenizer) {
    REQUIRE(object.is_object(), where, " is ", object.type_name(),
            ", it must be an object with \"ctx\", \"endings\" and \"label\"");
    const bool is_split = !object.contains("ctx") && object.contains("ctx_a");
    std::string context = text_of(object, is_split ? "ctx_a" : "ctx", where);
    if (is_split && object.contains("ctx_b") && !text_of(object, "ctx_b", where).empty())
        context += " " + text_of(object, "ctx_b", where);
    MultipleChoice example;
    example.context = tokenizer->encode(context);
    REQUIRE(!example.context.empty(), where, " has an empty context: leave the line out");
    const auto endings = object.find("endings");
    REQUIRE(endings != object.end() && endings->is_array() && endings->size() >= 2 && endings->size() <= kMaxEndings,
            where, ": endings must be a list of 2 to ", kMaxEndings, " texts: mend the line, or leave it out");
    for (const json& ending : *endings) {
        REQUIRE(ending.is_string(), where, ": an ending is ", shown(ending), ", it must be a string");
        example.endings.push_back(tokenizer->encode(" " + ending.get_ref<const std::string&>()));
    }
    REQUIRE(object.contains("label"), where, " has no label: use the validation split, whose answers are known");
    example.label = parse_label(object.at("label"), example.endings.size(), where);
    return example;
}

}  // namespace

std::vector<MultipleChoice> parse_llmc_examples(std::span<const std::byte> bytes, const std::string& path) {
    REQUIRE(bytes.size() >= kHeaderBytes && is_llmc_examples(bytes), path, " has ", bytes.size(),
            " bytes and no whole header of llm.c's evaluation format: copy the file again");
    REQUIRE(header_value(bytes, 1) == kLlmcVersion, path, " has version ", header_value(bytes, 1),
            " of llm.c's evaluation format: make it with version ", kLlmcVersion);
    const int32_t count = header_value(bytes, 2);
    REQUIRE(count > 0, path, " holds ", count, " examples: make it again");
    std::vector<MultipleChoice> examples;
    size_t at = kHeaderBytes;
    for (int32_t index = 0; index < count; ++index) {
        const std::string where = join(path, ": example ", index);
        ExampleReader reader(bytes.subspan(at), where);
        const uint16_t start = reader.next(), size = reader.next(), number = reader.next();
        // The number has 16 bits.
        REQUIRE(start == kLlmcStart && number == static_cast<uint16_t>(index), where,
                " does not begin where the one before it ends: the file is damaged, copy it again");
        MultipleChoice& example = examples.emplace_back();
        example.label = reader.next();
        const uint16_t num_endings = reader.next();
        REQUIRE(num_endings >= 2 && num_endings <= kMaxEndings && example.label < num_endings, where, " has ",
                num_endings, " endings, of which number ", example.label, " is right: make the file again");
        example.context = reader.tokens("context");
        for (uint16_t e = 0; e < num_endings; ++e) example.endings.push_back(reader.tokens("ending"));
        REQUIRE(reader.position() == size, where, " has ", reader.position(), " bytes and says ", size,
                ": the file is damaged, copy it again");
        at += reader.position();
    }
    REQUIRE(at == bytes.size(), path, " is longer than its ", count, " examples: copy it again");
    return examples;
}

std::vector<MultipleChoice> parse_jsonl_examples(std::string_view text, const std::string& path, Tokenizer* tokenizer) {
    constexpr std::string_view kBom = "\xef\xbb\xbf";
    constexpr JsonLimits kLimits = {.advice = "mend the line, or leave it out"};
    if (text.starts_with(kBom)) text.remove_prefix(kBom.size());
    std::vector<MultipleChoice> examples;
    for (int64_t number = 1; !text.empty(); ++number) {
        const std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(text.size(), line.size() + 1));
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        const std::string where = join("line ", number, " of ", path);
        examples.push_back(parse_example(parse_json(line, where, kLimits), where, tokenizer));
    }
    REQUIRE(!examples.empty(), path, " holds no examples: copy it again");
    return examples;
}

std::string hellaswag_line(const HellaSwagResult& result) {
    char text[128];
    std::snprintf(text, sizeof text, "hellaswag %.4f | acc %.4f | %ld examples", result.accuracy(),
                  result.sum_accuracy(), static_cast<long>(result.examples));
    return text;
}

nlohmann::ordered_json hellaswag_json(const HellaSwagResult& result) {
    nlohmann::ordered_json object;
    object["hellaswag"] = result.accuracy();
    object["acc"] = result.sum_accuracy();
    object["examples"] = result.examples;
    return object;
}

HellaSwag::HellaSwag(const std::string& path, const std::string& key, Tokenizer* tokenizer, const ModelConfig& model)
    : path_(path), context_length_(model.context_length) {
    const std::string content = read_file(path, kMaxFileBytes);
    const std::span<const std::byte> bytes = std::as_bytes(std::span(content));
    if (is_llmc_examples(bytes)) {
        examples_ = parse_llmc_examples(bytes, path);
    } else {
        const size_t first = content.find_first_not_of(" \t\r\n\xef\xbb\xbf");
        REQUIRE(first != std::string::npos && content[first] == '{', key, ": ", path,
                " is neither JSONL nor has it llm.c's magic number ", kLlmcMagic,
                ": give hellaswag_val.jsonl, or what llm.c's dev/data/hellaswag.py writes");
        REQUIRE(tokenizer != nullptr, key, ": ", path,
                " is text, and there is no tokenizer that could read it: set data.tokenizer, or give token ids in "
                "llm.c's format");
        examples_ = parse_jsonl_examples(content, path, tokenizer);
    }
    for (size_t i = 0; i < examples_.size(); ++i) {
        const MultipleChoice& example = examples_[i];
        std::vector<const std::vector<int32_t>*> parts = {&example.context};
        for (const std::vector<int32_t>& ending : example.endings) {
            parts.push_back(&ending);
            const auto length = static_cast<int64_t>(ending.size());
            REQUIRE(length <= context_length_, key, ": example ", i, " of ", path, " has an ending of ", length,
                    " tokens, which does not fit model.context_length ", context_length_, ": leave it out");
            num_cut_ += static_cast<int64_t>(example.context.size()) + length - 1 > context_length_;
        }
        for (const std::vector<int32_t>* const part : parts)
            for (const int32_t id : *part)
                REQUIRE(id >= 0 && id < model.vocab_size, key, ": example ", i, " of ", path, " has the token ", id,
                        ", but model.vocab_size is ", model.vocab_size,
                        ": it belongs to another tokenizer; use the JSONL of the data set, or make the file with this "
                        "run's tokenizer");
    }
}

std::string HellaSwag::describe() const {
    std::string text = join(path_, ", ", counted(static_cast<int64_t>(examples_.size()), "example"));
    if (num_cut_ > 0)
        text += join("; ", counted(num_cut_, "ending"), " and the context are longer than model.context_length ",
                     context_length_, ", so that the beginning of the context is left out");
    return text;
}

namespace {

// An ending's losses in a batch: those of the tokens from `begin` on.
struct Placed {
    int64_t example, ending, begin, count;
};

// Fills a batch of documents; what is left of it is padding, in documents that no position table is too short for.
class Packer {
  public:
    Packer(HostBatch* batch, int64_t num_tokens, int64_t context_length)
        : batch_(*batch), context_length_(context_length) {
        batch_.resize(num_tokens);
        batch_.document_starts.clear();
    }

    bool fits(int64_t length) const { return used_ + length <= static_cast<int64_t>(batch_.tokens.size()); }

    // The document `tokens` without its last token, which is only predicted. Its last `num_targets` tokens are targets.
    // Returns where their losses begin.
    int64_t add(std::span<const int32_t> tokens, int64_t num_targets) {
        const auto length = static_cast<int64_t>(tokens.size()) - 1;
        open_document(length);
        const int64_t first = length - num_targets;  // predicts the first target
        for (int64_t i = 0; i < length; ++i) {
            const auto at = static_cast<size_t>(used_ + i);
            batch_.tokens[at] = tokens[static_cast<size_t>(i)];
            batch_.targets[at] = i >= first ? tokens[static_cast<size_t>(i + 1)] : -1;
        }
        used_ += length;
        return used_ - num_targets;
    }

    void finish() {
        const auto N = static_cast<int64_t>(batch_.tokens.size());
        while (used_ < N) {
            const int64_t length = std::min(context_length_, N - used_);
            open_document(length);
            std::fill_n(batch_.tokens.begin() + used_, length, 0);
            std::fill_n(batch_.targets.begin() + used_, length, -1);
            used_ += length;
        }
        fill_document_mask(batch_.mask(), batch_.document_starts, true);
    }

  private:
    void open_document(int64_t length) {
        batch_.document_starts.push_back(used_);
        std::iota(batch_.positions.begin() + used_, batch_.positions.begin() + used_ + length, 0);
    }
    HostBatch& batch_;
    const int64_t context_length_;
    int64_t used_ = 0;
};

// The losses of the last batch, on the host.
std::vector<float> read_losses(const Model& model) {
    const Tensor& losses = model.losses();
    CHECK(losses.dtype == DType::f32, "losses are ", losses.describe());
    std::vector<float> values(static_cast<size_t>(losses.numel()));
    model.device().copy(Tensor::contiguous(values.data(), DType::f32, {losses.numel()}), losses);
    return values;
}

// The ending with the lowest score, the first of equal ones; -1 if one is not finite.
int64_t lowest(const std::vector<double>& scores) {
    if (!std::all_of(scores.begin(), scores.end(), [](double score) { return std::isfinite(score); })) return -1;
    return std::min_element(scores.begin(), scores.end()) - scores.begin();
}

// Adds up what the ranks have: a sum is zero on all ranks but one.
std::vector<std::vector<double>> sum_over(Ranks* ranks, std::vector<std::vector<double>> sums) {
    std::string own;
    for (const std::vector<double>& row : sums)
        own.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(double));
    const std::vector<std::string> all = ranks->exchange(own);
    size_t at = 0;
    for (std::vector<double>& row : sums)
        for (double& sum : row) {
            sum = 0;
            for (const std::string& of_rank : all) {
                double value = 0;
                std::memcpy(&value, of_rank.data() + at, sizeof value);
                sum += value;
            }
            at += sizeof sum;
        }
    return sums;
}

}  // namespace

std::optional<std::vector<std::vector<double>>> HellaSwag::losses(Model* model, BatchBuffers* buffers,
                                                                  const DeviceStep& step, Ranks* ranks,
                                                                  const std::function<bool()>& must_stop) const {
    const int64_t N = model->max_tokens();
    CHECK(N >= context_length_, "a batch of ", N, " tokens holds no document of ", context_length_);
    std::vector<std::vector<double>> sums;  // of each example, of each ending
    for (const MultipleChoice& example : examples_) sums.emplace_back(example.endings.size());
    Progress progress("hellaswag", static_cast<int64_t>(examples_.size()), "examples");
    size_t e = 0, choice = 0;  // the next ending
    for (int64_t batch = 0; e < examples_.size(); ++batch) {
        if (batch % ranks->size() == 0 && must_stop()) return std::nullopt;
        const size_t first = e;
        std::vector<Placed> placed;
        Packer packer(buffers->next(), N, context_length_);
        while (e < examples_.size()) {
            const MultipleChoice& example = examples_[e];
            const std::vector<int32_t>& ending = example.endings[choice];
            std::vector<int32_t> document = example.context;
            document.insert(document.end(), ending.begin(), ending.end());
            const int64_t surplus = static_cast<int64_t>(document.size()) - 1 - context_length_;
            if (surplus > 0) document.erase(document.begin(), document.begin() + surplus);
            if (!packer.fits(static_cast<int64_t>(document.size()) - 1)) break;
            const auto count = static_cast<int64_t>(ending.size());
            placed.push_back(
                {static_cast<int64_t>(e), static_cast<int64_t>(choice), packer.add(document, count), count});
            if (++choice == example.endings.size()) {
                choice = 0;
                ++e;
            }
        }
        packer.finish();
        progress.advance(static_cast<int64_t>(e - first));
        if (batch % ranks->size() != ranks->rank()) continue;
        model->evaluate(buffers->upload(), step.get());
        const std::vector<float> values = read_losses(*model);
        for (const Placed& place : placed) {
            double& sum = sums[static_cast<size_t>(place.example)][static_cast<size_t>(place.ending)];
            for (int64_t i = 0; i < place.count; ++i) sum += values[static_cast<size_t>(place.begin + i)];
        }
    }
    return sum_over(ranks, std::move(sums));
}

std::optional<HellaSwagResult> HellaSwag::measure(Model* model, BatchBuffers* buffers, const DeviceStep& step,
                                                  Ranks* ranks, const std::function<bool()>& must_stop) const {
    const std::optional<std::vector<std::vector<double>>> sums = losses(model, buffers, step, ranks, must_stop);
    if (!sums) return std::nullopt;
    HellaSwagResult result;
    result.examples = static_cast<int64_t>(examples_.size());
    for (size_t i = 0; i < examples_.size(); ++i) {
        const MultipleChoice& example = examples_[i];
        std::vector<double> means = (*sums)[i];
        for (size_t c = 0; c < means.size(); ++c) means[c] /= static_cast<double>(example.endings[c].size());
        const int64_t by_mean = lowest(means);
        result.is_finite = result.is_finite && by_mean >= 0;
        result.correct_by_mean += by_mean == example.label;
        result.correct_by_sum += lowest((*sums)[i]) == example.label;
    }
    return result;
}

}  // namespace ingot
