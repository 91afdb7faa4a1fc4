#include "src/device_choice.h"

namespace ingot {

ChosenDevice choose_device(const std::string& wanted, const char* task) {
    if (wanted == "cpu") return {Device::cpu(), ""};
    if (wanted == "cuda") {
        require_cuda("--device cuda");
        throw UserError(join("--device cuda: this version cannot ", task,
                             " on the GPU yet (not every op has its kernel): use --device cpu"));
    }
    REQUIRE(wanted == "auto", "--device is ", wanted, ": use auto, cpu or cuda");
    std::string why;
    if (Device::num_cuda_devices(&why) > 0) why = "the GPU is not used yet: not every op has its kernel";
    return {Device::cpu(), why};
}

void require_cuda(const std::string& option) {
    std::string why;
    REQUIRE(Device::num_cuda_devices(&why) > 0, option, ": no CUDA device: ", why, ": use --device cpu");
}

}  // namespace ingot
