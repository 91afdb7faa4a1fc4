#include "src/export_gguf.h"

namespace ingot {

void export_gguf(const Checkpoint& checkpoint, const std::string&, DType) {
    throw UserError(join(checkpoint.folder, ": --format gguf is not there yet"));
}

}  // namespace ingot
