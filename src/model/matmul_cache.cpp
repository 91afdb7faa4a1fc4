#include "src/model/matmul_cache.h"

#include <unistd.h>

#include <atomic>
#include <cctype>
#include <cstdlib>
#include <filesystem>

#include "src/base/files.h"
#include "src/base/json_text.h"
#include "src/base/text.h"

namespace ingot {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

// The GEMMs of a thousand models fill a tenth of these bytes.
constexpr JsonLimits kCacheLimits = {
    .max_bytes = size_t{64} << 20, .max_depth = 3, .advice = "it is damaged, or no cache of algorithms"};

// The XDG Base Directory Specification: a path that is not absolute is to be ignored.
std::string cache_folder() {
    const auto absolute = [](const char* name) {
        const char* const value = std::getenv(name);
        return std::string(value != nullptr && value[0] == '/' ? value : "");
    };
    if (const std::string folder = absolute("XDG_CACHE_HOME"); !folder.empty()) return folder + "/ingot";
    if (const std::string home = absolute("HOME"); !home.empty()) return home + "/.cache/ingot";
    return "";
}

// The choices of a cache; throws UserError with what is wrong with it. No file is an empty cache.
std::vector<MatmulChoice> read(const std::string& path, const std::string& machine) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found) return {};
    const nlohmann::json root = read_json_file(path, kCacheLimits);
    REQUIRE(root.is_object() && root.contains("machine") && root.contains("choices"), kCacheLimits.advice);
    REQUIRE(root.at("machine") == machine, "it was written for another GPU or library version");
    return matmul_choices_from_json(root.at("choices"));
}

}  // namespace

std::string matmul_cache_path(const std::string& machine) {
    const std::string folder = cache_folder();
    if (folder.empty() || machine.empty()) return "";
    std::string name;
    for (const char c : machine) {
        const bool is_plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.';
        if (is_plain)
            name += c;
        else if (!name.empty() && name.back() != '-')
            name += '-';
    }
    return folder + "/matmul-" + name + ".json";
}

std::vector<MatmulChoice> read_matmul_cache(const std::string& machine, std::string* note) {
    note->clear();
    const std::string path = matmul_cache_path(machine);
    if (path.empty()) return {};
    try {
        std::vector<MatmulChoice> choices = read(path, machine);
        for (MatmulChoice& choice : choices) choice.source = MatmulSource::cache;
        return choices;
    } catch (const std::exception& fault) {
        *note = excerpt(join("the cache of GEMM algorithms ", path, " is not used: ", fault.what()), kLongestMessage);
        return {};
    }
}

void write_matmul_cache(const std::string& machine, const std::vector<MatmulChoice>& choices, std::string* note) {
    note->clear();
    std::vector<MatmulChoice> timed;
    for (const MatmulChoice& choice : choices)
        if (choice.source == MatmulSource::timed) timed.push_back(choice);
    if (timed.empty() || machine.empty()) return;
    const std::string path = matmul_cache_path(machine);
    if (path.empty()) {
        *note = "the choice of GEMM algorithms is not kept for later runs: neither XDG_CACHE_HOME nor HOME is set";
        return;
    }
    static std::atomic<int> num_files{0};
    const std::string temporary = join(path, ".tmp-", getpid(), "-", num_files++);
    try {
        fs::create_directories(fs::path(path).parent_path());
        std::string ignored;
        ordered_json all = matmul_choices_to_json(read_matmul_cache(machine, &ignored));
        all.update(matmul_choices_to_json(timed));
        const ordered_json root = {{"machine", machine}, {"choices", all}};
        const std::string text = root.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
        OutputFile file(temporary);
        file.write(text.data(), text.size());
        file.sync_and_close();
        fs::rename(temporary, path);
    } catch (const std::exception& fault) {
        std::error_code ignored;
        fs::remove(temporary, ignored);
        *note = excerpt(
            join("the choice of GEMM algorithms is not kept for later runs: cannot write ", path, ": ", fault.what()),
            kLongestMessage);
    }
}

ordered_json matmul_choices_to_json(const std::vector<MatmulChoice>& choices) {
    ordered_json object = ordered_json::object();
    for (const MatmulChoice& choice : choices) object[choice.gemm] = choice.algorithm;
    return object;
}

std::vector<MatmulChoice> matmul_choices_from_json(const nlohmann::json& object) {
    std::vector<MatmulChoice> choices;
    if (!object.is_object()) return choices;
    for (const auto& [product, algorithm] : object.items())
        if (algorithm.is_string()) choices.push_back({product, algorithm.get<std::string>(), MatmulSource::record});
    return choices;
}

}  // namespace ingot
