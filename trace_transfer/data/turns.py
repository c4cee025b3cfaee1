"""One message of a conversation: its role and text, whether it is learned, and what else it says.

Role and text are `role` and `content`, or ShareGPT's `from` and `value`. `weight`, `train`, `training` and `loss` say
whether an assistant's turn is learned; without them it is. Every other key that says something is handed to the chat
template (`rendering` sees whether that writes it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trace_transfer.data.columns import UnusableValueError, describe

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant",
}  # fmt: skip
MASKS = ("weight", "train", "training", "loss")
_SAID = ("role", "from", "content", "value", *MASKS)
# Keys of a message that a model of text cannot honour, and parts of a turn, which are learned as a whole or not.
_REFUSED = (
    "images", "image", "audio", "audios", "videos", "video", "train_detail", "training_detail", "loss_mask",
    "loss_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        is_answer: where it is to be learned.
        more: what it says beside role and content, such as `tool_calls` or `reasoning_content`.
    """

    role: str
    content: str
    is_answer: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def not_learned(self) -> Message:
        return replace(self, is_answer=False)

    @property
    def parts(self) -> list[Any]:
        """All that it is, for checksums."""
        return [self.role, self.content, self.is_answer, *([dict(self.more)] if self.more else [])]


def turns_of(value: Any, name: str, *, ignore: Sequence[str], exact: bool) -> tuple[Message, ...]:
    """A list of messages; a blank system message is none.

    Args:
        ignore: keys that are left out as if they were not there.
        exact: whether a key with nothing in it was written there; a table gives every message the keys of all.

    Raises:
        UnusableValueError: it is no such list, or a message says something that cannot be honoured.
    """
    if not isinstance(value, list) or not value:
        raise UnusableValueError(
            f"{name} is {describe(value) if value != [] else 'empty'}, expected a list of messages"
        )
    turns = []
    for place, item in enumerate(value):
        where = f"{name}[{place}]"
        if not isinstance(item, Mapping):
            raise UnusableValueError(f"{where} is {describe(item)}, expected {{role: …, content: …}}")
        said = {key: one for key, one in item.items() if key not in ignore}
        role = _role(said, where)
        more = {key: _more(key, one, where, exact) for key, one in said.items() if key not in _SAID}
        more = {key: one for key, one in more.items() if not is_nothing(one)}
        content = _content(said, where, may_be_blank=role == "tool" or (role == "assistant" and bool(more)))
        if content is not None:
            turns.append(Message(role, content, mask_of(said, role, where), more))
    return tuple(turns)


def is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def mask_of(item: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether a turn is learned: an assistant's, unless a key says otherwise."""
    given = {key: item[key] for key in MASKS if item.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise UnusableValueError(
                f"{where} has {key} {value!r}, expected 0 or 1, false or true: a turn is learned or not"
            )
        if value and role != "assistant" and key in ("train", "training"):
            raise UnusableValueError(
                f"{where} has {key} {value!r}: a turn of the {role}, and only the assistant's are learned (ignore: "
                f"[{key}] leaves it out)"
            )
    if len({bool(value) for value in given.values()}) > 1:
        said = ", ".join(f"{key} {value!r}" for key, value in given.items())
        raise UnusableValueError(f"{where} has {said}, which contradict each other")
    return role == "assistant" and all(given.values())


def _one_of(item: Mapping[str, Any], first: str, second: str, where: str) -> Any:
    """The value under either name of a key."""
    one, other = item.get(first), item.get(second)
    if one is not None and other is not None and one != other:
        raise UnusableValueError(f"{where} has {first} and {second}, which contradict each other")
    return one if one is not None else other


def _role(item: Mapping[str, Any], where: str) -> str:
    role = _one_of(item, "role", "from", where)
    if not isinstance(role, str) or role not in ROLES:
        raise UnusableValueError(f"{where} has the role {role!r}, expected one of {', '.join(ROLES)}")
    return ROLES[role]


def _content(item: Mapping[str, Any], where: str, *, may_be_blank: bool) -> str | None:
    """The text of a message; None for a system message that says nothing."""
    content = _one_of(item, "content", "value", where)
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        content = "".join(_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    if content is None or (isinstance(content, str) and not content.strip()):
        if may_be_blank:
            return content or ""
        if isinstance(content, str) and item.get("role", item.get("from")) == "system":
            return None
        raise UnusableValueError(f"{where} is empty")
    if not isinstance(content, str):
        number = isinstance(content, (int, float)) and not isinstance(content, bool)
        hint = ' (a format such as "{column}" makes text of it)' if number else ""
        raise UnusableValueError(f"{where} is {describe(content)}, expected text{hint}")
    return content


def _part(part: Mapping[str, Any], where: str) -> str:
    """The text of a part of OpenAI's form."""
    others = [key for key, value in part.items() if key not in ("type", "text") and not is_nothing(value)]
    if part.get("type", "text") != "text" or others or not isinstance(part.get("text"), str):
        kind = part.get("type")
        raise UnusableValueError(
            f"{where} is of type {kind!r}" + (f" with {', '.join(others)}" if others else "") + ", expected {type: "
            "text, text: …}: a model of text sees nothing else"
        )
    return str(part["text"])


def _more(key: str, value: Any, where: str, exact: bool) -> Any:
    """What else a message says, as chat templates expect it."""
    if key in _REFUSED and not is_nothing(value):
        raise UnusableValueError(f"{where} has {key}, which cannot be honoured (ignore: [{key}] leaves it out)")
    value = without_nulls(value, exact)
    if key == "tool_calls" and isinstance(value, list):
        return [_call(one) for one in value]
    return value


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI has them as JSON in a text, which templates would quote."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _call(function)}
    if isinstance(text := call.get("arguments"), str):
        try:
            arguments = json.loads(text)
        except ValueError:
            return call
        return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
    return call


def without_nulls(value: Any, exact: bool) -> Any:
    """A table gives each object the keys of all others, with nothing in them; the data of JSON stay what they are."""
    if exact:
        return value
    if isinstance(value, dict):
        return {key: without_nulls(one, exact) for key, one in value.items() if one is not None}
    return [without_nulls(one, exact) for one in value] if isinstance(value, list) else value
