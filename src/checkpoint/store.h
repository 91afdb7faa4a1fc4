// The checkpoints of a run folder: their names, and which of them a run counts, keeps and removes.
//
// A run counts as its own what has its id in the manifest, is whole, and is of a step that it has reached. Everything
// else that stands among its checkpoints (a copy, another run's, a damaged or an empty folder) is neither counted nor
// removed. Newer ones, which a run meets when it goes on from an older one, are renamed.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/checkpoint/manifest.h"
#include "src/checkpoint/run_folder.h"

namespace ingot {

// "step-00001000".
std::string step_name(int64_t step);
// Returns whether a name is that of a committed checkpoint; step-00001000.tmp-... is not.
bool is_step_name(const std::string& name);
// "RUN_DIR/checkpoints".
std::string checkpoints_of(const std::string& run_dir);
// The paths of the committed checkpoints of a run folder, oldest first.
std::vector<std::string> list_checkpoints(const std::string& run_dir);

class CheckpointStore {
  public:
    // The folder outlives the store. A store is used by one thread at a time. Throws as file_failed() does.
    explicit CheckpointStore(const RunFolder& folder);

    // Returns the id that tells the checkpoints of this run from those of others; empty for a run that an older version
    // began.
    const std::string& run_id() const { return run_id_; }
    // Returns whether the folder of a checkpoint is one of this run folder's.
    bool holds(const std::string& checkpoint) const { return !name_of(checkpoint).empty(); }
    // Says that the run goes on from this checkpoint of its own folder, which was verified.
    void go_on_from(const std::string& checkpoint, const Manifest& manifest);
    // "/home/me/runs/NAME/checkpoints/step-00001000", where the folder is now.
    std::string place_of(int64_t step) const;

    // Removes what killed runs left behind.
    void remove_unfinished() const;
    // Takes the checkpoints of later steps out of the run: they are renamed, not removed. Returns their new paths.
    std::vector<std::string> set_aside_after(int64_t step) const;

    // A folder for the files of a checkpoint that is being written.
    class Draft {
      public:
        Draft(const RunFolder& run, int64_t step);
        // Removes what was not committed.
        ~Draft();
        Draft(const Draft&) = delete;
        Draft& operator=(const Draft&) = delete;
        const Folder& folder() const { return folder_; }

      private:
        friend class CheckpointStore;
        int64_t step_;
        Folder checkpoints_;
        std::string name_;
        Folder folder_;
        bool is_committed_ = false;
    };
    const RunFolder& run() const { return run_; }
    // Makes it the checkpoint of its step. What had that name is set aside; returns its new path, or an empty text.
    std::string commit(Draft* draft);
    // Removes, of the run's own checkpoints up to `step`, all but the newest `keep` and those at multiples of
    // `keep_every` (0: none is kept for good).
    void prune(int64_t step, int64_t keep, int64_t keep_every);

  private:
    struct FileStamp {
        ino_t inode;
        off_t bytes;
        int64_t mtime_ns;
        bool operator==(const FileStamp&) const = default;
    };
    using Stamps = std::map<std::string, FileStamp>;
    static Stamps stamps_of(const Folder& checkpoint);
    std::string name_of(const std::string& checkpoint) const;
    bool is_own_and_whole(const Folder& checkpoints, const std::string& name);

    const RunFolder& run_;
    std::string run_id_;
    std::map<std::string, Stamps> whole_;  // what was written, verified or looked through, as it was then
};

}  // namespace ingot
