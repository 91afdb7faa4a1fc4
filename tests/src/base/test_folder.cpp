// A folder that is held open: its names are looked up in it wherever it is, and no link in it is followed.
#include "src/base/folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot {
namespace {

namespace fs = std::filesystem;

class Folders : public test::InFolder {
  protected:
    Folders() { fs::create_directory(path("held")); }
};

void create(const Folder& folder, const std::string& name, const std::string& text) {
    OutputFile file = folder.create(name);
    file.write(text.data(), text.size());
    file.sync_and_close();
}

TEST_F(Folders, WhatIsWrittenGoesWhereTheFolderIs) {
    const Folder folder(path("held"));
    fs::rename(path("held"), path("moved"));
    fs::create_directory(path("held"));
    create(folder, "a", "text");
    const Folder inner = folder.folder("inner");
    create(inner, "b", "text");
    folder.rename("a", "c");
    EXPECT_EQ(read("moved/c"), "text");
    EXPECT_EQ(read("moved/inner/b"), "text");
    EXPECT_TRUE(fs::is_empty(path("held")));
    EXPECT_EQ(folder.names(), (std::vector<std::string>{"c", "inner"}));
    EXPECT_EQ(folder.place(), fs::canonical(path("moved")).string());
    folder.remove("inner");
    EXPECT_FALSE(fs::exists(path("moved/inner")));
}

TEST_F(Folders, NoLinkIsFollowed) {
    const Folder folder(path("held"));
    write("victim", "of somebody else");
    fs::create_directory(path("victims"));
    write("victims/inner", "of somebody else");
    fs::create_symlink(path("victim"), path("held/file"));
    fs::create_directory_symlink(path("victims"), path("held/folder"));
    create(folder, "file", "ours");
    EXPECT_FALSE(fs::is_symlink(path("held/file")));
    EXPECT_EQ(test::error_of([&] { folder.folder("folder"); }).substr(0, 2), "2 ");
    fs::create_directory(path("held/tree"));
    fs::create_directory_symlink(path("victims"), path("held/tree/link"));
    folder.remove("tree");
    folder.remove("folder");
    EXPECT_EQ(folder.names(), std::vector<std::string>{"file"});
    EXPECT_EQ(read("victim"), "of somebody else");
    EXPECT_EQ(read("victims/inner"), "of somebody else");
    fs::create_symlink(path("victim"), path("held/link"));
    EXPECT_EQ(folder.open("link", O_WRONLY | O_APPEND).get(), -1);
    EXPECT_EQ(errno, ELOOP);
    EXPECT_TRUE(folder.has("link"));
    // The same holds by path: a link that has the name of a new file is removed, not the file that it leads to.
    { OutputFile file(path("held/link")); }
    EXPECT_EQ(read("victim"), "of somebody else");
}

TEST_F(Folders, WhatIsInTheWayIsAnErrorWithAdvice) {
    const Folder folder(path("held"));
    fs::create_directories(path("held/full/inner"));
    create(folder, "file", "text");
    const std::string way = "a folder, a link or something else is in the way: move it away";
    EXPECT_EQ(test::error_of([&] { folder.rename("file", "full"); }),
              "2 cannot rename " + path("held/file") + " to " + path("held/full") + ": Is a directory: " + way);
    EXPECT_EQ(test::error_of([&] { folder.create("full"); }),
              "2 cannot replace " + path("held/full") + ": Is a directory: " + way);
    EXPECT_EQ(test::error_of([&] { OutputFile(path("held/full")); }).substr(0, 2), "2 ");
    EXPECT_EQ(test::error_of([&] { folder.folder("file"); }),
              "2 cannot open the folder " + path("held/file") + ": Not a directory: " + way);
    EXPECT_TRUE(fs::exists(path("held/full/inner")));
    EXPECT_EQ(test::error_of([&] { Folder(path("nothing")); }).substr(0, 2), "2 ");
    EXPECT_EQ(
        test::error_of([] { file_failed("write", "x", ENOSPC); }),
        "5 cannot write x: No space left on device: free some space, then run it again (training: with --resume auto)");
    EXPECT_EQ(test::error_of([] { file_failed("write", "x", EIO); }).substr(0, 2), "5 ");
    EXPECT_EQ(test::error_of([] { file_failed("write", "x", EFBIG); }).substr(0, 2), "5 ");
}

TEST_F(Folders, AFullDiskFailsTheWrite) {
    Descriptor full(open("/dev/full", O_WRONLY));
    if (full.get() < 0) GTEST_SKIP() << "this machine has no /dev/full";
    OutputFile file(std::move(full), "full");
    EXPECT_EQ(test::error_of([&] { file.write("x", 1); }),
              "5 cannot write full: No space left on device: free some space, then run it again (training: with "
              "--resume auto)");
}

TEST_F(Folders, ARemovedFolderTakesNothing) {
    const Folder folder(path("held"));
    fs::remove(path("held"));
    EXPECT_EQ(test::error_of([&] { folder.create("a"); }).substr(0, 2), "2 ");
    EXPECT_EQ(test::error_of([&] { folder.folder("b"); }).substr(0, 2), "2 ");
    EXPECT_FALSE(folder.has("a"));
}

}  // namespace
}  // namespace ingot
