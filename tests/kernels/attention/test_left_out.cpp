// Attention left out, without a GPU; test_left_out_cuda.cpp has the rest.
//
// Seen to catch: the device not looked at.
#include "kernels/attention/left_out.h"
#include "tests/support/tensors.h"

namespace ingot::test {

TEST(AttentionLeftOut, RefusesTheCpu) {
    const Device cpu = Device::cpu();
    const Buffer out(cpu, DType::f32, {2, 2, 4}), v(cpu, DType::f32, {2, 1, 4});
    EXPECT_THROW(attention_left_out_forward(cpu, {.out = out, .v = v}), Error);
}

}  // namespace ingot::test
