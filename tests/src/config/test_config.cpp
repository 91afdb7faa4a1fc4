// Seen to catch: a section's unknown keys not refused, the later of two equal keys winning, d_ff not rounded up to 64,
// bounds checked before the defaults alone.
#include "src/config/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/core/check.h"
#include "src/config/notes.h"
#include "tests/support/words.h"

namespace ingot::test {
namespace {

using nlohmann::json;

const char* const kMinimal = R"({
  "model": {"n_layers": 2, "d_model": 96, "n_heads": 4, "context_length": 64, "vocab_size": 300},
  "data": {"train": ["a.bin"]},
  "training": {"steps": 1000}
})";

Config parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return parse_config(text, "configs/trial.json", overrides);
}

// The error that these overrides of the minimal config give, or "accepted".
std::string error_of(const std::vector<std::string>& overrides, const std::string& text = kMinimal) {
    try {
        parse(text, overrides);
    } catch (const UserError& error) {
        EXPECT_EQ(error.exit_code, kExitUsage);
        return error.what();
    }
    return "accepted";
}

void expect_error(const std::vector<std::string>& overrides, const std::vector<std::string>& parts,
                  const std::string& text = kMinimal) {
    const std::string error = error_of(overrides, text);
    for (const std::string& part : parts)
        EXPECT_NE(error.find(part), std::string::npos) << (overrides.empty() ? text : overrides[0]) << " gives:\n"
                                                       << error << "\nwithout: " << part;
}

TEST(Config, Defaults) {
    const Config c = parse(kMinimal);
    EXPECT_EQ(c.name, "trial");
    EXPECT_EQ(c.run_dir, "runs/trial");
    EXPECT_EQ(c.seed, 1337);
    EXPECT_EQ(c.model.n_kv_heads, 4);
    EXPECT_EQ(c.model.head_dim, 24);
    EXPECT_EQ(c.model.d_ff, 256);  // 8/3 d_model, rounded up to 64
    EXPECT_EQ(parse(kMinimal, {"model.d_model=104"}).model.d_ff, 320);
    EXPECT_EQ(c.model.position, Position::alibi);
    EXPECT_EQ(c.model.rope_theta, 10000);
    EXPECT_TRUE(c.model.tie_embeddings);
    EXPECT_FALSE(c.model.qk_norm);
    EXPECT_EQ(c.model.norm_eps, 1e-5);
    EXPECT_EQ(c.model.init_std, 0.02);
    EXPECT_EQ(c.model.padded_vocab_size(), 384);
    EXPECT_TRUE(c.data.val.empty());
    EXPECT_TRUE(c.data.mask_documents);
    EXPECT_EQ(c.data.eot_token, std::nullopt);
    EXPECT_EQ(c.data.eot, EotSide::automatic);
    EXPECT_TRUE(c.data.shuffle);
    EXPECT_EQ(c.data.tokenizer, "");
    EXPECT_EQ(c.training.device, DeviceChoice::automatic);
    EXPECT_EQ(c.training.precision, Precision::automatic);
    EXPECT_EQ(c.training.max_minutes, std::nullopt);
    EXPECT_EQ(c.training.batch_tokens, 32 * 64);
    EXPECT_EQ(c.training.micro_batch_size, 8);
    EXPECT_EQ(c.training.recompute, Recompute::none);
    EXPECT_EQ(c.training.z_loss, 0);
    EXPECT_EQ(c.training.on_nonfinite, NonFinite::skip);
    EXPECT_EQ(c.training.max_skipped_steps, 20);
    EXPECT_EQ(c.optimizer.lr, 6e-4);
    EXPECT_EQ(c.optimizer.beta1, 0.9);
    EXPECT_EQ(c.optimizer.beta2, 0.95);
    EXPECT_EQ(c.optimizer.eps, 1e-8);
    EXPECT_EQ(c.optimizer.weight_decay, 0.1);
    EXPECT_EQ(c.optimizer.grad_clip, 1);
    EXPECT_EQ(c.schedule.type, ScheduleType::cosine);
    EXPECT_EQ(c.schedule.warmup_steps, 50);
    EXPECT_EQ(parse(kMinimal, {"training.steps=100000"}).schedule.warmup_steps, 700);
    EXPECT_EQ(c.schedule.final_lr_fraction, 0.1);
    EXPECT_EQ(c.schedule.decay_steps, 200);
    EXPECT_EQ(c.eval.every, 0);
    EXPECT_EQ(c.eval.tokens, 10485760);
    EXPECT_EQ(c.sample.every, 0);
    EXPECT_TRUE(c.sample.prompts.empty());
    EXPECT_EQ(c.sample.tokens, 64);
    EXPECT_EQ(c.sample.temperature, 0.8);
    EXPECT_EQ(c.checkpoint.every, 1000);
    EXPECT_EQ(c.checkpoint.keep, 3);
    EXPECT_EQ(c.checkpoint.keep_every, 0);
    EXPECT_TRUE(c.checkpoint.async);
    EXPECT_EQ(c.checkpoint.host_memory, std::nullopt);
    EXPECT_EQ(c.log.every, 1);
    EXPECT_TRUE(c.log.jsonl);
}

