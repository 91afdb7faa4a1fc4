#include "src/model/device_choice.h"

namespace ingot {

ChosenDevice choose_device(const std::string& wanted, int gpu) {
    if (wanted == "cpu") return {Device::cpu(), ""};
    if (wanted == "cuda") {
        require_cuda("--device cuda");
        return {Device::cuda(gpu), ""};
    }
    REQUIRE(wanted == "auto", "--device is ", wanted, ": use auto, cpu or cuda");
    std::string why;
    if (Device::num_cuda_devices(&why) > 0) return {Device::cuda(gpu), "there is a GPU"};
    return {Device::cpu(), why};
}

DType compute_type(Precision precision, const Device& device) {
    if (device.is_cpu()) return DType::f32;
    switch (precision) {
        case Precision::fp32:
            return DType::f32;
        case Precision::fp16:
            return DType::f16;
        case Precision::automatic:
        case Precision::bf16:
        case Precision::fp8:
            break;
    }
    return DType::bf16;
}

void require_cuda(const std::string& option) {
    std::string why;
    REQUIRE(Device::num_cuda_devices(&why) > 0, option, ": no CUDA device: ", why, ": use --device cpu");
}

Device gpu_to_measure(const std::string& program) {
    std::string why;
    REQUIRE(Device::num_cuda_devices(&why) > 0, program, " measures a GPU: ", why,
            Device::has_cuda() ? ": run it on a machine with a GPU and its driver"
                               : ": configure with -DINGOT_CUDA=ON, and run it on a machine with a GPU");
    return Device::cuda(0);
}

}  // namespace ingot
