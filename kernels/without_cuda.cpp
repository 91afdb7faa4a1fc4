// Stands in for every CUDA file in a build without CUDA, so that callers need no #if. Device::cuda() refuses, so
// nothing that takes a CUDA device is reached. The functions at the end of the file are for the CPU device too.
#include "kernels/adamw.h"
#include "kernels/attention/decode.h"
#include "kernels/attention/left_out.h"
#include "kernels/attention/materialized.h"
#include "kernels/attention/simt.h"
#include "kernels/attention/sm80.h"
#include "kernels/attention/sm90.h"
#include "kernels/core/cuda_device.h"
#include "kernels/core/profile.h"
#include "kernels/cross_entropy.h"
#include "kernels/cuda/system.h"
#include "kernels/cuda/timing.h"
#include "kernels/embedding.h"
#include "kernels/fill.h"
#include "kernels/fp8.h"
#include "kernels/matmul/choices.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/study.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/step.h"
#include "kernels/swiglu.h"

namespace ingot {

namespace {

[[noreturn]] void refuse() {
    throw UserError("this build has no CUDA device: configure with -DINGOT_CUDA=ON, or use the CPU");
}

}  // namespace

// ---- Devices: core/cuda_device.h ----

bool Device::has_cuda() {
    return false;
}
int Device::num_cuda_devices(std::string* why) {
    *why = "built without CUDA";
    return 0;
}
std::string Device::pci_bus_id(int) {
    return "";
}
// clang-format off
std::shared_ptr<CudaContext> open_cuda_context(int, std::string*) { refuse(); }
std::shared_ptr<CudaContext> borrow_cuda_stream(int, void*, std::string*) { refuse(); }
void* cuda_stream(CudaContext&) { refuse(); }
std::shared_ptr<void> cuda_allocate(CudaContext&, size_t) { refuse(); }
std::shared_ptr<void> cuda_allocate_host(CudaContext&, size_t) { refuse(); }
size_t cuda_free_memory(CudaContext&) { refuse(); }
void cuda_start_copy(CudaContext&, Stream, void*, const void*, size_t) { refuse(); }
void cuda_fill(CudaContext&, void*, uint8_t, size_t) { refuse(); }
void cuda_synchronize(CudaContext&) { refuse(); }
std::shared_ptr<void> cuda_create_event(CudaContext&) { refuse(); }
void cuda_record_event(CudaContext&, void*, Stream) { refuse(); }
void cuda_wait_event(void*) { refuse(); }
void cuda_block_stream(CudaContext&, void*, Stream) { refuse(); }
void cuda_block_stream_from_outside(CudaContext&, void*, Stream) { refuse(); }
double cuda_seconds_between(void*, void*) { refuse(); }
std::shared_ptr<void> cuda_record_graph(CudaContext&, const std::function<void()>&) { refuse(); }
void cuda_launch_graph(CudaContext&, void*) { refuse(); }

// ---- Ops ----

void adamw_cuda(const Device&, const AdamW&) { refuse(); }
void gradient_norm_cuda(const Device&, const GradientNorm&) { refuse(); }
void cross_entropy_cuda(const Device&, const CrossEntropy&) { refuse(); }
void loss_sum_cuda(const Device&, const LossSum&) { refuse(); }
void embedding_forward_cuda(const Device&, const EmbeddingForward&) { refuse(); }
void embedding_backward_cuda(const Device&, const EmbeddingBackward&) { refuse(); }
void fill_normal_cuda(const Device&, const FillNormal&) { refuse(); }
void fill_value_cuda(const Device&, const FillValue&) { refuse(); }
void round_to_cuda(const Device&, const RoundTo&) { refuse(); }
bool supports_fp8_cuda(const Device&) { refuse(); }
void fp8_quantize_cuda(const Device&, const Fp8Quantize&) { refuse(); }
void fp8_update_scales_cuda(const Device&, const Fp8UpdateScales&) { refuse(); }
void rmsnorm_forward_cuda(const Device&, const RmsNormForward&) { refuse(); }
void rmsnorm_forward_fp8_cuda(const Device&, const RmsNormForward&) { refuse(); }
void rmsnorm_backward_cuda(const Device&, const RmsNormBackward&) { refuse(); }
size_t rmsnorm_backward_workspace_cuda(const Device&, const Tensor&) { refuse(); }
void rope_cuda(const Device&, const Rope&, int) { refuse(); }
void step_begin_cuda(const Device&, StepBlock*, const StepSettings&) { refuse(); }
void step_decide_cuda(const Device&, StepBlock*) { refuse(); }
void swiglu_forward_cuda(const Device&, const SwigluForward&) { refuse(); }
void swiglu_backward_cuda(const Device&, const SwigluBackward&) { refuse(); }
void swiglu_forward_fp8_cuda(const Device&, const SwigluForward&) { refuse(); }
void swiglu_backward_fp8_cuda(const Device&, const SwigluBackward&) { refuse(); }

bool is_hopper(const Device&) { refuse(); }
void attention_forward_simt_cuda(const Device&, const AttentionForward&) { refuse(); }
void attention_backward_simt_cuda(const Device&, const AttentionBackward&) { refuse(); }
void attention_forward_sm80_cuda(const Device&, const AttentionForward&) { refuse(); }
void attention_backward_sm80_cuda(const Device&, const AttentionBackward&) { refuse(); }
void attention_forward_sm90_cuda(const Device&, const AttentionForward&) { refuse(); }
void attention_backward_sm90_cuda(const Device&, const AttentionBackward&) { refuse(); }
void attention_decode_cuda(const Device&, const AttentionDecode&) { refuse(); }
void kv_cache_append_cuda(const Device&, const KvCacheAppend&) { refuse(); }
void attention_left_out_forward_cuda(const Device&, const AttentionLeftOutForward&) { refuse(); }
void attention_left_out_backward_cuda(const Device&, const AttentionLeftOutBackward&) { refuse(); }

void matmul_cuda(const Device&, const Gemm&) { refuse(); }
void matmul_backward_bias_cuda(const Device&, const MatmulBackwardBias&) { refuse(); }
size_t matmul_backward_bias_workspace_cuda(const Device&, int64_t) { refuse(); }

// ---- What benchmarks and profilers use ----

MaterializedAttention::MaterializedAttention(const Device& d, const Tensor&, int64_t) : device_(d) { refuse(); }
void MaterializedAttention::forward(const AttentionForward&) { refuse(); }
void MaterializedAttention::backward(const AttentionBackward&) { refuse(); }
MatmulStudy study_matmul(const Device&, const Gemm&, double, double) { refuse(); }
void copy_kernel_cuda(const Device&, const Tensor&, const Tensor&) { refuse(); }
std::string describe_cuda(const Device&) { refuse(); }
CudaSystem describe_cuda_system() { return {}; }

// The CPU device has no choices of algorithms: kernels/matmul/choices.h.
void set_matmul_tuning(const Device&, MatmulTuning) {}
void prefer_matmul_choices(const Device&, const std::vector<MatmulChoice>&, MatmulSource) {}
std::vector<MatmulChoice> matmul_choices(const Device&) { return {}; }
MatmulCounts matmul_counts(const Device&) { return {}; }
std::string matmul_machine(const Device&) { return {}; }

void begin_profile() {}
void end_profile() {}
bool is_profiling() { return false; }
void push_profile_range(const std::string&) {}
void pop_profile_range() {}
// clang-format on

}  // namespace ingot
