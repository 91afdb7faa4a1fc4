// Named ranges in the timeline of a profiler (NVIDIA Nsight Systems), and the part of a run that it is to record. All
// of it does nothing without CUDA, and ranges cost nothing outside of that part. No CUDA header here.
//
// A range marks the host's work: while a graph is recorded that is the recording, not what the GPU does.
#pragma once

#include <string>

#include "kernels/core/check.h"

namespace ingot {

// `nsys profile -c cudaProfilerApi` records from begin_profile() to end_profile(). The caller has waited for the work.
void begin_profile();
void end_profile();
bool is_profiling();
void push_profile_range(const std::string& name);
void pop_profile_range();

// Names the work of a scope in a profile: ProfileRange range("layer ", layer, " forward");
class ProfileRange {
  public:
    template <typename... Parts>
    explicit ProfileRange(const Parts&... name) : is_on_(is_profiling()) {
        if (is_on_) push_profile_range(join(name...));
    }
    ~ProfileRange() {
        if (is_on_) pop_profile_range();
    }
    ProfileRange(const ProfileRange&) = delete;
    ProfileRange& operator=(const ProfileRange&) = delete;

  private:
    bool is_on_;
};

}  // namespace ingot
