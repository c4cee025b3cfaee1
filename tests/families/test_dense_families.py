"""The dense families: each component does what it is called, seen from outside its module.

What a component does is tested without knowing a family: which module's output enters which other one, and what changes
where if a part of an output is changed. Queries, keys and values are told apart by causality and by linearity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from tests.tiny_models import FAMILIES, build_config, build_model
from trace_transfer.families.anatomy import Anatomy, Unit
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import inventory_of

REGISTRY = load_families()

EXPERTS = {kind for kind, family in REGISTRY.by_model_type.items() if "mlp.router" in family.components}

# The tiny models, one of each set of rules: what holds of LLaMA's names holds of all that have these names. And other
# forms of the families that have several.
RULES = {
    kind: repr([(name, [member.pattern for member in one.members]) for name, one in family.components.items()])
    for kind, family in REGISTRY.by_model_type.items()
}
ALIKE = {RULES[kind]: kind for kind in reversed(FAMILIES) if kind not in EXPERTS}
FORMS: dict[str, tuple[str, dict]] = {kind: (kind, {}) for kind in sorted(ALIKE.values())}
FORMS |= {
    "falcon, one key for all": ("falcon", {"new_decoder_architecture": False, "bias": False}),
    "falcon, one after the other": (
        "falcon", {"num_kv_heads": 6, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False,
                   "alibi": True},
    ),
    "falcon, one norm": ("falcon", {"num_ln_in_parallel_attn": 1}),
    "gpt_bigcode, key for each": ("gpt_bigcode", {"multi_query": False}),
    "stablelm, a norm for each head": ("stablelm", {"qk_layernorm": True}),
    "stablelm, one after the other": ("stablelm", {"use_parallel_residual": False}),
    "opt, as wide as its embedding": ("opt", {"word_embed_proj_dim": 48}),
}  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
CHANGED = 2  # the position at which something is changed


@dataclass(frozen=True)
class Subject:
    """A tiny model in float64, its anatomy, and its first layer's units by component."""

    model: torch.nn.Module
    anatomy: Anatomy

    @classmethod
    @cache
    def of(cls, form: str) -> "Subject":
        kind, changes = FORMS[form]
        model = build_model(build_config(kind, **changes)).double()
        return cls(model, anatomy_of(inventory_of(model), REGISTRY))

    def unit(self, component: str) -> Unit | None:
        for unit in self.anatomy.units:
            if unit.component == component and unit.principal and unit.layer in (0, None):
                return unit
        return None

    def module(self, component: str) -> torch.nn.Module:
        if component == "head":  # its principal's name is the embedding's, if they are tied
            return self.model.get_output_embeddings()
        return self.model.get_submodule(self.unit(component).name.rpartition(".")[0])

    def run(self, *hooks: tuple[torch.nn.Module, Callable]) -> dict[torch.nn.Module, tuple]:
        """(input, output) of each module on the text; a hook gets a module's output and returns another one."""
        seen: dict[torch.nn.Module, tuple] = {}

        def note(module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            seen.setdefault(module, (args[0] if args else next(iter(kwargs.values()), None), output))

        handles = [module.register_forward_hook(lambda _, __, output, f=f: f(output)) for module, f in hooks]
        handles += [one.register_forward_hook(note, with_kwargs=True) for one in self.model.modules()]
        with torch.no_grad():
            self.model(IDS, use_cache=False)
        for handle in handles:
            handle.remove()
        return seen

    def changed(self, component: str, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple:
        """A hook that changes a component's part of its module's output, [..., part]."""
        unit = self.unit(component)

        def hook(output: torch.Tensor) -> torch.Tensor:
            indices = [index for start, stop in unit.ranges or ((0, output.shape[-1]),) for index in range(start, stop)]
            output = output.clone()
            output[..., indices] = change(output[..., indices])
            return output

        return self.module(component), hook

    def inner(self, component: str, *hooks: tuple) -> torch.Tensor:
        """What enters a component's module, [positions, width]."""
        return self.run(*hooks)[self.module(component)][0].reshape(IDS.shape[1], -1)


@pytest.mark.parametrize("form", FORMS)
def test_norms_stand_where_they_are_said_to(form):
    subject = Subject.of(form)
    seen, checked = subject.run(), 0
    for norm, readers in (
        ("norm.pre_attention", ("attention.query", "attention.key", "attention.value")),
        ("norm.pre_mlp", ("mlp.gate", "mlp.up")),
        ("norm.final", ("head",)),
    ):
        for reader in readers:
            if subject.unit(norm) and subject.unit(reader) and not (form == "opt" and reader == "head"):
                reads, gives = (subject.module(component) for component in (reader, norm))
                checked += torch.equal(seen[reads][0].flatten(), seen[gives][1].flatten())
                assert torch.equal(seen[reads][0].flatten(), seen[gives][1].flatten()), (norm, reader)
    for norm, before in (("norm.post_attention", "attention.output"), ("norm.post_mlp", "mlp.down")):
        if subject.unit(norm):
            reads, gives = (subject.module(component) for component in (norm, before))
            assert torch.equal(seen[reads][0].flatten(), seen[gives][1].flatten()), norm
            checked += 1
    assert checked >= (0 if form == "olmo" else 3)


@pytest.mark.parametrize("form", FORMS)
def test_queries_keys_and_values_are_told_apart_by_causality(form):
    """A query matters at its own position only, a key and a value also later; in values attention is linear."""
    subject = Subject.of(form)
    plain = subject.inner("attention.output")
    noise = torch.linspace(-3, 4, 4096, dtype=torch.float64).roll(1000)

    def difference(component: str, sign: float = 1.0) -> torch.Tensor:
        def change(part: torch.Tensor) -> torch.Tensor:
            part = part.clone()
            part.view(IDS.shape[1], -1)[CHANGED] += sign * noise[: part.shape[-1]]
            return part

        return subject.inner("attention.output", subject.changed(component, change)) - plain

    queries, keys, values = (difference(f"attention.{name}") for name in ("query", "key", "value"))
    assert [index for index, row in enumerate(queries) if row.abs().max() > 1e-12] == [CHANGED]
    for found in (keys, values):
        assert found[:CHANGED].abs().max() < 1e-12 < found[CHANGED + 1].abs().max()
    torch.testing.assert_close(difference("attention.value", -1.0), -values, rtol=1e-9, atol=1e-12)
    assert (difference("attention.key", -1.0) + keys).abs().max() > 1e-3 * keys.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_the_gate_is_what_is_activated(form):
    """Behind a gate the inner state is odd in `up` and not in `gate`; without one each neuron is its own row."""
    subject = Subject.of(form)
    plain = subject.inner("mlp.down")
    negated = {
        component: subject.inner("mlp.down", subject.changed(component, torch.neg))
        for component in ("mlp.gate", "mlp.up")
        if subject.unit(component)
    }
    if "mlp.gate" in negated:
        torch.testing.assert_close(negated["mlp.up"], -plain, rtol=1e-9, atol=1e-12)
        assert (negated["mlp.gate"] + plain).abs().max() > 1e-3
        return
    assert (negated["mlp.up"] + plain).abs().max() > 1e-3

    def first(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part[..., :1] + 1, part[..., 1:]], -1)

    moved = (subject.inner("mlp.down", subject.changed("mlp.up", first)) - plain).abs().amax(0)
    assert moved[0] > 1e-3
    assert moved[1:].max() < 1e-12
