"""JSON Schemas accept every file that the package reads, and point at what it refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from trace_transfer.cli import main
from trace_transfer.cli.run import FILES
from trace_transfer.formats import SCHEMAS, schema_of
from trace_transfer.study.methods import SECTIONS
from trace_transfer.text_formats import read_yaml

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
WRITTEN = {
    "rules": sorted((ROOT / "rules").glob("*.yaml")),
    "run": [file for file in sorted(EXAMPLES.glob("*/*.yaml")) if "methods:" in file.read_text()],
    "tasks": [EXAMPLES / "identify/tasks.yaml", EXAMPLES / "quickstart/tutorial/tasks.yaml"],
    "stream": [EXAMPLES / "quickstart/tutorial/stream.yaml"],
    "suite": [EXAMPLES / "quickstart/tutorial/suite.yaml", *sorted((ROOT / "trace_transfer").rglob("suites/*.yaml"))],
}


@pytest.mark.parametrize("file", FILES)
def test_every_written_file_is_valid(file):
    schema = schema_of(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    if file in SECTIONS:
        sections = [read_yaml(written).get(file, {}) for written in WRITTEN["run"]]
        for section in sections:
            validator.validate({key: value for key, value in section.items() if key != "methods"})
    else:
        assert WRITTEN[file]
        for written in WRITTEN[file]:
            validator.validate(read_yaml(written))


def test_the_command_prints_each():
    assert tuple(SCHEMAS) == FILES
    result = CliRunner().invoke(main, ["schema", "stream"])
    assert (result.exit_code, json.loads(result.output)) == (0, schema_of("stream"))


RUN = {"target": "m", "tasks": [{"name": "a", "data": "a.jsonl"}], "methods": ["sequential"]}


@pytest.mark.parametrize(
    ("file", "content", "path"),
    [
        ("run", {**RUN, "train": {"epohcs": 1}}, ["train"]),
        ("run", {**RUN, "map": {"match": "argmin"}}, ["map", "match"]),
        ("run", {**RUN, "methods": ["sequentail"]}, ["methods", 0]),
        ("train", {"learning_rate_of": {"mlp": -1}}, ["learning_rate_of", "mlp"]),
        ("tasks", {"tasks": [{"name": "a", "data": "a.jsonl", "core": "c"}]}, ["tasks", 0]),
        ("rules", {"family": "x", "model_types": ["x"], "components": {"attention.qeury": ["a"]}}, ["components"]),
    ],
)
def test_what_is_refused_is_pointed_at(file, content, path):
    problems = list(jsonschema.Draft202012Validator(schema_of(file)).iter_errors(content))
    assert [list(one.absolute_path) for one in problems] == [path]