TEST(Config, TheMicroBatchDividesTheStep) {
    for (const auto& [rows, expected] : {std::pair<int64_t, int64_t>{8, 8}, {12, 4}, {6, 2}, {5, 1}, {1, 1}})
        EXPECT_EQ(parse(kMinimal, {join("training.batch_tokens=", rows * 64)}).training.micro_batch_size, expected)
            << rows;
    EXPECT_EQ(parse(kMinimal, {"training.micro_batch_size=\"auto\""}).training.micro_batch_size, 8);
}

TEST(Config, NullMeansTheDerivedDefault) {
    for (const char* const key :
         {"name", "run_dir", "model.n_kv_heads", "model.head_dim", "model.d_ff", "data.eot_token", "data.tokenizer",
          "training.batch_tokens", "training.micro_batch_size", "training.max_minutes", "schedule.warmup_steps",
          "schedule.decay_steps", "checkpoint.host_memory"})
        EXPECT_EQ(config_to_json(parse(kMinimal, {join(key, "=null")})), config_to_json(parse(kMinimal))) << key;
}

TEST(Config, AValueThatIsNoSizeIsNotTakenForTheDefault) {
    for (const char* const key :
         {"model.n_kv_heads", "model.head_dim", "model.d_ff", "training.batch_tokens", "training.micro_batch_size"})
        expect_error({join(key, "=0")}, {key, "0"});
    expect_error({"schedule.warmup_steps=-1"}, {"schedule.warmup_steps"});
    expect_error({"schedule.decay_steps=-1"}, {"schedule.decay_steps"});
    EXPECT_EQ(parse(kMinimal, {"schedule.warmup_steps=0"}).schedule.warmup_steps, 0);
}

