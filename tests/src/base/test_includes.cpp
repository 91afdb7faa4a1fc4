// Includes point one way, from the programs down to kernels/core. Seen to catch: an include in src/base of src/config,
// in kernels of src, in src/bench of src/commands, and a folder that is not in the list.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

namespace ingot::test {
namespace {

namespace fs = std::filesystem;

// Lowest first. A file includes its own folder and what is lower. Folders of one line do not include each other, but
// for those of the ops.
const std::vector<std::vector<std::string>> kFloors = {
    {"kernels/core"},
    {"kernels/cuda"},
    {"kernels", "kernels/attention", "kernels/matmul"},
    {"src/base"},
    {"src/tokenizer"},
    {"src/config"},
    {"src/data"},
    {"src/model"},
    {"src/parallel"},
    {"src/optimizer"},
    {"src/checkpoint"},
    {"src/train"},
    {"src/commands", "src/bench"},
    {"src"},  // the programs
};
constexpr size_t kFloorOfOps = 2;

std::string folder_of(const std::string& file) {
    return file.substr(0, file.rfind('/'));
}

size_t floor_of(const std::string& file) {
    for (size_t floor = 0; floor < kFloors.size(); ++floor)
        for (const std::string& folder : kFloors[floor])
            if (folder == folder_of(file)) return floor;
    return kFloors.size();
}

// An empty string if `file` may include `included`.
std::string wrong_with(const std::string& file, const std::string& included) {
    for (const std::string& each : {file, included})
        if (floor_of(each) == kFloors.size()) return folder_of(each) + " has no place in the list";
    if (folder_of(file) == folder_of(included)) return "";
    if (included.ends_with(".cuh") && folder_of(included) != "kernels/cuda")
        return "the device code of an op is its own: what two ops share belongs in kernels/cuda";
    if (floor_of(file) == kFloorOfOps && floor_of(included) == kFloorOfOps) return "";
    return floor_of(included) < floor_of(file) ? "" : "the arrow points back";
}

TEST(Includes, PointOneWay) {
    const fs::path root = INGOT_SOURCE_DIR;
    const std::regex include("^\\s*#\\s*include\\s*(?:\"|<(?=kernels/|src/|tests/))([^\">]+)");
    int num_includes = 0;
    for (const char* const top : {"kernels", "src"})
        for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / top)) {
            if (!entry.is_regular_file()) continue;
            const std::string file = fs::relative(entry.path(), root).generic_string();
            std::ifstream text(entry.path());
            std::smatch found;
            for (std::string line; std::getline(text, line);) {
                if (!std::regex_search(line, found, include)) continue;
                ++num_includes;
                EXPECT_EQ(wrong_with(file, found[1]), "") << file << " includes " << found[1];
            }
        }
    EXPECT_GT(num_includes, 500);
}

TEST(Includes, AnArrowBackIsSeen) {
    EXPECT_EQ(wrong_with("src/train/a.cpp", "src/model/b.h"), "");
    EXPECT_EQ(wrong_with("src/main.cpp", "src/commands/b.h"), "");
    EXPECT_EQ(wrong_with("kernels/attention/a.cu", "kernels/matmul/b.h"), "");
    EXPECT_NE(wrong_with("src/base/a.h", "src/config/b.h"), "");
    EXPECT_NE(wrong_with("src/bench/a.cpp", "src/commands/b.h"), "");
    EXPECT_NE(wrong_with("src/parallel/a.cpp", "src/optimizer/b.h"), "");
    EXPECT_NE(wrong_with("kernels/rope.cu", "src/base/b.h"), "");
    EXPECT_NE(wrong_with("kernels/core/a.h", "kernels/rope.h"), "");
    EXPECT_NE(wrong_with("kernels/rope.cu", "kernels/attention/b.cuh"), "");
    EXPECT_NE(wrong_with("src/train/a.cpp", "src/new_folder/b.h"), "");
    EXPECT_NE(wrong_with("src/train/a.cpp", "tests/support/b.h"), "");
}

}  // namespace
}  // namespace ingot::test
