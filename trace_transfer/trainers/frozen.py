"""A model of which a core set alone is trained, by whatever loop: frozen, proved, made a patch, and ordinary again.
`CoreCallback` does so in transformers' Trainer and all that stand on it (TRL's, Axolotl's).

Reads: a model in memory and a core file. Writes: a patch. Frozen tensors leave a digest behind, core ones their values
on the CPU. With several processes all of them call everything alike, and the first one compares and writes.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Chosen, Mask
from trace_transfer.engine import slices
from trace_transfer.engine.distributed import Ranks
from trace_transfer.errors import FrozenMovedError, UserError, listing
from trace_transfer.launching import is_first_rank
from trace_transfer.models.checkpoints import OpenedBase
from trace_transfer.models.sources import Inventory, ModelSource, inventory_of
from trace_transfer.models.stored_weights import has_weights
from trace_transfer.models.tensors import converted
from trace_transfer.patch.model_state import as_stored
from trace_transfer.patch.patches import SUFFIX, PatchEntry, write_patch
from trace_transfer.publish.hub import local_file
from trace_transfer.records import read_artefact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WRAPPERS = (
    "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine",
    "OptimizedModule", "PeftModel", slices.Spliced.__name__,
)  # fmt: skip


class WrappedModelError(UserError):
    """A model that another library has taken hold of already, or an optimizer has."""


def freeze_except(
    model: PreTrainedModel, core: CoreFile | Path | str, *, base: Path | str | None = None
) -> CoreTraining:
    """Freeze a model but for a core set, before an optimizer is made and before DDP, FSDP or DeepSpeed get it; refused
    (UserError) where one of these has it, or a core file is of another model.

    Of a tensor that is core in part, that part alone has a gradient and optimizer state. State dicts, checkpoints and
    `save_pretrained` have whole tensors under their ordinary names all the time. As a context manager, the model is
    ordinary again at the end.

    Args:
        core: a core file of this model, read or not, or one on the hub, `owner/name:FILE`.
        base: what a patch is for; None for where the model was loaded from. Only its types are read.

    Examples:
        >>> trained = tt.freeze_except(model, "math.core.json")
        >>> optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        >>> trained.verify()
    """
    _require_unwrapped(model)
    read: CoreFile = core if isinstance(core, CoreFile) else read_artefact(local_file(core), CoreFile)
    file = f"the core set of {core.task}" if isinstance(core, CoreFile) else str(core)
    inventory = replace(inventory_of(model), shapes=slices.shapes_of(model))  # those of ZeRO 3 are kept elsewhere
    if inventory.names_sha256 != read.model.names_sha256:
        raise UserError(
            f"{file}: is of {read.model.id} ({read.model.num_parameters} tensors), and the model is a "
            f"{type(model).__name__} with {len(inventory.shapes)}; carry it over with `trace-transfer map`"
        )
    mask = Mask.of_core(read, inventory.shapes, inventory.tied, file)
    _require_no_optimizer(model, mask)
    return CoreTraining(model, read.task, mask, inventory, _stored_types(model, base, mask))


class CoreTraining:
    """A model in training of which everything but a core set (its `mask`) is frozen; made by `freeze_except`."""

    def __init__(
        self, model: PreTrainedModel, task: str, mask: Mask, inventory: Inventory, stored: Mapping[str, torch.dtype]
    ) -> None:
        self.model, self.task, self.mask = model, task, mask
        self._inventory, self._stored = inventory, stored
        self._places, self._kind = slices.places_of(model), type(model)
        self._required = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._frozen: dict[str, tuple[torch.dtype, str]] = {}
        self._before: dict[str, Tensor] = {}
        self._is_first, self._merged = is_first_rank(), False
        for name, parameter in model.named_parameters():
            parameter.grad = None  # an optimizer that still has the tensor lets it be
            value = slices.whole_of(parameter)
            if self._is_first:  # the others may not even have loaded them
                part = mask.parts.get(name)
                if mask.trains(name):
                    self._before[name] = slices.taken(value, part).clone()
                if part is not None or not mask.trains(name):
                    self._frozen[name] = value.dtype, _digest(slices.outside(value, part))
        slices.freeze(model, mask)
        if mask.sliced:
            model.__class__ = _saving_whole(self._kind, bool(self.tied_parts))

    @property
    def num_trained(self) -> int:
        return self.mask.numel(self._inventory.shapes)

    @property
    def tied_parts(self) -> list[str]:
        return [name for name in self.mask.sliced if len(self._places[name]) > 1]

    def print_trainable_parameters(self) -> None:
        """Print what PEFT's models print."""
        trained, total = self.num_trained, self._inventory.num_elements
        if self._is_first:
            print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    def verify(self) -> None:
        """Prove that all that is frozen is bit for bit what it was; else a FrozenMovedError names all that moved."""
        problems = []
        for name, parameter, _ in self._live():
            part, value = self.mask.parts.get(name), slices.whole_of(parameter)
            if name not in self._frozen:
                continue
            dtype, digest = self._frozen[name]
            now = converted(slices.outside(value, part), dtype)
            if now is None or _digest(now) != digest:
                where = "parameters" if isinstance(part, Chosen) else "rows"
                problems.append(f"{name}: {f'{where} that are not core' if part else 'not core'}, and moved")
            elif parameter.requires_grad and part is None and not self._merged:
                problems.append(f"{name}: not core, and requires a gradient")
        if self._ranks.any(bool(problems)):
            told = listing(problems or ["the first process names them"])
            raise FrozenMovedError(f"{self.task}: weights that were to stay frozen are not what they were:\n{told}")

    def save_patch(self, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
        """Write the patch of what was trained, as `train` does: `trace-transfer patch apply` puts it into the base.

        Args:
            dtype: of the trained values; None for that which they have in memory.

        Raises:
            NumericalError: NaN or Inf, or values that `dtype` cannot hold.
        """
        changes = []
        for name, parameter, values in self._live():
            if self.mask.trains(name):
                whole, part = slices.whole_of(parameter), self.mask.parts[name]
                after = slices.taken(whole, part) if values is None else slices.whole_of(values)
                if self._is_first:
                    before = self._as_begun(name, None if part is None else slices.outside(whole, part))
                    types = before.dtype, dtype or after.dtype
                    changes.append((PatchEntry(name, self._inventory.shapes[name], part, *types), before, after))

        def write() -> None:
            write_patch(
                Path(path), task=self.task, method="trace", names_sha256=self._inventory.names_sha256,
                entries=[entry for entry, *_ in changes],
                values=((entry, before, as_stored(entry, after)) for entry, before, after in changes),
            )  # fmt: skip

        self._ranks.first_alone(write, f"{path}: the first process could not write the patch; it says why")

    def _as_begun(self, name: str, others: Tensor | None) -> Tensor:
        """What was there of a trained part, in the type of the base if that holds the whole tensor."""
        found, stored = self._before[name], self._stored[name]
        before = converted(found, stored)
        return found if before is None or (others is not None and converted(others, stored) is None) else before

    def merge(self) -> None:
        """Make the model an ordinary one again: plain parameters with the trained values, gradients as before. A
        UserError where FSDP or ZeRO 3 have cut it into parts: save it as your trainer does."""
        parameters = list(self.model.parameters())
        if any(isinstance(one, DTensor) or hasattr(one, "ds_id") for one in parameters):
            raise UserError(f"{self.task}: FSDP or ZeRO 3 hold the model in parts; save it, and load it again")
        if self._merged:
            return
        for name in self.mask.sliced:
            slices.unsplice(self._places[name])
        self.model.__class__, self._merged = self._kind, True
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._required)

    def __enter__(self) -> CoreTraining:
        return self

    def __exit__(self, *_: object) -> None:
        self.merge()

    def _live(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter | None]]:
        """Each tensor as it is now, and what is trained of it where that is a parameter of its own."""
        _require_no_fsdp1(self.model)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what it gathered for a forward pass may be rounded
        for name, places in self._places.items():
            module, attribute = places[0]
            spliced = slices.spliced_at(module, attribute)
            yield (name, getattr(module, attribute), None) if spliced is None else (name, spliced[0], spliced[1].values)

    @property
    def _ranks(self) -> Ranks:
        group = torch.distributed
        if not group.is_initialized():
            return Ranks(0, 1, torch.device("cpu"))
        return Ranks(group.get_rank(), group.get_world_size(), next(self.model.parameters()).device)


