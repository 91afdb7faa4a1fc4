#include "src/matmul_cache.h"

#include <unistd.h>

#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "src/files.h"
#include "src/text.h"

namespace ingot {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

// A thousand models' products fill a tenth of it.
constexpr std::uintmax_t kLargestCache = 64 << 20;

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
    REQUIRE(!error, error.message());
    REQUIRE(fs::is_regular_file(status), "it is not a file");
    const std::uintmax_t bytes = fs::file_size(path, error);
    REQUIRE(!error, error.message());
    REQUIRE(bytes <= kLargestCache, "it has ", bytes, " bytes");
    std::ifstream stream(path, std::ios::binary);
    REQUIRE(stream, std::strerror(errno));
    std::ostringstream buffer;
    buffer << stream.rdbuf();
    // No deeper than it is written: what is thousands deep would end the stack.
    bool is_deep = false;
    const auto callback = [&](int depth, ordered_json::parse_event_t, ordered_json&) {
        is_deep = is_deep || depth > 3;
        return !is_deep;
    };
    const ordered_json root = ordered_json::parse(buffer.str(), callback, false);
    REQUIRE(!is_deep && root.is_object() && root.contains("machine") && root.contains("choices"),
            "it is damaged, or no cache of algorithms");
    REQUIRE(root["machine"] == machine, "it was written for another GPU or library version");
    return matmul_choices_from_json(root["choices"]);
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
        *note = printable_line(join("the cache of product algorithms ", path, " is not used: ", fault.what()));
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
        *note = "the choice of product algorithms is not kept for later runs: neither XDG_CACHE_HOME nor HOME is set";
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
        *note = printable_line(join("the choice of product algorithms is not kept for later runs: cannot write ", path,
                                    ": ", fault.what()));
    }
}

ordered_json matmul_choices_to_json(const std::vector<MatmulChoice>& choices) {
    ordered_json object = ordered_json::object();
    for (const MatmulChoice& choice : choices) object[choice.product] = choice.algorithm;
    return object;
}

std::vector<MatmulChoice> matmul_choices_from_json(const ordered_json& object) {
    std::vector<MatmulChoice> choices;
    if (!object.is_object()) return choices;
    for (const auto& [product, algorithm] : object.items())
        if (algorithm.is_string()) choices.push_back({product, algorithm.get<std::string>(), MatmulSource::record});
    return choices;
}

}  // namespace ingot
