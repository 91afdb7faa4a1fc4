#include "src/checkpoint/tensor_files.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "src/base/text.h"
#include "src/checkpoint/manifest.h"

namespace ingot {

namespace {

constexpr const char* kFromTwo = ": was the checkpoint put together from two?";

struct FragmentName {
    std::string name;
    int64_t begin, end;
};

// Returns nothing for what fragment_name() does not write.
std::optional<FragmentName> parse_fragment_name(const std::string& text) {
    const size_t open = text.rfind('['), colon = text.rfind(':');
    if (open == std::string::npos || colon == std::string::npos || colon < open || text.back() != ']')
        return std::nullopt;
    constexpr size_t kMostDigits = 18;  // fewer than 64 bits
    const std::string begin = text.substr(open + 1, colon - open - 1);
    const std::string end = text.substr(colon + 1, text.size() - colon - 2);
    if (begin.size() > kMostDigits || end.size() > kMostDigits) return std::nullopt;
    const FragmentName parsed = {text.substr(0, open), std::strtoll(begin.c_str(), nullptr, 10),
                                 std::strtoll(end.c_str(), nullptr, 10)};
    if (fragment_name(parsed.name, parsed.begin, parsed.end) != text) return std::nullopt;
    return parsed;
}

Tensor shape_of(const Parameter& parameter, const CheckpointPart& part) {
    if (parameter.is_matrix) return Tensor::contiguous(nullptr, DType::f32, {part.rows, parameter.columns});
    return Tensor::contiguous(nullptr, DType::f32, {part.rows * parameter.columns});
}

}  // namespace

std::string fragment_name(const std::string& name, int64_t begin, int64_t end) {
    return join(name, "[", begin, ":", end, "]");
}

TensorFiles::TensorFiles(const std::vector<std::string>& paths, const ParameterTable& table,
                         const std::vector<std::string>& prefixes)
    : paths_(paths) {
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts)
            for (const std::string& prefix : prefixes) entries_[prefix + part.name].shape = shape_of(parameter, part);
    for (size_t file = 0; file < paths_.size(); ++file) {
        files_.emplace_back(paths_[file]);
        for (const std::string& name : files_[file].names()) add(file, name);
    }
    for (auto& [name, entry] : entries_) require_covered(name, &entry);
}

void TensorFiles::add(size_t file, const std::string& name) {
    const Tensor tensor = files_[file].tensor(name);
    const auto fail = [&](const auto&... what) {
        throw DamagedCheckpoint(join(paths_[file], ": ", excerpt(name, 200), what..., kFromTwo));
    };
    if (const auto whole = entries_.find(name); whole != entries_.end()) {
        const Tensor& shape = whole->second.shape;
        if (tensor.describe() != shape.describe())
            fail(" is ", tensor.describe(), ", the model of its manifest has ", shape.describe());
        whole->second.fragments.push_back({0, shape.numel(), tensor.view({tensor.numel()}), file});
        return;
    }
    const std::optional<FragmentName> parsed = parse_fragment_name(name);
    const auto split = parsed ? entries_.find(parsed->name) : entries_.end();
    if (split == entries_.end()) fail(" is no tensor of the model of its manifest");
    const int64_t numel = split->second.shape.numel();
    if (parsed->begin < 0 || parsed->begin >= parsed->end || parsed->end > numel)
        fail(" lies outside the ", numel, " elements that the model of its manifest has");
    if (tensor.dtype != DType::f32 || !tensor.has_shape({parsed->end - parsed->begin}))
        fail(" is ", tensor.describe(), ", which its name does not say");
    split->second.fragments.push_back({parsed->begin, parsed->end, tensor, file});
}

void TensorFiles::require_covered(const std::string& name, Entry* entry) const {
    std::sort(entry->fragments.begin(), entry->fragments.end(),
              [](const Fragment& a, const Fragment& b) { return a.begin < b.begin; });
    const auto fail = [&](const auto&... what) { throw DamagedCheckpoint(join(what..., kFromTwo)); };
    const std::string all = paths_.size() == 1 ? paths_[0] : join(paths_[0], " and its ", paths_.size() - 1, " others");
    if (entry->fragments.empty()) fail(all, ": hold no tensor ", name);
    int64_t end = 0;
    for (const Fragment& fragment : entry->fragments) {
        if (fragment.begin > end) fail(all, ": hold no elements ", end, " to ", fragment.begin - 1, " of ", name);
        if (fragment.begin < end)
            fail(paths_[fragment.file], ": elements ", fragment.begin, " to ", std::min(fragment.end, end) - 1, " of ",
                 name, " stand in another place too");
        end = fragment.end;
    }
    if (end != entry->shape.numel())
        fail(all, ": hold no elements ", end, " to ", entry->shape.numel() - 1, " of ", name);
}

const TensorFiles::Entry& TensorFiles::find(const std::string& name) const {
    const auto found = entries_.find(name);
    CHECK(found != entries_.end(), paths_[0], " has no tensor ", name);
    return found->second;
}

std::vector<std::string> TensorFiles::names() const {
    std::vector<std::string> result;
    for (const auto& [name, entry] : entries_) result.push_back(name);
    return result;
}

Tensor TensorFiles::describe(const std::string& name) const {
    return find(name).shape;
}

Tensor TensorFiles::tensor(const std::string& name, std::vector<float>* memory) const {
    const Entry& entry = find(name);
    Tensor result = entry.shape;
    result.data = entry.fragments[0].tensor.data;
    if (entry.fragments.size() == 1) return result;
    memory->resize(static_cast<size_t>(result.numel()));
    for (const Fragment& fragment : entry.fragments)
        std::memcpy(memory->data() + fragment.begin, fragment.tensor.data,
                    static_cast<size_t>(fragment.tensor.bytes()));
    result.data = memory->data();
    return result;
}

void TensorFiles::read(const std::string& name, int64_t begin, int64_t end,
                       const std::function<void(int64_t, const Tensor&)>& visit) const {
    const Entry& entry = find(name);
    CHECK(begin >= 0 && end <= entry.shape.numel(), name, " has no elements ", begin, " to ", end);
    for (const Fragment& fragment : entry.fragments) {
        const int64_t from = std::max(begin, fragment.begin), to = std::min(end, fragment.end);
        if (from < to) visit(from, fragment.tensor.slice(0, from - fragment.begin, to - fragment.begin));
    }
}

void TensorFiles::require_intact() const {
    for (const SafetensorsFile& file : files_) file.require_intact();
}

}  // namespace ingot
