"""What the test of exported GGUF files needs, in the standard library alone: a reader of GGUF and of safetensors, the
model in double precision, a small byte-level BPE, a text of many kinds."""

from __future__ import annotations

import array
import collections
import json
import math
import operator
import pathlib
import random
import re
import struct
from typing import Iterator

from .inputs import byte_letters

# ---- Files ----

VALUE_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TENSOR_TYPES = {0: ("fp32", 4), 1: ("fp16", 2), 30: ("bf16", 2)}


class Gguf:
    """keys: values by name; tensors: (type, shape with the last axis contiguous, bytes) by name."""

    def __init__(self, path: pathlib.Path) -> None:
        self.data, self.at = path.read_bytes(), 0
        magic, version, num_tensors, num_values = self.take("4sIQQ")
        assert (magic, version) == (b"GGUF", 3), (magic, version)
        self.keys = {}
        for _ in range(num_values):
            key = self.text()
            assert key not in self.keys, key
            self.keys[key] = self.value(self.take("I")[0])
        infos = []
        for _ in range(num_tensors):
            name = self.text()
            shape = self.take(f"{self.take('I')[0]}Q")[::-1]
            infos.append((name, shape, *self.take("IQ")))
        begin = (self.at + 31) // 32 * 32
        self.tensors = {}
        end = begin
        for name, shape, kind, offset in infos:
            type_name, size = TENSOR_TYPES[kind]
            assert begin + offset == end and offset % 32 == 0 and name not in self.tensors, name
            last = begin + offset + math.prod(shape) * size
            self.tensors[name] = (type_name, shape, self.data[begin + offset:last])
            end = (last + 31) // 32 * 32
        assert end == len(self.data), (end, len(self.data))

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        length = self.take("Q")[0]
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def value(self, kind: int):
        if kind == 8:
            return self.text()
        if kind == 9:
            element, count = self.take("IQ")
            return [self.value(element) for _ in range(count)]
        return self.take(VALUE_FORMATS[kind])[0]


def read_safetensors(path: pathlib.Path) -> dict:
    """(shape, fp32 values) by name."""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = array.array("f")
            values.frombytes(data[8 + size + begin:8 + size + end])
            tensors[name] = (tuple(entry["shape"]), values)
    return tensors


def rounded(values: array.array, kind: str) -> bytes:
    """The elements in another type, to nearest even."""
    if kind == "fp32":
        return values.tobytes()
    if kind == "fp16":
        return struct.pack(f"<{len(values)}e", *values)
    bits = array.array("I", values.tobytes())
    return array.array("H", ((x + 0x7fff + (x >> 16 & 1)) >> 16 for x in bits)).tobytes()


# ---- The model ----

def dot(a, b) -> float:
    return sum(map(operator.mul, a, b))


