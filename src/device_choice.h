// Which device a command runs on, and why: one place for training, evaluation, generation and `./train info`.
#pragma once

#include <string>

#include "kernels/core/device.h"

namespace ingot {

struct ChosenDevice {
    Device device;
    std::string reason;  // for "device: CPU (reason)"; empty if it was asked for
};

// `wanted`: auto, cpu or cuda. Throws UserError with the reason if there is no such device, or if it cannot do the work
// (`task`: "train", "evaluate", "generate").
ChosenDevice choose_device(const std::string& wanted, const char* task);

// Throws UserError with the reason unless a GPU can be used by this build on this machine.
void require_cuda(const std::string& option);

}  // namespace ingot
