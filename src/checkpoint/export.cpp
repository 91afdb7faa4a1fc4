#include "src/checkpoint/export.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "kernels/core/check.h"
#include "src/base/output.h"
#include "src/base/output_folder.h"
#include "src/base/signals.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/export_gguf.h"
#include "src/checkpoint/export_huggingface.h"

namespace ingot {

namespace {

constexpr int64_t kPiece = 1 << 20;           // elements that are rounded at a time
constexpr int64_t kWorthThreads = 1 << 16;    // starting threads takes longer than fewer elements
constexpr uint16_t kInfinityOfFp16 = 0x7c00;  // without the sign bit

void end_if_asked() {
    if (stop_signal() == 0) return;
    throw Error(static_cast<ExitCode>(exit_code_of_signal(stop_signal())),
                join("stopped by ", describe_signal(stop_signal()), ": nothing was written"));
}

template <typename T, typename Round>
void round_piece(const float* from, int64_t count, T* to, Round round) {
#pragma omp parallel for if (count >= kWorthThreads)
    for (int64_t i = 0; i < count; ++i) to[i] = round(from[i]);
}

// `check` sees each piece before it is written.
template <typename T, typename Round, typename Check>
void write_pieces(OutputFile* file, const Tensor& source, Round round, Check check) {
    std::vector<T> piece(static_cast<size_t>(std::min(kPiece, source.numel())));
    for (int64_t begin = 0; begin < source.numel(); begin += kPiece) {
        end_if_asked();
        const int64_t count = std::min(kPiece, source.numel() - begin);
        const float* const from = source.get<float>() + begin;
        round_piece(from, count, piece.data(), round);
        check(from, piece.data(), count);
        file->write(piece.data(), static_cast<size_t>(count) * sizeof(T));
    }
}

}  // namespace

void write_rounded(OutputFile* file, const Tensor& source, DType dtype, const std::string& name) {
    CHECK(source.is_contiguous() && source.dtype == DType::f32, "export: ", name, " is ", source.describe());
    if (dtype == DType::f32) {
        for (int64_t begin = 0; begin < source.numel(); begin += kPiece) {
            end_if_asked();
            const int64_t count = std::min(kPiece, source.numel() - begin);
            file->write(source.get<float>() + begin, static_cast<size_t>(count) * sizeof(float));
        }
    } else if (dtype == DType::bf16) {
        write_pieces<bf16>(file, source, to_bf16, [](const float*, const bf16*, int64_t) {});
    } else {
        write_pieces<f16>(file, source, to_f16, [&](const float* from, const f16* rounded, int64_t count) {
            for (int64_t i = 0; i < count; ++i)
                REQUIRE((rounded[i].bits & 0x7fff) != kInfinityOfFp16 || !std::isfinite(from[i]), name, " holds ",
                        from[i], ", which fp16 cannot: export with --dtype bf16 or fp32");
        });
    }
}

int export_model(const ExportOptions& options) {
    // Stdout is unused, and a closed stderr is no reason to leave an incomplete folder behind.
    outlive_the_reader();
    OutputPlace::require_absent(options.output);
    const Checkpoint checkpoint = open_checkpoint(options.checkpoint, false);
    catch_stop_signals();
    if (options.format == ExportFormat::huggingface)
        export_huggingface(checkpoint, options.output, options.dtype);
    else
        export_gguf(checkpoint, options.output, options.dtype);
    return kExitDone;
}

}  // namespace ingot
