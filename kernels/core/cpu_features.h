// Checks that this processor has what the build was compiled for. An instruction that it does not have would end the
// program without a message, anywhere. So the check runs before any other code of ours: as a constructor of the program
// and of libingot.so, of the highest priority, in a file that is compiled for the oldest x86-64. It ends the process
// with one line on stderr and code 2.
#pragma once

namespace ingot {

// The features that the build's flags let the compiler use, each followed by a blank: "sse3 avx2 ". x86-64 only.
extern const char kCpuFeaturesOfBuild[];
// INGOT_MARCH; empty where the compiler's default was taken.
extern const char kMarchOfBuild[];

}  // namespace ingot
