#include "src/commands/cli.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "kernels/core/check.h"
#include "src/base/output.h"
#include "src/checkpoint/export.h"
#include "src/checkpoint/import.h"
#include "src/commands/arguments.h"
#include "src/commands/evaluate.h"
#include "src/commands/generate.h"
#include "src/commands/info.h"
#include "src/commands/show_rows.h"
#include "src/commands/tokenize.h"
#include "src/config/fields.h"
#include "src/parallel/world.h"
#include "src/train/train.h"

namespace ingot {

namespace {

const char* const kExitCodes = R"(
Exit codes:
  0  done                                    1  a fault of ours: please report it
  2  bad usage, config or data, no such device, or the run's folder was taken from it
  3  training stopped itself: the loss was not finite for too many steps
  4  another of the processes that train together died, or hung
  5  an allocation failed, or the last save did
 75  stopped by a signal or max_minutes, and what was trained is saved: go on with --resume auto
130  a second Ctrl-C: ended at once, without saving
An error is one line on stderr: what, where, and what to do.)";

const CommandSpec kTrain = {
    .name = "",
    .title = "Ingot " INGOT_VERSION " pretrains GPTs: one program, one JSON file for each run.",
    .usage = R"(  ./train --config FILE [--set section.key=value]... [--resume auto|none|PATH] [--device auto|cpu|cuda]
          [--gpus N] [--dry-run] [--profile FROM:TO]
  ./train eval | generate | export | import | tokenize | data | info [options])",
    .before = R"(
The first three commands to try:
  python3 scripts/prepare.py --machine-text --tokenizer bytes --output data/tiny     text -> token shards
  ./train --config configs/tiny.json                                      train on them, a few minutes
  ./train generate --checkpoint runs/tiny --prompt "def main():"          and let the model write)",
    .after = R"(
Commands:
  eval      the loss of a checkpoint on other text       ./train eval --help
  generate  text from a checkpoint                       ./train generate --help
  export    the model for transformers or llama.cpp      ./train export --help
  import    a model of Hugging Face to train on from     ./train import --help
  tokenize  text to token ids                            ./train tokenize --help
  data      packed rows, decoded, as training reads them ./train data --help
  info      what was built, and what would be used       ./train info --help

Examples:
  ./train --config configs/tiny.json --resume auto                    go on where it stopped, with the same bits
  ./train --config configs/tiny.json --set optimizer.lr=1e-3 --set name=slower      change two fields
  ./train --config configs/tiny.json --set 'data.train=["data/books/train-*.bin"]' --set name=books
  ./train eval --checkpoint runs/tiny --data 'data/tiny/val-*.bin')",
    .options = {
        {"--config", "FILE", "the run's configuration: JSON, comments allowed (configs/tiny.json is a short one)\n"},
        {"--set", "KEY=VALUE",
         "override one field of it, e.g. optimizer.lr=3e-4; may be repeated. VALUE is JSON, or\nplain text\n", true},
        {"--resume", "HOW",
         "auto: go on from the newest whole checkpoint of the run, or start where there is none\n"
         "none: start; a run that has checkpoints is refused, so nothing is overwritten (default)\n"
         "PATH: go on from this checkpoint\n"},
        {"--device", "NAME", "auto (a GPU if there is one), cpu or cuda; the same as --set training.device=NAME\n"},
        {"--gpus", "N",
         "train on N GPUs of this machine, one process each (default: all); with --device cpu, N processes\n"
         "on the CPU. torchrun, srun and mpirun start the processes themselves, on several machines too\n"},
        {"--dry-run", "", "print the plan (parameters, memory) and stop before anything is written\n"},
        {"--profile", "FROM:TO",
         "let a profiler record these steps: nsys profile -c cudaProfilerApi ./train --profile 20:22 ...\n"
         "They are slower than others: the GPU gets op after op, under the names of their layers\n"},
    }};

const CommandSpec kEval = {
    .name = "eval",
    .title = R"(./train eval: the loss of a checkpoint on token shards, all of them, each token once; or its accuracy on
HellaSwag.)",
    .usage = R"(  ./train eval --checkpoint DIR --data GLOB... [--format auto|llmc|megatron|raw] [--dtype uint16|uint32]
          [--json] [--device auto|cpu|cuda]
  ./train eval --checkpoint DIR --hellaswag FILE [--json] [--device auto|cpu|cuda])",
    .before = R"(
