"""prepare.py with a tokenizer.json and with train:N, against the package `tokenizers` on whole documents.

Seen to catch: cuts before '/', between punctuation and a line break, before a tab with add_prefix_space, before an
apostrophe, and in added tokens; special tokens looked for in text; truncation kept; offsets of a slice taken for those
of the document; parts that end before a dot; 16 bits for 65,537 tokens; all windows of a sample at the beginning;
normalized added tokens looked for in the text as it was; truncation and padding in what is written; ids of a hole.
"""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys

from .prepare_case import SCRIPTS, PrepareTest, copy_of_scripts, needs, python_with, read_shard, token_documents

# Python that runs with the package, in scripts/: argv is what the code below it wants.
COMMON = """
import json, random, sys
from prepare import tokenize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
# What matters to the patterns: letters with and without case, marks, digits, punctuation, all kinds of white space.
CHARACTERS = list("aZs'1/.-  \\t\\n\\n\\r\\x0b\\x1c\\u00a0\\u0085\\u2028\\u3000\\u200b\\ufeff\\u3002中かПé\\u0301д٣𝟘😀")
def text(chance, length):
    return "".join(chance.choice(CHARACTERS) for _ in range(length))
def splitters():
    byte_level = pre_tokenizers.ByteLevel
    yield "gpt2", None, byte_level(add_prefix_space=False)
    yield "gpt2 with prefix", None, byte_level(add_prefix_space=True)
    for number, pattern in enumerate(sorted(tokenize.PATTERNS)):
        for behavior, invert in (("isolated", False), ("removed", True)):
            split = pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)
            whole = pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])
            yield f"pattern {number} {behavior}", None if number % 2 else normalizers.NFC(), whole
"""

# Every place that places_to_cut names, in random texts: the words must be those of both parts.
CHECK_CUTS = COMMON + """
chance = random.Random(1)
for name, normalizer, splitter in splitters():
    described = json.loads(Tokenizer(models.BPE()).to_str())
    described["pre_tokenizer"] = json.loads(splitter.__getstate__())
    cuts = tokenize.places_to_cut(described)
    assert cuts is not None, name
    def words(part):
        normal = normalizer.normalize_str(part) if normalizer else part
        return [word for word, _ in splitter.pre_tokenize_str(normal)]
    checked = 0
    for _ in range(1500):
        whole = text(chance, 24)
        raw = whole.encode()
        places = [match.start() for match in cuts.finditer(raw)]
        if cuts is tokenize.CUT:  # rule 4
            parts = tokenize.PART.findall(raw)
            places += [len(b"".join(parts[:count])) for count in range(len(parts))]
        for place in places:
            if 0 < place < len(raw):
                checked += 1
                before, after = raw[:place].decode(), raw[place:].decode()
                assert words(before) + words(after) == words(whole), (name, before, after)
    assert checked > 300, (name, checked)
print("checked")
"""

# Writes normalized.json, with added tokens whose content NFC changes, or into which it turns other characters; texts of
# them as a.jsonl; and their ids, as the package gives them, on standard output.
MAKE_NORMALIZED = COMMON + """
folder, pattern = sys.argv[1:]
tokenizer = Tokenizer(models.BPE())
tokenizer.normalizer = normalizers.NFC()
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if pattern == "gpt2" else \\
    pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(tokenize.LLAMA3_PATTERN), "isolated"),
                             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
tokenizer.train_from_iterator(["some text"], trainers.BpeTrainer(
    vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
contents = ["b-\\u00e9", "x.\\u03a9", "K;", "9.e\\u0301", "\\uac01-1", "word"]
tokenizer.add_tokens([AddedToken(content, normalized=True, single_word=content == "word") for content in contents])
tokenizer.add_tokens([AddedToken("r.e\\u0301", normalized=False)])
tokenizer.save(folder + "/normalized.json")
pieces = ["b-e\\u0301", "b-\\u00e9", "x.\\u2126", "x.\\u03a9", "\\u212a;", "\\u212a\\u037e", "K;", "9.\\u00e9",
          "9.e\\u0301", "\\u1100\\u1161\\u11a8-1", "\\uac00\\u11a8-1", "r.e\\u0301", "r.\\u00e9", "word", " word ",
          " ", "a", "1", "\\n", "b-", "e", "\\u0301", ".", "x", "K"]
chance = random.Random(3)
texts = ["".join(chance.choices(pieces, k=chance.randrange(1, 12))) for _ in range(1500)]
with open(folder + "/text/a.jsonl", "w") as file:
    file.writelines(json.dumps({"text": text}) + "\\n" for text in texts)
print(json.dumps([tokenizer.encode(text, add_special_tokens=False).ids for text in texts]))
"""

