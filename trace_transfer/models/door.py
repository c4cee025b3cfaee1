"""One verdict on what lies in a model's directory, before any value is read; all commands enter by it.

Reads: `config.json`, `adapter_config.json` and the headers of the weight files; where the config says that two stored
tensors are one, their bytes. Gives: `Findings` of a usable directory, or a `ModelError` with all problems.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, together
from trace_transfer.models.dequantising import CODES, Dequantiser, dequantiser_of
from trace_transfer.models.names_on_disk import LoadedNames, gguf_names
from trace_transfer.models.stored_weights import CONFIG_NAME, StoredTensor, StoredWeights, read_config, read_leniently

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PLAIN = ("F64", "F32", "F16", "BF16")
COMPARED_AT_ONCE = 1 << 24  # bytes
MAX_NAMES = 5

# Last parts of names that only quantised weights have, of tensors that the model itself has no place for.
QUANTISED = re.compile(
    r"(?:[._](?:SCB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+"  # bitsandbytes
    r"|qweight|qzeros|qscales|scales|g_idx"  # GPTQ, AWQ, MXFP4's scales
    r"|(?:weight|input|output|activation)_(?:scale|scales|scale_inv|scale_2|zero_point)|scale_inv|scale_weight"
    r"|weight_(?:packed|shape|global_scale|g_idx)|input_global_scale|qscale_weight|qscale_act|act_scale"  # fp8 …
    r"|blocks|codes|codebooks|W_q|centroids|indices|dense_weights|weight_scales|_?qdata))$"  # MXFP4, AQLM, HQQ, VPTQ …
)
# What older versions of transformers saved with the weights, and compute today.
COMPUTED = re.compile(
    r"(?:rotary_emb\.inv_freq|(?:^|\.)position_ids|attn\.bias|attn\.masked_bias|attention\.(?:masked_)?bias)$"
)


@dataclass(frozen=True)
class Findings:
    """What a usable directory holds beside the tensors of its model.

    Attributes:
        superfluous: stored tensors that the model built from the config lacks; nobody reads them.
        notes: what a user is told of it, a sentence each.
    """

    superfluous: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def refuse_adapter_alone(directory: Path, name: str) -> None:
    """Refuse a directory that is an adapter and no model.

    Raises:
        ModelError: it is; says of which base, and how to merge it.
    """
    if (directory / CONFIG_NAME).is_file():
        return
    files = [file for file in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) if (directory / file).is_file()]
    if files:
        raise ModelError(f"{name}: {adapter_told(_adapter(directory), files[0])}")


def adapter_told(config: Mapping[str, Any], file: str) -> str:
    """What to say of an adapter where a model was expected."""
    base = config.get("base_model_name_or_path") or "its base model"
    kind = f" ({config['peft_type']})" if config.get("peft_type") else ""
    return (
        f"an adapter{kind} of {base}, not a model: it has {file} and no {CONFIG_NAME}. Merge it once and give what "
        f"comes of it:\n{_merging(str(base))}"
    )


def _merging(base: str) -> str:
    return (
        f'  model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
        '  PeftModel.from_pretrained(model, "THE_ADAPTER").merge_and_unload().save_pretrained("MERGED")'
    )


def _adapter(directory: Path) -> Mapping[str, Any]:
    return read_leniently(directory / ADAPTER_CONFIG)


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """The method that a `config.json` says its weights are quantised by; None for plain weights."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if (found := part.get(key)) is not None:
                method = found.get("quant_method") if isinstance(found, dict) else None
                return str(method or key)
    return None


def examine(directory: Path, model: PreTrainedModel, name: str) -> Findings:
    """Compare what is stored with the model that the config makes.

    Args:
        model: on the meta device.
        name: the model's, for messages.

    Raises:
        ModelError: an adapter beside the model, quantised weights, tensors that are missing or of another shape, or two
            different ones where the config says that they are one; all at once.
    """
    stored = StoredWeights.read(directory)
    config = read_config(directory)
    fit = _Fit(model, stored, dequantiser_of(config))
    problems = _beside(directory)
    quantised = _quantised(quantisation_of(config), fit)
    problems += quantised or fit.problems()
    if problems:
        raise ModelError(f"{name}: {together('its files cannot be used as they are', problems)}")
    return Findings(tuple(fit.superfluous), tuple(f"{name}: {note}" for note in (*stored.notes, *fit.notes())))


