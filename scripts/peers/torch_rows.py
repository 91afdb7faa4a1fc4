"""The rows of tokens that Ingot trains on, again in PyTorch: the twin of src/data, which it shares no line with.

All of a dataset is in memory. data/README.md says what a row is; tests/scripts/test_torch_twin.py compares.
"""

from __future__ import annotations

import math
import pathlib
import struct
from typing import Any, NamedTuple

from torch_twin import LOW, Word, fail, philox, random_bits, stream_of  # says so where there is no PyTorch

import torch
from torch import Tensor

IGNORED = -1
SEGMENT_TOKENS, PROBE_TOKENS, GROUP_SEGMENTS, BLEND_ROWS = 1 << 24, 4096, 64, 1024


class Shard(NamedTuple):
    tokens: Tensor  # int64
    starts: Tensor | None  # starts of its documents, where its own index has them (Megatron)


def read_shard(path: str, entry: dict[str, Any]) -> Shard:
    content = pathlib.Path(path).read_bytes()
    index = pathlib.Path(path).with_suffix(".idx")
    form = entry.get("format", "auto")
    if form == "raw":
        dtype = {"uint16": torch.uint16, "uint32": torch.int32}[entry["dtype"]]
        return Shard(torch.frombuffer(bytearray(content), dtype=dtype).to(torch.int64), None)
    if form == "megatron" or (form == "auto" and path.endswith(".bin") and index.exists()):
        return read_megatron(content, index.read_bytes())
    magic, version, count = struct.unpack_from("<3i", content)
    if (magic, version) == (20240520, 1):
        tokens = torch.frombuffer(bytearray(content[1024:]), dtype=torch.uint16)
    elif (magic, version) == (20240801, 7):
        tokens = torch.frombuffer(bytearray(content[1024:]), dtype=torch.int32)
    else:
        fail(f"{path}: is not a token shard (magic {magic}, version {version})")
    if len(tokens) != count:
        fail(f"{path}: holds {len(tokens)} tokens, its header says {count}")
    return Shard(tokens.to(torch.int64), None)


def read_megatron(content: bytes, index: bytes) -> Shard:
    code, sequences, entries = struct.unpack_from("<BQQ", index, 17)
    dtype = {1: torch.uint8, 4: torch.int32, 5: torch.int64, 8: torch.uint16}[code]
    tokens = torch.frombuffer(bytearray(content), dtype=dtype).to(torch.int64)
    lengths = torch.frombuffer(bytearray(index[34:34 + 4 * sequences]), dtype=torch.int32).to(torch.int64)
    documents = torch.frombuffer(bytearray(index[34 + 12 * sequences:34 + 12 * sequences + 8 * entries]),
                                 dtype=torch.int64)
    starts = torch.cat((torch.tensor([0]), lengths.cumsum(0)))[documents]
    return Shard(tokens, torch.unique(starts[starts < len(tokens)]))


def permuted_index(index: Word, count: int, seed: int, stream: int) -> Word:
    """Permutes one number, or each number of a tensor."""
    half_bits = ((count - 1).bit_length() + 1) // 2
    if half_bits == 0:
        return index
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & half_mask
        for number in range(8):
            words = philox((right & LOW, number, stream & LOW, stream >> 32), seed)  # type: ignore[arg-type]
            left, right = right, left ^ words[0] & half_mask
        image = left << half_bits | right
        if isinstance(image, int):
            index = image
            if index < count:
                return index
        elif bool((image < count).all()):
            return image
        else:  # numbers back in [0, count) stay; others walk on
            walks = image >= count
            image[walks] = permuted_index(image[walks], count, seed, stream)
            return image


def group_stream(name: str, epoch: int, group: int) -> int:
    return (stream_of(name) + (epoch << 32) + group) & 0xFFFFFFFFFFFFFFFF


def permuted_documents(count: int, seed: int, stream: int) -> Tensor:
    """Shuffles by Fisher and Yates, with Lemire's numbers below a bound."""
    order = list(range(count))
    drawn = 0
    words: list[int] = []

    def draw(bound: int) -> int:
        nonlocal drawn
        if drawn == len(words):
            words.extend(random_bits(seed, stream, drawn, 1 << 16).tolist())
        drawn += 1
        return words[drawn - 1] * bound

    for last in range(count - 1, 0, -1):
        product = draw(last + 1)
        if product & LOW < last + 1:
            threshold = ((1 << 32) - (last + 1)) % (last + 1)
            while product & LOW < threshold:
                product = draw(last + 1)
        other = product >> 32
        order[last], order[other] = order[other], order[last]
    return torch.tensor(order)


