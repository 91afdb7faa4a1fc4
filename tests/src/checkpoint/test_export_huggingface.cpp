// Exports for transformers, as far as C++ alone sees them; tests/scripts/test_export_hf.py loads them there.
// Seen to catch: a tensor that goes over the limit put into the file before, offsets that count from the first file,
// the index without its last entry, fp16 that becomes infinite, a byte's letter off by one, a folder that is replaced.
#include "src/checkpoint/export_huggingface.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "src/base/output_folder.h"
#include "src/checkpoint/export.h"
#include "src/checkpoint/export_huggingface_config.h"
#include "src/checkpoint/export_huggingface_tokenizer.h"
#include "src/checkpoint/modeling_ingot.h"
#include "src/model/parameters.h"
#include "tests/src/model/small_model.h"
#include "tests/support/errors.h"
#include "tests/support/in_folder.h"

namespace ingot::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Exports : public InFolder {
  protected:
    json read_json(const std::string& name) const { return json::parse(read(name)); }
    std::vector<std::string> names() const {
        std::vector<std::string> result;
        for (const auto& entry : fs::directory_iterator(folder_)) result.push_back(entry.path().filename());
        std::sort(result.begin(), result.end());
        return result;
    }

    // A checkpoint of random weights, without what an export does not look at.
    Checkpoint checkpoint(const ModelConfig& model_config) {
        const SmallModel model(model_config, {.dtype = DType::f32, .is_training = false});
        const std::string file = path("weights.safetensors");
        write_safetensors(OutputFile(file), checkpoint_tensors(model.model.table(), {{0, model.model.weights()}}, ""),
                          {});
        Checkpoint result;
        result.folder = path("checkpoint");
        result.manifest.config.model = model_config;
        result.weights = open_weights(file, model_config);
        fs::remove(file);
        return result;
    }
    static std::shared_ptr<const TensorFiles> open_weights(const std::string& file, const ModelConfig& model) {
        return std::make_shared<TensorFiles>(std::vector{file}, ParameterTable(model), std::vector<std::string>{""});
    }
    std::vector<float> memory_;  // of tensors in fragments, of which there are none here
};

