"""`trace-transfer export` and `import`: streams, files, exit codes, and where the model comes from."""

import json
import shutil

import pytest
import yaml

from tests.commands import run
from tests.core_files import write_core
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.formats import read_any


@pytest.fixture
def core(tiny, tmp_path):
    return write_core(tiny("llama"), tmp_path / "math.core.json")


def names(file):
    return {parameter.name for parameter in read_any(file, CoreFile).core}


def test_the_text_goes_to_stdout_and_the_summary_to_stderr(core):
    for extra in ((), ("--out", "-")):
        done = run("export", core, "--to", "axolotl", *extra)
        assert done.exit_code == 0, done.output
        listed = yaml.safe_load(done.stdout)["unfrozen_parameters"]
        assert {pattern[1:-1] for pattern in listed} == names(core)
        assert done.stderr == "math for axolotl: 3 of 39 tensors, 17.0368% of the parameters\n"


def test_into_a_file(core, tmp_path):
    out = tmp_path / "new" / "math.txt"
    done = run("export", core, "--to", "regex", "--out", out)
    assert done.stdout == f"math for regex: 3 of 39 tensors, 17.0368% of the parameters\nwritten: {out}\n"
    assert (done.stderr, out.read_text()) == ("", run("export", core, "--to", "regex").stdout)


def test_an_output_that_is_an_input(core, tmp_path):
    before = core.read_bytes()
    (tmp_path / "link").symlink_to(core)
    for out in (core, tmp_path / "link"):
        done = run("export", core, "--to", "axolotl", "--out", out)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == f"error: {out}: is an input as well; name another --out\n"
    assert core.read_bytes() == before


def test_a_model_that_has_moved(copy_of, tmp_path):
    model = copy_of("llama")
    core = write_core(model, tmp_path / "math.core.json")
    before = run("export", core, "--to", "peft")
    shutil.move(model, tmp_path / "elsewhere")
    done = run("export", core, "--to", "peft")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "say where it is with --model" in done.stderr
    assert run("export", core, "--to", "peft", "--model", tmp_path / "elsewhere").stdout == before.stdout
    assert run("export", core, "--to", "ms-swift").exit_code == 0  # the core file says enough


def test_a_core_file_that_lists_some_tensors_only(tiny, core):
    """Then the names of the others come from the model."""
    data = json.loads(core.read_text())
    whole = run("export", core, "--to", "regex").stdout
    data["parameters"] = [parameter for parameter in data["parameters"] if parameter["core"]]
    core.write_text(json.dumps(data))
    assert run("export", core, "--to", "regex").stdout == whole
    data["model"]["names_sha256"] = "0" * 64
    core.write_text(json.dumps(data))
    assert "has other names or shapes (39 tensors)" in run("export", core, "--to", "regex").stderr


# ---- import


def test_there_and_back(tiny, core, tmp_path):
    run("export", core, "--to", "axolotl", "--out", tmp_path / "list.yaml")
    out = tmp_path / "back" / "maths.core.json"
    done = run("import", tmp_path / "list.yaml", "--from", "axolotl", "--model", tiny("llama"), "--out", out)
    assert done.exit_code == 0, done.output
    assert names(out) == names(core)
    assert read_any(out).task == "maths"
    assert "3 of 39 = 7.69%" in done.stdout and str(out) in done.stdout
    assert run("export", out, "--to", "regex").stdout == run("export", core, "--to", "regex").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x.json"), "--out must end with .core.json and begin with the task, or give --task"),
        (("--out", "x.core.json"), "model.layers.99: matches none of the 39 names"),
    ],
)
def test_what_import_refuses(tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("unfrozen_parameters: [model.layers.99]\n")
    done = run("import", "list.yaml", "--from", "spectrum", "--model", tiny("llama"), *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["list.yaml"]
