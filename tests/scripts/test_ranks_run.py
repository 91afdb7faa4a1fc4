"""A run has the same rows on any number of processes, the same bits on the same number, and goes on at a resume. On the
CPU, or with INGOT_RANKS_DEVICE=cuda on two GPUs or more.

Seen to catch: ranks that all read the rows of the first, ranks that outlive a killed launcher, a loss that is not
finite on one rank and is skipped by that rank alone.
"""

import json
import os
import random
import signal
import struct
import time
import unittest

from . import TRAIN, run, set_options
from .import_case import safetensors, tiny_config, tiny_tensors
from .inputs import shard
from .ranks_case import ALIKE, DEVICE, ENDLESS, IN_FP32, MOST_RANKS, RanksOnDevice, is_alive, wait_for

# 10 rows: neither 2, 3 nor 4 ranks with micro-batches of 2 divide them, so that some batches have rows of padding, and
# some nothing else.
ROWS, BATCH = 10, ["training.batch_tokens=320", "training.micro_batch_size=2"]
RANKS = min(3, MOST_RANKS)
# Each rank sums its rows in fp32, and the sums are added in the order of the ranks: another number of ranks rounds
# differently, by some units of 2^-24. A few steps do not let this grow by more than this factor.
ROUNDING = 1e-5


class Rows(RanksOnDevice):
    def test_rows_are_those_of_one_rank(self):
        sets = BATCH + [*IN_FP32, "training.steps=8", "eval.every=2"]
        self.run_ranks("alone", 1, sets=sets)
        for ranks in range(2, min(4, MOST_RANKS) + 1):
            with self.subTest(ranks=ranks):
                self.run_ranks(f"rows-{ranks}", ranks, sets=sets)
                self.assertIn("8 common steps", self.compare("alone", f"rows-{ranks}", ROUNDING))
                self.assertEqual(self.manifest(f"rows-{ranks}", 8)["rows_consumed"], 8 * ROWS)

    def test_other_rows_would_be_seen(self):
        """Weights that stay as they are: two steps differ by their rows alone, and by much more than rounding."""
        self.run_ranks("still", RANKS, sets=BATCH + ["training.steps=8", "optimizer.lr=0", "optimizer.weight_decay=0"])
        losses = sorted(entry["loss"] for entry in self.entries("still"))
        for loss, next_loss in zip(losses, losses[1:]):
            self.assertGreater(next_loss / loss - 1, 3 * ROUNDING, losses)


class Bits(RanksOnDevice):
    SETS = BATCH + ["checkpoint.every=7", "eval.every=25", "sample.every=0"]

    def test_the_same_number_of_ranks_has_the_same_bits(self):
        for name in ("one", "other"):
            self.run_ranks(name, RANKS, sets=self.SETS + ["training.steps=200"])
        self.assert_same_bits("one", "other", 200)

    def test_killed_and_resumed(self):
        """The launcher alone is killed, whose ranks must not outlive it, or all at once."""
        generator = random.Random(1)
        for number in range(5):
            process = self.launch("killed", RANKS, "--resume", "auto", sets=self.SETS + ENDLESS)
            ranks = self.ranks_of(process, RANKS)
            self.wait_for_step(process, 30 * number + generator.randint(8, 30))
            time.sleep(generator.uniform(0, 0.02))
            process.kill()
            for rank in filter(is_alive, ranks if number % 2 == 1 else []):
                os.kill(rank, signal.SIGKILL)
            wait_for(lambda: not any(map(is_alive, ranks)), "no rank outlives its launcher", 10)
            _, error = self.ends(process, -signal.SIGKILL)
            self.assertNotIn("damaged", error)
        self.assert_goes_on("killed", RANKS, self.SETS)

    def test_zero_0_and_zero_1(self):
        """A sum that each rank takes for its part has the bits of the one that all take for everything."""
        sets = BATCH + ["training.steps=20", "sample.every=0"]
        for zero in (0, 1):
            self.run_ranks(f"zero-{zero}", 2, sets=sets + [f"distributed.zero={zero}"])
        self.assert_same_bits("zero-0", "zero-1", 20)