def examine_gguf(file: Path, model: PreTrainedModel, name: str) -> Findings:
    """As `examine`, of a GGUF file that is whole. Its shapes are compared but for the order of dimensions, which is its
    own."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    stored = {tensor.name: sorted(int(size) for size in tensor.shape if size != 1) for tensor in reader.tensors}
    _, names = gguf_names(model, reader, file)
    made: dict[str, list[str]] = {}
    for key in stored.keys() & names.keys():
        made.setdefault(names[key], []).append(key)
    owners = {id(value): owner for owner, value in model.named_parameters()}
    there = {owners[id(value)] for one, value in model.named_parameters(remove_duplicate=False) if one in made}
    missing = [owner for owner in owners.values() if owner not in there]
    problems = [f"the weights lack {_count(missing)} of the model: {_named(missing)}"] if missing else []
    for one, value in model.named_parameters(remove_duplicate=False):
        keys = made.get(one, [])
        if len(keys) == 1 and stored[keys[0]] != sorted(size for size in value.shape if size != 1):
            problems.append(f"{one} ({keys[0]}): {stored[keys[0]]} in the weights, {list(value.shape)} by its config")
    if problems:
        raise ModelError(f"{name}: {together('cannot be used as it is', problems)}")
    others = sorted(key for key in stored.keys() - names.keys() if not key.startswith("rope_"))
    told = f"{name}: holds {_count(others)} that the model made by its config lacks, not read: {_named(others)}"
    return Findings(tuple(others), (told,) if others else ())


def _beside(directory: Path) -> list[str]:
    if not (directory / ADAPTER_CONFIG).is_file():
        return []
    return [
        f"{ADAPTER_CONFIG} beside a whole model: transformers would add that adapter to the weights when it loads "
        "them. If the model alone is meant, move the adapter's files elsewhere; otherwise merge it there:\n"
        f"{_merging('THE_MODEL')}"
    ]


def _quantised(method: str | None, fit: _Fit) -> list[str]:
    """What says that weights are quantised: the config, tensors beside them, their element types."""
    telling = [key for key in fit.superfluous if QUANTISED.search(key)]
    parameters = [name for name, _ in fit.model.named_parameters(remove_duplicate=False)]
    codes = [k for name in parameters for k in fit.by_name.get(name, ()) if fit.stored.tensors[k].dtype not in PLAIN]
    if codes and not telling:
        codes = [key for key in codes if not fit.is_dequantised(key)]
        if not codes:
            return []
    if not telling and not codes:
        if method is None:
            return []
        return [
            f"its {CONFIG_NAME} says quantised ({method}), its weights are not: if they have been dequantised, remove "
            f"quantization_config from {CONFIG_NAME}"
        ]
    found = [] if method is None else [f"quantization_config in {CONFIG_NAME} ({method})"]
    if codes:
        kinds = ", ".join(sorted({fit.stored.tensors[key].dtype for key in codes}))
        found.append(f"{_count(codes)} of type {kinds}, such as {codes[0]}")
    if telling:
        found.append(f"{_count(telling)} that go with quantised ones, such as {telling[0]}")
    return [quantised_told(found)]


def quantised_told(found: Sequence[str]) -> str:
    """What to say of quantised weights: what was found, and what to do."""
    return (
        f"quantised weights: {'; '.join(found)}. They are codes, not values. Give the model that it was made "
        "from, or dequantise it once where its method runs, and give what comes of it:\n"
        '  model = AutoModelForCausalLM.from_pretrained("THIS", device_map="auto")\n'
        '  model.dequantize().save_pretrained("PLAIN")'
    )


class _Fit:
    """Stored tensors beside those of the model, by the names that transformers gives them when it loads."""

    def __init__(self, model: PreTrainedModel, stored: StoredWeights, dequantiser: Dequantiser | None) -> None:
        self.model, self.stored, self.dequantiser = model, stored, dequantiser
        self.names = LoadedNames.of(model, stored.tensors, dequantiser)
        self.expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self.by_name = {name: keys for name, keys in self.names.keys_of.items() if name in self.expected}
        others = (key for key, name in self.names.at_run_time.items() if name not in self.expected)
        self.superfluous = [key for key in others if not COMPUTED.search(key)]

    def is_dequantised(self, key: str) -> bool:
        """Whether a stored tensor is codes that are read with their scales."""
        if self.dequantiser is None or self.stored.tensors[key].dtype not in CODES:
            return False
        fused = self.names.fused(self.names.at_run_time[key])
        return fused is not None and fused.has_scales

    def problems(self) -> list[str]:
        made, problems = self._shapes()
        owners = {id(value): name for name, value in self._tensors()}
        groups: dict[str, list[str]] = {}
        for name, value in self._tensors(remove_duplicate=False):
            groups.setdefault(owners[id(value)], []).append(name)
        missing = [owner for owner, group in groups.items() if not made.keys() & set(group)]
        ignored = [re.compile(pattern) for pattern in self.model._keys_to_ignore_on_load_missing or ()]
        missing = [name for name in missing if not any(pattern.search(name) for pattern in ignored)]
        problems += self._lacking(missing)
        problems += [line for group in groups.values() for line in self._tied(group)]
        return problems

    def _tensors(self, *, remove_duplicate: bool = True) -> list[tuple[str, Any]]:
        """Tensors, and the buffers that are saved with them."""
        saved: list[tuple[str, Any]] = [*self.model.named_parameters(remove_duplicate=remove_duplicate)]
        saved += [*self.model.named_buffers(remove_duplicate=remove_duplicate)]
        return [(name, value) for name, value in saved if name in self.expected]

    def _shapes(self) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """Shapes at run time of all that is made of stored tensors, and where they are not those of the model."""
        made: dict[str, tuple[int, ...]] = {}
        problems = []
        known: dict[object, dict[str, tuple[int, ...]] | str] = {}
        for name, keys in self.by_name.items():
            fused = self.names.fused(name)
            if fused is None and len(keys) == 1:
                made[name] = self.stored.tensors[keys[0]].shape
                continue
            if fused is None:
                problems.append(f"{name}: {len(keys)} tensors are stored for it: {', '.join(keys[:MAX_NAMES])}")
                made[name] = self.expected[name]
                continue
            shapes = {key: self._on_meta(key) for key in fused.keys}
            like = (
                id(fused.converter),
                tuple((one, len(keys)) for one, keys in fused.sources.items()),
                *((tuple(one.shape), one.dtype) for one in shapes.values()),
            )
            found = known.get(like)
            if found is None:
                found = known[like] = fused.shapes(shapes)
            if isinstance(found, str):
                problems.append(f"{name}, made of {len(keys)} stored tensors such as {keys[0]}: {found}")
                made[name] = self.expected[name]
            elif len(found) == 1:
                made[name] = next(iter(found.values()))
            else:
                made |= fused.shapes(shapes)  # type: ignore[arg-type]  # the same, by its own names
        wrong = [name for name in made if name in self.expected and made[name] != self.expected[name]]
        problems += [
            f"{name}: {list(made[name])} in the weights, {list(self.expected[name])} by {CONFIG_NAME}" for name in wrong
        ]
        if any(0 in made[name] for name in wrong):
            problems.append(
                "tensors without elements are what DeepSpeed's ZeRO 3 leaves where weights were not gathered before "
                "saving: make them of its checkpoint (zero_to_fp32.py), or save again with "
                "stage3_gather_16bit_weights_on_model_save"
            )
        return made, problems

    def _on_meta(self, key: str) -> Tensor:
        stored = self.stored.tensors[key]
        return torch.empty(stored.shape, dtype=CODES.get(stored.dtype), device="meta")

    def _lacking(self, missing: list[str]) -> list[str]:
        if not missing:
            return []
        lines = [f"{self._layers_told()}the weights lack {_count(missing)} of the model: {_named(missing)}"]
        head = self.model.get_output_embeddings()
        if len(missing) == 1 and head is not None and self.model.get_parameter(missing[0]) is head.weight:
            lines[0] += f" (if the head is the embedding, say tie_word_embeddings: true in {CONFIG_NAME})"
        return lines

    def _layers_told(self) -> str:
        """Where other layers are stored than the config has: how many, in one half sentence."""
        for path, there in _layers(self.expected).items():
            stored = _layers(self.names.at_run_time.values()).get(path, set())
            if stored and stored != there:
                return f"{len(stored)} layers are stored below {path}, {CONFIG_NAME} has {len(there)}; "
        return ""

    def _tied(self, group: list[str]) -> list[str]:
        """Tensors that the config says are one, stored more than once: are they?"""
        keys = [self.by_name[name][0] for name in group if len(self.by_name.get(name, ())) == 1]
        stored = [self.stored.tensors[key] for key in keys]
        return [
            f"{keys[0]} and {key} are two different tensors, but one by {CONFIG_NAME} (tie_word_embeddings: true); say "
            "tie_word_embeddings: false there if both are meant, or remove the one that is not"
            for key, other in zip(keys[1:], stored[1:], strict=True)
            if not _same(stored[0], other)
        ]

    def notes(self) -> list[str]:
        notes = [] if self.dequantiser is None else [
            f"its weights are quantised ({self.dequantiser.method}); they are read, and written, as what transformers "
            f"dequantises them to, {str(self.dequantiser.dtype).removeprefix('torch.')}"
        ]  # fmt: skip
        if not self.superfluous:
            return notes
        return [
            *notes,
            f"{self._layers_told()}the weights hold {_count(self.superfluous)} that the model made by {CONFIG_NAME} "
            f"lacks, not read, compared or written: {_named(self.superfluous)}",
        ]


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are equal to the bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as left, other.file.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        for start in range(one.start, one.stop, COMPARED_AT_ONCE):
            size = min(COMPARED_AT_ONCE, one.stop - start)
            if left.read(size) != right.read(size):
                return False
    return True


def _layers(names: Iterable[str]) -> dict[str, set[int]]:
    """Numbers of layers, by the path that they are below: the first number of each name."""
    found: dict[str, set[int]] = {}
    for name in names:
        if (layer := re.match(r"(.*?)\.(\d+)\.", name)) is not None:
            found.setdefault(layer[1], set()).add(int(layer[2]))
    return found


def _count(names: Collection[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names):,} tensors"


def _named(names: Collection[str]) -> str:
    """Names, those that differ in numbers alone as one, the first of them and how many more."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    told = [one if len(group) > 1 else group[0] for one, group in folded.items()]
    more = f" and {len(told) - MAX_NAMES} more" if len(told) > MAX_NAMES else ""
    return ", ".join(told[:MAX_NAMES]) + more