TEST(Config, EveryKeyIsRead) {
    const Config defaults = parse(kMinimal);
    const nlohmann::ordered_json before = config_to_json(defaults);
    std::vector<std::string> overrides;
    for (const auto& [section, fields] :
         {std::pair<const char*, const char*>{"", "name=n run_dir=r seed=5"},
          {"model.",
           "n_layers=3 d_model=128 n_heads=8 n_kv_heads=2 head_dim=10 d_ff=77 context_length=32 "
           "vocab_size=999 position=rope rope_theta=5e5 rope_scaling.type=llama3 rope_scaling.factor=32 "
           "rope_scaling.low_freq_factor=2 rope_scaling.high_freq_factor=5 "
           "rope_scaling.original_context_length=16 tie_embeddings=false qkv_bias=true qk_norm=true "
           "norm_eps=1e-6 init_std=0.1 init_from=w"},
          {"data.",
           R"(train=[{"path":"x","weight":0.5,"format":"raw","dtype":"uint32","mask":"m"},{"path":"y","weight":2}] )"
           R"(packing=best_fit val=["z"] mask_documents=false eot_token=7 eot=end shuffle=false )"
           "tokenizer=bytes"},
          {"training.",
           "device=cuda precision=fp32 steps=77 batch_tokens=96 micro_batch_size=3 recompute=block "
           "tune=false attention=simt deterministic=false z_loss=1e-4 on_nonfinite=stop "
           "max_skipped_steps=2 max_minutes=1.5"},
          {"optimizer.", "lr=1 beta1=0.5 beta2=0.6 eps=1e-7 weight_decay=0 grad_clip=0"},
          {"schedule.", "type=wsd warmup_steps=11 final_lr_fraction=0 decay_steps=12"},
          {"eval.", "every=13 tokens=14 hellaswag=a.jsonl"},
          {"sample.", R"(every=15 prompts=["hi"] tokens=16 temperature=0)"},
          {"checkpoint.", "every=17 keep=18 keep_every=51 async=false host_memory=0"},
          {"distributed.", "zero=0 timeout_seconds=20"},
          {"log.", "every=19 jsonl=false"}})
        for (const std::string& field : words(fields, ' ', section)) overrides.push_back(field);
    const nlohmann::ordered_json after = config_to_json(parse(kMinimal, overrides));
    const json flat_before = json(before).flatten(), flat_after = json(after).flatten();
    for (const auto& [key, value] : flat_before.items()) {
        if (key == "/training/epochs") continue;  // stands instead of steps: a test of its own
        EXPECT_TRUE(!flat_after.contains(key) || flat_after.at(key) != value) << key << " was not changed";
    }
    // And back: what is written is read as the same, for the defaults and for none of them.
    for (const auto& dump : {before, after}) EXPECT_EQ(config_to_json(parse(dump.dump())), dump);
    EXPECT_EQ(config_to_json(parse(before.dump(2), {"optimizer.lr=0.1"}))["optimizer"]["lr"], 0.1);
}

TEST(Config, UnknownAndMisplacedKeys) {
    expect_error({"optimizer.learning_rate=1"}, {"configs/trial.json", "unknown key optimizer.learning_rate"});
    expect_error({"model.n_layer=1"}, {"unknown key model.n_layer", "did you mean model.n_layers?"});
    expect_error({"optimizer.learning_rate=1"}, {"unknown key optimizer.learning_rate", "did you mean optimizer.lr?"});
    expect_error({"training.block_size=64"}, {"did you mean model.context_length?"});
    expect_error({"optimizer.bta1=0.5"}, {"did you mean optimizer.beta1?"});
    expect_error({"modle.d_ff=4"}, {"unknown key modle", "did you mean model?"});
    expect_error({"lr=0.1"}, {"unknown key lr", "it belongs at optimizer.lr"});
    expect_error({"training.lr=0.1"}, {"unknown key training.lr", "it belongs at optimizer.lr"});
    expect_error({"model.optimizer={}"}, {"unknown key model.optimizer", "it belongs at optimizer"});
    const std::string error = error_of({"zzzzzzzzzz=1"});
    EXPECT_NE(error.find("unknown key zzzzzzzzzz"), std::string::npos);
    EXPECT_EQ(error.find("did you mean"), std::string::npos) << error;
}

TEST(Config, MissingKeysAndSections) {
    expect_error({}, {"\"model\"", "is missing", "configs/tiny.json"}, "{}");
    expect_error({}, {"model.context_length", "is missing"},
                 R"({"model": {"n_layers": 2, "d_model": 96, "n_heads": 4, "vocab_size": 9}})");
    expect_error({"model.vocab_size=null"},
                 {"configs/trial.json", "model.vocab_size is missing", "meta.json", "add it"});
    expect_error({}, {"\"data\"", "is missing"},
                 R"({"model": {"n_layers": 2, "d_model": 96, "n_heads": 4, "context_length": 64, "vocab_size": 9}})");
}

