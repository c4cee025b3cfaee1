"""Made-up run directories: `run.json` and the files of its steps, of the kinds that `run` leaves, with drawn numbers.

No model was trained for them. Scores follow a simple story (`story`), so that tests can tell what a summary must find:
full fine-tuning learns much and forgets much, core sets learn a little less and forget little.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Method, Transfer
from trace_transfer.evaluation.records import Score, ScoredStage, ScoreMatrix
from trace_transfer.patch.records import Verification, VerifiedTensor
from trace_transfer.records import ModelIdentity, Strict, to_json
from trace_transfer.reporting.records import TUNING, CellRecord, Cost, MethodRecord, RunFile, Stated, StepFile, Tuning
from trace_transfer.training.settings import StageRecord, StreamFile
from trace_transfer.transfer.records import Depth, LayerMatch, LayerPair, ProbeRecord, Stability

TASKS = ("maths", "code", "law")
LIBRARIES = {"trace-transfer": "0.1.0", "torch": "2.13.0"}
MACHINE = {"processor": "made up", "cores": "2", "memory": "8 GB"}

# Method → title, what it is, on which model it identifies, how much it learns and how much of that each stage loses.
METHODS: dict[str, tuple[str, str, str, float, float]] = {
    "sequential": ("Sequential fine-tuning", "everything, task after task", "none", 0.40, 0.50),
    "joint": ("Joint fine-tuning", "everything, all tasks mixed", "none", 0.35, 0.00),
    "lora": ("Sequential LoRA", "adapters on all layers, task after task", "none", 0.33, 0.30),
    "dmt": ("DMT", "all tasks but one mixed, then that one with a few examples of the others", "none", 0.36, 0.25),
    "trace-lf": ("TRACE-LF", "core sets by L2 and Fisher, found on the target", "target", 0.35, 0.05),
    "trace-cs": ("TRACE-CS", "core sets by specificity, found on the target", "target", 0.33, 0.06),
    "transfer-lf": ("Transfer-LF", "core sets found on the source and carried", "source", 0.34, 0.06),
    "depth-map": ("Depth map", "core sets carried to the layers of like relative depth", "source", 0.33, 0.07),
    "random": ("Random set", "a random set of the core set's size", "target", 0.25, 0.06),
}
MODULES = {
    "input_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.o_proj.weight": (8, 8),
    "mlp.up_proj.weight": (16, 8),
    "mlp.down_proj.weight": (8, 16),
}
COMPONENTS = dict(
    zip(MODULES, ("norm.pre_attention", "attention.query", "attention.output", "mlp.up", "mlp.down"), strict=True)
)

# (method, seed, order) → scores after each stage, in each evaluation: rows stages (the first is the base).
Scores = Callable[[str, int, tuple[str, ...]], NDArray[np.float64]]


def shapes_of(num_layers: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a made-up model."""
    layers = {f"model.layers.{layer}.{name}": shape for layer in range(num_layers) for name, shape in MODULES.items()}
    return {"model.embed_tokens.weight": (32, 8), **layers, "model.norm.weight": (8,)}


def model(name: str, num_layers: int, family: str = "llama") -> ModelIdentity:
    shapes = shapes_of(num_layers)
    lines = "\n".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items()))
    return ModelIdentity(
        id=name, family=family, model_type=family, num_layers=num_layers, num_parameters=len(shapes),
        num_elements=sum(int(np.prod(shape)) for shape in shapes.values()), names_sha256=digest(lines),
    )  # fmt: skip


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def write(file: Path, record: Strict) -> None:
    file.write_text(to_json(record), encoding="utf-8")


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


SOURCE, TARGET = model("models/small", 3), model("models/large", 4, "qwen2")


