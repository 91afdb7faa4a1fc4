"""What the tests of ./train import share: tiny models written by hand, and the command."""

import json
import os
import shutil
import struct
import unittest

from .inputs import byte_letters, temporary_folder
from . import TRAIN, run
from .interop_case import EOT

VOCABULARY = 257
CONTEXT = 64


def safetensors(tensors):
    """{name: (dtype, shape, bytes)} as a file."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tiny_config(**changes):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
            "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "eos_token_id": EOT,
            "tie_word_embeddings": False, **changes}


def tiny_tensors():
    """Of tiny_config(), in fp32, each with numbers of its own."""
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [VOCABULARY, 8], layer + "input_layernorm.weight": [8],
              layer + "self_attn.q_proj.weight": [8, 8], layer + "self_attn.k_proj.weight": [4, 8],
              layer + "self_attn.v_proj.weight": [4, 8], layer + "self_attn.o_proj.weight": [8, 8],
              layer + "post_attention_layernorm.weight": [8], layer + "mlp.gate_proj.weight": [12, 8],
              layer + "mlp.up_proj.weight": [12, 8], layer + "mlp.down_proj.weight": [8, 12],
              "model.norm.weight": [8], "lm_head.weight": [VOCABULARY, 8]}
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [((i * 37 + number * 11) % 101 - 50) / 100 for i in range(count)]
        tensors[name] = ("F32", shape, struct.pack(f"<{count}f", *values))
    return tensors


def byte_tokenizer():
    """A byte-level BPE without merges: id = byte, and EOT."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level,
            "added_tokens": [{"id": EOT, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False, "special": True}],
            "model": {"type": "BPE", "vocab": {letter: byte for byte, letter in enumerate(byte_letters())}, "merges": []}}


class ImportCase(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.source = self.folder / "source"

    def write(self, config=None, tensors=None, tokenizer=None, shards=None, index=None):
        """A model's folder. `shards`: {file: [names]}; `index`: what stands in place of theirs."""
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir()
        tensors = tiny_tensors() if tensors is None else tensors
        (self.source / "config.json").write_text(json.dumps(tiny_config() if config is None else config))
        if tokenizer is not None:
            (self.source / "tokenizer.json").write_text(json.dumps(tokenizer))
        if shards is None:
            (self.source / "model.safetensors").write_bytes(safetensors(tensors))
            return
        weight_map = {}
        for file, names in shards.items():
            (self.source / file).write_bytes(safetensors({name: tensors[name] for name in names}))
            weight_map.update({name: file for name in names})
        index = {"metadata": {}, "weight_map": weight_map} if index is None else index(weight_map)
        (self.source / "model.safetensors.index.json").write_text(json.dumps(index))

    def import_model(self, output="out", *arguments, code=0, source=None):
        """The result; the output is removed before."""
        shutil.rmtree(self.folder / output, ignore_errors=True)
        return run(TRAIN, "import", "--from", source or self.source, "--output", output, *arguments, code=code,
                   cwd=self.folder)

    def refused(self, *what, arguments=(), source=None):
        """Ends with code 2 and one line on stderr that says `what`, and leaves nothing behind."""
        before = sorted(os.listdir(self.folder))
        result = self.import_model("out", *arguments, code=2, source=source)
        lines = result.stderr.decode().splitlines()
        self.assertTrue(lines[-1].startswith("error: "), lines)
        self.assertEqual([line for line in lines if line.startswith("error: ")], lines[-1:])
        for text in what:
            self.assertIn(text, lines[-1])
        self.assertLess(len(lines[-1]), 1100)
        self.assertEqual(sorted(set(os.listdir(self.folder)) - {"out"}), sorted(set(before) - {"out"}))
        self.assertFalse((self.folder / "out").exists())

    def weights(self, output="out"):
        return (self.folder / output / "model-00000-of-00001.safetensors").read_bytes()
