"""./train eval, generate and info, their help, and what ./bench refuses, as a user meets them. One small run on generated
text, CPU only.

Seen to catch: eval that stops at eval.tokens, a seed that is not used.
"""

import array
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import struct
import time
import unittest

from . import run, set_options, trainer_case
from .inputs import shard, temporary_folder
from .trainer_case import TRAIN

CONFIG = {**trainer_case.CONFIG, "eval": {"every": 15}, "checkpoint": {"every": 15}, "optimizer": {"lr": 3e-3},
          "training": {**trainer_case.CONFIG["training"], "steps": 30}}
CONFIG.pop("sample")


def read_shard(path):
    data = path.read_bytes()
    tokens = array.array("H")
    tokens.frombytes(data[1024:])
    return list(tokens)


class Tools(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        trainer_case.prepare_run(cls.folder, CONFIG)
        cls.val = sorted((cls.folder / "data").glob("val-*.bin"))
        cls.train = sorted((cls.folder / "data").glob("train-*.bin"))
        run(TRAIN, "--config", "config.json", cwd=cls.folder)
        # Shards without the meta.json that would name tokenizer and EOT.
        (cls.folder / "plain").mkdir()
        for path in [*cls.val, *cls.train]:
            shutil.copy(path, cls.folder / "plain")
        sets = ["name=ids", "data.tokenizer=null", "training.steps=1", "data.eot_token=null", "eval.tokens=64",
                'data.train=["plain/train-*.bin"]', 'data.val=["plain/val-*.bin"]']
        run(TRAIN, "--config", "config.json", *set_options(sets), cwd=cls.folder)
        cls.log = [json.loads(line) for line in (cls.folder / "runs/test/log.jsonl").read_text().splitlines()]

    def run_train(self, *arguments, stdin=b"", **options):
        return run(TRAIN, *arguments, cwd=self.folder, input=stdin, **options)

    def evaluate(self, *data, checkpoint="runs/test"):
        arguments = ["eval", "--checkpoint", checkpoint, "--json"]
        for glob in data:
            arguments += ["--data", glob]
        return json.loads(self.run_train(*arguments).stdout)

    def generate(self, *arguments, prompt="alpha ", **more):
        return self.run_train("generate", "--checkpoint", "runs/test", "--prompt", prompt, *arguments, **more)

    # ---- eval ----

    def test_eval_is_the_validation_loss_of_the_run(self):
        # Bit for bit: the same micro-batches. Threads change nothing.
        result = self.evaluate("data/val-*.bin")
        self.assertEqual(result["loss"], self.log[-1]["val_loss"])
        self.assertEqual(result["step"], 30)
        again = self.run_train("eval", "--checkpoint", "runs/test", "--data", "data/val-*.bin", "--json", threads=2)
        self.assertEqual(json.loads(again.stdout), result)
        older = self.evaluate("data/val-*.bin", checkpoint="runs/test/checkpoints/step-00000015")
        self.assertEqual(older["loss"], self.log[14]["val_loss"])
        self.assertLess(result["loss"], older["loss"])

    def test_eval_prints_one_line(self):
        result = self.run_train("eval", "--checkpoint", "runs/test", "--data", "data/val-*.bin")
        line = result.stdout.decode()
        self.assertRegex(line, r"\Aloss \d\.\d{5} \| perplexity \d+\.\d\d \| bits/byte \d\.\d\d \| targets \d+\n\Z")
        numbers = self.evaluate("data/val-*.bin")
        self.assertEqual(line.split()[1], f"{numbers['loss']:.5f}")
        self.assertEqual(line.split()[-1], str(numbers["targets"]))

    def test_eval_covers_every_target_of_all_files(self):
        files = self.val + self.train
        tokens = [token for path in files for token in read_shard(path)]
        # Every token is a target but the first of each document; every shard ends with EOT here.
        self.assertTrue(all(read_shard(path)[-1] == 256 for path in files))
        targets = len(tokens) - tokens.count(256)
        bytes_in_targets = targets - tokens.count(256)
        result = self.evaluate("data/val-*.bin", "data/train-*.bin")
        self.assertEqual(result["targets"], targets)
        self.assertGreater(len(tokens), 32)
        bits = result["loss"] * targets / 0.6931471805599453 / bytes_in_targets
        self.assertAlmostEqual(result["bits_per_byte"], bits, places=12)
        # The same documents in another shard have the same loss but for the last row's cut; the same file twice counts once.
        self.assertEqual(self.evaluate("data/val-*.bin", str(self.val[0])), self.evaluate("data/val-*.bin"))

    def test_eval_without_a_tokenizer_knows_no_bytes(self):
        result = self.evaluate("data/val-*.bin", checkpoint="runs/ids")
        self.assertIsNone(result["bits_per_byte"])
        # No EOT either: the shard is one document.
        self.assertEqual(result["targets"], len(read_shard(self.val[0])) - 1)

    def test_eval_of_raw_ids(self):
        """Seen to fail when the dtype is not passed on."""
        for dtype, code in (("uint16", "H"), ("uint32", "I")):
            raw = self.folder / f"val.{dtype}"
            raw.write_bytes(b"".join(array.array(code, read_shard(path)).tobytes() for path in self.val))
            command = ["eval", "--checkpoint", "runs/test", "--json", "--data", raw.name, "--format", "raw", "--dtype"]
            self.assertEqual(json.loads(self.run_train(*command, dtype).stdout), self.evaluate("data/val-*.bin"))

    def test_eval_while_the_run_goes_on(self):
        process = subprocess.Popen([TRAIN, "--config", "config.json", "--set", "name=busy", "--set", "checkpoint.every=1",
                                    "--set", "checkpoint.keep=1", "--set", "training.steps=100000", "--set", "data.val=[]"],
                                   cwd=self.folder, stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:
                if "committed" in line:
                    break
            # Until it has seen three checkpoints, each removed when the next was there; how fast they come is the disk's.
            steps = []
            while len(set(steps)) < 3:
                steps.append(self.evaluate("data/val-*.bin", checkpoint="runs/busy")["step"])
                self.assertIsNone(process.poll())
            self.assertEqual(steps, sorted(steps))
        finally:
            process.kill()
            process.communicate()

    def interrupted(self, *arguments, wait_for=b"device:"):
        process = subprocess.Popen([TRAIN, *arguments], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        seen = b""
        while wait_for not in seen:
            piece = os.read(process.stderr.fileno(), 4096)
            self.assertTrue(piece, seen)
            seen += piece
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate()
        self.assertEqual(process.returncode, 130, seen + error)
        return output

    def long_shard(self):
        path = self.folder / "long.bin"
        if not path.exists():
            path.write_bytes(shard([97, 98, 99, 256] * 2_000_000))
        return str(path)

    def test_ctrl_c_ends_eval_without_a_line(self):
        self.assertEqual(self.interrupted("eval", "--checkpoint", "runs/test", "--data", self.long_shard()), b"")

    # ---- generate ----

    def test_generate_stops_at_a_token(self):
        prompt, whole = b"alpha ", self.generate("--tokens", "50").stdout
        byte = max(whole[len(prompt):], key=lambda byte: (chr(byte).isalpha(), byte))
        stopped = self.generate("--tokens", "50", "--stop", chr(byte))
        self.assertEqual(stopped.stdout, whole[:whole.index(byte, len(prompt))])
        self.assertIn(b"the model ended the text", stopped.stderr)
        self.assertEqual(self.generate("--tokens", "50", "--stop", "~").stdout, whole)
        refused = self.generate("--stop", "two", code=2).stderr
        self.assertRegex(refused, rb"error: --stop two is 3 tokens of this model: name one")

    def test_generate_prints_prompt_and_text(self):
        result = self.generate("--tokens", "50")
        self.assertTrue(result.stdout.startswith(b"alpha "))
        self.assertGreater(len(result.stdout), len(b"alpha "))
        self.assertLessEqual(len(result.stdout), len(b"alpha ") + 50)
        self.assertIn(b"tokens/s", result.stderr)
        same = self.generate("--tokens", "50", threads=2)
        self.assertEqual(result.stdout, same.stdout)
        self.assertEqual(result.stdout, self.generate("--tokens", "50", "--seed", "1").stdout)
        self.assertNotEqual(result.stdout, self.generate("--tokens", "50", "--seed", "2").stdout)
        # Written piece by piece, the beginning does not depend on how long it goes on.
        self.assertTrue(result.stdout.startswith(self.generate("--tokens", "20").stdout))

    def test_generate_greedy_ignores_the_seed(self):
        greedy = self.generate("--temperature", "0").stdout
        for arguments in (["--temperature", "0", "--seed", "5"], ["--top-k", "1"], ["--top-p", "1e-9"]):
            self.assertEqual(self.generate(*arguments).stdout, greedy, arguments)

    def test_generate_reads_standard_input(self):
        prompt = bytes([0, 255, 10, 195, 40, 27]) + b"alpha\n"
        result = self.generate("--tokens", "10", prompt="-", stdin=prompt)
        self.assertTrue(result.stdout.startswith(prompt))
        self.assertEqual(self.generate("--tokens", "10", prompt="-", stdin=b"alpha ").stdout,
                         self.generate("--tokens", "10").stdout)

    def test_generate_takes_any_prompt_and_goes_beyond_the_context(self):
        for prompt in ("[a,b]", "-x", "--", "a" * 31, "a" * 32, "a" * 33, "a" * 1000, "gr\u00fc\u00df"):
            result = self.generate("--tokens", "100", prompt=prompt)
            self.assertTrue(result.stdout.startswith(prompt.encode()), prompt)
        long = self.generate("--tokens", "500", "--temperature", "2", "--top-k", "0", "--top-p", "1").stdout
        self.assertGreater(len(long), 0)
        self.assertEqual(self.generate("--tokens", "5", prompt="", ).returncode, 0)

    def open_terminal(self):
        try:
            return pty.openpty()
        except OSError as error:
            self.skipTest(f"no terminal can be opened here: {error}")

    def test_generate_on_a_terminal_shows_what_is_no_text(self):
        leader, follower = self.open_terminal()
        process = subprocess.Popen([TRAIN, "generate", "--checkpoint", "runs/test", "--prompt", "a\x1b[2Jb", "--tokens", "3"],
                                   cwd=self.folder, stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.PIPE)
        os.close(follower)
        process.communicate()
        output = self.read_all(leader)
        self.assertEqual(process.returncode, 0)
        self.assertTrue(output.startswith(rb"a\x1b[2Jb"), output)
        self.assertTrue(output.endswith(b"\n"), output)

    @staticmethod
    def read_all(descriptor):
        output = b""
        try:
            while select.select([descriptor], [], [], 5)[0]:
                piece = os.read(descriptor, 4096)
                if not piece:
                    break
                output += piece
        except OSError:  # EIO: the other end is closed
            pass
        os.close(descriptor)
        return output

    def test_ctrl_c_ends_generate(self):
        output = self.interrupted("generate", "--checkpoint", "runs/test", "--prompt", "alpha ", "--tokens", "1000000000",
                                  "--temperature", "0")
        self.assertTrue(output.startswith(b"alpha "))

    def test_a_reader_that_goes_away_is_no_error(self):
        process = subprocess.Popen([TRAIN, "generate", "--checkpoint", "runs/test", "--prompt", "alpha ", "--tokens",
                                    "1000000000", "--temperature", "0"],
                                   cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=False)
        self.assertEqual(os.read(process.stdout.fileno(), 6), b"alpha ")
        process.stdout.close()
        error = process.stderr.read()
        self.assertEqual(process.wait(), -signal.SIGPIPE)
        process.stderr.close()
        self.assertNotIn(b"error", error)

    # ---- progress ----

    def test_progress_bar_on_a_terminal_alone(self):
        leader, follower = self.open_terminal()
        process = subprocess.Popen([TRAIN, "eval", "--checkpoint", "runs/test", "--data", "data/train-*.bin"],
                                   cwd=self.folder, stdout=subprocess.PIPE, stderr=follower)
        os.close(follower)
        line = process.stdout.read().decode()
        process.stdout.close()
        self.assertEqual(process.wait(), 0)
        output = self.read_all(leader).decode()
        self.assertIn("\revaluating [", output)
        self.assertRegex(output, r"\r +\r\Z")  # nothing of it stays
        self.assertRegex(line, r"\Aloss [^\r]*\n\Z")
        quiet = self.run_train("eval", "--checkpoint", "runs/test", "--data", "data/train-*.bin")
        self.assertNotIn(b"\r", quiet.stderr)
        self.assertNotIn(b"evaluating", quiet.stderr)

    # ---- tokenize, info, help, bench ----

    def test_tokenize_bytes(self):
        text = bytes(range(256)) * 3
        tokens = self.run_train("tokenize", "--tokenizer", "bytes", stdin=text).stdout
        self.assertEqual([int(token) for token in tokens.split()], list(text))
        self.assertEqual(self.run_train("tokenize", "--tokenizer", "bytes", "--count", stdin=text).stdout, b"768\n")
        self.assertEqual(self.run_train("tokenize", "--tokenizer", "bytes").stdout, b"")

    def test_info(self):
        text = self.run_train("info").stdout.decode()
        info = json.loads(self.run_train("info", "--json").stdout)
        self.assertEqual(info["cuda"]["built"], os.environ.get("INGOT_HAS_CUDA", "0") == "1")
        for section in ("ingot", "cuda", "device", "cpu", "libraries"):
            self.assertIn(section, text)
        self.assertTrue(info["libraries"]["blas"] and info["libraries"]["cli11"])
        self.assertTrue(info["cuda"]["gpus"] or info["cuda"]["no_gpu_because"])
        self.assertEqual(json.loads(self.run_train("info", "--json", threads=3).stdout)["cpu"]["threads"], 3)

    def test_help_and_version(self):
        for command, options in (([], ["--config", "--set", "--resume", "--device", "--dry-run", "--profile", "eval", "generate",
                                        "tokenize", "info"]),
                                 (["eval"], ["--checkpoint", "--data", "--json", "--device"]),
                                 (["generate"], ["--prompt", "--tokens", "--temperature", "--top-k", "--top-p", "--seed"]),
                                 (["tokenize"], ["--tokenizer", "--count"]),
                                 (["data"], ["--config", "--row", "--rows", "--set"]),
                                 (["info"], ["--json"])):
            text = self.run_train(*command, "--help").stdout.decode()
            for option in options + ["--help", "--version", "Usage:", "Exit codes:", "README.md"]:
                self.assertIn(option, text)
            self.assertLessEqual(max(len(line) for line in text.splitlines()), 120)
            self.assertRegex(self.run_train(*command, "--version").stdout.decode(), r"\Aingot \d+\.\d+\.\d+\n\Z")

    def test_data_shows_the_rows_that_training_reads(self):
        """The bytes of row 3 in the order of the files, found in the shard itself. Seen to catch: a row too early."""
        shard = next(self.folder.glob("data/train-*.bin")).read_bytes()
        tokens = struct.unpack(f"<{len(shard) // 2 - 512}H", shard[1024:])[3 * 32:4 * 32]
        command = ["data", "--config", "config.json", "--set", "data.shuffle=false", "--row"]
        shown = self.run_train(*command, "3").stdout.decode()
        num_documents = 1 + sum(token == 256 for token in tokens[:-1])
        counted = f"{num_documents} document{'' if num_documents == 1 else 's'}"
        self.assertRegex(shown, rf"\Arow 3: 32 tokens, {counted}, \d+ targets?\ndocument 1: tokens 0 to ")
        text = "".join(line[4:] for line in shown.splitlines() if line.startswith("  | "))
        expected = "".join("<256>" if token == 256 else chr(token) for token in tokens if token != ord("\n"))
        self.assertEqual(text, expected)
        two = self.run_train(*command, "3", "--rows", "2").stdout.decode()
        self.assertTrue(two.startswith(shown) and "\nrow 4: " in two)

    def run_bench(self, *arguments, code=2):
        bench = pathlib.Path(TRAIN).resolve().parent / "bench"
        if not bench.exists():
            self.skipTest("bench is not built")
        return run(bench, *arguments, cwd=self.folder, text=True, code=code)

    def test_bench_step_refusals(self):
        config = ["--config", "config.json"]
        for arguments, text in (([], "--config"), (["--config", "nowhere.json"], "nowhere.json"),
                                ([*config, "--seconds", "0"], "--seconds must be above 0"),
                                ([*config, "--documents", "-1"], "--documents"),
                                ([*config, "--set", "training.steps=5", "--set", "model.layers=3"], "model.layers"),
                                ([*config, "--set", "training.device=cpu"], "training.device is cpu"),
                                ([*config, "--set", "training.device=auto", "--set", "data.train=[\"no.bin\"]"],
                                 "measures a GPU: ")):
            with self.subTest(arguments=arguments):
                self.assertIn(text, self.run_bench("step", *arguments).stderr)

    def test_bench_refuses_in_one_line(self):
        """A misspelt command or option is named, with what was probably meant. Seen to catch: CLI11's own two lines."""
        for arguments, text in (("stp", "unknown argument stp: did you mean step? see ./bench --help"),
                                ("", "A subcommand is required: see ./bench --help"),
                                ("step", "--config is required: see ./bench step --help"),
                                ("step --confg x.json",
                                 "unknown argument --confg: did you mean --config? see ./bench step --help"),
                                ("kernels --rows many", "Could not convert: --rows = many: see ./bench kernels --help"),
                                ("step --config nowhere.json",
                                 "cannot read the config nowhere.json: No such file or directory: check the path")):
            with self.subTest(arguments=arguments):
                result = self.run_bench(*arguments.split())
                self.assertEqual((result.stdout, result.stderr), ("", f"error: {text}\n"))
        self.assertEqual(self.run_bench("--version", code=0).stdout.split()[0], "ingot")

    def test_bench_attention_head_sizes(self):
        """Refused before a GPU is looked for, without the advice to use the CPU. Seen to catch: the check left out."""
        for sizes in ("48", "64,48", "-32"):
            with self.subTest(sizes=sizes):
                result = self.run_bench("attention", f"--head-dim={sizes}")
                self.assertEqual(result.stdout, "")
                size = sizes.split(",")[-1]
                self.assertEqual(result.stderr, f"error: --head-dim is {size}: use 32, 64, 96 or 128\n")

    def test_bench_attention_against(self):
        """Refused before a GPU is looked for. Seen to catch: either check left out."""
        for against, text in (("no-alibi", "error: --against no-alibi needs --alibi\n"),
                              ("flash", "error: --against is flash: use materialized, attention with a matrix of all "
                                        "pairs, simt, the kernel without tensor cores, or no-alibi, the same kernel without ALiBi\n")):
            with self.subTest(against=against):
                result = self.run_bench("attention", f"--against={against}")
                self.assertEqual((result.stdout, result.stderr), ("", text))

    def test_benches_without_a_gpu(self):
        """What measures a GPU alone says so, and names no option that it has not. Seen to catch: --device cpu advised
        by ./bench attention."""
        is_built = os.environ.get("INGOT_HAS_CUDA", "0") == "1"
        for command, text in (("attention", "./bench attention measures a GPU: "),
                              ("gemm", "./bench gemm measures a GPU: "), ("kernels", "use --device cpu")):
            with self.subTest(command=command):
                result = self.run_bench(command)
                self.assertEqual(result.stdout, "")
                self.assertEqual(result.stderr.count("\n"), 1)
                self.assertIn(text, result.stderr)
                if command != "kernels":
                    self.assertIn("on a machine with a GPU", result.stderr)
                    self.assertEqual("-DINGOT_CUDA=ON" in result.stderr, not is_built)
                    self.assertNotIn("--device", result.stderr)

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([TRAIN, "eval", "--checkpoint", "runs/test", "--data", "data/val-*.bin"],
                                    cwd=self.folder, stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 2)
        self.assertEqual(len(re.findall(b"error: cannot write to standard output", result.stderr)), 1)