def _require_unwrapped(model: nn.Module) -> None:
    kinds = {kind.__name__ for module in (model, *model.modules()) for kind in type(module).__mro__}
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WrappedModelError("the model is not all in memory (device_map): load it whole, or with ZeRO 3")
    if wrapper := next((kind for kind in WRAPPERS if kind in kinds), None):
        raise WrappedModelError(f"{wrapper} has the model already: freeze the plain one, and before {wrapper} gets it")


def _require_no_fsdp1(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise WrappedModelError("FSDP 1 makes one flat tensor of many: use FSDP 2 (`fsdp_version: 2`, `fully_shard`)")


def _require_no_optimizer(model: nn.Module, mask: Mask) -> None:
    """Of a tensor that is core in part, an optimizer made before would have the whole one, and never the part."""
    sliced = {id(parameter) for name, parameter in model.named_parameters() if name in mask.sliced}
    optimizers = [one for one in gc.get_objects() if issubclass(type(one), torch.optim.Optimizer)] if sliced else []
    if any(id(held) in sliced for one in optimizers for group in one.param_groups for held in group["params"]):
        raise WrappedModelError("an optimizer was made before the model was frozen; freeze first, or `del` it")


def _stored_types(model: PreTrainedModel, base: Path | str | None, mask: Mask) -> dict[str, torch.dtype]:
    """In which the base on disk has each core tensor; in memory's where the model is from no disk."""
    name = str(base or model.name_or_path)
    source = ModelSource.parse(name) if name else None
    if source is None or (source.directory is not None and source.gguf is None and not has_weights(source.directory)):
        return {name: parameter.dtype for name, parameter in model.named_parameters() if mask.trains(name)}
    opened = OpenedBase(source)
    return {name: opened.dtype(name) for name in mask.parts}


def _saving_whole(kind: type[PreTrainedModel], tied: bool) -> type[PreTrainedModel]:
    """The class of a model of which rows are trained, so that a state dict gathered by ZeRO 3 is saved as an ordinary
    one. Its name stays: it goes into the config. Rows of a tied tensor are tied whatever is loaded: transformers could
    not tie them."""

    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **others: Any
    ) -> None:
        if state_dict is not None:
            slices.ordinary(self, state_dict)
        kind.save_pretrained(self, save_directory, is_main_process, state_dict, **others)

    changes: dict[str, Any] = {"save_pretrained": save_pretrained, "__module__": kind.__module__}
    if tied:
        changes["tie_weights"] = lambda self, *_, **__: None
    return type(kind.__name__, (kind,), changes)


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