TEST(Config, WrongTypes) {
    expect_error({"model.n_layers=two"}, {"model.n_layers", "must be an integer"});
    expect_error({"model.n_layers=2.5"}, {"model.n_layers is 2.5", "must be an integer"});
    expect_error({"training.steps=1e3"}, {"training.steps", "must be an integer"});
    expect_error({"model.n_layers=null"}, {"model.n_layers is null", "must be an integer"});
    expect_error({"model.n_layers=true"}, {"must be an integer"});
    expect_error({"optimizer.lr=fast"}, {"optimizer.lr is \"fast\"", "must be a number"});
    expect_error({"optimizer.lr=NaN"}, {"must be a number"});
    expect_error({"optimizer.lr=1e999"}, {"optimizer.lr", "must be a number"});
    expect_error({"model.qk_norm=1"}, {"model.qk_norm is 1", "true or false"});
    expect_error({"name=3"}, {"name is 3", "must be a string"});
    expect_error({"data.train=a.bin"}, {"data.train", "must be a list"});
    expect_error({"data.train=[\"a\",3]"}, {"data.train[1] is 3", "must be a string"});
    expect_error({"model.position=learned"}, {"model.position is \"learned\"", "one of: alibi, rope, none"});
    expect_error({"model.position=1"}, {"one of: alibi, rope, none"});
    expect_error({"schedule.type=cos"}, {"one of: constant, linear, cosine, wsd"});
    expect_error({"data.eot=auto "}, {"one of: auto, start, end"});
    expect_error({"optimizer=3"}, {"optimizer is number", "object in braces"});
    expect_error({}, {"the config is array", "object in braces"}, "[]");
    expect_error({"training.micro_batch_size=automatic"}, {"training.micro_batch_size", "must be an integer"});
}

TEST(Config, HugeAndNegativeNumbers) {
    for (const std::string& key :
         words("model.n_layers model.d_model model.n_heads model.n_kv_heads model.head_dim model.d_ff "
               "model.context_length model.vocab_size training.steps training.batch_tokens "
               "training.micro_batch_size training.max_skipped_steps schedule.warmup_steps schedule.decay_steps "
               "eval.every eval.tokens sample.every sample.tokens checkpoint.every checkpoint.keep log.every "
               "data.eot_token"))
        for (const char* const value : {"9223372036854775807", "4611686018427387905", "-5", "-9223372036854775808"})
            expect_error({join(key, "=", value)}, {key, "it must lie in"});
    expect_error({"seed=9223372036854775808"}, {"seed is 9223372036854775808", "too large"});
    expect_error({"seed=99999999999999999999999"}, {"seed", "must be an integer"});
    expect_error({"seed=-1"}, {"seed is -1", "must lie in"});
    EXPECT_EQ(parse(kMinimal, {"seed=9223372036854775807"}).seed, INT64_MAX);
    expect_error({"optimizer.lr=-0.1"}, {"optimizer.lr is -0.1", "must lie in [0, 10]"});
    expect_error({"optimizer.lr=11"}, {"must lie in [0, 10]"});
    expect_error({"optimizer.beta1=1"}, {"optimizer.beta1", "must lie in"});
    expect_error({"optimizer.beta2=1"}, {"optimizer.beta2", "must lie in"});
    expect_error({"optimizer.eps=0"}, {"optimizer.eps is 0", "must lie in (0"});
    expect_error({"model.norm_eps=0"}, {"model.norm_eps", "must lie in (0"});
    expect_error({"model.init_std=0"}, {"model.init_std", "must lie in (0"});
    expect_error({"model.rope_theta=0.5"}, {"model.rope_theta", "must lie in [1"});
    expect_error({"schedule.final_lr_fraction=1.5"}, {"schedule.final_lr_fraction", "must lie in [0, 1]"});
    expect_error({"sample.temperature=-1"}, {"sample.temperature", "must lie in"});
    expect_error({"training.z_loss=2"}, {"training.z_loss", "must lie in [0, 1]"});
}

