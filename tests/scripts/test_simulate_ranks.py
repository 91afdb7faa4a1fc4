"""scripts/dev/simulate_ranks.py: its arithmetic by cases computed by hand, and its reading of measurements.

Seen to catch: a transfer that may start before its phase ends, a compute phase that does not wait for its weights, a
slowdown that outlasts the transfer, hops between hosts counted as hops within, the update not divided, buckets padded
for one rank, sums that cost nothing, a slowdown beside copy engines, a GPU that is never late.
"""

import importlib.util
import json
import re
import subprocess
import sys
import unittest

from . import ROOT, TRAIN
from .inputs import temporary_folder

SCRIPT = ROOT / "scripts/dev/simulate_ranks.py"


def load():
    spec = importlib.util.spec_from_file_location("simulate_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_ranks"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sim = load()
Phase, Transfer = sim.Phase, sim.Transfer
NETWORK = sim.Network(gpus_per_host=2, nvlink=100e9, nic=10e9, base_latency=1e-6, hop_latency=2e-6, host_latency=5e-6,
                      tree_base=1e-6, tree_hop=0.5e-6, tree_host=3e-6)
# One layer; a micro-step takes 3 ms forward and 6 ms backward.
SHAPE = sim.Shape("shape", (6400, 128000, 100), 8, 4, 64, (0.0, 2e-3, 1e-3), (0.0, 4e-3, 2e-3), 1e-3, 1000.0)


class Arithmetic(unittest.TestCase):
    def test_ring(self):
        # 1 + 2 us, half of 100 MB at 100 GB/s
        self.assertAlmostEqual(NETWORK.ring("all_gather", 100e6, 2), 3e-6 + 500e-6, places=12)
        # Four GPUs on two hosts: three hops, one of them between the hosts; two adapters carry 20 GB/s.
        self.assertAlmostEqual(NETWORK.ring("all_gather", 100e6, 4), 1e-6 + 2 * 2e-6 + 5e-6 + 75e6 / 20e9, places=12)
        self.assertEqual(NETWORK.ring("all_gather", 100e6, 1), 0)

    def test_small_all_reduce(self):
        self.assertAlmostEqual(NETWORK.small_all_reduce(2), 1e-6 + 2 * 0.5e-6, places=12)
        self.assertAlmostEqual(NETWORK.small_all_reduce(8), 1e-6 + 2 * (0.5e-6 + 2 * 3e-6), places=12)

    def test_measured_collectives_replace_the_model(self):
        measured = (("reduce_scatter", ((1e6, 10e-6), (3e6, 20e-6))), ("all_gather", ((1e6, 5e-6),)))
        network = sim.replace(NETWORK, measured_ranks=2, measured=measured)
        for size, seconds in ((0.5e6, 10e-6), (1e6, 10e-6), (2e6, 15e-6), (6e6, 40e-6)):
            self.assertAlmostEqual(network.ring("reduce_scatter", size, 2), seconds, places=12)
        # Others on one host get the best bus bandwidth that was measured: half of 3 MB in 20 us, 75 GB/s.
        network = sim.replace(network, gpus_per_host=4)
        self.assertAlmostEqual(network.ring("reduce_scatter", 3e6, 4), 1e-6 + 3 * 2e-6 + 0.75 * 3e6 / 75e9, places=12)
        # Between hosts NCCL's rings have NVLink's 100 GB/s, and here adapters that carry more.
        network = sim.replace(network, gpus_per_host=2, nic=1e12)
        self.assertAlmostEqual(network.ring("reduce_scatter", 3e6, 4), 1e-6 + 2 * 2e-6 + 5e-6 + 0.75 * 3e6 / 100e9,
                               places=12)

    def test_streams(self):
        for phases, transfers, slowdown, seconds in (
            # Every part waits for its weights: 0 to 2 the first ones, then 1 + 1 + 1.
            ([Phase(1, 0), Phase(1, 1), Phase(1, 2)], [Transfer(2), Transfer(0.5), Transfer(0.5)], 0, 5),
            # Compute from 2 to 3, the second weights only at 6.
            ([Phase(1, 0), Phase(1, 1)], [Transfer(2), Transfer(4)], 0, 7),
            # Sums from 1 to 3, 3 to 5, 5 to 7.
            ([Phase(1), Phase(1), Phase(1)], [Transfer(2, 0), Transfer(2, 1), Transfer(2, 2)], 0, 7),
            # Hidden, but the last: 1 to 1.5, 2 to 2.5, 3 to 3.5.
            ([Phase(1), Phase(1), Phase(1)], [Transfer(0.5, 0), Transfer(0.5, 1), Transfer(0.5, 2)], 0, 3.5),
            # From 1 to 2 at half speed, the other half until 2.5.
            ([Phase(1), Phase(1)], [Transfer(1, 0)], 0.5, 2.5),
            ([Phase(1), Phase(2)], [], 0.5, 3),
            ([], [Transfer(1), Transfer(2)], 0.5, 3),
            ([Phase(0), Phase(1)], [Transfer(0, 0), Transfer(3, 1)], 0, 4),
        ):
            with self.subTest(phases=phases, transfers=transfers):
                self.assertAlmostEqual(sim.run_streams(phases, transfers, slowdown), seconds, places=12)
        with self.assertRaises(ValueError):
            sim.run_streams([Phase(1, 0)], [Transfer(1, 0)], 0)

    def test_step(self):
        network = sim.replace(NETWORK, base_latency=1e-4, hop_latency=0.0, nvlink=1e9)
        costs = sim.Costs(network, slowdown=0.0, spread=0.0)
        for value, expected in zip(sim.simulate(SHAPE, 1, 2, costs), (2 * 9e-3 + 1e-3, 0, 0, 1)):
            self.assertAlmostEqual(value, expected, places=12)
        # Two ranks: buckets of 6400, 128000, 128 elements. The gathers take 0.1064, 0.228 and 0.100128 ms; the layer
        # begins when the second is done, at 0.3344 ms, and the head waits for nothing.
        # The head's sums run from 2 ms of the backward pass on, the layer's (0.1 + 0.256 ms) from 6 ms, where compute
        # has ended, then the embedding's (0.1 + 0.0128 ms).
        exposed = 0.3344e-3 + 0.356e-3 + 0.1128e-3 + 2e-6
        step = sim.simulate(SHAPE, 2, 2, costs)
        self.assertAlmostEqual(step.exposed, exposed, places=12)
        self.assertAlmostEqual(step.seconds, 2 * 9e-3 + exposed + 0.5e-3, places=12)
        self.assertAlmostEqual(step.efficiency, 19e-3 / step.seconds, places=12)
        # The slower of two: Blom's maximum of two normal numbers is 0.589 deviations.
        slower = sim.simulate(SHAPE, 2, 2, sim.replace(costs, spread=0.01))
        self.assertAlmostEqual(slower.stragglers, 0.01 * 18e-3 * 0.5895, delta=1e-8)
        self.assertEqual(sim.largest_cost(SHAPE, 2, 2, sim.replace(costs, spread=0.2)), "the slowest GPU")
        for nvlink, cost in ((1e10, "latency of the rings"), (1e8, "bandwidth")):
            self.assertEqual(sim.largest_cost(SHAPE, 2, 2, sim.Costs(sim.replace(network, nvlink=nvlink), 0.0, 0.0)),
                             cost)

    def test_what_two_gpus_cost_each_other(self):
        plain = sim.Costs(NETWORK, slowdown=0.5, spread=0.0)
        costs = sim.replace(plain, sum_rate=1e9, sum_share=0.5, norm=1e-5, late=3e-3)
        # On one host copy engines move the data, so that the slowdown counts nothing. The sums are of 6400 + 128000 +
        # 128 numbers.
        step, before = sim.simulate(SHAPE, 2, 2, costs), sim.simulate(SHAPE, 2, 2, sim.replace(plain, slowdown=0.0))
        self.assertAlmostEqual(step.exposed - before.exposed, 0.5 * 4 * 1.5 * 134528 / 1e9 + 3 * 1e-5, places=12)
        self.assertAlmostEqual(step.stragglers, 3e-3, places=12)
        self.assertEqual(sim.simulate(SHAPE, 2, 2, plain), before)
        self.assertEqual(sim.largest_cost(SHAPE, 2, 2, sim.replace(costs, late=0.0)),
                         "multiprocessors that collectives take")
        self.assertEqual(sim.largest_cost(SHAPE, 2, 2, costs), "the slowest GPU")
        # Between hosts NCCL adds: no sums, but a slowdown. Blom's maxima of four and two: 1.0491 and 0.5895.
        step, before = sim.simulate(SHAPE, 4, 2, costs), sim.simulate(SHAPE, 4, 2, plain)
        self.assertAlmostEqual(step.exposed - before.exposed, 3 * 1e-5, places=12)
        self.assertAlmostEqual(step.stragglers, 3e-3 * 1.0491 / 0.5895, delta=1e-6)
        self.assertGreater(before.exposed, sim.simulate(SHAPE, 4, 2, sim.replace(plain, slowdown=0.0)).exposed)
        # Alone there is nothing to wait for.
        self.assertEqual(sim.simulate(SHAPE, 1, 2, costs).seconds, sim.simulate(SHAPE, 1, 2, plain).seconds)

    def test_memory(self):
        self.assertEqual(SHAPE.padded(3), [6528, 128064, 192])
        self.assertAlmostEqual(SHAPE.bytes_per_gpu(3), (6528 + 128064 + 192) * 10 + 1000)

    def test_batch(self):
        # 64 tokens are 8 rows.
        for ranks, expected in ((1, (4, 2)), (2, (4, 1)), (4, (2, 1)), (8, (1, 1)), (3, None), (16, None)):
            split = sim.split_batch(SHAPE, ranks)
            self.assertEqual(split and (split[0].rows, split[1]), expected)
        half = sim.split_batch(SHAPE, 4)[0]
        self.assertAlmostEqual(sum(half.forward) + sum(half.backward), 4.5e-3, places=12)
        cheap = sim.Costs(sim.replace(NETWORK, nvlink=1e15, nic=1e15, base_latency=0.0, hop_latency=0.0,
                                      host_latency=0.0), 0.0, 0.0)
        self.assertIn("at 16 GPUs the batch", sim.first_limit(SHAPE, cheap, 0.9, True))
        self.assertIn("nothing", sim.first_limit(SHAPE, cheap, 0.9, False))
        # Hops of 10 us: a ring of 64 takes 0.63 ms, one of 32 takes 0.31 ms. Four are exposed, two before the layer has
        # its weights and two after its gradients: the 10 ms of a GPU alone become 11.5 and 10.3 ms.
        slow = sim.replace(cheap, network=sim.replace(cheap.network, hop_latency=10e-6, gpus_per_host=1024))
        self.assertIn("at 64 GPUs the efficiency is below 0.9: latency of the rings",
                      sim.first_limit(SHAPE, slow, 0.9, False))

    def test_a_layer_computed_again_is_a_forward_more(self):
        config = {"name": "x", "model": {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 128, "context_length": 32,
                                         "vocab_size": 128}}
        plain = sim.make_shape("x", config, 4, 3.0, 0.0, 8, 1024, None)
        again = sim.make_shape("x", {**config, "training": {"recompute": "block"}}, 4, 3.0, 0.0, 8, 1024, None)
        for shape, ratio in ((plain, 2), (again, 3)):
            self.assertAlmostEqual(sum(shape.forward) + sum(shape.backward), 3.0)
            self.assertAlmostEqual(shape.backward[1] / shape.forward[1], ratio)
            self.assertAlmostEqual(shape.backward[3] / shape.forward[3], 2)

    def test_buckets_are_those_of_train(self):
        folder = temporary_folder(self)
        for config in ("configs/bench-gpu-124m.json", "configs/gpt-7b-8gpu.json"):
            m = sim.read_config(ROOT / config)["model"]
            m["vocab_size"] = 50304  # a multiple of 128: nothing is padded
            for more in ({}, {"qk_norm": True, "tie_embeddings": False}):
                path = folder / "config.json"
                path.write_text(json.dumps({"model": {**m, **more, "n_layers": 1}, "data": {"train": ["x.bin"]},
                                            "training": {"steps": 1, "batch_tokens": m["context_length"]}}))
                plan = subprocess.run([TRAIN, "--config", path, "--dry-run", "--device", "cuda"], text=True,
                                      capture_output=True).stdout
                count = sum(sim.bucket_sizes({**m, **more, "n_layers": 1}))
                self.assertEqual(re.search(r"model: ([\d.]+)M parameters", plan).group(1), f"{count / 1e6:.2f}")


class Command(unittest.TestCase):
    def run_script(self, *arguments, code=0):
        result = subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], text=True, capture_output=True)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    def test_measurements_are_read(self):
        folder = temporary_folder(self)
        config = sim.read_config(ROOT / "configs/bench-gpu-124m.json")
        step = {"config": config, "step_seconds": 0.1, "visible_pairs_per_token": 128.0, "memory_bytes": 21 * 2**30,
                "parts": [{"part": "adamw", "seconds": 0.008}, {"part": "gradient norm", "seconds": 0.002},
                          {"part": "products", "seconds": 0.07}]}
        (folder / "step.json").write_text(json.dumps(step))
        for part in sim.UPDATE_PARTS:
            self.assertIn(f', "{part}"}},', (ROOT / "src/bench/step_parts.cpp").read_text())
        shape = sim.shape_of_bench(folder / "step.json", 524288)
        self.assertAlmostEqual(sum(shape.forward) + sum(shape.backward), 0.09)
        self.assertAlmostEqual(shape.update, 0.01)
        self.assertAlmostEqual(shape.bytes_per_gpu(1) / 2**30, 21, places=6)
        (folder / "ranks.json").write_text(json.dumps({"ranks": 2, "batch_tokens": 131072, "step_seconds": 0.0952,
            "step_seconds_without_collectives": 0.0951, "collectives": [
                {"elements": 1 << 24, "reduce_scatter_bytes": 1 << 26, "reduce_scatter_seconds": 1.0,
                 "all_gather_bytes": 1 << 25, "all_gather_seconds": 1.0}]}))
        output = self.run_script("--step", folder / "step.json", "--ranks", folder / "ranks.json", "--gpus", "2").stdout
        # Collectives of a second each stand out.
        row = re.search(r"^ +2 +1 x 64 +131072 +([\d.]+) ms", output, re.MULTILINE)
        self.assertGreater(float(row.group(1)), 14 * 2 * 1000)
        check = re.search(r"measured 95.20 ms a step, 0.10 ms of it exposed; simulated ([\d.]+) ms", output)
        self.assertEqual(f"{float(check.group(1)):.1f}", row.group(1))
        self.assertIn("bandwidth", output)

        (folder / "bad.json").write_text('{"ranks": 2, "collectives": []}')
        for arguments in (["--step", folder / "ranks.json"], ["--ranks", folder / "bad.json"],
                          ["--ranks", folder / "missing.json"], ["--gpus", "0"], ["--spread", "nan"],
                          ["--nvlink", "-1"], ["--gpus-per-host", "0"]):
            with self.subTest(arguments=arguments):
                self.assertIn("error:", self.run_script(*arguments, code=2).stderr.splitlines()[-1])

    def test_two_gpus_are_as_measured(self):
        """docs/lab/several-gpus.md has the measurements."""
        output = self.run_script("--gpus", "2").stdout

        def row(micro_steps, tokens):
            found = re.search(rf"^ +2 +{micro_steps} +{tokens} +([\d.]+) ms .* ms +([\d.]+) +[\d.]+  ", output,
                              re.MULTILINE)
            return float(found.group(1)), float(found.group(2))

        for micro_steps, tokens, measured in (("1 x 64", 131072, (0.964, 0.971)), ("1 x 8", 32768, (0.982, 0.984))):
            for value in measured:
                self.assertLess(abs(row(micro_steps, tokens)[1] - value), 0.01)
        self.assertLess(abs(row("4 x 64", 524288)[0] / (1e3 * 262144 / 726620) - 1), 0.01)

    def test_the_page_has_what_the_script_prints(self):
        """docs/several-gpus.md shows the output of the call without options."""
        output = self.run_script().stdout.strip()
        page = (ROOT / "docs/several-gpus.md").read_text()
        self.assertIn(output, page)


if __name__ == "__main__":
    unittest.main()