Prints one line on stdout, everything else on stderr:
  loss 3.41273 | perplexity 30.35 | bits/byte 1.23 | targets 864
loss: mean over the targets, in nats per token, without z-loss. perplexity: e to the loss. bits/byte: the same
per byte of text, where the tokenizer tells how many bytes there are. targets: how many tokens were predicted.
Documents are told apart as in training. It may run while the run goes on.
With --hellaswag:
  hellaswag 0.2650 | acc 0.2510 | 10042 examples
hellaswag: how often the right ending has the lowest mean loss per token. acc: the lowest sum. FILE is the
JSONL of the data set (hellaswag_val.jsonl), which the run's tokenizer reads, or what llm.c writes of it, or of
another multiple-choice set, as token ids. data/README.md says what the model reads.)",
    .after = R"(
Examples:
  ./train eval --checkpoint runs/tiny --data 'data/tiny/val-*.bin'
  ./train eval --checkpoint runs/tiny/checkpoints/step-00000300 --data 'data/books/*.bin' --json
  ./train eval --checkpoint runs/tiny --data old/val.bin --format raw --dtype uint16
  ./train eval --checkpoint runs/tiny --hellaswag hellaswag_val.jsonl)",
    .options = {
        {"--checkpoint", "DIR", "a run's folder (its newest whole checkpoint), or one checkpoint's folder\n"},
        {"--data", "GLOB", "token shards made with the run's tokenizer; quote the *; may be repeated\n", true},
        {"--format", "NAME",
         "of the shards: auto (Megatron's beside an .idx, else llm.c's), llmc, megatron, or raw\n"
         "(ids without a header)\n"},
        {"--dtype", "NAME", "of raw ids: uint16 or uint32\n"},
        {"--hellaswag", "FILE", "instead of --data: HellaSwag as JSONL, or in llm.c's binary format\n"},
        {"--json", "", "print one JSON object in full precision instead\n"},
        {"--device", "NAME", "auto (a GPU if there is one), cpu or cuda\n"},
    }};

const CommandSpec kGenerate = {
    .name = "generate",
    .title = "./train generate: text from a checkpoint, printed as it is made.",
    .usage = R"(  ./train generate --checkpoint DIR --prompt TEXT|- [--tokens 200] [--temperature 0.8] [--top-k 50]
          [--top-p 0.95] [--seed 1] [--stop TOKEN] [--device auto|cpu|cuda])",
    .before = R"(
Prints the prompt and what follows it on stdout, and the speed on stderr. It ends after --tokens tokens, or where
the model ends the document. The same seed gives the same text, for any number of threads.)",
    .after = R"(
A text longer than the model's context goes on: when the context is full, the model reads the last half of it
again and forgets what was before. On a terminal control characters and broken UTF-8 are shown as \xNN; in a
file or a pipe the bytes are what the model wrote.

Examples:
  ./train generate --checkpoint runs/tiny --prompt "def main():" --tokens 400
  ./train generate --checkpoint runs/tiny --prompt "" --temperature 0         the likeliest document
  head -c 500 README.md | ./train generate --checkpoint runs/tiny --prompt - > continued.txt)",
    .options = {
        {"--checkpoint", "DIR", "a run's folder (its newest whole checkpoint), or one checkpoint's folder\n"},
        {"--prompt", "TEXT", "the text to go on from; - reads it from standard input; \"\" begins a document\n"},
        {"--tokens", "N", "how many tokens to write at most (200)\n"},
        {"--temperature", "X", "0: always the likeliest token; 1: as the model has learnt; above: wilder (0.8)\n"},
        {"--top-k", "K", "draw among the K likeliest tokens; 0: among all (50)\n"},
        {"--top-p", "P", "and among those that make up P of the probability; 1: all (0.95)\n"},
        {"--seed", "N", "another number, another text (1)\n"},
        {"--stop", "TOKEN", "end at this token too, e.g. '<|im_end|>' after an answer; it is not printed\n"},
        {"--device", "NAME", "auto (a GPU if there is one), cpu or cuda\n"},
    }};

