"""Who may import whom, read from the source: imports go down, without a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx

import trace_transfer

PACKAGE = Path(trace_transfer.__file__).parent

# A folder imports only those below it: from what people call, along the way of the data, down to names and bytes.
# Modules at the top of the package that are not named here are below all folders.
ORDER = (
    "cli", "api", "study", "reporting", "evaluation", "represent", "training", "trainers", "patch", "publish",
    "transfer", "identification", "engine", "core_sets", "data", "families", "models",
)  # fmt: skip
CALLED_BY_PEOPLE = {"__main__": "cli", "formats": "api", "__init__": "api"}


def place_of(module: str) -> int:
    """How high a module stands: the number of folders from its own down to the lowest."""
    name = [*module.split("."), "__init__"][1]
    name = CALLED_BY_PEOPLE.get(name, name)
    return len(ORDER) - ORDER.index(name) if name in ORDER else 0


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


def importers_of(*libraries: str) -> set[str]:
    return {
        name
        for name, tree in MODULES.items()
        if any(found.partition(".")[0] in libraries for found in imports(tree, at_run_time=False))
    }


def test_imports_go_down_without_a_circle():
    assert list(nx.simple_cycles(graph())) == []  # not even inside functions
    assert sorted((a, b) for a, b in graph().edges if place_of(a) < place_of(b)) == []
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set(ORDER) - {"api"}
    # Python puts a submodule in the place of what its package has under that name, once it is imported.
    assert {file.stem for file in PACKAGE.iterdir()} & set(trace_transfer.__all__) == set()


def test_libraries_stay_in_their_folders_and_nothing_executes_what_it_loads():
    assert {name for name in importers_of("click") if not name.startswith("trace_transfer.cli")} == set()
    assert {name for name in importers_of("deepspeed") if not name.startswith("trace_transfer.engine")} == set()
    assert importers_of("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve") == set()
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "torch.load", name
                assert "trust_remote_code=True" not in [ast.unparse(keyword) for keyword in node.keywords], name


def test_what_works_without_torch():
    """Rules, files, settings and the command line answer at once."""
    found = graph(inside_functions=False)
    heavy = {
        name
        for name, tree in MODULES.items()
        if {one.partition(".")[0] for one in imports(tree, inside_functions=False)} & {"torch", "transformers"}
    }
    light = sorted(name for name in found if not (nx.descendants(found, name) | {name}) & heavy)
    light.remove("trace_transfer.__main__")  # runs when it is imported
    for needed in ("families.registry", "families.correspondence", "core_sets.core_file", "identification.settings",
                   "transfer.draw", "models.sources"):  # fmt: skip
        assert f"trace_transfer.{needed}" in light
    assert [name for name in MODULES if name.startswith("trace_transfer.cli") and name not in light] == []
    code = f"import sys, {', '.join(light)}; print(*{{'torch', 'transformers', 'deepspeed'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
