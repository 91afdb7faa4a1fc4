#include "src/export.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/check.h"
#include "src/checkpoint.h"
#include "src/export_gguf.h"
#include "src/export_huggingface.h"

namespace ingot {

namespace {

constexpr int64_t kPiece = 1 << 20;  // elements rounded at a time

template <typename T, typename Round>
void write_pieces(OutputFile* file, const Tensor& source, Round round) {
    std::vector<T> piece(static_cast<size_t>(std::min(kPiece, source.numel())));
    for (int64_t begin = 0; begin < source.numel(); begin += kPiece) {
        const int64_t count = std::min(kPiece, source.numel() - begin);
        const float* const from = source.get<float>() + begin;
        std::transform(from, from + count, piece.begin(), round);
        file->write(piece.data(), static_cast<size_t>(count) * sizeof(T));
    }
}

}  // namespace

void write_rounded(OutputFile* file, const Tensor& source, DType dtype, const std::string& name) {
    CHECK(source.is_contiguous() && source.dtype == DType::f32, "export: ", name, " is ", source.describe());
    if (dtype == DType::f32) {
        file->write(source.data, static_cast<size_t>(source.bytes()));
    } else if (dtype == DType::bf16) {
        write_pieces<bf16>(file, source, to_bf16);
    } else {
        write_pieces<f16>(file, source, [&](float value) {
            const f16 rounded = to_f16(value);
            REQUIRE(!std::isfinite(value) || std::isfinite(to_float(rounded)), name, " holds ", value,
                    ", which fp16 cannot: export with --dtype bf16 or fp32");
            return rounded;
        });
    }
}

int export_model(const ExportOptions& options) {
    const Checkpoint checkpoint = open_checkpoint(options.checkpoint);
    if (options.format == ExportFormat::huggingface)
        export_huggingface(checkpoint, options.output, options.dtype);
    else
        export_gguf(checkpoint, options.output, options.dtype);
    return kExitDone;
}

}  // namespace ingot
