"""A first rules file for an unknown architecture: `Observed` and the known families → `Draft`.

Nothing here knows a family. A name is what the most similar known family takes it for; a norm is what its place in the
pass says; what is left is guessed by words and shapes. Each line of the draft says why it is there, and what could not
be guessed is a list of names to do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, Literal

from trace_transfer.errors import RulesError
from trace_transfer.models import numel
from trace_transfer.rules.components import LAYER_COMPONENTS, OUTSIDE_COMPONENTS
from trace_transfer.rules.draft_sizes import Sizes, known_parts, parts_by_shape
from trace_transfer.rules.draft_text import Draft, DraftLine, draft_text
from trace_transfer.rules.expressions import Expression
from trace_transfer.rules.observing import EMBEDDING, NORM, Observed
from trace_transfer.rules.parsing import default_role
from trace_transfer.rules.registry import FamilyRegistry
from trace_transfer.rules.tables import NUMBER, Family, Member, Part

# What a module is called that does this; whole words of its name.
WORDS = {
    "attention.query": {"q", "query", "wq"},
    "attention.key": {"k", "key", "wk"},
    "attention.value": {"v", "value", "wv"},
    "mlp.gate": {"gate", "w1"},
    "mlp.up": {"up", "w3"},
}
ENDS = ("attention.output", "mlp.down")
IN_ATTENTION = re.compile(r"att(entio)?n|^mixer$")
NOT_TEXT = re.compile(r"vision|visual|image|audio|speech|multi_?modal")


@dataclass(frozen=True)
class Template:
    """A parameter of every layer, named from below the layer, or a single one outside the layers by its whole name."""

    pattern: str
    shape: tuple[int, ...]
    first: str  # the whole name where it first stands
    everywhere: bool

    @property
    def module(self) -> str:
        """The module that holds it; a parameter that is neither weight nor bias stands for itself."""
        head, _, last = self.pattern.rpartition(".")
        return head if last in ("weight", "bias") else self.pattern


@dataclass
class _Drafter:
    observed: Observed
    registry: FamilyRegistry
    lines: list[DraftLine] = field(default_factory=list)
    todo: list[Template] = field(default_factory=list)

    @cached_property
    def config(self) -> Any:
        return self.observed.inventory.config

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(self.config)

    @cached_property
    def layer_path(self) -> str:
        """The module path below which names go on with 0, 1, 2 …: of as many as the config says, with most elements."""
        found: dict[str, Counter[int]] = {}
        for name, shape in self.observed.inventory.shapes.items():
            if match := re.search(r"\.(0|[1-9][0-9]*)\.", name):
                found.setdefault(name[: match.start()], Counter())[int(match[1])] += numel(shape)
        wanted = getattr(self.config.get_text_config(), "num_hidden_layers", None)
        paths = [path for path, layers in found.items() if sorted(layers) == list(range(len(layers)))]
        if not paths:
            raise RulesError(
                f"no rules can be drafted for {self.config.model_type}: none of its parameters stands in a list of "
                "layers 0, 1, 2 …"
            )
        return max(paths, key=lambda path: (len(found[path]) == wanted, found[path].total()))

    @cached_property
    def templates(self) -> tuple[list[Template], list[Template]]:
        """Those below the layers, and those outside of them; aliases of tied parameters among them."""
        inventory = self.observed.inventory
        shapes = {**inventory.shapes, **{name: inventory.shapes[owner] for name, owner in inventory.tied.items()}}
        whole = re.compile(re.escape(self.layer_path) + r"\.([0-9]+)\.(.+)")
        below: dict[str, dict[int, str]] = {}
        outside, layers = [], set()
        for name, shape in shapes.items():
            if match := whole.fullmatch(name):
                pattern = ".".join(NUMBER if part.isdecimal() else part for part in match[2].split("."))
                below.setdefault(pattern, {}).setdefault(int(match[1]), name)
                layers.add(int(match[1]))
            else:
                outside.append(Template(name, shape, name, True))
        inside = []
        for pattern, found in below.items():
            name = found[min(found)]
            inside.append(Template(pattern, shapes[name], name, set(found) == layers))
        return inside, outside

    @cached_property
    def ranked(self) -> list[tuple[Family, Mapping[str, list[tuple[str, int, Member]]]]]:
        """The known families, most similar names first, each with pattern → (component, place in it, member)."""
        own = {one.pattern for group in self.templates for one in group}
        order = []
        for family in self.registry.families.values():
            known: dict[str, list[tuple[str, int, Member]]] = {}
            for component in (*family.components.values(), *family.outside.values()):
                for index, member in enumerate(component.members):
                    known.setdefault(member.pattern, []).append((component.name, index, member))
            alike = len(own & set(known)) / len(own | set(known))
            named = SequenceMatcher(None, self.config.model_type, family.name).ratio()
            order.append((alike, named, family.name, family, known))
        return [(family, known) for *_, family, known in sorted(order, key=lambda one: one[:3], reverse=True)]

    # ------------------------------------------------------------ inside the layers

    def draft_inside(self) -> None:
        norms = []
        for template in self.templates[0]:
            if self.kind(template) == NORM:
                norms.append(template)
            elif not (
                self.as_known(template, LAYER_COMPONENTS)
                or self.by_words(template)
                or self.as_known(template, LAYER_COMPONENTS, by_tail=True)
            ):
                self.todo.append(template)
        for template in norms:
            if not self.norm(template):
                self.todo.append(template)

    def kind(self, template: Template) -> str:
        return self.observed.kinds.get(template.first.rpartition(".")[0], "")

    def add(
        self, component: str, template: Template, why: str, sure: bool, place: int = 99, *, role: str | None = None,
        optional: bool = False, part: Part | None = None, shared: bool = False,
        head: Expression | Literal[False] | None = None,
    ) -> None:  # fmt: skip
        role = role or default_role(template.pattern)
        optional = optional or not template.everywhere
        taken = [one.role for one in self.lines if one.component == component]
        if role in taken and not optional and part is None:
            role = template.module.rpartition(".")[2] + ("_bias" if template.pattern.endswith("bias") else "")
        shown = None if role == default_role(template.pattern) else role
        self.lines.append(
            DraftLine(component, template.pattern, optional, role, shown, why, sure, place, part, shared, head)
        )

    def as_known(self, template: Template, allowed: Mapping[str, str], by_tail: bool = False) -> bool:
        """As the most similar family that knows the name has it, if its parts, where it has some, fit the shape.

        `by_tail` is content with a name that differs in its first module.
        """
        for family, known in self.ranked:
            patterns = (
                [one for one in known if _tail(one) and _tail(one) == _tail(template.pattern)]
                if by_tail
                else [template.pattern]
            )
            found = [one for pattern in patterns[:1] for one in known.get(pattern, ()) if one[0] in allowed]
            if not found or not known_parts(family, [one[2] for one in found], template.shape, self.sizes):
                continue
            for component, place, member in found:
                part, why = member.part, f"as in {family.name}"
                why += f", where it is {member.pattern}" if by_tail else ""
                if part is not None:
                    why = f"{part}, because {family.name} has it so and the shape fits; a shape shows no order of parts"
                self.add(
                    component, template, why, part is None and not by_tail, place, role=member.role,
                    optional=member.optional, part=part, shared=member.shared, head=member.head,
                )  # fmt: skip
            return True
        return False

    def by_words(self, template: Template) -> bool:
        """By the words of a module's name and the shape of its weight; a bias goes where its weight went."""
        if template.pattern.endswith(".bias"):
            weights = [one for one in self.lines if one.pattern == template.module + ".weight"]
            for one in weights:
                part = replace(one.part, dim=0) if one.part and one.part.dim == 1 else one.part
                why = "the bias of the line above"
                self.add(one.component, template, why, one.sure, one.place, part=part, shared=one.shared)
            return bool(weights)
        attention = self.in_attention(template)
        matrix = self.matrix(template)
        if matrix is None:
            return False
        rows, columns = matrix
        hidden, shape = self.sizes.hidden, f"its shape is {list(template.shape)}"
        parts = parts_by_shape(self.sizes, template.module, rows, attention, self.inner, self.transposed(template))
        if columns == hidden and parts:
            for component, part, why in parts:
                self.add(component, template, why, False, part=part)
            return True
        words = set(re.split(r"[._]", template.module))
        if attention:
            for component in ("attention.query", "attention.key", "attention.value"):
                if words & WORDS[component] and columns == hidden:
                    self.add(component, template, f"its name says so, and {shape}", False)
                    return True
            if rows == hidden:
                self.add("attention.output", template, f"it leads from attention to the stream: {shape}", False)
            return rows == hidden
        if rows == hidden and columns == self.inner:
            self.add("mlp.down", template, f"it leads back to the stream: {shape}", False)
            return True
        if columns == hidden and rows == self.inner:
            component, why = self.gate_or_up(template, words)
            self.add(component, template, f"{why}, and {shape}", False)
            return True
        return False

    def gate_or_up(self, template: Template, words: set[str]) -> tuple[str, str]:
        others = [one for one in self.templates[0] if one is not template and one.shape == template.shape]
        if not any(self.matrix(one) and not self.in_attention(one) for one in others):
            return "mlp.up", "it is the only matrix into the MLP"
        if template.first.rpartition(".")[0] in self.observed.activated:
            return "mlp.gate", "its output enters the activation"
        if words & WORDS["mlp.gate"]:
            return "mlp.gate", "its name says so"
        return "mlp.up", "its name says so" if words & WORDS["mlp.up"] else "another one of its shape is the gate"

    def in_attention(self, template: Template) -> bool:
        return any(IN_ATTENTION.search(part) for part in template.module.split(".")[:-1])

    def transposed(self, template: Template) -> bool:
        return self.kind(template) == "conv1d"

    def matrix(self, template: Template) -> tuple[int, int] | None:
        """(outputs, inputs) of a weight."""
        if len(template.shape) != 2 or not template.pattern.endswith(".weight") or self.kind(template) == EMBEDDING:
            return None
        return template.shape[::-1] if self.transposed(template) else template.shape

    @cached_property
    def inner(self) -> int:
        """The MLP's inner width: what leads back to the stream, outside of attention, has as many inputs."""
        found = [self.matrix(one) for one in self.templates[0] if not self.in_attention(one)]
        widths = [columns for rows, columns in filter(None, found) if rows == self.sizes.hidden != columns]
        return max(widths, default=0)

    # ------------------------------------------------------------ norms

    def side_of(self, module: str) -> str | None:
        """`attention` or `mlp`: what a module below the layer belongs to, by what was found of those in it."""
        for one in self.lines:
            holder = one.pattern.rpartition(".")[0]
            if f"{one.pattern}.".startswith(module + ".") or holder == module:
                return one.component.partition(".")[0]
        return None

    def near(self, template: Template, which: Mapping[str, frozenset[str]]) -> list[str]:
        """The modules of the same layer whose output a norm gets, or that get its output."""
        module = template.first.rpartition(".")[0]
        layer = template.first.removesuffix(template.pattern)
        return sorted(one.removeprefix(layer) for one in which.get(module, ()) if one.startswith(layer))

    def norm(self, template: Template) -> bool:
        inside = self.side_of(template.module.partition(".")[0]) if "." in template.module else None
        if inside:
            return self.as_known(template, LAYER_COMPONENTS) or self.inner_norm(template)
        readers = self.near(template, self.observed.readers)
        sources = self.near(template, self.observed.sources)
        after, before = (
            {side for one in found if (side := self.side_of(one)) and side != "norm"} for found in (sources, readers)
        )
        ends = {one.pattern.removesuffix(".weight") for one in self.lines if one.component in ENDS}
        if before and not ends & set(sources):  # what it gets may have the stream added to it already
            after = set()
        places = [f"norm.post_{side}" for side in sorted(after)] or [f"norm.pre_{side}" for side in sorted(before)]
        if not places:
            return self.as_known(template, LAYER_COMPONENTS)
        seen = f"its input is the output of {sources[0]}" if after else f"its output enters {', '.join(readers)}"
        family, known = next(((f, k) for f, k in self.ranked if template.pattern in k), (None, {}))
        agreed = {component for component, *_ in known.get(template.pattern, ())} == set(places)
        for component in places:
            shared = len(places) > 1
            why = f"as in {family.name}: {seen}" if agreed and family else seen
            self.add(component, template, why, agreed and not shared, shared=shared)
        return True

    def inner_norm(self, template: Template) -> bool:
        """A norm inside attention or MLP goes with what its name says, or with the matrix that it stands before."""
        words = set(re.split(r"[._]", template.module.rpartition(".")[2]))
        role = "norm_bias" if template.pattern.endswith("bias") else None
        for component in ("attention.query", "attention.key", "attention.value"):
            if words & WORDS[component]:
                self.add(component, template, "its name says so, and it is a norm", False, role=role)
                return True
        for module in (*self.near(template, self.observed.readers), *self.near(template, self.observed.sources)):
            for one in [one for one in self.lines if one.pattern == module + ".weight"]:
                self.add(one.component, template, f"it stands next to {module}", False, role=role)
                return True
        return False

    # ------------------------------------------------------------ outside the layers

    def draft_outside(self) -> list[tuple[str, str]]:
        """What is outside the layers; returns what takes no part, as (module, reason)."""
        excluded: dict[str, str] = {}
        for template in self.templates[1]:
            module = template.first.rpartition(".")[0]
            other = next((part for part in template.pattern.split(".")[:-1] if NOT_TEXT.search(part)), None)
            if other is not None:
                path = template.pattern[: template.pattern.index(other) + len(other)]
                excluded.setdefault(path, "by its name no part of the language model")
            elif module == self.observed.embedding or module == self.observed.head:
                component = "head" if module == self.observed.head else "embedding"
                self.add(component, template, "the model says so itself", True, 0)
            elif not (self.as_known(template, OUTSIDE_COMPONENTS) or self.beside(template, module)):
                self.todo.append(template)
        return list(excluded.items())

    def beside(self, template: Template, module: str) -> bool:
        if self.kind(template) == EMBEDDING and re.search(r"pos|wpe", module):
            self.add("embedding.position", template, "an embedding whose name speaks of positions", False)
        elif self.kind(template) == NORM and self.observed.embedding in self.observed.sources.get(module, ()):
            self.add("embedding", template, "its input is the output of the embedding", False)
        elif self.kind(template) == NORM:
            self.add("norm.final", template, "a norm outside the layers", False)
        else:
            return False
        return True


def _tail(pattern: str) -> str | None:
    tail = pattern.partition(".")[2]
    return tail if "." in tail else None


def draft_family(observed: Observed, registry: FamilyRegistry) -> Draft:
    """Write a first rules file for a model.

    Raises:
        RulesError: the model has no list of layers.
    """
    drafter = _Drafter(observed, registry)
    drafter.draft_inside()
    excluded = drafter.draft_outside()
    kind = observed.inventory.model_type
    nearest = drafter.ranked[0][0].name if drafter.ranked else None
    return draft_text(
        kind, nearest, drafter.layer_path, _ordered(drafter.lines), drafter.sizes.used,
        excluded, [(one.pattern, one.shape) for one in drafter.todo], observed.stopped,
    )  # fmt: skip


def _ordered(lines: Sequence[DraftLine]) -> list[DraftLine]:
    """By component, in each the weights first, then as the family has them that they were taken from."""
    order = [*LAYER_COMPONENTS, *OUTSIDE_COMPONENTS]
    return sorted(lines, key=lambda one: (order.index(one.component), one.role != "weight", one.place))