def blend_shares(weights: list[float]) -> list[int]:
    """Divides the rows of a block by the largest remainder."""
    exact = [weight / sum(weights) * BLEND_ROWS for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(shares)), key=lambda d: (shares[d] - exact[d], d))
    for d in by_remainder[:BLEND_ROWS - sum(shares)]:
        shares[d] += 1
    return shares


def pack_best_fit(lengths: list[int], context: int) -> list[list[tuple[int, int, int]]]:
    """Returns rows of (document, offset, length): the longest piece first, each into the fullest row that has room."""
    pieces = [(d, offset, min(context, length - offset)) for d, length in enumerate(lengths)
              for offset in range(0, length, context)]
    rooms: dict[int, list[int]] = {}
    rows: list[list[int]] = []
    for p in sorted(range(len(pieces)), key=lambda p: -pieces[p][2]):
        length = pieces[p][2]
        room = min((room for room, stack in rooms.items() if stack and room >= length), default=None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, context
        else:
            row = rooms[room].pop()
        rows[row].append(p)
        if room > length:
            rooms.setdefault(room - length, []).append(row)
    return [[pieces[p] for p in row] for row in sorted(sorted(row) for row in rows)]


class Row(NamedTuple):
    """A row has T of each: where the token stands (-1: padding), where its target does (-1: none), its document in the
    row."""
    index: Tensor
    following: Tensor
    documents: Tensor


class Dataset:
    """The files of one or several entries of data.train, in memory."""

    def __init__(self, config: dict[str, Any], entries: list[Any], seed: int) -> None:
        data = config["data"]
        self.context, self.masked, self.seed = config["model"]["context_length"], data["mask_documents"], seed
        self.is_shuffled, self.packing = data["shuffle"], data.get("packing", "stream")
        eot = -1 if data["eot_token"] is None else data["eot_token"]
        shards, masks, taken = [], [], []
        for entry in entries:
            entry = {"path": entry} if isinstance(entry, str) else entry
            found = self.files(entry["path"])
            found_masks = self.files(entry["mask"]) if entry.get("mask") else [None] * len(found)
            for path, mask in zip(found, found_masks):
                if path in taken:
                    continue
                taken.append(path)
                shards.append(read_shard(path, entry))
                masks.append(torch.ones(len(shards[-1].tokens), dtype=torch.bool) if mask is None else
                             torch.frombuffer(bytearray(pathlib.Path(mask).read_bytes()), dtype=torch.uint8) != 0)
        self.tokens = torch.cat([shard.tokens for shard in shards])
        self.count = len(self.tokens)
        self.opens = data["eot"] == "start" or (data["eot"] == "auto" and int(self.tokens[0]) == eot)
        self.is_eot, self.mask = self.tokens == eot, torch.cat(masks)
        starts = torch.zeros(self.count, dtype=torch.bool)
        cuts, self.shard_ends, begin = [], set(), 0
        for shard in shards:
            own = torch.zeros(len(shard.tokens), dtype=torch.bool)
            own[0] = True
            here = shard.tokens == eot
            if shard.starts is not None:
                own[shard.starts] = True
            elif self.opens:
                own |= here
            else:
                own[1:] |= here[:-1]
            starts[begin:begin + len(own)] = own
            cuts += [begin + cut for cut in self.cuts(own, shard.starts is not None, eot)]
            begin += len(own)
            self.shard_ends.add(begin)
        self.starts = starts
        self.counts = self.mask & (~starts | (self.is_eot if self.opens else torch.zeros_like(starts)))
        self.segments = list(zip(cuts, cuts[1:] + [self.count]))
        self.first_tokens = starts.nonzero()[:, 0]  # of each document
        self.ends = torch.cat((self.first_tokens[1:], torch.tensor([self.count])))
        self.groups: dict[tuple[int, int], tuple[Tensor, int]] = {}
        self.packed: dict[int, list[list[tuple[int, int, int]]]] = {}  # best_fit: rows of each group
        self.first_rows = [0]  # best_fit: of each group, counted through all epochs

    @staticmethod
    def files(pattern: str) -> list[str]:
        anchor = pathlib.Path(pattern)
        found = sorted(str(path) for path in anchor.parent.glob(anchor.name))
        if not found:
            fail(f"{pattern} matches no file")
        return found

    @staticmethod
    def cuts(starts: Tensor, is_indexed: bool, eot: int) -> list[int]:
        cuts = [0]
        if not is_indexed and eot < 0:
            return cuts
        documents = starts.nonzero()[:, 0]
        for place in range(SEGMENT_TOKENS, len(starts) - SEGMENT_TOKENS // 2 + 1, SEGMENT_TOKENS):
            at = int(torch.searchsorted(documents, place))
            cut = int(documents[at]) if at < len(documents) else len(starts)
            is_near = is_indexed or cut < place + PROBE_TOKENS
            if is_near and cuts[-1] < cut < len(starts):
                cuts.append(cut)
        return cuts

    @property
    def num_groups(self) -> int:
        return -(-len(self.segments) // GROUP_SEGMENTS)

    def group(self, epoch: int, group: int) -> tuple[Tensor, int]:
        """Returns the group's documents in their order, and how many tokens of the epoch come before it."""
        if (epoch, group) not in self.groups:
            stream, count = group_stream("data.segments", epoch, 0), len(self.segments)
            order = [permuted_index(place, count, self.seed, stream) if self.is_shuffled else place
                     for place in range(count)]
            before = sum(self.segments[s][1] - self.segments[s][0] for s in order[:group * GROUP_SEGMENTS])
            parts = []
            for s in order[group * GROUP_SEGMENTS:(group + 1) * GROUP_SEGMENTS]:
                first, last = torch.searchsorted(self.first_tokens, torch.tensor(self.segments[s])).tolist()
                parts.append(torch.arange(first, last))
            documents = torch.cat(parts)
            if self.is_shuffled:
                stream = group_stream("data.documents", epoch, group)
                documents = documents[permuted_documents(len(documents), self.seed, stream)]
            self.groups[epoch, group] = documents, before
        return self.groups[epoch, group]

    def row(self, row: int) -> Row:
        return self.best_fit_row(row) if self.packing == "best_fit" else self.stream_row(row)

    def permuted_row(self, row: int, first: int, end: int, epoch: int, group: int) -> int:
        if not self.is_shuffled:
            return row
        return first + permuted_index(row - first, end - first, self.seed, group_stream("data.rows", epoch, group))

    def stream_row(self, row: int) -> Row:
        epoch, token = divmod(row * self.context, self.count)
        group = 0
        while group + 1 < self.num_groups and self.group(epoch, group + 1)[1] <= token:
            group += 1
        begins = [epoch * self.count + self.group(epoch, group)[1], (epoch + 1) * self.count]
        if group + 1 < self.num_groups:
            begins[1] = epoch * self.count + self.group(epoch, group + 1)[1]
        first, end = (-(-begin // self.context) for begin in begins)
        row = self.permuted_row(row, first, end, epoch, group)
        position = row * self.context - begins[0]  # in the group
        parts: list[Tensor] = []
        left = self.context + 1
        while left > 0:
            documents = self.group(epoch, group)[0]
            lengths = self.ends[documents] - self.first_tokens[documents]
            ends = lengths.cumsum(0)
            inside = torch.arange(position, min(position + left, int(ends[-1])))
            place = torch.searchsorted(ends, inside, right=True)
            parts.append(self.ends[documents[place]] - (ends[place] - inside))
            left, position, group = left - len(inside), 0, group + 1
            if group == self.num_groups:
                epoch, group = epoch + 1, 0
        stream = torch.cat(parts)
        return self.stream_of_indices(stream[:-1], stream[1:])

    def stream_of_indices(self, index: Tensor, following: Tensor) -> Row:
        counts = self.counts if self.masked else self.mask
        documents = self.starts[index].long().cumsum(0) if self.masked else torch.zeros_like(index)
        return Row(index, torch.where(counts[following], following, -1), documents)

    def best_fit_row(self, row: int) -> Row:
        number = 0
        while True:
            epoch, group = divmod(number, self.num_groups)
            documents, _ = self.group(epoch, group)
            if number + 1 == len(self.first_rows):
                lengths = (self.ends[documents] - self.first_tokens[documents]).tolist()
                self.packed[number] = pack_best_fit(lengths, self.context)
                self.first_rows.append(self.first_rows[-1] + len(self.packed[number]))
            if row < self.first_rows[number + 1]:
                break
            number += 1
        first, end = self.first_rows[number:number + 2]
        pieces = self.packed[number][self.permuted_row(row, first, end, epoch, group) - first]
        index = torch.full((self.context,), -1)
        following, numbers = index.clone(), torch.zeros_like(index)
        filled = 0
        for number, (d, offset, length) in enumerate(pieces):
            begin = int(self.first_tokens[documents[d]]) + offset
            index[filled:filled + length] = torch.arange(begin, begin + length)
            following[filled:filled + length] = torch.arange(begin + 1, begin + length + 1)
            numbers[filled:filled + length] = number if self.masked else 0
            filled += length
            if begin + length < int(self.ends[documents[d]]):
                continue
            last = -1
            if not self.masked and number + 1 < len(pieces):
                last = int(self.first_tokens[documents[pieces[number + 1][0]]]) + pieces[number + 1][1]
            elif self.masked and self.opens and begin + length not in self.shard_ends:
                last = begin + length if bool(self.is_eot[begin + length]) else -1
            following[filled - 1] = last
        numbers[filled:] = len(pieces)
        following = torch.where((following >= 0) & self.mask[following], following, -1)
        return Row(index, following, numbers)


class Rows:
    """The rows of a run: of one dataset, or of several, each with its share of every BLEND_ROWS rows."""

    def __init__(self, config: dict[str, Any], device: str = "cpu") -> None:
        entries = config["data"]["train"]
        weights = [entry.get("weight") if isinstance(entry, dict) else None for entry in entries]
        groups = [entries] if weights[0] is None else [[entry] for entry in entries]
        self.shares = [BLEND_ROWS] if weights[0] is None else blend_shares(weights)
        self.datasets = [Dataset(config, group, config["seed"] + d) for d, group in enumerate(groups)]
        self.context, self.seed, self.device = config["model"]["context_length"], config["seed"], device
        self.masked, self.count = config["data"]["mask_documents"], sum(d.count for d in self.datasets)
        self.blocks: dict[int, list[tuple[int, int]]] = {}

    def source(self, row: int) -> tuple[int, int]:
        """Returns which dataset the row comes from, and which row of the dataset it is."""
        if len(self.datasets) == 1:
            return 0, row
        number, place = divmod(row, BLEND_ROWS)
        if number not in self.blocks:
            slots = [d for d, share in enumerate(self.shares) for _ in range(share)]
            stream = (stream_of("data.blend") + number) & 0xFFFFFFFFFFFFFFFF
            order = permuted_index(torch.arange(BLEND_ROWS), BLEND_ROWS, self.seed, stream).tolist()
            seen = [number * share for share in self.shares]
            self.blocks[number] = []
            for slot in order:
                d = slots[slot]
                self.blocks[number].append((d, seen[d]))
                seen[d] += 1
        return self.blocks[number][place]

    def batch(self, first_row: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns tokens, targets, and the number of each token's document within its row; all (rows, T)."""
        parts = []
        for row in range(first_row, first_row + rows):
            d, local = self.source(row)
            dataset = self.datasets[d]
            if dataset.packing == "stream" and not dataset.is_shuffled:  # quick, for benchmarks
                index = torch.arange(local * self.context, (local + 1) * self.context)
                made = dataset.stream_of_indices(index % dataset.count, (index + 1) % dataset.count)
            else:
                made = dataset.row(local)
            tokens = torch.where(made.index >= 0, dataset.tokens[made.index], 0)
            targets = torch.where(made.following >= 0, dataset.tokens[made.following], IGNORED)
            parts.append((tokens, targets, made.documents))
        tokens, targets, documents = (torch.stack(part).to(self.device) for part in zip(*parts))
        return tokens, targets, documents
