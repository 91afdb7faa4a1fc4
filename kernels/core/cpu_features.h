// Whether this processor has what the build was compiled for. An instruction that it does not have would end the
// program without a word, at a place that nobody can foresee; so a check runs before any other code of ours: as a
// constructor of the program and of libingot.so, of the highest priority, in a file of its own for the oldest x86-64.
// It ends the process with one line on stderr and code 2.
#pragma once

namespace ingot {

// What the compiler may use with the build's flags, each followed by a blank: "sse3 avx2 ". Of x86-64 only.
extern const char kCpuFeaturesOfBuild[];
// INGOT_MARCH; empty where the compiler's default was taken.
extern const char kMarchOfBuild[];

}  // namespace ingot
