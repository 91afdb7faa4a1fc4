// The choice of the algorithm of each GEMM on a CUDA device: it is made once per GEMM, kept, recorded and reused.
//
// For a GEMM that a device has not seen yet, in this order:
//   1. what prefer_matmul_choices() was given: the run's own record before the machine's cache, if the caller gives it
//      first. It is taken if it was written for this GPU, library version and GEMM and if the library accepts it.
//   2. MatmulTuning::timed: the fastest of the library's candidates under load.
//   3. MatmulTuning::first_choice: what the library names first.
// All of them accumulate in fp32 in a fixed order, as kernels/matmul/matmul.h says. Two algorithms may
// differ in the bits, so the same bits need the same choices.
//
// The CPU device has no choices: there these functions do nothing and return nothing.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/matmul/matmul.h"

namespace ingot {

enum class MatmulTuning { first_choice, timed };

enum class MatmulSource { record, cache, timed, first_choice };

struct MatmulChoice {
    std::string gemm;       // all that the choice depends on: text_of()
    std::string algorithm;  // seal_algorithm()
    MatmulSource source = MatmulSource::record;
};

// Timing takes about so long for each GEMM: half of it screens, half compares the candidates that are left. GEMMs whose
// runs take long get up to a quarter of a second more; where even that is short, fewer candidates are looked at, the
// library's first choice always. Loading a kernel for the first time comes on top.
constexpr double kMatmulTuningSeconds = 0.35;

// Sets how GEMMs that are first seen from now on get their algorithm; a device begins with first_choice.
//
// DANGER: timing needs operands that look like the real ones, and runs the GEMM many times. In `timed` mode the
// first call of each GEMM fills a, b, addend and out with random normals: THEIR CONTENTS ARE LOST. So it is for a
// warm-up step on memory whose contents do not matter, and must be set back to first_choice after it. Refuses to run
// during stream capture.
void set_matmul_tuning(const Device&, MatmulTuning);

// Gives choices for GEMMs that have not been seen yet. Of several choices for one GEMM, over all calls, the first
// usable one is taken.
void prefer_matmul_choices(const Device&, const std::vector<MatmulChoice>&, MatmulSource source);

// Returns the choices in use, sorted by GEMM.
std::vector<MatmulChoice> matmul_choices(const Device&);

// Counts where the choices in use come from.
struct MatmulCounts {
    int64_t from_record = 0, from_cache = 0, timed = 0, first_choice = 0;
    // Preferred choices that cannot be taken: damaged, written for another GPU or library version, or, once their
    // GEMM was seen, not accepted by the library.
    int64_t refused = 0;
    double tuning_seconds = 0;
};
MatmulCounts matmul_counts(const Device&);

// Returns the GPU and library version that a choice holds for, "NVIDIA H100 80GB HBM3, cuBLASLt 13.1.0"; "" on the CPU.
std::string matmul_machine(const Device&);

// ---- Keys and texts of choices; they need no device ----

// A key has all that the choice of an algorithm depends on. Strides are those of rows, in elements; alignments count up
// to the 256 bytes that cudaMalloc gives.
struct GemmKey {
    int64_t M, N, K, out_stride, a_stride, b_stride, addend_stride;
    uint32_t out_alignment, a_alignment, b_alignment, addend_alignment;
    DType dtype, b_dtype, out_dtype;
    bool a_transposed, b_transposed, adds, in_place, has_bias, fast_accumulation;
    bool operator==(const GemmKey&) const = default;
};
GemmKey key_of(const Gemm&);

// Returns "bf16 65536x2304x768 nt to bf16, strides 768 768 2304, align 256 256 256": M x N x K, n or t for a and b.
// Strides and alignments are those of a, b, out and the addend; "with bias" and "fast" stand before them. Where a and b
// are of two types both are named: "e5m2*e4m3". Keys that differ have texts that differ.
std::string text_of(const GemmKey&);

// cuBLASLt's description of an algorithm, which may be stored and used again with the same version of the library.
using MatmulAlgorithm = std::array<uint8_t, 64>;

// Returns the algorithm in hexadecimal, with a checksum over it, the machine and the GEMM, so that a text that was
// damaged or written for another GPU, library version or GEMM is rejected before the library sees it.
std::string seal_algorithm(const std::string& machine, const std::string& gemm, const MatmulAlgorithm&);
bool unseal_algorithm(const std::string& machine, const std::string& gemm, const std::string& text,
                      MatmulAlgorithm* algorithm);

}  // namespace ingot