class CoreCallback(TrainerCallback):
    """Trains a core set alone: `SFTTrainer(model, ..., callbacks=[tt.CoreCallback("math.core.json")])`.

    Freezes the model when the trainer is made, which is then `trained`; when its training ends, proves that nothing
    else moved, and writes `TASK.patch.safetensors` into `output_dir`. Arguments are those of `freeze_except` and
    `CoreTraining.save_patch`."""

    def __init__(
        self, core: CoreFile | Path | str, *, base: Path | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.core, self.base, self.dtype = core, base, dtype
        self.trained: CoreTraining | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        trained = self.trained = freeze_except(model, self.core, base=self.base)
        if not args.fsdp or not trained.mask.sliced:
            return
        full_states = str(args.fsdp_config.get("state_dict_type", "FULL_STATE_DICT")) == "FULL_STATE_DICT"
        if full_states and args.save_strategy != "no" and not args.save_only_model:
            how = "say `state_dict_type: SHARDED_STATE_DICT` in `fsdp_config`, or `save_only_model: true`"
            raise UserError(f"torch cannot resume rows from checkpoints that are FULL_STATE_DICT; {how}")
        loads_on_meta = str(args.fsdp_config.get("cpu_ram_efficient_loading")).lower() == "true"
        if trained.tied_parts and not loads_on_meta:
            told = f"{trained.tied_parts[0]}: rows of it are core, and it is tied, which FSDP takes for two"
            raise UserError(f"{told}; say `cpu_ram_efficient_loading: true` in `fsdp_config`")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trained is None:
            raise UserError("CoreCallback: give it when the trainer is made: callbacks=[CoreCallback(...)]")
        _require_no_fsdp1(self.trained.model)
        self.trained.print_trainable_parameters()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trained is not None
        self.trained.verify()
        self.trained.save_patch(Path(args.output_dir) / f"{self.trained.task}{SUFFIX}", dtype=self.dtype)
