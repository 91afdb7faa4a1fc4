"""./train eval --hellaswag and eval.hellaswag, as a user meets them. One small run on generated text, CPU only.

The reference shares nothing with the code under test: the losses of an ending are the difference of two sums by
`./train eval --data`, over a document with it and over its context alone.

Seen to catch: the loss of the token after the right one; a mean over all tokens; the sum taken for the mean; a
context cut at its end; a damaged file read as a shorter one; an evaluation at the end alone; an accuracy that a resumed
run loses.
"""

import json
import random
import re
import signal
import struct
import subprocess
import sys

from .trainer_case import ROOT, TRAIN, TrainerCase

EVERY = ["eval.hellaswag=hs.jsonl"]


def llmc_file(examples, count=None, magic=20240522, version=1):
    """The binary format of llm.c. examples: (context, endings, label), as lists of ids."""
    stream = []
    for index, (context, endings, label) in enumerate(examples):
        body = [index, label, len(endings), len(context), *context]
        for ending in endings:
            body += [len(ending), *ending]
        stream += [65535, 2 * (len(body) + 2), *body]
    header = [magic, version, len(examples) if count is None else count, 0]
    return struct.pack("<256i", *header, *[0] * 252) + struct.pack(f"<{len(stream)}H", *stream)


def jsonl(examples):
    """The same examples, which hold ASCII bytes, each ending with a space at its beginning."""
    lines = [{"ctx": bytes(context).decode(), "endings": [bytes(ending[1:]).decode() for ending in endings],
              "label": label} for context, endings, label in examples]
    return "".join(json.dumps(line) + "\n" for line in lines)


def random_examples(count, seed=3):
    chance = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "(", ")", "= 1", "x"]
    examples = []
    for _ in range(count):
        context = " ".join(chance.choice(words) for _ in range(2))[:14]
        endings = [" " + " ".join(chance.choice(words) for _ in range(length))[:16] for length in (1, 2, 3, 4)]
        examples.append((list(context.encode()), [list(ending.encode()) for ending in endings], 0))
    return examples