const CommandSpec kExport = {
    .name = "export",
    .title = "./train export: a checkpoint's model for other programs.",
    .usage = "  ./train export --checkpoint DIR --format hf|gguf --output PATH [--dtype bf16|fp16|fp32]",
    .before = R"(
hf: a folder that Hugging Face's transformers loads, and what builds on it. gguf: a file for llama.cpp.
The checkpoint itself stays as it is. What is at PATH already is refused.)",
    .after = R"(
Examples:
  ./train export --checkpoint runs/tiny --format hf --output exports/tiny
  ./train export --checkpoint runs/tiny --format gguf --output tiny.gguf --dtype fp32)",
    .options = {
        {"--checkpoint", "DIR", "a run's folder (its newest whole checkpoint), or one checkpoint's folder\n"},
        {"--format", "NAME", "hf or gguf\n"},
        {"--output", "PATH", "the folder (hf) or file (gguf) to write\n"},
        {"--dtype", "NAME", "of the weights: bf16, fp16 or fp32 (bf16)\n"},
    }};

const CommandSpec kImport = {
    .name = "import",
    .title = "./train import: a Hugging Face model as a checkpoint to train on from.",
    .usage = "  ./train import --from DIR --output DIR [--context-length N]",
    .before = R"(
Reads config.json, model.safetensors or its shards (bf16, fp16 or fp32), and tokenizer.json of a model that
computes what Ingot does: Llama 2 and 3 and what has their form (SmolLM2, TinyLlama), Mistral without a window,
Qwen2 and Qwen2.5, Qwen3, and what ./train export wrote. Whatever would be computed otherwise is refused by its
name. It writes a checkpoint with fp32 weights and no optimizer state, and beside it the config.json of a run
that trains on from it (model.init_from): change there what is to be learnt, and how fast.)",
    .after = R"(
Examples:
  ./train import --from downloads/SmolLM2-135M --output models/smollm2
  ./train generate --checkpoint models/smollm2 --prompt "The sea"
  ./train --config models/smollm2/config.json --set 'data.train=["data/books/train-*.bin"]')",
    .options = {
        {"--from", "DIR", "the folder of the model\n"},
        {"--output", "DIR", "the folder to write, which must not be there yet\n"},
        {"--context-length", "N",
         "tokens of a row, at most the model's max_position_embeddings (that, but at most 4096)\n"},
    }};

const CommandSpec kTokenize = {.name = "tokenize",
                               .title = "./train tokenize: the token ids of the text on standard input, one a line.",
                               .usage = "  ./train tokenize --tokenizer FILE [--count] < TEXT",
                               .before = R"(
FILE is the tokenizer.json of a byte-level BPE: GPT-2, Llama-3, Qwen and their kind. Whatever in it would give
other tokens than HF tokenizers gives is refused by its name. Added tokens in the text, <|endoftext|> and the like,
are found, special or not; a post-processor (a token before or after the whole) is not applied, as in data to
train on. What is no UTF-8 is read as U+FFFD.)",
                               .after = R"(
Examples:
  ./train tokenize --tokenizer data/books/tokenizer.json < README.md | head
  ./train tokenize --tokenizer data/books/tokenizer.json --count < README.md)",
                               .options = {
                                   {"--tokenizer", "FILE", "a tokenizer.json; or bytes: each byte is a token\n"},
                                   {"--count", "", "print how many tokens there are instead\n"},
                               }};

const CommandSpec kData = {
    .name = "data",
    .title = "./train data: packed rows as training reads them, decoded, with document borders and targets.",
    .usage = "  ./train data --config FILE [--row K] [--rows N] [--set section.key=value]...",
    .before = R"(
Rows are counted from 0 through the whole run: with batches of R rows, step S reads rows (S - 1) R to S R - 1.
Of each document it shows where it lies in the row, its positions, and which of its tokens have no target. A token
without text is shown as <ID>. Without a tokenizer all are ids.)",
    .after = R"(
Examples:
  ./train data --config configs/tiny.json --row 1000
  ./train data --config configs/tiny.json --rows 3 --set data.packing=best_fit)",
    .options = {
        {"--config", "FILE", "the run's config\n"},
        {"--row", "K", "the first row to show (0)\n"},
        {"--rows", "N", "how many (1)\n"},
        {"--set", "KEY=VALUE", "override one field, section.key=value; may be repeated\n", true},
    }};

