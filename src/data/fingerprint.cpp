#include "src/data/fingerprint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "kernels/core/check.h"
#include "src/base/checksum.h"
#include "src/base/files.h"

namespace ingot {

namespace {

// A file up to this size is read whole, which takes a second even from a slow disk or with a slow SHA-256.
constexpr int64_t kLargestWhole = int64_t{256} << 20;
constexpr int64_t kWholeBlock = int64_t{4} << 20;
// A larger file is sampled: one page per stretch, and both ends.
constexpr int64_t kSampleBlock = 4096, kSampleStretch = int64_t{32} << 20;

struct Block {
    size_t file;
    int64_t offset, bytes;
};

void add_whole(size_t file, int64_t size, std::vector<Block>* blocks) {
    for (int64_t at = 0; at < size; at += kWholeBlock) blocks->push_back({file, at, std::min(kWholeBlock, size - at)});
}

void add_samples(size_t file, int64_t size, std::vector<Block>* blocks) {
    const auto add = [&](int64_t at) {
        const int64_t begin = std::clamp<int64_t>(at, 0, std::max<int64_t>(size - kSampleBlock, 0));
        blocks->push_back({file, begin, std::min(kSampleBlock, size - begin)});
    };
    add(0);
    add(size);
    for (int64_t at = 0; at < size; at += kSampleStretch) {
        // The distances differ, since periodic data would look the same at equal distances.
        const uint64_t place = static_cast<uint64_t>(at / kSampleStretch + 1) * 0x9e3779b97f4a7c15u;
        add(at + static_cast<int64_t>((place >> 32) % static_cast<uint64_t>(kSampleStretch)));
    }
}

std::string digest_of(const std::string& path, const Block& block) {
    const Descriptor file = open_regular_file(path);
    std::vector<uint8_t> bytes(static_cast<size_t>(block.bytes));
    for (size_t filled = 0; filled < bytes.size();) {
        const ssize_t taken = pread(file.get(), bytes.data() + filled, bytes.size() - filled,
                                    static_cast<off_t>(block.offset) + static_cast<off_t>(filled));
        if (taken < 0 && errno == EINTR) continue;
        REQUIRE(taken > 0, "cannot read ", path, " at byte ", block.offset + static_cast<int64_t>(filled), ": ",
                taken < 0 ? std::strerror(errno) : "it is shorter than it was", ": was it replaced? start again");
        filled += static_cast<size_t>(taken);
    }
    return sha256(bytes.data(), bytes.size());
}

}  // namespace

Fingerprint fingerprint_of(const std::vector<std::string>& paths, const std::string& rule) {
    std::vector<struct stat> infos(paths.size());
    int64_t all_bytes = 0;
    std::string sizes = rule, times;
    for (size_t i = 0; i < paths.size(); ++i) {
        REQUIRE(stat(paths[i].c_str(), &infos[i]) == 0, "cannot look at ", paths[i], ": ", std::strerror(errno));
        all_bytes += infos[i].st_size;
        sizes += join(" ", infos[i].st_size);
        times += join(" ", infos[i].st_mtim.tv_sec, ".", infos[i].st_mtim.tv_nsec);
    }
    const bool is_whole = all_bytes <= kLargestWhole;
    std::vector<Block> blocks;
    for (size_t i = 0; i < paths.size(); ++i) (is_whole ? add_whole : add_samples)(i, infos[i].st_size, &blocks);
    std::vector<std::string> digests(blocks.size()), faults(blocks.size());
    const auto num_blocks = static_cast<int64_t>(blocks.size());
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < num_blocks; ++b) {
        const size_t i = static_cast<size_t>(b);
        try {
            digests[i] = digest_of(paths[blocks[i].file], blocks[i]);
        } catch (const std::exception& exception) {  // an exception must not leave a parallel region
            faults[i] = exception.what();
        }
    }
    for (const std::string& fault : faults) REQUIRE(fault.empty(), fault);
    std::string all = sizes;
    for (const std::string& digest : digests) all += " " + digest;
    return {.content = sha256(all.data(), all.size()), .times = is_whole ? "" : sha256(times.data(), times.size())};
}

std::string fingerprint_change(const Fingerprint& then, const Fingerprint& now) {
    if (then.content.empty()) return "cannot be compared: the checkpoint does not say what it held";
    if (then.content != now.content) return "does not hold what it did: other tokens or masks, or in another order";
    if (then.times != now.times)
        return "was written again since, and is too large to be compared whole (its sizes and samples are the same)";
    return "";
}

}  // namespace ingot
