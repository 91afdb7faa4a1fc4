// write_logits CHECKPOINT DEVICE < IDS > LOGITS: what tests of exports compare with the logits of other programs.
// IDS: token ids of one text, int32; LOGITS: (tokens, vocabulary) in fp32. Computed as ./train eval does, in the type
// that the run asks for on that device.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <numeric>
#include <vector>

#include "kernels/attention/attention.h"
#include "src/base/output.h"
#include "src/checkpoint/checkpoint.h"
#include "src/model/batch.h"
#include "src/model/device_choice.h"

namespace ingot {
namespace {

void write_logits(const std::string& folder, const std::string& device_name, const std::vector<int32_t>& tokens) {
    const Device device = choose_device(device_name).device;
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Config& config = checkpoint.manifest.config;
    const int64_t N = static_cast<int64_t>(tokens.size());
    REQUIRE(N > 0 && N <= config.model.context_length, "there are ", N, " tokens");
    const DType dtype = compute_type(config.training.precision, device);
    MemoryPlan plan;
    Model model(device, config.model, {.dtype = dtype, .max_tokens = N, .max_positions = config.model.context_length},
                &plan);
    BatchBuffers buffers(device, N, &plan);
    Tensor logits, logits32;
    plan.add("test.logits", dtype, {N, config.model.padded_vocab_size()}, &logits);
    const std::shared_ptr<void> memory = plan.allocate(device);
    model.initialize_constants();
    load_weights(checkpoint, model);

    HostBatch* const batch = buffers.next();
    batch->resize(N);
    std::copy(tokens.begin(), tokens.end(), batch->tokens.begin());
    std::fill(batch->targets.begin(), batch->targets.end(), -1);
    std::iota(batch->positions.begin(), batch->positions.end(), 0);
    batch->document_starts = {0};
    fill_document_mask(batch->mask(), batch->document_starts, true);
    std::vector<int64_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    model.logits(buffers.upload(), rows, logits);

    std::vector<uint8_t> staging(static_cast<size_t>(logits.bytes()));
    const Tensor host = Tensor::contiguous(staging.data(), dtype, {N, config.model.padded_vocab_size()});
    device.copy(host, logits);
    std::string text;
    for (int64_t row = 0; row < N; ++row)
        for (int64_t token = 0; token < config.model.vocab_size; ++token) {
            const int64_t i = row * config.model.padded_vocab_size() + token;
            const float value = dtype == DType::bf16  ? to_float(host.get<bf16>()[i])
                                : dtype == DType::f16 ? to_float(host.get<f16>()[i])
                                                      : host.get<float>()[i];
            text.append(reinterpret_cast<const char*>(&value), sizeof value);
        }
    write_output(text);
}

}  // namespace
}  // namespace ingot

int main(int argc, char** argv) {
    const std::string input(std::istreambuf_iterator<char>(std::cin), {});
    std::vector<int32_t> tokens(input.size() / sizeof(int32_t));
    std::copy_n(input.data(), tokens.size() * sizeof(int32_t), reinterpret_cast<char*>(tokens.data()));
    if (argc != 3) {
        std::fprintf(stderr, "usage: write_logits CHECKPOINT auto|cpu|cuda < IDS > LOGITS\n");
        return 2;
    }
    try {
        ingot::write_logits(argv[1], argv[2], tokens);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