def reference_logits(config: dict, weights: dict, tokens: list[int]) -> list[list[float]]:
    """The logits of each position in double precision, from the papers' definitions. `config`: the section model."""
    def matrix(name):
        (rows, columns), values = weights[name]
        return [values[row * columns:(row + 1) * columns] for row in range(rows)]

    def vector(name):
        return weights[name][1] if name in weights else None

    def multiply(rows, x, bias=None):
        return [dot(row, x) + (bias[i] if bias else 0.0) for i, row in enumerate(rows)]

    def norm(x, weight):
        scale = 1 / math.sqrt(dot(x, x) / len(x) + config["norm_eps"])
        return [value * scale * w for value, w in zip(x, weight)]

    def rotate(x, position):
        half = len(x) // 2
        angles = [position * frequency for frequency in frequencies(config)]
        pairs = [(math.cos(a), math.sin(a), x[i], x[i + half]) for i, a in enumerate(angles)]
        return [c * u - s * v for c, s, u, v in pairs] + [s * u + c * v for c, s, u, v in pairs]

    heads, size = config["n_heads"], config["head_dim"]
    group = heads // config["n_kv_heads"]
    slopes = alibi_slopes(heads)
    embedding = matrix("model.embed_tokens.weight")
    states = [list(embedding[token]) for token in tokens]
    for layer in range(config["n_layers"]):
        prefix = f"model.layers.{layer}."

        def project(kind, x):
            y = multiply(projections[kind], x, vector(f"{prefix}self_attn.{kind}_proj.bias"))
            return [y[begin:begin + size] for begin in range(0, len(y), size)]
        projections = {kind: matrix(f"{prefix}self_attn.{kind}_proj.weight") for kind in "qkvo"}
        mlp = {kind: matrix(f"{prefix}mlp.{kind}_proj.weight") for kind in ("gate", "up", "down")}
        keys, values = [], []
        for position, state in enumerate(states):
            x = norm(state, vector(prefix + "input_layernorm.weight"))
            query, key, value = (project(kind, x) for kind in "qkv")
            if config["qk_norm"]:
                query = [norm(head, vector(prefix + "self_attn.q_norm.weight")) for head in query]
                key = [norm(head, vector(prefix + "self_attn.k_norm.weight")) for head in key]
            if config["position"] == "rope":
                query, key = ([rotate(head, position) for head in part] for part in (query, key))
            keys.append(key)
            values.append(value)
            attended = []
            for head in range(heads):
                scores = [dot(query[head], past[head // group]) / math.sqrt(size) for past in keys]
                if config["position"] == "alibi":
                    scores = [score - slopes[head] * (position - j) for j, score in enumerate(scores)]
                largest = max(scores)
                odds = [math.exp(score - largest) for score in scores]
                total = sum(odds)
                attended += [dot(odds, column) / total for column in zip(*(past[head // group] for past in values))]
            state = [a + b for a, b in zip(state, multiply(projections["o"], attended))]
            x = norm(state, vector(prefix + "post_attention_layernorm.weight"))
            hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(multiply(mlp["gate"], x), multiply(mlp["up"], x))]
            states[position] = [a + b for a, b in zip(state, multiply(mlp["down"], hidden))]
    head = embedding if config["tie_embeddings"] else matrix("lm_head.weight")
    return [multiply(head, norm(state, vector("model.norm.weight"))) for state in states]


def frequencies(config: dict) -> list[float]:
    """RoPE's, with Llama 3's scaling where the config has it (Llama 3.1's model card and reference code)."""
    size = config["head_dim"]
    plain = [config["rope_theta"] ** (-2 * i / size) for i in range(size // 2)]
    scaling = config.get("rope_scaling", {})
    if scaling.get("type", "none") == "none":
        return plain
    result = []
    for frequency in plain:
        turns = scaling["original_context_length"] * frequency / (2 * math.pi)  # within the original context
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))  # 0: all of it is slowed down
        result.append(frequency * (kept + (1 - kept) / scaling["factor"]))
    return result


def alibi_slopes(heads: int) -> list[float]:
    """Press 2022, section 3, and the authors' code for head counts that are no power of two."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


# ---- A tokenizer ----

def train_bpe(text: str, num_merges: int) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of letters of bytes: the most frequent pair first, within words."""
    letters = byte_letters()
    words = collections.Counter(tuple(letters[byte] for byte in word.encode()) for word in re.findall(
        r" ?[^\W\d_]+| ?\d{1,3}| ?[^\s\w]+|\s+(?!\S)|\s+", text))
    merges = []
    for _ in range(num_merges):
        pairs: collections.Counter = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(f"{left} {right}")
        merged: collections.Counter = collections.Counter()
        for word, count in words.items():
            parts = []
            for letter in word:
                if parts and (parts[-1], letter) == (left, right):
                    parts[-1] = left + right
                else:
                    parts.append(letter)
            merged[tuple(parts)] += count
        words = merged
    vocabulary = dict.fromkeys([*letters, *(merge.replace(" ", "") for merge in merges)])
    return {text: index for index, text in enumerate(vocabulary)}, merges


def tokenizer_json(vocabulary: dict[str, int], merges: list[str], pre_tokenizer: dict, normalizer=None,
                   ignore_merges: bool = False, added: list[dict] | None = None) -> dict:
    added_tokens = []
    for number, token in enumerate([{"content": "<|endoftext|>", "special": True}, *(added or [])]):
        added_tokens.append({"id": len(vocabulary) + number, "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False, "special": False, **token})
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": ignore_merges, "vocab": vocabulary, "merges": merges}}


# ---- A text ----

WORDS = ("the quick brown fox isn't here WE'LL see I'D they're don't Don'T it's l'été naïve Straße élèves Ünïcode "
         "Быстрая лиса прыгает через собаку Ελληνικά γλώσσα שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี 吾輩は猫である "
         "名前はまだ無い 你好世界 안녕하세요 세계 ﬁn ǅ ªº ⅷ Ⅻ ½ x² ٣٤٥ १२३ 𝟘𝟙 0 7 12 123 1234 12345 3.14159 1e-9 0xFF 1,000,000 "
         "😀 👨‍👩‍👧 🇪🇺 ❤️ e\u0301 q\u0307\u0323 \u200b \ufeff \u00ad ... !!! ?! -- => != <div> </p> a_b __init__ "
         "#include std::vector<int> return; {'a':[1,2]} // TODO $HOME %d\\n C:\\dir user@host [PAD300] <| |> <think> "
         "<|endoftext|>").split(" ")
SPACES = [" "] * 30 + ["  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n", "\n  ", "        ", "\t\t", "\n\n\n\n",
                       "\u00a0", "\u3000", "\u0085", "\u2028", "\v", "", "\x00", " \u00a0 "]


def mixed_text(seed: int, num_bytes: int) -> str:
    """Code, prose in several scripts, numbers, runs of white space, emoji, added tokens."""
    def pieces() -> Iterator[str]:
        size = 0
        chance = random.Random(seed)
        while size < num_bytes:
            piece = chance.choice(WORDS) + chance.choice(SPACES)
            size += len(piece.encode())
            yield piece
    return "".join(pieces())