const CommandSpec kInfo = {
    .name = "info",
    .title = "./train info: what was built, which device and kernels would be used and why, library versions.",
    .usage = "  ./train info [--json | --schema]",
    .before = "\nPut its output into a report of a problem.",
    .after = "",
    .options = {
        {"--json", "", "one JSON object\n"},
        {"--schema", "", "instead, the JSON schema of a config file, for editors (configs/schema.json)\n"},
    }};

std::string help_of(const CommandSpec& command) {
    return command.help() + kExitCodes +
           "\n\nRead on: README.md (a first run, step by step), configs/tiny.json (a config), data/README.md (data).\n";
}

std::string required(const Arguments& arguments, const char* name, const char* how) {
    if (!arguments.has(name)) arguments.refuse(join(name, " is missing: ", how));
    return arguments.text(name);
}

StepRange step_range(const Arguments& arguments, const char* name) {
    const std::string given = arguments.text(name);
    const char* const end = given.data() + given.size();
    StepRange range;
    const auto [colon, first_error] = std::from_chars(given.data(), end, range.first);
    const bool has_colon = first_error == std::errc{} && colon != end && *colon == ':';
    const auto [rest, last_error] = std::from_chars(has_colon ? colon + 1 : end, end, range.last);
    if (!has_colon || last_error != std::errc{} || rest != end || range.first < 1 || range.first > range.last)
        arguments.refuse(join(name, " is ", given,
                              ": it must be two steps, FROM:TO, the first not after the last, "
                              "e.g. 20:22"));
    return range;
}

// Returns the value that the option names as a config would; without the option, the first value of the enum.
template <typename E>
E named_value(const Arguments& arguments, const char* name) {
    std::vector<std::string> names;
    for (const auto& [choice, value] : enum_names<E>) names.push_back(choice);
    const std::string given = arguments.choice(name, names);
    const auto at = std::find(names.begin(), names.end(), given) - names.begin();
    return enum_names<E>[at].second;
}

int run_train(const Arguments& arguments, const std::vector<std::string>& argv) {
    TrainOptions options;
    options.arguments = argv;
    options.config_file = required(arguments, "--config", "start with ./train --config configs/tiny.json");
    options.overrides = arguments.texts("--set");
    options.resume = arguments.text("--resume", "none");
    options.is_dry_run = arguments.has("--dry-run");
    if (arguments.has("--profile")) {
        if (options.is_dry_run) arguments.refuse("--profile and --dry-run are both given: keep one");
        options.profile = step_range(arguments, "--profile");
    }
    if (arguments.has("--device")) {
        const std::string device = arguments.choice("--device", {"auto", "cpu", "cuda"});
        options.overrides.push_back("training.device=" + device);
    }
    if (arguments.has("--gpus")) options.num_ranks = arguments.integer("--gpus", 1, 1, kMostRanks);
    return train(options);
}

int run_eval(const Arguments& arguments) {
    EvaluateOptions options;
    options.checkpoint = required(arguments, "--checkpoint", "name a run's folder, e.g. --checkpoint runs/tiny");
    if (arguments.has("--hellaswag")) {
        for (const char* const other : {"--data", "--format", "--dtype"})
            if (arguments.has(other)) arguments.refuse(join("--hellaswag and ", other, " are both given: keep one"));
        options.hellaswag = arguments.text("--hellaswag");
    } else {
        required(arguments, "--data", "name token shards, e.g. --data 'data/tiny/val-*.bin', or give --hellaswag FILE");
        options.data = arguments.texts("--data");
    }
    options.format = named_value<DataFormat>(arguments, "--format");
    options.dtype = named_value<RawType>(arguments, "--dtype");
    const bool is_raw = options.format == DataFormat::raw, has_dtype = options.dtype != RawType::automatic;
    if (is_raw && !has_dtype) arguments.refuse("--format is raw, but --dtype is missing: add --dtype uint16 or uint32");
    if (!is_raw && has_dtype) arguments.refuse("--dtype belongs to raw ids alone: leave it out, or add --format raw");
    options.is_json = arguments.has("--json");
    options.device = arguments.choice("--device", {"auto", "cpu", "cuda"});
    return evaluate(options);
}

