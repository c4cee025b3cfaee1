"""One regular expression for exactly some of the names of a model, as such or as ms-swift's settings.

Names are split at their dots, and common beginnings and endings are written once, from the front or from the back,
whichever is shorter. Only groups, alternatives, character classes and `?` are used: every dialect reads it alike.

How ms-swift reads it (`swift/utils/transformers_utils.py`): `freeze_parameters_ratio: 1` freezes all tensors, then
those in whose name `trainable_parameters_regex` is found anywhere (`re.search`) train; hence the `^` and `$`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from trace_transfer.core_sets.core_set import WHOLE_ONLY, CoreSet, natural_key, require_exact, require_whole

KEY = "trainable_parameters_regex"
Tokens = tuple[str, ...]


def write_regex(core: CoreSet) -> str:
    """One line: the names that match as a whole are the core set.

    Raises:
        ExportError: parts of tensors are core.
    """
    require_whole(core, "a regular expression", f"it names whole tensors only; {WHOLE_ONLY}")
    return exact_pattern(core.names, core.shapes) + "\n"


def write_ms_swift(core: CoreSet) -> str:
    """The lines of a configuration for `swift sft FILE.yaml` (or its options) that train a core set.

    Raises:
        ExportError: parts of tensors are core.
    """
    import yaml

    require_whole(core, "ms-swift", f"it trains whole tensors only; {WHOLE_ONLY}")
    settings = {"tuner_type": "full", "freeze_parameters_ratio": 1, KEY: f"^{exact_pattern(core.names, core.shapes)}$"}
    header = [
        *core.header("ms-swift"), "Merge it into the file of `swift sft FILE.yaml`, or give each line as an option.",
        "Before version 4 `tuner_type` was called `train_type`.",
    ]  # fmt: skip
    text = "".join(f"# {line}\n" for line in header) + yaml.safe_dump(settings, sort_keys=False, width=1_000_000)
    search = re.compile(yaml.safe_load(text)[KEY]).search
    require_exact(core.names, filter(search, core.shapes), "ms-swift")
    return text


def exact_pattern(names: Collection[str], among: Iterable[str]) -> str:
    """A pattern whose `fullmatch` finds these names and none of the others.

    Args:
        names: one at least.
        among: all names that it may meet; every one of them is tried.

    Raises:
        InexactExportError: it finds others.
    """
    sequences = frozenset(tuple(name.split(".")) for name in names)
    pattern = min((_written(sequences, backwards) for backwards in (False, True)), key=len)
    compiled = re.compile(pattern)
    require_exact(names, [name for name in {*among, *names} if compiled.fullmatch(name)], "regular expressions")
    return pattern


def _written(sequences: frozenset[Tokens], backwards: bool) -> str:
    """A pattern for sequences of one token at least each."""
    prefix = _common(sorted(sequences))
    rest = frozenset(tokens[len(prefix) :] for tokens in sequences)
    suffix = _common(sorted(tokens[::-1] for tokens in rest))[::-1]
    middle = frozenset(tokens[: len(tokens) - len(suffix)] for tokens in rest)
    parts = [*map(re.escape, prefix)]
    if middle != {()}:
        parts.append(_alternatives(middle, backwards))
    return r"\.".join([*parts, *map(re.escape, suffix)])


def _common(sequences: Sequence[Tokens]) -> Tokens:
    """What sorted sequences begin with in common; of each at least one token is left, unless there is only one."""
    if len(sequences) == 1:
        return sequences[0]
    first, last, most = sequences[0], sequences[-1], min(map(len, sequences)) - 1
    count = next((i for i in range(most) if first[i] != last[i]), max(most, 0))
    return first[:count]


def _alternatives(sequences: frozenset[Tokens], backwards: bool) -> str:
    """Sequences of different first (or last) tokens; those that go on alike share a branch."""
    rests: dict[str, set[Tokens]] = {}
    for tokens in sequences:
        token, rest = (tokens[-1], tokens[:-1]) if backwards else (tokens[0], tokens[1:])
        rests.setdefault(token, set()).add(rest)
    branches: dict[frozenset[Tokens], list[str]] = {}
    for token in sorted(rests, key=natural_key):
        branches.setdefault(frozenset(rests[token]), []).append(token)
    return _group([_branch(_any_of(tokens), rest, backwards) for rest, tokens in branches.items()])


def _branch(token: str, rest: frozenset[Tokens], backwards: bool) -> str:
    longer = rest - {()}
    if not longer:
        return token
    text = _written(longer, backwards)
    text = rf"{text}\." if backwards else rf"\.{text}"
    if () in rest:
        text = f"(?:{text})?"
    return text + token if backwards else token + text


def _any_of(tokens: Sequence[str]) -> str:
    numbers = [token for token in tokens if re.fullmatch("[0-9]+", token)]
    words = [re.escape(token) for token in tokens if token not in numbers]
    return _group([*words, *([_numbers(frozenset(numbers))] if numbers else [])])


def _numbers(numbers: frozenset[str]) -> str:
    """`1[0-35]` for 10 to 13 and 15: digit by digit, digits that go on alike in one class."""
    rests: dict[str, set[str]] = {}
    for number in numbers:
        rests.setdefault(number[0], set()).add(number[1:])
    branches: dict[frozenset[str], list[str]] = {}
    for digit in sorted(rests):
        branches.setdefault(frozenset(rests[digit]), []).append(digit)
    return _group([_digits(digits) + _rest_of_number(rest) for rest, digits in branches.items()])


def _rest_of_number(rest: frozenset[str]) -> str:
    longer = rest - {""}
    if not longer:
        return ""
    return f"(?:{_numbers(longer)})?" if "" in rest else _numbers(longer)


def _digits(digits: Sequence[str]) -> str:
    """A class of digits; three or more in a row as a range."""
    if len(digits) == 1:
        return digits[0]
    runs: list[list[str]] = []
    for digit in digits:
        if runs and int(digit) == int(runs[-1][-1]) + 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    return f"[{''.join(f'{run[0]}-{run[-1]}' if len(run) > 2 else ''.join(run) for run in runs)}]"


def _group(branches: Sequence[str]) -> str:
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
