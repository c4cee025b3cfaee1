"""A wheel carries what the package needs: the rules from the top level, the probe set, the type marker."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The contents of a wheel built from this checkout, away from it."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("trace_transfer-*.whl")
    zipfile.ZipFile(wheel).extractall(out / "unpacked")
    return out / "unpacked"


def test_rules_list_shows_every_family_of_the_repository(unpacked):
    code = "import trace_transfer; print(trace_transfer.__file__)\nfrom trace_transfer.cli import main; main()"
    listed = subprocess.run(
        [sys.executable, "-c", code, "rules", "list"], cwd=unpacked.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(unpacked)}, check=True,
    )  # fmt: skip
    assert Path(listed.stdout.splitlines()[0]).is_relative_to(unpacked)
    families = sorted(file.stem for file in (ROOT / "rules").glob("*.yaml"))
    assert len(families) >= 10
    assert set(families) <= {line.split()[0] for line in listed.stdout.splitlines() if line[:1].strip()}


def test_data_and_licence_are_inside(unpacked):
    assert (unpacked / "trace_transfer" / "data" / "probe.jsonl").read_bytes() == (
        ROOT / "trace_transfer" / "data" / "probe.jsonl"
    ).read_bytes()
    templates = {str(file.relative_to(ROOT)) for file in (ROOT / "trace_transfer").rglob("*.jinja*")}
    assert templates and templates == {str(file.relative_to(unpacked)) for file in unpacked.rglob("*.jinja*")}
    assert (unpacked / "trace_transfer" / "py.typed").is_file()
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


def test_version_is_the_same_everywhere(unpacked):
    import tomllib

    import trace_transfer

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert trace_transfer.__version__ == declared
    assert (unpacked / f"trace_transfer-{declared}.dist-info").is_dir()
    assert f"## {declared}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {declared}" in (ROOT / "CITATION.cff").read_text().replace('"', "")
