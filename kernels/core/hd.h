// Functions that the host and CUDA kernels share.
#pragma once

#ifdef __CUDACC__
#define INGOT_HD __host__ __device__
#else
#define INGOT_HD
#endif
