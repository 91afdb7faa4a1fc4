// What the tests that run attention's kernels on the CPU have in common. Each has a struct Emulated of its own: a run,
// and how its kernels are started.
#pragma once

#include <type_traits>

#include "tests/kernels/attention/attention_compared.h"

namespace ingot::test {

// function(type, size, has_alibi), as constants; the head size must be one of kSizes.
template <int... kSizes, typename Function>
void with_instance(const AttentionCase& c, DType dtype, const Function& function) {
    const auto with_type = [&](auto type, auto size) {
        if (c.alibi)
            function(type, size, std::true_type{});
        else
            function(type, size, std::false_type{});
    };
    const auto with_size = [&](auto size) {
        if (c.HS != decltype(size)::value) return false;
        if (dtype == DType::bf16)
            with_type(std::integral_constant<DType, DType::bf16>{}, size);
        else
            with_type(std::integral_constant<DType, DType::f16>{}, size);
        return true;
    };
    if (!(with_size(std::integral_constant<int, kSizes>{}) || ...)) ADD_FAILURE() << "head size " << c.HS;
}

struct MaskValues {
    std::vector<double> arrays[4];  // first_key, end_key, first_query, end_query
};
// Six tokens: three queries see no key, and two keys are seen by no query.
inline MaskValues some_see_nothing() {
    return {{{0, 0, 0, 1, 2, 4}, {0, 0, 2, 3, 4, 4}, {2, 2, 3, 4, 6, 6}, {3, 4, 5, 5, 6, 6}}};
}
inline MaskValues all_see_nothing(int64_t N) {
    const std::vector<double> zeros(static_cast<size_t>(N));
    return {{zeros, zeros, zeros, zeros}};
}

// Is what start(emulated) leaves as good as it should be, and free of bank conflicts?
template <typename Emulated, typename Start>
void check_emulated(const AttentionCase& c, DType dtype, bool has_backward, const MaskValues* mask,
                    const Start& start) {
    SCOPED_TRACE(join(c.describe(), ", ", name_of(dtype)));
    Emulated emulated(c, dtype, 1, {.before = 8, .after = 16});
    Compared compared(c, dtype);
    if (mask != nullptr) {
        emulated.run.set_mask(mask->arrays[0], mask->arrays[1], mask->arrays[2], mask->arrays[3]);
        compared.set_mask(mask->arrays);
    }
    start(emulated);
    compared.expect(emulated.run, has_backward);
    EXPECT_EQ(emulated.counts.bank_conflicts, 0);
}

}  // namespace ingot::test
