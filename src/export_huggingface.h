// Export as a folder that Hugging Face's transformers loads.
#pragma once

#include <string>

#include "src/checkpoint.h"

namespace ingot {

// Writes FOLDER in full or not at all; one that is there is refused. Throws UserError.
void export_huggingface(const Checkpoint& checkpoint, const std::string& folder, DType dtype);

}  // namespace ingot
