// The tests that run attention's kernels on the CPU share this. Each has a struct Emulated of its own: a run, and how
// its kernels are started.
#pragma once

#include <exception>
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

// function(i) for i in [0, count), side by side: a block runs on one thread, and blocks of different cases are
// strangers.
template <typename Function>
void side_by_side(size_t count, const Function& function) {
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = 0; i < count; ++i) {
        try {
            function(i);
        } catch (const std::exception& error) {
            ADD_FAILURE() << error.what();
        }
    }
}
template <typename Function>
void side_by_side(const std::vector<AttentionCase>& cases, const Function& function) {
    side_by_side(cases.size(), [&](size_t i) { function(cases[i]); });
}

// Documents of few tokens and of many, for every head size with and without ALiBi.
inline std::vector<AttentionCase> head_size_cases(std::initializer_list<int64_t> sizes) {
    std::vector<AttentionCase> cases;
    for (const int64_t HS : sizes)
        for (const bool alibi : {false, true})
            cases.push_back({.N = 150, .NH = 2, .NKV = 1, .HS = HS, .alibi = alibi, .starts = {0, 5, 6, 6, 90}});
    return cases;
}

// Fails the test unless what start(emulated) leaves is as good as it should be, and free of bank conflicts.
template <typename Emulated, typename Start>
void check_emulated(const AttentionCase& c, DType dtype, bool has_backward, const MaskValues* mask,
                    const Start& start) {
    SCOPED_TRACE(join(c.describe(), ", ", name_of(dtype)));
    Emulated emulated(c, dtype, 1, Margins{8, 16});
    if (mask != nullptr) emulated.run.set_mask(*mask);
    start(emulated);
    expect_as_good(emulated.run, dtype, has_backward, mask);
    EXPECT_EQ(emulated.counts.bank_conflicts, 0);
}

}  // namespace ingot::test
