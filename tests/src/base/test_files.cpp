// Opening and reading files: what is no regular file is refused at once, and no file is read past its bound.
#include "src/base/files.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot {
namespace {

namespace fs = std::filesystem;

class Files : public test::InFolder {};

std::string refusal_of(const std::string& path) {
    return test::user_error_of([&] { open_regular_file(path); }, "opened");
}

// Seen to hang without O_NONBLOCK: opening a FIFO waits for a writer.
TEST_F(Files, WhatIsNoRegularFileIsRefusedAtOnce) {
    ASSERT_EQ(mkfifo(path("fifo").c_str(), 0600), 0);
    const int socket_descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    ASSERT_LT(path("socket").size(), sizeof address.sun_path);
    std::strcpy(address.sun_path, path("socket").c_str());
    ASSERT_EQ(bind(socket_descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    close(socket_descriptor);
    fs::create_directory_symlink(folder_, path("link"));
    for (const std::string& name :
         {path("fifo"), path("socket"), path("link"), folder_.string(), std::string("/dev/zero")})
        EXPECT_EQ(refusal_of(name), name + " is not a regular file: name a file");
    EXPECT_EQ(refusal_of(path("nothing")),
              "cannot open " + path("nothing") + ": No such file or directory: check the path");
}

TEST_F(Files, AFileIsReadWholeUpToItsBound) {
    const std::string text(100'000, 'x');
    EXPECT_EQ(read_file(write("file", text), 100'000), text);
    EXPECT_THROW(read_file(path("file"), 99'999), UserError);
    EXPECT_EQ(read_file(write("empty", ""), 0), "");
}

TEST_F(Files, ADescriptorClosesOnce) {
    Descriptor first = open_regular_file(write("file", "text"));
    const int number = first.get();
    Descriptor second = std::move(first);
    EXPECT_EQ(first.get(), -1);
    EXPECT_EQ(second.get(), number);
    second = Descriptor();
    char byte = 0;
    EXPECT_EQ(::read(number, &byte, 1), -1);
}

}  // namespace
}  // namespace ingot
