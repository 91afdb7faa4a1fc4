"""Turns conversations into tokens and notes which of them the assistant says: a worker process with --chat does
this."""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Iterator, Optional

import tokenizers

from .chat import Bounds, ChatError, ChatTemplate, OutOfBounds, Renderer, normalized, run_in_child
from .chat_spans import Control, Habits, NotFound, Spans, learn_habits
from .common import PrepareError, Stop
from .tokenize import JsonTokenizer, Tokens
from .units import Piece, Unit
from .work import SURROGATES, Document, Result, Worker

BATCH_CHATS = 64
NO_ASSISTANT = "without an answer of the assistant"
REFUSED = "refused by the chat template"
NOT_FOUND = "whose answers the chat template hides"
TOO_LONG = "longer than the context"
TORN = "with the end-of-text token inside"
PROBE = [{"role": role, "content": content} for role, content in
         (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]


class Rendered:
    """A conversation's text, and the ranges of characters that the assistant says."""

    def __init__(self, where: str, key: bytes, text: str, spans: list[tuple[int, int]], is_open: bool) -> None:
        self.where, self.key, self.text, self.spans = where, key, text, spans
        self.is_open = is_open  # the text ends with an answer that no token ends


class Chats:
    """A tokenizer.json with its chat template. Special tokens are looked for in the whole text, as in transformers: a
    special token that a message names is a token like those of the template."""

    def __init__(self, template: ChatTemplate, tokenizer: JsonTokenizer, context: Optional[int]) -> None:
        self.template, self.tokenizer, self.context = template, tokenizer, context
        assert tokenizer.json is not None
        self.added = [token["content"] for token in json.loads(tokenizer.json).get("added_tokens") or []]
        self.control = Control(self.added)
        # The tokenizer keeps its post-processor, which trims the white space of tokens' offsets for some tokenizers.
        self.encoder = tokenizers.Tokenizer.from_str(tokenizer.json.decode("utf-8"))
        self.habits = Habits()
        self.renderer: Optional[Renderer] = None

    def prepare(self, is_eot_given: bool, stop: Stop) -> None:
        """Tries the template, and chooses where the end-of-text token of the tokenizer stands. Raises PrepareError."""
        def probe() -> tuple[Habits, Optional[str]]:
            renderer = Renderer(self.template)
            habits = learn_habits(renderer, self.control)
            try:
                return habits, renderer.render(PROBE, None)
            except ChatError:
                return habits, None
        answer = run_in_child(probe, f"the chat template in {self.template.path}", stop)
        assert isinstance(answer, tuple)
        self.habits, text = answer
        if text is not None:
            self._choose_eot(self.encoder.encode(text, add_special_tokens=False).ids, is_eot_given)

    def _choose_eot(self, ids: list[int], is_eot_given: bool) -> None:
        """Templates such as Mistral's end each answer with the tokenizer's only end-of-text token: a document would end
        there. The token that begins each conversation separates documents as well."""
        tokenizer = self.tokenizer
        if tokenizer.eot not in ids[:-1]:
            return
        first = self.encoder.id_to_token(ids[0]) if ids else None
        if is_eot_given or ids[0] in ids[1:] or first not in self.added:
            raise PrepareError(f"the chat template in {self.template.path} puts {tokenizer.eot_name} inside a "
                               "conversation, where a document would end, name another token with --eot-token")
        tokenizer.eot, tokenizer.eot_name, tokenizer.eot_side = ids[0], first, "start"

    def render(self, where: str, key: bytes, messages: list[dict], tools: Optional[list]) -> Rendered:
        """Renders a conversation. Raises ChatError, NotFound and OutOfBounds."""
        if self.renderer is None:
            self.renderer = Renderer(self.template)
        renderer = self.renderer
        if renderer.has_generation:
            text, spans = renderer.render_with_spans(messages, tools)
        else:
            found = Spans(renderer, self.control, self.habits, messages, tools)
            text, spans = found.text, found.find()
        spans = [span for span in spans if span[1] > span[0]]
        is_open = bool(spans) and spans[-1][1] == len(text) and \
            not any(match.end() == len(text) for match in self.control.pattern.finditer(text, spans[-1][0]))
        return Rendered(where, key, text, spans, is_open)

    def encode(self, chats: list[Rendered]) -> list[tuple[list[int], list[int]]]:
        """Returns the ids of each text, and a byte for each token: 1 where it has a character that the assistant
        says."""
        encodings = self.encoder.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [(encoding.ids, overlapping(encoding.offsets, chat.spans)) for chat, encoding in zip(chats, encodings)]

    def document(self, chat: Rendered, ids: list[int], targets: list[int]) -> Optional[Tokens]:
        """Without the end-of-text token, which each document has once, at its end or beginning; with its target. None
        if it stands inside too."""
        tokenizer = self.tokenizer
        if tokenizer.eot_side == "start":
            if ids[:1] == [tokenizer.eot]:
                ids = ids[1:]
            else:
                targets = [0, *targets]
        elif ids[-1:] == [tokenizer.eot]:
            ids = ids[:-1]
        else:
            targets = [*targets, int(chat.is_open)]
        if tokenizer.eot in ids:
            return None
        return Tokens(tokenizer.pack(ids), bytes(targets))


def overlapping(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Returns a byte for each token: 1 if it ends behind the beginning of a span and begins before its end."""
    targets, at = [], 0
    for begin, end in offsets:
        while at < len(spans) and begin >= spans[at][1]:
            at += 1
        targets.append(int(at < len(spans) and end > spans[at][0]))
    return targets


@dataclass
class ChatWorker(Worker):
    chats: Optional[Chats] = None

    def documents(self, unit: Unit, result: Result) -> Iterator[Document]:
        batch: list[Rendered] = []
        for piece in unit.pieces:
            for record, where in self._records(piece, result):
                chat = self._rendered(record, where, result)
                if chat is not None:
                    batch.append(chat)
                if len(batch) >= BATCH_CHATS:
                    yield from self._encoded(batch, result)
                    batch.clear()
        yield from self._encoded(batch, result)

    def _records(self, piece: Piece, result: Result) -> Iterator[tuple[dict, str]]:
        if piece.kind == "rows":
            for index, record in enumerate(piece.data):
                yield record, f"row {piece.first + index} of {piece.path}"
        elif piece.kind == "lines":
            yield from self.parsed(piece, (self.field,))
        else:
            self.skip_unreadable(piece, result)

    def _rendered(self, record: dict, where: str, result: Result) -> Optional[Rendered]:
        messages = checked_messages(record[self.field], f"'{self.field}' in {where}")
        tools = checked_tools(record.get("tools"), f"'tools' in {where}")
        if not messages:
            result.skipped.add("empty", where)
            return None
        # The key holds everything that the text depends on rather than the text: some templates put the date into it.
        key = json.dumps([messages, tools], sort_keys=True).encode()
        assert self.chats is not None
        try:
            with Bounds():
                chat = self.chats.render(where, key, normalized(messages), tools)
        except ChatError as error:
            result.skipped.add(REFUSED, f"{where} ({error})"[:300])
            return None
        except NotFound as error:
            result.skipped.add(NOT_FOUND, f"{where} ({error})")
            return None
        except (OutOfBounds, MemoryError) as error:
            what = str(error) or "took too much memory"
            raise PrepareError(f"the chat template in {self.chats.template.path} {what}, at {where}: name another one "
                               "with --chat-template, or leave the file out with --exclude") from error
        if not chat.spans:
            result.skipped.add(NO_ASSISTANT, where)
            return None
        if SURROGATES.search(chat.text):
            chat.text = SURROGATES.sub("\ufffd", chat.text)
            result.replaced += 1
        return chat

    def _encoded(self, batch: list[Rendered], result: Result) -> Iterator[Document]:
        chats = self.chats
        assert chats is not None
        for chat, (ids, targets) in zip(batch, chats.encode(batch)):
            tokens = chats.document(chat, ids, targets)
            if tokens is None:
                result.skipped.add(TORN, chat.where)
            elif chats.context is not None and len(tokens.targets or b"") > chats.context:
                result.skipped.add(TOO_LONG, f"{chat.where} ({len(tokens.targets or b'')} tokens)")
            elif not any(targets):
                result.skipped.add(NO_ASSISTANT, chat.where)
            else:
                yield Document.of(chat.key, len(chat.text.encode("utf-8")), tokens)


def checked_messages(value: object, where: str) -> list[dict]:
    """Returns the list of messages, which may be JSON text in a column of strings; null gives an empty one."""
    messages = from_json_text(value, where)
    if messages is None:
        return []
    if not isinstance(messages, list) or not all(isinstance(message, dict) and isinstance(message.get("role"), str)
                                                 for message in messages):
        raise PrepareError(f"{where} is no list of messages, each an object with a role and a content, mend it or "
                           "choose another one with --field")
    return messages


def checked_tools(value: object, where: str) -> Optional[list]:
    tools = from_json_text(value, where)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise PrepareError(f"{where} is no list of tools, each an object (a JSON schema), mend it or leave it out")
    return tools


def from_json_text(value: object, where: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise PrepareError(f"{where} is a string, and no JSON ({error}), mend it") from error
