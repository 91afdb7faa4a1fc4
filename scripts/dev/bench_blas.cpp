// Which BLAS is fastest for the products of a training step, called as kernels/matmul/matmul_cpu.cpp calls it: the result cut
// into blocks, each one single-threaded call, the blocks shared out to threads. Libraries are opened at run time, so
// that one program compares all; oneDNN is called by dnnl_sgemm.
//
//   g++ -O2 -fopenmp scripts/dev/bench_blas.cpp -o bench_blas -ldl
//   OMP_NUM_THREADS=2 ./bench_blas ROWS COLUMNS DEPTH SECONDS LIBRARY...    largest block, time per product
//
// e.g. ./bench_blas 256 512 0 0.3 libopenblas.so.0 libblis.so.4 libdnnl.so.2. DEPTH 0 leaves K whole.
#include <dlfcn.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace {

using Cblas = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
using Dnnl = int (*)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                     float*, int64_t);

struct Library {
    Cblas cblas = nullptr;
    Dnnl dnnl = nullptr;
    void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              int64_t ldb, float beta, float* c, int64_t ldc) const {
        if (dnnl != nullptr)
            dnnl(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, 1, a, lda, b, ldb, beta, c, ldc);
        else  // 101 row-major, 111 as stored, 112 transposed
            cblas(101, ta ? 112 : 111, tb ? 112 : 111, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1,
                  a, static_cast<int>(lda), b, static_cast<int>(ldb), beta, c, static_cast<int>(ldc));
    }
};

Library open(const char* name) {
    void* const handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        std::fprintf(stderr, "error: %s\n", dlerror());
        std::exit(2);
    }
    Library library;
    library.cblas = reinterpret_cast<Cblas>(dlsym(handle, "cblas_sgemm"));
    library.dnnl = reinterpret_cast<Dnnl>(dlsym(handle, "dnnl_sgemm"));
    using Set = void (*)(int);
    using SetLong = void (*)(int64_t);
    const int num_threads = omp_get_max_threads();
    if (const auto set = reinterpret_cast<Set>(dlsym(handle, "openblas_set_num_threads"))) set(1);
    if (const auto set = reinterpret_cast<SetLong>(dlsym(handle, "bli_thread_set_num_threads"))) set(1);
    omp_set_num_threads(num_threads);
    return library;
}

struct Shape {
    const char* name;
    int64_t tokens, out, in;
    int64_t count;  // times in a step
};

int64_t blocks_of(int64_t extent, int64_t block) {
    return block > 0 ? (extent + block - 1) / block : 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: bench_blas ROWS COLUMNS DEPTH SECONDS LIBRARY...\n");
        return 2;
    }
    const int64_t rows = std::atol(argv[1]), columns = std::atol(argv[2]), depth = std::atol(argv[3]);
    const double seconds = std::atof(argv[4]);
    const std::vector<std::pair<const char*, std::vector<Shape>>> models = {{"4x256",
                                                                             {{"qkv", 2048, 384, 256, 4},
                                                                              {"o", 2048, 256, 256, 4},
                                                                              {"gate_up", 2048, 1408, 256, 4},
                                                                              {"down", 2048, 256, 704, 4},
                                                                              {"head", 2048, 8192, 256, 1}}},
                                                                            {"12x768",
                                                                             {{"qkv", 512, 1280, 768, 12},
                                                                              {"o", 512, 768, 768, 12},
                                                                              {"gate_up", 512, 4096, 768, 12},
                                                                              {"down", 512, 768, 2048, 12},
                                                                              {"head", 512, 50304, 768, 1}}}};
    std::vector<float> a(64 << 20), b(64 << 20), c(64 << 20);
    std::mt19937 generator(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (auto* v : {&a, &b, &c})
        for (float& x : *v) x = uniform(generator);
    for (int l = 5; l < argc; ++l) {
        const Library library = open(argv[l]);
        for (const auto& [model, shapes] : models) {
            double total = 0, flops = 0;
            for (const Shape& s : shapes) {
                std::printf("%-18s %-7s %-8s", argv[l], model, s.name);
                for (int direction = 0; direction < 3; ++direction) {
                    const bool ta = direction == 2, tb = direction == 0;
                    const int64_t M = direction == 2 ? s.out : s.tokens, N = direction == 0 ? s.out : s.in,
                                  K = direction == 0 ? s.in : (direction == 1 ? s.out : s.tokens);
                    const int64_t lda = ta ? M : K, ldb = tb ? K : N;
                    const int64_t mb = blocks_of(M, rows), nb = blocks_of(N, columns), kb = blocks_of(K, depth);
                    double best = 1e30;
                    const double begin = omp_get_wtime();
                    for (int repeat = 0; repeat < 3 || omp_get_wtime() - begin < seconds; ++repeat) {
                        const double start = omp_get_wtime();
#pragma omp parallel for collapse(2) schedule(dynamic)
                        for (int64_t i = 0; i < mb; ++i)
                            for (int64_t j = 0; j < nb; ++j) {
                                const int64_t m0 = M * i / mb, m1 = M * (i + 1) / mb;
                                const int64_t n0 = N * j / nb, n1 = N * (j + 1) / nb;
                                for (int64_t p = 0; p < kb; ++p) {
                                    const int64_t k0 = K * p / kb, k1 = K * (p + 1) / kb;
                                    library.gemm(ta, tb, m1 - m0, n1 - n0, k1 - k0,
                                                 a.data() + (ta ? k0 * lda + m0 : m0 * lda + k0), lda,
                                                 b.data() + (tb ? n0 * ldb + k0 : k0 * ldb + n0), ldb,
                                                 p > 0 || direction == 2 ? 1.0f : 0.0f, c.data() + m0 * N + n0, N);
                                }
                            }
                        best = std::min(best, omp_get_wtime() - start);
                    }
                    const double f = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
                    total += best * static_cast<double>(s.count);
                    flops += f * static_cast<double>(s.count);
                    std::printf("  %s %7.1f",
                                direction == 0   ? "forward"
                                : direction == 1 ? "input"
                                                 : "weight",
                                f / best / 1e9);
                }
                std::printf("  GFLOP/s\n");
            }
            std::printf("%-18s %-7s all products of a step: %.1f ms, %.1f GFLOP/s\n", argv[l], model, total * 1e3,
                        flops / total / 1e9);
            std::fflush(stdout);
        }
    }
}
