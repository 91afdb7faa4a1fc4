"""A run has the same rows on any number of processes, the same bits on the same number, and goes on at a resume. CPU only.

"""

import os
import random
import signal
import time
import unittest

from .ranks_case import ALIKE, ENDLESS, RanksCase, is_alive, wait_for

# 10 rows: neither 2, 3 nor 4 ranks with micro-batches of 2 divide them, so that some batches have rows of padding, and
# some nothing else.
ROWS, BATCH = 10, ["training.batch_tokens=320", "training.micro_batch_size=2"]
# Each rank sums its rows in fp32, and the sums are added in the order of the ranks: another number of ranks rounds
# differently, by some units of 2^-24. A few steps do not let this grow by more than this factor.
ROUNDING = 1e-5


class Rows(RanksCase):
    def test_rows_are_those_of_one_rank(self):
        sets = BATCH + ["training.steps=8", "eval.every=2"]
        self.run_ranks("alone", 1, sets=sets)
        for ranks in (2, 3, 4):
            with self.subTest(ranks=ranks):
                self.run_ranks(f"rows-{ranks}", ranks, sets=sets)
                self.assertIn("8 common steps", self.compare("alone", f"rows-{ranks}", ROUNDING))
                self.assertEqual(self.manifest(f"rows-{ranks}", 8)["rows_consumed"], 8 * ROWS)

    def test_other_rows_would_be_seen(self):
        """Weights that stay as they are: two steps differ by their rows alone, and by much more than rounding."""
        self.run_ranks("still", 3, sets=BATCH + ["training.steps=8", "optimizer.lr=0", "optimizer.weight_decay=0"])
        losses = sorted(entry["loss"] for entry in self.entries("still"))
        for loss, next_loss in zip(losses, losses[1:]):
            self.assertGreater(next_loss / loss - 1, 3 * ROUNDING, losses)


class Bits(RanksCase):
    SETS = BATCH + ["checkpoint.every=7", "eval.every=25", "sample.every=0"]

    def test_the_same_number_of_ranks_has_the_same_bits(self):
        for name in ("one", "other"):
            self.run_ranks(name, 3, sets=self.SETS + ["training.steps=200"])
        self.assert_same_bits("one", "other", 200)

    def test_killed_and_resumed(self):
        """The launcher alone is killed, whose ranks must not outlive it, or all at once."""
        generator = random.Random(1)
        for number in range(5):
            process = self.launch("killed", 3, "--resume", "auto", sets=self.SETS + ENDLESS)
            ranks = self.ranks_of(process, 3)
            self.wait_for_step(process, 30 * number + generator.randint(8, 30))
            time.sleep(generator.uniform(0, 0.02))
            process.kill()
            for rank in filter(is_alive, ranks if number % 2 == 1 else []):
                os.kill(rank, signal.SIGKILL)
            wait_for(lambda: not any(map(is_alive, ranks)), "no rank outlives its launcher", 10)
            _, error = self.ends(process, -signal.SIGKILL)
            self.assertNotIn("damaged", error)
        self.assert_goes_on("killed", 3, self.SETS)

    def test_zero_0_and_zero_1(self):
        """A sum that each rank takes for its part has the bits of the one that all take for everything."""
        sets = BATCH + ["training.steps=20", "sample.every=0"]
        for zero in (0, 1):
            self.run_ranks(f"zero-{zero}", 2, sets=sets + [f"distributed.zero={zero}"])
        self.assert_same_bits("zero-0", "zero-1", 20)


class OtherNumbers(RanksCase):
    # Each part ends with an evaluation in any case.
    SETS = BATCH + [*ALIKE, "checkpoint.every=1000", "eval.every=6", "sample.every=0"]

    def train_in_turn(self, name, parts):
        """Trains with so many ranks up to a step, in turn. Returns what the last part printed."""
        for ranks, last in parts:
            output, _ = self.run_ranks(name, ranks, "--resume", "auto", sets=self.SETS + [f"training.steps={last}"])
            manifest = self.manifest(name, last)
            self.assertEqual((manifest["rows_consumed"], manifest["world_size"]), (last * ROWS, ranks))
            self.assertEqual([(entry["step"], entry["tokens"]) for entry in self.entries(name)],
                             [(step, step * ROWS * 32) for step in range(1, last + 1)])
        return output

    def test_one_to_two_to_one(self):
        self.train_in_turn("alone", [(1, 18)])
        output = self.train_in_turn("changing", [(1, 6), (2, 12), (1, 18)])
        self.assertIn("bits: not promised", output)
        self.assertIn("18 common steps", self.compare("alone", "changing", ROUNDING))

    def test_four_to_seven_to_three(self):
        self.train_in_turn("single", [(1, 18)])
        output = self.train_in_turn("many", [(4, 6), (7, 12), (3, 18)])
        self.assertIn("bits: not promised", output)
        self.assertIn("18 common steps", self.compare("single", "many", ROUNDING))


if __name__ == "__main__":
    unittest.main()
