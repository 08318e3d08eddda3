"""How texts become token ids: every request is P ⧺ M ⧺ rest, and each part is tokenised on its own.

- P, `prefix`: the chat template up to the first user content, with the system message that is given or the template's own.
  A BOS token stands here or nowhere.
- M, `memory`: one memory's text with exactly one newline at its end.
- `rest`: from the first user content on, to the end of the generation prompt.

Where contents begin and end is found by rendering the template with marks in their place, so that no content is ever seen
by a template. What the template says between them is tokenised with its control tokens. Contents (the system message,
memories, messages) are tokenised with control tokens as text: a memory that holds `<|im_start|>` does not become one.

A template that changes, repeats, moves or drops contents gives no such layout, and is refused. One that trims white space off
them (Llama 3, Gemma) is not: contents are written here, and never trimmed. A model without a chat
template has P = [BOS], if its tokenizer has one, and the contents one after another as the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from memos_syscalls.errors import MemInvalid, MemModel

USE: Final = "Use a model whose chat template writes messages as they are, or pass another template to its tokenizer."
SYSTEM: Final = "Leave the system message out, or put what it says at the start of the first message."
Message = Mapping[str, str]


class TokenLayout:
    """The layout of one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise MemModel(
                f"the tokenizer ({type(tokenizer).__name__}) is not one that a tokenizer.json describes",
                "Use a model with a tokenizer.json beside its weights.",
            )
        self._tokenizer = tokenizer
        self._templated = bool(getattr(tokenizer, "chat_template", None))
        self._rendered: dict[tuple[str, ...], tuple[str, ...]] = {}
        # Runs of spaces may be tokens that were added; everything else that was added steers the model.
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self._control = {number: str(token) for number, token in added.items() if token.special or str(token).strip()}

    def prefix(self, system: str | None = None) -> list[int]:
        """P, with this system message or the template's default one."""
        if not self._templated:
            if system is not None:
                raise MemModel("the model has no chat template, and so no place for a system message", SYSTEM)
            bos: int | None = self._tokenizer.bos_token_id
            return [] if bos is None else [bos]
        before = self._opening(system is not None)
        ids = self._template_ids(before[0])
        return ids if system is None else [*ids, *self._content_ids(system), *self._template_ids(before[1])]

    def memory(self, text: str) -> list[int]:
        """One memory of M."""
        return self._content_ids(text.rstrip("\n") + "\n")

    def rest(self, messages: Sequence[Message]) -> list[int]:
        """What follows the memories: all messages but a leading system message, which belongs to P."""
        roles, contents = self._read(messages)
        system = roles[0] == "system"
        if not self._templated:
            if system:
                raise MemModel("the model has no chat template, and so no place for a system message", SYSTEM)
            return [number for content in contents for number in self._content_ids(content)]
        parts = self._parts(roles)
        if parts[: 1 + system] != self._opening(system):
            raise MemModel("the chat template begins a long conversation otherwise than a short one", USE)
        ids: list[int] = []
        for content, part in zip(contents[system:], parts[1 + system :], strict=True):
            ids += self._content_ids(content) + self._template_ids(part)
        return ids

    def _read(self, messages: Sequence[Message]) -> tuple[tuple[str, ...], list[str]]:
        roles, contents = list[str](), list[str]()
        for message in messages:
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise MemInvalid("a message has a role and a content, both of them text")
            roles.append(role)
            contents.append(content)
        if (roles[1:] if roles[:1] == ["system"] else roles)[:1] != ["user"]:
            raise MemInvalid("the first message, after a system message if there is one, is the user's")
        return tuple(roles), contents

    def _opening(self, system: bool) -> tuple[str, ...]:
        """What the template says before the system message and before the first user content."""
        return self._parts(("system", "user") if system else ("user",))[: 1 + system]

    def _parts(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """What the template says before, between and after contents of these roles."""
        if roles not in self._rendered:
            self._rendered[roles] = self._render(roles)
        return self._rendered[roles]

    def _render(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        marks = [f"memos content {n} of {len(roles)}." for n in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            # Templates are programs of the model's makers, and raise what they like.
            what = "a system message" if "system" in roles else f"messages of {', '.join(roles)}"
            raise MemModel(f"the chat template refuses {what}: {error}", SYSTEM if "system" in roles else USE) from error
        parts: list[str] = []
        for mark, role in zip(marks, roles, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                what = "changes, drops or repeats" if mark not in before + text else "moves"
                raise MemModel(f"the chat template {what} the content of a {role} message", SYSTEM if role == "system" else USE)
            parts.append(before)
        if re.search("memos content [0-9]", "".join((*parts, text))):
            raise MemModel("the chat template repeats the content of a message", USE)
        return (*parts, text)

    def _template_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _content_ids(self, text: str) -> list[int]:
        ids = self._split_ids(text)
        if self._control.keys() & set(ids):
            # An added token that its tokenizer does not call special: cut it in two wherever it stands.
            found = sorted((token for token in self._control.values() if token in text), key=len, reverse=True)
            pieces = [text]
            for token in found:
                pieces = [half for piece in pieces for half in _cut(piece, token)]
            ids = [number for piece in pieces for number in self._split_ids(piece)]
            if left := self._control.keys() & set(ids):
                token = self._control[min(left)]
                raise MemModel(f"the tokenizer makes the control token {token!r} of ordinary text", USE)
        return ids

    def _split_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return ids


def _cut(text: str, token: str) -> list[str]:
    """The text in pieces, cut after the first character of each occurrence of the token."""
    head, *others = text.split(token)
    pieces = [head]
    for other in others:
        pieces[-1] += token[:1]
        pieces.append(token[1:] + other)
    return pieces
