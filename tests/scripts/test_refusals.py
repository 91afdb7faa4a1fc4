"""Bad input, as a user meets it: `./train ...` ends with exit code 2 and one line: what, where, and what to do.

Each row of a table is a case: its input, a fragment of the line that names the key, file or option, and, where it
matters, the fix that must stand in it. Without a fix of its own, a row wants one of FIXES after that fragment.

Seen to catch: the hint of the nearest name left out; the count in a shard's header not compared with its size; a kernel
of attention not compared with the precision; an unknown argument that is ignored.
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import unittest

from . import TRAIN
from .inputs import sealed, shard, temporary_folder

MODEL = '"model": {"n_layers": 1, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "context_length": 16, "vocab_size": 257}'
DATA = '"data": {"train": ["train.bin"], "val": ["val.bin"], "eot_token": 256, "tokenizer": "bytes"}'
TRAINING = '"training": {"steps": 2, "batch_tokens": 64, "micro_batch_size": 2}'
GOOD = f"{{\n{MODEL},\n{DATA},\n{TRAINING}\n}}\n"

# What a line tells the reader to do. A message without any of these leaves them alone with the problem.
FIXES = re.compile(r"\b(must|did you mean|belongs at|try|use|set|add|remove|keep|check|close|write|name|give|make|"
                   r"copy|choose|wait|move|go on|start|see|raise|lower|leave|put|look|known|options)\b", re.IGNORECASE)

# ---- The config as a file: bytes or text, what the line names, the fix ----
FILES = [
    ("empty", "", "case.json", None),
    ("a comment alone", "// later\n", "case.json", None),
    ("a list", "[1, 2]", "case.json", "object"),
    ("a number", "3", "case.json", "with the sections"),
    ("null", "null", "case.json", "with the sections"),
    ("a text", '""', "case.json", "with the sections"),
    ("comma missing", f'{{\n{MODEL}\n{DATA}, {TRAINING}}}', "line 3, column", None),
    ("comma too many", f"{{{MODEL}, {DATA},\n{TRAINING},\n}}", "line 3, column", None),
    ("brace not closed", f"{{{MODEL}, {DATA},\n {TRAINING}", "line 2, column", None),
    ("brace too many", GOOD + "}", "line 6, column", None),
    ("another object after the end", GOOD + GOOD, "line 6, column", None),
    ("text after the end", GOOD + "thank you", "line 6, column", None),
    ("single quotes", "{\n 'seed': 1}", "line 2, column", None),
    ("a name without quotes", "{\n\n seed: 1}", "line 3, column", None),
    ("string not closed", '{"name": "tiny\n}', "line 2, column", None),
    ("comment not closed", "{ /* \n}", "case.json", None),
    ("bad escape", '{"name": "a\\x41"}', "line 1, column", None),
    ("half a surrogate pair", '{"name": "\\ud800"}', "line 1, column", None),
    ("NaN", GOOD.replace('"steps": 2', '"steps": NaN'), "line 4, column", None),
    ("Infinity", GOOD.replace('"steps": 2', '"steps": Infinity'), "line 4, column", None),
    ("a number beyond double", GOOD.replace("}\n}", '},\n"optimizer": {"lr": 1e999}}'), "1e999", None),
    ("hexadecimal", GOOD.replace('"steps": 2', '"steps": 0x10'), "line 4, column", None),
    ("leading zeros", GOOD.replace('"steps": 2', '"steps": 007'), "line 4, column", None),
    ("not UTF-8", GOOD.encode().replace(b"train.bin", b"tr\xe4in.bin"), "case.json", None),
    ("UTF-16", GOOD.encode("utf-16"), "case.json", None),
    ("a program", b"\x7fELF\x02\x01\x01\0\0\0" + bytes(100), "case.json", None),
    ("10,000 brackets", "[" * 10_000, "case.json", None),
    ("10,000 brackets, closed", '{"seed": ' + "[" * 10_000 + "]" * 10_000 + "}", "case.json", None),
    ("10,000 objects", '{"model": ' * 10_000 + "1" + "}" * 10_000, "case.json", None),
    ("a key twice", GOOD.replace('"steps": 2', '"steps": 2, "steps": 3'), '"steps"', "keep one"),
    ("a section twice", f"{{{MODEL}, {DATA}, {TRAINING}, {TRAINING}}}", '"training"', "keep one"),
    ("section missing", f"{{{DATA}, {TRAINING}}}", "model", "add"),
    ("required key missing", GOOD.replace('"n_heads": 4, ', ""), "model.n_heads", "add"),
    ("section is null", f'{{"model": null, {DATA}, {TRAINING}}}', "model", "object"),
    ("section is a list", f'{{{MODEL}, "data": [], {TRAINING}}}', "data", "object"),
    ("section is text", f'{{{MODEL}, {DATA}, "training": "fast"}}', "training", "object"),
]

# ---- One value: --set, what the line names, the fix ----
VALUES = [
    # Names.
    ("model.d_modle=32", "model.d_modle", "did you mean model.d_model?"),
    ("optimiser.lr=1e-3", "optimiser", "optimizer"),
    ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", None),
    ("lr=1e-3", "lr", "belongs at optimizer.lr"),
    ("training.lr=1e-3", "training.lr", "belongs at optimizer.lr"),
    ("model.steps=3", "model.steps", "belongs at training.steps"),
    ("data.trian=[]", "data.trian", "did you mean data.train?"),
    ("Model.n_layers=1", "Model", "model"),
    # Types.
    ("model.n_layers=two", "model.n_layers", "integer"),
    ("model.n_layers=1.5", "model.n_layers", "integer"),
    ("model.n_layers=true", "model.n_layers", "integer"),
    ("model.n_layers=null", "model.n_layers", None),
    ("model.n_layers=[1]", "model.n_layers", "integer"),
    ("model.n_layers={}", "model.n_layers", "integer"),
    ("model.n_layers=" + "[" * 10_000 + "]" * 10_000, "--set model.n_layers", "check"),
    ("x" * 100_000 + "=1", "unknown key xxx", "remove it"),
    ("model." + "x" * 100_000 + "=1", "unknown key model.xxx", "remove it"),
    ("a." * 50_000 + "b=1", "--set a.a.a", "section.key=value"),
    ('optimizer={"lr": 1, "lr": 2}', "--set optimizer", "keep one"),
    ("training.steps=2.0", "training.steps", "integer"),
    ("training.steps=1e3", "training.steps", "integer"),
    ("model.tie_embeddings=1", "model.tie_embeddings", "true or false"),
    ("model.tie_embeddings=yes", "model.tie_embeddings", "true or false"),
    ("optimizer.lr=fast", "optimizer.lr", "number"),
    ("optimizer.lr=nan", "optimizer.lr", "number"),
    ("optimizer.lr=1e999", "optimizer.lr", "number"),
    ("name=5", "name", "string"),
    ("name=..", 'name is ".."', "one folder"),
    ("name=.", 'name is "."', "one folder"),
    ("name=a/b", 'name is "a/b"', "set run_dir"),
    ("name=/", "name is", "one folder"),
    ('name=""', "name is empty", "leave it out"),
    ('run_dir=""', "run_dir is empty", "leave it out"),
    ('eval.hellaswag=""', "eval.hellaswag is empty", "leave it out"),
    ("eval.hellaswag=nowhere.jsonl", "nowhere.jsonl", "check the path"),
    ("eval.hellaswag=3", "eval.hellaswag", "string"),
    ("eval.hellaswag=val.bin", "eval.hellaswag: val.bin", "give hellaswag_val.jsonl"),
    ('name="a\\u0000b"', r'name is "a\x00b"', "control character"),
    ("name=a\x1b[2J", r'name is "a\x1b[2J', "control character"),
    ("name=" + "n" * 300, "name is", "at most 200 bytes"),
    ('data.train=["a\\u0000b"]', "data.train", "NUL"),
    ('run_dir="a\\u0000b"', "run_dir", "NUL"),
    ("data.train=train.bin", "data.train", "list"),
    ("data.train=[1]", "data.train[0]", "string"),
    ("data.train={}", "data.train", "list"),
    ("model.position=alibbi", "model.position", "alibi, rope, none"),
    ("model.position=3", "model.position", "alibi, rope, none"),
    ("schedule.type=cosin", "schedule.type", "cosine"),
    ("training.recompute=all", "training.recompute", "block"),
    ("training.attention=sm100", "training.attention", "auto, simt, sm80, sm90"),
    ("training.attention=true", "training.attention", "auto, simt, sm80, sm90"),
    ("training.deterministic=1", "training.deterministic", "true or false"),
    ("training.on_nonfinite=ignore", "training.on_nonfinite", "skip"),
    ("data.eot=middle", "data.eot", "start"),
    ("training.device=tpu", "training.device", "cpu"),
    ("training.precision=fp64", "training.precision", "bf16"),
    ("training.precision=bf16", "training.precision", "fp32"),
    ("checkpoint.async=yes", "checkpoint.async", "true or false"),
    ("checkpoint.host_memory=some", "checkpoint.host_memory", None),
    ("log.jsonl=1", "log.jsonl", "true or false"),
    ("data.tokenizer=gpt2", "data.tokenizer", "bytes"),
    ("data.tokenizer=nowhere.json", "nowhere.json", "path of a tokenizer.json"),
    ("data.tokenizer=good.json", "good.json", "must be the tokenizer.json of a byte-level BPE"),
    # Ranges: zero, negative, huge, not finite.
    ("model.n_layers=0", "model.n_layers", None),
    ("model.n_layers=-1", "model.n_layers", None),
    ("model.n_layers=9223372036854775807", "model.n_layers", None),
    ("model.n_layers=9223372036854775808", "model.n_layers", None),
    ("model.n_layers=99999999999999999999999", "model.n_layers", None),
    ("model.d_model=1000000000000", "model.d_model", None),
    ("model.context_length=0", "model.context_length", None),
    ("model.context_length=-16", "model.context_length", None),
    ("model.vocab_size=1", "model.vocab_size", None),
    ("model.rope_theta=0", "model.rope_theta", None),
    ("model.norm_eps=0", "model.norm_eps", None),
    ("model.init_std=-1", "model.init_std", None),
    ("training.steps=0", "training.steps", None),
    ("training.steps=-5", "training.steps", None),
    ("training.micro_batch_size=-1", "training.micro_batch_size", None),
    ("training.micro_batch_size=1000000000000", "training.micro_batch_size", None),
    ("training.max_skipped_steps=-1", "training.max_skipped_steps", None),
    ("training.z_loss=-1", "training.z_loss", None),
    ("training.max_minutes=-5", "training.max_minutes", None),
    ("training.max_minutes=0", "training.max_minutes", None),
    ("training.max_minutes=soon", "training.max_minutes", "number"),
    ("optimizer.lr=-0.001", "optimizer.lr", None),
    ("optimizer.lr=1e30", "optimizer.lr", None),
    ("optimizer.beta1=1", "optimizer.beta1", None),
    ("optimizer.beta2=1.5", "optimizer.beta2", None),
    ("optimizer.eps=0", "optimizer.eps", None),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay", None),
    ("optimizer.grad_clip=-1", "optimizer.grad_clip", None),
    ("schedule.final_lr_fraction=2", "schedule.final_lr_fraction", None),
    ("eval.every=-1", "eval.every", None),
    ("eval.tokens=0", "eval.tokens", None),
    ("sample.temperature=-1", "sample.temperature", None),
    ("checkpoint.every=0", "checkpoint.every", None),
    ("checkpoint.keep=0", "checkpoint.keep", None),
    ("checkpoint.keep_every=-1", "checkpoint.keep_every", None),
    ("log.every=0", "log.every", None),
    ("seed=-1", "seed", None),
    ("seed=0.5", "seed", "integer"),
    # Values that do not go together.
    ("model.d_model=33", "model.d_model 33 is not divisible by model.n_heads 4", "try 32"),
    ("model.n_heads=5", "model.n_heads 5", "try 30"),
    ("model.n_kv_heads=3", "model.n_kv_heads 3", "try n_kv_heads 2"),
    ("model.n_kv_heads=8", "model.n_kv_heads 8", None),
    ("model.head_dim=7", "model.head_dim 7", "even"),
    ("model.head_dim=512", "model.head_dim", "256"),
    ("training.batch_tokens=100", "training.batch_tokens 100", "try 96"),
    ("training.micro_batch_size=3", "training.micro_batch_size 3", None),
    ("training.batch_tokens=1", "training.batch_tokens 1", "try 32"),
    ("schedule.warmup_steps=3", "schedule.warmup_steps 3", "at most 2"),
    ("training.epochs=2", "training.epochs", "keep one"),
    ("training.steps=null", "training.steps", "training.epochs"),
    ("sample.every=1", "sample.every", "sample.prompts"),
    ("model.vocab_size=200", "data.eot_token", "199"),
    ("model.vocab_size=null", "model.vocab_size", "add it"),
    ("data.eot_token=257", "data.eot_token", None),
    ("data.eot_token=-2", "data.eot_token", None),
    # Files.
    ("data.train=[]", "data.train", None),
    ('data.train=["nowhere/*.bin"]', "nowhere/*.bin", "check the path"),
    ('data.train=["nowhere.bin"]', "nowhere.bin", "check the path"),
    ('data.train=["train.bin", "nowhere.bin"]', "nowhere.bin", "check the path"),
    ('data.val=["nowhere-*.bin"]', "data.val", "check the path"),
    ('data.train=["folder"]', "folder", None),
    ('data.train=[""]', "data.train", None),
    ('data.train=[{}]', "data.train[0].path", "add"),
    ('data.train=[{"path": "train.bin", "wieght": 1}]', "data.train[0].wieght", "did you mean weight?"),
    ('data.train=[{"path": "train.bin", "shuffle": 1}]', "data.train[0].shuffle", None),
    ('data.train=[{"path": 3}]', "data.train[0].path", "string"),
    ('data.train=[{"path": "train.bin", "weight": 0}]', "data.train[0].weight", None),
    ('data.train=[{"path": "train.bin", "weight": -1}]', "data.train[0].weight", None),
    ('data.train=[{"path": "train.bin", "weight": 1}, "val.bin"]', "data.train", "all of them a weight, or none"),
    ('data.train=[{"path": "train.bin", "weight": 1}, {"path": "val.bin", "weight": 1e-6}]', "data.train[1]", "raise"),
    ('data.val=[{"path": "val.bin", "weight": 1}]', "data.val[0]", "remove"),
    ('data.train=[{"path": "train.bin", "format": "gzip"}]', "data.train[0].format", "megatron"),
    ('data.train=[{"path": "train.bin", "format": "raw"}]', "data.train[0]", '"dtype"'),
    ('data.train=[{"path": "train.bin", "dtype": "uint16"}]', "data.train[0]", "remove"),
    ('data.train=[{"path": "train.bin", "format": "raw", "dtype": "int8"}]', "data.train[0].dtype", "uint16"),
    ('data.train=[{"path": "train.bin", "format": "raw", "dtype": "uint16"}]', "train.bin", "remove"),
    ('data.train=[{"path": "train.bin", "format": "megatron"}]', "train.idx", None),
    ('data.train=[{"path": "train.bin", "mask": "nowhere"}]', "nowhere", "check the path"),
    ('data.train=[{"path": "train.bin", "mask": "val.bin"}]', "val.bin", "check"),
    ("data.packing=tight", "data.packing", "best_fit"),
    # The assignment itself.
    ("model.n_layers", "--set model.n_layers", "section.key=value"),
    ("=3", "--set =3", "section.key=value"),
    (".n_layers=3", "--set .n_layers=3", "section.key=value"),
    ("model..n_layers=3", "--set model..n_layers=3", "section.key=value"),
    ("model.=3", "--set model.=3", "section.key=value"),
    ("model=3", "model", "object"),
    ("seed.x=3", "seed", None),
    ("model.n_layers.x=3", "n_layers", None),
]

# ---- The command line: arguments, what the line names, the fix ----
ARGUMENTS = [
    ([], "--config", None),
    (["--config"], "--config needs a value", None),
    (["--config", "nowhere.json"], "nowhere.json", "check the path"),
    (["--config", "folder"], "folder", None),
    (["--config", "case.json/x"], "case.json/x", "check the path"),
    (["--config", ""], "--config is empty", None),
    (["--config", "case.json", "--nonsense"], "--nonsense", None),
    (["--config", "case.json", "--resum", "auto"], "--resum", None),
    (["--config", "case.json", "--resume"], "--resume", None),
    (["--config", "case.json", "--set"], "--set", None),
    (["--config", "case.json", "--device", "tpu"], "device", "auto, cpu, cuda"),
    (["--config", "case.json", "--resume", "nowhere"], "nowhere", "name"),
    (["--config", "case.json", "--resume", "folder"], "folder", None),
    (["--config", "case.json", "--config", "good.json"], "given twice", None),
    (["--config", "case.json", "surplus"], "unexpected argument surplus", None),
    (["--config", "case.json", "--tokens", "5"], "--tokens", None),
    (["trian"], "trian", None),
    (["data"], "--config", None),
    (["data", "--config", "good.json", "--row", "-1"], "--row", None),
    (["data", "--config", "good.json", "--row", "x"], "--row", None),
    (["data", "--config", "good.json", "--rows", "0"], "--rows", None),
    (["eval"], "--checkpoint is missing", None),
    (["eval", "--checkpoint", "runs/done"], "--data is missing", None),
    (["eval", "--checkpoint", "nowhere", "--data", "val.bin"], "nowhere", None),
    (["eval", "--checkpoint", "folder", "--data", "val.bin"], "folder holds no checkpoint", None),
    (["eval", "--checkpoint", "good.json", "--data", "val.bin"], "good.json", None),
    (["eval", "--checkpoint", "runs/done", "--data", "nowhere-*.bin"], "no file matches nowhere-*.bin", "check the path"),
    (["eval", "--checkpoint", "runs/done", "--data", "good.json"], "good.json has", "prepare.py"),
    (["eval", "--checkpoint", "runs/done", "--data", "other.bin"], "token 0 is 300", None),
    (["eval", "--checkpoint", "runs/done", "--data", "val.bin", "--device", "tpu"], "--device", "cpu"),
    (["eval", "--checkpoint", "runs/done", "--data", "val.bin", "--prompt", "a"], "--prompt", None),
    (["eval", "--checkpoint", "runs/done", "--data", "raw.bin"], "raw.bin", "--format raw --dtype uint16"),
    (["eval", "--checkpoint", "runs/done", "--data", "raw.bin", "--format", "gzip"], "--format", "megatron"),
    (["eval", "--checkpoint", "runs/done", "--data", "raw.bin", "--format", "raw"], "--format is raw", "--dtype"),
    (["eval", "--checkpoint", "runs/done", "--data", "raw.bin", "--dtype", "uint16"], "--dtype", "--format raw"),
    (["eval", "--checkpoint", "runs/done", "--data", "raw.bin", "--format", "raw", "--dtype", "int8"], "--dtype",
     "uint32"),
    (["eval", "--checkpoint", "runs/done", "--data", "raw.bin", "--format", "raw", "--dtype", "uint32"], "raw.bin",
     "model.vocab_size is 257"),
    (["eval", "--checkpoint", "runs/done", "--data", "val.bin", "--format", "raw", "--dtype", "uint16"], "val.bin",
     "remove"),
    (["eval", "--checkpoint", "runs/done", "--data", "val.bin", "--format", "megatron"], "val.idx", None),
    (["eval", "--checkpoint", "runs/done", "--hellaswag", "nowhere.jsonl"], "nowhere.jsonl", "check the path"),
    (["eval", "--checkpoint", "runs/done", "--hellaswag", "val.bin"], "val.bin", "give hellaswag_val.jsonl"),
    (["eval", "--checkpoint", "runs/done", "--hellaswag", "good.json"], "line 1 of good.json", None),
    (["eval", "--checkpoint", "runs/done", "--hellaswag", "a", "--data", "val.bin"], "--hellaswag and --data", "keep one"),
    (["generate"], "--checkpoint", None),
    (["generate", "--checkpoint", "runs/done"], "--prompt is missing", None),
    (["generate", "--checkpoint", "nowhere", "--prompt", "a"], "nowhere", None),
    (["tokenize"], "--tokenizer is missing", None),
    (["tokenize", "--tokenizer", "nowhere.json"], "cannot read the tokenizer nowhere.json", "path of a tokenizer.json"),
    (["tokenize", "--tokenizer", "good.json"], "good.json", "it must be the tokenizer.json of a byte-level BPE"),
    (["tokenize", "--tokenizer", "bytes", "surplus"], "surplus", None),
    (["info", "surplus"], "unexpected argument surplus", None),
    (["config.json"], "config.json", "--config config.json"),
    (["--confg", "config.json"], "--confg", "did you mean --config?"),
    (["evla"], "evla", "did you mean ./train eval?"),
    (["--config", "--resume", "auto"], "--config needs a value", None),
    (["--prompt", "x"], "--prompt", "belongs to ./train generate"),
    (["--config", "a", "--dry-run=now"], "--dry-run takes no value", None),
    (["--config", "a", "--profile", "2:3", "--dry-run"], "--profile and --dry-run", None),
    (["-c", "a"], "unknown option -c", None),
    (["\x1b[2J\n"], "unexpected argument \\x1b[2J\\n", None),
    (["--config", "good.json", "eval", "--checkpoint", "runs/done", "--data", "x"], "does not go with ./train eval", None),
    (["eval", "--checkpoint", "runs/done", "--data", ""], "--data is empty", None),
    (["eval", "--checkpoint", "runs/done", "--data", "x", "--jsn"], "--jsn", "did you mean --json?"),
    (["eval", "--checkpoint", "runs/done", "--data", "x", "--json=false"], "--json takes no value", None),
    (["generate", "--checkpoint", "runs/ids", "--prompt", "a"], "no tokenizer", None),
    (["generate", "--checkpoint", "runs/done", "--prompt", "--tokens", "5"], "--prompt needs a value", None),
    (["tokenize", "--tokenizer", "folder"], "cannot read the tokenizer folder", None),
    (["--config", "case.json", "--profile", "1:2"], "--profile", "--device cuda"),  # on the CPU
]
for option, values in (("--tokens", ["0", "-1", "1.5", "nan", "5x", "", "many", "99999999999999999999"]),
                       ("--temperature", ["-1", "nan", "inf", "0.8x", "101", "0x1p3 "]),
                       ("--top-k", ["-1", "1e3"]), ("--top-p", ["0", "1.01", "2", "-0.5", "nan"]),
                       ("--seed", ["-1", "two", "9223372036854775808"])):
    ARGUMENTS += [(["generate", "--checkpoint", "runs/done", "--prompt", "a", option, value], option, None)
                  for value in values]
ARGUMENTS += [(["--config", "a", "--profile", steps], f"--profile is {steps}: it must be two steps", "")
              for steps in ("5", "5:", ":5", "a:b", "3:2", "0:2", "-1:2", "1:2:3", "1:2 ", "1.5:2",
                            "1:99999999999999999999")]
if os.environ.get("INGOT_HAS_CUDA", "0") == "0":
    ARGUMENTS += [(["--config", "good.json", "--device", "cuda"], "built without CUDA", None),
                  (["eval", "--checkpoint", "runs/done", "--data", "val.bin", "--device", "cuda"], "built without CUDA",
                   None)]


# ---- Shards: bytes of a file that stands in data.train, a fragment, the fix ----
SHARDS = [
    ("no byte at all", b"", "0 bytes", None),
    ("half a header", shard()[:512], "512 bytes", None),
    ("header alone", shard(ids=[]), "0 tokens", None),
    ("cut short by one token", shard()[:-2], "cut short", "copy it"),
    ("cut in the middle of a token", shard()[:-1], "cut short", "copy it"),
    ("longer than it says", shard() + b"\0\0", "longer", None),
    ("count too large", shard(count=2**31 - 1), "2147483647", None),
    ("count negative", shard(count=-1), "-1 tokens", None),
    ("text", b"It was a dark and stormy night. " * 100, "bad.bin", "prepare.py"),
    ("zeros", bytes(5000), "bad.bin", "prepare.py"),
    ("gzip", b"\x1f\x8b\x08\0" + bytes(3000), "bad.bin", "prepare.py"),
    ("big-endian", struct.pack(">256i", 20240520, 1, 64, *[0] * 253) + bytes(128), "bad.bin", "prepare.py"),
    ("another version", shard(version=2), "version 2", "prepare.py"),
    ("version of the other format", shard(version=7), "version 7", "prepare.py"),
    ("32-bit magic over 16-bit tokens", shard(magic=20240801, version=7), "bad.bin", None),
    ("an id of another tokenizer", shard(ids=[1, 2, 300] + [3] * 60), "token 2 is 300", "301"),
    ("the last id alone", shard(ids=[3] * 60 + [257]), "token 60 is 257", "258"),
    ("32-bit ids beyond int32", shard(ids=[2**32 - 1] * 40, magic=20240801, version=7, code="I"), "4294967295", None),
    ("fewer tokens than a row takes", shard(ids=range(16)), "16 tokens", None),
    ("32-bit: header alone", shard(ids=[], magic=20240801, version=7, code="I"), "0 tokens", None),
    ("32-bit: cut short by one token", shard(magic=20240801, version=7, code="I")[:-4], "cut short", "copy it"),
    ("32-bit: longer than it says", shard(magic=20240801, version=7, code="I") + bytes(4), "longer", None),
    ("32-bit: version of the other format", shard(magic=20240801, code="I"), "version 1", "prepare.py"),
    ("32-bit: an id of another tokenizer", shard(ids=[1, 70000] + [3] * 60, magic=20240801, version=7, code="I"),
     "token 1 is 70000", "70001"),
]

# ---- Raw ids: dtype, bytes of the file ----
RAW = [
    ("no byte at all", "uint16", b"", "bad.bin is empty", "leave it out"),
    ("half a token", "uint16", bytes(129), "129 bytes, which is no whole number of uint16", "copy it"),
    ("half a token of 32 bits", "uint32", bytes(130), "130 bytes, which is no whole number of uint32", "dtype"),
    ("an id of another tokenizer", "uint16", struct.pack("<64H", *range(63), 257), "token 63 is 257", "258"),
    ("16-bit ids read as 32-bit ones", "uint32", struct.pack("<64H", *range(64)), "token 0 is 65536", "vocab_size"),
    ("ids beyond int32", "uint32", struct.pack("<64I", *[2**31] * 64), "2147483648", None),
    ("a shard with a header", "uint16", shard(), "header of its own", "remove"),
    ("fewer tokens than a row takes", "uint16", bytes(32), "16 tokens", "context_length"),
]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Refusals(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        for name in ("train.bin", "val.bin"):
            (cls.folder / name).write_bytes(shard(ids=[number % 257 for number in range(600)]))
        (cls.folder / "other.bin").write_bytes(shard(ids=[300] * 600))
        (cls.folder / "raw.bin").write_bytes(shard(ids=range(256))[1024:])
        (cls.folder / "silent.bin").write_bytes(shard(ids=[256] * 600))  # empty documents alone
        (cls.folder / "folder").mkdir()
        (cls.folder / "good.json").write_text(GOOD)
        cls.run_train("--config", "good.json", code=0)  # the table changes one thing at a time in what works
        cls.run_train("--config", "good.json", "--set", "name=done", code=0)
        cls.run_train("--config", "good.json", "--set", "name=ids", "--set", "data.tokenizer=null", code=0)

    def setUp(self):
        (self.folder / "case.json").write_text(GOOD)

    @classmethod
    def run_train(cls, *arguments, code):
        result = subprocess.run([TRAIN, *arguments], cwd=cls.folder, text=True, capture_output=True, timeout=60,
                                errors="replace", env={**os.environ, "OMP_NUM_THREADS": "1"})
        if result.returncode != code:
            output = result.stdout[-2000:] + result.stderr[-2000:]
            raise AssertionError(f"exit code {result.returncode}, not {code}\n{output}")
        return result

    def refused(self, *arguments, says, fix=None, code=2, num_warnings=0):
        """Ends with one line that says so; returns what stands on stdout."""
        result = self.run_train(*arguments, code=code)
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        warnings, errors = lines[:num_warnings], lines[num_warnings:]
        self.assertTrue(all("WARNING" in line for line in warnings), lines)
        self.assertEqual(len(errors), 1, "one line, not:\n" + "\n".join(line[:300] for line in lines))
        self.assertLess(len(errors[0]), 500, "a line that nobody reads to its end")
        self.assertTrue(errors[0].startswith("error: "), errors[0])
        self.assertIn(says, errors[0])
        after = errors[0][errors[0].index(says) + len(says):]
        if fix is not None:
            self.assertIn(fix, errors[0])
        else:
            self.assertRegex(after, FIXES, f"no fix in: {errors[0]}")
        return result.stdout

    def refused_with(self, *assignments, says, fix=None, arguments=(), **more):
        sets = [word for assignment in assignments for word in ("--set", assignment)]
        self.refused("--config", "case.json", *sets, *arguments, says=says, fix=fix, **more)

    def test_there_are_enough(self):
        self.assertGreaterEqual(len(FILES) + len(VALUES) + len(ARGUMENTS) + len(SHARDS), 60)

    def test_config_files(self):
        for name, text, says, fix in FILES:
            with self.subTest(name):
                (self.folder / "case.json").write_bytes(text if isinstance(text, bytes) else text.encode())
                self.refused("--config", "case.json", says=says, fix=fix)

    def test_values(self):
        for assignment, says, fix in VALUES:
            with self.subTest(assignment):
                self.refused_with(assignment, says=says, fix=fix)

    def test_command_lines(self):
        for arguments, says, fix in ARGUMENTS:
            with self.subTest(" ".join(arguments)):
                self.assertRegex(self.refused(*arguments, says=says, fix=fix), r"\A(device: .*\n)?\Z")

    def test_no_such_device(self):
        if pathlib.Path("/dev/nvidia0").exists():
            self.skipTest("this machine has a GPU")
        self.refused_with(arguments=["--device", "cuda"], says="cuda", fix="cpu")
        self.refused_with("training.device=cuda", says="cuda", fix="cpu")

    def test_attention_kernels(self):
        for kernel in ("simt", "sm80", "sm90"):
            asked = f"training.attention={kernel}"
            self.refused_with(asked, "training.device=cpu", says=f'training.attention is "{kernel}"', fix='to "auto"')
            self.refused_with(asked, arguments=["--device", "cpu"], says="training.attention", fix='to "auto"')
        cuda = ("training.device=cuda",)
        for kernel in ("sm80", "sm90"):
            self.refused_with(f"training.attention={kernel}", *cuda, "training.precision=fp32",
                              says=f'training.attention is "{kernel}"', fix='training.precision to "bf16"')
        for head_dim in (32, 96):
            self.refused_with("training.attention=sm90", *cuda, f"model.head_dim={head_dim}", arguments=["--dry-run"],
                              says=f"sm90 takes heads of 64 or 128 elements, not of {head_dim}", fix="training.attention")

    def test_shards(self):
        for name, content, says, fix in SHARDS:
            with self.subTest(name):
                (self.folder / "bad.bin").write_bytes(content)
                self.refused_with('data.train=["bad.bin"]', says=says, fix=fix)
        (self.folder / "bad.bin").write_bytes(shard()[:-2])
        self.refused_with('data.train=["train.bin", "bad.bin"]', says="bad.bin", fix="copy it")
        self.refused_with('data.val=["bad.bin"]', says="bad.bin", fix="copy it")
        (self.folder / "bad.bin").write_bytes(shard(ids=range(16)))
        self.refused_with('data.val=["bad.bin"]', says="data.val")

    def test_raw_ids(self):
        for name, dtype, content, says, fix in RAW:
            with self.subTest(name):
                (self.folder / "bad.bin").write_bytes(content)
                self.refused_with(f'data.train=[{{"path": "bad.bin", "format": "raw", "dtype": "{dtype}"}}]', says=says,
                                  fix=fix)

    def test_empty_documents(self):
        """They are data that occur, and harmless: nothing is predicted from them. A split of nothing else is refused.

        Seen to fail when has_target() is left out (the validation loss is NaN), when require_targets() is (training
        goes through its steps and learns nothing), or looks at the first dataset of a blend alone."""
        ids = [256, 256, 5, 6, 256, 256] * 100
        (self.folder / "gaps.bin").write_bytes(shard(ids=ids))
        for eot in ("start", "end"):
            for packing in ("stream", "best_fit"):
                with self.subTest(eot=eot, packing=packing):
                    self.run_train("--config", "good.json", "--set", f"name=gaps-{eot}-{packing}", "--set",
                                   'data.train=["gaps.bin"]', "--set", 'data.val=["gaps.bin"]', "--set",
                                   f"data.eot={eot}", "--set", f"data.packing={packing}", code=0)
                    log = (self.folder / f"runs/gaps-{eot}-{packing}/log.jsonl").read_text().splitlines()
                    for line in map(json.loads, log):
                        self.assertIsInstance(line["loss"], float)
                    self.assertIsInstance(line["val_loss"], float)
        self.refused_with('data.val=["silent.bin"]', "data.eot=end", says="data.val holds nothing to predict",
                          fix="set data.val to []")
        (self.folder / "none.mask").write_bytes(bytes(600))
        self.refused_with('data.val=[{"path": "gaps.bin", "mask": "none.mask"}]', says="data.val holds nothing to predict",
                          fix="its mask")
        self.refused_with('data.train=["silent.bin"]', "data.eot=end", says="data.train holds nothing to predict",
                          fix="add text")
        self.refused_with('data.train=[{"path": "gaps.bin", "mask": "none.mask"}]', "data.mask_documents=false",
                          says="data.train holds nothing to predict", fix="check the mask")
        self.refused_with('data.train=[{"path": "train.bin", "weight": 1}, {"path": "silent.bin", "weight": 1}]',
                          "data.eot=end", says="data.train[1] holds nothing to predict", fix="add text")
        # As one document each EOT follows another, and where EOT opens documents it is the right answer.
        for number, sets in enumerate(("data.eot=start", "data.mask_documents=false")):
            self.run_train("--config", "good.json", "--set", f"name=silent-{number}", "--set",
                           'data.train=["silent.bin"]', "--set", "data.val=[]", "--set", sets, code=0)

    def test_megatron(self):
        def index(code=4, version=1, lengths=(30, 34), documents=(0, 1, 2)):
            pointers = [4 * sum(lengths[:s]) for s in range(len(lengths))]
            return (b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(lengths), len(documents)) +
                    struct.pack(f"<{len(lengths)}i{len(lengths)}q{len(documents)}q", *lengths, *pointers, *documents))

        (self.folder / "meg.bin").write_bytes(struct.pack("<64i", *range(64)))
        for name, content, says, fix in (("no byte", b"", "meg.idx", None), ("text", b"x" * 500, "meg.idx", None),
                                         ("cut short", index()[:-8], "cut short", "copy"),
                                         ("multimodal", index() + b"\0\0", "multimodal", "use text"),
                                         ("floats", index(code=7), "dtype code 7", "uint16"),
                                         ("version", index(version=2), "version 2", None),
                                         ("of another .bin", index(lengths=(30, 35)), "meg.idx", "copy both"),
                                         ("longer", index() + bytes(8), "longer than it says", "copy"),
                                         ("no sequence", index(lengths=(), documents=(0,)), "it is empty", "make it"),
                                         ("counts that overflow", index()[:18] + b"\xff" * 16 + index()[34:],
                                          "cut short", "copy"),
                                         ("negative length", index(lengths=(70, -6)), "meg.idx", "copy both"),
                                         ("a gap", index()[:42] + struct.pack("<2q", 0, 124) + index()[58:], "meg.idx",
                                          "copy"),
                                         ("documents", index(documents=(0, 9, 2)), "sequence 9", "copy"),
                                         ("documents backwards", index(lengths=(20, 20, 24), documents=(0, 2, 1, 3)),
                                          "before document 1 ends", "copy"),
                                         ("not all documents", index(documents=(0, 1, 1)), "document index", "make it")):
            with self.subTest(name):
                (self.folder / "meg.idx").write_bytes(content)
                self.refused_with('data.train=["meg.bin"]', says=says, fix=fix)
        (self.folder / "meg.idx").write_bytes(index())
        (self.folder / "meg.bin").write_bytes(struct.pack("<64i", *range(63), -5))
        self.refused_with('data.train=["meg.bin"]', says="token 63 is -5", fix="copy")
        (self.folder / "meg.bin").write_bytes(struct.pack("<64i", *range(63), 300))
        self.refused_with('data.train=["meg.bin"]', says="token 63 is 300", fix="301")
        (self.folder / "meg.bin").write_bytes(bytes(255))
        self.refused_with('data.train=["meg.bin"]', says="255 bytes, which is no whole number of int32", fix="copy both")
        (self.folder / "meg.bin").write_bytes(b"")
        self.refused_with('data.train=["meg.bin"]', says="its .bin is empty", fix="leave it out")
        self.refused_with('data.train=["meg.idx"]', says="meg.idx is a Megatron index", fix="name the .bin")
        (self.folder / "meg.bin").write_bytes(bytes(256))
        (self.folder / "meg.idx").unlink()
        self.refused_with('data.train=["meg.bin"]', says="meg.bin", fix="prepare.py")

    def test_epochs_of_a_blend(self):
        self.refused_with('data.train=[{"path": "train.bin", "weight": 1}, {"path": "val.bin", "weight": 1}]',
                          "training.epochs=1", "training.steps=null", says="training.epochs", fix="training.steps")

    def test_schedules_that_do_not_fit(self):
        self.refused_with("schedule.type=wsd", "schedule.decay_steps=2", "schedule.warmup_steps=1",
                          says="schedule.warmup_steps + schedule.decay_steps")

    def test_vocabulary_too_small_for_bytes(self):
        self.refused_with("model.vocab_size=200", "data.eot_token=null", says="model.vocab_size 200", fix="257")

    def test_samples_that_do_not_fit(self):
        self.refused_with("sample.every=1", 'sample.prompts=["0123456789"]', "sample.tokens=10",
                          says="sample", fix="at most 6")

    # ---- Run folders ----

    def test_a_run_that_is_there_already(self):
        self.refused_with("name=done", says="runs/done", fix="--resume auto")

    def test_resumed_as_something_else(self):
        for assignment, says in (("model.n_layers=2", "model.n_layers"), ("model.position=rope", "model.position"),
                                 ("model.d_ff=64", "model.d_ff"), ("seed=7", "seed")):
            with self.subTest(assignment):
                self.refused_with("name=done", assignment, "training.steps=4", arguments=["--resume", "auto"],
                                  says=says, fix="name")

    def copy_of_done(self, name):
        shutil.copytree(self.folder / "runs/done", self.folder / "runs" / name)
        return self.folder / "runs" / name / "checkpoints/step-00000002"

    def test_checkpoint_of_another_version(self):
        path = self.copy_of_done("version") / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        manifest["format_version"] = 99
        path.write_text(sealed(json.dumps(manifest, indent=2)))
        self.refused_with("name=version", arguments=["--resume", "auto"], says="version 99")

    def test_no_checkpoint_is_whole(self):
        for name, damage in (("no-manifest", lambda step: (step / "manifest.json").unlink()),
                             ("empty-manifest", lambda step: (step / "manifest.json").write_text("")),
                             ("no-weights", lambda step: next(step.glob("model-*")).unlink()),
                             ("one-bit", lambda step: flip_a_bit(next(step.glob("model-*")))),
                             ("manifest-changed", lambda step: flip_a_bit(step / "manifest.json")),
                             ("short-weights", lambda step: os.truncate(next(step.glob("model-*")), 100))):
            with self.subTest(name):
                damage(self.copy_of_done(name))
                self.refused_with(f"name={name}", arguments=["--resume", "auto"], says=f"runs/{name}", num_warnings=1)

    def test_run_folder_that_cannot_be(self):
        (self.folder / "file").write_text("")
        self.refused_with("run_dir=file", says="file", fix="run_dir")
        self.refused_with("run_dir=file/inner", says="file/inner", fix="run_dir")
        (self.folder / "half").mkdir()
        (self.folder / "half/checkpoints").write_text("")
        self.refused_with("run_dir=half", says="half", fix="run_dir")

    def test_run_folder_of_another_process(self):
        (self.folder / "owned").mkdir()
        with open(self.folder / "owned/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refused_with("run_dir=owned", says="another process")
