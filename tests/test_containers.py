"""Images, Jobs and tasks of `examples/containers`: what they copy is there, and what they say is known.

The schemas are those of Kubernetes and SkyPilot; no image is built here. The script that made them is in the history
of this repository: `git show 2998a58:tests/golden/make_container_schemas.py`.
"""

import json
import re
from pathlib import Path

import jsonschema
import yaml

from tests.commands import done

ROOT = Path(__file__).parents[1]
HERE, GOLDEN = ROOT / "examples" / "containers", ROOT / "tests" / "golden"


def instructions():
    """(keyword, rest) of each instruction of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (HERE / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def sections():
    """Name → lines of each section of the Apptainer recipe; its header under the empty name."""
    found, name = {"": []}, ""
    for line in (HERE / "apptainer.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def copied():
    """File → place in the image, of both."""
    docker, place = {}, None
    for keyword, rest in instructions():
        if keyword == "WORKDIR":
            place = Path(rest)
        if keyword == "COPY":
            *sources, target = rest.split()
            whole = place / target if target in sources else None
            docker |= {source: str(whole or place / source) for source in sources}
    return docker, dict(line.split() for line in sections()["files"])


def needed():
    """What a wheel is built from, by pyproject.toml."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    return {*wheel["packages"], *wheel["force-include"], project["project"]["readme"],
            *project["project"]["license-files"], "pyproject.toml"}  # fmt: skip


def test_the_build_context_has_what_is_copied():
    docker, apptainer = copied()
    assert docker == apptainer
    assert [name for name in docker if not (ROOT / name).exists()] == []
    assert needed() | {"constraints.txt"} == set(docker)


def test_a_job_and_a_task():
    job, task = (yaml.safe_load((HERE / name).read_text()) for name in ("job.yaml", "sky.yaml"))
    jsonschema.validate(job, json.loads((GOLDEN / "kubernetes_job.schema.json").read_text()))
    jsonschema.validate(task, json.loads((GOLDEN / "skypilot_task.schema.json").read_text()))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] > 60
    (command,) = [line for line in task["run"].splitlines() if "trace-transfer" in line]
    for name, file in (container["args"], command.split()[1:]):  # what is started is a command that there is
        done(name, "--help")
        assert file == "run.yaml"
