"""torch_twin.py, torch_rows.py and torch_loop.py of scripts/peers against a run of ./train: weights, rows, schedule, loss,
AdamW.

Needs a Python with PyTorch, named by INGOT_TORCH_PYTHON if it is not the one that runs this; skipped without.

Seen to catch: best fit into the row that became so full first, documents in the order of the files, nine rounds of
Philox, ALiBi left out, a gradient of attention's scores that is 1% too large or lacks its second term. Of `gap`: the
mean of the seeds' ratios, the loop's gap over Ingot's, the first seed alone, the difference of the mean losses, steps
before the last ones, a NaN within the limit, every seed trained with the config's.
"""

import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import unittest

from .inputs import shard
from .trainer_case import ROOT, TRAIN, TrainerCase

PYTHON = os.environ.get("INGOT_TORCH_PYTHON", sys.executable)
HAS_TORCH = subprocess.run([PYTHON, "-c", "import torch"], capture_output=True).returncode == 0

# Compares each tensor of a checkpoint with the twin's, bit by bit.
COMPARE_WEIGHTS = """
import json, pathlib, struct, sys
import torch, torch_twin
run = pathlib.Path(sys.argv[1])
config = json.loads((run / "config.json").read_text())
(path,) = (run / "checkpoints").glob("*/model-*.safetensors")
content = path.read_bytes()
(size,) = struct.unpack_from("<Q", content)
saved, drawn = torch_twin.saved_weights(path), torch_twin.initial_weights(config)
count = 0
for name, entry in json.loads(content[8:8 + size]).items():
    if name != "__metadata__":
        shape = tuple(entry["shape"])
        assert torch.equal(saved(name, shape), drawn(name, shape)), name
        count += 1
print(count)
"""



