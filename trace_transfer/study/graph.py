"""Cells → the graph of their steps, each shared by all cells that need the same.

warm-start (of each task) → evidence → identify ─┐   (scores at the base need no warm start: identify alone)
match (source, target) ──────────────────────────┴→ map ─→ train → evaluate
baseline (the base's scores) ─────────────────────────────────────┘  └→ represent
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.files import sha256_file, sha256_text
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.content import config_files_sha256, tokenizer_sha256
from trace_transfer.models.sources import ModelSource
from trace_transfer.reporting.records import TUNING
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.study.cells import Cell, cells_of
from trace_transfer.study.run_file import Study
from trace_transfer.study.steps import Step
from trace_transfer.study.tuning import chosen_rates

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
NO_WEIGHTS = "no weights here"
# Settings of warm starts and scores that decide what is collected, not what is chosen of it.
_COLLECTED = ("fisher", "fisher_at", "fisher_examples")


@dataclass(frozen=True)
class RunGraph:
    """All steps of a run, in an order in which each comes after what it needs, and the steps of each cell.

    Attributes:
        chosen: method → its learning rate, where they are tuned and it is known.
    """

    run: Study
    graph: nx.DiGraph
    cells: tuple[tuple[Cell, Mapping[str, Step]], ...]
    represent: Step | None
    chosen: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Methods whose learning rate is not chosen yet: their models for the comparison are no part of it."""
        names = tuple(method.name for method in self.run.methods)
        return () if self.run.tuning is None else tuple(name for name in names if name not in self.chosen)

    @property
    def steps(self) -> tuple[Step, ...]:
        known = self.graph.nodes
        return tuple(known[address]["step"] for address in nx.lexicographical_topological_sort(self.graph, self._place))

    def _place(self, address: str) -> int:
        return int(self.graph.nodes[address]["place"])

    def dependants(self, step: Step) -> tuple[Step, ...]:
        return tuple(self.graph.nodes[address]["step"] for address in self.graph.successors(step.address))

    def label(self, step: Step) -> str:
        """For messages: the kind, what task it is of, and for which cells it is done."""
        task = step.settings.get("task")
        users = [cell.label for cell, steps in self.cells if any(step is one for one in steps.values())]
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        return " ".join([step.kind, *([task["name"]] if task else []), *([f"({users[0]}{more})"] if users else [])])


def build_graph(run: Study) -> RunGraph:
    """Lay out all steps that are known; reads configs, headers and hashes of data, no weights, and where learning rates
    are tuned the scores of what is finished: until all rates are chosen, another call may give more steps.

    Raises:
        UserError: settings or models that cannot be used.
    """
    builder, chosen = _Builder(run), {}
    if run.tuning is not None:
        chosen = chosen_rates(run, [(cell, builder.cell(cell)) for cell in cells_of(run) if cell.axis == TUNING])
        builder.graph = nx.DiGraph()
    cells = tuple((cell, builder.cell(cell)) for cell in cells_of(run, chosen))
    represent = builder.represent(cells)
    return RunGraph(run, builder.graph, cells, represent, chosen)


