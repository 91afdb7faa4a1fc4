// `./train export` writes a checkpoint's model in the formats of other programs.
#pragma once

#include <string>

#include "kernels/core/dtype.h"
#include "kernels/core/tensor.h"
#include "src/base/files.h"

namespace ingot {

enum class ExportFormat { huggingface, gguf };

struct ExportOptions {
    std::string checkpoint;  // a step folder or a run folder
    ExportFormat format = ExportFormat::huggingface;
    std::string output;         // hf: a folder that does not exist yet; gguf: a file
    DType dtype = DType::bf16;  // of the matrices: f32, bf16 or f16
};

// Writes the model, and prints on stderr what was written. Returns the exit code. Throws Error, also after a signal
// that asks to stop, and then leaves nothing behind.
int export_model(const ExportOptions& options);

// Writes the elements of `source` (fp32, contiguous, on the CPU) in pieces, each rounded to nearest even. Throws
// UserError naming `name` for a value beyond the range of fp16, and Error after a signal that asks to stop, so that
// the caller removes the file.
void write_rounded(OutputFile* file, const Tensor& source, DType dtype, const std::string& name);

}  // namespace ingot
