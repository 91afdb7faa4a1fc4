// What a call throws, as text, for tests of messages.
#pragma once

#include <functional>
#include <string>

#include "kernels/core/check.h"

namespace ingot::test {

// The text of the UserError that act() throws, or `none`.
inline std::string user_error_of(const std::function<void()>& act, const std::string& none = "") {
    try {
        act();
    } catch (const UserError& error) {
        return error.what();
    }
    return none;
}

// The exit code and the text of the error that act() throws, as "2 text"; empty if there is none.
inline std::string error_of(const std::function<void()>& act) {
    try {
        act();
    } catch (const Error& error) {
        return join(static_cast<int>(error.exit_code), " ", error.what());
    }
    return "";
}

}  // namespace ingot::test
