"""What a model's JSON files may not name: code, kernels, addresses and paths that transformers would fetch or import.

Reads: the contents of `config.json` and `tokenizer_config.json`, as dictionaries, before transformers makes anything of
them. transformers takes most fields as data; those below it takes as the name of something to be had from elsewhere
(looked up in transformers 5.23: `modeling_utils`, `integrations/hub_kernels`, `integrations/moe`, `timm_wrapper`,
`tokenization_auto`). `trust_remote_code` is always False here, so that `auto_map` and `custom_generate/` are never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trace_transfer.errors import ModelError, listing

ATTENTION = ("eager", "sdpa", "flex_attention")
EXPERTS = ("eager", "batched_mm", "grouped_mm")  # transformers has two more, both kernels of the hub
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SHOWN = 80  # characters of a value


def refuse_code_in_config(model: str, config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for code or files from elsewhere.

    Args:
        model: its name, for the message.
        config: the content of its `config.json`.

    Raises:
        ModelError: it does; all such fields are told with their values.
    """
    _refuse(model, "config.json", [*_unknown_type(config), *_problems(config)])


def refuse_code_in_tokenizer(model: str, config: Mapping[str, Any]) -> None:
    """Refuse a `tokenizer_config.json` whose class is none of transformers' tokenizers; raises as the above.

    transformers takes any name of its own there, `RagTokenizer` or `AutoModel`, and loads what that finds.
    """
    name = config.get("tokenizer_class")
    if name is not None and not _is_tokenizer(name):
        _refuse(model, "tokenizer_config.json", [f"tokenizer_class: {_shown(name)}, expected a tokenizer's class"])


def _refuse(model: str, file: str, problems: list[str]) -> None:
    if problems:
        raise ModelError(
            f"{model}: {file} asks for code or files from elsewhere, which are never fetched or run here:\n"
            + listing(problems)
        )


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    for place, key, value, in_config in _fields(config):
        if (check := _CHECKS.get(key.strip("_").removesuffix("_internal"))) is not None:
            problem = check(value)
            if problem is not None:
                yield f"{place}: {_shown(value)}, {problem}"
        elif in_config and _is_method(key):
            yield f"{place}: {_shown(value)}, but that is a method of every config, not a field"


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, bool]]:
    """All fields at any depth: place, key, value, and whether the object that has it becomes a config."""
    waiting: list[tuple[str, Any, bool]] = [("", config, True)]
    while waiting:
        prefix, node, in_config = waiting.pop()
        if isinstance(node, Mapping):
            for key, value in node.items():
                place = f"{prefix}.{key}" if prefix else str(key)
                yield place, str(key), value, in_config
                waiting.append((place, value, isinstance(value, Mapping) and _becomes_config(str(key), value)))
        elif isinstance(node, list):
            waiting += [(f"{prefix}.{number}", one, False) for number, one in enumerate(node)]


def _becomes_config(key: str, value: Mapping[str, Any]) -> bool:
    return key.endswith("_config") or "model_type" in value


def _unknown_type(config: Mapping[str, Any]) -> Iterator[str]:
    """A `model_type` that only the code of `auto_map` knows: transformers would ask to trust it."""
    from transformers import CONFIG_MAPPING

    code = config.get("auto_map")
    if isinstance(code, Mapping) and "AutoConfig" in code and config.get("model_type") not in CONFIG_MAPPING:
        yield (
            f"auto_map.AutoConfig: {_shown(code['AutoConfig'])}, the code of model_type "
            f"{_shown(config.get('model_type'))}, which the installed transformers does not know"
        )


def _attention(value: Any) -> str | None:
    """Of a string, or of an object that has one for each sub-config.

    Flash attention is known only where it is installed: without it transformers takes a kernel of the hub for it.
    """
    from transformers.utils import import_utils

    known = list(ATTENTION)
    for version in (2, 3, 4):
        is_available: Callable[[], bool] = getattr(import_utils, f"is_flash_attn_{version}_available", bool)
        if is_available():
            known.append(f"flash_attention_{version}")
    return _not_of(value, known)


def _experts(value: Any) -> str | None:
    return _not_of(value, EXPERTS)


def _not_of(value: Any, known: Any) -> str | None:
    found = value.values() if isinstance(value, Mapping) else [value]
    if all(one is None or (isinstance(one, str) and one in known) for one in found):
        return None
    return f"expected one of {', '.join(known)}"


def _timm(value: Any) -> str | None:
    """A vision tower's model in timm, which takes `hf-hub:owner/name` and `local-dir:PATH`, too."""
    plain = value is None or (isinstance(value, str) and not set("/:\\") & set(value))
    return None if plain else "expected the plain name of a timm model"


def _timm_arguments(value: Any) -> str | None:
    taken = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    found = sorted(taken & set(value)) if isinstance(value, Mapping) else []
    return f"expected no {', '.join(found)} in it" if found else None


_CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "attn_implementation": _attention,
    "experts_implementation": _experts,
    "architecture": _timm,
    "backbone": _timm,
    "model_args": _timm_arguments,
    "backbone_kwargs": _timm_arguments,
}


def _is_method(key: str) -> bool:
    from transformers import PretrainedConfig

    return key.startswith("__") or callable(getattr(PretrainedConfig, key, None))


def _is_tokenizer(name: Any) -> bool:
    import transformers

    if not isinstance(name, str) or name in ("AutoTokenizer", "RagTokenizer"):
        return False
    # One that this transformers does not have is read from `tokenizer.json` instead.
    return name.endswith(("Tokenizer", "TokenizerFast", "Backend")) or not hasattr(transformers, name)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
