"""--chat: conversations through a tokenizer's chat template, and which part of the text the assistant says.

A template is a program that somebody else wrote, in Jinja. It runs in Jinja's sandbox, in a process of its own, within
bounds of time, memory and output (Bounds); a template that leaves them ends the run. A template that refuses one
conversation (raise_exception, a role that it does not know) leaves out that one alone (ChatError).

A template may use the names that transformers' apply_chat_template gives it, so that the text is the same.
"""
from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Callable, Optional

import jinja2
import jinja2.ext
import jinja2.sandbox

from support.regular_files import read_regular

from .common import MB, PrepareError, Stop

MIN_JINJA = (3, 1, 6)  # a template can leave the sandbox of older versions
MAX_TEMPLATE_BYTES = 1 << 20
MAX_CONFIG_BYTES = 16 << 20
RENDER_SECONDS = 10.0  # to render all that a conversation needs
RENDER_MEMORY = 1 << 29  # bytes beyond what the process has
MAX_CHARACTERS = 1 << 25  # in a rendered conversation
MAX_BITS = 1 << 16  # in a number
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # datasets use them all, templates the first


class ChatError(Exception):
    """The template does not take this conversation."""


class OutOfBounds(Exception):
    """The template took more than it may, or tried to leave its sandbox."""


# ---- Where the template is ----


@dataclass
class ChatTemplate:
    path: str  # for messages
    source: str
    tools_source: Optional[str]  # the template for conversations with tools, where it is another
    special_tokens: dict[str, str]  # "bos_token": "<s>"
    now: float  # strftime_now() reads this: one time for all of a run

    def name(self) -> str:
        """Names everything besides the conversations that the text depends on."""
        return json.dumps([self.source, self.tools_source, sorted(self.special_tokens.items())])


def read_json(path: str) -> dict:
    """Returns the JSON object of a file beside the tokenizer.json, an empty one if there is no such file."""
    if not os.path.lexists(path):
        return {}
    try:
        value = json.loads(read_regular(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PrepareError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}, mend it or move it away "
                           "and name the template with --chat-template") from error
    if not isinstance(value, dict):
        raise PrepareError(f"{path} is no JSON object, mend it or move it away and name the template with "
                           "--chat-template")
    return value


def read_template_file(path: str) -> str:
    try:
        return read_regular(path, MAX_TEMPLATE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise PrepareError(f"cannot read the chat template {path}: {what}, name another file in "
                           "--chat-template") from error


def read_template(tokenizer_path: str, given: Optional[str], now: float) -> ChatTemplate:
    """Returns the template that `given` names, else chat_template.jinja beside the tokenizer.json, else the one in its
    tokenizer_config.json. Raises PrepareError if there is none."""
    version = tuple(map(int, re.findall("[0-9]+", jinja2.__version__)[:3]))
    if version < MIN_JINJA:
        raise PrepareError(f"the package jinja2 {jinja2.__version__} is too old to run a template that somebody else "
                           f"wrote, get {'.'.join(map(str, MIN_JINJA))} or later with:  {sys.executable} -m pip install "
                           "--upgrade jinja2")
    folder = os.path.dirname(tokenizer_path)
    config_path = os.path.join(folder, "tokenizer_config.json")
    config = read_json(config_path)
    special = {**special_tokens(read_json(os.path.join(folder, "special_tokens_map.json"))), **special_tokens(config)}
    beside = os.path.join(folder, "chat_template.jinja")
    if given is not None or os.path.lexists(beside):
        path = given if given is not None else beside
        return ChatTemplate(path, read_template_file(path), None, special, now)
    named = config.get("chat_template")
    if isinstance(named, list):
        named = {entry.get("name"): entry.get("template") for entry in named if isinstance(entry, dict)}
    if isinstance(named, dict):
        if not isinstance(named.get("default"), str):
            raise PrepareError(f"{config_path} has chat templates, and none of them is called default, write the one "
                               "that is meant into a file and name it with --chat-template")
        tools = named.get("tool_use")
        return ChatTemplate(config_path, named["default"], tools if isinstance(tools, str) else None, special, now)
    if not isinstance(named, str):
        raise PrepareError(f"--chat needs a chat template, and there is none beside {tokenizer_path}: neither "
                           "chat_template.jinja nor chat_template in tokenizer_config.json, name a file with "
                           "--chat-template")
    if len(named) > MAX_TEMPLATE_BYTES:
        raise PrepareError(f"the chat template in {config_path} has more than {MAX_TEMPLATE_BYTES} characters, name "
                           "another one with --chat-template")
    return ChatTemplate(config_path, named, None, special, now)


def special_tokens(config: dict) -> dict[str, str]:
    found = {}
    for name in SPECIAL_NAMES:
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def longest_text(tokenizer_path: str) -> Optional[int]:
    """Returns the model's context by tokenizer_config.json; None where that has no number that could be one."""
    value = read_json(os.path.join(os.path.dirname(tokenizer_path), "tokenizer_config.json")).get("model_max_length")
    return value if type(value) is int and 0 < value < 1 << 30 else None


# ---- Rendering ----


class Bounds:
    """Bounds the time and then the memory that a template takes of this process, while this is entered. A limit on the
    processor's time ends the process itself where nothing else could (one long operation in C)."""

    def __enter__(self) -> None:
        def expired(_signal: int, _frame: object) -> None:
            raise OutOfBounds(f"took more than {RENDER_SECONDS:g} s")
        self.old = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm", "rb") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + RENDER_MEMORY
        soft = most if self.old[0] == resource.RLIM_INFINITY else min(most, self.old[0])
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, 3 * RENDER_SECONDS)
        signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS, 0.5)  # again, should the template catch the first
        resource.setrlimit(resource.RLIMIT_AS, (soft, self.old[1]))

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, self.old)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))  # no other operators make much of little

    def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
        def bits(value: object) -> int:
            return value.bit_length() if isinstance(value, int) else 0
        if isinstance(left, int) and isinstance(right, int):
            size = bits(left) * max(right, 0) if operator == "**" else bits(left) + bits(right)
            if size > MAX_BITS:
                raise OutOfBounds(f"computes a number of more than {MAX_BITS} bits")
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int) and \
                        len(sequence) * count > MAX_CHARACTERS:
                    raise OutOfBounds(f"makes a text or list of more than {MAX_CHARACTERS} elements")
        return super().call_binop(context, operator, left, right)


