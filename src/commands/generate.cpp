#include "src/commands/generate.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "kernels/core/measure.h"
#include "kernels/core/rng.h"
#include "src/base/output.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/checkpoint/checkpoint.h"
#include "src/commands/tokenize.h"
#include "src/model/device_choice.h"

namespace ingot {

namespace {

constexpr size_t kMaxPromptBytes = size_t{64} << 20;
// Threads synchronize a few times in every layer for every token. Below this number of weights, which one thread reads
// in less than a millisecond, they gain nothing and wait for each other on cores that others use (BENCHMARKS.md).
constexpr int64_t kWeightsWorthThreads = 4'000'000;

std::string read_prompt() {
    if (isatty(STDIN_FILENO) == 1) std::fprintf(stderr, "type the prompt, and end it with Ctrl-D\n");
    return read_standard_input(kMaxPromptBytes, "the prompt",
                               "the model reads no more than its context; give it the end of the text (tail -c)");
}

// Returns the id of the stop token, or -1 if the text is empty.
int32_t stop_token(Tokenizer& tokenizer, const std::string& text) {
    if (text.empty()) return -1;
    const std::vector<int32_t> tokens = tokenizer.encode(text);
    REQUIRE(tokens.size() == 1, "--stop ", excerpt(text, 60), " is ", tokens.size(),
            " tokens of this model: name one, e.g. '<|im_end|>' (./train tokenize shows the tokens of a text)");
    return tokens.front();
}

}  // namespace

int generate(const GenerateOptions& options) {
    const auto [device, reason] = choose_device(options.device);
    const Checkpoint checkpoint = open_checkpoint(options.checkpoint);
    const Config& config = checkpoint.manifest.config;
    const std::unique_ptr<Tokenizer> tokenizer = checkpoint_tokenizer(checkpoint);
    REQUIRE(tokenizer != nullptr, checkpoint.folder,
            " has no tokenizer: set data.tokenizer in the run's config to \"bytes\", or to the tokenizer.json that its "
            "shards were made with, where it is byte-level BPE, and save again (--resume auto)");
    const std::string prompt = options.prompt == "-" ? read_prompt() : options.prompt;
    const std::vector<int32_t> tokens = prompt_tokens(*tokenizer, prompt, config.data);
    const int32_t stop = stop_token(*tokenizer, options.stop);
    if (prompt.empty() && config.data.mask_documents && config.data.eot != EotSide::start)
        std::fprintf(stderr,
                     "note: where EOT closes documents in the training data, and they are masked, the model was never "
                     "shown how one begins: the first letters may be odd\n");

    // The cache of keys and values takes no more memory than this text needs.
    const int64_t num_prompt = static_cast<int64_t>(tokens.size()), context = config.model.context_length;
    const int64_t capacity = num_prompt > context ? context : std::min(context, num_prompt + options.num_tokens);
    const int64_t max_tokens = Generator::prefill(num_prompt, options.num_tokens, capacity);
    MemoryPlan plan;
    Model model(
        device, config.model,
        {.dtype = compute_type(config.training.precision, device), .max_tokens = max_tokens, .max_positions = context},
        &plan);
    BatchBuffers buffers(device, max_tokens, &plan);
    Generator generator(model, buffers, capacity, &plan);
    const std::shared_ptr<void> memory = plan.allocate(device);
    model.initialize_constants();
    load_weights(checkpoint, model);
    std::fprintf(stderr, "checkpoint: %s (step %ld)\ndevice: %s%s, %s\n", checkpoint.folder.c_str(),
                 static_cast<long>(checkpoint.manifest.step), device.name().c_str(),
                 reason.empty() ? "" : join(" (", reason, ")").c_str(), format_bytes(plan.total_bytes()).c_str());
    if (num_prompt > context)
        std::fprintf(stderr, "note: the prompt has %ld tokens, the model's context is %ld: the last %ld are read\n",
                     static_cast<long>(num_prompt), static_cast<long>(context), static_cast<long>(max_tokens));

    if (device.is_cpu() && model.table().flat_size() < kWeightsWorthThreads) omp_set_num_threads(1);
    catch_stop_signals();
    TextStream stream(isatty(STDOUT_FILENO) == 1, write_output);
    stream.put(prompt);
    const double begin = seconds_now();
    generator.start(tokens);
    const double read_end = seconds_now();
    int64_t written = 0, without_text = 0;
    bool is_ended = false;
    for (int32_t token = -1; written < options.num_tokens && stop_signal() == 0; ++written) {
        if (written > 0) generator.append(token);
        token = generator.next(options.sampling, options.seed, stream_of("generate"), static_cast<uint64_t>(written));
        if (token < 0) {
            stream.finish();
            throw UserError(join("the model's logits are not finite at token ", written + 1, ": ", checkpoint.folder,
                                 " belongs to a run that has diverged; take an earlier checkpoint"));
        }
        is_ended = token == config.data.eot_token || token == stop;
        if (is_ended) break;
        const std::string_view bytes = tokenizer->bytes_of(token);
        stream.put(std::string(bytes));
        if (bytes.empty()) ++without_text;
    }
    stream.finish();
    const double seconds = seconds_now() - read_end;
    if (isatty(STDOUT_FILENO) == 1 && !stream.ends_line()) write_output("\n");
    if (without_text > 0)
        std::fprintf(stderr, "note: left out %s that the tokenizer has no text for\n",
                     counted(without_text, "token").c_str());
    std::fprintf(stderr, "%s in %.2f s, %s tokens/s; the prompt's %ld in %.2f s%s\n", counted(written, "token").c_str(),
                 seconds, short_count(static_cast<double>(written) / std::max(seconds, 1e-9)).c_str(),
                 static_cast<long>(std::min(num_prompt, max_tokens)), read_end - begin,
                 is_ended ? "; the model ended the text" : "");
    if (stop_signal() != 0) return exit_code_of_signal(stop_signal());
    return kExitDone;
}

}  // namespace ingot
