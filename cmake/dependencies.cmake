# What the build takes from the system. What is not found is a Debian package in INGOT_MISSING; this is the one place
# that decides it, for the build itself and for scripts/common.sh, which installs what is missing.
set(INGOT_MISSING "")           # packages
set(INGOT_MISSING_REQUIRED "")  # those of them that the build cannot do without
set(INGOT_MISSING_WHAT "")      # what these hold, for people

# ingot_missing(PACKAGE [WHAT]): with WHAT the build cannot do without it.
macro(ingot_missing package)
  list(APPEND INGOT_MISSING ${package})
  if(${ARGC} GREATER 1)
    list(APPEND INGOT_MISSING_REQUIRED ${package})
    list(APPEND INGOT_MISSING_WHAT "${ARGV1}")
  endif()
endmacro()

# What an earlier configuration found and is there no longer is looked for again.
foreach(found IN ITEMS INGOT_ONEDNN_INCLUDE INGOT_ONEDNN_LIBRARY INGOT_PCRE2_INCLUDE INGOT_PCRE2_LIBRARY
        INGOT_UTF8PROC_INCLUDE INGOT_UTF8PROC_LIBRARY OPENSSL_INCLUDE_DIR OPENSSL_CRYPTO_LIBRARY)
  if(${found} AND NOT EXISTS "${${found}}")
    unset(${found} CACHE)
  endif()
endforeach()

# ---- The compiler ----
if((CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 11) OR
   (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14))
  message(FATAL_ERROR "${CMAKE_CXX_COMPILER} is ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}: Ingot needs "
                      "GCC 11 or clang 14, or later. CXX=... names another compiler, in a new build folder")
