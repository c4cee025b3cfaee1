"""What a page says is added for one more of something is all that has to be added: its diff, applied to a copy."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.documents import ROOT

# Page → what shows that it is there.
ADDED = {
    "new-match-policy": "from trace_transfer.transfer.settings import MapSettings; MapSettings.of(match='mutual')",
    "new-score": "from trace_transfer.identification.scores import ScoreSettings; ScoreSettings.of(method='own')",
    "new-export": "from trace_transfer.core_sets.exporting import FORMATS; FORMATS['names']",
    "new-family": "from trace_transfer.families.registry import load_families\n"
    "load_families().by_model_type['my_model_type']",
}


@pytest.mark.parametrize("page", ADDED)
def test_the_diff_of_a_page_adds_one(page, tmp_path):
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / f"docs/howto/{page}.md").read_text("utf-8"), re.DOTALL)
    for folder in ("trace_transfer", "rules"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["patch", "-p1", "--fuzz=0"], input=diff, text=True, cwd=tmp_path, check=True, capture_output=True)
    here = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import trace_transfer as found\n"
    here += f"assert found.__file__.startswith({str(tmp_path)!r}), found.__file__\n"
    done = subprocess.run([sys.executable, "-c", here + ADDED[page]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
