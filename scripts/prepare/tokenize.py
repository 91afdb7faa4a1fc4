"""Turns text into token ids: bytes, or tokens of a tokenizer.json by the package `tokenizers`."""
from __future__ import annotations

import array
import hashlib
import json
import os
import re
import struct
import sys
from typing import NamedTuple, Optional

from .common import PrepareError

EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<EOS>", "[EOS]")
MAX_VOCABULARY = 1 << 24  # the largest model.vocab_size
MAX_TOKENIZER_BYTES = 64 << 20  # the limit of ./train, too; a vocabulary of a quarter of a million tokens has 35 MB
SLICE_BYTES = 4096  # of a document are tokenised at a time: 64 KiB and 1 MiB were slower
BATCH_SLICES = 256
WINDOWS = (1 << 12, 1 << 16, 1 << 32)  # so many bytes before a limit are searched for the last place to cut

# ---- Where a document may be cut ----
#
# A tokenizer splits a text into words by its pre-tokenizer's regular expression and tokenises each word alone. So a cut
# changes nothing if, whatever stands around it, a word ends there. Each of PATTERNS looks behind nowhere, ahead only by
# `\s+(?!\S)`, and matches every character. With x and y the characters before and after the cut:
#
# 1. x printable ASCII other than a space, y a space or tab. No alternative continues from a non-space to a space or a
#    tab, so a word ends after x. It ends there in the first part alone too: the only look ahead is from white space.
# 2. x an ASCII letter or digit, y CR or LF: likewise. (Punctuation may take the line breaks that follow it.)
# 3. x LF after a character other than white space, y neither white space nor '/'. The LF is a word of its own or the
#    end of one, by `[\r\n]*`, `\s*[\r\n]+` or `\s+`: no alternative continues from LF to y (but o200k's `[\r\n/]*` to
#    '/'), and the look-ahead gives the same: before y, `\s+(?!\S)` fails and `\s+` takes the LF; at the end, the first
#    takes it. With white space before the LF (CRLF too) the two would differ, since `\s+(?!\S)` leaves one behind.
#
# 4. x an ASCII letter or digit, y any other ASCII character but the apostrophe (of contractions): no alternative
#    continues from the one to the other. So a text is made of parts that end there (or after punctuation before a
#    space, by 1), and since most of them come again and again, what they give is remembered: twice as fast as the
#    package alone.
#
# NFC composes nothing with a space, a tab, CR or LF, and decoding with replacement characters ends at ASCII. With
# add_prefix_space, which puts a space before a text that begins with none, y can be nothing but a space, and there are
# no parts.
#
# The bytes of x and y in UTF-8: no white space begins with C3 to DF, E0 or E4 to ED; with E3 it is U+3000 alone.
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                  r"\s*[\r\n]+|\s+(?!\S)|\s+")  # cl100k (GPT-4) too
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    LLAMA3_PATTERN,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",  # Qwen 2 and 3
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # o200k (GPT-4o, gpt-oss, Llama 4)
}
_BEFORE_SPACE = rb"(?<=[!-~])(?=[ \t])|(?<=[0-9A-Za-z])(?=[\r\n])"
_AFTER_LINE = (rb"(?:(?<=[!-~]\n)|(?<=[\xc3-\xdf][\x80-\xbf]\n)|(?<=[\xe4-\xed][\x80-\xbf][\x80-\xbf]\n)|"
               rb"(?<=\xe3[\x81-\xbf][\x80-\xbf]\n)|(?<=\xe3\x80[\x81-\xbf]\n))"
               rb"(?=[0-9A-Za-z\xc3-\xdf\xe0\xe4-\xed]|\xe3[\x81-\xbf])")
CUT = re.compile(_BEFORE_SPACE + b"|" + _AFTER_LINE)
CUT_WITH_PREFIX_SPACE = re.compile(rb"(?<=[!-~])(?= )")
PART = re.compile(rb"[^0-9A-Za-z]*[!-/:-@\[-`{-~](?=[ \t])|"
                  rb"[^0-9A-Za-z]*[0-9A-Za-z]*(?:['\x80-\xff][^0-9A-Za-z]*[0-9A-Za-z]*)*")
MAX_PART_BYTES = 64  # longer parts are not remembered
MAX_PARTS = 1 << 18  # then they become the old ones, and only those that come again are kept: about 100 MB in all
PARTS_BYTES = 1 << 18  # of a document are cut into parts at a time


