#include "src/commands/show_rows.h"

#include <algorithm>

#include "kernels/core/check.h"
#include "src/base/output.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/train/training_data.h"

namespace ingot {

namespace {

// Returns "3, 7-9": the places in [begin, end) that have no target.
std::string ignored_places(const ShownRow& row, int64_t begin, int64_t end) {
    std::string text;
    for (int64_t i = begin; i < end; ++i) {
        if (row.targets[static_cast<size_t>(i)] >= 0) continue;
        const int64_t first = i;
        while (i + 1 < end && row.targets[static_cast<size_t>(i + 1)] < 0) ++i;
        text += join(text.empty() ? "" : ", ", first);
        if (i > first) text += join("-", i);
    }
    return text;
}

// Returns the text of a token, or its id if it has none.
std::string text_of(int32_t id, const Tokenizer* tokenizer) {
    const std::string text = tokenizer != nullptr ? std::string(tokenizer->bytes_of(id)) : "";
    return text.empty() ? join("<", id, ">") : text;
}

std::string body(const ShownRow& row, int64_t begin, int64_t end, const Tokenizer* tokenizer) {
    constexpr int64_t kIdsInLine = 16;
    std::string text;
    for (int64_t i = begin; i < end; ++i) {
        const int32_t id = row.tokens[static_cast<size_t>(i)];
        if (tokenizer != nullptr)
            text += text_of(id, tokenizer);
        else
            text += join(i == begin ? "" : (i - begin) % kIdsInLine == 0 ? "\n" : " ", id);
    }
    std::string lines = "  | ";
    for (const char c : printable(text)) {
        lines += c;
        if (c == '\n') lines += "  | ";
    }
    return lines + "\n";
}

}  // namespace

std::string describe_row(const ShownRow& row, const Tokenizer* tokenizer) {
    const auto T = static_cast<int64_t>(row.tokens.size());
    std::string text;
    for (size_t d = 0; d < row.document_starts.size(); ++d) {
        const int64_t begin = row.document_starts[d];
        const int64_t end = d + 1 < row.document_starts.size() ? row.document_starts[d + 1] : T;
        const auto at = [](const std::vector<int32_t>& values, int64_t i) { return values[static_cast<size_t>(i)]; };
        const std::string ignored = ignored_places(row, begin, end);
        text += join("document ", d + 1, ": tokens ", begin, " to ", end - 1, ", positions ", at(row.positions, begin),
                     " to ", at(row.positions, end - 1), ", ",
                     ignored.empty() ? "every token has a target" : "no target at " + ignored, "\n");
        text += body(row, begin, end, tokenizer);
        for (int64_t i = begin; i < end; ++i) {
            const int32_t target = at(row.targets, i);
            if (target >= 0 && (i + 1 == T || target != at(row.tokens, i + 1)))
                text += join("  the target at ", i, " is ", printable_line(text_of(target, tokenizer)), "\n");
        }
    }
    return text;
}

int show_rows(const ShowRowsOptions& options) {
    const Config config = read_config(options.config_file, options.overrides);
    std::unique_ptr<Tokenizer> tokenizer;
    if (!config.data.tokenizer.empty()) tokenizer = open_tokenizer(config.data.tokenizer);
    const TrainingData data(config);
    std::fprintf(stderr, "%s", data.describe().c_str());
    const auto T = static_cast<size_t>(config.model.context_length);
    ShownRow shown = {std::vector<int32_t>(T), std::vector<int32_t>(T), std::vector<int32_t>(T), {}};
    for (uint64_t row = options.first_row; row < options.first_row + static_cast<uint64_t>(options.num_rows); ++row) {
        data.train->fill(row,
                         {shown.tokens.data(), shown.targets.data(), shown.positions.data(), &shown.document_starts});
        const auto num_targets =
            std::count_if(shown.targets.begin(), shown.targets.end(), [](int32_t target) { return target >= 0; });
        std::string source;
        if (data.train->datasets().size() > 1) {
            const BlendedRows::Source from = data.train->source(row);
            source = join(" (row ", from.row, " of ", data.train->datasets()[from.dataset].name, ")");
        }
        write_output(join("row ", row, source, ": ", counted(config.model.context_length, "token"), ", ",
                          counted(static_cast<int64_t>(shown.document_starts.size()), "document"), ", ",
                          counted(num_targets, "target"), "\n", describe_row(shown, tokenizer.get())));
    }
    return kExitDone;
}

}  // namespace ingot