class HellaSwag(TrainerCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.examples = random_examples(8)
        (cls.folder / "hs.jsonl").write_text(jsonl(cls.examples))

    def evaluate(self, *arguments, run="reference", code=0):
        self.reference()
        return self.train("eval", "--checkpoint", f"runs/{run}", *arguments, code=code)

    def accuracy(self, name, content, **options):
        path = self.folder / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return json.loads(self.evaluate("--hellaswag", name, "--json", **options).stdout)

    def loss_sum(self, document):
        """Over all tokens but the first. Megatron's index says where documents end, without an EOT that would count;
        what fills the row are documents of one token."""
        documents = [len(document)] + [1] * 40
        ids = document + [0] * 40
        (self.folder / "one.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
        places = [2 * sum(documents[:number]) for number in range(len(documents))]
        count = len(documents)
        (self.folder / "one.idx").write_bytes(
            b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, count, count + 1) +
            struct.pack(f"<{count}i{count}q{count + 1}q", *documents, *places, *range(count + 1)))
        result = json.loads(self.evaluate("--data", "one.bin", "--json").stdout)
        self.assertEqual(result["targets"], len(document) - 1)
        return result["loss"] * result["targets"]

    def test_against_the_losses_of_single_documents(self):
        by_mean, by_sum = [], []
        for context, endings, _ in self.examples:
            before = self.loss_sum(context)
            sums = [self.loss_sum(context + ending) - before for ending in endings]
            means = [total / len(ending) for total, ending in zip(sums, endings)]
            for scores in (sums, means):  # what decides is no matter of rounding
                lowest, second = sorted(scores)[:2]
                self.assertGreater(second - lowest, 1e-4)
            by_mean.append(means.index(min(means)))
            by_sum.append(sums.index(min(sums)))
        self.assertNotEqual(by_mean, by_sum)
        # Right by the mean, right by the sum, and wrong by both.
        agreed = sum(one == other for one, other in zip(by_mean, by_sum)) / len(by_mean)
        wrong = [next(c for c in range(4) if c not in pair) for pair in zip(by_mean, by_sum)]
        for labels, mean, acc in ((by_mean, 1.0, agreed), (by_sum, agreed, 1.0), (wrong, 0.0, 0.0)):
            labelled = [(context, endings, label) for (context, endings, _), label in zip(self.examples, labels)]
            for name, content in (("hs.bin", llmc_file(labelled)), ("label.jsonl", jsonl(labelled))):
                result = self.accuracy(name, content)
                self.assertEqual((result["hellaswag"], result["acc"], result["examples"]), (mean, acc, 8))
        self.assertEqual(self.accuracy("hs.bin", llmc_file(labelled[:1]))["examples"], 1)

    def test_prints_one_line(self):
        line = self.evaluate("--hellaswag", "hs.jsonl").stdout
        self.assertRegex(line, r"\Ahellaswag [01]\.\d{4} \| acc [01]\.\d{4} \| 8 examples\n\Z")
        numbers = json.loads(self.evaluate("--hellaswag", "hs.jsonl", "--json").stdout)
        self.assertEqual(line.split()[1], f"{numbers['hellaswag']:.4f}")
        self.assertEqual(line.split()[4], f"{numbers['acc']:.4f}")
        self.assertEqual(list(numbers), ["hellaswag", "acc", "examples", "checkpoint", "step"])

    def test_what_was_learnt_is_right(self):
        """One sentence, learnt by heart: its end is the right one wherever it stands among the endings."""
        text = self.folder / "heart"
        text.mkdir()
        (text / "a.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 40)
        subprocess.run([sys.executable, str(ROOT / "scripts/prepare.py"), "--input", str(text), "--val-fraction", "0",
                        "--output", str(self.folder / "by-heart")], check=True, capture_output=True)
        endings = ["on the mat", "on the hat of a man", "in a tree", "mat the on"]
        lines = []
        for label in range(4):
            order = endings[1:]
            order.insert(label, endings[0])
            lines.append(json.dumps({"ctx_a": "the cat", "ctx_b": "sat", "endings": order, "label": str(label)}))
        (self.folder / "heart.jsonl").write_text("\ufeff" + "\r\n\n".join(lines))
        result = self.run_train("heart", sets=['data.train=["by-heart/*.bin"]', "data.val=[]", "sample.every=0",
                                               "training.steps=60", "optimizer.lr=1e-2", "eval.every=0",
                                               "eval.hellaswag=heart.jsonl"])
        log = self.log("heart")
        self.assertEqual([entry["hellaswag"] for entry in log], [None] * 59 + [1.0])
        self.assertRegex(result.stdout, r"\nstep +60/60 \| loss [0-9.]+ \| hellaswag 1\.0000 \| norm ")
        self.assertIn("hellaswag: heart.jsonl, 4 examples\n", result.stdout)

    def test_a_long_context_loses_its_beginning(self):
        """T is 32: of 60 bytes of context and an ending of n the model reads the last 32 - (n - 1) and n - 1."""
        chance = random.Random(1)
        ending = list(b" x = 1")
        for _ in range(3):
            long = [chance.randrange(97, 123) for _ in range(60)]
            other = [list(b" gamma"), ending][:: chance.choice((1, -1))]
            cut = self.accuracy("cut.bin", llmc_file([(long[-27:], other, 0)] * 2))
            whole = self.accuracy("long.bin", llmc_file([(long, other, 0)] * 2))
            self.assertEqual({**cut, "examples": 2}, whole)
        said = self.evaluate("--hellaswag", "long.bin").stderr
        self.assertIn("long.bin, 2 examples; 4 endings and the context are longer than model.context_length 32", said)
        self.assertNotIn("longer", self.evaluate("--hellaswag", "cut.bin").stderr)

    def test_in_the_loop(self):
        """The weights are those of a run without it, and a run that was killed between logs the same."""
        reference = self.reference()
        self.run_train("swag", sets=EVERY)
        self.assert_same_tensors(reference, "swag")
        log = self.log("swag")
        self.assertEqual([entry["step"] for entry in log if entry["hellaswag"] is not None], [4, 8, 12])
        self.assertTrue(all(entry["hellaswag"] is None for entry in self.log(reference)))
        at_end = json.loads(self.evaluate("--hellaswag", "hs.jsonl", "--json", run="swag").stdout)
        self.assertEqual(log[-1]["hellaswag"], at_end["hellaswag"])
        for asynchronous in ("true", "false"):
            sets, name = [*EVERY, f"checkpoint.async={asynchronous}", "checkpoint.every=1"], f"killed-{asynchronous}"
            code, _, _ = self.run_with(name, lambda process: process.send_signal(signal.SIGKILL), sets=sets, step=5)
            self.assertEqual(code, -signal.SIGKILL)
            self.run_train(name, "--resume", "auto", sets=sets)
            self.assert_same_run("swag", name)

    def test_of_token_ids_without_a_tokenizer(self):
        sets = ["data.tokenizer=null", "sample.every=0", "training.steps=1", "eval.tokens=32",
                'data.train=["plain.bin"]', "data.val=[]"]
        (self.folder / "plain.bin").write_bytes(next(self.folder.glob("data/train-*.bin")).read_bytes())
        (self.folder / "ids.bin").write_bytes(llmc_file(self.examples))
        self.run_train("ids", sets=[*sets, "eval.hellaswag=ids.bin"])
        self.assertIsNotNone(self.log("ids")[0]["hellaswag"])
        said = self.run_train("text", sets=[*sets, *EVERY], code=2).stderr
        self.assertIn("eval.hellaswag: hs.jsonl is text, and there is no tokenizer", said)

    def test_refusals(self):
        good = {"ctx": "a", "endings": ["b", "c"], "label": 1}
        whole = llmc_file(self.examples)
        cases = [
            ("cut.bin", whole[:-1], "example 7 is cut short"), ("head.bin", whole[:500], "no whole header"),
            ("longer.bin", whole + b"\0\0", "is longer than its 8 examples"),
            ("more.bin", llmc_file(self.examples, count=9), "example 8 is cut short"),
            ("fewer.bin", llmc_file(self.examples, count=7), "is longer than its 7"),
            ("none.bin", llmc_file([], count=0), "holds 0 examples"), ("version.bin", llmc_file(self.examples, version=2),
                                                                        "version 2"),
            ("size.bin", whole[:1026] + b"\x08\0" + whole[1028:], "and says 8"),
            ("label.bin", llmc_file([([1], [[2], [3]], 2)]), "of which number 2 is right"),
            ("one.bin", llmc_file([([1], [[2]], 0)]), "has 1 endings"),
            ("empty.bin", llmc_file([([1], [[], [3]], 0)]), "an empty ending"),
            ("bare.bin", llmc_file([([], [[2], [3]], 0)]), "an empty context"),
            ("id.bin", llmc_file([([1], [[2], [257]], 0)]), "the token 257, but model.vocab_size is 257"),
            ("wide.bin", llmc_file([([1], [[2], [3] * 33], 0)]), "an ending of 33 tokens"),
            ("magic.bin", llmc_file(self.examples, magic=20240520), "neither JSONL nor has it llm.c's magic number"),
            ("nothing", b"", "neither JSONL"), ("text.txt", "hello", "neither JSONL"),
            ("a.jsonl", "{", "line 1 of a.jsonl"), ("b.jsonl", json.dumps(good) + "\n[]", "line 2 of b.jsonl"),
            ("c.jsonl", json.dumps({**good, "label": 2}), "label is 2"), ("d.jsonl", '{"ctx": "a"}', "endings must be"),
            ("e.jsonl", json.dumps({**good, "label": ""}), "use the validation split"),
            ("f.jsonl", '{"ctx": "a", "endings": ["b", "c"]}', "has no label"),
            ("g.jsonl", json.dumps({**good, "ctx": ""}), "an empty context"),
            ("h.jsonl", json.dumps({**good, "ctx": 1}), "ctx is 1, it must be a string"),
            ("i.jsonl", json.dumps({**good, "endings": ["a", 1]}), "an ending is 1"),
            ("j.jsonl", json.dumps({**good, "endings": ["a"]}), "2 to 64"),
            ("k.jsonl", '{"text": "a"}', 'has no "ctx"'), ("l.jsonl", "{" * 100_000, "line 1 of l.jsonl"),
            ("m.jsonl", json.dumps({**good, "endings": ["b", "c" * 40]}), "an ending of 41 tokens"),
        ]
        for name, content, says in cases:
            with self.subTest(name):
                path = self.folder / name
                path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
                result = self.evaluate("--hellaswag", name, code=2)
                self.assertRegex(result.stderr, r"\Aerror: [^\n]*\n\Z")
                self.assertIn(says, result.stderr)
                self.assertEqual(result.stdout, "")
        for arguments, says in ((["--hellaswag", "hs.jsonl", "--data", "x"], "--hellaswag and --data"),
                                (["--hellaswag", "hs.jsonl", "--format", "raw"], "--hellaswag and --format"),
                                (["--hellaswag", "nowhere.jsonl"], "nowhere.jsonl"), (["--hellaswag", ""], "empty"),
                                (["--hellaswag", "data"], "data is not a regular file")):
            self.assertIn(says, self.evaluate(*arguments, code=2).stderr)
        # Before the first step, and in the plan.
        for assignment, says in (("eval.hellaswag=nowhere.jsonl", "nowhere.jsonl"), ("eval.hellaswag=c.jsonl", "c.jsonl"),
                                 ('eval.hellaswag=""', "eval.hellaswag is empty"), ("eval.hellaswag=3", "a string")):
            self.assertIn(says, self.run_train("refused", sets=[assignment], code=2).stderr)
        self.assertFalse((self.run_folder("refused") / "log.jsonl").exists())
        self.assertIn("a run would stop here: cannot open nowhere.jsonl",
                      self.run_train("refused", "--dry-run", sets=["eval.hellaswag=nowhere.jsonl"]).stdout)

    def test_stopped_by_a_signal(self):
        (self.folder / "many.bin").write_bytes(llmc_file(random_examples(8) * 4000))
        self.reference()
        process = subprocess.Popen([TRAIN, "eval", "--checkpoint", "runs/reference", "--hellaswag", "many.bin"],
                                   cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in process.stderr:
            if line.startswith("device:"):
                break
        process.send_signal(signal.SIGTERM)
        output, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, output), (128 + signal.SIGTERM, ""), error)
        self.assertTrue(re.search("stopped by signal 15: no result", error), error)