# Trains and writes NAME.json for each kind, and NAME.ids: the ids of whole documents as the package gives them.
MAKE = COMMON + """
folder, corpus = sys.argv[1:]
documents = open(corpus, "rb").read().split(b"%%")
for name, normalizer, splitter in splitters():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([document.decode("utf-8", "replace") for document in documents], trainer)
    if "removed" in name:
        tokenizer.add_tokens(["</think>"])  # no special token
        if "1" in name:
            tokenizer.add_tokens([AddedToken("naïve", single_word=True)])
    tokenizer.save(f"{folder}/{name}.json")
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(document.decode("utf-8", "replace"), add_special_tokens=False).ids
           for document in documents]
    json.dump(ids, open(f"{folder}/{name}.ids", "w"))
"""

MAKE_CORPUS = COMMON + """
chance = random.Random(2)
words = "the The of and def return naïve 東京 привет don't we'll 12345 x=1, end.".split()
parts = []
for _ in range(int(sys.argv[1])):
    kind = chance.randrange(5)
    if kind == 0:
        parts.append(text(chance, 12).encode())
    elif kind == 1:
        parts.append(bytes(chance.randrange(1, 256) for _ in range(6)))
    elif kind == 2:
        special = ["<|endoftext|>", "a</think>b", "naïve_", "\\n", "\\n\\n", "\\r\\n", "。\\n"]
        parts.append(chance.choice(special).encode())
    else:
        parts.append(" ".join(chance.choices(words, k=5)).encode())
sys.stdout.buffer.write(b"".join(parts).replace(b"%", b"&"))
"""


def word_level(tokens: list[str], **others: object) -> bytes:
    """A tokenizer.json of whole words, between white space."""
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                       "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
                       "model": {"type": "WordLevel", "vocab": {token: id for id, token in enumerate(tokens)},
                                 "unk_token": tokens[0]}, **others}).encode()