class Generation(jinja2.ext.Extension):
    """Reads {% generation %} ... {% endgeneration %}, which hold what the assistant says, and notes where that stands
    in the output, as transformers does: by counting the characters before it."""
    tags = {"generation"}
    length = 0  # of the output so far, in characters
    spans: Optional[list[tuple[int, int]]] = None

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        said = caller()
        if self.spans is not None:
            self.spans.append((self.length, self.length + len(said)))
        return said


class SafeNamespace(jinja2.utils.Namespace):
    """Refuses names that begin with an underscore."""

    def __init__(*arguments: object, **attributes: object) -> None:
        for name in dict(*arguments[1:], **attributes):
            SafeNamespace._check(name)
        jinja2.utils.Namespace.__init__(*arguments, **attributes)

    def __setitem__(self, name: str, value: object) -> None:
        SafeNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r:.60}")


def make_environment(now: float) -> Sandbox:
    def raise_exception(message: object) -> None:
        raise ChatError(str(message))

    def strftime_now(format: str) -> str:
        return datetime.datetime.fromtimestamp(now).strftime(format)

    def tojson(value: object, ensure_ascii: bool = False, indent: Optional[int] = None, separators: object = None,
               sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=SafeNamespace)
    return environment


class Renderer:
    """A compiled template, which must be made and used within Bounds. Raises OutOfBounds, also for text that is no
    template."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.environment = make_environment(template.now)
        self.has_generation = GENERATION_TAG.search(template.source) is not None
        self.default = self._compile(template.source)
        self.with_tools = self._compile(template.tools_source) if template.tools_source else self.default

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return self.environment.from_string(source)
        except jinja2.exceptions.TemplateSyntaxError as error:
            raise OutOfBounds(f"is no template: {error.message}, at its line {error.lineno}") from error
        except (MemoryError, RecursionError) as error:
            raise OutOfBounds(describe_excess(error)) from error
        except (ValueError, OverflowError) as error:
            raise OutOfBounds(f"is no template: {error}") from error

    def render(self, messages: list[dict], tools: Optional[list], with_prompt: bool = False) -> str:
        """Returns the text of a conversation, followed with with_prompt by the beginning of the assistant's next
        answer. Raises ChatError if the template does not take it."""
        return self._render(messages, tools, with_prompt, None)

    def render_with_spans(self, messages: list[dict], tools: Optional[list]) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text, and the ranges of it that {% generation %} marks."""
        spans: list[tuple[int, int]] = []
        return self._render(messages, tools, False, spans), spans

    def _render(self, messages: list[dict], tools: Optional[list], with_prompt: bool,
                spans: Optional[list[tuple[int, int]]]) -> str:
        generation = self.environment.extensions[Generation.identifier]
        generation.spans, generation.length = spans, 0
        template = self.with_tools if tools is not None else self.default
        parts = []
        try:
            for part in template.generate(**self.template.special_tokens, messages=messages, tools=tools,
                                          documents=None, add_generation_prompt=with_prompt):
                parts.append(part)
                generation.length += len(part)
                if generation.length > MAX_CHARACTERS:
                    raise OutOfBounds(f"makes a text of more than {MAX_CHARACTERS} characters")
            return "".join(parts)
        except (ChatError, OutOfBounds):
            raise
        except (MemoryError, RecursionError, OverflowError, jinja2.exceptions.SecurityError) as error:
            raise OutOfBounds(describe_excess(error)) from error
        except Exception as error:  # a template may raise anything for a conversation that it does not expect
            what = " ".join(str(error).split()) or type(error).__name__
            raise ChatError(what) from error


def describe_excess(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"took more than {RENDER_MEMORY / MB:.0f} MB of memory"
    if isinstance(error, RecursionError):
        return "calls itself too deep"
    return f"was stopped by its sandbox: {' '.join(str(error).split())}"


def normalized(messages: list[dict]) -> list[dict]:
    """Returns the messages as templates get them: without keys that are null, and an assistant's reasoning under the
    names that they read."""
    result = []
    for message in messages:
        message = {key: value for key, value in message.items() if value is not None}
        reasoning = next((message[name] for name in REASONING_NAMES if name in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        result.append(message)
    return result


# ---- Before the run ----


def run_in_child(work: Callable[[], object], what: str, stop: Stop) -> object:
    """Returns what work() returns. It runs in a process of its own, which a template may kill."""
    def serve(connection: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            with Bounds():
                answer = (True, work())
        except OutOfBounds as error:
            answer = (False, str(error))
        except MemoryError as error:
            answer = (False, describe_excess(error))
        connection.send(answer)

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        while not ours.poll(0.1):
            stop.check()
        is_done, answer = ours.recv()
    except (EOFError, OSError) as error:
        raise PrepareError(f"{what} took more than {3 * RENDER_SECONDS:g} s in one operation, or all memory, name "
                           "another one with --chat-template") from error
    finally:
        process.kill()
        process.join()
        ours.close()
    if not is_done:
        raise PrepareError(f"{what} {answer}, name another one with --chat-template")
    return answer
