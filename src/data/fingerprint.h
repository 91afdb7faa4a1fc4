// Detects whether the data of a resumed run are those that the checkpoint was trained on.
//
// Small data are read whole, which for large data would take minutes at each start. Of those, sizes and blocks at
// fixed places are read, and modification times are kept: data that were rewritten since cannot be told from unchanged
// data.
#pragma once

#include <string>
#include <vector>

namespace ingot {

struct Fingerprint {
    std::string content;  // hexadecimal digits; empty if unknown
    std::string times;    // empty if the content was read whole
    bool is_whole() const { return times.empty(); }
    bool operator==(const Fingerprint&) const = default;
};

// Computes the fingerprint of files in this order, read by `rule`. Throws UserError if one cannot be read.
Fingerprint fingerprint_of(const std::vector<std::string>& paths, const std::string& rule);

// Returns the change as the end of a sentence that begins with the name of the data, or "" if no change can be seen.
std::string fingerprint_change(const Fingerprint& then, const Fingerprint& now);

}  // namespace ingot
