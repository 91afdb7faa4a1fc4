// Export as GGUF, the file format of llama.cpp.
#pragma once

#include <string>

#include "src/checkpoint/checkpoint.h"

namespace ingot {

// Writes FILE in full or not at all; a file that is there is refused. Throws UserError for what GGUF's architectures
// cannot express, with the reason.
void export_gguf(const Checkpoint& checkpoint, const std::string& file, DType dtype);

}  // namespace ingot
