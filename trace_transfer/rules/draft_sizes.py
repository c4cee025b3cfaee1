"""Parts of fused tensors for a draft: taken from a known family if they fit, or worked out from a shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trace_transfer.errors import RulesError
from trace_transfer.rules.expressions import ConfigLookup, first_that_resolves, parse_expression
from trace_transfer.rules.part_ranges import Claim, ranges_of, tiling_problems
from trace_transfer.rules.tables import Family, Member, Part

BY_HEAD = "query_key_value"  # a tensor of this name holds the parts of one head, or group of heads, after the other
WIDTHS = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "moe_intermediate_size")


@dataclass
class Sizes:
    """The sizes of a config, and the `sizes:` that a draft uses: name → choices."""

    config: Any
    used: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def text(self) -> Any:
        return self.config.get_text_config()

    @property
    def prefix(self) -> str:
        return "" if self.text is self.config else "text_config."

    @property
    def hidden(self) -> int:
        return int(self.text.hidden_size)

    @cached_property
    def head(self) -> int:
        return int(getattr(self.text, "head_dim", None) or self.hidden // self.text.num_attention_heads)

    def use(self, sizes: Mapping[str, Sequence[str]]) -> bool:
        """Take over sizes; False if another one of such a name is in use."""
        if any(tuple(choices) != self.used.get(name, tuple(choices)) for name, choices in sizes.items()):
            return False
        self.used.update({name: tuple(choices) for name, choices in sizes.items()})
        return True

    def name_of(self, value: int) -> str:
        """A width as the config has it."""
        named = [name for name in WIDTHS if getattr(self.text, name, None) == value]
        if named:
            return self.prefix + named[0]
        return f"{value // self.hidden}*{self.prefix}hidden_size" if value % self.hidden == 0 else str(value)


def known_parts(family: Family, members: Sequence[Member], shape: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether a family's members of one name fit a shape; the sizes that their parts need are then in use."""
    if all(member.part is None and not member.head for member in members):
        return True
    values: dict[str, int | None] = {}
    lookup = ConfigLookup(sizes.config, values)
    try:
        for size in family.sizes:
            values[size.name] = first_that_resolves(size.choices, lookup)
        claims = [
            Claim(
                str(index),
                member.part.dim if member.part else None,
                ranges_of(member.part, shape, lookup) if member.part else None,
                member.shared,
            )
            for index, member in enumerate(members)
        ]
    except RulesError:
        return False
    return not tiling_problems(claims, shape) and sizes.use(_needed(family, members))


def _needed(family: Family, members: Sequence[Member]) -> dict[str, list[str]]:
    """The sizes that parts and heads are written with, and those that these are written with, in order."""
    texts = [text for member in members if member.part for text in _texts(member.part)]
    texts += [member.head.text for member in members if member.head]
    needed: dict[str, list[str]] = {}
    for size in reversed(family.sizes):
        if size.name in set(re.findall(r"\w+", " ".join(texts))):
            needed[size.name] = [choice.text for choice in size.choices]
            texts += needed[size.name]
    return dict(reversed(needed.items()))


def _texts(part: Part) -> list[str]:
    return [one.text for one in (part.start, part.stop, part.every) if one is not None]


def parts_by_shape(
    sizes: Sizes, module: str, rows: int, attention: bool, inner: int, transposed: bool
) -> list[tuple[str, Part, str]]:
    """(component, part, why) of a matrix into queries, keys and values, or into gate and up; none if it is neither."""
    dim = 1 if transposed else 0
    if not attention:
        if not inner or rows != 2 * inner:
            return []
        width = sizes.name_of(inner)
        why = f"its {rows} rows are 2 × {width}; that gate comes first is the custom, no shape shows it"
        return [
            ("mlp.gate", _part(dim, "0", width), why),
            ("mlp.up", _part(dim, width, f"2*{width}"), why),
        ]
    heads = sizes.text.num_attention_heads
    keys = (rows // sizes.head - heads) // 2
    if keys < 1 or rows != (heads + 2 * keys) * sizes.head or heads % keys:
        return []
    name = next((one for one in ("num_key_value_heads", "num_kv_heads") if getattr(sizes.text, one, 0) == keys), None)
    number = sizes.prefix + name if name else "1" if keys == 1 else sizes.prefix + "num_attention_heads"
    many = sizes.prefix + "num_attention_heads"
    if not sizes.use({"h": (f"{sizes.prefix}head_dim", f"{sizes.prefix}hidden_size // {many}")}):
        return []
    why = f"its {rows} rows are queries of {heads} heads, keys and values of {keys} each, {sizes.head} wide"
    by_head = BY_HEAD in module
    order = "head after head, as its name suggests" if by_head else "queries, keys, values, which is the custom"
    if by_head:
        sizes.use({"q": (f"{many} // {number} * h" if number != "1" else f"{many} * h",), "kv": ("h",)})
    else:
        sizes.use({"q": (f"{many} * h",), "kv": (f"{number} * h" if number != "1" else "h",)})
    every = "q + 2*kv" if by_head else None
    return [
        (f"attention.{what}", _part(dim, start, stop, every), f"{why}; {order}, no shape shows it")
        for what, start, stop in (("query", "0", "q"), ("key", "q", "q + kv"), ("value", "q + kv", "q + 2*kv"))
    ]


def _part(dim: int, start: str, stop: str, every: str | None = None) -> Part:
    return Part(dim, parse_expression(start), parse_expression(stop), parse_expression(every) if every else None)
