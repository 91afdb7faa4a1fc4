"""What the tests of exports and imports share: PyTorch and transformers, small runs, and our logits of a text.

The packages come from this Python, or from .venv-interop, which ./scripts/test makes. Where they are missing the tests
are skipped with the reason; with INGOT_REQUIRE_INTEROP=1 that is a failure.
"""

import json
import os
import pathlib
import random
import struct
import tempfile
import unittest
import warnings

from . import ROOT, TRAIN, add_packages_of, run, set_options
from .inputs import shard, temporary_folder

WRITE_LOGITS = str(pathlib.Path(os.environ.get("INGOT_BUILD_DIR", ROOT / "build/release")) / "tests/write_logits")
EOT = 256

# Nothing is fetched, and the code of models is not copied into the user's own cache.
CACHE = tempfile.TemporaryDirectory()
os.environ.update(HF_HOME=CACHE.name, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_MODULE_LOADING="LAZY")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def packages():
    """(torch, transformers, "") or (None, None, the reason)."""
    import importlib.util
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        add_packages_of(".venv-interop")
    try:
        import torch
        import transformers
    except Exception as error:  # a library that cannot be loaded raises what it likes
        return None, None, f"torch and transformers are not here ({error}): ./scripts/test installs them"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    return torch, transformers, ""


torch, transformers, MISSING = packages()
if MISSING and os.environ.get("INGOT_REQUIRE_INTEROP") == "1":
    raise RuntimeError(MISSING)
needs_interop = unittest.skipIf(bool(MISSING), MISSING)


def documents(seed, count, longest):
    """Texts of bytes, each with its EOT."""
    chance = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "(", ")", "\n", "= 1", "ß中😀"]
    tokens = []
    for _ in range(count):
        text = " ".join(chance.choice(words) for _ in range(chance.randint(1, longest)))
        tokens += list(text.encode()) + [EOT]
    return tokens


def config(name, model, **data):
    """Few steps with a high rate from wide weights: logits far from flat, norms and biases far from 1 and 0."""
    return {
        "name": name,
        "model": {"n_layers": 2, "d_model": 48, "n_heads": 6, "n_kv_heads": 2, "head_dim": 8, "d_ff": 64,
                  "context_length": 128, "vocab_size": 257, "init_std": 0.15, **model},
        "data": {"train": ["train.bin"], "val": ["val.bin"], "eot_token": EOT, "tokenizer": "bytes", **data},
        "training": {"steps": 8, "batch_tokens": 512, "micro_batch_size": 4},
        "optimizer": {"lr": 0.03, "weight_decay": 0.0},
        "schedule": {"type": "constant", "warmup_steps": 1},
        "checkpoint": {"every": 1000},
    }


class Runs:
    """A folder with token shards, in which runs are trained, for the tests of a class."""

    def __init__(self, case):
        self.folder = temporary_folder(case)
        (self.folder / "train.bin").write_bytes(shard(documents(1, 60, 30)))
        self.val = documents(2, 25, 60)
        (self.folder / "val.bin").write_bytes(shard(self.val))

    def train(self, name, model, device="cpu", sets=(), **data):
        """The folder of the run."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config(name, model, **data)))
        run(TRAIN, "--config", path, "--device", device, *set_options(sets), cwd=self.folder)
        return self.folder / "runs" / name

    def export(self, run_folder, dtype="fp32", format="hf"):
        output = self.folder / "exports" / f"{run_folder.name}-{dtype}"
        run(TRAIN, "export", "--checkpoint", run_folder, "--format", format, "--dtype", dtype, "--output", output)
        return output


def our_logits(run_folder, ids, device="cpu"):
    """(tokens, vocabulary) in fp32."""
    result = run(WRITE_LOGITS, run_folder, device, input=struct.pack(f"<{len(ids)}i", *ids))
    return torch.frombuffer(bytearray(result.stdout), dtype=torch.float32).view(len(ids), -1)


def our_text(run_folder, prompt, tokens=64, device="cpu"):
    """The bytes of prompt and greedy continuation."""
    return run(TRAIN, "generate", "--checkpoint", run_folder, "--prompt", prompt, "--temperature", 0, "--tokens",
               tokens, "--device", device).stdout


def our_evaluation(run_folder, data, device="cpu"):
    result = run(TRAIN, "eval", "--checkpoint", run_folder, "--data", data, "--json", "--device", device)
    return json.loads(result.stdout)


def their_evaluation(model, tokens, context):
    """The mean loss as ./train eval counts it, and the targets: rows of `context` tokens, each document for itself."""
    total, targets = 0.0, 0
    for row in range(0, len(tokens) - 1, context):
        begin, end = row, min(row + context, len(tokens) - 1)
        while begin < end:  # a document, or what of it lies in the row
            stop = begin
            while stop < end and tokens[stop] != EOT:
                stop += 1
            ids, next_ids = tokens[begin:stop], tokens[begin + 1:stop + 1]
            if ids:
                logits = logits_of(model, ids)
                total += torch.nn.functional.cross_entropy(logits, torch.tensor(next_ids), reduction="sum").item()
                targets += len(ids)
            begin = stop + 1  # what follows an EOT is not its target
    return total / targets, targets


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def load(folder, dtype=None, **options):
    if dtype is not None:  # the name of version 4.56 and later
        options["dtype"] = dtype
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True, **options)
    return model.eval()
