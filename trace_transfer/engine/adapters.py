"""LoRA (Hu et al., 2022, arXiv 2106.09685) through peft: a starting point with adapters, their files, their merging.

An adapted model is its starting point's with a pair of small matrices beside each linear layer but the head: A [r, in],
drawn by chance, and B [out, r], 0 at first. W x becomes W x + (alpha / r) B A x; W stays as it is.

Reads: a starting point; the adapter of an earlier stage. Writes `adapter_config.json` and `adapter_model.safetensors`,
an ordinary adapter of peft's. Of the two the values come last: a directory that has them is whole.

Names: `base_model.model.NAME` is what peft calls the model's NAME, with `.base_layer` in it where there is an adapter.
In files an adapter's values lack the `.default` that they have at run time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.loading import StartingPoint, Values
from trace_transfer.errors import ModelError
from trace_transfer.files import prepare_directory, sha256_file, sha256_text, write_text
from trace_transfer.models.tensors import require_finite, write_tensors
from trace_transfer.printable import quiet

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class AdaptedModel:
    """A starting point whose adapters alone are to be trained (give `mask` to `train`)."""

    start: StartingPoint
    rank: int = 8
    alpha: float = 16.0
    # A is drawn from it and from the name alone, so that all ranks have the same, whatever was drawn before
    seed: int = 0
    adapter: Path | None = None  # directory of an adapter of the same kind to go on with; None for a new one

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """That of the starting point, its fingerprint with the adapters' size, and their values or the seed."""
        start = self.start.identity
        values = f"seed {self.seed}" if self.adapter is None else sha256_file(self.adapter / WEIGHTS)
        sizes = f"rank {self.rank}\nalpha {float(self.alpha)}"
        return {**start, "fingerprint": sha256_text(f"{start['fingerprint']}\n{sizes}\n{values}")}

    @cached_property
    def _layout(self) -> tuple[PeftConfig, Mapping[str, tuple[int, ...]]]:
        model, config = self._wrap(self.start.skeleton(torch.float32))
        return config, {name: tuple(p.shape) for name, p in model.named_parameters() if A in name or B in name}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Run-time name → shape of each of the adapters' values, in the model's order; no weights are read."""
        return self._layout[1]

    @staticmethod
    def beside(name: str) -> str:
        """The model's own name of the weight beside which the adapter of a run-time name stands."""
        return f"{_own(name).partition(B if B in name else A)[0]}.weight"

    @property
    def mask(self) -> Mask:
        return Mask.everything(self.shapes)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The wrapped model; adapters are of the same type as the weights."""
        model, _ = self._wrap(self.start.load(dtype))
        for name, value in self._adapter_values(self.shapes):
            _put(model, name, value.to(dtype))
        return model

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        """The wrapped model on the meta device, its buffers real."""
        model, _ = self._wrap(self.start.skeleton(dtype))
        for name, shape in self.shapes.items():
            _put(model, name, torch.empty(shape, dtype=dtype, device="meta"))
        return model

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Values:
        wanted = list(names)
        rest = self.start.values([_own(name) for name in wanted if name not in self.shapes], dtype)
        mine = self._adapter_values([name for name in wanted if name in self.shapes])
        for name in wanted:
            yield name, next(mine if name in self.shapes else rest)[1].to(dtype)

    def write(self, directory: Path, values: Iterable[tuple[str, Tensor]]) -> None:
        """Write trained adapters for `PeftModel.from_pretrained` and for a next stage."""
        config = {**self._layout[0].to_dict(), "inference_mode": True}
        tensors = {_stored(name): value for name, value in values}
        directory = prepare_directory(directory, "adapter's directory")
        text = json.dumps(config, indent=2, sort_keys=True, default=sorted)  # JSON has no sets
        write_text(directory / CONFIG, text + "\n")
        write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})

    def merged(self, state_value: Callable[[str], Tensor], adapter: Path) -> Values:
        """W + (alpha / r) B A of each adapted weight, in float32, one at a time; W is asked for by its own name."""
        transposed, values = self._layout[0].fan_in_fan_out, _read(adapter)  # type: ignore[attr-defined]
        for key, a_ri in values.items():
            if A in key:
                name, delta = self.beside(key), values[key.replace(A, B)] @ a_ri
                yield name, state_value(name).float() + (delta.T if transposed else delta) * (self.alpha / self.rank)

    def _adapter_values(self, names: Iterable[str]) -> Values:
        known = None if self.adapter is None else _read(self.adapter)
        for name in names:
            yield name, _new(name, self.shapes[name], self.seed) if known is None else known[_stored(name)]

    def _wrap(self, model: PreTrainedModel) -> tuple[PreTrainedModel, PeftConfig]:
        """With adapters that have no values yet. Neither gradient checkpointing nor anything else is switched on."""
        with quiet():  # of its setting of fan_in_fan_out, and of transformers' new names
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                r=self.rank, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft only divides it by r
            )  # fmt: skip
            wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
        # peft's wrapper hands on whatever is asked of the model.
        return cast("PreTrainedModel", wrapped), wrapped.peft_config["default"]


def _new(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """B is 0, A uniform in ±1/sqrt(in): peft's own distributions."""
    if B in name:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(int(sha256_text(f"{seed}/{name}")[:15], 16))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    module, _, kind = name.rpartition(".")
    setattr(model.get_submodule(module), kind, nn.Parameter(value))


def _stored(name: str) -> str:
    """A run-time name as it is in a file."""
    return name.replace(".default.", ".")


def _own(name: str) -> str:
    """The model's own name of what peft calls so."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _read(adapter: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = {key: value.float() for key, value in load_file(adapter / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{adapter / WEIGHTS}: missing, cut short or damaged ({error})") from error
    require_finite(str(adapter), values)
    return values
