#include "src/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kernels/core/check.h"
#include "src/files.h"

namespace ingot {

RunFolder::RunFolder(const Config& config) : path_(config.run_dir), lock_(-1) {
    std::error_code error;
    std::filesystem::create_directories(path_ + "/checkpoints", error);
    REQUIRE(!error, "cannot create the run folder ", path_, ": ", error.message(),
            ": set run_dir to a folder that can be");
    const std::string file = path_ + "/lock";
    lock_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    REQUIRE(lock_ >= 0, "cannot open ", file, ": ", std::strerror(errno));
    if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
        close(lock_);
        throw UserError(join("another process trains in ", path_, ": wait for it, or choose another name or run_dir"));
    }
}

RunFolder::~RunFolder() {
    close(lock_);
}

void RunFolder::write_config(const Config& config) const {
    const std::string text = config_to_json(config).dump(2) + "\n", path = path_ + "/config.json";
    OutputFile file(path + ".tmp");
    file.write(text.data(), text.size());
    file.sync_and_close();
    std::filesystem::rename(path + ".tmp", path);
}

}  // namespace ingot
