// A rank whose collectives do nothing: of a run on one device, and of ranks that train apart.
#pragma once

#include <string>
#include <vector>

#include "src/parallel/ranks.h"

namespace ingot {

class Alone : public Ranks {
  public:
    int64_t size() const override { return 1; }
    int64_t rank() const override { return 0; }
    int local_rank() const override { return 0; }
    void start_reduce_scatter(const Device&, std::span<const OwnedRange>, const Tensor&) final {}
    void start_all_reduce(const Device&, std::span<const OwnedRange>, const Tensor&) final {}
    void finish_reduce(const Device&) final {}
    void start_all_gather(const Device&, std::span<const OwnedRange>, const Tensor&) final {}
    void finish_all_gather(const Device&, std::span<const OwnedRange>) final {}
    void all_reduce(const Device&, StepSums*) final {}
    std::vector<std::string> exchange(const std::string& text, Channel) override { return {text}; }
};

}  // namespace ingot