def stages_of(method: str, order: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Label and learned tasks of each stage after the base."""
    if method == "joint":
        return [("joint", order)]
    if method == "dmt":
        return [("multi-task", order[:-1]), (order[-1], (order[-1], *order[:-1]))]
    return [(task, (task,)) for task in order]


def story(method: str, seed: int, order: tuple[str, ...], tasks: Sequence[str] = TASKS) -> NDArray[np.float64]:
    """Shares of right answers: a base of 0.1, 0.12, …; a stage lifts what it learns and takes away from the rest."""
    rng = np.random.default_rng([seed, int(digest(method)[:8], 16)])
    _, _, _, gain, loss = METHODS[method]
    base = 0.1 + 0.02 * np.arange(len(tasks))
    rows, level = [base], np.zeros(len(tasks))
    for _, learned in stages_of(method, order):
        new = [task in learned for task in tasks]
        kept = level * (1 - loss * rng.uniform(0.8, 1.2, len(tasks)))
        level = np.where(new, np.maximum(kept, gain * rng.uniform(0.9, 1.1, len(tasks))), kept)
        rows.append(base + level)
    return np.array(rows)


def at_rate(table: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Less is learned and lost at a rate below 1 (the square of it is lost); above 1 both are more."""
    learned = np.sqrt(rate)
    return table[0] + np.where(table - table[0] > 0, learned, 1.0) * (table - table[0]) * (1 - 0.2 * max(rate - 1, 0))


def write_run(
    directory: Path, *, tasks: tuple[str, ...] = TASKS, methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0, 1, 2, 3, 4), vary: bool = True,
    metrics: Mapping[str, str] | None = None, scores: Scores | None = None,
    sweeps: Mapping[str, tuple[Sequence[str], Sequence[Any]]] | None = None, untaught: Sequence[str] = (),
    files: bool = True, tuning: Tuning | None = None, draws: int = 1, comparisons: Sequence[Stated] = (),
) -> Path:  # fmt: skip
    """Write a whole run; returns its directory.

    Args:
        vary: seed number k trains the k-th permutation of the tasks; else all train the order of `tasks`.
        metrics: task → metric of its evaluation (`loss` is lower-is-better); others have `exact_match`.
        scores: instead of `story`, in the metrics' own units.
        sweeps: axis → (methods, values); every cell of a sweep has the scores of its method at the seed + 100 · place.
        untaught: evaluations of what no task taught.
        files: also core files, layer matches, streams, verifications and patches; else scores and costs alone.
        tuning: models at each rate, on its seeds and the others; a rate changes the scores as `at_rate` says.
        draws: of `random` for each seed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    maker = _Maker(
        directory, tasks, tuple(untaught), dict(metrics or {}),
        scores or (lambda method, seed, order: story(method, seed, order, tasks)), files,
    )  # fmt: skip
    cells = []
    orders = list(itertools.permutations(tasks))
    for number, seed in enumerate(seeds):
        order = orders[number % len(orders)] if vary else tuple(tasks)
        cells += [maker.cell(name, seed, order, draw=one) for name in methods
                  for one in range(draws if name == "random" else 1)]  # fmt: skip
    for number, seed in enumerate((*tuning.seeds, *seeds) if tuning else ()):
        for method in methods:
            for rate in tuning.rates[method]:
                cells.append(maker.cell(method, seed, orders[number % len(orders)] if vary else tasks, TUNING, rate))
    for axis, (swept, values) in (sweeps or {}).items():
        for place, value in enumerate(values):
            for seed in seeds:
                order = tuple(value) if axis == "order" else tuple(tasks)
                cells += [maker.cell(name, seed, order, axis, value, 100 * (place + 1)) for name in swept]
    words = {name: dict(zip(("title", "what", "needs"), METHODS[name], strict=False)) for name in methods}
    run = RunFile(
        name="made_up", source=SOURCE.id, target=TARGET.id, tasks=tasks, reference="random", cells=tuple(cells),
        settings={"source": SOURCE.id, "target": TARGET.id, "seeds": list(seeds), "orders": "vary" if vary else "file"},
        of_task={task: f"{task}-test" for task in tasks},
        methods=tuple(MethodRecord(name=name, **words[name]) for name in methods), tuning=tuning,
        comparisons=tuple(comparisons), machine=MACHINE, libraries=LIBRARIES,
    )  # fmt: skip
    write(directory / "run.json", run)
    return directory


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a run by hand."""
    data = json.loads(file.read_text("utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def leave(file: Path, content: bytes | Callable[[dict[str, Any]], object]) -> None:
    """Change a file of a step, or add one, as if the step had left it so."""
    if callable(content):
        edit(file, content)
    else:
        file.write_bytes(content)
    edit(file.with_name("step.json"), lambda step: step["files"].update({file.name: hash_of(file)}))


@dataclass
class _Maker:
    """Writes each step once."""

    directory: Path
    tasks: tuple[str, ...]
    untaught: tuple[str, ...]
    metrics: dict[str, str]
    scores: Scores
    files: bool
    made: dict[tuple[object, ...], str] = field(default_factory=dict)

    def cell(
        self, method: str, seed: int, order: tuple[str, ...], axis: str | None = None, value: Any = None,
        shift: int = 0, draw: int = 0,
    ) -> CellRecord:  # fmt: skip
        steps, needs = {}, METHODS[method][2]
        carried = method in ("transfer-lf", "depth-map")
        if needs != "none":
            # Identification does not know the method that asks for it, nor the order of a stream.
            steps["identify"] = self.step("identify", (needs, seed, axis, value), 120.0 if needs == "target" else 30.0)
        if carried:
            steps["map"] = self.step("map", (method, seed, axis, value), 10.0)
        seconds = {"joint": 90.0, "lora": 70.0}.get(method, 60.0) + seed
        what = (method, seed, order, axis, value, *([draw] if draw else []))
        steps["train"] = self.step("train", what, seconds)
        steps["evaluate"] = self.step("evaluate", what, 20.0, shift + 1000 * draw)
        return CellRecord(method=method, seed=seed, axis=axis, value=value, draw=draw, order=order, steps=steps)

    def step(self, kind: str, inputs: tuple[Any, ...], seconds: float, shift: int = 0) -> str:
        key = (kind, repr(inputs))
        if key in self.made:
            return self.made[key]
        address = digest(kind, inputs)
        self.made[key] = name = f"steps/{kind}-{address[:12]}"
        directory = self.directory / name
        directory.mkdir(parents=True)
        if kind == "evaluate":
            self._evaluate(directory, inputs, shift)
        elif self.files:
            {"identify": self._identify, "map": self._map, "train": self._train}[kind](directory, inputs)
        written = [file for file in sorted(directory.rglob("*")) if file.is_file()]
        files = {str(file.relative_to(directory)): hash_of(file) for file in written}
        trained = self._trained(inputs[0]) if kind == "train" else None
        size = sum(file.stat().st_size for file in written)
        cost = Cost(seconds=seconds, peak_bytes=800_000_000, bytes=size, trained=trained)
        made = StepFile(kind=kind, address=address, settings={}, inputs={}, files=files, cost=cost, libraries=LIBRARIES)
        write(directory / "step.json", made)
        return name

    @staticmethod
    def _trained(method: str) -> int:
        return {"none": TARGET.num_elements}.get(METHODS[method][2], TARGET.num_elements // 10)

    def _evaluate(self, directory: Path, inputs: tuple[Any, ...], shift: int) -> None:
        method, seed, order, axis, value, *_ = inputs
        table = self.scores(method, seed + shift, order)
        table = at_rate(table, value) if axis == TUNING else table
        stages = [("base", ()), *stages_of(method, order)]
        of_task = {task: f"{task}-test" for task in self.tasks}
        scored = []
        for (label, learned), row in zip(stages, table, strict=True):
            found = [
                self._score(of_task[task], self.metrics.get(task, "exact_match"), float(value))
                for task, value in zip(self.tasks, row, strict=True)
            ]
            found += [self._score(name, "exact_match", 0.3) for name in self.untaught]
            scored.append(ScoredStage(label=label, learned=learned, scores=tuple(found)))
        matrix = ScoreMatrix(
            model=TARGET, base_fingerprint=digest("base"), of_task=of_task, stages=tuple(scored),
            settings={"limit": 50}, libraries=LIBRARIES,
        )  # fmt: skip
        write(directory / "scores.json", matrix)

    @staticmethod
    def _score(name: str, metric: str, value: float) -> Score:
        return Score(
            name=name, kind="loss" if metric == "loss" else "exact-match", metric=metric, value=value,
            higher_is_better=metric != "loss", stderr=0.02, num_examples=50, seconds=1.5, data_sha256=digest(name),
            settings={"limit": 50},
        )  # fmt: skip

    def _identify(self, directory: Path, inputs: tuple[Any, ...]) -> None:
        where, seed, *_ = inputs
        for task in self.tasks:
            write(directory / f"{task}.core.json", core_file(TARGET if where == "target" else SOURCE, task, seed))

    def _map(self, directory: Path, inputs: tuple[Any, ...]) -> None:
        _, seed, *_ = inputs
        match, similarity_ST = layer_match(seed)
        write(directory / "layer_match.json", match)
        save_file({"similarity": similarity_ST}, directory / "similarity.safetensors")
        for task in self.tasks:
            write(directory / f"{task}.core.json", core_file(TARGET, task, seed, carried=True))

    def _train(self, directory: Path, inputs: tuple[Any, ...]) -> None:
        method, seed, order, *_ = inputs
        rng = np.random.default_rng(seed)
        trained = [name for name in shapes_of(TARGET.num_layers) if METHODS[method][2] == "none" or "mlp.up" in name]
        stages = []
        for label, learned in stages_of(method, order):
            patch = directory / f"{label}.patch.safetensors"
            save_file({name: np.zeros(4, np.float32) for name in trained}, patch)
            stages.append(
                StageRecord(
                    label=label, tasks=learned, patch=patch.name, patch_sha256=hash_of(patch),
                    mask_sha256=digest(trained), num_parameters=len(trained),
                    num_elements=self._trained(method), data_sha256=digest(label), num_examples=200, num_steps=2,
                    tokens=9000, supervised=4000, losses=tuple(float(x) for x in np.sort(rng.uniform(1, 3, 2))[::-1]),
                )
            )  # fmt: skip
        stream = StreamFile(
            model=TARGET, base_fingerprint=digest("base"), settings={"method": method}, num_stages=len(stages),
            complete=True, stages=tuple(stages), libraries=LIBRARIES,
        )  # fmt: skip
        write(directory / "stream.json", stream)
        write(directory / "verification.json", verification(trained))


def verification(trained: Sequence[str]) -> Verification:
    """All of what was trained moved, and nothing else."""
    parameters = []
    for name, shape in shapes_of(TARGET.num_layers).items():
        count, core = int(np.prod(shape)), name in trained
        parameters.append(
            VerifiedTensor(
                name=name, shape=shape, base_dtype="bfloat16", tuned_dtype="bfloat16", core=count if core else 0,
                core_moved=count - 1 if core else 0, frozen=0 if core else count, frozen_moved=0,
            )
        )  # fmt: skip
    return Verification(
        base=TARGET.id, base_fingerprint=digest("base"), tuned="model", names_sha256=TARGET.names_sha256,
        mask_sha256=digest(trained), parameters=tuple(parameters), libraries=LIBRARIES,
    )  # fmt: skip


def core_file(identity: ModelIdentity, task: str, seed: int, *, carried: bool = False) -> CoreFile:
    """Drawn scores, the best tenth core."""
    rng = np.random.default_rng([seed, int(digest(task)[:8], 16)])
    shapes = shapes_of(identity.num_layers)
    scores = dict(zip(shapes, rng.uniform(0, 1, len(shapes)), strict=True))
    ranked = sorted(shapes, key=scores.__getitem__, reverse=True)
    num_core = max(1, len(ranked) // 10)
    parameters = tuple(
        CoreTensor(
            name=name, shape=shapes[name], score=float(scores[name]), core=place < num_core,
            component=next((kind for module, kind in COMPONENTS.items() if name.endswith(module)), None),
            layer=int(name.split(".")[2]) if ".layers." in name else None,
            sources=(name,) if carried else None,
        )
        for place, name in enumerate(ranked)
    )  # fmt: skip
    transfer = Transfer(
        model=SOURCE, core_sha256=digest(task), layer_match_sha256=digest("match"), rules=("llama", "qwen2"),
        carry="scores",
    )  # fmt: skip
    return CoreFile(
        task=task, model=identity, method=Method(name="lf", ratio=0.1, alpha=0.5), parameters=parameters,
        transferred_from=transfer if carried else None, libraries=LIBRARIES,
    )  # fmt: skip


def layer_match(seed: int) -> tuple[LayerMatch, NDArray[np.float64]]:
    """Each target layer with the source layer that is most like it, and the whole similarity."""
    rng = np.random.default_rng(seed)
    similarity_ST = rng.uniform(0.2, 0.6, (SOURCE.num_layers, TARGET.num_layers))
    pairs = []
    for layer in range(TARGET.num_layers):
        similarity_ST[min(layer, SOURCE.num_layers - 1), layer] += 0.3
        second, first = np.sort(similarity_ST[:, layer])[-2:]
        source = int(similarity_ST[:, layer].argmax())
        pairs.append(LayerPair(source=source, target=layer, similarity=float(first), margin=float(first - second)))
    match = LayerMatch(
        source=SOURCE, target=TARGET,
        probe=ProbeRecord(
            name="made up", sha256=digest("probe"), num_texts=64, rows="boundary", num_minibatches=4, num_rows=256,
            max_length=128, seed=seed,
        ),
        similarity="cka-debiased", representation="update", transform="rmsnorm", policy="coverage", chosen_by="target",
        pairs=tuple(pairs), stability=Stability(num_splits=8, same=0.9, within_one=1.0),
        depth=Depth(agreement=0.75, within_one=1.0, mean_similarity_gain=0.05), libraries=LIBRARIES,
    )  # fmt: skip
    return match, similarity_ST
