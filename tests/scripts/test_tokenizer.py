"""The encoder against HF tokenizers, token for token, on tokenizers of the published kinds that are trained here.

The text: translated manual pages, sources, code points of all of Unicode, added tokens in all surroundings, broken
UTF-8, random bytes. Characters are left out that the libraries of the two sides treat otherwise, because they know
other versions of Unicode; they are counted. Quick by default; INGOT_LONG=1 takes 10 MB for each kind.

Seen to catch: \\s as PCRE2 reads it (U+180E), one U+FFFD for each broken byte, ignore_merges left out, no NFC, added
tokens that are not normalized with the text, single_word that looks at one side alone, lstrip left out.
"""

import gzip
import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata
import unittest

from . import TRAIN, add_packages_of, run
from .inputs import temporary_folder

IS_LONG = os.environ.get("INGOT_LONG") == "1"
BYTES_PER_KIND = 10_000_000 if IS_LONG else 300_000


def import_tokenizers():
    """From this Python, or from .venv, which ./scripts/test makes."""
    try:
        import tokenizers
    except ImportError:
        add_packages_of(".venv")
        try:
            import tokenizers
        except ImportError as error:
            return None, str(error)
    return tokenizers, ""


tokenizers, WHY_NOT = import_tokenizers()
if tokenizers is not None:
    from tokenizers import normalizers, pre_tokenizers


