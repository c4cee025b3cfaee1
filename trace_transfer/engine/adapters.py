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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt
from torch import Tensor, nn

from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.distributed import quiet
from trace_transfer.engine.loading import StartingPoint
from trace_transfer.errors import ModelError, listing
from trace_transfer.files import prepare_directory, sha256_file, sha256_text, write_text
from trace_transfer.models.tensors import require_finite, write_tensors
from trace_transfer.records import read_fields

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, BASE_LAYER, ADAPTER = "base_model.model.", ".base_layer", "default"
A, B = ".lora_A", ".lora_B"

Values = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class AdaptedModel:
    """A starting point whose adapters alone are to be trained (give `mask` to `train`).

    Attributes:
        rank, alpha: r and alpha above.
        seed: A is drawn from it and from the name alone, so that all ranks have the same, whatever was drawn before.
        adapter: directory of an adapter of the same kind to go on with; None for a new one.
    """

    start: StartingPoint
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0
    adapter: Path | None = None

    @property
    def names_sha256(self) -> str:
        """Of the model without its adapters."""
        return self.start.names_sha256

    @property
    def config_sha256(self) -> str:
        return self.start.config_sha256

    @cached_property
    def fingerprint(self) -> str:
        """Of the starting point, of the adapters' size, and of their values or the seed."""
        values = f"seed {self.seed}" if self.adapter is None else sha256_file(_weights(self.adapter))
        return sha256_text(f"{self.start.fingerprint}\nrank {self.rank}\nalpha {float(self.alpha)}\n{values}")

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Run-time name → shape of each of the adapters' values, in the model's order; no weights are read."""
        return self._layout[1]

    @property
    def adapted(self) -> list[str]:
        """The model's own names of the weights beside which adapters stand."""
        return [self.beside(name) for name in self.shapes if A in name]

    @staticmethod
    def beside(name: str) -> str:
        """The model's own name of the weight beside which the adapter of a run-time name stands."""
        return f"{_adapted_module(_stored(name))}.weight"

    @property
    def mask(self) -> Mask:
        """The adapters, and nothing else."""
        return Mask.everything(self.shapes)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The wrapped model; adapters are of the same type as the weights.

        Raises:
            ModelError: weights that cannot be loaded; an adapter that is missing or of another kind.
        """
        model, _ = self._wrap(self.start.load(dtype))
        for name, value in self._adapter_values():
            _put(model, name, value.to(dtype))
        return model

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        """The wrapped model on the meta device, its buffers real."""
        model, _ = self._wrap(self.start.skeleton(dtype))
        for name, shape in self.shapes.items():
            _put(model, name, torch.empty(shape, dtype=dtype, device="meta"))
        return model

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Values:
        """Those tensors of `load(dtype)`, in that order, one at a time."""
        wanted = list(names)
        rest = iter(self.start.values([self._base_names[n] for n in wanted if n not in self.shapes], dtype))
        mine = self._adapter_values([name for name in wanted if name in self.shapes])
        for name in wanted:
            _, value = next(mine) if name in self.shapes else next(rest)
            yield name, value.to(dtype)

    def exact(self, names: Iterable[str]) -> Values:
        """Float32 values of those tensors that `load(torch.bfloat16)` may have rounded, one at a time."""
        wanted = list(names)
        wrapped = {self._base_names[name]: name for name in wanted if name not in self.shapes}
        if wrapped:
            yield from ((wrapped[name], value) for name, value in self.start.exact(wrapped))
        yield from self._adapter_values([name for name in wanted if name in self.shapes])

    def write(self, directory: Path, values: Iterable[tuple[str, Tensor]]) -> None:
        """Write trained adapters, as `train` hands them over, for `PeftModel.from_pretrained` and for a next stage.

        Raises:
            UserError: the directory cannot be written.
            ValueError: they are not all of the adapters' values.
        """
        tensors = {_stored(name): value for name, value in values}
        if tensors.keys() != {_stored(name) for name in self.shapes}:
            raise ValueError(f"{len(tensors)} tensors, expected {', '.join(map(_stored, self.shapes))}")
        config = {
            key: sorted(value) if isinstance(value, set) else value for key, value in self._layout[0].to_dict().items()
        }
        directory = prepare_directory(directory, "adapter's directory")
        write_text(directory / CONFIG, json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True) + "\n")
        write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})

    def _adapter_values(self, names: Iterable[str] | None = None) -> Values:
        """Float32 values of the adapters: an earlier stage's, or new ones."""
        wanted = list(self.shapes if names is None else names)
        if self.adapter is not None:
            yield from self._carried(self.adapter, wanted)
            return
        for name in wanted:
            yield name, _new(name, self.shapes[name], self.seed)

    def _carried(self, adapter: Path, names: Iterable[str]) -> Values:
        self._require_same_kind(adapter)
        with _opened(adapter) as file:
            for name in names:
                yield name, _read(adapter, file, _stored(name))

    def _require_same_kind(self, adapter: Path) -> None:
        found = _read_config(adapter)
        problems = [
            f"{key}: {there} there, {wanted} wanted"
            for key, there, wanted in (("r", found.r, self.rank), ("lora_alpha", found.lora_alpha, self.alpha))
            if there != wanted
        ]
        expected = {_stored(name): shape for name, shape in self.shapes.items()}
        with _opened(adapter) as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
        problems += [
            f"{name}: {list(there[name]) if name in there else 'nothing'} there, "
            f"{list(expected[name]) if name in expected else 'nothing'} wanted"
            for name in sorted(there.keys() | expected.keys())
            if there.get(name) != expected.get(name)
        ]
        if problems:
            raise ModelError(
                f"{adapter}: this adapter is of another kind than the one asked for:\n" + listing(problems)
            )

    @cached_property
    def _layout(self) -> tuple[PeftConfig, Mapping[str, tuple[int, ...]], tuple[str, ...]]:
        """The resolved configuration, the adapters' shapes, and the names of all tensors."""
        model, config = self._wrap(self.start.skeleton(torch.float32))
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        return config, {name: shape for name, shape in shapes.items() if A in name or B in name}, tuple(shapes)

    @cached_property
    def _base_names(self) -> Mapping[str, str]:
        """Run-time name → the model's own, of what is no adapter."""
        adapted = {PREFIX + _adapted_module(_stored(name)) for name in self.shapes}
        found = {}
        for name in self._layout[2]:
            if name not in self.shapes:
                module, _, kind = name.rpartition(".")
                owner = module.removesuffix(BASE_LAYER)
                found[name] = f"{owner if owner in adapted else module}.{kind}".removeprefix(PREFIX)
        return found

    def _wrap(self, model: PreTrainedModel) -> tuple[PreTrainedModel, PeftConfig]:
        """With adapters that have no values yet. Neither gradient checkpointing nor anything else is switched on."""
        with quiet():  # of its setting of fan_in_fan_out, and of transformers' new names
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                r=self.rank, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft only divides it by r
            )  # fmt: skip
            wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
        _require_one_layout(wrapped)
        # peft's wrapper hands on whatever is asked of the model.
        return cast("PreTrainedModel", wrapped), wrapped.peft_config[ADAPTER]


