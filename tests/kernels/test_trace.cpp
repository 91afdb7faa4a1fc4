// The writer of Chrome traces, without a GPU. Seen to catch: a quote in a kernel's name that is not escaped; calls and
// work in the same rows.
#include <gtest/gtest.h>

#include <sstream>

#include "kernels/core/check.h"
#include "kernels/cuda/trace.h"

namespace ingot::test {
namespace {

std::string chrome(const std::vector<TraceRecord>& records) {
    std::ostringstream out;
    write_chrome_trace(records, out);
    return out.str();
}

TEST(Trace, NoRecordsAreAWholeDocument) {
    EXPECT_EQ(chrome({}),
              "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n"
              "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": 0, \"args\": {\"name\": \"GPU\"}},\n"
              "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": 1, \"args\": {\"name\": \"host\"}}\n]}\n");
}

TEST(Trace, WorkByStreamCallsByThread) {
    const std::string text = chrome({{TraceKind::api, "cudaGraphLaunch", 1'000'000, 1'002'500, 7, 0, 3},
                                     {TraceKind::kernel, "_ZN5ingot11some_kernelEPf", 1'010'001, 1'020'000, 13, 0, 3},
                                     {TraceKind::copy, kHostToDevice, 1'020'000, 1'020'004, 14, 4096, 4}});
    for (
        const char* const part : {
            R"("pid": 0, "tid": 13, "args": {"name": "stream 13"})",
            R"("pid": 0, "tid": 14, "args": {"name": "stream 14"})",
            R"("pid": 1, "tid": 7, "args": {"name": "thread 7"})",
            R"("cat": "api", "name": "cudaGraphLaunch", "pid": 1, "tid": 7, "ts": 0.000, "dur": 2.500, )",
            R"-("cat": "kernel", "name": "ingot::some_kernel(float*)", "pid": 0, "tid": 13, "ts": 10.001, "dur": 9.999)-",
            R"("args": {"correlation": 3, "symbol": "_ZN5ingot11some_kernelEPf"}})",
            R"("cat": "copy", "name": "copy host to device", "pid": 0, "tid": 14, "ts": 20.000, "dur": 0.004)",
            R"("args": {"correlation": 4, "bytes": 4096}})",
        })
        EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
    EXPECT_EQ(text.find("\"name\": \"thread 13\""), std::string::npos);
}

TEST(Trace, NamesAreEscaped) {
    const std::string text = chrome({{TraceKind::kernel, "a \"name\" with \\ and \n in it", 5, 6, 1, 0, 1}});
    EXPECT_NE(text.find(R"("name": "a \"name\" with \\ and \u000a in it")"), std::string::npos) << text;
}

TEST(Trace, DemanglesWhatIsMangled) {
    EXPECT_EQ(demangled("_ZN5ingot11some_kernelEPf"), "ingot::some_kernel(float*)");
    EXPECT_EQ(demangled("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN"), "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN");
}

// Each build either traces or says in one line what is missing.
TEST(Trace, SaysWhatIsMissing) {
    std::string why;
    if (can_trace(&why)) GTEST_SKIP() << "this build has CUPTI";
    EXPECT_NE(why.find("configure"), std::string::npos);
    EXPECT_EQ(why.find('\n'), std::string::npos);
    EXPECT_THROW(start_trace(false), UserError);
}

}  // namespace
}  // namespace ingot::test
