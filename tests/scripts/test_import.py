"""./train import: what it writes, and that hostile or odd folders end with one line of error and code 2.

Seen to catch: a head beside tied embeddings that is not compared; a tensor that two shards have; an index that leads
out of the folder; wavelengths of old files taken for unknown tensors; values that are not finite.
"""

import json
import os
import resource
import shutil
import struct
import subprocess
import threading
import time
import unittest

from . import TRAIN, run
from .import_case import CONTEXT, EOT, ImportCase, byte_tokenizer, tiny_config, tiny_tensors


class Folders(ImportCase):
    """What is written, and what stands in a folder otherwise than it should."""

    def test_what_is_written(self):
        self.write(tokenizer=byte_tokenizer())
        text = self.import_model().stderr.decode()
        self.assertIn("LlamaForCausalLM", text)
        self.assertIn("./train --config out/config.json", text)
        self.assertIn("--tokenizer out/tokenizer.json --eot-token '<|endoftext|>'", text)
        self.assertEqual(sorted(os.listdir(self.folder / "out")),
                         ["config.json", "manifest.json", "model-00000-of-00001.safetensors", "tokenizer.json"])
        self.assertEqual((self.folder / "out/tokenizer.json").read_bytes(),
                         (self.source / "tokenizer.json").read_bytes())
        # The bits are those of the source, by an independent reader.
        raw = self.weights()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:8 + length])
        header.pop("__metadata__")
        tensors = tiny_tensors()
        self.assertEqual(header.keys(), tensors.keys())
        for name, (_, shape, content) in tensors.items():
            begin, end = header[name]["data_offsets"]
            self.assertEqual(header[name]["dtype"], "F32")
            self.assertEqual(header[name]["shape"], shape)
            self.assertEqual(raw[8 + length + begin:8 + length + end], content, name)
        config = json.loads((self.folder / "out/config.json").read_text())
        self.assertEqual(config["model"]["init_from"], "out")
        self.assertEqual(config["model"]["context_length"], CONTEXT)
        run(TRAIN, "generate", "--checkpoint", "out", "--prompt", "a", "--tokens", 4, cwd=self.folder)
        # Shards give the same bytes, and links to them too, as in the cache of a hub.
        names = list(tensors)
        self.write(shards={"model-00001-of-00002.safetensors": names[7:],
                           "model-00002-of-00002.safetensors": names[:7]})
        for file in list(self.source.iterdir()):
            (self.folder / "blobs").mkdir(exist_ok=True)
            file.rename(self.folder / "blobs" / file.name)
            file.symlink_to(self.folder / "blobs" / file.name)
        self.import_model("sharded")
        self.assertEqual(self.weights("sharded"), raw)

    def test_output_is_never_overwritten(self):
        self.write()
        self.import_model()
        for name in ("out", "out/", "./out", "out/config.json", ".", "..", "/"):
            result = run(TRAIN, "import", "--from", self.source, "--output", name, code=2, cwd=self.folder)
            self.assertIn(b"is there already", result.stderr)
        (self.folder / "link").symlink_to("nowhere")
        run(TRAIN, "import", "--from", self.source, "--output", "link", code=2, cwd=self.folder)
        run(TRAIN, "import", "--from", self.source, "--output", "new/folders/model", cwd=self.folder)
        run(TRAIN, "import", "--from", self.source, "--output", "a'b c", cwd=self.folder)

    def test_options(self):
        """Other commands have --output too: the help is that of this one."""
        result = run(TRAIN, "import", "--from", self.source, "--output", code=2)
        self.assertIn(b"--output needs a value: write --output DIR, see ./train import --help", result.stderr)
        for given, missing in (("--from", "--output"), ("--output", "--from")):
            self.assertIn(f"{missing} is missing".encode(), run(TRAIN, "import", given, "x", code=2).stderr)
        for name in ("a\nb", os.fsdecode(b"a\xffb")):
            self.write()
            result = run(TRAIN, "import", "--from", self.source, "--output", name, code=2, cwd=self.folder)
            self.assertIn(b"leave out control characters", result.stderr)

    def test_context_length(self):
        self.write(config=tiny_config(max_position_embeddings=10000))
        text = self.import_model().stderr.decode()
        self.assertIn("context_length is 4096, the model was made for up to 10000", text)
        self.import_model("out", "--context-length", "8192")
        self.assertEqual(json.loads((self.folder / "out/config.json").read_text())["model"]["context_length"], 8192)
        self.refused("--context-length is 10001", "at most 10000", arguments=("--context-length", "10001"))

    def test_old_files_of_llama(self):
        """Wavelengths beside the weights, in any shape, follow from the config."""
        tensors = tiny_tensors()
        self.write()
        self.import_model()
        plain = self.weights()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F16", [2], bytes(4))
        tensors["model.rotary_emb.inv_freq"] = ("F32", [1, 2], bytes(8))
        self.write(tensors=tensors)
        self.import_model()
        self.assertEqual(self.weights(), plain)

    def test_tied_embeddings(self):
        tied = tiny_config(tie_word_embeddings=True)
        tensors = tiny_tensors()
        self.write(config=tied, tensors=tensors)
        self.refused("lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        self.write(config=tied, tensors=tensors)
        self.import_model()
        equal = self.weights()
        del tensors["lm_head.weight"]
        self.write(config=tied, tensors=tensors)
        self.import_model()
        self.assertEqual(self.weights(), equal)
        self.write(tensors=tensors)
        self.refused("lm_head.weight is missing")

    def test_tensors_that_do_not_fit(self):
        norm, up = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
        for what, change in (
                (f"{norm} is missing", {norm: None}),
                ("model.layers.0.self_attn.q_proj.bias is not a tensor of this model",
                 {"model.layers.0.self_attn.q_proj.bias": ("F32", [8], bytes(32))}),
                ("(8, 12), the model (12, 8)", {up: ("F32", [8, 12], bytes(384))}),
                ("(12, 8, 1), the model (12, 8)", {up: ("F32", [12, 8, 1], bytes(384))}),
                ("must be bf16, fp16 or fp32", {up: ("F64", [12, 8], bytes(768))}),
                ("must be bf16, fp16 or fp32", {up: ("I32", [12, 8], bytes(384))}),
                ("has the dtype F8_E4M3", {up: ("F8_E4M3", [12, 8], bytes(96))}),
                (f"{norm} holds values that are not finite",
                 {norm: ("F32", [8], struct.pack("<8f", *[1] * 7, float("nan")))}),
                (f"{norm} holds values that are not finite", {norm: ("BF16", [8], b"\x80\x7f" * 8)}),
                ("and 9 more", {name: None for name in tiny_tensors()}),
        ):
            with self.subTest(what):
                tensors = {**tiny_tensors(), **change}
                self.write(tensors={name: value for name, value in tensors.items() if value is not None})
                self.refused(what)

    def test_shards_that_disagree(self):
        names = list(tiny_tensors())
        first, second = "a.safetensors", "b.safetensors"
        halves = {first: names[:6], second: names[6:]}

        def changed(**changes):
            return lambda weight_map: {"weight_map": {**weight_map, **changes}}

        for what, shards, index in (
                ("two models, or one was copied twice", {first: names[:7], second: names[6:]}, None),
                ("no shard has it", halves, changed(other=first)),
                (f"is in {second}, but {self.source}/{first} has it", halves, changed(**{names[0]: second})),
                ("which model.safetensors.index.json does not list", halves,
                 lambda weight_map: {"weight_map": {name: weight_map[name] for name in names[1:]}}),
                ("cannot open", halves, changed(other="c.safetensors")),
                ("must be the name of a .safetensors file in the same folder", halves,
                 changed(other="../source/a.safetensors")),
                ("must be the name of a .safetensors file in the same folder", halves,
                 changed(other=str(self.source / first))),
                ("weight_map is missing", halves, lambda weight_map: {"map": weight_map}),
                ("must be an object", halves, lambda weight_map: [weight_map]),
        ):
            with self.subTest(what):
                self.write(shards=shards, index=index)
                self.refused(what)
        self.write(shards=halves)
        shutil.copy(self.source / first, self.source / "model.safetensors")
        self.refused("two models lie there")

    def test_files_that_are_none(self):
        """A folder, a FIFO, a device: named at once, nothing waits."""
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            for kind in ("folder", "fifo", "device", "nothing", "empty", "unreadable link"):
                with self.subTest(f"{name}: {kind}"):
                    self.write(tokenizer=byte_tokenizer())
                    path = self.source / name
                    path.unlink()
                    if kind == "folder":
                        path.mkdir()
                    elif kind == "fifo":
                        os.mkfifo(path)
                    elif kind == "device":
                        path.symlink_to("/dev/zero")
                    elif kind == "empty":
                        path.touch()
                    elif kind == "unreadable link":
                        path.symlink_to(name)
                    if name == "tokenizer.json" and kind in ("nothing", "unreadable link"):
                        self.import_model()  # as if there were none
                    else:
                        self.refused(str(self.source))
        (self.folder / "file").touch()
        self.refused("is a file", source=self.folder / "file")
        self.refused("there is no folder", source=self.folder / "none")
        self.write()
        (self.source / "model.safetensors").unlink()
        (self.source / "pytorch_model.bin").touch()
        self.refused("save_pretrained()")
        self.write()
        self.import_model("checkpoint")
        self.refused("is a checkpoint of Ingot already", source=self.folder / "checkpoint")

    def test_damaged_bytes(self):
        """Every cut of the header and any number in it: an error, or the same model; and memory stays small."""
        self.write()
        path = self.source / "model.safetensors"
        whole = path.read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        damaged = [whole[:size] for size in (0, 1, 7, 8, 9, 8 + length // 2, 8 + length - 1, len(whole) - 1)]
        lengths = (0, 1, length - 8, length + 8, 2**63, 2**64 - 1)
        damaged += [struct.pack("<Q", number) + whole[8:] for number in lengths]
        for old, new in ((b"[8, 8]", b"[9223372036854775807, 8]"), (b"[8, 8]", b"[-8, -8]"),
                         (b"[8, 8]", b"[4294967296, 4294967296]"), (b'"data_offsets": [0,', b'"data_offsets": [1,'),
                         (b'"dtype": "F32"', b'"dtype": 3')):
            text = whole[8:8 + length].replace(old, new, 1)
            self.assertNotEqual(text, whole[8:8 + length])
            damaged.append(struct.pack("<Q", len(text)) + text + whole[8 + length:])
        # Headers that take as much memory as they can: below the bound of 16 MiB, and far above it.
        for count in (5_500_000, 30_000_000):
            text = b'{"a":[' + b'"",' * count + b'""]}'
            damaged.append(struct.pack("<Q", len(text)) + text)
        for number, content in enumerate(damaged):
            with self.subTest(number):
                path.write_bytes(content)
                self.refused("model.safetensors")
        # The first of the two takes about 500 MiB, twice that under AddressSanitizer; the other would take 3 GiB.
        self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 2000, "MiB")

    def test_tokenizers(self):
        """One that is damaged is an error, one of another kind is left out with a note; and one of another model."""
        for text in ("{", "", "[" * 100000, '{"model": {}, "model": {}}', "\xff"):
            self.write()
            (self.source / "tokenizer.json").write_bytes(text.encode("latin-1"))
            self.refused("tokenizer.json")
        sentencepiece = byte_tokenizer()
        sentencepiece["model"]["byte_fallback"] = True
        self.write(tokenizer=sentencepiece)
        text = self.import_model().stderr.decode()
        self.assertIn("tokenizer: none: ", text)
        self.assertIn("byte_fallback", text)
        self.assertNotIn("tokenizer.json", os.listdir(self.folder / "out"))
        self.assertEqual(json.loads((self.folder / "out/config.json").read_text())["data"]["eot_token"], EOT)
        result = run(TRAIN, "generate", "--checkpoint", "out", "--prompt", "a", code=2, cwd=self.folder)
        self.assertIn(b"tokenizer", result.stderr)
        larger = byte_tokenizer()
        larger["added_tokens"].append({**larger["added_tokens"][0], "id": EOT + 1, "content": "<more>"})
        self.write(tokenizer=larger)
        self.refused("has 258 tokens, but the model has embeddings for 257")

    def write_with_vocabulary(self, count):
        """A model that takes a while to read."""
        tensors = tiny_tensors()
        del tensors["lm_head.weight"]
        tensors["model.embed_tokens.weight"] = ("F32", [count, 8], bytes(count * 8 * 4))
        self.write(config=tiny_config(vocab_size=count, tie_word_embeddings=True), tensors=tensors)

    def test_a_file_that_shrinks(self):
        """Cut short while it is read: an error or a whole model, and no crash."""
        for delay in (0.0, 0.01, 0.03):
            self.write_with_vocabulary(1 << 18)
            path = self.source / "model.safetensors"
            cut = threading.Timer(delay, os.truncate, (path, 50_000))
            cut.start()
            result = subprocess.run([TRAIN, "import", "--from", self.source, "--output", self.folder / f"cut{delay}"],
                                    capture_output=True)
            cut.join()
            self.assertIn(result.returncode, (0, 2), result.stderr)
            self.assertEqual((self.folder / f"cut{delay}").exists(), result.returncode == 0)

    def test_a_signal_leaves_nothing(self):
        self.write_with_vocabulary(1 << 21)
        process = subprocess.Popen([TRAIN, "import", "--from", self.source, "--output", "out"], cwd=self.folder,
                                   stderr=subprocess.PIPE)
        deadline = time.time() + 60
        while not list(self.folder.glob("out.tmp-*")) and process.poll() is None and time.time() < deadline:
            time.sleep(0.001)
        process.terminate()
        error = process.communicate()[1]
        self.assertIn(process.returncode, (143, 0), error)
        self.assertEqual(sorted(os.listdir(self.folder)), ["out", "source"] if process.returncode == 0 else ["source"])

if __name__ == "__main__":
    unittest.main()