def adapted_weights(adapter: Path) -> list[str]:
    """The model's own names of the weights that an adapter changes, in the order of `merged_values`."""
    with _opened(adapter) as file:
        return [f"{_adapted_module(key)}.weight" for key in _keys_of_a(file)]


def _keys_of_a(file: Any) -> list[str]:
    return [key for key in sorted(file.keys()) if key.endswith(f"{A}.weight")]


def merged_values(state_value: Callable[[str], Tensor], adapter: Path, *, rounded: bool = True) -> Values:
    """W + (alpha / r) B A of each adapted weight, computed in float32, one at a time.

    Args:
        state_value: the model's own name → W, as it is stored.
        adapter: a directory that `AdaptedModel.write` made.
        rounded: to the type of W; else they stay float32.

    Yields:
        The model's own name of each weight, and its value.

    Raises:
        ModelError: there is no such adapter, or it does not fit the weights.
    """
    config = _read_config(adapter)
    scale = config.lora_alpha / config.r
    with _opened(adapter) as file:
        for key in _keys_of_a(file):
            a_ri, b_or = (_read(adapter, file, key.replace(A, kind)) for kind in (A, B))
            name = f"{_adapted_module(key)}.weight"
            value, made = state_value(name), (*b_or.shape[:-1], *a_ri.shape[1:])
            if config.fan_in_fan_out:
                made = made[::-1]
            if tuple(value.shape) != made or (a_ri.ndim, b_or.shape[-1:]) != (2, a_ri.shape[:1]):
                raise ModelError(
                    f"{adapter}: {name}: B {list(b_or.shape)} and A {list(a_ri.shape)} there, {list(value.shape)} in "
                    "the model"
                )
            delta = b_or @ a_ri
            delta = delta.T if config.fan_in_fan_out else delta
            merged = value.float() + delta * scale
            yield name, merged.to(value.dtype) if rounded else merged


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


def _require_one_layout(model: nn.Module) -> None:
    """An adapter's configuration has one word for all layers on whether their weights are stored [in, out]."""
    adapted = {name.partition(A)[0] for name, _ in model.named_parameters() if A in name}
    layouts = {model.get_submodule(name).fan_in_fan_out for name in adapted}
    if len(layouts) != 1:
        raise ModelError(
            f"LoRA cannot be used with this model: {len(adapted)} linear layers; some store their weights as "
            "[in, out], some as [out, in]"
        )


def _stored(name: str) -> str:
    """A run-time name as it is in a file."""
    return name.replace(f".{ADAPTER}.", ".")


def _adapted_module(key: str) -> str:
    """The model's own name of the module that an adapter's value belongs to."""
    return key.removeprefix(PREFIX).partition(B if B in key else A)[0]


def _weights(adapter: Path) -> Path:
    file = adapter / WEIGHTS
    if not file.is_file():
        raise ModelError(f"{adapter}: no adapter is there ({WEIGHTS} is missing)")
    return file


class _Config(BaseModel):
    """`adapter_config.json`, of what is needed."""

    model_config = ConfigDict(strict=True)
    r: PositiveInt
    lora_alpha: FiniteFloat
    fan_in_fan_out: bool


def _read_config(adapter: Path) -> _Config:
    _weights(adapter)
    return read_fields(adapter / CONFIG, _Config, ModelError)


def _read(adapter: Path, file: Any, key: str) -> Tensor:
    """One of an adapter's values, in float32; raises `ModelError` for NaN and Inf."""
    if key not in file.keys():  # noqa: SIM118 (not a dict)
        raise ModelError(f"{adapter / WEIGHTS}: lacks {key}; have it made or copied again")
    value: Tensor = file.get_tensor(key).float()
    require_finite(str(adapter), {key: value})
    return value


def _opened(adapter: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(_weights(adapter), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{adapter / WEIGHTS}: cut short or damaged ({error})") from error
