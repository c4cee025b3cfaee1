"""Who may import whom, read from the source: imports go down, without a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

import trace_transfer

PACKAGE = Path(trace_transfer.__file__).parent

# `map`, `identify` (of which `warm-start` and `score` are halves), `select` and `train` (its plan and its run) put
# stages in order: they are the pipelines. Every other stage meets the others in the types below them; these are the
# exceptions, each a stage's result that the next one takes as it is.
PIPELINE = {
    "trace_transfer.transfer.mapping",
    "trace_transfer.identify.identifying",
    "trace_transfer.identify.reselecting",
    "trace_transfer.train.stream_plan",
    "trace_transfer.train.streaming",
}
OPEN_MODEL, SELECT = "opening", "selection"
HANDED_ON = {
    (f"trace_transfer.stages.{stage}", f"trace_transfer.stages.{other}")
    for stage, other in (
        ("task_data", OPEN_MODEL),
        ("warm_starting", OPEN_MODEL),
        ("warm_starting", "task_data"),  # the parts of a task
        ("differencing", OPEN_MODEL),
        ("sensitivity", OPEN_MODEL),
        ("sensitivity", "differencing"),  # DeltaPlan: at which models
        ("sensitivity", "evidence"),  # Fisher, what evidence is made of
        ("evidence", "differencing"),  # Deltas
        ("scoring", "evidence"),  # Evidence
        ("scoring", SELECT),  # the one place of a ratio
        ("probing", OPEN_MODEL),
        ("matching", "probing"),  # Grams
        ("translation", OPEN_MODEL),
        ("translation", SELECT),
        ("methods", "controls"),
        ("carrying", OPEN_MODEL),
        ("carrying", "translation"),  # what `map` does once it has matched
        ("evaluating", OPEN_MODEL),  # its tokenizer
        ("importing", OPEN_MODEL),
        ("representing", OPEN_MODEL),
        ("reporting", "summarising"),  # the numbers of the page
    )
}


def name_of(file: Path) -> str:
    parts = [PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST, *, at_run_time: bool = True, inside_functions: bool = True) -> set[str]:
    """Full names of the modules that a module imports, those for type checkers left out if `at_run_time`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if at_run_time and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if not inside_functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    found.add(whole if whole in MODULES else child.module)
            visit(child)

    visit(tree)
    return found


def graph(**options: bool) -> nx.DiGraph:
    edges = [(name, other) for name, tree in MODULES.items() for other in imports(tree, **options) if other in MODULES]
    found = nx.DiGraph(edges)
    found.add_nodes_from(MODULES)
    return found


def importers_of(library: str) -> set[str]:
    return {
        name
        for name, tree in MODULES.items()
        if any(found.partition(".")[0] == library for found in imports(tree, at_run_time=False))
    }


def test_no_circles_not_even_inside_functions():
    assert list(nx.simple_cycles(graph())) == []


def test_stages_meet_in_what_lies_below_them():
    stages = {name for name in MODULES if name.startswith("trace_transfer.stages.")}
    edges = {(a, b) for a, b in graph().edges if a in stages and b in stages and a not in PIPELINE}
    assert edges == HANDED_ON


def test_the_run_is_above_the_stages():
    """`pipeline` calls stages; nothing but the command line and the API calls it."""
    users = {a for a, b in graph().edges if ".pipeline." in b and ".pipeline" not in a}
    assert users == {f"trace_transfer.{name}" for name in ("cli.run", "cli.step", "api", "schemas")}


API_STAGES = (
    "mapping", "identifying", "stream_plan", "streaming", "reselecting", "evaluating", "verifying", "reporting",
)  # fmt: skip


def test_nothing_below_imports_a_stage_or_the_command_line():
    allowed = ("trace_transfer.stages", "trace_transfer.cli", "trace_transfer.study", "trace_transfer.__main__")
    upwards = {
        (a, b)
        for a, b in graph().edges
        if b.startswith(("trace_transfer.stages", "trace_transfer.cli")) and not a.startswith(allowed)
    }
    assert upwards == {("trace_transfer.api", f"trace_transfer.stages.{name}") for name in API_STAGES}


def test_maths_knows_nothing_but_maths():
    for name, tree in MODULES.items():
        if name.startswith("trace_transfer.maths."):
            own = {found for found in imports(tree, at_run_time=False) if found.startswith("trace_transfer")}
            assert all(found.startswith("trace_transfer.maths.") for found in own), name


def test_click_is_in_the_command_line_only():
    assert {name for name in importers_of("click") if not name.startswith("trace_transfer.cli")} == set()


def test_deepspeed_is_where_training_is():
    assert {name for name in importers_of("deepspeed") if not name.startswith("trace_transfer.engine")} == set()


@pytest.mark.parametrize("module", ["pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"])
def test_no_pickles(module):
    assert importers_of(module) == set()


@pytest.mark.parametrize("call", ["torch.load", "trust_remote_code=True"])
def test_nothing_executes_what_it_loads(call):
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != call, name
                assert call not in [ast.unparse(keyword) for keyword in node.keywords], name


def heavy_modules() -> list[str]:
    """Modules that name torch or transformers outside of functions."""
    return sorted(
        name
        for name, tree in MODULES.items()
        if {found.partition(".")[0] for found in imports(tree, inside_functions=False)} & {"torch", "transformers"}
    )


def test_what_works_without_torch():
    """Rules, files, settings and the command line answer at once."""
    found, heavy = graph(inside_functions=False), set(heavy_modules())
    light = sorted(name for name in found if not (nx.descendants(found, name) | {name}) & heavy)
    light.remove("trace_transfer.__main__")  # runs when it is imported
    for needed in (
        "rules.registry",
        "rules.application",
        "correspondence",
        "artefacts",
        "settings",
        "views.heatmap",
        "models",
    ):
        assert f"trace_transfer.{needed}" in light
    assert [name for name in MODULES if name.startswith("trace_transfer.cli") and name not in light] == []
    code = f"import sys, {', '.join(light)}; print(*{{'torch', 'transformers', 'deepspeed'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
