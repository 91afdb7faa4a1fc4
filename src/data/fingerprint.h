// Whether the data of a resumed run are those that the checkpoint was trained on.
//
// Small data are read whole. Of large ones, which would take minutes at each start, sizes and blocks at fixed places
// are read, and the files' times are kept: what was written again since cannot be told from what is the same.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct Fingerprint {
    std::string content;  // hexadecimal digits; empty: unknown
    std::string times;    // empty: the content was read whole
    bool is_whole() const { return times.empty(); }
    bool operator==(const Fingerprint&) const = default;
};

// Of files in this order, and of `rule`, by which they are read. Throws UserError if one cannot be read.
Fingerprint fingerprint_of(const std::vector<std::string>& paths, const std::string& rule);

// What has changed, as the end of a sentence that begins with the name of the data; empty: nothing, as far as both say.
std::string fingerprint_change(const Fingerprint& then, const Fingerprint& now);

}  // namespace ingot
