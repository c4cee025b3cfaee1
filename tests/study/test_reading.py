"""A run file is read strictly: every problem at once, each with its path in the file."""

import re
from itertools import permutations

import pytest

import trace_transfer as tt
from tests.study.run_directories import run_content, write_file, write_run
from trace_transfer.errors import UserError
from trace_transfer.study.cells import cells_of
from trace_transfer.study.graph import build_graph
from trace_transfer.study.run_file import METHODS, load_run
from trace_transfer.study.running import check_plan
from trace_transfer.study.show import render_run_plan
from trace_transfer.study.status import read_status


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), tiny).parent


def read(directory, **changes):
    return load_run(write_file(directory, **changes))


def problems_of(directory, **changes) -> str:
    with pytest.raises(UserError, match=r"run\.yaml: \d+ problem") as caught:
        read(directory, **changes)
    return str(caught.value)


def test_what_it_says(directory):
    run = read(directory, seeds=[3, 4], orders="vary")
    assert run.source == str(directory / "llama") and run.out == directory / "out"
    assert [(cell.method.name, cell.seed, cell.order) for cell in cells_of(run)] == [
        ("sequential", 3, ("math", "code")),
        ("transfer-lf", 3, ("math", "code")),
        ("sequential", 4, ("code", "math")),
        ("transfer-lf", 4, ("code", "math")),
    ]


def test_resources(directory):
    """A kind has what `default` says wherever it says nothing itself."""
    default = {"gpus": 1, "hours": 2, "partition": "gpu", "sbatch": {"qos": "long"}}
    run = read(directory, resources={"default": default, "train": {"gpus": 8, "sbatch": {"mail-type": "END"}}})
    train, evaluate = run.resources_of("train"), run.resources_of("evaluate")
    assert (train.gpus, train.hours, train.partition) == (8, 2, "gpu")
    assert train.sbatch == {"qos": "long", "mail-type": "END"} and evaluate == run.resources_of("map")
    assert [run.processes_of(kind, gpus=True) for kind in ("train", "warm-start", "evaluate")] == [8, 1, 1]
    submitted = train.submitted(launched=True)
    assert (submitted["time"], submitted["gpus_per_node"], submitted["partition"]) == (120, 8, "gpu")
    assert submitted["additional_parameters"] == {
        "signal": "B:USR2@300", "requeue": True, "qos": "long", "mail-type": "END"
    }  # fmt: skip


def test_no_slurm_on_this_machine(directory, monkeypatch):
    """It is told before anything is written."""
    file = write_file(directory, methods=["sequential"], source=None, out="elsewhere")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch is not found: there is no SLURM on this machine"):
        tt.run(file, executor="slurm")
    assert not (directory / "elsewhere").exists()


def test_settings_reach_the_cells(directory):
    assert {cell.method.name for cell in cells_of(read(directory, methods=list(METHODS)))} == {*METHODS}
    own = {"name": "wide", "like": "transfer-lf", "title": "Wide", "identify": {"ratio": 0.5}, "train": {"epochs": 2}}
    run = read(directory, identify={"ratio": 0.3, "unit": "elements"}, methods=["random", "transfer-cs", own])
    random, transfer, wide = cells_of(run)
    assert random.train.method == "random"
    assert random.identify.score.method == "lf" and random.identify.score.ratio == 0.3
    assert transfer.identify.score.method == "cs" and transfer.map.carry == "scores"
    assert transfer.train.train.batch_size == 4 and transfer.train.train.learning_rate == 1e-3
    assert (wide.method.title, wide.identify.score.ratio, wide.train.train.epochs) == ("Wide", 0.5, 2)
    assert wide.train.method == "trace"


def test_sweeps(directory):
    run = read(
        directory, methods=["sequential", "trace-lf", "trace-cs", "transfer-lf"], seeds=[0, 1],
        sweeps={"ratio": [0.1, 0.5], "alpha": {"values": [0, 1], "seeds": [0]}, "warm_start_epochs": [2],
                "match": ["argmax"], "order": "all", "seed": [7],
                "train.epochs": {"values": [2], "methods": ["sequential"]}},
    )  # fmt: skip
    swept = [cell for cell in cells_of(run) if cell.axis]
    found = {axis: [c for c in swept if c.axis == axis] for axis in dict.fromkeys(cell.axis for cell in swept)}
    assert len(found["ratio"]) == 2 * 3 * 2 and {c.identify.score.ratio for c in found["ratio"]} == {0.1, 0.5}
    assert {(c.method.name, c.seed) for c in found["alpha"]} == {("trace-lf", 0), ("transfer-lf", 0)}  # not CS
    assert {c.identify.warm_start.train.epochs for c in found["warm_start_epochs"]} == {2}
    assert {c.method.name for c in found["match"]} == {"transfer-lf"}
    assert {c.order for c in found["order"]} == set(permutations(("math", "code")))
    assert [c.seed for c in found["seed"]] == [7] * 4 and found["seed"][0].train.train.seed == 7
    assert [c.train.train.epochs for c in found["train.epochs"]] == [2, 2]


def test_draws_change_what_is_drawn_alone(directory):
    """Each of the controls' draws has its seed's examples and order; nothing else has draws."""
    cells = cells_of(read(directory, methods=["random", "shuffled-map", "trace-lf"], seeds=[5], draws=2))
    assert [(cell.method.name, cell.draw) for cell in cells] == [
        ("random", 0), ("random", 1), ("shuffled-map", 0), ("shuffled-map", 1), ("trace-lf", 0),
    ]  # fmt: skip
    assert {cell.train.train.seed for cell in cells} == {5} == {cell.identify.warm_start.train.seed for cell in cells}
    first, second = (cell.train for cell in cells[:2])
    assert first.control_seed == 5 != second.control_seed and "draw" not in first.recorded()
    assert cells[2].map.seed == 5 != cells[3].map.seed


