// RoPE on CUDA against the CPU twin in double precision.
//
// Seen to catch: backward turned forwards; the angles of another position.
#include <cmath>
#include <limits>

#include "kernels/core/rng.h"
#include "kernels/rope.h"
#include "tests/support/tensors.h"

namespace ingot::test {

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr int64_t kTableRows = 1000;

// Heads [begin, begin + H) of a fused (N, all * HS) buffer whose rows have `extra` elements more.
struct Case {
    DType dtype;
    int64_t N, H, HS, begin = 0, all = 0, extra = 0, first_element = 0;
};

void rotate(const Device& device, const Rope& a, bool forward) {
    if (forward)
        rope_forward(device, a);
    else
        rope_backward(device, a);
}

void check(const Device& device, const Case& c, bool forward) {
    const int64_t all = c.all > 0 ? c.all : c.H, row = all * c.HS + c.extra + c.first_element;
    SCOPED_TRACE(join(forward ? "forward " : "backward ", name_of(c.dtype), " N ", c.N, " H ", c.H, " HS ", c.HS,
                      " heads ", c.begin, " of ", all, " extra ", c.extra, " first ", c.first_element));
    std::vector<double> positions(static_cast<size_t>(c.N));
    for (size_t n = 0; n < positions.size(); ++n)
        positions[n] = n == 0 ? kTableRows - 1 : static_cast<double>(random_bits(1, 1, n) % kTableRows);
    const std::vector<double> values = rounded(normals(c.N * row, 2, 1.5), c.dtype);
    const auto view = [&](const Tensor& fused) {
        return fused.slice(1, c.first_element, c.first_element + all * c.HS)
            .split_last(all, c.HS)
            .slice(1, c.begin, c.begin + c.H);
    };
    // One table for all: what the device holds in fp32.
    const Device cpu = Device::cpu();
    const Buffer table32(cpu, DType::f32, {kTableRows, c.HS});
    fill_rope_table(table32, 500);
    const auto twin = [&](DType scalar) {
        const Buffer table(cpu, scalar, {kTableRows, c.HS}, table32.values()), x(cpu, scalar, {c.N, row}, values);
        const Buffer p(cpu, DType::i32, {c.N}, positions);
        rotate(cpu, {.x = view(x), .positions = p, .table = table}, forward);
        return x.values();
    };
    const std::vector<double> exact = twin(DType::f64), plain = rounded(twin(DType::f32), c.dtype);
    const Buffer table(device, DType::f32, {kTableRows, c.HS}, table32.values());
    const Buffer x(device, c.dtype, {c.N, row}, values), p(device, DType::i32, {c.N}, positions);
    rotate(device, {.x = view(x), .positions = p, .table = table}, forward);
    const std::vector<double> actual = x.values();
    EXPECT_TRUE(close(actual, exact, precision_bound(c.dtype, plain, exact)));
    // What is not in the view keeps its bits.
    const int64_t from = c.first_element + c.begin * c.HS, to = from + c.H * c.HS;
    for (int64_t i = 0; i < c.N * row; ++i) {
        if (i % row >= from && i % row < to) continue;
        ASSERT_EQ(actual[static_cast<size_t>(i)], values[static_cast<size_t>(i)]) << "at " << i;
    }
}

}  // namespace

TEST(RopeCuda, Small) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const int64_t HS : {10, 64}) {
            check(device, {.dtype = dtype, .N = 5, .H = 2, .HS = HS, .begin = 1, .all = 4}, true);
            check(device, {.dtype = dtype, .N = 3, .H = 5, .HS = HS}, false);
        }
}

TEST(RopeCuda, Shapes) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes)
        for (const bool forward : {true, false})
            for (const int64_t HS : {2, 6, 16, 24, 32, 64, 96, 128, 256})
                for (const int64_t H : {1, 3, 4, 5, 12, 16}) {
                    check(device, {.dtype = dtype, .N = 77, .H = H, .HS = HS}, forward);
                    check(device, {.dtype = dtype, .N = 9, .H = H, .HS = HS, .begin = 2, .all = H + 5}, forward);
                    if (testing::Test::HasFailure()) return;
                }
}

TEST(RopeCuda, ManyTokens) {
    INGOT_CUDA_OR_SKIP(device);
    check(device, {.dtype = DType::bf16, .N = 5001, .H = 12, .HS = 64, .begin = 0, .all = 20}, true);
}

TEST(RopeCuda, MisalignedRows) {
    INGOT_CUDA_OR_SKIP(device);
    for (const DType dtype : kDTypes) {
        check(device, {.dtype = dtype, .N = 9, .H = 3, .HS = 64, .extra = 1}, true);
        check(device, {.dtype = dtype, .N = 9, .H = 3, .HS = 64, .extra = 7, .first_element = 1}, true);
        check(device, {.dtype = dtype, .N = 9, .H = 3, .HS = 64, .extra = 8, .first_element = 8}, false);
    }
}

TEST(RopeCuda, SameBitsEveryTime) {
    INGOT_CUDA_OR_SKIP(device);
    const int64_t N = 300, H = 6, HS = 64;
    const std::vector<double> values = normals(N * H * HS, 2);
    const Buffer host(Device::cpu(), DType::f32, {kTableRows, HS});
    fill_rope_table(host, 500);
    const Buffer table(device, DType::f32, {kTableRows, HS}, host.values());
    const Buffer p(device, DType::i32, {N}, std::vector<double>(static_cast<size_t>(N), 17));
    Buffer x(device, DType::bf16, {N, H, HS});
    std::vector<double> first;
    for (int repeat = 0; repeat < 10; ++repeat) {
        x.set(values);
        rope_forward(device, {.x = x, .positions = p, .table = table});
        if (repeat == 0)
            first = x.values();
        else
            ASSERT_TRUE(same(x.values(), first));
    }
}

}  // namespace ingot::test