bool is_same(const Tensor& a, const Tensor& b) {
    return a.dtype == b.dtype && a.bytes() == b.bytes() && a.describe() == b.describe() &&
           std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

TEST_F(Exports, ShardsHoldEveryTensorOnceAndTheIndexSaysWhere) {
    ModelConfig model = tiny_config();
    model.position = Position::rope;
    model.tie_embeddings = false;
    const Checkpoint source = checkpoint(model);
    const std::vector<std::string> expected = source.weights->names();
    uint64_t largest = 0, total = 0;
    for (const std::string& name : expected) {
        const auto bytes = static_cast<uint64_t>(source.weights->tensor(name, &memory_).bytes());
        largest = std::max(largest, bytes);
        total += bytes;
    }
    ASSERT_EQ(largest, 11u * 8 * 4);
    // The first leaves the largest alone, the last fits all.
    for (const uint64_t limit : {largest - 1, largest, largest + 100, total - 1, total}) {
        SCOPED_TRACE(limit);
        export_huggingface(source, path("out"), DType::f32, limit);
        std::map<std::string, std::string> where;  // tensor: file
        for (const auto& entry : fs::directory_iterator(folder_ / "out")) {
            const std::string file = entry.path().filename();
            if (entry.path().extension() != ".safetensors") continue;
            const SafetensorsFile shard(entry.path());
            EXPECT_EQ(shard.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
            uint64_t bytes = 0;
            for (const std::string& name : shard.names()) {
                EXPECT_TRUE(where.emplace(name, file).second) << name << " stands twice";
                EXPECT_TRUE(is_same(shard.tensor(name), source.weights->tensor(name, &memory_))) << name;
                bytes += static_cast<uint64_t>(shard.tensor(name).bytes());
            }
            EXPECT_TRUE(bytes <= limit || shard.names().size() == 1) << file << " has " << bytes;
        }
        EXPECT_EQ(where.size(), expected.size());
        if (limit == total) {
            EXPECT_EQ(where.at("lm_head.weight"), "model.safetensors");
            EXPECT_FALSE(fs::exists(folder_ / "out/model.safetensors.index.json"));
        } else {
            const json index = read_json("out/model.safetensors.index.json");
            EXPECT_EQ(index.at("metadata").at("total_size"), total);
            EXPECT_EQ(index.at("weight_map").get<decltype(where)>(), where);
            std::set<std::string> files;
            for (const auto& [name, file] : where) files.insert(file);
            char last[64];
            std::snprintf(last, sizeof last, "model-%05zu-of-%05zu.safetensors", files.size(), files.size());
            EXPECT_EQ(*files.rbegin(), last);
            if (limit == total - 1) {
                EXPECT_EQ(files.size(), 2u);
            }
        }
        fs::remove_all(folder_ / "out");
    }
}

TEST_F(Exports, RoundsToNearestEven) {
    Checkpoint source = checkpoint(tiny_config());
    for (const auto& [dtype, name] : {std::pair{DType::bf16, "bfloat16"}, {DType::f16, "float16"}}) {
        export_huggingface(source, path(name), dtype);
        const SafetensorsFile file(path(std::string(name) + "/model.safetensors"));
        for (const std::string& tensor : file.names()) {
            const Tensor from = source.weights->tensor(tensor, &memory_), to = file.tensor(tensor);
            ASSERT_EQ(to.dtype, dtype);
            for (int64_t i = 0; i < from.numel(); ++i) {
                const float value = from.get<float>()[i];
                const uint16_t bits = dtype == DType::bf16 ? to.get<bf16>()[i].bits : to.get<f16>()[i].bits;
                ASSERT_EQ(bits, dtype == DType::bf16 ? to_bf16(value).bits : to_f16(value).bits);
            }
        }
        EXPECT_EQ(read_json(std::string(name) + "/config.json").at("torch_dtype"), name);
    }
}

// The tensor is larger than a piece and than one thread's share, with special values at both ends of pieces.
TEST_F(Exports, PiecesAreWrittenWholeAndInOrder) {
    constexpr int64_t kCount = (1 << 20) * 2 + 17;
    std::vector<float> values(kCount);
    for (int64_t i = 0; i < kCount; ++i) values[static_cast<size_t>(i)] = random_normal(1, 2, static_cast<uint64_t>(i));
    const float infinity = std::numeric_limits<float>::infinity();
    values[0] = -0.0f;
    values[(1 << 20) - 1] = 1 + 0x1p-8f;  // halfway in bf16: to even
    values[1 << 20] = infinity;
    values[kCount - 1] = std::numeric_limits<float>::quiet_NaN();
    const Tensor source = Tensor::contiguous(values.data(), DType::f32, {kCount});
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        OutputFile file(path("out"));
        write_rounded(&file, source, dtype, "x");
        file.sync_and_close();
        const std::string bytes = read("out");
        ASSERT_EQ(bytes.size(), static_cast<size_t>(kCount * size_of(dtype)));
        for (size_t i = 0; i < values.size(); ++i) {
            uint32_t expected = 0, got = 0;
            if (dtype == DType::f32) std::memcpy(&expected, &values[i], 4);
            if (dtype == DType::bf16) expected = to_bf16(values[i]).bits;
            if (dtype == DType::f16) expected = to_f16(values[i]).bits;
            const size_t size = static_cast<size_t>(size_of(dtype));
            std::memcpy(&got, bytes.data() + i * size, size);
            ASSERT_EQ(got, expected) << i;
        }
    }
    values[1 << 20] = 65520;  // rounds to infinity in fp16; 65519 does not
    OutputFile file(path("out"));
    EXPECT_EQ(error_of([&] { write_rounded(&file, source, DType::f16, "x"); }),
              "2 x holds 65520, which fp16 cannot: export with --dtype bf16 or fp32");
    values[1 << 20] = 65519;
    write_rounded(&file, source, DType::f16, "x");
}

TEST_F(Exports, NothingIsLeftOfOneThatFails) {
    Checkpoint source = checkpoint(tiny_config());
    const Tensor norm = source.weights->tensor("model.norm.weight", &memory_);
    const std::string file = path("weights.safetensors");
    std::vector<float> large(static_cast<size_t>(norm.numel()), 1e6f);
    std::vector<NamedTensor> tensors;
    for (const std::string& name : source.weights->names())
        tensors.push_back({name, name == "model.norm.weight"
                                     ? Tensor::contiguous(large.data(), DType::f32, {norm.numel()})
                                     : source.weights->tensor(name, &memory_)});
    write_safetensors(OutputFile(file), tensors, {});
    source.weights = open_weights(file, tiny_config());
    fs::remove(file);
    const std::string error = error_of([&] { export_huggingface(source, path("a/b/out"), DType::f16); });
    EXPECT_EQ(error, "2 model.norm.weight holds 1e+06, which fp16 cannot: export with --dtype bf16 or fp32");
    EXPECT_EQ(names(), std::vector<std::string>{});
    fs::create_directory(folder_ / "a");
    error_of([&] { export_huggingface(source, path("a/b/out"), DType::f16); });
    EXPECT_EQ(names(), std::vector<std::string>{"a"});
    EXPECT_TRUE(fs::is_empty(folder_ / "a"));
}

TEST_F(Exports, AFolderThatIsThereStaysAsItIs) {
    const std::string is_there = " is there already: give another name, or move it away";
    fs::create_directory(folder_ / "empty");
    fs::create_symlink("nowhere", folder_ / "dangling");
    write("file", "text");
    for (const std::string name : {"empty", "empty/", "empty//", "dangling", "file", "empty/.", "empty/..", ""})
        EXPECT_EQ(error_of([&] { OutputFolder{path(name)}; }), "2 " + path(name) + is_there);
    for (const std::string name : {"/", ".", "..", "//"})
        EXPECT_EQ(error_of([&] { OutputFolder{name}; }), "2 " + name + is_there);
    EXPECT_EQ(names(), (std::vector<std::string>{"dangling", "empty", "file"}));
    EXPECT_TRUE(fs::is_empty(folder_ / "empty"));

    // A folder appears while the files are written, empty or not.
    for (const bool is_empty : {true, false}) {
        OutputFolder folder(path("late"));
        folder.write_text("a", "text");
        fs::create_directory(folder_ / "late");
        if (!is_empty) write("late/own", "text");
        EXPECT_EQ(error_of([&] { folder.commit(); }), "2 " + path("late") + is_there);
        EXPECT_FALSE(fs::exists(folder_ / "late/a"));
        fs::remove_all(folder_ / "late");
    }
    EXPECT_EQ(names(), (std::vector<std::string>{"dangling", "empty", "file"}));

    OutputFolder folder(path("new/"));
    EXPECT_FALSE(fs::exists(folder_ / "new"));
    folder.write_text("a", "text");
    folder.commit();
    EXPECT_EQ(read("new/a"), "text");
}

TEST_F(Exports, AskForSpaceAndForFoldersFirst) {
    OutputFolder folder(path("out"));
    folder.require_space(1);
    const std::string error = error_of([&] { folder.require_space(uint64_t{1} << 62); });
    EXPECT_TRUE(error.starts_with("5 cannot write " + path("out") + ": it needs ")) << error;
    EXPECT_NE(error.find("free some space"), std::string::npos);
    write("file", "text");
    EXPECT_EQ(error_of([&] { OutputFolder{path("new/../file/below/out")}; }).substr(0, 2), "2 ");
    EXPECT_FALSE(fs::exists(folder_ / "new"));
}

TEST(HuggingFaceClass, IsTheOneThatComputesTheModel) {
    ModelConfig model = tiny_config();
    const auto name = [&] { return huggingface_class(model).architecture; };
    EXPECT_EQ(name(), "IngotForCausalLM");
    model.position = Position::none;
    EXPECT_EQ(name(), "IngotForCausalLM");
    model.position = Position::rope;
    EXPECT_EQ(name(), "LlamaForCausalLM");
    model.rope_scaling.type = RopeScalingType::llama3;
    EXPECT_EQ(name(), "LlamaForCausalLM");
    model.n_heads = model.n_kv_heads = 3;
    EXPECT_EQ(name(), "MistralForCausalLM");
    model.qk_norm = true;
    EXPECT_EQ(name(), "Qwen3ForCausalLM");
    model.qkv_bias = true;
    EXPECT_EQ(name(), "IngotForCausalLM");
    model.qk_norm = false;
    EXPECT_EQ(name(), "Qwen2ForCausalLM");
}

// Versions 4 and 5 of transformers read the one or the other spelling; both must say the same.
TEST(HuggingFaceConfig, HasBothSpellings) {
    Config config;
    config.model = tiny_config();
    config.model.position = Position::rope;
    config.model.rope_theta = 500000;
    config.data.eot_token = 10;
    json written = huggingface_config(config, DType::bf16);
    EXPECT_EQ(written.at("torch_dtype"), "bfloat16");
    EXPECT_EQ(written.at("dtype"), "bfloat16");
    EXPECT_EQ(written.at("rope_theta"), 500000.0);
    EXPECT_EQ(written.at("rope_scaling"), nullptr);
    EXPECT_EQ(written.at("rope_parameters"), (json{{"rope_type", "default"}, {"rope_theta", 500000.0}}));
    EXPECT_EQ(written.at("eos_token_id"), 10);
    EXPECT_EQ(huggingface_generation_config(config).at("eos_token_id"), 10);

    config.model.rope_scaling = {RopeScalingType::llama3, 8, 1, 4, 4096};
    config.data.eot_token.reset();
    written = huggingface_config(config, DType::f32);
    json scaling = {{"rope_type", "llama3"},
                    {"factor", 8.0},
                    {"low_freq_factor", 1.0},
                    {"high_freq_factor", 4.0},
                    {"original_max_position_embeddings", 4096}};
    EXPECT_EQ(written.at("rope_scaling"), scaling);
    scaling["rope_theta"] = 500000.0;
    EXPECT_EQ(written.at("rope_parameters"), scaling);
    EXPECT_EQ(written.at("eos_token_id"), nullptr);
    EXPECT_EQ(written.at("bos_token_id"), nullptr);
    EXPECT_FALSE(huggingface_generation_config(config).contains("eos_token_id"));
    // Strict configs refuse 500000 and 8 where a fraction is due.
    EXPECT_TRUE(written.at("rope_theta").is_number_float());
    EXPECT_NE(huggingface_config(config, DType::f32).dump().find("\"factor\":8.0"), std::string::npos);
}

TEST(ByteTokenizer, GivesTheBytesInOurReaderToo) {
    std::string bytes;
    for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
    const std::string text = "h\xc3\xa9llo \xe4\xb8\xad\n\t <|end";  // as UTF-8, which a BPE reads
    for (const int64_t eot : {-1, 10, 256, 300}) {
        const auto tokenizer = parse_tokenizer(byte_tokenizer_json(eot), "made");
        EXPECT_EQ(tokenizer->encode(text), bytes_tokenizer()->encode(text));
        for (int32_t byte = 0; byte < 256; ++byte) {
            EXPECT_EQ(tokenizer->bytes_of(byte), bytes.substr(static_cast<size_t>(byte), 1));
            EXPECT_FALSE(tokenizer->is_special(byte));
        }
        if (eot < 256) continue;
        EXPECT_TRUE(tokenizer->is_special(static_cast<int32_t>(eot)));
        EXPECT_EQ(tokenizer->vocab_size(), eot + 1);
    }
}

TEST(ModelingIngot, IsWholeInTheProgram) {
    EXPECT_TRUE(kModelingIngot.starts_with("\"\"\""));
    EXPECT_TRUE(kModelingIngot.ends_with("\n"));
    EXPECT_NE(kModelingIngot.find("class IngotForCausalLM(IngotPreTrainedModel, GenerationMixin):"),
              std::string_view::npos);
}

}  // namespace
}  // namespace ingot::test
