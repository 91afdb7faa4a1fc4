// Compiled for the oldest x86-64, whatever INGOT_MARCH says; it uses no inline function that other files compile as
// well with other flags, since the linker keeps only one of them.
#include "kernels/core/cpu_features.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <string.h>
#include <unistd.h>

namespace ingot {

namespace {

struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r = {0, 0, 0, 0};
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

// XCR0 says which registers the system saves when it switches threads; without that their instructions fault, too.
unsigned saved_registers(const Registers& basic) {
    if ((basic.c & bit_OSXSAVE) == 0) return 0;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// AMD64 Architecture Programmer's Manual 3, appendix E, and Intel's Software Developer's Manual 2A, CPUID.
bool has(const char* name, size_t length) {
    const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1), amd = cpuid(0x80000001, 0);
    const unsigned saved = saved_registers(basic);
    const bool has_ymm = (saved & 0x6) == 0x6, has_zmm = (saved & 0xe6) == 0xe6;
    const struct {
        const char* name;
        bool is_there;
    } features[] = {
        {"sse3", (basic.c >> 0 & 1) != 0},
        {"ssse3", (basic.c >> 9 & 1) != 0},
        {"sse4.1", (basic.c >> 19 & 1) != 0},
        {"sse4.2", (basic.c >> 20 & 1) != 0},
        {"popcnt", (basic.c >> 23 & 1) != 0},
        {"movbe", (basic.c >> 22 & 1) != 0},
        {"lzcnt", (amd.c >> 5 & 1) != 0},
        {"bmi1", (extended.b >> 3 & 1) != 0},
        {"bmi2", (extended.b >> 8 & 1) != 0},
        {"avx", has_ymm && (basic.c >> 28 & 1) != 0},
        {"f16c", has_ymm && (basic.c >> 29 & 1) != 0},
        {"fma", has_ymm && (basic.c >> 12 & 1) != 0},
        {"fma4", has_ymm && (amd.c >> 16 & 1) != 0},
        {"xop", has_ymm && (amd.c >> 11 & 1) != 0},
        {"avx2", has_ymm && (extended.b >> 5 & 1) != 0},
        {"avxvnni", has_ymm && (more.a >> 4 & 1) != 0},
        {"avx512f", has_zmm && (extended.b >> 16 & 1) != 0},
        {"avx512dq", has_zmm && (extended.b >> 17 & 1) != 0},
        {"avx512ifma", has_zmm && (extended.b >> 21 & 1) != 0},
        {"avx512cd", has_zmm && (extended.b >> 28 & 1) != 0},
        {"avx512bw", has_zmm && (extended.b >> 30 & 1) != 0},
        {"avx512vl", has_zmm && (extended.b >> 31 & 1) != 0},
        {"avx512vbmi", has_zmm && (extended.c >> 1 & 1) != 0},
        {"avx512vbmi2", has_zmm && (extended.c >> 6 & 1) != 0},
        {"avx512vnni", has_zmm && (extended.c >> 11 & 1) != 0},
        {"avx512bitalg", has_zmm && (extended.c >> 12 & 1) != 0},
        {"avx512vpopcntdq", has_zmm && (extended.c >> 14 & 1) != 0},
        {"avx512fp16", has_zmm && (extended.d >> 23 & 1) != 0},
        {"avx512bf16", has_zmm && (more.a >> 5 & 1) != 0},
    };
    for (const auto& feature : features)
        if (strlen(feature.name) == length && memcmp(feature.name, name, length) == 0) return feature.is_there;
    return false;  // a name of cpu_features.cpp that is not in the table above
}

// Appends the names in `features`, each followed by a blank, that this processor does not have; returns their number.
int append_lacking(const char* features, char* text, size_t capacity) {
    int count = 0;
    for (const char* name = features; *name != '\0';) {
        const size_t length = static_cast<size_t>(strchr(name, ' ') - name);
        if (!has(name, length) && strlen(text) + length + 2 < capacity) {
            if (count++ > 0) strcat(text, " ");
            strncat(text, name, length);
        }
        name += length + 1;
    }
    return count;
}

// The levels of the x86-64 psABI, best first.
const char* best_march() {
    char ignored[512] = "";
    if (append_lacking("avx512f avx512bw avx512cd avx512dq avx512vl avx2 fma bmi1 bmi2 f16c lzcnt movbe ", ignored,
                       sizeof ignored) == 0)
        return "x86-64-v4";
    ignored[0] = '\0';
    if (append_lacking("avx avx2 fma bmi1 bmi2 f16c lzcnt movbe ", ignored, sizeof ignored) == 0) return "x86-64-v3";
    ignored[0] = '\0';
    if (append_lacking("sse3 ssse3 sse4.1 sse4.2 popcnt ", ignored, sizeof ignored) == 0) return "x86-64-v2";
    return "x86-64";
}

// 101 is the first priority that is not the compiler's own: before every static object of ours.
[[gnu::constructor(101)]] void check_cpu() {
    char lacking[512] = "";
    if (append_lacking(kCpuFeaturesOfBuild, lacking, sizeof lacking) == 0) return;
    char line[1024] = "error: this build is for processors with ";
    strcat(line, lacking);
    if (kMarchOfBuild[0] != '\0') {
        strcat(line, " (INGOT_MARCH=");
        strncat(line, kMarchOfBuild, 64);
        strcat(line, ")");
    }
    strcat(line, ", and this processor lacks that: build again with cmake --preset release -DINGOT_MARCH=");
    strcat(line, best_march());
    strcat(line, " && cmake --build --preset release\n");
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line, strlen(line));
    _exit(2);  // bad usage
}

}  // namespace

}  // namespace ingot

#endif
