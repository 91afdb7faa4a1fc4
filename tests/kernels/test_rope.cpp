// Seen to catch: backward turned forwards; d paired with HS - 1 - d; theta^(-d / HS); the angles of another position.
#include <cmath>
#include <map>

#include "kernels/core/rng.h"
#include "kernels/rope.h"
#include "tests/support/on_device.h"

namespace ingot::test {
namespace {

INGOT_ON_EACH_DEVICE(Rope);

constexpr int64_t kTableRows = 1000;
constexpr double kTheta = 500;
const Device cpu = Device::cpu();

// Heads of a fused buffer: what lies before and after them in a token's row is margin, and keeps its bits.
struct Case {
    int64_t N, H, HS;
    Margins margins = {};
    std::vector<double> positions() const {
        std::vector<double> result(static_cast<size_t>(N));
        for (size_t n = 0; n < result.size(); ++n)
            result[n] = n == 0 ? kTableRows - 1 : static_cast<double>(random_bits(1, 1, n) % kTableRows);
        return result;
    }
    std::vector<double> start(DType dtype) const { return rounded(normals(N * H * HS, 2, 1.5), dtype); }
};

// The table as `dtype` has it, in fp32 but for fp64.
const std::vector<double>& table_values(int64_t HS, DType dtype) {
    static std::map<std::pair<int64_t, DType>, std::vector<double>> known;
    std::vector<double>& values = known[{HS, accumulation_dtype(dtype)}];
    if (values.empty()) {
        const Buffer table(cpu, accumulation_dtype(dtype), {kTableRows, HS});
        fill_rope_table(table, kTheta);
        values = table.values();
    }
    return values;
}

// By the table's own angles: its rounding is no kernel's error.
Outputs definition(const Case& c, const std::vector<double>& x, const std::vector<double>& table) {
    const std::vector<double> positions = c.positions();
    std::vector<double> forward(x.size()), backward(x.size());
    const auto H = static_cast<size_t>(c.H), HS = static_cast<size_t>(c.HS), half = HS / 2;
    for (size_t head = 0; head < positions.size() * H; ++head)
        for (size_t d = 0; d < half; ++d) {
            const double* const row = &table[static_cast<size_t>(positions[head / H]) * HS];
            const double cosine = row[d], sine = row[half + d];
            const size_t low = head * HS + d, high = low + half;
            forward[low] = x[low] * cosine - x[high] * sine;
            forward[high] = x[low] * sine + x[high] * cosine;
            backward[low] = x[low] * cosine + x[high] * sine;
            backward[high] = x[high] * cosine - x[low] * sine;
        }
    return {{"forward", {}, forward}, {"backward", {}, backward}};
}

Outputs run(const Case& c, const std::vector<double>& start, const std::vector<double>& table, const Device& device,
            DType dtype) {
    const Buffer positions(device, DType::i32, {c.N}, c.positions());
    const Buffer angles(device, accumulation_dtype(dtype), {kTableRows, c.HS}, table);
    Outputs outputs;
    for (const bool is_forward : {true, false}) {
        const Buffer x(c.margins, device, dtype, {c.N, c.H * c.HS}, start);
        const ingot::Rope a = {.x = x.tensor().split_last(c.H, c.HS), .positions = positions, .table = angles};
        is_forward ? rope_forward(device, a) : rope_backward(device, a);
        outputs.push_back({is_forward ? "forward" : "backward", dtype, x.values()});
    }
    return outputs;
}

// fp32: two products and their sum round once each.
void check(const Device& device, DType dtype, const Case& c) {
    SCOPED_TRACE(join(name_of(dtype), " N ", c.N, " H ", c.H, " HS ", c.HS, " margins ", c.margins.before, " ",
                      c.margins.after));
    const std::vector<double> start = c.start(dtype), table = table_values(c.HS, dtype);
    check_outputs(device, dtype, 3, definition(c, start, table),
                  [&](const Device& on, DType type) { return run(c, start, table, on, type); });
}

TEST_P(Rope, Small) {
    for (const DType dtype : dtypes())
        for (const int64_t HS : {10, 64}) {
            check(device(), dtype, {.N = 5, .H = 2, .HS = HS, .margins = {HS, HS}});
            check(device(), dtype, {.N = 3, .H = 5, .HS = HS});
        }
}

TEST_P(Rope, Shapes) {
    for (const DType dtype : dtypes())
        for (const int64_t HS : {2, 6, 16, 24, 32, 64, 96, 128, 256})
            for (const int64_t H : {1, 3, 4, 5, 12, 16}) {
                if (!skips(77 * H * HS)) check(device(), dtype, {.N = 77, .H = H, .HS = HS});
                check(device(), dtype, {.N = 9, .H = H, .HS = HS, .margins = {2 * HS, 3 * HS}});
                if (HasFailure()) return;
            }
}

TEST_P(Rope, ManyTokens) {
    check(device(), dtypes()[1], {.N = 5001, .H = 12, .HS = 64, .margins = {0, 8 * 64}});
}

TEST_P(Rope, MisalignedRows) {
    for (const DType dtype : dtypes())
        for (const Margins margins : {Margins{0, 1}, {1, 7}, {8, 8}})
            check(device(), dtype, {.N = 9, .H = 3, .HS = 64, .margins = margins});
}

TEST_P(Rope, SameBitsEveryTime) {
    const Case c = {.N = 300, .H = 6, .HS = 64};
    const DType dtype = dtypes()[1];
    const std::vector<double> start = c.start(dtype), table = table_values(c.HS, dtype);
    check_same_bits(device(), dtype, [&](const Device& on, DType type) { return run(c, start, table, on, type); });
}

TEST(RopeTable, IsTheFormula) {
    const int64_t HS = 10;
    const double theta = 10000;
    for (const auto& [dtype, bound] : {std::pair{DType::f64, 1e-15}, {DType::f32, 0x1p-24}}) {
        const Buffer table(cpu, dtype, {7, HS});
        fill_rope_table(table, theta);
        std::vector<double> expected;
        for (int64_t row = 0; row < 7; ++row)
            for (int64_t d = 0; d < HS; ++d) {
                const double angle =
                    static_cast<double>(row) *
                    std::pow(theta, -2.0 * static_cast<double>(d % (HS / 2)) / static_cast<double>(HS));
                expected.push_back(d < HS / 2 ? std::cos(angle) : std::sin(angle));
            }
        EXPECT_TRUE(close(table.values(), expected, bound)) << name_of(dtype);
    }
}

TEST(RopeGradient, AgreesWithFiniteDifferences) {
    for (const int64_t HS : {2, 8, 18}) {
        const Case c = {.N = 6, .H = 2, .HS = HS};
        std::vector<double> x = c.start(DType::f64);
        const std::vector<double> table = table_values(HS, DType::f64), w = normals(c.N * c.H * HS, 1);
        const auto rotated = [&](const std::vector<double>& values, const char* name) {
            return values_of(run(c, values, table, cpu, DType::f64), name);
        };
        check_host_gradients([&] { return dot(w, rotated(x, "forward")); }, {{"x", &x, rotated(w, "backward")}});
        EXPECT_TRUE(close(rotated(rotated(x, "forward"), "backward"), x, 1e-15)) << "backward undoes forward";
    }
}

// What attention sees depends on the distance alone.
TEST(RopeTable, DotProductsDependOnTheDistance) {
    const int64_t HS = 16, rows = 900;
    const Buffer table(cpu, DType::f64, {rows, HS});
    fill_rope_table(table, 500);
    const std::vector<double> q = normals(HS, 4), k = normals(HS, 5);
    const auto product = [&](double i, double j) {
        const Buffer positions(cpu, DType::i32, {2}, {i, j});
        std::vector<double> both = q;
        both.insert(both.end(), k.begin(), k.end());
        const Buffer x(cpu, DType::f64, {2, 1, HS}, both);
        rope_forward(cpu, {.x = x, .positions = positions, .table = table});
        const double* const data = x.tensor().get<double>();
        double sum = 0;
        for (int64_t d = 0; d < HS; ++d) sum += data[d] * data[HS + d];
        return sum;
    };
    EXPECT_NEAR(product(17, 5), product(812, 800), 1e-12);
    EXPECT_NEAR(product(5, 17), product(800, 812), 1e-12);
    EXPECT_GT(std::abs(product(17, 5) - product(5, 17)), 1e-3);
}

// The definition in Llama 3.1's own code (apply_scaling), with its numbers: factor 8, frequencies up to 1 and from 4
// cycles in 8192 tokens on.
TEST(RopeTable, StretchesLongWavelengths) {
    const RopeStretch stretch = {.factor = 8};
    const double two_pi = 2 * std::acos(-1.0);
    const auto of_wavelength = [&](double tokens) { return rope_stretch_of(two_pi / tokens, stretch); };
    EXPECT_EQ(of_wavelength(6.3), 1);
    EXPECT_EQ(of_wavelength(2047), 1);
    EXPECT_EQ(of_wavelength(8193), 8);
    EXPECT_EQ(of_wavelength(1e6), 8);
    // 2 cycles: a third of the way from 1 to 4, so that the frequency is (2/3) / 8 + 1/3 = 5/12 of what it was.
    EXPECT_NEAR(of_wavelength(4096), 2.4, 1e-12);

    const int64_t HS = 64, rows = 3;
    const Buffer table(cpu, DType::f64, {rows, HS}), plain(cpu, DType::f64, {rows, HS});
    fill_rope_table(table, 5e5, &stretch);
    fill_rope_table(plain, 5e5);
    const double* const data = table.tensor().get<double>();
    for (int64_t d = 0; d < HS / 2; ++d) {
        const double frequency = std::pow(5e5, -2.0 * static_cast<double>(d) / static_cast<double>(HS));
        const double angle = 2 * frequency / rope_stretch_of(frequency, stretch);
        EXPECT_NEAR(data[2 * HS + d], std::cos(angle), 1e-15) << d;
        EXPECT_NEAR(data[2 * HS + HS / 2 + d], std::sin(angle), 1e-15) << d;
    }
    EXPECT_FALSE(same(table.values(), plain.values()));
}

TEST(RopeArguments, Refuses) {
    constexpr int64_t T = 7;
    const Buffer table(cpu, DType::f32, {T, 4}), good(cpu, DType::i32, {2}, {0, 6}), late(cpu, DType::i32, {2}, {0, 7});
    const Buffer x(cpu, DType::f32, {2, 3, 4}), odd(cpu, DType::f32, {2, 3, 5}), wide(cpu, DType::f64, {2, 3, 4});
    const Buffer flat(cpu, DType::f32, {2, 4}), negative(cpu, DType::i32, {2}, {-1, 0}), both(cpu, DType::f32, {T, 8});
    EXPECT_THROW(rope_forward(cpu, {.x = odd, .positions = good, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = wide, .positions = good, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = flat, .positions = good, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = x, .positions = late, .table = table}), Error);
    EXPECT_THROW(rope_backward(cpu, {.x = x, .positions = negative, .table = table}), Error);
    EXPECT_THROW(rope_forward(cpu, {.x = x, .positions = good, .table = {}}), Error);
    // A slice of a wider table has other strides than the kernel walks.
    EXPECT_THROW(rope_forward(cpu, {.x = x, .positions = good, .table = both.tensor().slice(1, 0, 4)}), Error);
    EXPECT_THROW(fill_rope_table(both.tensor().slice(1, 0, 4), 10), Error);
}

}  // namespace
}  // namespace ingot::test
