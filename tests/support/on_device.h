// The tests of an op: the same cases run on every device of this build, in every type that ops compute in there, and
// are compared with the definition, which each test writes down in double precision.
//
//     INGOT_ON_EACH_DEVICE(Swiglu);
//     TEST_P(Swiglu, Shapes) {
//         for (const DType dtype : dtypes()) check(device(), dtype, {.N = 3, .F = 5});
//     }
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/finite_difference.h"
#include "tests/support/tensors.h"

namespace ingot::test {

std::vector<DeviceKind> device_kinds();  // of this build

class OnDevice : public testing::TestWithParam<DeviceKind> {
  protected:
    OnDevice();
    void SetUp() override;  // skips the test, and says why, where there is no such device
    const Device& device() const { return *device_; }
    bool is_cuda() const { return GetParam() == DeviceKind::cuda; }
    std::vector<DType> dtypes() const;  // CPU: fp64, fp32; CUDA: fp32, bf16, fp16
    // A kernel on CUDA takes other ways in large tensors; the CPU's loops do not, and skip them to save time.
    bool skips(int64_t num_elements) const { return !is_cuda() && num_elements > 30000; }
    // The CPU adds up a row in one chain where the compiler does not vectorize it. The rounding of such a sum grows
    // with the row, beyond the bounds of a few ulps: long rows are CUDA's.
    bool skips_row(int64_t width) const { return !is_cuda() && width > 512; }

  private:
    std::string why_;
    std::shared_ptr<Device> device_;
};

#define INGOT_ON_EACH_DEVICE(suite)                                                               \
    class suite : public OnDevice {};                                                             \
    INSTANTIATE_TEST_SUITE_P(On, suite, testing::ValuesIn(device_kinds()), [](const auto& info) { \
        return std::string(info.param == DeviceKind::cpu ? "cpu" : "cuda");                       \
    })

// A tensor that an op wrote, or what it should have written.
struct Output {
    // The unit in which tolerances on the CPU are given.
    static double unit(DType dtype) { return dtype == DType::f64 ? 0x1p-53 : 0x1p-24; }
    std::string name;
    DType dtype;  // in which the device stored it
    std::vector<double> values;
    double slack = 0;  // what the relative error may be beyond the tolerance, where the run that wrote it says so
};
using Outputs = std::vector<Output>;
const std::vector<double>& values_of(const Outputs& outputs, const std::string& name);

// Compares what `run(device, dtype)` gives with `exact`, the definition in double. The tolerance of the relative L2
// error is `ulps` units of 2^-53 or 2^-24 on the CPU, and on CUDA precision_bound(), whose plain version is the CPU's
// fp32. Returns what the run gave.
using Run = std::function<Outputs(const Device&, DType)>;
Outputs check_outputs(const Device& device, DType dtype, double ulps, const Outputs& exact, const Run& run);
// The same for what a run gave, and with the plain version, which no run on the CPU needs.
void check_outputs(const Device& device, DType dtype, double ulps, const Outputs& exact, const Outputs& plain,
                   const Outputs& actual);

// The same bits every time: with one, two and three threads on the CPU, twenty times on CUDA.
void check_same_bits(const Device& device, DType dtype, const Run& run);

// function(), with so many OpenMP threads.
void with_threads(int num_threads, const std::function<void()>& function);

// Checks gradients against finite differences of `loss` in double: input number i lies in *values, and the loss reads
// it there.
struct HostInput {
    std::string name;
    std::vector<double>* values;
    std::vector<double> gradient;
};
void check_host_gradients(const std::function<double()>& loss, const std::vector<HostInput>& inputs);
double dot(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace ingot::test