@needs("tokenizers")
class TokenizersTest(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        self.python = python_with("tokenizers")

    def code(self, code: str, *arguments: object) -> bytes:
        result = subprocess.run([self.python, "-c", code, *map(str, arguments)], cwd=SCRIPTS, capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return result.stdout

    def tokenizer(self, content: bytes) -> str:
        path = self.root / "tokenizer.json"
        path.write_bytes(content)
        return str(path)


class Equality(TokenizersTest):
    def test_every_place_to_cut_is_one(self) -> None:
        self.assertEqual(self.code(CHECK_CUTS), b"checked\n")

    def test_as_whole_documents(self) -> None:
        """One document that becomes many segments and slices, and small ones; few parts remembered and many.

        Seen to catch: parts of the older half not taken over."""
        corpus = self.code(MAKE_CORPUS, 1200)
        middle = len(corpus) * 2 // 3
        corpus = corpus[:middle] + b"%%" + corpus[middle:middle + 300] + b"%%short%%" + corpus[middle + 300:]
        path = self.write("corpus.txt", corpus)
        self.code(MAKE, self.root, path)
        kinds = sorted(self.root.glob("*.json"))
        self.assertEqual(len(kinds), 2 + 2 * 5)
        for kind in kinds:
            with self.subTest(kind.stem):
                expected = json.loads(kind.with_suffix(".ids").read_text())
                for unit, out, remembered in ((256, self.root / "small", 1 << 18), (1 << 22, self.root / "few", 50),
                                              (1 << 22, self.root / "large", 1 << 18)):
                    self.done_in_units("--split-on", "%%", "--tokenizer", kind, "--val-fraction", 0, "--overwrite",
                                       out=out, unit=unit, python=self.python,
                                       before=f"tokenize.MAX_PARTS = {remembered}")
                    self.assertEqual(token_documents(out, "train", 0), expected)
                self.assertEqual(sum(len(document) for document in expected),
                                 self.meta(out)["train"]["tokens"] - len(expected))

    def test_added_tokens_as_they_are_normalized(self) -> None:
        for pattern in ("gpt2", "llama3"):
            with self.subTest(pattern):
                expected = json.loads(self.code(MAKE_NORMALIZED, self.root, pattern))
                self.succeed("--tokenizer", self.root / "normalized.json", "--val-fraction", 0, "--overwrite",
                             python=self.python)
                found = token_documents(self.out, "train", 0)
                self.assertEqual(len(found), len(expected))
                self.assertEqual([pair for pair in zip(found, expected) if pair[0] != pair[1]][:2], [])

    def test_unknown_words_are_not_cut(self) -> None:
        """Whole documents, also large ones, and none too large for that."""
        tokens = ["<unk>", "</s>", "a", "b"]
        path = self.tokenizer(word_level(tokens))
        self.write("a.txt", b"a b b " * 200)
        self.done_in_units("--tokenizer", path, "--val-fraction", 0, python=self.python)
        self.assertEqual(token_documents(self.out, "train", 1), [[2, 3, 3] * 200])
        result = self.in_units("--tokenizer", path, "--val-fraction", 0, "--overwrite", python=self.python,
                               before="read.MAX_WHOLE_BYTES = 1000")
        self.assert_error(result, "a.txt", "as a whole", "--split-on")


class Files(TokenizersTest):
    TOKENS = ["<unk>", "</s>", "one", "two", "<|endoftext|>"]

    def test_meta_and_copy(self) -> None:
        content = word_level(self.TOKENS)
        self.write("a.txt", b"one two three")
        result = self.succeed("--tokenizer", self.tokenizer(content), "--val-fraction", 0, python=self.python)
        self.assertEqual((self.out / "tokenizer.json").read_bytes(), content)
        self.assertEqual(self.meta(), {
            "format": "llmc", "dtype": "uint16", "tokenizer": "tokenizer.json",
            "tokenizer_sha256": hashlib.sha256(content).hexdigest(), "vocab_size": 5, "eot_token": 4, "eot": "end",
            "bytes_per_token": 13 / 4,
            "train": {"documents": 1, "tokens": 4, "bytes": 13, "shards": ["train-00000.bin"]},
            "val": {"documents": 0, "tokens": 0, "bytes": 0, "shards": []},
        })
        for word in ('"vocab_size": 5', '"eot_token": 4', str(self.out / "tokenizer.json")):
            self.assertIn(word, result.stdout)

    def test_truncation_and_padding_are_left_out_of_what_is_written(self) -> None:
        truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                   "pad_type_id": 0, "pad_token": "<unk>"}
        self.write("a.txt", b"one two one two")
        whole = json.loads(word_level(self.TOKENS))
        for others in ({"truncation": truncation}, {"padding": padding},
                       {"truncation": truncation, "padding": padding}):
            self.succeed("--tokenizer", self.tokenizer(word_level(self.TOKENS, **others)), "--val-fraction", 0,
                         "--overwrite", python=self.python)
            written = (self.out / "tokenizer.json").read_bytes()
            self.assertEqual(json.loads(written), whole)
            self.assertEqual(self.meta()["tokenizer_sha256"], hashlib.sha256(written).hexdigest())
            self.assertEqual(token_documents(self.out, "train", 4), [[2, 3, 2, 3]])

    def test_what_train_cannot_read_is_noted_before_the_work(self) -> None:
        """./train is asked where it is built; here something else answers in its place."""
        scripts = copy_of_scripts(self.root / "elsewhere")
        train = scripts.parent / "train"
        self.write("a.txt", b"one two")
        path = self.tokenizer(word_level(self.TOKENS))
        note = "prepare: note: ./train can train on these shards, but writes no text with this tokenizer"
        for answer, is_noted in (("echo \"error: $3: model.type is odd\" >&2; exit 2", True), ("exit 0", False),
                                 ("exit 1", False), (None, False)):
            with self.subTest(answer=answer):
                if answer is None:
                    train.unlink()
                else:
                    train.write_text(f"#!/bin/sh\n[ \"$1 $2\" = 'tokenize --tokenizer' ] || exit 1\n{answer}\n")
                    train.chmod(0o755)
                command = [self.python, str(scripts / "prepare.py"), "--input", str(self.text), "--tokenizer", path,
                           "--output", str(self.out), "--val-fraction", "0", "--overwrite"]
                result = subprocess.run(command, capture_output=True, text=True)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(note in result.stderr, is_noted, result.stderr)
                self.assertEqual(f"{path}: model.type is odd" in result.stderr, is_noted)
                self.assertLessEqual(result.stderr.count("\n"), 1)

    def test_eot_token(self) -> None:
        self.write("a.txt", b"one two")
        path = self.tokenizer(word_level(self.TOKENS[:-1]))
        for arguments, eot in (([], 1), (["--eot-token", "<unk>"], 0)):
            self.succeed("--tokenizer", path, "--val-fraction", 0, "--overwrite", *arguments, python=self.python)
            self.assertEqual(self.meta()["eot_token"], eot)
            self.assertEqual(read_shard(self.out / "train-00000.bin")[1], [2, 3, eot])

    def test_many_tokens_take_32_bits(self) -> None:
        self.write("a.txt", b"w0 w65535 w65536 w69999")
        for count, dtype, version in ((65534, "uint16", 1), (65535, "uint32", 7)):
            path = self.tokenizer(word_level(["<unk>", "</s>"] + [f"w{i}" for i in range(count)]))
            self.succeed("--tokenizer", path, "--val-fraction", 0, "--overwrite", python=self.python)
            meta = self.meta()
            header, tokens = read_shard(self.out / "train-00000.bin")
            self.assertEqual((meta["dtype"], meta["vocab_size"], header[1]), (dtype, count + 2, version))
        self.assertEqual(header[0], 20240801)
        path = self.tokenizer(word_level(["<unk>", "</s>"] + [f"w{i}" for i in range(70000)]))
        self.succeed("--tokenizer", path, "--val-fraction", 0, "--overwrite", python=self.python)
        self.assertEqual(token_documents(self.out, "train", 1), [[2, 65537, 65538, 70001]])

    def test_nothing_is_added_and_special_tokens_are_text(self) -> None:
        special = {"id": 1, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
                   "normalized": False, "special": True}
        template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                                                             {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}
        path = self.tokenizer(word_level(self.TOKENS[:-1], added_tokens=[special], post_processor=template,
                                         truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                                                     "stride": 0}))
        self.write("a.txt", b"one </s> two two two")
        self.succeed("--tokenizer", path, "--val-fraction", 0, python=self.python)
        tokens = read_shard(self.out / "train-00000.bin")[1]
        self.assertEqual((tokens[0], tokens[-4:], tokens.count(1)), (2, [3, 3, 3, 1], 1))

    def test_masks(self) -> None:
        """A token is left out if all of it is masked; é is one character and two bytes."""
        records = [{"text": "one two one", "skip": [[0, 4]]}, {"text": "one two", "skip": [[2, 7]]},
                   {"text": "é one two", "skip": [[2, 5]]}, {"text": "two", "skip": None}]
        self.write("a.jsonl", b"\n".join(json.dumps(record).encode() for record in records))
        path = self.tokenizer(word_level(self.TOKENS))
        for arguments in ([], ["many slices"]):
            self.in_units("--tokenizer", path, "--val-fraction", 0, "--overwrite", "--mask-field", "skip",
                          unit=4 if arguments else 1 << 20, python=self.python)
            self.assertEqual(list((self.out / "train-00000.mask").read_bytes()),
                             [0, 1, 1, 1] + [1, 0, 0] + [1, 0, 1, 1] + [1, 1])

    def test_masks_over_slices(self) -> None:
        """Offsets count from the beginning of the document, not of the slice."""
        words = "one two é ".encode() * 40
        self.write("text/a.jsonl", json.dumps({"text": words.decode(), "skip": [[100, 203]]}).encode())
        self.code(MAKE, self.root, self.write("corpus", self.code(MAKE_CORPUS, 50)))
        masks = []
        for unit in (32, 1 << 20):
            self.done_in_units("--include", "*.jsonl", "--tokenizer", self.root / "pattern 1 isolated.json",
                               "--val-fraction", 0, "--overwrite", "--mask-field", "skip", unit=unit,
                               python=self.python)
            masks.append((self.out / "train-00000.mask").read_bytes())
        self.assertEqual(masks[0], masks[1])
        self.assertTrue(0 < masks[0].count(0) < len(masks[0]))

    def test_replaced_bytes_are_counted(self) -> None:
        self.write("a.txt", b"one \xff two")
        self.write("b.txt", b"one")
        result = self.succeed("--tokenizer", self.tokenizer(word_level(self.TOKENS)), "--val-fraction", 0,
                              python=self.python)
        self.assertIn("UTF-8:   1 document", result.stdout)

    def test_refused(self) -> None:
        self.write("a.txt", b"one two")
        whole = json.loads(word_level(self.TOKENS))
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        hole = {**whole, "added_tokens": [{**special, "id": 9, "content": "<far>"}]}
        moved = {**whole, "added_tokens": [{**special, "id": 3, "content": "</s>"}]}
        dropout = {**whole, "model": {"type": "BPE", "dropout": 0.1, "vocab": {"</s>": 0}, "merges": []}}
        for content, arguments, words in (
                (b"{", [], ["no tokenizer.json", "--tokenizer"]),
                (b"\xff\xfe", [], ["no tokenizer.json"]),
                (b"[]", [], ["no tokenizer.json"]),
                (b'{"model": {"type": "Magic"}}', [], ["no tokenizer", "can read"]),
                (json.dumps(dropout).encode(), [], ["dropout"]),
                (json.dumps(hole).encode(), [], ["added token '<far>' the id 9", "reads it as 5", "set it to that"]),
                (json.dumps(moved).encode(), [], ["added token '</s>' the id 3", "reads it as 1"]),
                (json.dumps({**whole, "added_tokens": 3}).encode(), [], ["no tokenizer"]),
                (json.dumps({**whole, "added_tokens": [3]}).encode(), [], ["no tokenizer"]),
                (json.dumps({**whole, "model": [3]}).encode(), [], ["no tokenizer"]),
                (json.dumps({**whole, "normalizer": "NFC"}).encode(), [], ["no tokenizer"]),
                (json.dumps({**whole, "normalizer": []}).encode(), [], ["no tokenizer"]),
                (b"[" * 100_000, [], ["no tokenizer.json"]),
                (word_level(["<unk>", "one"]), [], ["no end-of-text token", "<|endoftext|>", "--eot-token"]),
                (word_level(self.TOKENS), ["--eot-token", "<end>"], ["no token <end>", "--eot-token"]),
                (word_level(self.TOKENS), ["--eot-token", "two"], ["gives the token two", "--eot-token"])):
            with self.subTest(content=content[:40], arguments=arguments):
                result = self.run_on_text("--tokenizer", self.tokenizer(content), "--val-fraction", 0, *arguments,
                                          python=self.python)
                self.assert_refused(result, *words)
                self.assertFalse(self.out.exists())


