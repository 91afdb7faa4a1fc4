// modeling_ingot.py, which the build puts into the program: exports that need it take it along.
#pragma once

#include <string_view>

namespace ingot {

extern const std::string_view kModelingIngot;

}  // namespace ingot