TEST(Config, RulesAcrossFields) {
    expect_error({"model.d_model=98"},
                 {"model.d_model 98 is not divisible by model.n_heads 4", "try 96", "model.head_dim"});
    EXPECT_EQ(parse(kMinimal, {"model.d_model=98", "model.head_dim=32"}).model.head_dim, 32);
    expect_error({"model.n_kv_heads=3"},
                 {"model.n_heads 4 is not divisible by model.n_kv_heads 3", "try n_kv_heads 2"});
    expect_error({"model.n_kv_heads=8"}, {"model.n_heads 4 is not divisible", "try n_kv_heads"});
    expect_error({"model.head_dim=5"}, {"model.head_dim 5 is odd", "use an even one"});
    expect_error({"model.head_dim=258"}, {"model.head_dim is 258", "[2, 256]"});
    expect_error({"training.batch_tokens=1000"}, {"training.batch_tokens 1000 is not a multiple", "try 960"});
    expect_error({"training.batch_tokens=32"}, {"is not a multiple", "try 64"});
    expect_error({"training.micro_batch_size=3"}, {"is not a multiple of training.micro_batch_size 3", "try 1920"});
    expect_error({"training.micro_batch_size=1048576", "model.context_length=16777216"},
                 {"2^31", "smaller micro-batch"});
    expect_error({"data.train=[]"}, {"data.train is empty", "name at least one"});
    expect_error({"schedule.warmup_steps=1001"},
                 {"schedule.warmup_steps 1001 is more than training.steps 1000", "at most 1000"});
    expect_error({"schedule.type=wsd", "schedule.warmup_steps=500", "schedule.decay_steps=501"},
                 {"schedule.warmup_steps + schedule.decay_steps", "training.steps 1000"});
    EXPECT_EQ(parse(kMinimal, {"schedule.type=cosine", "schedule.warmup_steps=900", "schedule.decay_steps=900"})
                  .schedule.warmup_steps,
              900);
    expect_error({"training.device=tpu"}, {"training.device is \"tpu\"", "auto, cpu, cuda"});
    expect_error({"data.tokenizer=gpt2"},
                 {"data.tokenizer is \"gpt2\"", "\"bytes\", the path of a tokenizer.json, or null"});
    expect_error({"data.tokenizer=bytes", "model.vocab_size=255"}, {"model.vocab_size 255 is too small", "use 257"});
    expect_error({"data.eot_token=300"}, {"data.eot_token is 300", "[-1, 299]"});
    expect_error({"sample.every=10"}, {"sample.every is set", "set sample.every to 0"});
}

TEST(Config, KeysGivenTwice) {
    expect_error({}, {"the key \"seed\" is given twice", "keep one"},
                 R"({"seed": 1, "seed": 1, "model": {}, "data": {}, "training": {}})");
    expect_error({}, {"the key \"lr\" is given twice"}, R"({"optimizer": {"lr": 1, "eps": 2, "lr": 3}})");
    // The same name in two sections is no repetition.
    EXPECT_EQ(error_of({"eval.every=3", "log.every=3"}), "accepted");
}

TEST(Config, JsonErrorsSayWhere) {
    expect_error({}, {"configs/trial.json", "line 3", "column"}, "{\n  \"seed\": 1,\n  \"name\" 3\n}");
    expect_error({}, {"configs/trial.json", "line 1"}, "");
    expect_error({}, {"configs/trial.json"}, "{\"seed\": 1e999}");
    expect_error({}, {"configs/trial.json", "line 2"}, "{}\n{}");
    expect_error({}, {"configs/trial.json"}, "{\"name\": \"\xff\"}");
}

TEST(Config, CommentsAreAllowed) {
    std::string text = kMinimal;
    text.insert(1, " // a line\n /* and\n a block */ ");
    EXPECT_EQ(error_of({}, text), "accepted");
}

TEST(Config, Overrides) {
    const Config c = parse(kMinimal, {"optimizer.lr=3e-4", "name=my run", "model.position=rope", "optimizer.lr=2e-4",
                                      "data.train=[\"a=b\"]", "run_dir=x=y"});
    EXPECT_EQ(c.optimizer.lr, 2e-4) << "the last one wins";
    EXPECT_EQ(c.name, "my run");
    EXPECT_EQ(c.run_dir, "x=y");
    ASSERT_EQ(c.data.train.size(), 1u);
    EXPECT_EQ(c.data.train[0].path, "a=b");
    EXPECT_EQ(c.model.position, Position::rope);
    for (const char* const text : {"optimizer.lr", "=3", ""}) expect_error({text}, {"--set", "section.key=value"});
    expect_error({"model.n_heads.x=3"}, {"--set model.n_heads.x=3", "n_heads is not a section"});
    expect_error({"seed.x=3"}, {"seed is {\"x\":3}", "must be an integer"});
    for (const char* const text : {"model..d_ff=3", ".seed=3", "seed.=3"})
        expect_error({text}, {"--set", "section.key=value"});
    expect_error({"name=\xff"}, {"--set", "UTF-8"});
}

