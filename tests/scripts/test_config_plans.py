"""The configs of 350M, 1.3B and 7B parameters fit the GPUs that they name: the plan of `./train --dry-run --gpus N`,
which is that of an H100 of 80 GB on a machine without a GPU, against arithmetic on the config.

Seen to catch: an optimizer that is not divided, 7B whose blocks are not computed again, or with as many key heads as
query heads, 350M with a context of 2,048, for which eight GPUs take another micro-batch, staging memory that is left
out of the plan.
"""

import json
import re
import subprocess
import unittest

from . import ROOT, TRAIN

GIB = 2.0**30
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
BUDGET = 79 * GIB - 640 * 2**20  # what the card shows, without what CUDA itself takes


def read_config(name):
    text = (ROOT / f"configs/{name}.json").read_text()
    return json.loads("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//")))


def flat_elements(m, ranks):
    """The parameters in buckets (embedding, layers, head), each padded until all ranks have equal parts of 64."""
    c, f, heads, kv = m["d_model"], m["d_ff"], m["n_heads"], m["n_kv_heads"]
    hs = c // heads
    vocabulary = -(-m["vocab_size"] // 128) * 128 * c
    layer = c * (heads + 2 * kv) * hs + c * c + 3 * c * f + 2 * c
    buckets = [vocabulary] + [layer] * m["n_layers"] + [c + (0 if m["tie_embeddings"] else vocabulary)]
    return sum(-(-bucket // (64 * ranks)) * 64 * ranks for bucket in buckets)


class ConfigPlans(unittest.TestCase):
    def dry_run(self, name, ranks, *sets, code=0):
        command = [TRAIN, "--config", str(ROOT / f"configs/{name}.json"), "--dry-run", "--device", "cuda", "--gpus",
                   str(ranks)]
        for assignment in sets:
            command += ["--set", assignment]
        result = subprocess.run(command, text=True, capture_output=True)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    def plan(self, name, ranks, *sets):
        """Gives the bytes of each line of the device's plan, and micro-steps and rows of a step."""
        output = self.dry_run(name, ranks, *sets).stdout
        plan = {}
        device = output.split("\nmemory plan:\n")[1].split("\nhost memory plan:")[0]
        for part, number, unit in re.findall(r"^  (\w+) +([\d.]+) (\w+)$", device, re.MULTILINE):
            plan[part] = float(number) * UNITS[unit]
        micro_steps, rows = re.search(r"^step: (\d+) micro-batch(?:es)? of (\d+) x", output, re.MULTILINE).groups()
        return plan, int(micro_steps), int(rows)

    def check(self, name, ranks):
        config = read_config(name)
        m, tokens = config["model"], config["training"]["batch_tokens"]
        plan, micro_steps, rows = self.plan(name, ranks)
        elements = flat_elements(m, ranks)
        # The optimizer has fp32 masters and two moments of its part, and a byte for each 64 elements.
        for part, expected in (("weights", 2 * elements), ("gradients", 4 * elements),
                               ("optimizer", 12 * elements / ranks + elements / 64)):
            self.assertLessEqual(abs(plan[part] - expected), 0.006 * GIB + 0.001 * expected, (part, plan))
        # The gradients of other ranks that are under way: two chunks of each, of at most 8 MiB, 64 MiB together.
        self.assertEqual(plan.get("collectives", 0), min(16 * (ranks - 1), 64) * 2**20)
        # The plan's total is all of it, and fits; the micro-batch takes each GPU's rows whole.
        self.assertAlmostEqual(sum(plan.values()) - plan["total"], plan["total"], delta=0.1 * GIB)
        self.assertLessEqual(plan["total"], BUDGET)
        self.assertEqual(micro_steps * rows * ranks * m["context_length"], tokens)
        # The next larger micro-batch that divides the step does not fit, unless there are no more rows.
        all_rows = tokens // m["context_length"] // ranks
        if rows < all_rows:
            larger = next(size for size in range(rows + 1, all_rows + 1) if all_rows % size == 0)
            error = self.dry_run(name, ranks, f"training.micro_batch_size={larger}", code=2).stderr
            self.assertIn(f"use training.micro_batch_size {rows}", error)
        return plan, rows

    def test_350m_on_one_gpu_and_on_eight(self):
        self.check("gpt-350m", 1)
        plan, rows = self.check("gpt-350m", 8)
        self.assertEqual(rows, 64)  # a micro-step is an optimizer step
        # One row fits a card of 24 GB by far, as the config says.
        small, _, _ = self.plan("gpt-350m", 1, "training.micro_batch_size=8")
        self.assertLess(small["total"], 20 * GIB)

    def test_1300m_on_one_two_and_eight(self):
        plans = {ranks: self.check("gpt-1.3b", ranks)[0] for ranks in (1, 2, 8)}
        for ranks in (2, 8):
            self.assertAlmostEqual(plans[1]["optimizer"] / plans[ranks]["optimizer"], ranks, delta=0.02 * ranks)

    def test_7b_needs_its_eight_gpus(self):
        plan, rows = self.check("gpt-7b-8gpu", 8)
        self.assertEqual(rows, 8)
        # 7.5 bytes a parameter, 51.6 GiB, as the config says.
        self.assertAlmostEqual((plan["weights"] + plan["gradients"] + plan["optimizer"]) / GIB, 51.6, delta=0.15)
        self.assertIn("a micro-batch of one row needs", self.dry_run("gpt-7b-8gpu", 2, code=2).stderr)


if __name__ == "__main__":
    unittest.main()
