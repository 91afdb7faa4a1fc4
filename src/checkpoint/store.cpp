#include "src/checkpoint/store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels/core/check.h"
#include "src/checkpoint/manifest.h"

namespace ingot {

namespace {

constexpr const char* kStepPrefix = "step-";

bool is_number(const std::string& text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

int64_t step_of(const std::string& name) {
    return std::strtoll(name.c_str() + std::string(kStepPrefix).size(), nullptr, 10);
}

// step-00001000.tmp-NONCE-PID, or .tmp-removed-PID: nobody else's folder has such a name.
bool is_unfinished(const std::string& name) {
    const size_t dot = name.find(".tmp-");
    if (dot == std::string::npos || !is_step_name(name.substr(0, dot))) return false;
    const std::string rest = name.substr(dot + 5);
    const size_t dash = rest.find('-');
    if (dash == std::string::npos) return false;
    const std::string nonce = rest.substr(0, dash);
    return (nonce == "removed" || is_number(nonce)) && is_number(rest.substr(dash + 1));
}

int64_t now() {
    return std::chrono::system_clock::now().time_since_epoch().count();
}

std::string new_run_id() {
    std::random_device random;
    char text[17];
    std::snprintf(text, sizeof text, "%08x%08x", random(), random());
    return text;
}

}  // namespace

std::string step_name(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "%s%08ld", kStepPrefix, static_cast<long>(step));
    return name;
}

bool is_step_name(const std::string& name) {
    return name.size() >= 13 && name.rfind(kStepPrefix, 0) == 0 && is_number(name.substr(5));
}

std::string checkpoints_of(const std::string& run_dir) {
    return run_dir + "/" + RunFolder::kCheckpoints;
}

std::vector<std::string> list_checkpoints(const std::string& run_dir) {
    std::vector<std::string> result;
    struct stat info {};
    const std::string path = checkpoints_of(run_dir);
    if (stat(path.c_str(), &info) != 0) return result;
    for (const std::string& name : Folder(path).names()) {
        const std::string folder = path + "/" + name;
        if (is_step_name(name) && stat(folder.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) result.push_back(folder);
    }
    // Numbers of more than eight digits are longer, and later.
    std::sort(result.begin(), result.end(), [](const std::string& a, const std::string& b) {
        return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    return result;
}

CheckpointStore::CheckpointStore(const RunFolder& folder) : run_(folder), run_id_(new_run_id()) {}

// Compares the folder itself, since a path may lead through links. Returns an empty name if it is not here.
std::string CheckpointStore::name_of(const std::string& checkpoint) const {
    struct stat info {};
    if (stat(checkpoint.c_str(), &info) != 0) return "";
    const Folder checkpoints = run_.checkpoints();
    for (const std::string& name : checkpoints.names()) {
        struct stat own {};
        if (!is_step_name(name) || fstatat(checkpoints.descriptor(), name.c_str(), &own, 0) != 0) continue;
        if (own.st_dev == info.st_dev && own.st_ino == info.st_ino) return name;
    }
    return "";
}

void CheckpointStore::go_on_from(const std::string& checkpoint, const Manifest& manifest) {
    run_id_ = manifest.run_id;
    const std::string name = name_of(checkpoint);
    const Folder checkpoints = run_.checkpoints();
    // A checkpoint that is a link to another disk is neither counted nor removed.
    const std::optional<struct stat> info = checkpoints.look_at(name);
    if (info && S_ISDIR(info->st_mode)) whole_[name] = stamps_of(checkpoints.folder(name));
}

std::string CheckpointStore::place_of(int64_t step) const {
    return run_.checkpoints().place() + "/" + step_name(step);
}

void CheckpointStore::remove_unfinished() const {
    const Folder checkpoints = run_.checkpoints();
    for (const std::string& name : checkpoints.names()) {
        if (!is_unfinished(name)) continue;
        try {
            checkpoints.remove(name);
        } catch (const Error&) {}  // it costs space, not the run
    }
}

std::vector<std::string> CheckpointStore::set_aside_after(int64_t step) const {
    std::vector<std::string> moved;
    const Folder checkpoints = run_.checkpoints();
    for (const std::string& name : checkpoints.names()) {
        if (!is_step_name(name) || step_of(name) <= step) continue;
        const std::string aside = join(name, ".set-aside-", now());
        checkpoints.rename(name, aside);
        moved.push_back(checkpoints.path_of(aside));
    }
    return moved;
}

CheckpointStore::Draft::Draft(const RunFolder& run, int64_t step)
    : step_(step),
      checkpoints_(run.checkpoints()),
      name_(join(step_name(step), ".tmp-", now(), "-", getpid())),
      folder_(checkpoints_.folder(name_)) {}

CheckpointStore::Draft::~Draft() {
    if (is_committed_) return;
    try {
        checkpoints_.remove(name_);
    } catch (const Error&) {}  // the next run removes it
}

std::string CheckpointStore::commit(Draft* draft) {
    const Folder& checkpoints = draft->checkpoints_;
    draft->folder_.sync();
    const std::string name = step_name(draft->step_);
    std::string aside;
    if (checkpoints.has(name)) {  // it came while the run was under way, and may be whole
        aside = join(name, ".set-aside-", now());
        checkpoints.rename(name, aside);
    }
    const Stamps stamps = stamps_of(draft->folder_);
    checkpoints.rename(draft->name_, name);
    draft->is_committed_ = true;
    checkpoints.sync();
    whole_[name] = stamps;
    return aside.empty() ? "" : checkpoints.path_of(aside);
}

CheckpointStore::Stamps CheckpointStore::stamps_of(const Folder& checkpoint) {
    Stamps stamps;
    for (const std::string& name : checkpoint.names())
        if (const std::optional<struct stat> info = checkpoint.look_at(name))
            stamps[name] = {info->st_ino, info->st_size,
                            static_cast<int64_t>(info->st_mtim.tv_sec) * 1'000'000'000 + info->st_mtim.tv_nsec};
    return stamps;
}

// Reading all of an older checkpoint at each save would take longer than the save. So its manifest must be sealed and
// its files have their sizes, and from then on nothing of it may have been written to.
bool CheckpointStore::is_own_and_whole(const Folder& checkpoints, const std::string& name) {
    try {
        const std::optional<struct stat> info = checkpoints.look_at(name);
        if (!info || !S_ISDIR(info->st_mode)) return false;
        const Folder checkpoint = checkpoints.folder(name);
        const Stamps stamps = stamps_of(checkpoint);
        if (const auto known = whole_.find(name); known != whole_.end()) return known->second == stamps;
        const Manifest manifest = read_manifest(join("/proc/self/fd/", checkpoint.descriptor()));
        if (manifest.step != step_of(name) || manifest.run_id != run_id_) return false;
        for (const FileRecord& file : manifest.files) {
            const auto stamp = stamps.find(file.name);
            if (stamp == stamps.end() || file.bytes != static_cast<uint64_t>(stamp->second.bytes)) return false;
        }
        whole_[name] = stamps;
        return true;
    } catch (const std::exception&) {
        return false;
    }
}

void CheckpointStore::prune(int64_t step, int64_t keep, int64_t keep_every) {
    const Folder checkpoints = run_.checkpoints();
    std::vector<int64_t> own;
    for (const std::string& name : checkpoints.names()) {
        if (!is_step_name(name) || step_of(name) > step || step_name(step_of(name)) != name) continue;
        if (is_own_and_whole(checkpoints, name)) own.push_back(step_of(name));
    }
    std::sort(own.begin(), own.end());
    for (size_t i = 0; i + static_cast<size_t>(keep) < own.size(); ++i) {
        if (keep_every > 0 && own[i] % keep_every == 0) continue;
        const std::string name = step_name(own[i]);
        try {
            // Renamed first: a kill must not leave half of one.
            const std::string doomed = join(name, ".tmp-removed-", getpid());
            checkpoints.rename(name, doomed);
            checkpoints.remove(doomed);
        } catch (const Error&) {}  // one that cannot be removed costs space, not the run
        whole_.erase(name);
    }
}

}  // namespace ingot
