"""./train export --format gguf: what is in the file, and what llama.cpp computes from it.

The tests of llama.cpp need its library: INGOT_LLAMA_CPP names the folder that scripts/dev/llama_cpp prints.

Seen to catch: no permutation; the two halves of a head swapped; K left as it was; neighbours for qwen3; llama3 factors
upside down; a head size of width / heads; another theta or epsilon; norms in bf16; merges in reverse order; a
pre-tokenizer of another pattern; a draft that stays.
"""

import array
import functools
import json
import math
import os
import pathlib
import resource
import struct
import subprocess
import unicodedata
import unittest

from . import ROOT, TRAIN, run, set_options
from .gguf_case import (Gguf, frequencies, mixed_text, read_safetensors, reference_logits, rounded, tokenizer_json,
                        train_bpe)
from .inputs import LLAMA3, QWEN, byte_letters, temporary_folder

CONTEXT = 48
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_level(use_regex=True, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split(regex, behavior="Isolated", invert=False):
    return sequence({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert},
                    byte_level(use_regex=False))


DIGITS = {"type": "Digits", "individual_digits": True}
THINK = {"content": "<think>", "special": False}
RUNS = [{"content": " " * count} for count in (2, 3, 8)] + [{"content": "\n\n"}]

# The models: section model, and the architecture in the file. Weights are large, so that logits are not flat.
SIZES = {"n_layers": 2, "d_model": 48, "n_heads": 6, "n_kv_heads": 2, "head_dim": 16, "d_ff": 80, "norm_eps": 1e-4,
         "context_length": CONTEXT, "vocab_size": 300, "init_std": 0.25}
MODELS = {
    "llama": ({"position": "rope", "tie_embeddings": False}, "llama"),
    "llama, 12 heads": ({"position": "rope", "n_heads": 12, "n_kv_heads": 4, "head_dim": 8, "rope_theta": 500.0},
                        "llama"),
    "qwen3": ({"position": "rope", "qk_norm": True}, "qwen3"),
    "qwen3, 12 heads": ({"position": "rope", "qk_norm": True, "n_heads": 12, "n_kv_heads": 3, "head_dim": 4,
                         "tie_embeddings": False}, "qwen3"),
    "refact": ({"position": "alibi"}, "refact"),
    "refact, 12 heads": ({"position": "alibi", "n_heads": 12, "n_kv_heads": 4, "head_dim": 6, "tie_embeddings": False},
                         "refact"),
}
MODELS.update({
    f"{name} with biases": ({**model, "qkv_bias": True}, architecture)
    for name, (model, architecture) in MODELS.items() if "12 heads" in name})
# Half of a head's frequencies are stretched in part or in full.
SCALED = {"position": "rope", "rope_theta": 1000.0, "rope_scaling": {
    "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_context_length": 100}}
MODELS["llama3 scaling"] = (SCALED, "llama")
# The tokenizers: what tokenizer_json() takes, and the name of the pre-tokenizer in llama.cpp.
TOKENIZERS = {
    "gpt2": ({"pre_tokenizer": byte_level()}, "gpt-2"),
    "gpt2 as a split": ({"pre_tokenizer": split(GPT2, "Removed", True)}, "gpt-2"),
    "smollm": ({"pre_tokenizer": sequence(DIGITS, byte_level()), "added": [THINK, *RUNS]}, "smollm"),
    "llama3": ({"pre_tokenizer": split(LLAMA3), "ignore_merges": True}, "llama-bpe"),
    "llama3 by merges": ({"pre_tokenizer": split(LLAMA3), "added": [THINK]}, "smaug-bpe"),
    "qwen2": ({"pre_tokenizer": split(QWEN), "normalizer": {"type": "NFC"}}, "qwen2"),
}
REFUSED_TOKENIZERS = {
    "add_prefix_space": {"pre_tokenizer": byte_level(prefix=True)},
    r"\p{L}+|\P{L}+": {"pre_tokenizer": split(r"\p{L}+|\P{L}+")},
    "splits by nothing": {"pre_tokenizer": byte_level(use_regex=False)},
    "ignore_merges": {"pre_tokenizer": byte_level(), "ignore_merges": True},
    "lstrip": {"pre_tokenizer": byte_level(), "added": [{"content": "<mask>", "lstrip": True}]},
    "single_word": {"pre_tokenizer": byte_level(), "added": [{"content": "word", "single_word": True}]},
    "overlap": {"pre_tokenizer": byte_level(), "added": [{"content": "<a>"}, {"content": ">bcd"}]},
    "NUL": {"pre_tokenizer": byte_level(), "added": [{"content": "<\0>"}]},
}


@functools.lru_cache(maxsize=None)
def vocabulary():
    """Merges of a mixed text; one that is never reached, and one pair twice, of which the later place counts."""
    words, merges = train_bpe(mixed_text(5, 20000), 150)
    return words, [merges[40], *merges]


@functools.lru_cache(maxsize=None)
def all_pairs():
    """Merges of any two bytes, so that where a text is split into words shows in its tokens whatever the text is."""
    merges = [f"{left} {right}" for left in byte_letters() for right in byte_letters()]
    texts = [*byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    return {text: index for index, text in enumerate(texts)}, merges


class ExportCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        cls.text = mixed_text(3, 6000)
        for name, ids in (("train", cls.text.encode()), ("val", cls.text.encode()[:CONTEXT + 1])):
            (cls.folder / f"{name}.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))

    def run_command(self, *arguments, input=b"", **options):
        return run(TRAIN, *arguments, cwd=self.folder, input=input, **options)

    def run_folder(self, name, model=None, data=None, sets=()):
        """A short run, made once; the learning rate is high, so that norms and biases are not what they began with."""
        folder = self.folder / "runs" / name
        if not folder.exists():
            raw = {"format": "raw", "dtype": "uint16"}
            config = {"name": name, "model": {**SIZES, **(model or {})},
                      "data": {"train": [{"path": "train.bin", **raw}], "val": [{"path": "val.bin", **raw}],
                               "tokenizer": "bytes", "eot_token": 256, **(data or {})},
                      "training": {"steps": 4, "batch_tokens": 96, "micro_batch_size": 2, "device": "cpu"},
                      "optimizer": {"lr": 0.03}, "schedule": {"type": "constant", "warmup_steps": 0},
                      "checkpoint": {"every": 1000}, "sample": {"every": 0}}
            if config["data"]["tokenizer"] is None:
                del config["data"]["tokenizer"]
            (self.folder / f"{name}.json").write_text(json.dumps(config))
            self.run_command("--config", f"{name}.json", *set_options(sets))
        return folder

    def export(self, run, name="model.gguf", dtype="fp32", code=0, **options):
        """The file, and what was said."""
        file = self.folder / name
        if code == 0 and file.exists():
            file.unlink()
        result = self.run_command("export", "--checkpoint", run, "--format", "gguf", "--output", file, "--dtype", dtype,
                                  code=code, **options)
        return file, result.stderr.decode()

    def weights(self, run):
        step, = (run / "checkpoints").glob("step-*")
        return read_safetensors(step / "model-00000-of-00001.safetensors")

    def model_config(self, run):
        step, = (run / "checkpoints").glob("step-*")
        return json.loads((step / "manifest.json").read_text())["config"]["model"]

    def tokenizer_run(self, name, bpe=None, model=None, **options):
        tokenizer = self.folder / f"{name}.tokenizer.json"
        words, merges = bpe or vocabulary()
        if "llama3" in name:  # words that no merges make, as Llama 3 has: with ignore_merges alone they are tokens
            merges = merges[::2]
        tokenizer.write_text(json.dumps(tokenizer_json(words, merges, **options)))
        return self.run_folder(name, {"vocab_size": len(words) + 8, **(model or {})},
                               {"tokenizer": tokenizer.name, "eot_token": len(words)}), tokenizer


class Contents(ExportCase):
    def test_tensors_are_those_of_the_checkpoint(self):
        for name, (model, architecture) in MODELS.items():
            run = self.run_folder(name, model)
            config, weights = self.model_config(run), self.weights(run)
            for dtype in ("fp32", "bf16", "fp16"):
                with self.subTest(model=name, dtype=dtype):
                    file, said = self.export(run, dtype=dtype)
                    self.assertRegex(said, rf"wrote .*model.gguf: .* {dtype}, architecture {architecture}, .*step 4")
                    self.check_tensors(Gguf(file).tensors, weights, config, architecture, dtype)

    def check_tensors(self, tensors, weights, config, architecture, dtype):
        parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
                 "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
                 "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
                 "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
        expected = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                    "lm_head.weight": "output.weight"}
        for layer in range(config["n_layers"]):
            for kind in ("weight", "bias"):
                for theirs, ours in parts.items():
                    expected[f"model.layers.{layer}.{theirs}.{kind}"] = f"blk.{layer}.{ours}.{kind}"
        names = {expected[name] for name in weights}
        if "rope_scaling" in config and config["rope_scaling"]["type"] == "llama3":
            names.add("rope_freqs.weight")
            factors = [a / b for a, b in zip(frequencies({**config, "rope_scaling": {}}), frequencies(config))]
            self.assertGreater(len([factor for factor in factors if 1 < factor < 8]), 0)
            self.assertEqual(tensors["rope_freqs.weight"][:2], ("fp32", (config["head_dim"] // 2,)))
            for ours, theirs in zip(factors, struct.unpack(f"<{len(factors)}f", tensors["rope_freqs.weight"][2])):
                self.assertAlmostEqual(ours, theirs, delta=1e-5)
        self.assertEqual(set(tensors), names)
        for name, (shape, values) in weights.items():
            kind = dtype if len(shape) == 2 else "fp32"
            if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
                values = self.interleaved(values, shape[0], config["head_dim"])
            self.assertEqual(tensors[expected[name]][:2], (kind, shape), name)
            self.assertTrue(tensors[expected[name]][2] == rounded(values, kind), f"{name} has other elements")

    @staticmethod
    def interleaved(values, rows, size):
        columns = len(values) // rows
        result = array.array("f")
        for head in range(0, rows, size):
            for i in range(size // 2):
                for row in (head + i, head + i + size // 2):
                    result += values[row * columns:(row + 1) * columns]
        return result

    def test_keys(self):
        for name, (model, architecture) in MODELS.items():
            with self.subTest(model=name):
                run = self.run_folder(name, model)
                keys = Gguf(self.export(run, dtype="bf16")[0]).keys
                config = self.model_config(run)
                self.assertEqual((keys["general.architecture"], keys["general.name"], keys["general.file_type"]),
                                 (architecture, name, 32))
                prefix = architecture + "."
                own = {key[len(prefix):]: value for key, value in keys.items() if key.startswith(prefix)}
                self.assertAlmostEqual(own.pop("attention.layer_norm_rms_epsilon"), 1e-4)
                if config["position"] == "rope":
                    self.assertAlmostEqual(own.pop("rope.freq_base"), config["rope_theta"])
                    self.assertEqual(own.pop("rope.dimension_count"), config["head_dim"])
                self.assertEqual(own, {
                    "vocab_size": 300, "context_length": CONTEXT, "embedding_length": 48, "block_count": 2,
                    "feed_forward_length": 80, "attention.head_count": config["n_heads"],
                    "attention.head_count_kv": config["n_kv_heads"], "attention.key_length": config["head_dim"],
                    "attention.value_length": config["head_dim"]})

    def test_byte_tokenizer(self):
        keys = Gguf(self.export(self.run_folder("llama", MODELS["llama"][0]))[0]).keys
        tokens = keys["tokenizer.ggml.tokens"]
        self.assertEqual(tokens, byte_letters() + [f"[PAD{i}]" for i in range(256, 300)])
        self.assertEqual(keys["tokenizer.ggml.token_type"], [1] * 256 + [5] * 44)
        self.assertEqual(keys["tokenizer.ggml.merges"], [])
        self.assertEqual([keys[f"tokenizer.ggml.{key}"] for key in (
            "model", "pre", "bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")],
            ["gpt2", "gpt-2", 256, 256, False, False])

    def test_bpe_tokenizers(self):
        words, merges = vocabulary()
        for name, (options, pre) in TOKENIZERS.items():
            with self.subTest(tokenizer=name):
                run, _ = self.tokenizer_run(name, **options)
                file, said = self.export(run)
                keys = Gguf(file).keys
                added = ["<|endoftext|>", *(token["content"] for token in options.get("added", []))]
                tokens = [*words, *added]
                pads = [f"[PAD{i}]" for i in range(len(tokens), len(words) + 8)]
                self.assertEqual(keys["tokenizer.ggml.tokens"], tokens + pads)
                types = [1] * len(words) + [3] + [4] * (len(added) - 1) + [5] * len(pads)
                self.assertEqual(keys["tokenizer.ggml.token_type"], types)
                self.assertEqual(keys["tokenizer.ggml.merges"], merges[::2] if "llama3" in name else merges[1:])
                self.assertEqual((keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.eos_token_id"]), (pre, len(words)))
                self.assertEqual("normalizes text to NFC" in said, "normalizer" in options)

    def test_a_token_that_looks_like_padding(self):
        run, _ = self.tokenizer_run("padding", pre_tokenizer=byte_level(), added=[
            {"content": f"[PAD{len(vocabulary()[0]) + 3}]"}])
        tokens = Gguf(self.export(run)[0]).keys["tokenizer.ggml.tokens"]
        self.assertEqual(len(set(tokens)), len(tokens))

    def test_without_end_of_text(self):
        run = self.run_folder("endless", data={"eot_token": -1})
        file, said = self.export(run)
        self.assertIn("no data.eot_token", said)
        self.assertEqual(Gguf(file).keys["tokenizer.ggml.eos_token_id"], 299)
        run = self.run_folder("endless and full", {"vocab_size": 256}, {"eot_token": -1})
        self.assertEqual(Gguf(self.export(run)[0]).keys["tokenizer.ggml.eos_token_id"], 255)

    def test_without_tokenizer(self):
        file, said = self.export(self.run_folder("no text", data={"tokenizer": None}))
        self.assertIn("no tokenizer", said)
        keys = Gguf(file).keys
        self.assertEqual(keys["tokenizer.ggml.model"], "none")
        self.assertNotIn("tokenizer.ggml.tokens", keys)


class Refusals(ExportCase):
    def refused(self, run, *words, code=2, **options):
        file, said = self.export(run, code=code, **options)
        self.assertEqual(said.count("\n"), 1, said)
        for word in words:
            self.assertIn(word, said)
        self.assertEqual(list(self.folder.glob("*.gguf*")), [])
        return said

    def test_models_that_llama_cpp_cannot_express(self):
        for model, words in (({"position": "none"}, ("model.position", '"none"')),
                             ({"position": "alibi", "qk_norm": True}, ("alibi", "model.qk_norm")),
                             ({**SCALED, "qk_norm": True}, ("model.qk_norm", "model.rope_scaling"))):
            with self.subTest(model=model):
                self.refused(self.run_folder("-".join(model), model), *words, "--format hf")

    def test_tokenizers_that_llama_cpp_cannot_follow(self):
        for word, options in REFUSED_TOKENIZERS.items():
            with self.subTest(word):
                run, _ = self.tokenizer_run(f"refused {sorted(REFUSED_TOKENIZERS).index(word)}", **options)
                self.refused(run, word, "tokenizer.json", "--format hf")

    def test_what_is_there(self):
        run = self.run_folder("refact", MODELS["refact"][0])
        there = self.folder / "there"
        there.write_text("mine")
        said = self.run_command("export", "--checkpoint", run, "--format", "gguf", "--output", there, code=2).stderr
        self.assertIn(b"is there already", said)
        self.assertEqual(there.read_text(), "mine")
        for path in (self.folder / "runs", "runs/", "."):
            self.run_command("export", "--checkpoint", run, "--format", "gguf", "--output", path, code=2)
        link = self.folder / "link"
        link.symlink_to("nowhere")
        self.run_command("export", "--checkpoint", run, "--format", "gguf", "--output", link, code=2)
        self.assertFalse((self.folder / "nowhere").exists())

    def test_folders_are_made(self):
        run = self.run_folder("refact", MODELS["refact"][0])
        file, _ = self.export(run, name="a/b/model.gguf")
        self.assertEqual([path.name for path in (self.folder / "a/b").iterdir()], ["model.gguf"])
        self.run_command("export", "--checkpoint", run, "--format", "gguf", "--output", file / "c/model.gguf", code=2)

    def test_a_disk_that_is_full(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
        run = self.run_folder("refact", MODELS["refact"][0])
        self.refused(run, "cannot write", "model.gguf", code=5, preexec_fn=limit)

    @unittest.skipIf(os.geteuid() == 0, "root may write everywhere")
    def test_a_folder_that_is_not_ours(self):
        run = self.run_folder("refact", MODELS["refact"][0])
        closed = self.folder / "closed"
        closed.mkdir(mode=0o500)
        result = self.run_command("export", "--checkpoint", run, "--format", "gguf", "--output", closed / "x", code=2)
        self.assertIn(b"Permission denied", result.stderr)

    def test_weights_beyond_fp16(self):
        run = self.run_folder("large", sets=["optimizer.lr=10", "optimizer.weight_decay=1", "training.steps=8"])
        self.refused(run, "fp16", "--dtype bf16", dtype="fp16")


@unittest.skipUnless(os.environ.get("INGOT_LLAMA_CPP") or os.environ.get("INGOT_REQUIRE_INTEROP"),
                     "INGOT_LLAMA_CPP names no libllama: see scripts/dev/llama_cpp")
class LlamaCpp(ExportCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        library = pathlib.Path(os.environ["INGOT_LLAMA_CPP"])
        cls.probe = cls.folder / "probe"
        compiler = [*os.environ.get("CXX", "c++").split(), "-std=c++17", "-O1", "-I", library]
        archives = [library / f"lib{name}.a" for name in ("llama", "ggml", "ggml-cpu", "ggml-base")]
        built = subprocess.run([*compiler, ROOT / "tests/scripts/llama_probe.cpp", *archives, "-lpthread", "-ldl",
                                "-lm", "-o", cls.probe], capture_output=True, text=True)
        if built.returncode != 0 and not os.environ.get("INGOT_REQUIRE_INTEROP"):
            raise unittest.SkipTest(f"{library} cannot be used, remove it to have it built anew: {built.stderr[:300]}")
        cls.assertEqual(cls(), built.returncode, 0, built.stderr)

    def llama(self, file, *arguments, input=b""):
        result = subprocess.run([self.probe, file, *arguments], input=input, capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr.decode(errors="replace"))
        return result.stdout

    def llama_logits(self, file, tokens):
        values = array.array("f", self.llama(file, "logits", input=" ".join(map(str, tokens)).encode()))
        size = len(values) // len(tokens)
        return [values[begin:begin + size] for begin in range(0, len(values), size)]

    def assert_same_model(self, run, file):
        """Logits against double precision, and the loss of a row against ./train eval."""
        tokens = list(self.text.encode()[:CONTEXT + 1])
        ours = reference_logits(self.model_config(run), self.weights(run), tokens[:-1])
        theirs = self.llama_logits(file, tokens[:-1])
        self.assertEqual((len(theirs), len(theirs[0])), (CONTEXT, len(ours[0])))
        worst = max(abs(a - b) for x, y in zip(ours, theirs) for a, b in zip(x, y))
        spread = min(max(row) - min(row) for row in ours)
        self.assertGreater(spread, 1.0, "the logits are flat, so that they show nothing")
        self.assertLess(worst, 1e-4)
        loss = sum(math.log(math.fsum(map(math.exp, row))) - row[target] for row, target in zip(theirs, tokens[1:]))
        said = self.run_command("eval", "--checkpoint", run, "--data", "val.bin", "--format", "raw", "--dtype",
                                "uint16", "--json").stdout
        self.assertAlmostEqual(json.loads(said)["loss"], loss / CONTEXT, delta=1e-4)
        return worst

    def assert_same_text(self, run, file, prompt):
        ours = self.run_command("generate", "--checkpoint", run, "--prompt", "-", "--temperature", "0", "--tokens",
                                "24", input=prompt.encode()).stdout
        theirs = self.llama(file, "generate", "24", input=prompt.encode())
        self.assertEqual(prompt.encode() + theirs, ours)

    def test_models(self):
        for name, (model, _) in MODELS.items():
            with self.subTest(model=name):
                run = self.run_folder(name, model)
                file, _ = self.export(run)
                self.assert_same_model(run, file)
                self.assert_same_text(run, file, "The fox")
                self.assert_same_text(run, file, "x = [1, 2,\n")

    def test_tokenizers(self):
        text = mixed_text(1, 1_000_000)
        self.assertGreaterEqual(len(text.encode()), 1_000_000)
        for name, (options, _) in TOKENIZERS.items():
            with self.subTest(tokenizer=name):
                run, tokenizer = self.tokenizer_run(name, **options)
                file, _ = self.export(run)
                data = (unicodedata.normalize("NFC", text) if "normalizer" in options else text).encode()
                self.assert_same_tokens(tokenizer, file, data)
                self.assert_same_text(run, file, "The quick 12345 <|endoftext|>foxes\n\n  ")

    def test_words(self):
        small = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16}
        text = mixed_text(4, 300_000)
        for name, (options, _) in TOKENIZERS.items():
            with self.subTest(tokenizer=name):
                run, tokenizer = self.tokenizer_run(f"words of {name}", all_pairs(), small, **options)
                data = (unicodedata.normalize("NFC", text) if "normalizer" in options else text).encode()
                self.assert_same_tokens(tokenizer, self.export(run)[0], data)

    def test_byte_tokenizer(self):
        file, _ = self.export(self.run_folder("refact", MODELS["refact"][0]))
        self.assert_same_tokens("bytes", file, mixed_text(2, 1_000_000).encode())
        self.assertEqual(self.llama(file, "end"), b"256 256 1\n")

    def assert_same_tokens(self, tokenizer, file, data):
        ours = self.run_command("tokenize", "--tokenizer", tokenizer, input=data).stdout.split()
        theirs = self.llama(file, "tokenize", input=data).split()
        self.assertGreater(len(ours), 100)
        for place, (a, b) in enumerate(zip(ours, theirs)):
            near = slice(max(0, place - 4), place + 4)
            self.assertEqual(a, b, f"token {place}, ours {ours[near]}, theirs {theirs[near]}")
        self.assertEqual(len(ours), len(theirs))

    def test_types(self):
        """bf16 and fp16 files load; their logits are those of weights that were rounded so."""
        run = self.run_folder("llama", MODELS["llama"][0])
        tokens = list(self.text.encode()[:CONTEXT])
        exact = self.llama_logits(self.export(run)[0], tokens)
        for dtype, bound in (("bf16", 0.5), ("fp16", 0.1)):
            theirs = self.llama_logits(self.export(run, dtype=dtype)[0], tokens)
            worst = max(abs(a - b) for x, y in zip(exact, theirs) for a, b in zip(x, y))
            self.assertTrue(0 < worst < bound, f"{dtype}: {worst}")

    def test_without_tokenizer(self):
        run = self.run_folder("no text", data={"tokenizer": None})
        self.assert_same_model(run, self.export(run)[0])