def places_to_cut(tokenizer: dict) -> Optional["re.Pattern[bytes]"]:
    """Returns a pattern that matches (with no width) where a text may be cut for this tokenizer.json; None if nothing
    is known of it."""
    for added in tokenizer.get("added_tokens") or []:
        # The cuts above must lie in no added token, nor beside white space that one takes along. Special ones are not
        # looked for in documents, but would still hide others.
        takes_space = not added.get("special") and (added.get("lstrip") or added.get("rstrip"))
        if takes_space or re.search(r"\S\s|\s\S", added.get("content", "")):
            return None
    normalizer = tokenizer.get("normalizer")
    normalizers = normalizer.get("normalizers", []) if (normalizer or {}).get("type") == "Sequence" else [normalizer]
    if any(part is not None and part.get("type") != "NFC" for part in normalizers):
        return None
    splitter = tokenizer.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    if [part.get("type") for part in parts] == ["ByteLevel"] and parts[0].get("use_regex", True):
        return CUT_WITH_PREFIX_SPACE if parts[0].get("add_prefix_space", True) else CUT
    if [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = parts
    if split.get("pattern", {}).get("Regex") not in PATTERNS or byte_level.get("use_regex", True) \
            or byte_level.get("add_prefix_space", True):
        return None
    # The patterns match everything, so that "removed" with the matches inverted drops nothing.
    if (split.get("behavior"), split.get("invert")) not in (("Isolated", False), ("Removed", True)):
        return None
    return CUT


# ---- Tokenizers ----


class Text(NamedTuple):
    """A document; `masked` are the ranges [begin, end) of characters that are no targets, merged and in order."""
    data: bytes
    masked: tuple[tuple[int, int], ...] = ()


class Tokens(NamedTuple):
    """Ids without an end-of-text token, little-endian, and one byte per token and for EOT: 1 = a target."""
    ids: bytes
    targets: Optional[bytes]


class BytesTokenizer:
    """One token per byte; end-of-text comes after them."""
    name = "bytes"
    eot_side = "end"  # of a document
    width = 2
    vocab_size = 257
    eot = 256
    sha256: Optional[str] = None
    json: Optional[bytes] = None

    def cut(self, buffer: bytes, limit: int) -> int:
        return limit

    def encode(self, texts: list[Text], with_targets: bool) -> tuple[list[Tokens], int]:
        """Returns the tokens of each text, and how many texts had bytes replaced (none)."""
        # Latin-1 maps byte b to character b, and UTF-16 writes that character as the uint16 b.
        return [Tokens(str(text.data, "latin-1").encode("utf-16-le"), self._targets(text) if with_targets else None)
                for text in texts], 0

    def _targets(self, text: Text) -> bytes:
        targets = bytearray(b"\1") * (len(text.data) + 1)
        if text.masked:
            characters = text.data.decode("utf-8")
            begin_bytes = at = 0
            for begin, end in text.masked:
                begin_bytes += len(characters[at:begin].encode())
                at = end
                end_bytes = begin_bytes + len(characters[begin:end].encode())
                targets[begin_bytes:end_bytes] = bytes(end_bytes - begin_bytes)
                begin_bytes = end_bytes
            targets[-1] = targets[-2]  # EOT is a target if the last token is
        return bytes(targets)


class JsonTokenizer:
    """A tokenizer.json. Special tokens are not looked for in documents: one that names <|endoftext|> is one document.

    What a tokenizer.json adds around a text (a BOS token), and its limits on length, are for prompts and left out.
    """
    name = "tokenizer.json"
    eot_side = "end"  # of a document; chats may have it at the beginning (chat_work.py)

    def __init__(self, path: str, content: bytes, eot_name: Optional[str]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # prepare.py runs a process per core already
        import tokenizers
        try:
            described = json.loads(content)
            if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
                raise ValueError("it has no \"model\"")
            added = described.get("added_tokens") or []
            if not isinstance(added, list) or not all(isinstance(token, dict) and isinstance(token.get("content"), str)
                                                      for token in added):
                raise ValueError("its \"added_tokens\" are no list of tokens")
            for key in ("normalizer", "pre_tokenizer"):
                if not isinstance(described.get(key), (dict, type(None))):
                    raise ValueError(f"its \"{key}\" is no object")
        except (ValueError, RecursionError) as error:
            raise PrepareError(f"{path} is no tokenizer.json ({error}), name another file in --tokenizer") from error
        if described["model"].get("dropout"):
            raise PrepareError(f"{path} has model.dropout, so that a text gives other tokens each time, set it to null")
        # Truncation and padding are for batches of a finished model's input; other programs would apply them to texts.
        if described.get("truncation") is not None or described.get("padding") is not None:
            described.update(truncation=None, padding=None)
            content = json.dumps(described, indent=2).encode()
        described.update(post_processor=None)
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
        except Exception as error:  # the package raises nothing more special
            raise PrepareError(f"{path} is no tokenizer that the package tokenizers {tokenizers.__version__} can read "
                               f"({error}), name another file in --tokenizer or upgrade the package") from error
        self.cuts = places_to_cut(described)
        # A part must not tear an added token, nor end at one that must be a single word: a text that holds one of these
        # is not cut into parts.
        # Special ones are not looked for, and matter only by hiding others that they overlap.
        has_plain = any(not token.get("special") for token in added)
        self.unbroken = [token["content"].encode() for token in added] if has_plain else []
        self.has_parts = self.cuts is CUT
        self.parts: dict[bytes, bytes] = {}
        self.old_parts: dict[bytes, bytes] = {}
        if not hasattr(self.tokenizer, "encode_special_tokens") or not hasattr(self.tokenizer, "encode_batch_fast"):
            raise PrepareError(f"the package tokenizers {tokenizers.__version__} is too old, get 0.20 or later with:  "
                               f"{sys.executable} -m pip install --upgrade tokenizers")
        self.tokenizer.encode_special_tokens = True
        self._check_added_tokens(path, added)
        self.normalized = self._normalized_contents(added) if has_plain else []
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 2 <= self.vocab_size <= MAX_VOCABULARY:
            raise PrepareError(f"{path} has ids up to {self.vocab_size - 1}, ./train takes 2 to {MAX_VOCABULARY} "
                               "tokens, name another file in --tokenizer")
        self.width = 2 if self.vocab_size <= 1 << 16 else 4
        self.code = "H" if self.width == 2 else "I"
        self.eot_name, self.eot = choose_eot(path, vocabulary, eot_name)
        self.json = content
        self.sha256 = hashlib.sha256(content).hexdigest()

    def _check_added_tokens(self, path: str, added: list[dict]) -> None:
        """Refuses holes in the file's ids: the package would close them, and shards would have other ids than the
        file."""
        for token in added:
            given = self.tokenizer.token_to_id(token["content"])
            if given != token.get("id"):
                raise PrepareError(f"{path} gives the added token {token['content']!r:.60} the id {token.get('id')}, "
                                   f"and the package tokenizers reads it as {given}: set it to that, or use a file "
                                   "whose vocabulary has no holes")

    def _normalized_contents(self, added: list[dict]) -> list[bytes]:
        """Returns the added tokens that are looked for in the normalized text, normalized themselves."""
        normalizer = self.tokenizer.normalizer
        if normalizer is None:
            return []
        return [normalizer.normalize_str(token["content"]).encode() for token in added if token.get("normalized")]

    def _has_unbroken(self, data: bytes) -> bool:
        """Returns whether a text may hold an added token."""
        if any(token in data for token in self.unbroken):
            return True
        if not self.normalized:
            return False
        if not data.isascii():  # NFC leaves ASCII as it is
            data = self.tokenizer.normalizer.normalize_str(data.decode("utf-8", "replace")).encode()
        return any(token in data for token in self.normalized)

    def cut(self, buffer: bytes, limit: int) -> int:
        for window in WINDOWS if self.cuts else ():
            begin = max(0, limit - window)
            last = 0
            # A match at the limit would need what comes after it, which may not be here yet.
            for match in self.cuts.finditer(buffer, begin + 1, limit):
                last = match.start()
            if last or begin == 0:
                return last
        return 0

    def encode(self, texts: list[Text], with_targets: bool) -> tuple[list[Tokens], int]:
        """Returns the tokens of each text, and in how many texts bytes that are no UTF-8 became U+FFFD."""
        replaced = 0
        ids: list[list[bytes]] = [[] for _ in texts]
        targets: list[list[bytes]] = [[] for _ in texts]
        batch: list[tuple[int, str, int]] = []  # index of the text, a slice of it, characters before the slice
        for index, text in enumerate(texts):
            if self.has_parts and not text.masked and not self._has_unbroken(text.data):
                replaced += self._encode_parts(text.data, ids[index])
                if with_targets:
                    targets[index].append(b"\1" * (sum(map(len, ids[index])) // self.width))
                continue
            characters = 0
            is_valid = True
            for part in self._slices(text.data, SLICE_BYTES):
                try:
                    decoded = part.decode("utf-8")
                except UnicodeDecodeError:
                    decoded = part.decode("utf-8", "replace")
                    is_valid = False
                batch.append((index, decoded, characters))
                characters += len(decoded)
                if len(batch) >= BATCH_SLICES:
                    self._encode_batch(batch, texts, ids, targets, with_targets)
                    batch.clear()
            replaced += not is_valid
        self._encode_batch(batch, texts, ids, targets, with_targets)
        tokens = []
        for index, parts in enumerate(targets):
            joined = b"".join(parts)
            end = joined[-1:] if texts[index].masked else b"\1"
            tokens.append(Tokens(b"".join(ids[index]), joined + end if with_targets else None))
        return tokens, replaced

    def _encode_parts(self, data: bytes, ids: list[bytes]) -> bool:
        """Appends the ids of a text, and tells whether bytes of it were replaced."""
        for piece in self._slices(data, PARTS_BYTES):
            parts = PART.findall(piece)
            known, old = self.parts, self.old_parts
            new = set(parts).difference(known)
            again = [part for part in new if part in old]
            known.update((part, old[part]) for part in again)
            new.difference_update(again)
            long = [part for part in new if len(part) > MAX_PART_BYTES]
            new.difference_update(long)
            known.update(zip(new, self._encode_short([part.decode("utf-8", "replace") for part in new])))
            for part in long:
                slices = [slice.decode("utf-8", "replace") for slice in self._slices(part, SLICE_BYTES)]
                known[part] = b"".join(self._encode_short(slices))
            ids.append(b"".join(map(known.__getitem__, parts)))
            for part in long:
                del known[part]
            if len(known) > MAX_PARTS:
                self.parts, self.old_parts = {}, known
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return True
        return False

    def _encode_short(self, texts: list[str]) -> list[bytes]:
        """Returns the ids of each text, in batches, with as little work for each as possible."""
        encode, pack = self.tokenizer.encode_batch_fast, self._pack
        return [pack(encoding.ids) for begin in range(0, len(texts), BATCH_SLICES)
                for encoding in encode(texts[begin:begin + BATCH_SLICES], add_special_tokens=False)]

    def _slices(self, data: bytes, size: int) -> list[bytes]:
        """Cuts the text into slices of little more than size bytes, where that is allowed."""
        if self.cuts is None or len(data) <= size:
            return [data]
        slices, begin = [], 0
        while begin < len(data):
            match = self.cuts.search(data, begin + size)
            end = match.start() if match else len(data)
            slices.append(data[begin:end])
            begin = end
        return slices

    def _encode_batch(self, batch: list[tuple[int, str, int]], texts: list[Text], ids: list[list[bytes]],
                      targets: list[list[bytes]], with_targets: bool) -> None:
        has_masks = any(texts[index].masked for index, _, _ in batch)
        encode = self.tokenizer.encode_batch if has_masks else self.tokenizer.encode_batch_fast
        encodings = encode([part for _, part, _ in batch], add_special_tokens=False)
        for (index, _, before), encoding in zip(batch, encodings):
            ids[index].append(self._pack(encoding.ids))
            if with_targets:
                masked = texts[index].masked
                targets[index].append(target_bytes(encoding.offsets, before, masked) if masked
                                      else b"\1" * len(encoding.ids))

    def _pack(self, ids: list[int]) -> bytes:
        if self.eot in ids:
            raise PrepareError(f"a text gives the token {self.eot_name}, which would end the document there, since it "
                               "is no special token of this tokenizer, choose another one with --eot-token")
        return self.pack(ids)

    def pack(self, ids: list[int]) -> bytes:
        """Returns the ids as files have them: little-endian."""
        packed = array.array(self.code, ids)
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tobytes()


def target_bytes(offsets: list[tuple[int, int]], before: int, masked: tuple[tuple[int, int], ...]) -> bytes:
    """Returns a byte for each token (at characters begin to end of a slice): 1 if a character lies outside the
    ranges."""
    targets = bytearray()
    at = 0
    for begin, end in offsets:
        begin, end = begin + before, max(end, begin + 1) + before
        while at < len(masked) and masked[at][1] <= begin:
            at += 1
        is_covered = at < len(masked) and masked[at][0] <= begin and end <= masked[at][1]
        targets.append(0 if is_covered else 1)
    return bytes(targets)


def choose_eot(path: str, vocabulary: dict[str, int], name: Optional[str]) -> tuple[str, int]:
    if name is not None:
        if name not in vocabulary:
            raise PrepareError(f"{path} has no token {name}, name one of its tokens in --eot-token")
        return name, vocabulary[name]
    for name in EOT_NAMES:
        if name in vocabulary:
            return name, vocabulary[name]
    raise PrepareError(f"{path} has no end-of-text token by a usual name ({', '.join(EOT_NAMES)}), "
                       "name one of its tokens with --eot-token")


def eot_bytes(tokenizer: BytesTokenizer | JsonTokenizer) -> bytes:
    return struct.pack("<H" if tokenizer.width == 2 else "<I", tokenizer.eot)
