#include "src/train/training_plan.h"

#include <algorithm>

#include "src/model/device_choice.h"
#include "src/parallel/gpu_ranks.h"

namespace ingot {

namespace {

// The memory that CUDA itself takes during a run: code of kernels, cuBLASLt's workspace, graphs.
constexpr size_t kCudaReserve = size_t{640} << 20;

// Returns how many bytes of the device a plan may take.
size_t memory_budget(const Device& device) {
    const size_t free = device.is_planned() ? Device::Planned::memory_bytes : device.free_memory();
    return free - std::min(free, kCudaReserve);
}

// The largest micro-batch of at most `most` rows that divides the step and fits `budget`; 0 if none does.
int64_t largest_micro_batch(Config config, const Device& device, Ranks* ranks, int64_t most, size_t budget) {
    // The rows of one rank. The first rank has the most where they do not divide.
    const int64_t rows =
        (config.training.batch_tokens / config.model.context_length + ranks->size() - 1) / ranks->size();
    for (int64_t size = std::min(rows, most); size >= 1; --size) {
        if (rows % size != 0 || size * config.model.context_length > INT32_MAX) continue;
        config.training.micro_batch_size = size;
        if (TrainingPlan(config, device, ranks).total_bytes() <= budget) return size;
    }
    return 0;
}

}  // namespace

TrainingPlan::TrainingPlan(const Config& config, const Device& device, Ranks* ranks)
    : config_(config),
      device_(device),
      ranks_(*ranks),
      model(device, config.model,
            {.dtype = compute_type(config.training.precision, device),
             .max_tokens = config.training.micro_batch_size * config.model.context_length,
             .max_positions = config.model.context_length,
             .is_training = true,
             .uses_fp8 = config.training.precision == Precision::fp8,
             .recompute = config.training.recompute,
             .z_loss = config.training.z_loss,
             .attention = config.training.attention_options(),
             .num_ranks = ranks->size()},
            &memory_),
      optimizer(model, ranks, config.distributed.zero, &memory_),
      // Evaluation and samples fill them; training's batches are the loader's.
      batch(
          device, model.max_tokens(), &memory_,
          config.data.val.empty() && config.eval.hellaswag.empty() && config.sample.every == 0 ? nullptr : host_plan()),
      loader_ring(Loader::kBatches),
      step(device, "step", &memory_),
      eval_step(device, "eval_step", &memory_),
      writer(config, model, optimizer, ranks, host_plan()) {
    model.set_bucket_use(&optimizer);
    if (!device.is_cpu() && ranks->size() > 1)
        memory_.add("collectives.staging", DType::u8, {staging_bytes_of_gpu_ranks(ranks->size())}, &staging);
    for (size_t i = 0; i < loader_ring.size(); ++i)
        loader_ring[i].plan(join("loader.", i), model.max_tokens(), host_plan());
    if (config.sample.every > 0)
        generator = std::make_unique<Generator>(model, batch, config.model.context_length, &memory_);
}

void TrainingPlan::check_host_memory(const AvailableMemory& available) const {
    const size_t bytes = device_.is_cpu() ? memory_.total_bytes() : host_memory_.total_bytes();
    REQUIRE(bytes <= available.bytes, "the plan needs ", format_bytes(bytes),
            device_.is_cpu() ? " of memory, " : " of page-locked host memory, ", available.describe(),
            device_.is_cpu()
                ? ": use a smaller training.micro_batch_size, training.recompute = \"block\", or a smaller model"
                : ": set a lower checkpoint.host_memory (0: none)");
}

void TrainingPlan::check_memory() const {
    check_host_memory(available_memory());
    if (device_.is_cpu()) return;
    const size_t budget = memory_budget(device_);
    if (total_bytes() <= budget) return;
    const int64_t fits = largest_micro_batch(config_, device_, &ranks_, config_.training.micro_batch_size - 1, budget);
    throw UserError(join("the plan needs ", format_bytes(total_bytes()), " of ", device_.name(), "'s memory, ",
                         format_bytes(budget), " can be used: ",
                         fits > 0 ? join("use training.micro_batch_size ", fits, ", the largest that fits")
                                  : "use training.recompute = \"block\", or a smaller model"));
}

void TrainingPlan::allocate() {
    check_memory();
    allocation_ = memory_.allocate(device_);
    if (!device_.is_cpu()) host_allocation_ = host_memory_.allocate_host(device_);
}

void TrainingPlan::clear() {
    device_.zero(Tensor::contiguous(allocation_.get(), DType::u8, {static_cast<int64_t>(memory_.total_bytes())},
                                    device_.kind()));
    device_.synchronize();
}

int64_t TrainingPlan::num_micro_steps() const {
    const int64_t tokens = model.max_tokens() * ranks_.size();
    return (config_.training.batch_tokens + tokens - 1) / tokens;
}

std::string TrainingPlan::memory_table() const {
    std::string text = "memory plan:\n" + memory_.table();
    if (!device_.is_cpu() && host_memory_.total_bytes() > 0) text += "host memory plan:\n" + host_memory_.table();
    return text;
}

void resolve_micro_batch(Config* config, const Device& device, Ranks* ranks) {
    if (device.is_cpu() || !config->training.micro_batch_is_auto) return;
    const size_t budget = memory_budget(device);
    const int64_t size = -ranks->agree(-largest_micro_batch(*config, device, ranks, INT64_MAX, budget));
    if (size == 0) {
        config->training.micro_batch_size = 1;
        throw UserError(join("a micro-batch of one row needs ",
                             format_bytes(TrainingPlan(*config, device, ranks).total_bytes()), " of ", device.name(),
                             "'s memory, ", format_bytes(budget),
                             " can be used: use training.recompute = \"block\", or a smaller model"));
    }
    config->training.micro_batch_size = size;
}

}  // namespace ingot
