"""What a forward pass keeps for its backward pass, counted from the model's parameters and what is trained.

Of n = b·t tokens (padded), d wide, with queries q and an MLP f wide, at w bytes a value; after Korthikanti et al., 2022
(arXiv:2205.05198, section 4.1), for RMS norms, gated MLPs and fused attention, so without the term in s²:

- a norm, where something trained lies below it: its input in float32, 4·d (a norm with bias: w·d), and statistics;
  where it is trained itself: what it multiplies, 4·d (some families multiply in float32, others need half of it);
- attention, where queries or something below is trained: w·4·q (queries, keys, values, result; keys and values
  repeated for the query heads, as for padded texts), 4 a head, and the mask, w·t;
- a gated MLP, where gate, up or something below is trained: w·3·f (before and after the activation, and the other
  factor); one without a gate: w·f, or w·4·f where the activation is written out (`gelu_new`);
- the input of a weight that is trained, once for those that share it: w·d, w·q of the attention's output unless that is
  kept already, w·f of `mlp.down`. ZeRO 3 puts a `linear` of its own in torch's place, which keeps the input of frozen
  weights as well, where something below is trained;
- of experts, f is that of the `num_experts_per_tok` to which a token is given (not measured, unlike all the others);
- where scores are capped (Gemma 2), which fused attention cannot: w·3·s a head, and w·v of capped logits;
- the log-softmax of supervised tokens, 4·v; the whole logits, w·v of every token, come and go with their gradient.

Below the lowest trained parameter nothing is kept. With gradient checkpointing: the input of each layer, w·d, and all
of one layer. A parameter of which a slice is trained is kept as a copy for each use. Dropout, where a model has it, and
biases of attention scores are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trace_transfer.anatomy import Anatomy, Unit
from trace_transfer.masks import Mask
from trace_transfer.models import numel
from trace_transfer.training.reach import ABOVE, ATTENTION, MLP, WITHIN, Place, active_share, lowest_trained, place_of

WRITTEN_OUT = ("gelu_new", "gelu_fast")  # activations made of several operations, each of which keeps its input


@dataclass(frozen=True)
class Activations:
    """Bytes.

    Attributes:
        layers: kept from forward to backward pass, by layers, norms and the loss.
        copies: whole parameters into which a trained slice was put.
        logits: of the whole logits and their gradients, for a moment.
    """

    layers: float
    copies: int
    logits: int

    @property
    def total(self) -> int:
        return round(self.layers) + self.copies + self.logits


def activations(
    anatomy: Anatomy, mask: Mask, *, num_texts: int, length: int, supervised: int, itemsize: int,
    checkpointing: bool = False, zero: int = 0,
) -> Activations:  # fmt: skip
    """Of one micro-batch.

    Args:
        length: tokens of its longest text.
        supervised: tokens that are learned from.
        itemsize: bytes of a value in the forward pass.
        zero: DeepSpeed's stage.
    """
    kept = _Kept(anatomy, mask, length, itemsize, zero == 3)
    num_tokens, top = num_texts * length, anatomy.num_layers
    layers = [kept.layer(layer) for layer in range(top)]
    first = max(0, kept.lowest[0])
    inputs = itemsize * kept.hidden * (top - first)
    per_token = kept.above() + (max(layers, default=0.0) + inputs if checkpointing else sum(layers))
    vocabulary = kept.vocabulary
    log_softmax = 4 * supervised * vocabulary
    logits = num_tokens * vocabulary * itemsize + supervised * vocabulary * (4 + itemsize)
    if getattr(kept.config, "final_logit_softcapping", None):
        per_token += itemsize * vocabulary
    copies = sum(itemsize * numel(anatomy.inventory.shapes[name]) for name in mask.sliced)
    return Activations(per_token * num_tokens + log_softmax, copies, logits)


@dataclass(frozen=True)
class _Kept:
    anatomy: Anatomy
    mask: Mask
    length: int
    itemsize: int
    every_input: bool

    @cached_property
    def lowest(self) -> Place:
        return lowest_trained(self.anatomy, self.mask)

    @cached_property
    def config(self) -> Any:
        return self.anatomy.inventory.config.get_text_config()

    @property
    def hidden(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    @cached_property
    def by_layer(self) -> Mapping[int | None, Mapping[str, tuple[Unit, ...]]]:
        """Layer → component → its units."""
        found: dict[int | None, dict[str, tuple[Unit, ...]]] = {}
        for unit in self.anatomy.units:
            components = found.setdefault(unit.layer, {})
            components[unit.component] = (*components.get(unit.component, ()), unit)
        return found

    def trains(self, units: tuple[Unit, ...], *, role: str = "weight") -> bool:
        return any(unit.role == role and self.mask.trains(unit.name) for unit in units)

    def keeps_input(self, place: Place, *parts: tuple[Unit, ...]) -> bool:
        """Whether the input of weights that share it is kept."""
        return any(map(self.trains, parts)) or (self.every_input and any(parts) and self.lowest < place)

    def width(self, units: tuple[Unit, ...]) -> int:
        """Of what a matrix product between the hidden size and something else has on the other side."""
        weights = [unit for unit in units if unit.role == "weight"]
        return round(sum(unit.num_elements * active_share(unit, self.config) for unit in weights) / self.hidden)

    def norm(self, units: tuple[Unit, ...], width: int, num_statistics: int, place: Place) -> float:
        """Per token; of a norm without a bias every operation keeps its input."""
        through, trained = self.lowest < place, self.trains(units, role="norm")
        if any(unit.role == "bias" for unit in units):
            return (self.itemsize * width + 8) * (through or trained)
        return (4 * width + 4 * num_statistics) * through + 4 * width * trained

    def above(self) -> float:
        """Per token, of final norm and head."""
        outside = self.by_layer.get(None, {})
        found = 0.0
        if units := outside.get("norm.final", ()):
            found += self.norm(units, self.hidden, 1, place_of(units[0], self.anatomy.num_layers))
        return found + self.itemsize * self.hidden * self.keeps_input(
            (self.anatomy.num_layers, ABOVE["head"]), outside.get("head", ())
        )

    def layer(self, layer: int) -> float:
        """Per token."""
        components = self.by_layer[layer]
        found = sum(
            self.norm(units, self.hidden, 1, place_of(units[0], self.anatomy.num_layers))
            for component, units in components.items()
            if component.startswith("norm.")
        )
        return found + self._attention(layer, components) + self._mlp(layer, components)

    def _attention(self, layer: int, components: Mapping[str, tuple[Unit, ...]]) -> float:
        parts = {name: components.get(f"attention.{name}", ()) for name in ("query", "key", "value", "output")}
        width, found = self.width(parts["query"]), 0.0
        for name in ("query", "key"):
            norms = tuple(unit for unit in parts[name] if unit.role == "norm")
            if norms:  # of one head each, or of their whole width; its input comes from this place's product
                part = self.width(parts[name])
                count = part // numel(norms[0].shape)
                found += self.norm(norms, part, count, (layer, ATTENTION + 0.5))
        alive = self.lowest <= (layer, ATTENTION)
        if alive:
            num_heads = self.config.num_attention_heads
            found += self.itemsize * (4 * width + self.length) + 4 * num_heads
            if getattr(self.config, "attn_logit_softcapping", None):
                found += self.itemsize * 3 * num_heads * self.length
        if self.keeps_input((layer, ATTENTION), parts["query"], parts["key"], parts["value"]):
            found += self.itemsize * self.hidden
        if self.trains(parts["output"]) and not alive:
            found += self.itemsize * width
        return found

    def _mlp(self, layer: int, components: Mapping[str, tuple[Unit, ...]]) -> float:
        gate, up, down = (components.get(f"mlp.{name}", ()) for name in ("gate", "up", "down"))
        width, found = self.width(up), 0.0
        if self.lowest <= (layer, MLP):
            written_out = getattr(self.config, "hidden_act", None) or getattr(self.config, "activation_function", None)
            found += self.itemsize * width * (3 if gate else 4 if written_out in WRITTEN_OUT else 1)
        if self.keeps_input((layer, MLP), gate, up):
            found += self.itemsize * self.hidden
        return found + self.itemsize * width * self.keeps_input((layer, WITHIN["mlp.down"]), down)
