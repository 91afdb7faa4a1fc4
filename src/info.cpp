#include "src/info.h"

#include "kernels/core/blas.h"
#include "kernels/core/check.h"
#include "src/output.h"

namespace ingot {

int print_info(bool) {
    write_output(join("ingot ", INGOT_VERSION, "\n", blas_description(), "\n"));
    return kExitDone;
}

}  // namespace ingot