class Training(TokenizersTest):
    def setUp(self) -> None:
        super().setUp()
        corpus = self.code(MAKE_CORPUS, 900)
        self.write("a.txt", corpus[:9000])
        self.write("b.txt", corpus[9000:12000])
        self.write("c.jsonl", b"".join(json.dumps({"text": f"record {i * i} of the corpus"}).encode() + b"\n"
                                       for i in range(300)))

    def test_the_same_whenever_and_with_any_number_of_processes(self) -> None:
        found = []
        for processes in (1, 3, 2):
            self.succeed("--tokenizer", "train:500", "--processes", processes, "--overwrite", python=self.python)
            found.append((self.out / "tokenizer.json").read_bytes())
        self.assertEqual(found[0], found[1])
        self.assertEqual(found[0], found[2])
        meta = self.meta()
        self.assertEqual((meta["vocab_size"], meta["eot_token"], meta["tokenizer"]), (500, 0, "tokenizer.json"))
        self.assertEqual(meta["tokenizer_sha256"], hashlib.sha256(found[0]).hexdigest())
        vocabulary = json.loads(found[0])["model"]["vocab"]
        self.assertEqual(vocabulary["<|endoftext|>"], 0)
        self.assertFalse([token for token in vocabulary if sum(map(str.isdigit, token)) > 3])

    def test_every_text_comes_back(self) -> None:
        self.succeed("--tokenizer", "train:300", "--val-fraction", 0, "--include", "a.txt", python=self.python)
        document, = token_documents(self.out, "train", 0)
        code = ("import sys; from tokenizers import Tokenizer; sys.stdout.buffer.write(Tokenizer.from_file(sys.argv[1])"
                ".decode(list(map(int, sys.argv[2:])), skip_special_tokens=False).encode())")
        text = self.code(code, self.out / "tokenizer.json", *document)
        self.assertEqual(text, (self.text / "a.txt").read_bytes().decode("utf-8", "replace").encode())

    def test_sample(self) -> None:
        """About as much as was asked for, from all over the input; windows of files larger than a unit too."""
        code = """
import sys
from prepare import common, files, train
train.UNIT_BYTES, train.WINDOW_BYTES = int(sys.argv[2]), 500
stop = common.Stop()
listing = files.list_files([sys.argv[1]], files.Filter([], []), "/nowhere", stop)
sample = train.Sample(listing, int(sys.argv[3]), "text", b"", stop)
sys.stdout.buffer.write("".join(sample).encode())"""
        for i in range(100):
            self.write(f"small/{i:02d}.txt", b"number%02d " % i * 10)
        for budget, low, high in ((3000, 2200, 6000), (8000, 6000, 12000)):
            sample = self.code(code, self.text, 1000, budget)
            self.assertTrue(low < len(sample) < high, len(sample))
            self.assertIn(b"number9", sample)
            self.assertIn(b"record 81 ", self.code(code, self.text, 1000, 100_000))
        lines = self.code(code, self.text, 1000, 8000).split(b"record ")
        records = [line for line in lines if b"of the corpus" in line]
        numbers = [int(line.split()[0]) for line in records]
        self.assertTrue(min(numbers) == 0 and max(numbers) > 40_000, numbers)

    def test_too_little_text(self) -> None:
        result = self.succeed("--tokenizer", "train:3000", "--include", "c.jsonl", python=self.python)
        self.assertRegex(result.stderr, "the text gave [0-9]+ tokens, not 3000")
        self.assertLess(self.meta()["vocab_size"], 3000)

    def test_refused(self) -> None:
        for content, words in ((b'{"text": "a"}\n{"body": "a"}\n', ["no field 'text' in line 2 of"]),
                               (b'{"text": "a"}\n{\n', ["invalid JSON in line 2 of"]),
                               (b'{"text": ""}\n', ["no text to train"])):
            path = self.write("z/z.jsonl", content)
            result = self.prepare("--input", path, "--output", self.out, "--tokenizer", "train:300", python=self.python)
            self.assert_refused(result, *words)
            self.assertFalse(self.out.exists())
