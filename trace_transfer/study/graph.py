"""Cells → the graph of their steps, each shared by all cells that need the same.

warm-start (of each task) → evidence → identify ─┐   (scores at the base need no warm start: identify alone)
match (source, target) ──────────────────────────┴→ map ─→ train → evaluate
baseline (the base's scores) ─────────────────────────────────────┘  └→ represent

A method that refines identifies once more behind map, on the target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from trace_transfer.evaluation.records import ScoreMatrix
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.files import sha256_file, sha256_text
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.content import config_files_sha256, tokenizer_sha256
from trace_transfer.models.sources import ModelSource
from trace_transfer.records import read_artefact
from trace_transfer.reporting.continual import best_rate
from trace_transfer.reporting.records import TUNING, StepFile
from trace_transfer.reporting.summarising import final_average
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.study.cells import Cell, cells_of
from trace_transfer.study.run_file import Study
from trace_transfer.study.steps import Step

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
NO_WEIGHTS = "no weights here"
# Settings of warm starts and scores that decide what is collected, not what is chosen of it.
_COLLECTED = ("fisher", "fisher_at", "fisher_examples")


@dataclass(frozen=True)
class RunGraph:
    """All steps of a run, in an order in which each comes after what it needs, and the steps of each cell."""

    run: Study
    graph: nx.DiGraph
    cells: tuple[tuple[Cell, Mapping[str, Step]], ...]
    represent: Step | None
    # method → its learning rate, where they are tuned and it is known
    chosen: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Methods whose learning rate is not chosen yet: their models for the comparison are no part of it."""
        names = tuple(method.name for method in self.run.methods)
        return () if self.run.tuning is None else tuple(name for name in names if name not in self.chosen)

    @property
    def steps(self) -> tuple[Step, ...]:
        known = self.graph.nodes
        order = nx.lexicographical_topological_sort(self.graph, lambda address: known[address]["place"])
        return tuple(known[address]["step"] for address in order)

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
    A UserError for settings or models that cannot be used."""
    builder = _Builder(run)
    chosen: dict[str, float] = {}
    if run.tuning is not None:
        tuned = [(cell, builder.cell(cell)) for cell in cells_of(run) if cell.axis == TUNING]
        chosen = _chosen_rates(run, [one for one in tuned if one[0].seed in run.tuning.seeds])
        builder.graph = nx.DiGraph()
    cells = tuple((cell, builder.cell(cell)) for cell in cells_of(run, chosen))
    return RunGraph(run, builder.graph, cells, builder.represent(cells), chosen)


def _chosen_rates(run: Study, cells: list[tuple[Cell, dict[str, Step]]]) -> dict[str, float]:
    """Method → the rate whose models end best on average, of the methods whose models are all trained and scored.

    The choice is part of no step: models at the chosen rate are steps like any others, so that a rate that is added
    makes only what it changes."""
    found: dict[str, dict[float, list[float]]] = {}
    missing = set()
    for cell, steps in cells:
        record, scores = (run.out / steps["evaluate"].directory / name for name in ("step.json", "scores.json"))
        made = read_artefact(record, StepFile).files if record.is_file() and scores.is_file() else {}
        if scores.name not in made or made[scores.name] != sha256_file(scores):  # not made, or to be made again
            missing.add(cell.method.name)
            continue
        end = final_average(read_artefact(scores, ScoreMatrix), run.of_task)
        found.setdefault(cell.method.name, {}).setdefault(cell.value, []).append(end)
    return {method: best_rate(rates) for method, rates in found.items() if method not in missing}


class _Builder:
    """Makes steps, and makes each only once."""

    def __init__(self, run: Study) -> None:
        self.run, self.graph = run, nx.DiGraph()
        self.contents: dict[str, dict[str, str]] = {}
        self.tasks: dict[str, dict[str, Any]] = {}  # what decides of each task …
        self.specs: dict[str, dict[str, Any]] = {}  # … and where its data lie
        for task in run.tasks:
            said = task.spec.model_dump(mode="json", exclude_unset=True)
            file = run.directory.absolute() / Path(task.data).expanduser()
            local = task.builder is not None
            told = sha256_file(file) if local else f"{task.data}@{task.revision or 'main'}"
            self.tasks[task.name] = {**said, "sha256": told}
            self.specs[task.name] = {**said, **({"data": str(file)} if local else {})}
        self.rules = {f"rules {number}": _hash_of(Path(path)) for number, path in enumerate(run.rules)}

    def cell(self, cell: Cell) -> dict[str, Step]:
        steps: dict[str, Step] = {}
        if cell.method.needs != "none":
            steps |= self._identify(cell, self.run.source if cell.method.needs == "source" else self.run.target)
        if cell.method.needs == "source":
            steps["match"] = self._match(cell)
            steps["map"] = self._add(
                "map", {"carry": cell.map.carry, "ratio": cell.map.ratio}, {},
                {"match": steps["match"], "identify": steps["identify"]},
                source=self.run.source, target=self.run.target, tasks=list(self.tasks),
            )  # fmt: skip
        if cell.method.refine:
            steps["refine"] = self._at_base(cell.refine, self.run.target, {cell.method.refine_by: steps["map"]})
        cores = next((steps[kind] for kind in ("refine", "map", "identify") if kind in steps), None)
        steps["train"] = self._train(cell, cores)
        steps |= self._evaluate(steps["train"])
        return steps

    def represent(self, cells: tuple[tuple[Cell, Mapping[str, Step]], ...]) -> Step | None:
        first = {cell.method.name: steps["train"] for cell, steps in reversed(cells) if cell.axis is None}
        if not self.run.represent or any(name not in first for name in self.run.represent):
            return None
        given = dict(self.run.sections["represent"])
        decided = {**plain(RepresentSettings(**given).recorded()), "tasks": list(self.tasks.values())}
        needs = {name: first[name] for name in self.run.represent}
        return self._add(
            "represent", decided, self._of_model("target", self.run.target), needs,
            model=self.run.target, tasks=list(self.specs.values()), given=given,
        )  # fmt: skip

    def _identify(self, cell: Cell, model: str | None) -> dict[str, Step]:
        score, start, inputs = cell.identify.score, cell.identify.warm_start, self._of_model("model", model)
        asked = {"model": model, "given": plain(cell.given["identify"])}
        every = {**asked, "tasks": list(self.specs.values())}
        if score.at_base:
            return {"identify": self._at_base(cell.given["identify"], model, {})}
        steps = {}
        for name, task in self.tasks.items():
            # cache_prefix: as earlier versions recorded it, so that their steps keep their addresses
            decided = {**plain(start.recorded()), "delta_dtype": start.delta_dtype, "task": task, "cache_prefix": "off"}
            alone = {**asked, "tasks": [self.specs[name]]}
            steps[f"warm-start:{name}"] = self._add("warm-start", decided, inputs, {}, **alone)
        decided = {name: getattr(score, name) for name in _COLLECTED} if score.needs_fisher else {}
        decided |= {"fisher_needed": score.needs_fisher, "rows": score.unit == "rows"}
        steps["evidence"] = self._add("evidence", decided, inputs, dict(steps), **every)
        # With replicates the methods are compared with each other, so that all settings decide something.
        decided = plain(score.deciding() if start.replicates == 1 else score.recorded())
        steps["identify"] = self._add("identify", decided, inputs, dict(steps), **every)
        return steps

    def _at_base(self, given: Mapping[str, Any], model: str | None, needs: Mapping[str, Step]) -> Step:
        settings = IdentifySettings.of(**given)
        start = settings.warm_start
        decided = {
            **plain(settings.score.deciding()), "max_length": start.max_length, "too_long": start.too_long,
            "replicates": start.replicates, "seed": start.train.seed, "tasks": list(self.tasks.values()),
        }  # fmt: skip
        return self._add(
            "identify", decided, self._of_model("model", model), needs, model=model, given=plain(given),
            tasks=list(self.specs.values()),
        )  # fmt: skip

    def _match(self, cell: Cell) -> Step:
        settings = cell.map
        left = ("carry", "ratio", "cache", "rules", "device", "batch_size", "probe")
        decided = {name: value for name, value in plain(settings.recorded()).items() if name not in left}
        if settings.probe is not None:
            probe = Path(settings.probe)
            decided["probe"] = _hash_of(probe) if probe.exists() else settings.probe
        inputs = self._of_model("source", self.run.source) | self._of_model("target", self.run.target)
        given = {name: value for name, value in plain(cell.given["map"]).items() if name not in ("carry", "ratio")}
        return self._add("match", decided, inputs, {}, source=self.run.source, target=self.run.target, given=given)

    def _train(self, cell: Cell, cores: Step | None) -> Step:
        covers_all = cell.method.needs == "none"
        keeps = {"all": True, "core": not covers_all and cell.axis != TUNING, "none": False}[self.run.keep]
        decided = {**plain(cell.train.recorded()), "cache_prefix": "auto"}  # as above
        decided["tasks"] = list(self.tasks.values())
        return self._add(
            "train", decided, self._of_model("target", self.run.target), {"cores": cores} if cores else {}, keeps,
            model=self.run.target, tasks=list(self.specs.values()), given=plain(cell.given["train"]),
            keep_model=self.run.keep == "all",
        )  # fmt: skip

    def _evaluate(self, train: Step) -> dict[str, Step]:
        suite, given = self.run.suite, dict(self.run.sections["evaluate"])
        specs, found = [spec.model_dump(mode="json", exclude_unset=True) for spec in suite.specs], []
        for spec, item in zip(suite.specs, specs, strict=True):
            hashes = {
                f"{key}_sha256": _hash_of(suite.directory / Path(name).expanduser())
                for key, name in spec.local_files(item).items()
            }
            found.append({key: value for key, value in {**item, **hashes}.items() if key not in ("data", "shots_data")})
        decided = {"evaluations": found, **plain(EvaluateSettings.of(**given).deciding())}
        arguments: dict[str, Any] = {
            "model": self.run.target, "given": given, "suite": suite.name, "specs": specs,
            "directory": str(suite.directory.absolute()),
        }  # fmt: skip
        base = self._add("baseline", decided, self._of_model("target", self.run.target), {}, **arguments)
        decided = {**decided, "of_task": self.run.of_task}
        return {
            "baseline": base,
            "evaluate": self._add("evaluate", decided, {}, {"train": train, "baseline": base}, **arguments),
        }

    def _of_model(self, what: str, name: str | None) -> dict[str, str]:
        assert name is not None
        if name not in self.contents:
            self.contents[name] = content_of(name)
        return {**{f"{part} of {what}": sha256 for part, sha256 in self.contents[name].items()}, **self.rules}

    def _add(
        self, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str], needs: Mapping[str, Step],
        keeps: bool = True, **arguments: Any,
    ) -> Step:  # fmt: skip
        rules = {"rules": [str(Path(path).absolute()) for path in self.run.rules]}
        step = Step(kind, settings, inputs, needs, {**rules, **arguments}, keeps)
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
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_text("\n".join(f"{file.relative_to(path)} {sha256_file(file)}" for file in files))


def plain(values: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(values, default=str))
