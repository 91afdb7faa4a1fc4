"""scripts/peers/bench_torch_ranks.py on the CPU: processes with gloo train the model that one process trains.

Needs a Python with PyTorch 2.6 or later, named by INGOT_TORCH_PYTHON if it is not the one that runs this; skipped
without.

Seen to catch: ranks that read the same rows, no_sync() in the last micro-step too, gradients that FSDP2 never reduces,
a ratio to the load instead of the mean alone.
"""

import json
import os
import statistics
import subprocess
import sys
import unittest

from . import ROOT
from .inputs import shard, temporary_folder

PYTHON = os.environ.get("INGOT_TORCH_PYTHON", sys.executable)
SCRIPT = ROOT / "scripts/peers/bench_torch_ranks.py"
HAS_FSDP2 = subprocess.run([PYTHON, "-c", "from torch.distributed.fsdp import fully_shard"],
                           capture_output=True).returncode == 0
CONFIG = {
    "name": "ranks", "seed": 3,
    "model": {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 64, "context_length": 16,
              "vocab_size": 64},
    "data": {"train": ["tokens.bin"], "eot_token": 63, "eot": "end"},
    "training": {"steps": 10, "batch_tokens": 32, "micro_batch_size": 2},
    "optimizer": {"lr": 1e-2},
}

# argv: how (single, alone, ddp, fsdp2), the file of the config as PyTorch's side reads it, loss, rank, ranks, a file
# through which the ranks meet. Prints the losses and norms of five steps of four micro-steps over all ranks.
TRAIN_STEPS = """
import json, sys
import torch, torch.distributed as dist
import bench_torch_gpu, torch_ranks, torch_step, pathlib
how, path, loss, rank, ranks, rendezvous = sys.argv[1:]
config = bench_torch_gpu.read_config(pathlib.Path(path), ["data.shuffle=false"])
job = {"config": config, "device": "cpu", "precision": "fp32", "attention": "mask", "loss": loss, "chunk_tokens": 8,
       "compile": "off"}
torch.set_num_threads(1)
if how == "single":
    trainer = torch_step.Trainer(job)
    trainer.micro_steps = 4
else:
    dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=int(rank), world_size=int(ranks))
    trainer = torch_ranks.TRAINERS[how](job)
    trainer.micro_steps = 4 // int(ranks)
print(json.dumps([[x.item() for x in trainer.step(number)] for number in range(5)]))
if how != "single":
    dist.barrier()
    dist.destroy_process_group()
"""


@unittest.skipUnless(HAS_FSDP2, f"{PYTHON} has no PyTorch with FSDP2 (2.6): name one that has in INGOT_TORCH_PYTHON")
class TorchRanks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        # Documents of 8 tokens: every row has as many targets as the next, so that the mean of the ranks' means is the
        # mean over all tokens.
        ids = [(7 * i * i + i // 5) % 63 if i % 8 != 7 else 63 for i in range(2048)]
        (cls.folder / "tokens.bin").write_bytes(shard(ids))
        (cls.folder / "config.json").write_text(json.dumps(CONFIG))

    def environment(self):
        return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": str(ROOT / "scripts/peers")}

    def steps(self, how, ranks=1, loss="full"):
        """Gives [loss, norm] of each step: the mean of the ranks' losses, and the norm that they share."""
        processes = [subprocess.Popen([PYTHON, "-c", TRAIN_STEPS, how, "config.json", loss, str(rank), str(ranks),
                                       str(self.folder / f"meet-{how}-{ranks}-{loss}")], cwd=self.folder, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment())
                     for rank in range(ranks)]
        outputs = [process.communicate(timeout=240) for process in processes]
        for process, (_, error) in zip(processes, outputs):
            self.assertEqual(process.returncode, 0, error)
        results = [json.loads(output) for output, _ in outputs]
        return [[statistics.mean(result[step][0] for result in results)] + [result[step][1] for result in results]
                for step in range(5)]

    def test_ranks_train_the_model_that_one_process_trains(self):
        expected = self.steps("single")
        self.assertGreater(expected[0][0], expected[-1][0] + 0.1)  # it learns
        for how, ranks, loss in (("ddp", 2, "full"), ("fsdp2", 2, "full"), ("fsdp2", 4, "chunked")):
            with self.subTest(how=how, ranks=ranks, loss=loss):
                for step, (own, right) in enumerate(zip(self.steps(how, ranks, loss), expected)):
                    for value in own[1:]:
                        self.assertLessEqual(abs(value / right[1] - 1), 1e-4, (step, own, right))
                    self.assertLessEqual(abs(own[0] / right[0] - 1), 1e-5, (step, own, right))

    def bench(self, *arguments, code=0):
        result = subprocess.run([PYTHON, str(SCRIPT), "--output", "out", *arguments], cwd=self.folder, text=True,
                                capture_output=True, env=self.environment())
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    def test_ways_take_turns_and_are_compared(self):
        seconds = ["--seconds", "0.2", "--settle", "0.05", "--load-seconds", "0.2"]
        result = self.bench("--config", "config.json", "--device", "cpu", "--step-tokens", "128", "--ways", "ddp,fsdp2",
                            *seconds)
        self.assertIn("no measurement", result.stdout)
        written = json.loads((self.folder / "out/ranks-ranks.json").read_text())
        self.assertEqual([(x["way"], x["micro_steps"]) for x in written["phases"][1:]],
                         [(way, micro_steps) for micro_steps in (1, 2) for _ in range(2)
                          for way in ("alone", "ddp", "fsdp2")])
        for phase in written["phases"]:
            self.assertEqual([x["steps"] >= 3 for x in phase["ranks"]], [True, True])
            self.assertEqual(len({x["steps"] for x in phase["ranks"]}), 1)
            for rank in phase["ranks"]:
                begin, end = rank["window"]
                tokens = rank["steps"] * phase["micro_steps"] * 32
                self.assertAlmostEqual(rank["tokens_per_second"] * (end - begin) / tokens, 1, places=6)
            self.assertAlmostEqual(phase["per_gpu"], statistics.mean(x["tokens_per_second"] for x in phase["ranks"]))
        self.assertEqual([(x["way"], x["micro_steps"]) for x in written["ratios"]],
                         [("ddp", 1), ("fsdp2", 1), ("ddp", 2), ("fsdp2", 2)])
        by_hand = [written["phases"][i + 1]["per_gpu"] / written["phases"][i]["per_gpu"] for i in (1, 4)]
        self.assertEqual(written["ratios"][0]["rounds"], by_hand)
        self.assertEqual(written["ratios"][0]["ratio"], statistics.median(by_hand))

    def test_refusals(self):
        for arguments, expected in (
            ([], "PyTorch finds 0"),
            (["--device", "cpu", "--gpus", "1"], "--gpus is 1"),
            (["--device", "cpu", "--ways", "ddp,zero"], "'zero'"),
            (["--device", "cpu", "--seconds", "nan"], "--seconds"),
            (["--device", "cpu", "--config", "config.json", "--step-tokens", "100"], "no multiple of 2 GPUs x 32"),
        ):
            with self.subTest(arguments=arguments):
                error = self.bench(*arguments, code=2).stderr
                self.assertEqual(len(error.splitlines()), 1, error)
                self.assertIn(expected, error)


if __name__ == "__main__":
    unittest.main()