TEST(Config, EpochsStandInsteadOfSteps) {
    Config c = parse(kMinimal, {"training.steps=null", "training.epochs=2.5", "training.batch_tokens=128"});
    EXPECT_EQ(c.training.steps, std::nullopt);
    resolve_steps(&c, 1000);
    EXPECT_EQ(c.training.steps, 20);  // 2500 tokens in steps of 128, rounded up
    EXPECT_EQ(c.training.epochs, std::nullopt);
    EXPECT_EQ(c.schedule.warmup_steps, 1);
    EXPECT_EQ(c.schedule.decay_steps, 4);
    const Config before = c;
    resolve_steps(&c, 5);
    EXPECT_EQ(config_to_json(c), config_to_json(before)) << "steps are given: the data say nothing";
    EXPECT_EQ(config_to_json(parse(config_to_json(c).dump())), config_to_json(c));

    expect_error({"training.epochs=1"}, {"training.steps and training.epochs are both given"});
    expect_error({"training.steps=null"}, {"training.steps is missing", "training.epochs"});
    expect_error({"training.steps=null", "training.epochs=0"}, {"training.epochs is 0", "(0,"});
    Config warm = parse(kMinimal, {"training.steps=null", "training.epochs=1", "schedule.warmup_steps=9"});
    EXPECT_THROW(resolve_steps(&warm, 2048), UserError) << "one step, nine of warm-up";
}

TEST(Config, WhatAResumedRunMayChange) {
    const Config then = parse(kMinimal);
    EXPECT_TRUE(config_changes(config_to_json(then), then).empty());
    const Config now = parse(kMinimal, {"model.d_ff=512", "seed=3", "optimizer.lr=0.1", "log.every=7"});
    const std::vector<ConfigChange> changes = config_changes(config_to_json(then), now);
    ASSERT_EQ(changes.size(), 4u);
    EXPECT_EQ(changes[0].path, "seed");
    EXPECT_EQ(changes[0].on_resume, OnResume::fixed);
    EXPECT_EQ(changes[1].path, "model.d_ff");
    EXPECT_EQ(changes[1].then, "256");
    EXPECT_EQ(changes[1].now, "512");
    EXPECT_EQ(changes[1].on_resume, OnResume::fixed);
    EXPECT_EQ(changes[2].path, "optimizer.lr");
    EXPECT_EQ(changes[2].on_resume, OnResume::from_now);
    EXPECT_EQ(changes[3].path, "log.every");
    EXPECT_EQ(changes[3].on_resume, OnResume::free);
}

TEST(Config, TheSchemaIsTheCommittedOne) {
    std::ifstream stream(INGOT_SOURCE_DIR "/configs/schema.json");
    std::stringstream text;
    text << stream.rdbuf();
    EXPECT_EQ(text.str(), config_schema().dump(2) + "\n")
        << "make it anew: ./train info --schema > configs/schema.json";
}

TEST(Config, EditorsMayBeToldTheSchema) {
    std::string text = kMinimal;
    text.insert(1, "\"$schema\": \"schema.json\",");
    EXPECT_EQ(error_of({}, text), "accepted");
    expect_error({"model.$schema=x"}, {"unknown key model.$schema"});
}