def write_datasets(folder):
    """The same kind of text in every format that is read: 70 shards of llm.c (more than a group of segments) with masks,
    raw ids, and Megatron's, whose documents have several sequences and some of which are empty."""
    generator = random.Random(3)
    documents = [[generator.randrange(256) for _ in range(int(generator.lognormvariate(3, 1)))] + [256]
                 for _ in range(900)]
    folder.mkdir()
    for number in range(70):
        ids = sum(documents[number * 5:number * 5 + 5], [])
        (folder / f"a-{number:02}.bin").write_bytes(shard(ids))
        (folder / f"a-{number:02}.mask").write_bytes(bytes(generator.randrange(4) > 0 for _ in ids))
    ids = sum(documents[350:600], [])
    (folder / "b.raw").write_bytes(struct.pack(f"<{len(ids)}I", *ids))
    sequences = [document[i:i + 20] for document in documents[600:] for i in range(0, len(document), 20)]
    borders, lengths = [0], [len(sequence) for sequence in sequences]
    for document in documents[600:]:
        borders += [borders[-1]] * generator.randrange(2) + [borders[-1] + -(-len(document) // 20)]
    pointers = [4 * sum(lengths[:s]) for s in range(len(lengths))]
    ids = sum(sequences, [])
    (folder / "c.bin").write_bytes(struct.pack(f"<{len(ids)}i", *ids))
    (folder / "c.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(lengths), len(borders)) +
        struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(borders)}q", *lengths, *pointers, *borders))


BLEND = [{"path": "sets/a-*.bin", "weight": 3, "mask": "sets/a-*.mask"},
         {"path": "sets/b.raw", "weight": 0.5, "format": "raw", "dtype": "uint32"}, {"path": "sets/c.bin", "weight": 1}]


@unittest.skipUnless(HAS_TORCH, f"{PYTHON} has no PyTorch: name one that has in INGOT_TORCH_PYTHON")
class TorchTwin(TrainerCase):
    def python(self, *arguments, code=0):
        result = subprocess.run([PYTHON, *map(str, arguments)], cwd=self.folder, text=True, capture_output=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "scripts/peers")})
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout

    def loop(self, name, output, dtype="fp32", *more):
        self.python(ROOT / "scripts/peers/torch_loop.py", "train", "--run", self.run_folder(name), "--dtype", dtype,
                    "--output", self.folder / output, *more)
        return [json.loads(line) for line in (self.folder / output / "log.jsonl").read_text().splitlines()]

    def assert_same_losses(self, name, entries):
        log = self.log(name)
        self.assertEqual(len(log), len(entries))
        for ours, theirs in zip(log, entries):
            self.assertEqual(ours["lr"], theirs["lr"])
            self.assertAlmostEqual(ours["loss"], theirs["loss"], delta=1e-5 * ours["loss"], msg=f"step {ours['step']}")
            self.assertAlmostEqual(ours["grad_norm"], theirs["grad_norm"], delta=1e-4 * ours["grad_norm"])

    def test_initial_weights_are_the_same_bits(self):
        self.run_train("initial", sets=("optimizer.lr=0", "training.steps=1", "model.init_std=0.05",
                                        "model.tie_embeddings=false", "model.qk_norm=true", "schedule.warmup_steps=0"))
        count = self.python("-c", COMPARE_WEIGHTS, self.run_folder("initial"))
        self.assertEqual(int(count), 2 * 11 + 3)

    def test_loop_repeats_a_run_over_several_epochs(self):
        # 24 steps of 2,048 tokens over a shard of about 10,000. Large weights, so that attention matters.
        sets = ("training.batch_tokens=2048", "training.micro_batch_size=16", "training.steps=24", "model.init_std=0.2")
        self.run_train("packed", sets=sets)
        self.assert_same_losses("packed", self.loop("packed", "loop-packed"))

    def test_loop_knows_every_option_of_the_model(self):
        sets = ("model.position=rope", "model.qk_norm=true", "model.tie_embeddings=false", "training.z_loss=1e-3",
                "schedule.type=wsd", "schedule.decay_steps=5", "data.mask_documents=true")
        self.run_train("rope", sets=sets)
        self.assert_same_losses("rope", self.loop("rope", "loop-rope"))
        sets = ("model.position=none", "data.mask_documents=false", "data.shuffle=false", "schedule.type=linear")
        self.run_train("plain", sets=sets)
        self.assert_same_losses("plain", self.loop("plain", "loop-plain"))

    def test_rows_of_every_format_and_packing(self):
        if not (self.folder / "sets").exists():
            write_datasets(self.folder / "sets")
        entries = [{key: value for key, value in entry.items() if key != "weight"} for entry in BLEND]
        base = ("training.batch_tokens=2048", "training.micro_batch_size=16", "training.steps=24", "data.val=[]",
                "sample.every=0", "model.init_std=0.2")
        for name, *sets in (("blend", f"data.train={json.dumps(BLEND)}"),
                            ("one", f"data.train={json.dumps(entries)}"),
                            ("fit", f"data.train={json.dumps(entries)}", "data.packing=best_fit"),
                            ("fit-start", f"data.train={json.dumps(BLEND)}", "data.packing=best_fit",
                             "data.eot=start"),
                            ("fit-plain", f"data.train={json.dumps(entries)}", "data.packing=best_fit",
                             "data.mask_documents=false", "data.shuffle=false")):
            with self.subTest(name):
                self.run_train(name, sets=(*base, *sets))
                self.assert_same_losses(name, self.loop(name, f"loop-{name}"))

    def test_sixteen_bits_leave_a_gap_and_gap_measures_it(self):
        self.reference()
        gaps = {}
        for name, dtype, residual in (("bf16", "bf16", "same"), ("bf16-fp32", "bf16", "fp32"),
                                      ("fp16", "fp16", "same")):
            losses = [entry["loss"] for entry in self.loop("reference", f"loop-{name}", dtype, "--residual", residual)]
            log = self.log("reference")
            gaps[name] = max(abs(entry["loss"] - loss) / loss for entry, loss in zip(log, losses))
            self.assertGreater(gaps[name], 1e-7)
            self.assertLess(gaps[name], 1e-2)
        self.assertLess(gaps["fp16"], gaps["bf16"])
        script, reference = ROOT / "scripts/peers/torch_loop.py", self.run_folder("reference")
        arguments = ("gap", "--reference", reference, "--last", 5)
        self.python(script, *arguments, "--run", self.folder / "loop-fp16", "--peer", self.folder / "loop-bf16")
        self.python(script, *arguments, "--run", self.folder / "loop-bf16", "--peer", self.folder / "loop-fp16",
                    "--limit", 1.0, code=1)

    def made_up(self, name, losses):
        folder = self.folder / name
        folder.mkdir()
        (folder / "log.jsonl").write_text("".join(
            json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses, 1)))
        return folder

    def test_gap_over_seeds_is_the_ratio_of_the_mean_gaps(self):
        """Two seeds whose ratios are 1/3 and 5: 0.6 / 0.4 = 1.5. Gaps on both sides of the reference, which the mean
        losses do not show, and others before the last four steps."""
        references, runs, peers = [], [], []
        for seed, (ours, theirs) in enumerate(((0.1, 0.3), (0.5, 0.1))):
            references.append(self.made_up(f"up-{seed}", [9.0, 9.0] + [2.0 + seed] * 4))
            runs.append(self.made_up(f"up-{seed}-run", [1.0, 1.0] + [2.0 + seed + sign * ours for sign in (1, -1) * 2]))
            peers.append(self.made_up(f"up-{seed}-peer",
                                      [9.0, 9.0] + [2.0 + seed + sign * theirs for sign in (-1, 1) * 2]))

        def gap(limit, code, runs=runs, peers=peers):
            return self.python(ROOT / "scripts/peers/torch_loop.py", "gap", "--reference", *references, "--run", *runs,
                               "--peer", *peers, "--last", 4, "--limit", limit, code=code)

        self.assertRegex(gap(1.51, 0), r"(?m)^mean +3\.000e-01 +2\.000e-01 +1\.500   limit 1\.51$")
        gap(1.49, 1)
        gap(1.51, 2, runs=runs[:1])
        spoilt = self.made_up("up-nan", [2.0] * 5 + ["nan"])
        self.assertRegex(gap(1.51, 1, runs=[runs[0], spoilt]), r"(?m)^mean .* nan ")

    def test_gap_trains_every_seed(self):
        """In fp32 Ingot repeats itself, so that its gap is 0, and the loop does not."""
        command = [ROOT / "scripts/peers/torch_loop.py", "gap", "--config", "config.json", "--seeds", "7,8", "--last", 2,
                   "--dtype", "fp32", "--device", "cpu", "--train", TRAIN, "--output", "gaps"]
        for assignment in ("training.steps=3", "schedule.warmup_steps=1", "data.val=[]", "sample.every=0"):
            command += ["--set", assignment]
        text = self.python(*command)
        loss, gap = r"\d\.\d{5}", r"\d\.\d{3}e-\d\d"
        seeds = re.findall(rf"(?m)^([78]) +({loss}) +{loss} +{loss} +0\.000e\+00 +{gap} +0\.000$", text)
        self.assertEqual([seed for seed, _ in seeds], ["7", "8"], text)
        self.assertNotEqual(seeds[0][1], seeds[1][1])
        self.assertRegex(text, r"(?m)^fp32: steps 2 to 3$")
        self.python(*command, code=2)  # nothing is trained over it
