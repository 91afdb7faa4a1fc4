#include "src/export_huggingface.h"

namespace ingot {

void export_huggingface(const Checkpoint& checkpoint, const std::string&, DType) {
    throw UserError(join(checkpoint.folder, ": --format hf is not there yet"));
}

}  // namespace ingot