def test_tuning_and_comparisons(directory):
    """Factors of each method's own rate, or its own list; the comparison waits for what is chosen."""
    own = {"name": "low", "like": "sequential", "train": {"learning_rate": 1e-4}}
    run = read(
        directory, methods=[own, "transfer-lf", "random"], seeds=[0, 1], orders="vary",
        tuning={"seeds": [7, 8], "factors": [1, 0.3], "rates": {"random": [1e-2, 1e-3], "low": [5e-5]}},
        comparisons=[{"methods": "transfer-lf", "against": "random"},
                     {"methods": ["low", "transfer-lf"], "against": "random", "measure": "matched_forgetting"}],
    )  # fmt: skip
    assert run.tuning.of == {"low": (5e-5,), "transfer-lf": (3e-4, 1e-3), "random": (1e-3, 1e-2)}
    assert {cell.axis for cell in cells_of(run)} == {"tuning"} and len(cells_of(run)) == 2 * (1 + 2 + 2)
    assert {(c.seed, c.order[0]) for c in cells_of(run)} == {(7, "math"), (8, "code")}  # one order for all methods
    cells = [cell for cell in cells_of(run, {"low": 5e-5, "random": 1e-2}) if cell.axis is None]
    assert [(cell.method.name, cell.train.train.learning_rate) for cell in cells] == [
        ("low", 5e-5), ("random", 1e-2), ("low", 5e-5), ("random", 1e-2),
    ]  # fmt: skip
    assert [(one.methods, one.measure) for one in run.comparisons] == [
        (("transfer-lf",), "average"), (("low", "transfer-lf"), "matched_forgetting"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tuning": {"seeds": [0]}}, r"tuning\.seeds: found \[0\], expected each once and none of seeds: \[0\]"),
        ({"tuning": {"seeds": [5], "rates": {"sequential": []}}}, r"tuning\.rates\.sequential: .*at least 1"),
        ({"comparisons": [{"methods": "transfer-lf"}]}, r"comparisons: item 1: against: None is none of sequential"),
        ({"metods": []}, r"metods: no such setting; did you mean methods\?"),
        ({"map": {"carry": "core"}}, r"map\.carry: is set by the run"),
        ({"methods": ["transfer-lv"]}, "methods: 'transfer-lv' is none of .*did you mean transfer-lf"),
        ({"methods": [{"name": "x", "like": "nothing"}]}, "methods: item 1: like: 'nothing' is none of sequential"),
        ({"source": None}, "source: is missing; transfer-lf identify on it"),
        ({"target": "./nowhere"}, "target: .*nowhere: no such file or directory"),
        ({"suite": "paper"}, "evaluations: give either"),
        ({"seeds": [1, 1]}, "seeds: 1 stands there twice"),
        ({"sweeps": {"colour": [1]}}, r"sweeps: 'colour' is none of ratio, .*or a setting such as train.epochs"),
        ({"sweeps": {"ratio": [5.0]}}, r"sweeps\.ratio: ratio: found 5\.0, expected less than or equal to 1"),
        ({"sweeps": {"order": [["math"]]}}, r"sweeps\.order: \['math'\] is not an order of math, code"),
        ({"resources": {"default": {"hours": 0}}}, r"resources\.default\.hours: found 0, expected greater than 0"),
        ({"resources": {"map": {"sbatch": {"time": "1:00"}}}}, r"resources\.map\.sbatch: time: is `hours` here"),
    ],
)
def test_mistakes(directory, changes, expected):
    assert re.search(expected, problems_of(directory, **changes), re.DOTALL)


def test_all_problems_at_once(directory):
    text = problems_of(directory, identify={"ratoi": 1}, methods=["nothing"], train={"zero": "x"}, jobs="two")
    assert "4 problems" in text
    assert all(word in text for word in ("identify.ratoi", "'nothing' is none of", "train.zero", "jobs: found 'two'"))


def test_settings_that_contradict_each_other_in_a_cell(directory):
    """`zero` by itself is for the cells to know: a method may set it."""
    assert "train.offload: 'parameters' needs zero 3" in problems_of(
        directory, train={"offload": "parameters", "zero": 1}
    )
    own = {"name": "low", "like": "sequential", "train": {"zero": 3}}
    read(directory, train={"offload": "parameters", "zero": 1}, methods=[own])


def test_devices_that_are_not_there_are_refused_before_the_first_step(tiny, tmp_path):
    sections = {name: {**run_content()[name], "device": f"gpu-{name}"} for name in ("identify", "map", "evaluate")}
    sections["represent"] = {"device": "gpu-represent", "methods": ["sequential"]}
    graph = build_graph(load_run(write_run(tmp_path, tiny, **sections)))
    with pytest.raises(UserError, match="cannot be run") as caught:
        check_plan(graph)
    assert all(f"--device gpu-{told}: not available here (" in str(caught.value) for told in sections)


def test_counts_in_the_plan_of_a_run(tiny, tmp_path):
    graph = build_graph(load_run(write_run(tmp_path, tiny, methods=["sequential"], seeds=[0])))
    text = render_run_plan(graph, read_status(graph, graph.run.out), check_plan(graph))
    assert "\nread by the target:\nmath:0 as the model reads it; ⟦what is learned⟧" in text and "<s>⟧\n" in text
    assert text.startswith("small: 1 method x 1 seed on math, code\n")
    assert "\n1 model in the comparison, 0 in sweeps; 3 steps\n" in text
