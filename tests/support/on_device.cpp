#include "tests/support/on_device.h"

#include <omp.h>

#include <algorithm>
#include <numeric>

namespace ingot::test {

std::vector<DeviceKind> device_kinds() {
    if (Device::has_cuda()) return {DeviceKind::cpu, DeviceKind::cuda};
    return {DeviceKind::cpu};
}

OnDevice::OnDevice() : device_(is_cuda() ? cuda_device(&why_) : std::make_shared<Device>(Device::cpu())) {}

void OnDevice::SetUp() {
    if (!device_) GTEST_SKIP() << "needs a GPU: " << why_;
}

std::vector<DType> OnDevice::dtypes() const {
    if (is_cuda()) return {DType::f32, DType::bf16, DType::f16};
    return {DType::f64, DType::f32};
}

const std::vector<double>& values_of(const Outputs& outputs, const std::string& name) {
    const auto found =
        std::find_if(outputs.begin(), outputs.end(), [&](const Output& output) { return output.name == name; });
    CHECK(found != outputs.end(), "no output is called ", name);
    return found->values;
}

Outputs check_outputs(const Device& device, DType dtype, double ulps, const Outputs& exact, const Run& run) {
    const Outputs actual = run(device, dtype);
    check_outputs(device, dtype, ulps, exact, device.is_cpu() ? Outputs{} : run(Device::cpu(), DType::f32), actual);
    return actual;
}

void check_outputs(const Device& device, DType dtype, double ulps, const Outputs& exact, const Outputs& plain,
                   const Outputs& actual) {
    EXPECT_EQ(actual.size(), exact.size());
    for (const Output& output : actual) {
        const std::vector<double>& expected = values_of(exact, output.name);
        double bound = ulps * Output::unit(dtype);
        if (!device.is_cpu())
            bound = precision_bound(output.dtype, rounded(values_of(plain, output.name), output.dtype), expected);
        EXPECT_TRUE(close(output.values, expected, bound + output.slack)) << output.name;
    }
}

void check_same_bits(const Device& device, DType dtype, const Run& run) {
    const Outputs first = run(device, dtype);
    for (int repeat = 1; repeat < (device.is_cpu() ? 4 : 20); ++repeat) {
        Outputs again;
        if (device.is_cpu())
            with_threads(repeat, [&] { again = run(device, dtype); });
        else
            again = run(device, dtype);
        for (size_t i = 0; i < first.size(); ++i)
            ASSERT_TRUE(same(again[i].values, first[i].values)) << first[i].name << ", repeat " << repeat;
    }
}

void with_threads(int num_threads, const std::function<void()>& function) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(num_threads);
    function();
    omp_set_num_threads(before);
}

void check_host_gradients(const std::function<double()>& loss, const std::vector<HostInput>& inputs) {
    std::vector<Differentiated> tensors;
    for (const HostInput& input : inputs)
        tensors.push_back(
            {input.name,
             Tensor::contiguous(input.values->data(), DType::f64, {static_cast<int64_t>(input.values->size())}),
             input.gradient});
    check_gradients(loss, tensors);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

}  // namespace ingot::test
