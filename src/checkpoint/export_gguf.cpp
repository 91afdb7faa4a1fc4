#include "src/checkpoint/export_gguf.h"

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "kernels/core/check.h"
#include "kernels/rope.h"
#include "src/base/output_folder.h"
#include "src/base/progress.h"
#include "src/base/text.h"
#include "src/checkpoint/export.h"
#include "src/checkpoint/export_gguf_tokenizer.h"
#include "src/checkpoint/gguf.h"
#include "src/model/parameters.h"

namespace ingot {

namespace fs = std::filesystem;

namespace {

// ---- What llama.cpp can compute ----

// Returns llama.cpp's name of the architecture that computes this model. Throws UserError if there is none.
std::string architecture_of(const ModelConfig& model) {
    const char* const instead = ": export with --format hf, which has it";
    constexpr int64_t kMaxLayers = 512;
    REQUIRE(model.n_layers <= kMaxLayers, "model.n_layers is ", model.n_layers, ", and llama.cpp takes at most ",
            kMaxLayers, instead);
    REQUIRE(model.position != Position::none, "model.position is \"none\", and no architecture of llama.cpp attends ",
            "without positions", instead);
    if (model.position == Position::alibi) {
        REQUIRE(!model.qk_norm, "model.position is \"alibi\" and model.qk_norm is true, and no architecture of ",
                "llama.cpp has both", instead);
        return "refact";
    }
    REQUIRE(!model.qk_norm || model.rope_scaling.type == RopeScalingType::none,
            "model.qk_norm is true and model.rope_scaling.type is not \"none\", and no architecture of llama.cpp has ",
            "both", instead);
    return model.qk_norm ? "qwen3" : "llama";
}

void add_model(const Config& config, const std::string& architecture, DType dtype, GgufFile* file) {
    const ModelConfig& model = config.model;
    // llama_ftype describes the matrices.
    const int64_t file_type = dtype == DType::f32 ? 0 : dtype == DType::f16 ? 1 : 32;
    const auto key = [&](const char* name) { return join(architecture, ".", name); };
    file->add_string("general.architecture", architecture);
    file->add_string("general.type", "model");
    file->add_string("general.name", config.name);
    file->add_uint32("general.file_type", file_type);
    file->add_uint32(key("vocab_size"), model.vocab_size);
    file->add_uint32(key("context_length"), model.context_length);
    file->add_uint32(key("embedding_length"), model.d_model);
    file->add_uint32(key("block_count"), model.n_layers);
    file->add_uint32(key("feed_forward_length"), model.d_ff);
    file->add_uint32(key("attention.head_count"), model.n_heads);
    file->add_uint32(key("attention.head_count_kv"), model.n_kv_heads);
    file->add_uint32(key("attention.key_length"), model.head_dim);
    file->add_uint32(key("attention.value_length"), model.head_dim);
    file->add_float32(key("attention.layer_norm_rms_epsilon"), model.norm_eps);
    if (model.position == Position::rope) {
        file->add_uint32(key("rope.dimension_count"), model.head_dim);
        file->add_float32(key("rope.freq_base"), model.rope_theta);
    }
}

// ---- Tensors ----

// Returns "blk.3.attn_q.weight" for "model.layers.3.self_attn.q_proj.weight".
std::string gguf_name(const std::string& name) {
    static const std::pair<std::string, const char*> parts[] = {{"model.embed_tokens.", "token_embd."},
                                                                {"model.norm.", "output_norm."},
                                                                {"lm_head.", "output."},
                                                                {"input_layernorm.", "attn_norm."},
                                                                {"self_attn.q_proj.", "attn_q."},
                                                                {"self_attn.k_proj.", "attn_k."},
                                                                {"self_attn.v_proj.", "attn_v."},
                                                                {"self_attn.o_proj.", "attn_output."},
                                                                {"self_attn.q_norm.", "attn_q_norm."},
                                                                {"self_attn.k_norm.", "attn_k_norm."},
                                                                {"post_attention_layernorm.", "ffn_norm."},
                                                                {"mlp.gate_proj.", "ffn_gate."},
                                                                {"mlp.up_proj.", "ffn_up."},
                                                                {"mlp.down_proj.", "ffn_down."}};
    const std::string layers = "model.layers.";
    std::string block, rest = name;
    if (name.rfind(layers, 0) == 0) {
        const size_t dot = name.find('.', layers.size());
        block = "blk." + name.substr(layers.size(), dot + 1 - layers.size());
        rest = name.substr(dot + 1);
    }
    for (const auto& [from, to] : parts)
        if (rest.rfind(from, 0) == 0) return block + to + rest.substr(from.size());
    throw Error(kExitFault, join("gguf: no name for the tensor ", name));
}

// llama.cpp's `llama` rotates neighbours, rows 2i and 2i + 1 of a head; ours are half a head apart. Reordering the
// rows of Q and K alike leaves the scores as they are.
void write_interleaved(OutputFile* file, const Tensor& source, int64_t head_size, DType dtype,
                       const std::string& name) {
    for (int64_t head = 0; head < source.shape[0]; head += head_size)
        for (int64_t i = 0; i < head_size; ++i) {
            const int64_t row = head + i / 2 + (i % 2) * (head_size / 2);
            write_rounded(file, source.slice(0, row, row + 1), dtype, name);
        }
}

// Adds the factors by which llama.cpp divides RoPE's frequencies.
void add_rope_factors(const ModelConfig& model, GgufFile* file) {
    const RopeScaling& scaling = model.rope_scaling;
    const RopeStretch stretch = {.factor = scaling.factor,
                                 .low_freq_factor = scaling.low_freq_factor,
                                 .high_freq_factor = scaling.high_freq_factor,
                                 .original_context = static_cast<double>(scaling.original_context_length)};
    std::vector<float> factors;
    for (int64_t i = 0; i < model.head_dim / 2; ++i) {
        const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(model.head_dim);
        factors.push_back(static_cast<float>(rope_stretch_of(std::pow(model.rope_theta, exponent), stretch)));
    }
    file->add_tensor("rope_freqs.weight", DType::f32, {model.head_dim / 2},
                     [factors](OutputFile* output) { output->write(factors.data(), factors.size() * sizeof(float)); });
}

void add_tensors(const Checkpoint& checkpoint, const std::string& architecture, DType dtype, GgufFile* file) {
    const ModelConfig& model = checkpoint.manifest.config.model;
    if (model.position == Position::rope && model.rope_scaling.type == RopeScalingType::llama3)
        add_rope_factors(model, file);
    const ParameterTable table(model);
    for (const Parameter& parameter : table.parameters())
        for (const CheckpointPart& part : parameter.parts) {
            const Tensor described = checkpoint.weights->describe(part.name);
            const std::vector<int64_t> shape(described.shape, described.shape + described.rank);
            // llama.cpp adds and multiplies vectors only in fp32.
            const DType written = parameter.is_matrix ? dtype : DType::f32;
            const bool is_rotated = part.name.find(".self_attn.q_proj.") != std::string::npos ||
                                    part.name.find(".self_attn.k_proj.") != std::string::npos;
            const bool interleaves = architecture == "llama" && is_rotated;
            file->add_tensor(gguf_name(part.name), written, shape,
                             [&files = *checkpoint.weights, written, interleaves, head_size = model.head_dim,
                              name = part.name](OutputFile* output) {
                                 std::vector<float> memory;
                                 const Tensor source = files.tensor(name, &memory);
                                 if (interleaves)
                                     write_interleaved(output, source, head_size, written, name);
                                 else
                                     write_rounded(output, source, written, name);
                             });
        }
}

// ---- The file ----

void commit(const GgufFile& content, const Checkpoint& checkpoint, const std::string& path) {
    REQUIRE(fs::path(path).has_filename(), "--output ", path,
            " names a folder: name the file to write, e.g. model.gguf");
    OutputPlace place(path);
    place.require_space(static_cast<uint64_t>(content.bytes()));
    OutputFile file = place.parent().create(place.temporary());
    Progress progress("exporting", static_cast<int64_t>(content.num_tensors()), "tensors");
    content.write(&file, [&] { progress.advance(1); });
    checkpoint.weights->require_intact();
    file.sync_and_close();
    place.commit();
}

}  // namespace

void export_gguf(const Checkpoint& checkpoint, const std::string& path, DType dtype) {
    const Config& config = checkpoint.manifest.config;
    const std::string architecture = architecture_of(config.model);
    GgufFile file;
    add_model(config, architecture, dtype, &file);
    const std::vector<std::string> notes = add_gguf_tokenizer(checkpoint, &file);
    add_tensors(checkpoint, architecture, dtype, &file);
    commit(file, checkpoint, path);
    for (const std::string& note : notes) std::fprintf(stderr, "note: %s\n", note.c_str());
    const char* const type = dtype == DType::f32 ? "fp32" : dtype == DType::f16 ? "fp16" : "bf16";
    const std::string shown = printable_line(path);
    std::fprintf(stderr, "wrote %s: %s, %s, architecture %s, from %s (step %ld)\n", shown.c_str(),
                 format_bytes(static_cast<size_t>(file.bytes())).c_str(), type, architecture.c_str(),
                 printable_line(checkpoint.folder).c_str(), static_cast<long>(checkpoint.manifest.step));
    if (!config.data.tokenizer.empty())
        std::fprintf(stderr, "run it with llama.cpp: llama-completion -m %s -no-cnv -p \"The \"\n", shown.c_str());
}

}  // namespace ingot