class OtherNumbers(RanksOnDevice):
    # Each part ends with an evaluation in any case.
    SETS = BATCH + [*ALIKE, *IN_FP32, "checkpoint.every=1000", "eval.every=6", "sample.every=0"]

    def train_in_turn(self, name, parts):
        """Trains with so many ranks up to a step, in turn. Returns what the last part printed."""
        for ranks, last in parts:
            output, _ = self.run_ranks(name, ranks, "--resume", "auto", sets=self.SETS + [f"training.steps={last}"])
            manifest = self.manifest(name, last)
            self.assertEqual((manifest["rows_consumed"], manifest["world_size"]), (last * ROWS, ranks))
            self.assertEqual([(entry["step"], entry["tokens"]) for entry in self.entries(name)],
                             [(step, step * ROWS * 32) for step in range(1, last + 1)])
        return output

    def test_one_to_two_to_one_and_back(self):
        self.train_in_turn("alone", [(1, 18)])
        for name, turns in (("one-two-one", (1, 2, 1)), ("two-one-two", (2, 1, 2))):
            with self.subTest(name):
                output = self.train_in_turn(name, zip(turns, (6, 12, 18)))
                self.assertIn("bits: not promised", output)
                self.assertIn("18 common steps", self.compare("alone", name, ROUNDING))

    @unittest.skipIf(MOST_RANKS < 7, "needs seven GPUs")
    def test_four_to_seven_to_three(self):
        self.train_in_turn("single", [(1, 18)])
        output = self.train_in_turn("many", [(4, 6), (7, 12), (3, 18)])
        self.assertIn("bits: not promised", output)
        self.assertIn("18 common steps", self.compare("single", "many", ROUNDING))


class NonFinite(RanksOnDevice):
    """An imported model that says of one token that it never comes: its logit overflows to -inf everywhere. That token
    stands in one row of an epoch, so that in one step the loss of one rank is infinite."""

    TOKEN, STEPS = 7, 16

    def setUp(self):
        super().setUp()
        tensors = tiny_tensors()

        def change(name, change_values):
            dtype, shape, content = tensors[name]
            count = len(content) // 4
            values = list(struct.unpack(f"<{count}f", content))
            change_values(values)
            tensors[name] = (dtype, shape, struct.pack(f"<{count}f", *values))

        def of_column_0(value):
            def change_values(values):
                values[::8] = [value] * len(values[::8])
            return change_values

        def of_row_0(values):
            values[:len(values) // 8] = [0] * (len(values) // 8)

        def of_the_token(values):
            values[8 * self.TOKEN:8 * self.TOKEN + 8] = [-3e38] + 7 * [0]

        # The first element of the residual stream is 1, whatever the layer adds to the others.
        change("model.embed_tokens.weight", of_column_0(1))
        change("model.layers.0.self_attn.o_proj.weight", of_row_0)
        change("model.layers.0.mlp.down_proj.weight", of_row_0)
        change("model.norm.weight", of_column_0(10))
        change("lm_head.weight", of_the_token)
        source = self.folder / "source"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(tiny_config()))
        (source / "model.safetensors").write_bytes(safetensors(tensors))
        run(TRAIN, "import", "--from", source, "--output", self.folder / "imported")
        # 160 rows of 32 tokens, which are one epoch.
        tokens = [97 + (number * number + number // 7) % 20 for number in range(160 * 32 + 1)]
        tokens[2000] = self.TOKEN
        (self.folder / "rare.bin").write_bytes(shard(tokens))

    def train_imported(self, ranks, name):
        options = [f"name={name}", 'data.train=["rare.bin"]', "data.val=[]", "data.eot_token=256",
                   "model.context_length=32", *BATCH, *IN_FP32, f"training.steps={self.STEPS}", "optimizer.lr=1e-3",
                   "sample.every=0"]
        self.ends(self.open([TRAIN, "--config", "imported/config.json", "--device", DEVICE, "--gpus", ranks,
                             *set_options(options)]), 0)
        return self.entries(name)

    def test_one_rank_makes_all_skip(self):
        alone = self.train_imported(1, "infinite-alone")
        skipped = [entry["step"] for entry in alone if entry["skipped"]]
        self.assertEqual(len(skipped), 1, alone)
        for ranks in range(2, RANKS + 1):
            log = self.train_imported(ranks, f"infinite-{ranks}")
            self.assertEqual([entry["step"] for entry in log if entry["skipped"]], skipped)
            for entry, other in zip(log, alone):
                if not entry["skipped"]:
                    self.assertLess(abs(entry["loss"] / other["loss"] - 1), ROUNDING, (entry, other))
                else:
                    self.assertNotIsInstance(entry["loss"], float)  # it says "nan"
        # What comes later is trained with the weights of all ranks, none of which is spoilt.
        self.assertLess(skipped[0], self.STEPS - 1)


if __name__ == "__main__":
    unittest.main()
