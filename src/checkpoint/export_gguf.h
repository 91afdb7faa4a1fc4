// Exports to GGUF, the file format of llama.cpp.
#pragma once

#include <string>

#include "src/checkpoint/checkpoint.h"

namespace ingot {

// Writes FILE in full or not at all; refuses to overwrite a file. Throws UserError with the reason if GGUF's
// architectures cannot express the model.
void export_gguf(const Checkpoint& checkpoint, const std::string& file, DType dtype);

}  // namespace ingot