int run_generate(const Arguments& arguments) {
    GenerateOptions options;
    options.checkpoint = required(arguments, "--checkpoint", "name a run's folder, e.g. --checkpoint runs/tiny");
    if (!arguments.has("--prompt"))
        arguments.refuse("--prompt is missing: give a text, - for standard input, or \"\" for the start of a document");
    options.prompt = arguments.raw_text("--prompt");  // may be empty
    options.num_tokens = arguments.integer("--tokens", options.num_tokens, 1, 1'000'000'000);
    options.sampling.temperature = arguments.number("--temperature", options.sampling.temperature, 0, 100);
    options.sampling.top_k = arguments.integer("--top-k", options.sampling.top_k, 0, 1'000'000'000);
    options.sampling.top_p = arguments.number("--top-p", options.sampling.top_p, 0, 1, true);
    options.seed = static_cast<uint64_t>(arguments.integer("--seed", 1, 0, INT64_MAX));
    options.stop = arguments.text("--stop");
    options.device = arguments.choice("--device", {"auto", "cpu", "cuda"});
    return generate(options);
}

int run_export(const Arguments& arguments) {
    ExportOptions options;
    options.checkpoint = required(arguments, "--checkpoint", "name a run's folder, e.g. --checkpoint runs/tiny");
    required(arguments, "--format", "give hf (a folder for transformers) or gguf (a file for llama.cpp)");
    const bool is_gguf = arguments.choice("--format", {"hf", "gguf"}) == "gguf";
    options.format = is_gguf ? ExportFormat::gguf : ExportFormat::huggingface;
    options.output = required(arguments, "--output", "name what is to be written");
    const std::string dtype = arguments.choice("--dtype", {"bf16", "fp16", "fp32"});
    options.dtype = dtype == "bf16" ? DType::bf16 : dtype == "fp16" ? DType::f16 : DType::f32;
    return export_model(options);
}

int run_import(const Arguments& arguments) {
    ImportOptions options;
    options.from = required(arguments, "--from", "name the folder of a Hugging Face model");
    options.output = required(arguments, "--output", "name the folder to write");
    options.context_length = arguments.integer("--context-length", 0, 1, 16'777'216);
    return import_model(options);
}

int run_tokenize(const Arguments& arguments) {
    TokenizeOptions options;
    options.tokenizer =
        required(arguments, "--tokenizer", "name a tokenizer.json, e.g. --tokenizer data/books/tokenizer.json");
    options.is_count = arguments.has("--count");
    return tokenize(options);
}

int run_data(const Arguments& arguments) {
    ShowRowsOptions options;
    options.config_file = required(arguments, "--config", "name a run's config, e.g. --config configs/tiny.json");
    options.overrides = arguments.texts("--set");
    options.first_row = static_cast<uint64_t>(arguments.integer("--row", 0, 0, int64_t{1} << 40));
    options.num_rows = arguments.integer("--rows", 1, 1, 1'000'000);
    return show_rows(options);
}

}  // namespace

int run_command_line(int argc, char** argv) {
    const std::vector<CommandSpec> commands = {kTrain, kEval, kGenerate, kExport, kImport, kTokenize, kData, kInfo};
    const Arguments arguments = Arguments::parse(commands, argc, argv);
    const std::string& name = arguments.command().name;
    if (arguments.has("--help")) {
        write_output(help_of(arguments.command()));
        return kExitDone;
    }
    if (arguments.has("--version")) {
        write_output("ingot " INGOT_VERSION "\n");
        return kExitDone;
    }
    if (name.empty()) return run_train(arguments, {argv, argv + argc});
    end_with_the_reader();
    if (name == "eval") return run_eval(arguments);
    if (name == "generate") return run_generate(arguments);
    if (name == "export") return run_export(arguments);
    if (name == "import") return run_import(arguments);
    if (name == "tokenize") return run_tokenize(arguments);
    if (name == "data") return run_data(arguments);
    if (arguments.has("--schema")) {
        if (arguments.has("--json")) arguments.refuse("--json and --schema are both given: keep one");
        write_output(config_schema().dump(2) + "\n");
        return kExitDone;
    }
    return print_info(arguments.has("--json"));
}

}  // namespace ingot