// Seen to catch: what a resolved config spells out taken for chosen, --set over one not taken for it.
TEST(Config, SettingsWithoutEffectAreNoted) {
    const auto notes = [](const Config& config, bool is_cpu = false) {
        std::string text;
        for (const std::string& note : settings_without_effect(config, is_cpu)) text += note + "\n";
        return text;
    };
    EXPECT_EQ(notes(parse(kMinimal), true), "");
    const std::pair<const char*, const char*> chosen[] = {
        {"model.rope_theta=5e5", "model.rope_theta has no effect: model.position is \"alibi\"\n"},
        {"model.rope_theta=10000", "model.rope_theta has no effect: model.position is \"alibi\"\n"},
        {"model.rope_scaling.factor=8",
         "model.rope_scaling.factor has no effect: model.rope_scaling.type is \"none\"\n"},
        {"schedule.decay_steps=100", "schedule.decay_steps has no effect: schedule.type is \"cosine\"\n"},
        {"eval.every=7", "eval.every has no effect: data.val names nothing to evaluate on\n"},
        {"sample.tokens=7", "sample.tokens has no effect: sample.every is 0\n"},
        {"training.tune=false", ""},
        {"training.deterministic=false", ""},
        {"checkpoint.host_memory=5", ""},
        {"training.max_skipped_steps=5", ""}};
    for (const auto& [setting, note] : chosen) EXPECT_EQ(notes(parse(kMinimal, {setting})), note) << setting;
    EXPECT_EQ(notes(parse(kMinimal, {"model.rope_theta=5e5", "model.position=rope"})), "");
    EXPECT_EQ(notes(parse(kMinimal, {"eval.every=7", "data.val=[\"b.bin\"]"})), "");
    EXPECT_EQ(notes(parse(kMinimal, {"eval.every=7", "eval.hellaswag=a.jsonl"})), "");
    EXPECT_EQ(notes(parse(kMinimal, {"checkpoint.host_memory=5", "checkpoint.async=false"})),
              "checkpoint.host_memory has no effect: checkpoint.async is false\n");
    EXPECT_EQ(notes(parse(kMinimal, {"training.max_skipped_steps=5", "training.on_nonfinite=stop"})),
              "training.max_skipped_steps has no effect: training.on_nonfinite is \"stop\"\n");
    EXPECT_EQ(notes(parse(kMinimal, {"training.tune=false"}), true), "training.tune has no effect: the CPU trains\n");
    EXPECT_EQ(notes(parse(kMinimal, {"training.deterministic=true"}), true),
              "training.deterministic has no effect: the CPU trains, where all sums have one order\n");
    const std::string resolved = config_to_json(parse(kMinimal)).dump();
    EXPECT_EQ(notes(parse(resolved), true), "");
    EXPECT_EQ(notes(parse(resolved, {"model.rope_theta=5e5"})), notes(parse(kMinimal, {"model.rope_theta=5e5"})));
}

TEST(Config, StretchedRopeNeedsRope) {
    expect_error({"model.rope_scaling.type=llama3"}, {"model.rope_scaling.type", "\"alibi\"", "\"rope\""});
    expect_error({"model.rope_scaling.type=yarn"}, {"model.rope_scaling.type", "llama3"});
    expect_error({"model.position=rope", "model.rope_scaling.type=llama3", "model.rope_scaling.low_freq_factor=4"},
                 {"low_freq_factor 4 is not below high_freq_factor 4"});
    const Config c = parse(kMinimal, {"model.position=rope", "model.rope_scaling={\"type\":\"llama3\",\"factor\":8}"});
    EXPECT_EQ(c.model.rope_scaling, (RopeScaling{.type = RopeScalingType::llama3, .factor = 8}));
}

TEST(Config, SixteenBitsNeedAGpu) {
    expect_error({"training.device=cpu", "training.precision=bf16"}, {"training.precision", "\"cpu\"", "\"auto\""});
    EXPECT_EQ(parse(kMinimal, {"training.precision=bf16"}).training.precision, Precision::bf16);
}

TEST(Config, FilesAreRead) {
    const std::filesystem::path path = std::filesystem::temp_directory_path() / "ingot_test_config.json";
    std::ofstream(path) << kMinimal;
    const Config c = read_config(path.string(), {"seed=2"});
    EXPECT_EQ(c.name, "ingot_test_config");
    EXPECT_EQ(c.seed, 2);
    std::filesystem::remove(path);
    EXPECT_THROW(read_config(path.string(), {}), UserError);
    EXPECT_THROW(read_config(std::filesystem::temp_directory_path().string(), {}), UserError);
}

}  // namespace
}  // namespace ingot::test