def natural_text(limit):
    """Translated manual pages, and the sources of Python's standard library: half each as far as they go."""
    pages = b""
    for path in sorted(pathlib.Path("/usr/share/man").glob("[a-z][a-z]*/man*/*.gz")):
        if len(pages) >= limit // 2:
            break
        if not path.parent.parent.name.startswith("man"):
            pages += gzip.decompress(path.read_bytes())
    sources = b""
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if len(sources) >= limit // 2:
            break
        sources += path.read_bytes()
    return pages[:limit // 2] + sources[:limit // 2]


def generated_text(generator, limit):
    """Words, spaces, digits, marks and contractions in random order; code points of every kind; added tokens."""
    pieces = ["a", "B", "word", "words", "Words", "\u0430", "\u4e2d\u6587", "\u3042", "\u05d0", "1", "12", "345",
              "\u0662", "\u2167", "\u00bd", "\u00b2", " ", "  ", "   ", "    ", "\t", "\n", "\r\n", "\n\n ", "\u00a0",
              "\u3000", "\u0085", "\u180e", "\u200b", "\u2028", "\ufeff", "'s", "'S", "'\u017f", "'re", "'LL", "'x",
              "\u2019s", "e\u0301", "\u00e9", "\u1e9b\u0323", "\u212b", "\u2126", "\uac00", "\u1100\u1161\u11a8",
              "\u0301", "\u0327\u0301", "q\u0307\u0323", "_", "-", "...", "!?", "/", "\U0001f600",
              "\U0001f468\u200d\U0001f469", "\u24b6", "\x00", "\x1f", "\x7f", "\ufffd", "\U0010ffff", "<|endoftext|>",
              "<|endoftext", "<|im_start|>", "<tool_call>", "<left>", "<left", "<right>", "<both>", "cafe\u0301",
              "caf\u00e9", "re\u0301sume\u0301", "r\u00e9sum\u00e9", "\u00fcber", "u\u0308ber",
              "<|reserved_special_token_3|>"]
    out, size = [], 0
    while size < limit:
        if generator.random() < 0.8:
            piece = generator.choice(pieces)
        else:
            plane = generator.choice([0x300, 0x3000, 0x10000, 0x20000, 0x30000])
            code = generator.randrange(plane)
            piece = "" if 0xd800 <= code < 0xe000 else chr(code)
        out.append(piece)
        size += len(piece.encode())
    return "".join(out).encode()


def broken_text(generator, text, limit):
    """Text of which single bytes were changed, then bytes of any value, then leads and followers in any order."""
    text = bytearray(text[:limit // 2])
    for _ in range(len(text) // 20):
        at = generator.randrange(len(text))
        text[at] = generator.randrange(256)
    edges = bytes([0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef,
                   0xf0, 0xf1,
                   0xf4, 0xf5, 0xff])
    return bytes(text) + generator.randbytes(limit // 4) + bytes(generator.choices(edges, k=limit // 4))


# Old characters to which a later Unicode gave another class: U+0295, a Ll, is a Lo since Unicode 17.
CHANGED = {"\u0295"}


class NewCharacters:
    """Characters that the two sides treat otherwise, because their libraries know other versions of Unicode: classes by
    PCRE2 here, by Oniguruma and by Rust there; NFC by utf8proc here, there by a table of Unicode 9."""

    def __init__(self):
        info = json.loads(subprocess.run([TRAIN, "info", "--json"], capture_output=True, check=True).stdout)
        self.ours = f"PCRE2 {info['libraries']['pcre2']}, utf8proc {info['libraries']['utf8proc']}"
        every = "".join(chr(code) for code in range(0x110000) if not 0xd800 <= code < 0xe000)
        self.new = set()
        for name in ("L", "Lu", "Lt", "Lm", "Lo", "Ll", "M", "N", "Z"):
            class_alone = pre_tokenizers.Split(tokenizers.Regex(rf"\p{{{name}}}"), "removed", True)
            theirs = {character for start in range(0, len(every), 1 << 14)
                      for piece,
                      _ in class_alone.pre_tokenize_str(every[start:start + (1 << 14)]) for character in piece}
            ours = set(self.passed_by_us(every, [class_alone], None))
            self.new |= theirs ^ ours
            if name == "N":
                digits = pre_tokenizers.Digits(individual_digits=True)
                for start in range(0, 0x20000, 1 << 12):
                    text = "".join(f"aa{character}" for character in every[start:start + (1 << 12)])
                    self.new |= ours.intersection(every[start:start + (1 << 12)]) ^ {
                        piece for piece, _ in digits.pre_tokenize_str(text) if len(piece) == 1 and piece != "a"}
        # The order of marks, and what composes.
        nfc = normalizers.NFC()
        cases = [(character, order.format(character)) for character in every
                 if unicodedata.category(character)[0] == "M"
                 for order in ("q{}\u0323", "q\u0301{}", "q{}\u0301", "q\u0323{}", "q{}\u0315", "q\u0334{}")]
        for character in every:
            parts = unicodedata.normalize("NFD", character)
            if parts != character and not "\uac00" <= character <= "\ud7a3":
                # A pair that composes in one version of Unicode alone has a part that is new there (Unicode 15,
                # section 3.11, stability): that one is to blame, and not the mark that it shares with older letters.
                newer = [part for part in parts if not is_old(part)]
                cases += [(part, parts) for part in newer or parts[1:]]
        ours = self.passed_by_us("\n".join(text for _, text in cases), [], nfc).split("\n")
        self.new |= {character for (character, text), mine in zip(cases, ours) if nfc.normalize_str(text) != mine}
        self.new |= self.of_other_words(every[:0x40000].replace("~", ""))

    @staticmethod
    def of_other_words(characters):
        """Those beside which one side finds an added token that must be a single word, and the other does not: HF
        tokenizers asks the \\w of Rust, which knows another version of Unicode than its patterns do."""
        tokenizer = bytes_alone([])
        tokenizer.add_tokens([tokenizers.AddedToken("~~", single_word=True, normalized=False)])
        token = tokenizer.token_to_id("~~")
        texts = ["".join(f"{character}~~ " for character in characters[start:start + (1 << 14)])
                 for start in range(0, len(characters), 1 << 14)]
        theirs = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        found = []
        for ids in ([id for part in theirs for id in part], tokens_of(tokenizer, "".join(texts).encode())):
            words, at = [], 0
            for character in characters:
                at += len(character.encode())
                words.append(ids[at] != token)
                at += 3 if words[-1] else 2
            found.append(words)
        return {character for character, mine, other in zip(characters, *found) if mine != other}

    @staticmethod
    def passed_by_us(text, steps, normalizer):
        """What our program makes of a text before it merges: a tokenizer without merges has bytes as tokens."""
        tokenizer = bytes_alone(steps)
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        bytes_of = bytes_of_letters()
        byte_of_id = [bytes_of[letter] for letter in sorted(tokenizer.get_vocab())]
        return bytes(byte_of_id[token] for token in tokens_of(tokenizer, text.encode())).decode()


def is_old(character):
    """Whether it has been there since Unicode 3.2, the oldest that Python has."""
    return unicodedata.ucd_3_2_0.category(character) != "Cn"


def bytes_alone(steps):
    """A tokenizer without merges: each byte is a token, in the order of their letters."""
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


def tokens_of(tokenizer, text):
    """What ./train makes of a text."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(tokenizer.to_str())
        file.flush()
        result = run(TRAIN, "tokenize", "--tokenizer", file.name, input=text)
    return [int(token) for token in result.stdout.split()]


def bytes_of_letters():
    """The inverse of the alphabet in which a byte-level tokenizer.json writes bytes."""
    result, extra = {}, 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7e or 0xa1 <= byte <= 0xff and byte != 0xad:
            result[chr(byte)] = byte
        else:
            result[chr(0x100 + extra)] = byte
            extra += 1
    return result


@unittest.skipIf(tokenizers is None, f"the Python package tokenizers is not here: {WHY_NOT}")
class Tokens(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from . import tokenizer_kinds
        cls.kinds = tokenizer_kinds
        cls.folder = temporary_folder(cls)
        generator = random.Random(11)
        natural = natural_text(BYTES_PER_KIND * 6 // 10)
        generated = generated_text(generator, BYTES_PER_KIND * 3 // 10)
        cls.texts = {"natural": natural, "generated": generated,
                     "broken": broken_text(generator, natural + generated, BYTES_PER_KIND // 10)}
        new = NewCharacters()
        table = {ord(character): None for character in new.new}
        num_left_out = 0
        for name, text in cls.texts.items():
            decoded = text.decode(errors="surrogateescape")
            kept = decoded.translate(table)
            num_left_out += len(decoded) - len(kept)
            cls.texts[name] = kept.encode(errors="surrogateescape")
        cls.new = new
        print(f"\n{new.ours}; HF tokenizers {tokenizers.__version__}: {len(new.new)} characters are treated otherwise; "
              f"{num_left_out} of them were left out of {sum(map(len, cls.texts.values()))} bytes", file=sys.stderr)

    def ours(self, path, text):
        result = run(TRAIN, "tokenize", "--tokenizer", path, input=text)
        return [int(token) for token in result.stdout.split()]

    def assert_same(self, tokenizer, ours, theirs, name):
        if ours == theirs:
            return
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        around = slice(max(0, at - 6), at + 4)
        self.fail(f"{name}: token {at} of {len(ours)} and {len(theirs)}: "
                  f"{[tokenizer.id_to_token(i) for i in ours[around]]} instead of "
                  f"{[tokenizer.id_to_token(i) for i in theirs[around]]}")

    def test_every_kind(self):
        train_on = self.texts["natural"][:400_000].decode(errors="replace")
        for kind in self.kinds.KINDS:
            tokenizer = self.kinds.train(kind, [train_on], 1500)
            path = self.folder / f"{kind}.json"
            tokenizer.save(str(path))
            for name, text in self.texts.items():
                with self.subTest(kind=kind, text=name):
                    theirs = tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
                    self.assertGreater(len(theirs), 1000)
                    self.assert_same(tokenizer, self.ours(path, text), theirs, f"{kind}, {name}")

    def test_short_texts(self):
        tokenizer = self.kinds.train("added", ["a word of words"], 300)
        path = self.folder / "short.json"
        tokenizer.save(str(path))
        for text in ("", " ", "\n", "a", "\u0301", "<left>", " <left> ", "  <right>  <right>", "<right>  <left>", "<both>", "x<both>",
                     "word", "a word",
                     "words word swords", "word\u0301", "<le", "<left", "e\u0301", "        ", "cafe\u0301s"):
            with self.subTest(text=text):
                theirs = tokenizer.encode(text, add_special_tokens=False).ids
                self.assert_same(tokenizer, self.ours(path, text.encode()), theirs, repr(text))

    def test_added_tokens_as_they_are_normalized(self):
        """Contents that NFC changes, and characters that it turns into those of a content."""
        tokenizer = bytes_alone([])
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_tokens([tokenizers.AddedToken(content, normalized=True) for content in
                              ("b-\u00e9", "x.\u03a9", "K;", "9.e\u0301", "\uac01-1")])
        path = self.folder / "normalized.json"
        tokenizer.save(str(path))
        pieces = ["b-e\u0301", "b-\u00e9", "x.\u2126", "x.\u03a9", "\u212a;", "\u212a\u037e", "K;", "9.\u00e9", "9.e\u0301",
                  "\u1100\u1161\u11a8-1", "\uac00\u11a8-1", " ", "a", "\n", "b-", "e", "\u0301", ".", "x", "K"]
        text = "".join(random.Random(5).choices(pieces, k=20_000))
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        self.assertGreater(sum(id >= 256 for id in theirs), 5000)
        self.assert_same(tokenizer, self.ours(path, text.encode()), theirs, "normalized added tokens")

    def test_merges_as_strings(self):
        """The form that files had before tokenizers 0.20."""
        tokenizer = self.kinds.train("llama3", [self.texts["natural"][:100_000].decode(errors="replace")], 600)
        description = json.loads(tokenizer.to_str())
        description["model"]["merges"] = [" ".join(pair) for pair in description["model"]["merges"]]
        path = self.folder / "strings.json"
        path.write_text(json.dumps(description))
        text = self.texts["natural"][:50_000]
        theirs = tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        self.assert_same(tokenizer, self.ours(path, text), theirs, "merges as strings")

    def test_what_is_left_out_is_new(self):
        """A class or a mark that was read wrongly would show as characters that have been there for long."""
        old = [hex(ord(character)) for character in sorted(self.new.new - CHANGED) if is_old(character)]
        self.assertEqual(old, [])
        self.assertLess(len(self.new.new), 20_000)