class _Builder:
    """Makes steps, and makes each only once."""

    def __init__(self, run: Study) -> None:
        self.run, self.graph = run, nx.DiGraph()
        self.contents: dict[str, dict[str, str]] = {}
        self.tasks = {
            task.name: {**task.spec.model_dump(mode="json", exclude_unset=True), "sha256": self._data(task)}
            for task in run.tasks
        }
        self.rules = {f"rules {number}": _hash_of(Path(path)) for number, path in enumerate(run.rules)}

    def cell(self, cell: Cell) -> dict[str, Step]:
        """The steps of one cell by what they are for."""
        steps: dict[str, Step] = {}
        model = {"source": self.run.source, "target": self.run.target}.get(cell.method.needs)
        cores = None
        if model is not None and cell.identify.score.at_base:
            cores = steps["identify"] = self._identify_at_base(cell, model)
        elif model is not None:
            starts = {f"warm-start:{name}": self._warm_start(cell, model, name) for name in self.tasks}
            evidence = self._evidence(cell, model, starts)
            cores = self._identify(cell, model, starts, evidence)
            steps |= {**starts, "evidence": evidence, "identify": cores}
        if cell.method.needs == "source":
            steps["match"] = self._match(cell)
            assert cores is not None  # identified on the source, just above
            cores = steps["map"] = self._map(cell, steps["match"], cores)
        steps["train"] = self._train(cell, cores)
        steps["baseline"] = self._baseline()
        steps["evaluate"] = self._evaluate(steps["train"], steps["baseline"])
        return steps

    def represent(self, cells: tuple[tuple[Cell, Mapping[str, Step]], ...]) -> Step | None:
        """Embeddings of the base and of the last states of some methods with the first seed."""
        first = {cell.method.name: steps["train"] for cell, steps in reversed(cells) if cell.axis is None}
        if not self.run.represent or any(name not in first for name in self.run.represent):
            return None
        needs = {name: first[name] for name in self.run.represent}
        given = dict(self.run.sections["represent"])
        decided = {**_plain(RepresentSettings(**given).recorded()), "tasks": self._task_list()}
        arguments = {"model": self.run.target, "tasks": self._specs(self.tasks), "given": given}
        return self._add("represent", decided, self._of_model("target", self.run.target), needs, arguments)

    def _warm_start(self, cell: Cell, model: str, task: str) -> Step:
        settings = cell.identify.warm_start
        decided = {**_plain(settings.recorded()), "delta_dtype": settings.delta_dtype, "task": self.tasks[task]}
        decided["cache_prefix"] = "off"  # as earlier versions recorded it, so that their steps keep their addresses
        return self._add(
            "warm-start", decided, self._of_model("model", model), {}, self._identifying(cell, model, task)
        )

    def _evidence(self, cell: Cell, model: str, starts: Mapping[str, Step]) -> Step:
        score = cell.identify.score
        decided = {name: getattr(score, name) for name in _COLLECTED} if score.needs_fisher else {}
        decided |= {"fisher_needed": score.needs_fisher, "rows": score.unit == "rows"}
        return self._add(
            "evidence", decided, self._of_model("model", model), starts, self._identifying(cell, model, *self.tasks)
        )

    def _identify(self, cell: Cell, model: str, starts: Mapping[str, Step], evidence: Step) -> Step:
        # With replicates the methods are compared with each other, so that all settings decide something.
        score, alone = cell.identify.score, cell.identify.warm_start.replicates == 1
        decided = _plain(score.deciding() if alone else score.recorded())
        needs = {**starts, "evidence": evidence}
        arguments = self._identifying(cell, model, *self.tasks)
        return self._add("identify", decided, self._of_model("model", model), needs, arguments)

    def _identify_at_base(self, cell: Cell, model: str) -> Step:
        """Without warm starts: of the examples themselves."""
        start = cell.identify.warm_start
        read = {"max_length": start.max_length, "too_long": start.too_long, "replicates": start.replicates}
        decided = {**_plain(cell.identify.score.deciding()), **read, "seed": start.train.seed}
        decided["tasks"] = self._task_list()
        arguments = self._identifying(cell, model, *self.tasks)
        return self._add("identify", decided, self._of_model("model", model), {}, arguments)

    def _identifying(self, cell: Cell, model: str, *tasks: str) -> dict[str, Any]:
        return {"model": model, "tasks": self._specs(tasks), "given": _plain(cell.given["identify"])}

    def _match(self, cell: Cell) -> Step:
        settings = cell.map
        decided = {
            name: value
            for name, value in _plain(settings.recorded()).items()
            if name not in ("carry", "ratio", "cache", "rules", "device", "batch_size", "probe")
        }
        if settings.probe is not None:
            probe = Path(settings.probe)
            decided["probe"] = _hash_of(probe) if probe.exists() else settings.probe
        inputs = self._of_model("source", self.run.source) | self._of_model("target", self.run.target)
        given = {name: value for name, value in _plain(cell.given["map"]).items() if name not in ("carry", "ratio")}
        return self._add(
            "match", decided, inputs, {}, {"source": self.run.source, "target": self.run.target, "given": given}
        )

    def _map(self, cell: Cell, match: Step, cores: Step) -> Step:
        settings = cell.map
        return self._add(
            "map", {"carry": settings.carry, "ratio": settings.ratio}, {}, {"match": match, "identify": cores},
            {"source": self.run.source, "target": self.run.target, "tasks": list(self.tasks)},
        )  # fmt: skip

    def _train(self, cell: Cell, cores: Step | None) -> Step:
        covers_all = cell.method.needs == "none"
        keeps = {"all": True, "core": not covers_all and cell.axis != TUNING, "none": False}[self.run.keep]
        decided = {**_plain(cell.train.recorded()), "tasks": self._task_list(), "cache_prefix": "auto"}  # as above
        return self._add(
            "train", decided, self._of_model("target", self.run.target), {"cores": cores} if cores else {},
            {"model": self.run.target, "tasks": self._specs(self.tasks), "given": _plain(cell.given["train"]),
             "keep_model": self.run.keep == "all"},
            keeps,
        )  # fmt: skip

    def _baseline(self) -> Step:
        return self._add("baseline", self._suite(), self._of_model("target", self.run.target), {}, self._evaluating())

    def _evaluate(self, train: Step, baseline: Step) -> Step:
        decided = {**self._suite(), "of_task": self.run.of_task}
        return self._add("evaluate", decided, {}, {"train": train, "baseline": baseline}, self._evaluating())

    def _evaluating(self) -> dict[str, Any]:
        given = dict(self.run.sections["evaluate"])
        specs = [spec.model_dump(mode="json", exclude_unset=True) for spec in self.run.suite.specs]
        directory = str(self.run.suite.directory.absolute())
        return {"model": self.run.target, "given": given, "suite": self.run.suite.name, "specs": specs,
                "directory": directory}  # fmt: skip

    def _suite(self) -> dict[str, Any]:
        found = []
        for spec in self.run.suite.specs:
            item = spec.model_dump(mode="json", exclude_unset=True)
            for key, name in spec.local_files(item).items():
                item[f"{key}_sha256"] = _hash_of(self.run.suite.directory / Path(name).expanduser())
            found.append({key: value for key, value in item.items() if key not in ("data", "shots_data")})
        return {"evaluations": found, **_plain(EvaluateSettings.of(**self.run.sections["evaluate"]).deciding())}

    def _task_list(self) -> list[dict[str, Any]]:
        return list(self.tasks.values())

    def _specs(self, tasks: Any) -> list[dict[str, Any]]:
        """Tasks with the place of their data."""
        directory = self.run.directory.absolute()
        by_name = {task.name: task.spec for task in self.run.tasks}
        return [
            {**spec.model_dump(mode="json", exclude_unset=True),
             **({"data": str(directory / Path(spec.data).expanduser())} if spec.builder else {})}
            for spec in (by_name[name] for name in tasks)
        ]  # fmt: skip

    def _data(self, task: Any) -> str:
        """Hash of a local file; the name and revision of a hub data set."""
        if task.builder is None:
            return f"{task.data}@{task.revision or 'main'}"
        return sha256_file(self.run.directory / Path(task.data).expanduser())

    def _of_model(self, what: str, name: str | None) -> dict[str, str]:
        assert name is not None
        if name not in self.contents:
            self.contents[name] = content_of(name)
        return {**{f"{part} of {what}": sha256 for part, sha256 in self.contents[name].items()}, **self.rules}

    def _add(
        self, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str], needs: Mapping[str, Step],
        arguments: Mapping[str, Any], keeps: bool = True,
    ) -> Step:  # fmt: skip
        rules = {"rules": [str(Path(path).absolute()) for path in self.run.rules]}
        step = Step(kind, settings, dict(inputs), dict(needs), {**rules, **arguments}, keeps)
        if step.address in self.graph:
            known: Step = self.graph.nodes[step.address]["step"]
            return known
        self.graph.add_node(step.address, step=step, place=len(self.graph))
        self.graph.add_edges_from((needed.address, step.address) for needed in needs.values())
        return step


def content_of(name: str) -> dict[str, str]:
    """What a model is, part by part: SHA-256 of its weights, its config and its tokenizer; of a hub model, whose files
    may not be here, its name and revision."""
    source = ModelSource.parse(name)
    if source.directory is None:
        return {"revision": f"{source.repo}@{source.revision or 'main'}"}
    has_weights = any(file.suffix in WEIGHTS for file in source.directory.iterdir())
    found = {"weights": open_checkpoint(source).fingerprint if has_weights else NO_WEIGHTS}
    if source.gguf is None:  # a GGUF file holds all three
        found |= {"config": config_files_sha256(source.directory), "tokenizer": tokenizer_sha256(source.directory)}
    return found


def _hash_of(path: Path) -> str:
    """Of a file, or of all files of a directory."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_text("\n".join(f"{file.relative_to(path)} {sha256_file(file)}" for file in files))


def _plain(values: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(values, default=str))
