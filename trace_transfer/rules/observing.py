"""What a model's modules show of themselves before anything is known about its family: config → `Observed`.

Nothing but the config is read. The model is built on the meta device and run there on a few tokens: no number is
computed, but it is seen which module's output enters which other module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import first_line
from trace_transfer.models import Inventory, build_meta_model, inventory_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LINEAR, TRANSPOSED, EMBEDDING, NORM, OTHER = "linear", "conv1d", "embedding", "norm", "other"
NUM_TOKENS = 5


@dataclass(frozen=True)
class Observed:
    """A model's parameters and what is seen of the modules that hold them.

    `kinds` says what a module is; `embedding` and `head` are the modules that the model itself names so. `readers` maps
    a module to those that its output enters as it is, `sources` a module to those whose output it gets as it is;
    `activated` are the modules whose output enters an activation. `stopped` is why the pass ended early, if it did.
    """

    inventory: Inventory
    kinds: Mapping[str, str]
    embedding: str | None
    head: str | None
    readers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)
    activated: frozenset[str] = frozenset()
    stopped: str | None = None


def observe(config: PretrainedConfig) -> Observed:
    """Build a model on the meta device and look how its modules hang together."""
    import torch

    model = build_meta_model(config, torch.bfloat16)  # experts are multiplied together in this precision only
    names = {id(module): name for name, module in model.named_modules()}
    inventory = inventory_of(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    seen = _passed(model.to_empty(device="meta"))
    readers: dict[str, set[str]] = {}
    sources: dict[str, set[str]] = {}
    for name, tensor in seen.outputs:
        for other in seen.inputs.get(id(tensor), ()):
            if not other.startswith(name + ".") and other != name:
                readers.setdefault(name, set()).add(other)
                sources.setdefault(other, set()).add(name)
    holders = {name.rpartition(".")[0] for name in (*inventory.shapes, *inventory.tied)}
    activations = {name for name, module in model.named_modules() if _is_activation(name, module)}
    return Observed(
        inventory=inventory,
        kinds={name: _kind(module) for name, module in model.named_modules() if name in holders},
        embedding=names.get(id(embedding)),
        head=names.get(id(head)) if head is not None else None,
        readers={name: frozenset(found) for name, found in readers.items()},
        sources={name: frozenset(found) for name, found in sources.items()},
        activated=frozenset(name for name, found in readers.items() if found & activations),
        stopped=seen.stopped,
    )


def _kind(module: nn.Module) -> str:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return TRANSPOSED
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if "norm" in type(module).__name__.lower():
        return NORM
    return LINEAR if isinstance(module, nn.Linear) else OTHER


def _is_activation(name: str, module: nn.Module) -> bool:
    """A module without modules and, mostly, parameters that is called so, or is one of torch's or transformers'."""
    leaf = next(module.children(), None) is None
    where = type(module).__module__
    last = name.rpartition(".")[2]
    return leaf and (where.startswith(("torch.nn.modules.activation", "transformers.activations")) or "act" in last)


@dataclass
class _Pass:
    """One pass: which modules got a tensor, by its identity, and (module, output) in order."""

    inputs: dict[int, list[str]] = field(default_factory=dict)
    outputs: list[tuple[str, Any]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # as long as a tensor lives, no other one has its identity
    stopped: str | None = None

    def before(self, name: str, values: tuple[Any, ...]) -> None:
        tensor = _first_tensor(values)
        if tensor is not None:
            self.kept.append(tensor)
            self.inputs.setdefault(id(tensor), []).append(name)

    def after(self, name: str, output: Any) -> None:
        tensor = _first_tensor(output if isinstance(output, tuple) else (output,))
        if tensor is not None:
            self.outputs.append((name, tensor))


def _first_tensor(values: tuple[Any, ...]) -> Any:
    import torch

    return next((one for one in values if isinstance(one, torch.Tensor)), None)


def _passed(model: nn.Module) -> _Pass:
    """The pass that got farthest: with a mask that is ready, or with the model's own."""
    import torch

    ids = torch.zeros((1, NUM_TOKENS), dtype=torch.long, device="meta")
    mask = torch.zeros((1, 1, NUM_TOKENS, NUM_TOKENS), dtype=torch.bfloat16, device="meta")
    best = _run(model, ids, {"attention_mask": mask, "position_ids": ids})
    if best.stopped is not None:
        best = max(best, _run(model, ids, {}), key=lambda one: (one.stopped is None, len(one.outputs)))
    return best


def _run(model: nn.Module, ids: Any, options: Mapping[str, Any]) -> _Pass:
    import torch

    found = _Pass()
    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: found.before(name, (*args, *kwargs.values())), with_kwargs=True
                ),
                module.register_forward_hook(lambda _, args, output, name=name: found.after(name, output)),
            ]
    try:
        with torch.no_grad():
            model(ids, use_cache=False, **options)
    except Exception as error:  # what asks for a number stops the pass; the draft says so and makes do with the rest
        found.stopped = first_line(error)
    for handle in handles:
        handle.remove()
    return found
