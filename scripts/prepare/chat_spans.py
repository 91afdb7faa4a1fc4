"""Finds which part of a rendered conversation the assistant says where the template does not mark it with
{% generation %}.

Most templates do not. There are two ways to find it, and each helps where the other fails:

- Prefixes. The template is given the messages before an answer, and its generation prompt: this is the text that the
  model will have read when it must answer, so that the answer begins behind it. (A template may render earlier messages
  in another way once others follow, as those that leave out old reasoning do. Then it is no prefix.)
- Marks. Characters that occur nowhere else are put around the contents, and looked for in the rendered text. If nothing
  but the marks differs then, they stand where the contents are.

An answer ends with the first added token of the tokenizer that follows the content, with nothing but white space
between: <|im_end|>, <|eot_id|>, </s>. A line break behind it is no part of the answer: no model has to say it.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from .chat import ChatError, Renderer

BEGIN_MARKS, END_MARKS = 0xF0000, 0x100000  # planes of private use; 65,534 characters in each
MAX_MARKS = 0xFFFE
MARK = re.compile("[\U000f0000-\U0010ffff]")


class NotFound(Exception):
    """Neither way finds the assistant's part."""


@dataclass
class Habits:
    """A template puts these around an answer, as a conversation of two short messages shows.

    header: what stands between a prompt and the answer, where the template has no generation prompt of its own.
    gap: what else stands between the prompt and the content (a space, say), which the model has to say.
    end: the added token that ends an answer, or "".
    """
    header: str = ""
    gap: str = ""
    end: str = ""


class Control:
    """Holds the contents of the tokenizer's added tokens."""

    def __init__(self, tokens: list[str]) -> None:
        found = sorted((token for token in set(tokens) if token.strip()), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, found)) or "(?!)")

    def after(self, text: str, place: int) -> int:
        """Returns where the added token ends that follows `place` behind nothing but white space; -1 if none does."""
        while place < len(text) and text[place].isspace():
            match = self.pattern.match(text, place)
            if match:
                return match.end()
            place += 1
        match = self.pattern.match(text, place)
        return match.end() if match else -1

    def last(self, text: str, begin: int) -> int:
        """Returns where the last added token in text[begin:] ends, if nothing but white space follows, else the text's
        end."""
        end = -1
        for match in self.pattern.finditer(text, begin):
            end = match.end()
        return end if end >= 0 and not text[end:].strip() else len(text)


