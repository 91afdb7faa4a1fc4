// manifest.json of a checkpoint: what the checkpoint is, and the checksums of its files and of itself.
//
// Its last key, "sha256", is the SHA-256 of all bytes that stand before that key's opening quote, so that any damage to
// the manifest is found, and through the files' checksums any damage to them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "src/checksum.h"

namespace ingot {

constexpr int kCheckpointFormatVersion = 2;

// The text of a manifest, sealed with its own checksum.
std::string manifest_text(const nlohmann::ordered_json& manifest);

// A manifest that cannot be trusted, or a file that is not what the manifest says: the checkpoint is passed over. Other
// errors (a format that this program does not read) are plain UserErrors.
class DamagedCheckpoint : public UserError {
  public:
    using UserError::UserError;
};

// Reads and checks FOLDER/manifest.json. Throws DamagedCheckpoint, or UserError if it is whole and of another format
// version.
nlohmann::ordered_json read_manifest(const std::string& folder);

nlohmann::ordered_json to_json(const std::vector<FileRecord>& files);

// Reads every file that the manifest lists and compares sizes and checksums. Throws DamagedCheckpoint.
void verify_files(const std::string& folder, const nlohmann::ordered_json& manifest);

}  // namespace ingot