endif()
find_package(Threads REQUIRED)
find_package(OpenMP QUIET COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")  # its OpenMP is a package of its own, one for each version
    string(REGEX MATCH "^[0-9]+" clang_major ${CMAKE_CXX_COMPILER_VERSION})
    ingot_missing(libomp-${clang_major}-dev "OpenMP of clang ${clang_major}")
  else()
    ingot_missing(g++ "OpenMP of ${CMAKE_CXX_COMPILER}")
  endif()
endif()

# clang's sanitizers are a package of their own too, where the system splits them off; ./scripts/test builds with them.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND (INGOT_TESTS OR INGOT_SANITIZE))
  include(CheckCXXSourceCompiles)
  if(NOT INGOT_CLANG_SANITIZES)
    unset(INGOT_CLANG_SANITIZES CACHE)
  endif()
  set(CMAKE_REQUIRED_FLAGS "-fsanitize=address,undefined")
  check_cxx_source_compiles("int main() { return 0; }" INGOT_CLANG_SANITIZES)
  unset(CMAKE_REQUIRED_FLAGS)
  if(NOT INGOT_CLANG_SANITIZES)
    string(REGEX MATCH "^[0-9]+" clang_major ${CMAKE_CXX_COMPILER_VERSION})
    if(INGOT_SANITIZE)
      ingot_missing(libclang-rt-${clang_major}-dev "the sanitizers of clang ${clang_major}")
    else()
      ingot_missing(libclang-rt-${clang_major}-dev)
    endif()
  endif()
endif()

# ---- A BLAS with the C interface ----
# A header and a library may each be there and yet not belong together: several packages have a cblas.h, some of them
# for 64-bit integers or without extern "C", and Debian's alternatives choose header and library one by one. So what
# counts is that a program compiles and links against the pair. The reference BLAS is not looked for: it is many times
# slower.
set(INGOT_CBLAS_INCLUDE "" CACHE PATH "Folder of the cblas.h to take (with INGOT_CBLAS_LIBRARY; default: looked for)")
set(INGOT_CBLAS_LIBRARY "" CACHE FILEPATH "The BLAS to take (with INGOT_CBLAS_INCLUDE; default: OpenBLAS, BLIS, ...)")

function(ingot_try_cblas include library result)
  file(WRITE ${CMAKE_BINARY_DIR}/cblas/cblas.cpp [[
#include <cblas.h>
// int of 32 bits is what kernels/core/blas.h hands over.
template <typename Size>
constexpr bool is_32_bits(double (*)(Size, const double*, Size, const double*, Size)) { return sizeof(Size) == 4; }
static_assert(is_32_bits(&cblas_ddot));
int main() {
    float a[1] = {2}, b[1] = {3}, c[1] = {0};
    double x[1] = {2}, y[1] = {3}, z[1] = {0};
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, 1, 1, 1, 1.0f, a, 1, b, 1, 0.0f, c, 1);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, 1, 1, 1, 1.0, x, 1, y, 1, 0.0, z, 1);
    return c[0] == 6 && z[0] == 6 ? 0 : 1;
}
]])
  try_compile(links ${CMAKE_BINARY_DIR}/cblas ${CMAKE_BINARY_DIR}/cblas/cblas.cpp
              CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${include}" LINK_LIBRARIES ${library}
              CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
  set(${result} ${links} PARENT_SCOPE)
  unset(links CACHE)
endfunction()

# Sets cblas_include and cblas_library; leaves them empty if no pair links.
function(ingot_find_cblas)
  foreach(name IN ITEMS openblas blis mkl_rt cblas)
    unset(library)
    find_library(library NAMES ${name} NO_CACHE)
    if(NOT library)
      continue()
    endif()
    # Debian keeps the header of each variant in a folder with the name of the folder that has its library.
    get_filename_component(file ${library} REALPATH)
    get_filename_component(folder ${file} DIRECTORY)
    get_filename_component(variant ${folder} NAME)
    foreach(header IN ITEMS ${variant}/cblas.h ${name}/cblas.h mkl/cblas.h cblas.h)
      unset(include)
      find_path(include ${header} NO_CACHE)
      if(include)
        get_filename_component(include ${include}/${header} DIRECTORY)
        ingot_try_cblas(${include} ${library} links)
        if(links)
          set(cblas_include ${include} PARENT_SCOPE)
          set(cblas_library ${library} PARENT_SCOPE)
          return()
        endif()
      endif()
    endforeach()
  endforeach()
endfunction()

set(cblas_include ${INGOT_CBLAS_INCLUDE})
set(cblas_library ${INGOT_CBLAS_LIBRARY})
if(cblas_include AND cblas_library)
  ingot_try_cblas(${cblas_include} ${cblas_library} links)
  if(NOT links)
    message(FATAL_ERROR "INGOT_CBLAS_LIBRARY: no program links against ${cblas_library} with the cblas.h in "
                        "${cblas_include}: name a pair that belongs together, or leave both out "
                        "(-UINGOT_CBLAS_LIBRARY -UINGOT_CBLAS_INCLUDE)")
  endif()
else()
  ingot_find_cblas()
  if(NOT cblas_library)
    ingot_missing(libopenblas-openmp-dev "a BLAS with the C interface (OpenBLAS)")
  endif()
endif()

# ---- oneDNN: fp32 products on the CPU ----
# Its own kernels are for x86-64; elsewhere it hands products on to plain loops.
set(INGOT_HAS_ONEDNN OFF)
set(wants_onednn ${INGOT_ONEDNN})
if(INGOT_ONEDNN STREQUAL "AUTO")
  string(REGEX MATCH "x86_64|AMD64" wants_onednn "${CMAKE_SYSTEM_PROCESSOR}")
endif()
set(products "${cblas_library}")
if(wants_onednn)
  find_path(INGOT_ONEDNN_INCLUDE oneapi/dnnl/dnnl.h)
  find_library(INGOT_ONEDNN_LIBRARY NAMES dnnl)
  if(INGOT_ONEDNN_INCLUDE AND INGOT_ONEDNN_LIBRARY)
    set(INGOT_HAS_ONEDNN ON)
    set(products "fp32 by ${INGOT_ONEDNN_LIBRARY}, fp64 by ${cblas_library}")
  elseif(INGOT_ONEDNN STREQUAL "AUTO")
    ingot_missing(libdnnl-dev)
    string(APPEND products ". oneDNN was not found; on x86-64 it is about a tenth faster: apt-get install libdnnl-dev")
  else()
    message(FATAL_ERROR "INGOT_ONEDNN=ON, but oneDNN was not found: apt-get install libdnnl-dev, or name it with "
                        "-DINGOT_ONEDNN_INCLUDE= and -DINGOT_ONEDNN_LIBRARY=, or configure with -DINGOT_ONEDNN=OFF")
  endif()
elseif(NOT INGOT_ONEDNN)
  string(APPEND products " (oneDNN: OFF, asked for)")
endif()
if(cblas_library)
  string(APPEND products " (cblas.h in ${cblas_include})")
  message(STATUS "Products on the CPU: ${products}")
endif()

# ---- SHA-256 of checkpoints; tokenizers: patterns by PCRE2, NFC by utf8proc ----
find_package(OpenSSL QUIET COMPONENTS Crypto)
if(NOT OPENSSL_FOUND)
  ingot_missing(libssl-dev "libcrypto")
endif()
find_path(INGOT_PCRE2_INCLUDE pcre2.h)
find_library(INGOT_PCRE2_LIBRARY NAMES pcre2-8)
if(NOT INGOT_PCRE2_INCLUDE OR NOT INGOT_PCRE2_LIBRARY)
  ingot_missing(libpcre2-dev "PCRE2")
endif()
find_path(INGOT_UTF8PROC_INCLUDE utf8proc.h)
find_library(INGOT_UTF8PROC_LIBRARY NAMES utf8proc)
if(NOT INGOT_UTF8PROC_INCLUDE OR NOT INGOT_UTF8PROC_LIBRARY)
  ingot_missing(libutf8proc-dev "utf8proc")
endif()

# ---- Without these the build fetches their sources ----
find_package(nlohmann_json 3.10 QUIET)
if(NOT nlohmann_json_FOUND)
  ingot_missing(nlohmann-json3-dev)
endif()
find_package(CLI11 2.1 QUIET)
if(NOT CLI11_FOUND)
  ingot_missing(libcli11-dev)
endif()
if(INGOT_TESTS)
  find_package(GTest QUIET)
  if(NOT GTest_FOUND)
    ingot_missing(libgtest-dev)
  endif()
endif()

# ---- The verdict ----
if(INGOT_LIST_MISSING)
  list(JOIN INGOT_MISSING "\n" lines)
  file(WRITE ${INGOT_LIST_MISSING} "${lines}\n")
elseif(INGOT_MISSING_REQUIRED)
  list(JOIN INGOT_MISSING_WHAT ", " what)
  list(JOIN INGOT_MISSING_REQUIRED " " packages)
  message(FATAL_ERROR "Not found: ${what}. To install it: apt-get install ${packages}")
endif()
