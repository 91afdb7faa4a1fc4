// Tests that write files: each has a folder of its own, which is removed after it.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "kernels/core/check.h"

namespace ingot::test {

class InFolder : public testing::Test {
  protected:
    InFolder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "ingot-test-XXXXXX").string();
        CHECK(mkdtemp(pattern.data()) != nullptr, "no folder ", pattern);
        folder_ = pattern;
    }
    ~InFolder() override { std::filesystem::remove_all(folder_); }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }
    // Replaces a file, or adds to its end, and returns its path.
    std::string write(const std::string& name, const std::string& bytes) const {
        std::ofstream(path(name), std::ios::binary) << bytes;
        return path(name);
    }
    std::string append(const std::string& name, const std::string& bytes) const {
        std::ofstream(path(name), std::ios::binary | std::ios::app) << bytes;
        return path(name);
    }
    std::string read(const std::string& name) const {
        std::ifstream file(path(name), std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }

    std::filesystem::path folder_;
};

}  // namespace ingot::test