def learn_habits(renderer: Renderer, control: Control) -> Habits:
    """Returns empty habits where the template does not take such a conversation."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = renderer.render(messages, None)
        prompt = renderer.render(messages[:1], None, with_prompt=True)
        bare = renderer.render(messages[:1], None)
    except ChatError:
        return Habits()
    marks = find_marks(renderer, messages, None, text)
    if 1 not in marks:
        return Habits()
    begin, end = marks[1]
    ends = control.after(text, end)
    habits = Habits(end=text[end:ends].strip() if ends >= 0 else "")
    if text.startswith(prompt) and len(prompt) <= begin:
        between = text[len(prompt):begin]
        if prompt == bare and between.strip():
            habits.header = between
        else:
            habits.gap = between
    return habits


def find_marks(renderer: Renderer, messages: list[dict], tools: Optional[list],
               text: str) -> dict[int, tuple[int, int]]:
    """Returns where the contents of the assistant's messages, by their numbers, begin and end in `text`, the rendered
    messages. Contents that are not found are left out."""
    turns = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    found: dict[int, tuple[int, int]] = {}
    if len(turns) > MAX_MARKS or MARK.search(text):
        return found
    # Some templates strip the white space around a content, and some look whether there is any content.
    has_blank = any(is_blank(messages[number]) for number in turns)
    for takes_blank, is_inside in ((False, False), (False, True), (True, False), (True, True)):
        if (takes_blank and not has_blank) or len(found) == len(turns):
            break
        marked = list(messages)
        for place, number in enumerate(turns):
            if takes_blank or not is_blank(messages[number]):
                marked[number] = with_marks(messages[number], chr(BEGIN_MARKS + place), chr(END_MARKS + place),
                                            is_inside)
        try:
            rendered = renderer.render(marked, tools)
        except ChatError:
            continue
        pieces, places, length, at = [], {}, 0, 0
        for match in MARK.finditer(rendered):
            pieces.append(rendered[at:match.start()])
            length += len(pieces[-1])
            at = match.end()
            places.setdefault(match[0], []).append(length)
        if "".join([*pieces, rendered[at:]]) != text:
            continue
        for place, number in enumerate(turns):
            begins, ends = places.get(chr(BEGIN_MARKS + place), []), places.get(chr(END_MARKS + place), [])
            if len(begins) == len(ends) == 1:
                found.setdefault(number, (begins[0], ends[0]))
    return found


def is_blank(message: dict) -> bool:
    return isinstance(message.get("content"), str) and not message["content"].strip()


def with_marks(message: dict, begin: str, end: str, is_inside: bool) -> dict:
    """Returns a copy of the message with marks around its content; the message itself if it has no text."""
    content = message.get("content")
    if isinstance(content, str):
        if not content.strip() and is_inside:
            return {**message, "content": content + begin + end}
        return {**message, "content": marked_text(marked_text(content, begin, True, is_inside), end, False, is_inside)}
    if isinstance(content, list):
        parts = [dict(part) if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str) and
                 part["text"].strip()]
        if texts:
            texts[0]["text"] = marked_text(texts[0]["text"], begin, True, is_inside)
            texts[-1]["text"] = marked_text(texts[-1]["text"], end, False, is_inside)
            return {**message, "content": parts}
    return message


def marked_text(text: str, mark: str, is_begin: bool, is_inside: bool) -> str:
    if is_begin:
        place = len(text) - len(text.lstrip()) if is_inside else 0
    else:
        place = len(text.rstrip()) if is_inside else len(text)
    return text[:place] + mark + text[place:]


class Spans:
    """Finds the answers of one conversation, in characters of its text."""

    def __init__(self, renderer: Renderer, control: Control, habits: Habits, messages: list[dict],
                 tools: Optional[list]) -> None:
        self.renderer, self.control, self.habits = renderer, control, habits
        self.messages, self.tools = messages, tools
        self.text = renderer.render(messages, tools)
        self.marks: dict[int, tuple[int, int]] = {}

    def find(self) -> list[tuple[int, int]]:
        """Raises NotFound."""
        turns = [number for number, message in enumerate(self.messages) if message.get("role") == "assistant"]
        self.marks = find_marks(self.renderer, self.messages, self.tools, self.text) if turns else {}
        spans: list[tuple[int, int]] = []
        for number in turns:
            begin = self._begin(number)
            end = self._end(number, begin)
            if begin < (spans[-1][1] if spans else 0) or end < begin:
                raise NotFound(f"message {number + 1}")
            spans.append((begin, end))
        return spans

    def _prefix(self, count: int, with_prompt: bool) -> Optional[str]:
        """Returns the text of the first messages, if the whole text begins with it."""
        try:
            prefix = self.renderer.render(self.messages[:count], self.tools, with_prompt)
        except ChatError:
            return None
        return prefix if prefix and self.text.startswith(prefix) else None

    def _begin(self, number: int) -> int:
        mark = self.marks.get(number)
        prompt = self._prefix(number, True)
        if prompt is not None and self.text.startswith(self.habits.header, len(prompt)):
            begin = len(prompt) + len(self.habits.header)
            return begin if mark is None else min(begin, mark[0])
        if mark is None:
            raise NotFound(f"message {number + 1}")
        gap = self.habits.gap
        return mark[0] - len(gap) if self.text.endswith(gap, 0, mark[0]) else mark[0]

    def _end(self, number: int, begin: int) -> int:
        mark = self.marks.get(number)
        has_calls = bool(self.messages[number].get("tool_calls"))  # they may follow the content
        if mark is not None and not has_calls:
            end = self.control.after(self.text, mark[1])
            if end >= 0:
                return end
        content_end = begin if mark is None else mark[1]
        whole = self._prefix(number + 1, False)
        if whole is not None and len(whole) >= content_end:
            return self.control.last(whole, content_end)
        if mark is not None and not has_calls:
            return mark[1]
        place = self.text.find(self.habits.end, content_end) if self.habits.end else -1
        if place < 0:
            raise NotFound(f"message {number + 1}")
        return place + len(self.habits.end)
