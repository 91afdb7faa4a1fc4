#include "src/train/training_data.h"

#include <algorithm>
#include <cstdio>

#include "kernels/core/check.h"
#include "src/base/text.h"
#include "src/data/host_batch.h"

namespace ingot {

namespace {

// A dataset is called what the config calls it.
std::string name_of(const std::vector<DataEntry>& entries) {
    std::string name;
    for (const DataEntry& entry : entries) name += (name.empty() ? "" : ", ") + entry.path;
    return name;
}

std::vector<std::vector<DataEntry>> datasets_of(const std::vector<DataEntry>& entries) {
    if (entries.empty() || !entries[0].weight) return {entries};
    std::vector<std::vector<DataEntry>> datasets;
    for (const DataEntry& entry : entries) datasets.push_back({entry});
    return datasets;
}

// Almost always the first row has one.
bool has_target(const ValidationRows& rows) {
    HostBatch batch;
    for (int64_t row = 0; row < rows.num_rows(); ++row) {
        fill_batch(rows, static_cast<uint64_t>(row), 1, 1, &batch);
        if (std::any_of(batch.targets.begin(), batch.targets.end(), [](int32_t target) { return target >= 0; }))
            return true;
    }
    return false;
}

}  // namespace

CorpusOptions corpus_options(const Config& config, const Folder* run) {
    return {.vocab_size = config.model.vocab_size,
            .eot_token = config.data.eot_token.value_or(-1),
            .eot_side = config.data.eot,
            .run = run};
}

TrainingData::TrainingData(const Config& config, const Folder* run) : mask_documents_(config.data.mask_documents) {
    const int64_t T = config.model.context_length;
    const uint64_t seed = static_cast<uint64_t>(config.seed);
    const std::vector<std::vector<DataEntry>> entries = datasets_of(config.data.train);
    std::vector<double> weights;
    for (const std::vector<DataEntry>& dataset : entries)
        weights.push_back(dataset.size() == 1 ? dataset[0].weight.value_or(1) : 1);
    const std::vector<int64_t> shares = blend_shares(weights);
    std::vector<BlendedRows::Dataset> datasets;
    for (size_t d = 0; d < entries.size(); ++d) {
        const std::string key = entries.size() == 1 ? "data.train" : join("data.train[", d, "]");
        REQUIRE(shares[d] > 0, key, " has a weight of ", weights[d], ", which is less than one of ", kBlendRows,
                " rows: raise its weight, or leave it out");
        corpora.push_back(std::make_unique<Corpus>(entries[d], key, corpus_options(config, run)));
        // Each dataset has orders of its own, also where two are the same files.
        datasets.push_back({name_of(entries[d]), shares[d],
                            DatasetRows::make(*corpora[d], config.data, T, seed + static_cast<uint64_t>(d))});
    }
    train = std::make_unique<BlendedRows>(std::move(datasets), seed);
    if (config.data.val.empty()) return;
    val_corpus = std::make_unique<Corpus>(config.data.val, "data.val", corpus_options(config, run));
    val = std::make_unique<ValidationRows>(*val_corpus, config.data, T, config.eval.tokens);
    REQUIRE(has_target(*val),
            "data.val holds nothing to predict: every document in it is a single token, or its mask "
            "leaves none: add text, or set data.val to [] for no validation");
    for (const std::unique_ptr<Corpus>& corpus : corpora)
        for (const std::string& file : shared_files(*corpus, *val_corpus))
            print_warning(join(file, " is in data.train and in data.val: the validation loss will be too good"));
}

void TrainingData::require_targets() const {
    for (const std::unique_ptr<Corpus>& corpus : corpora)
        REQUIRE(corpus->has_target(mask_documents_), corpus->key(),
                " holds nothing to predict: every document in it is a single token, or its mask leaves none: add text, "
                "or check the mask");
}

int64_t TrainingData::epoch_tokens() const {
    return train->datasets()[0].rows->epoch_tokens();
}

std::string TrainingData::describe() const {
    std::string text;
    for (const BlendedRows::Dataset& dataset : train->datasets()) {
        text += "data: " + dataset.rows->corpus().describe();
        if (train->datasets().size() > 1)
            text += join(", ", dataset.share, " of ", kBlendRows, " rows (", excerpt(dataset.name, 200), ")");
        text += "\n";
    }
    if (val_corpus) text += "validation: " + val_corpus->describe() + "\n";
    return text;
}

BlendState TrainingData::state(int64_t rows_consumed) const {
    BlendState state = train->state(static_cast<uint64_t>(rows_consumed));
    if (val_corpus) state.validation = val_corpus->fingerprint();
    return state;
}

std::vector<std::string> TrainingData::resume(const BlendState& state, int64_t rows_consumed) {
    std::vector<std::string> lines = train->resume(state, static_cast<uint64_t>(rows_consumed));
    if (state.datasets.empty())
        lines.push_back("data.train cannot be compared: the checkpoint does not say what it held");
    if (!val_corpus) return lines;
    const std::string change = fingerprint_change(state.validation, val_corpus->fingerprint());
    if (!change.empty()) lines.push_back("data.val " + change);
    return lines;
}

void TrainingData::take_fingerprints() const {
    for (const std::unique_ptr<Corpus>& corpus : corpora) corpus->fingerprint();
    if (val_corpus) val_corpus->fingerprint();
}

std::vector<std::string> TrainingData::sampled() const {
    std::vector<std::string> names;
    for (const std::unique_ptr<Corpus>& corpus : corpora)
        if (!corpus->fingerprint().is_whole()) names.push_back(corpus->key());
    if (val_corpus && !val_corpus->fingerprint().is_whole()) names.push_back(val_corpus->key());
    return names;
}

std::string TrainingData::describe_blend(int64_t rows_consumed) const {
    if (train->datasets().size() == 1) return "";
    std::string text;
    for (const std::string& line : train->describe(static_cast<uint64_t>(rows_consumed)))
        text += "data: " + line + "\n";
    return text;
}

std::vector<const Corpus*> TrainingData::unread() const {
    std::vector<const Corpus*> result;
    if (val_corpus && !val_corpus->is_read()) result.push_back(val_corpus.get());
    for (const std::unique_ptr<Corpus>& corpus : corpora)
        if (!corpus->is_read()) result.push_back(corpus.get());
    return result;
}

}  // namespace ingot
