"""./train export as a user starts it: what is written, what is refused, and what is left of one that is stopped.

Seen to catch: an output that is looked at only after the checkpoint was read, a draft that stays after Ctrl-C or a full
disk, folders above the output that stay, a header that gives the checkpoint's own type.
"""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
import unittest

from .trainer_case import ROOT, TRAIN, TrainerCase

DTYPES = {"fp32": ("F32", 4), "bf16": ("BF16", 2), "fp16": ("F16", 2)}


def read_safetensors(path):
    """The header, and the bytes of each tensor."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    metadata = header.pop("__metadata__")
    end = 0
    for entry in header.values():  # without gaps, in order
        assert entry["data_offsets"][0] == end, entry
        end = entry["data_offsets"][1]
    assert end == len(data)
    return metadata, header, {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


class Export(TrainerCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_train(cls(), "small", sets=["training.steps=2", "sample.every=0"])
        cls.checkpoint = cls.folder / "runs/small"

    def export(self, *arguments, code=0, output="out", checkpoint="runs/small", **options):
        result = self.train("export", "--checkpoint", checkpoint, "--format", "hf", "--output", output, *arguments,
                            code=code, **options)
        self.assertEqual(result.stdout, "")
        return result.stderr

    def entries(self):
        return sorted(path.name for path in self.folder.iterdir())

    def refused(self, *says, code=2, **options):
        """One line that says so, and nothing is changed."""
        before = self.entries()
        error = self.export(code=code, **options)
        line = error.splitlines()[-1]
        self.assertTrue(line.startswith("error: "), error)
        for text in says:
            self.assertIn(text, line)
        self.assertEqual(self.entries(), before)

    def test_what_is_written(self):
        source = next((self.checkpoint / "checkpoints").glob("step-*/model-00000-of-00001.safetensors"))
        _, ours, weights = read_safetensors(source)
        for dtype, (name, size) in DTYPES.items():
            with self.subTest(dtype):
                error = self.export("--dtype", dtype, output=f"made/{dtype}")
                folder = self.folder / "made" / dtype
                self.assertEqual({path.name for path in folder.iterdir()},
                                 {"config.json", "generation_config.json", "model.safetensors", "modeling_ingot.py",
                                  "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"})
                metadata, header, data = read_safetensors(folder / "model.safetensors")
                self.assertEqual(metadata, {"format": "pt"})
                self.assertEqual({key: entry["shape"] for key, entry in header.items()},
                                 {key: entry["shape"] for key, entry in ours.items()})
                for key, entry in header.items():
                    self.assertEqual(entry["dtype"], name)
                    self.assertEqual(len(data[key]) * 4, len(weights[key]) * size)
                if dtype == "fp32":
                    self.assertTrue(data == weights, "fp32 keeps every bit")
                self.assertIn(f"wrote made/{dtype}: IngotForCausalLM", error)
                self.assertIn("trust_remote_code=True", error)
        self.export(output="made/again", checkpoint="runs/small/checkpoints/step-00000002")  # bf16 is the default
        for path in (self.folder / "made/bf16").iterdir():
            self.assertTrue(path.read_bytes() == (self.folder / "made/again" / path.name).read_bytes(), path.name)

    def test_the_moments_are_not_read(self):
        """They are two thirds of a checkpoint. The weights are read whole: a changed byte is found."""
        copy = self.folder / "runs/copy"
        shutil.copytree(self.checkpoint / "checkpoints/step-00000002", copy)
        (copy / "optimizer-00000-of-00001.safetensors").unlink()
        self.export(output="from-copy", checkpoint="runs/copy")
        model = copy / "model-00000-of-00001.safetensors"
        raw = bytearray(model.read_bytes())
        raw[-1] ^= 1
        model.write_bytes(raw)
        self.refused("model-00000-of-00001.safetensors", checkpoint="runs/copy")

    def test_the_modeling_file_is_ours_to_the_byte(self):
        self.export(output="to-read")
        self.assertEqual((self.folder / "to-read/modeling_ingot.py").read_bytes(),
                         (ROOT / "src/checkpoint/modeling_ingot.py").read_bytes())

    def test_without_a_tokenizer(self):
        bare = self.folder / "bare"  # without the meta.json that names the tokenizer
        bare.mkdir()
        for path in (self.folder / "data").glob("*.bin"):
            (bare / path.name).write_bytes(path.read_bytes())
        self.run_train("plain", sets=["training.steps=1", "sample.every=0", "data.tokenizer=null",
                                      "data.eot_token=null", "data.train=[\"bare/train-*.bin\"]", "data.val=[]"])
        error = self.export(output="plain", checkpoint="runs/plain")
        self.assertIn("has no tokenizer", error)
        self.assertEqual({path.name for path in (self.folder / "plain").iterdir()},
                         {"config.json", "generation_config.json", "model.safetensors", "modeling_ingot.py"})
        self.assertIsNone(json.loads((self.folder / "plain/config.json").read_text())["eos_token_id"])

    def test_refused(self):
        (self.folder / "taken").mkdir(exist_ok=True)
        self.refused("taken is there already", output="taken")
        self.refused("taken/ is there already", output="taken/")
        self.refused("config.json is there already", output="config.json")
        # Before the checkpoint is looked at, which may take long.
        self.refused("taken is there already", output="taken", checkpoint="nowhere")
        self.refused("there is no checkpoint nowhere", checkpoint="nowhere")
        self.refused("cannot create the folder config.json/x", output="config.json/x/out")
        self.refused("cannot create the folder /proc/x", output="/proc/x/out")
        self.refused("name too long", output="new/" + "x" * 300)
        self.refused("--output", output="")

    @unittest.skipIf(os.getuid() == 0, "root may write anywhere")
    def test_no_permission(self):
        closed = self.folder / "closed"
        closed.mkdir(mode=0o500)
        self.refused("Permission denied", output="closed/out")
        closed.rmdir()

    def test_a_full_disk_leaves_nothing(self):
        """A limit of a file's size stands for it: the same failed write."""
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        self.refused("cannot write", "File too large", "then run it again", code=5, output="new/deep/out",
                     preexec_fn=limit)

    def test_ctrl_c_leaves_nothing(self):
        self.run_train("large", sets=["training.steps=1", "sample.every=0", "model.d_model=256",
                                      "model.vocab_size=60000", "model.n_layers=1"])
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            for _ in range(10):  # unless it was done before it was seen
                process = subprocess.Popen([TRAIN, "export", "--checkpoint", "runs/large", "--format", "hf", "--dtype",
                                            "fp32", "--output", "stopped/out"], cwd=self.folder, text=True,
                                           stderr=subprocess.PIPE)
                parent = self.folder / "stopped"
                while process.poll() is None and not (parent.exists() and list(parent.iterdir())):
                    time.sleep(0.0005)
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.02)
                was_early = not (parent / "out").exists()
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
                error = process.communicate(timeout=60)[1]
                if was_early and process.returncode != 0:
                    break
                subprocess.run(["rm", "-r", str(parent)], check=True)
            self.assertEqual(process.returncode, code, error)
            self.assertIn("nothing was written", error)
            self.assertFalse(parent.exists())
