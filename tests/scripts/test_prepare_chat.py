"""prepare.py --chat against transformers' own apply_chat_template and its mask of the assistant's tokens; what is left
out, counted and named; and templates that were made to do harm.

Seen to catch: the header learnt where there is no generation prompt; the line break after the end of turn learnt; the
end of turn not learnt; offsets without the post-processor; white space that a template strips; special tokens of a
message taken for text; a document that ends with every answer (Mistral); a template without its bounds.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from . import TRAIN, run
from .chat_kinds import KINDS, MAKE_TOKENIZER, plain, random_chats
from .prepare_case import PrepareTest, needs, python_with, read_shard

NUM_CHATS = 100

# Writes a folder for each kind: the tokenizer with its template, and what transformers makes of the chats.
REFERENCE = MAKE_TOKENIZER + r'''
import sys
given = json.load(sys.stdin)
if given["reference"]:
    from transformers import PreTrainedTokenizerFast
for name, kind in given["kinds"].items():
    folder = os.path.join(given["folder"], name)
    texts = [message["content"] for chat in kind["chats"] for message in chat]
    make(kind["special"], kind["split"], folder, kind["plain"], texts)
    if given["reference"]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        found = [tokenizer.apply_chat_template(chat, chat_template=kind["template"], return_dict=True,
                                               return_assistant_tokens_mask=True) for chat in kind["chats"]]
        plain = [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in kind["chats"]]
        assert plain == [chat["input_ids"] for chat in found], name
        json.dump([[chat["input_ids"], chat["assistant_masks"]] for chat in found],
                  open(os.path.join(folder, "expected.json"), "w"))
'''


def lines(chats: list, **more: object) -> bytes:
    return b"".join(json.dumps({"messages": chat, **more}).encode() + b"\n" for chat in chats)


class Chat(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        self.python = python_with("jinja2", "tokenizers")

    def make(self, kinds: dict, reference: bool = False) -> None:
        """kinds: name -> (special tokens, split, template, chats)."""
        described = {name: {"special": special, "split": split, "plain": plain(template), "template": template,
                            "chats": chats} for name, (special, split, template, chats) in kinds.items()}
        python = python_with("transformers", "jinja2", "tokenizers") if reference else self.python
        made = subprocess.run([python, "-c", REFERENCE], text=True, capture_output=True, input=json.dumps(
            {"folder": str(self.root), "kinds": described, "reference": reference}),
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        self.assertEqual(made.returncode, 0, made.stderr)

    def chat(self, tokenizer: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
        return self.succeed("--chat", "--tokenizer", tokenizer, "--val-fraction", 0, "--overwrite", *arguments,
                            python=self.python, **options)

    def tokens(self) -> tuple[list[int], list[int]]:
        _, ids = read_shard(self.out / "train-00000.bin")
        masks = list((self.out / "train-00000.mask").read_bytes())
        self.assertEqual(len(ids), len(masks))
        return ids, masks

    def expected_documents(self, expected: list) -> tuple[list[int], list[int]]:
        """transformers' tokens as documents: each with the end-of-text token at its side."""
        meta = self.meta()
        eot, ids, masks = meta["eot_token"], [], []
        for chat, mask in expected:
            if meta["eot"] == "start":
                self.assertEqual(chat[0], eot)
            elif chat[-1] != eot:
                chat, mask = [*chat, eot], [*mask, 0]
            ids += chat
            masks += mask
        return ids, masks

    @needs("transformers", "jinja2", "tokenizers")
    def test_equal_to_transformers(self) -> None:
        chats = {kind: random_chats(NUM_CHATS, kind) for kind in KINDS}
        self.make({kind: (*KINDS[kind], chats[kind]) for kind in KINDS}, reference=True)
        for kind in KINDS:
            self.write("chats.jsonl", lines(chats[kind]))
            folder = self.root / kind
            expected = json.loads((folder / "expected.json").read_text())
            tagged = self.root / "tagged.jinja"
            tagged.write_text(KINDS[kind][2])
            for arguments in ((), ("--chat-template", tagged)):
                with self.subTest(kind=kind, arguments=arguments):
                    said = self.chat(folder / "tokenizer.json", *arguments).stdout
                    self.assertIn(f"train:   {NUM_CHATS} documents", said)
                    ids, masks = self.expected_documents(expected)
                    found, found_masks = self.tokens()
                    self.assertTrue(found == ids, "other ids")
                    wrong = [place for place, pair in enumerate(zip(found_masks, masks)) if pair[0] != pair[1]]
                    around = [(ids[i], masks[i], found_masks[i]) for i in range(wrong[0] - 8, wrong[0] + 8)] if wrong else []
                    self.assertEqual(len(wrong), 0, around)
                    self.assertGreater(sum(masks), NUM_CHATS)
        self.assertEqual(self.meta()["mask"], True)

    def of_kind(self, kind: str, chats: list, template: str = "") -> Path:
        """The tokenizer.json of a kind, with another template if one is given; and the chats as input."""
        special, split, own = KINDS[kind]
        self.make({kind: (special, split, template or own, random_chats(8, kind))})
        self.write("chats.jsonl", lines(chats))
        return self.root / kind / "tokenizer.json"

    def decoded(self, tokenizer: Path) -> list[tuple[str, str]]:
        """The text of each document, and of what is learnt of it."""
        code = ("import json, sys, tokenizers; tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])\n"
                "print(json.dumps([tokenizer.decode(ids, skip_special_tokens=False) for ids in json.load(sys.stdin)]))")
        ids, masks = self.tokens()
        ends = [place for place, token in enumerate(ids) if token == self.meta()["eot_token"]]
        parts = []
        for begin, end in zip([0, *[end + 1 for end in ends]], [end + 1 for end in ends]):
            parts += [ids[begin:end], [token for token, mask in zip(ids[begin:end], masks[begin:end]) if mask]]
        texts = json.loads(subprocess.run([self.python, "-c", code, str(tokenizer)], text=True, check=True,
                                          capture_output=True, input=json.dumps(parts)).stdout)
        return list(zip(texts[::2], texts[1::2]))

    @needs("jinja2", "tokenizers")
    def test_what_is_left_out_is_counted_and_named(self) -> None:
        user, assistant = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}
        chats = [[user, assistant], [user], [assistant, user], [user, assistant] * 30, [], [user, user, assistant],
                 [user, {**assistant, "content": "a <s> b"}], [user], [user], [user], None]
        tokenizer = self.of_kind("mistral", chats)
        said = self.chat(tokenizer, "--context", 100).stdout
        path = self.text / "chats.jsonl"
        self.assertIn("train:   1 document,", said)
        for line in (
                "skipped: 2 empty, 1 longer than the context, 2 refused by the chat template, "
                "1 with the end-of-text token inside, 4 without an answer of the assistant\n",
                f"         empty: such as line 5 of {path}, line 11 of {path}\n",
                f"         refused by the chat template: such as line 3 of {path} (Conversation roles must alternate "
                f"user/assistant/user/assistant/...), line 6 of {path} (",
                f"         without an answer of the assistant: such as line 2 of {path}, line 8 of {path}, "
                f"line 9 of {path}\n",
                f"         with the end-of-text token inside: such as line 7 of {path}\n",
                f"         longer than the context: such as line 4 of {path} ("):
            self.assertIn(line, said)
        # The limit of the tokenizer_config.json, and none.
        config = tokenizer.parent / "tokenizer_config.json"
        described = json.loads(config.read_text())
        for limit, longer in ((100, True), (10**30, False), (None, False)):
            config.write_text(json.dumps({**described, "model_max_length": limit}))
            self.assertEqual("longer than the context" in self.chat(tokenizer).stdout, longer, limit)
        self.write("chats.jsonl", lines([[user], [assistant]]))
        self.assert_error(self.run_on_text("--chat", "--tokenizer", tokenizer, "--overwrite", python=self.python),
                          "no documents in the input (skipped: 1 refused by the chat template, such as line 2")

    @needs("jinja2", "tokenizers")
    def test_end_of_text(self) -> None:
        """Learnt only where no token of its own ends the last answer."""
        chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "it is"}]
        tokenizer = self.of_kind("chatml", [chat])
        self.chat(tokenizer)
        self.assertEqual(self.decoded(tokenizer), [
            ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nit is<|im_end|>\n<|endoftext|>", "it is<|im_end|>")])
        self.assertEqual(self.meta()["eot"], "end")
        bare = self.root / "bare.jinja"
        bare.write_text("{% for m in messages %}{{ m.role + ': ' + m.content }}{% if not loop.last %}{{ '\n' }}{% endif %}"
                        "{% endfor %}{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}")
        self.chat(tokenizer, "--chat-template", bare)
        self.assertEqual(self.decoded(tokenizer)[0][0], "user: Hello\nassistant: it is<|endoftext|>")
        self.assertIn(self.decoded(tokenizer)[0][1], ("it is<|endoftext|>", " it is<|endoftext|>"))
        # Where it can only stand at the beginning; and another one by name.
        tokenizer = self.of_kind("mistral", [chat * 2])
        self.assertIn("<s> begins a document", self.chat(tokenizer).stdout)
        self.assertEqual((self.meta()["eot_token"], self.meta()["eot"]), (1, "start"))
        named = self.run_on_text("--chat", "--tokenizer", tokenizer, "--eot-token", "</s>", out=self.root / "other",
                                 python=self.python)
        self.assertIn("puts </s> inside a conversation", named.stderr)

    @needs("jinja2", "tokenizers")
    def test_messages_of_all_kinds(self) -> None:
        """Parts of a content, tool calls, reasoning under other names, null, and messages as JSON text."""
        template = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content is defined %}"
                    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{% if m.content is string %}"
                    "{{ m.content }}{% elif m.content is defined %}{% for part in m.content %}{{ part.text }}{% endfor %}"
                    "{% endif %}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
                    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
                    "{% if tools %}{{ tools | length }}{% endif %}")
        ask, call = {"role": "user", "content": "Hello"}, {"function": {"name": "f", "arguments": {"x": "ä"}}}
        chats = [
            [ask, {"role": "assistant", "content": [{"type": "text", "text": "it "}, {"type": "text", "text": "is"}]}],
            [ask, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "4"},
             {"role": "assistant", "content": "is", "tool_calls": None}],
            [ask, {"role": "assistant", "content": "is", "tool_calls": [call], "reasoning": "what"}],
            [ask, {"role": "assistant", "content": ""}]]
        tokenizer = self.of_kind("qwen3", chats, template)
        self.write("text.jsonl", json.dumps({"messages": json.dumps(chats[0]), "tools": "[{}, {}]"}).encode())
        self.chat(tokenizer)
        call_text = '{"name": "f", "arguments": {"x": "ä"}}'
        self.assertEqual([learnt for _, learnt in self.decoded(tokenizer)], [
            "it is<|im_end|>", f"{call_text}<|im_end|>is<|im_end|>", f"<think>what</think>is{call_text}<|im_end|>",
            "<|im_end|>", "it is<|im_end|>"])
        self.assertTrue(self.decoded(tokenizer)[-1][0].endswith("2<|endoftext|>"))

    @needs("jinja2", "tokenizers", "pyarrow")
    def test_parquet(self) -> None:
        chats = random_chats(30, "chatml")
        tokenizer = self.of_kind("chatml", chats)
        self.chat(tokenizer)
        expected = self.tokens()
        python = python_with("jinja2", "tokenizers", "pyarrow")
        (self.text / "chats.jsonl").unlink()
        code = ("import json, sys, pyarrow as pa, pyarrow.parquet as pq; chats = json.load(sys.stdin)\n"
                "columns = {'messages': chats} if sys.argv[2] == 'list' else {'messages': [json.dumps(c) for c in chats]}\n"
                "pq.write_table(pa.table(columns), sys.argv[1], row_group_size=7)")
        for kind in ("list", "text"):
            subprocess.run([python, "-c", code, str(self.text / "chats.parquet"), kind], input=json.dumps(chats),
                           text=True, check=True)
            self.python = python
            self.chat(tokenizer)
            self.assertTrue(self.tokens() == expected, kind)

    @needs("jinja2", "tokenizers")
    def test_stopped_and_resumed(self) -> None:
        """The same bytes in small units, with several processes, and after a stop: also of a template with the time."""
        template = KINDS["chatml"][2].replace("{% for message in messages %}", "{{ strftime_now('%H:%M:%S.%f') }}"
                                              "{% for message in messages %}", 1)
        tokenizer = self.of_kind("chatml", random_chats(40, "chatml"), template)
        arguments = ["--chat", "--tokenizer", tokenizer, "--processes", 2]
        stopped = self.in_units(*arguments, unit=300, at=3, action=15, python=self.python)
        self.assertEqual(stopped.returncode, 128 + 15, stopped.stderr)
        journal = [json.loads(line) for line in (self.root / "data/out.partial/journal.jsonl").read_text().splitlines()]
        now = journal[0]["now"]
        time.sleep(0.01)
        resumed = self.done_in_units(*arguments, unit=300, python=self.python)
        self.assertIn("going on where", resumed.stderr)
        self.done_in_units(*arguments, out=self.root / "whole", python=self.python,
                           before=f"import time; time.time = lambda: {now!r}")
        for name in ("train-00000.bin", "train-00000.mask", "val-00000.bin", "val-00000.mask"):
            self.assertTrue((self.out / name).read_bytes() == (self.root / "whole" / name).read_bytes(), name)
        other = self.in_units(*arguments, unit=300, at=3, action=9, out=self.root / "other", python=self.python)
        self.assertEqual(other.returncode, -9)
        (tokenizer.parent / "chat_template.jinja").write_text(plain(template) + "!")
        changed = self.in_units(*arguments, out=self.root / "other", python=self.python)
        self.assertIn("did with other the chat template", changed.stderr)

    @needs("jinja2", "tokenizers")
    def test_where_the_template_is(self) -> None:
        chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "is"}]
        tokenizer = self.of_kind("chatml", [chat])
        config = tokenizer.parent / "tokenizer_config.json"
        def named(text: str) -> str:
            return text + plain(KINDS["chatml"][2])
        places = [(named("config"), None, None), (named("config"), named("beside"), None),
                  (named("config"), named("beside"), named("given")),
                  ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": named("default")}], None, None)]
        for (inside, beside, given), begins in zip(places, ("config", "beside", "given", "default")):
            config.write_text(json.dumps({"chat_template": inside, "eos_token": {"content": "<|im_end|>"}}))
            (tokenizer.parent / "chat_template.jinja").unlink(missing_ok=True)
            if beside is not None:
                (tokenizer.parent / "chat_template.jinja").write_text(beside)
            if given is not None:
                (self.root / "given.jinja").write_text(given)
            self.chat(tokenizer, *([] if given is None else ["--chat-template", self.root / "given.jinja"]))
            self.assertTrue(self.decoded(tokenizer)[0][0].startswith(begins + "<|im_start|>"), begins)

    @needs("jinja2", "tokenizers")
    def test_hostile_templates(self) -> None:
        """Each ends in time with one line, whether the harm is done when it is compiled or when it is run."""
        forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
        cases = [
            (forever + "{% endfor %}{% endfor %}", "took more than 1 s"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too deep"),
            ("{{ 'a' * 10 ** 10 }}", "makes a text or list of more than"),
            ("{{ ['a'] * messages | length * 10 ** 10 }}", "makes a text or list of more than"),
            ("{{ 'a' | center(10 ** 10) }}", "MB of memory"), ("{{ '%10000000000d' % 1 }}", "MB of memory"),
            ("{{ 9 ** (9 ** 9) }}", "computes a number"), ("{{ (7 ** (messages | length * 9 ** 6)) }}", "computes a number"),
            ("{% for a in range(9999) %}{{ 'a' * 100000 }}{% endfor %}", "makes a text of more than"),
            ("{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
             "MB of memory"),
            ("{{ range(10 ** 9) | length }}", "Range too big"),
            ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
            ("{{ messages.append(1) }}", "unsafe"), ("{{ ''.__class__ }}", "no documents"),
            ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
            ("{% set ns = namespace(__class__=1) %}", "cannot have the attribute"),
            ("{% for %}", "is no template"), ("{{", "is no template"), ("{% include '/etc/passwd' %}", "no documents"),
            ("{{ strftime_now(1) }}", "no documents"), ("{{ raise_exception('no') }}", "no documents"),
            ("{" * 200_000 + "%" * 9, "calls itself too deep"), ("{{ (" * 20_000, "calls itself too deep"),
        ]
        tokenizer = self.of_kind("chatml", random_chats(3, "chatml"))
        before = "from prepare import chat; chat.RENDER_SECONDS = 1.0"
        path = self.root / "hostile.jinja"

        def refused(template: str, says: str) -> None:
            path.write_text(template)
            self.assert_error(self.in_units("--chat", "--tokenizer", tokenizer, "--chat-template", path, before=before,
                                            python=self.python), says)

        for template, says in cases:
            with self.subTest(template[:60]):
                begin = time.monotonic()
                refused(template, says)
                self.assertLess(time.monotonic() - begin, 30)
                self.assert_no_leftovers()
        # Those that show themselves later than in the first try, in a worker; and one comparison that takes 2^60 steps.
        endless = ("{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
                   "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}")
        self.write("chats.jsonl", lines([random_chats(1, "chatml")[0][:2], [{"role": "user", "content": "a"}] * 5]))
        for template, says, says_at_once in (
                (forever + "{% endfor %}{% endfor %}", f"hostile.jinja took more than 1 s, at line 2 of {self.text}/chats", ""),
                (endless, "took too much time in one operation, in a conversation of", "took more than 3 s in one operation")):
            refused("{% if messages | length > 4 %}" + template + "{% endif %}" + plain(KINDS["chatml"][2]), says)
            refused(template, says_at_once)

    @needs("jinja2", "tokenizers")
    def test_refusals(self) -> None:
        tokenizer = self.of_kind("chatml", [[{"role": "user", "content": "a"}]])
        (self.root / "bad.jinja").write_bytes(b"\xff")
        bare = self.root / "bare" / "tokenizer.json"
        bare.parent.mkdir()
        bare.write_bytes(tokenizer.read_bytes())
        chat = ["--chat", "--tokenizer", tokenizer]
        for arguments, words in (
                (["--chat"], ["--chat needs the tokenizer.json"]), (["--chat", "--tokenizer", "train:300"], ["--chat needs"]),
                (["--chat", "--tokenizer", bare], ["there is none beside", "--chat-template"]),
                ([*chat, "--chat-template", "nowhere"], ["nowhere", "No such file"]),
                ([*chat, "--chat-template", self.root / "bad.jinja"], ["bad.jinja", "no UTF-8"]),
                ([*chat, "--mask-field", "x"], ["--mask-field and --chat"]),
                ([*chat, "--split-on", "x"], ["--split-on and --chat"]),
                (["--chat-template", "x"], ["--chat-template is for conversations"]),
                (["--context", "5"], ["--context is for conversations"]), ([*chat, "--field", "x"], ["no field 'x'"]),
                ([*chat, "--input-format", "text"], ["--chat is for JSONL and parquet"])):
            with self.subTest(arguments=arguments):
                self.assert_refused(self.run_on_text(*arguments, python=self.python), *words)
        for line, words in (('{"messages": 1}', "is no list of messages"), ('{"messages": [1]}', "is no list of messages"),
                            ('{"messages": [{"content": "a"}]}', "is no list of messages"),
                            ('{"messages": "a"}', "is a string, and no JSON"), ('{"text": "a"}', "no field 'messages'"),
                            ('{"messages": [], "messages": []}', "stands twice"),
                            ('{"messages": [{"role": "user"}], "tools": 5}', "no list of tools")):
            self.write("chats.jsonl", b"\n" + line.encode())
            self.assert_refused(self.run_on_text(*chat, python=self.python), words, f"line 2 of {self.text}/chats.jsonl")
        for content, words in (("[1]", "is no JSON object"), ("{", "mend it"), ('{"chat_template": 5}', "there is none"),
                               ('{"chat_template": [{"name": "a", "template": "b"}]}', "none of them is called default")):
            (bare.parent / "tokenizer_config.json").write_text(content)
            self.assert_refused(self.run_on_text("--chat", "--tokenizer", bare, python=self.python), words)

    @needs("jinja2", "tokenizers")
    def test_trained_on(self) -> None:
        """./train takes what meta.json says, and the targets of a row are those of the masks; a document is a chat."""
        for kind in ("chatml", "mistral"):
            with self.subTest(kind=kind):
                self.chat(self.of_kind(kind, random_chats(20, kind)))
                ids, masks = self.tokens()
                meta = self.meta()
                self.assertEqual((ids.count(meta["eot_token"]), meta["train"]["documents"]), (20, 20))
                stem = str(self.out / "train-*")
                config = self.root / "config.json"
                config.write_text(json.dumps({
                    "name": kind, "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "context_length": len(ids) - 1},
                    "data": {"train": [{"path": stem + ".bin", "mask": stem + ".mask"}], "shuffle": False},
                    "training": {"steps": 2, "batch_tokens": len(ids) - 1, "device": "cpu"}}))
                row = run(TRAIN, "data", "--config", config, cwd=self.root)
                # The last token of all is a target of the row, and no token of it.
                shown = f"row 0: {len(ids) - 1:,} tokens, 20 documents, {sum(masks[1:]):,} targets"
                self.assertIn(shown, row.stdout.decode("utf-8", "replace"))
                run(TRAIN, "--config", config, cwd=self.root)
