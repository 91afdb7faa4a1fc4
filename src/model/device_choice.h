// The choice of the device that a command runs on, and its reason: one place for training, evaluation, generation and
// `./train info`.
#pragma once

#include <string>

#include "kernels/core/device.h"
#include "src/config/config.h"

namespace ingot {

struct ChosenDevice {
    Device device;
    std::string reason;  // for "device: CPU (reason)"; empty if it was asked for
};

// `wanted`: auto (a GPU if there is one), cpu or cuda. Throws UserError with the reason if there is no such device.
// `gpu`: which of several.
ChosenDevice choose_device(const std::string& wanted, int gpu = 0);

// Returns the type of activations and GEMMs: on CUDA the one that the run asks for (auto: bf16), on the CPU fp32, where
// a run that was trained in a 16-bit type can be evaluated too. In fp8 all but the layers' GEMMs of training is bf16.
DType compute_type(Precision precision, const Device& device);

// Throws UserError with the reason unless a GPU can be used by this build on this machine. `option`: what asks for it,
// where --device cpu is another choice.
void require_cuda(const std::string& option);
// The GPU of a program that measures nothing else. Throws UserError with the reason if there is none.
Device gpu_to_measure(const std::string& program);

}  // namespace ingot
