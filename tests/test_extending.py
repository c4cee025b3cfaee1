"""What a page says is added for one more of something is all that has to be added: its diff, applied to a copy."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.documents import ROOT

# Page → what shows that it is there; without torch, as for the options of a command.
ADDED = {
    "new-match-policy": """
import numpy
from trace_transfer.transfer.policies import POLICIES
from trace_transfer.transfer.settings import MapSettings
assert POLICIES[MapSettings.of(match="mutual").match](numpy.array([[0.9, 0.8], [0.7, 0.2]])) == ((0, 0),)
assert "mutual: the layers that are each other's most similar" in MapSettings.model_fields["match"].description
""",
    "new-score": """
import numpy
from trace_transfer.identification.scores import METHODS, ScoreSettings, Statistics
settings = ScoreSettings.of(method="own")
assert not settings.needs_fisher and "alpha" not in settings.deciding()
ones = numpy.ones(2)
grams = numpy.array([[[4.0, 0], [0, 9]], [[4, 6], [6, 9]]])
statistics = Statistics(grams, ones, ones, numpy.array(["a", "b"]), ("one", "two"))
assert METHODS["own"].score(statistics, 1, settings).score_P.tolist() == [3.0, 0.0]
assert "own: size of the update times its specificity" in ScoreSettings.model_fields["method"].description
""",
    "new-export": """
from trace_transfer.cli.core_sets import export_command
from trace_transfer.core_sets.trainer_settings import CoreSet
from trace_transfer.core_sets.exporting import FORMATS
from trace_transfer.core_sets.masks import Mask
core = CoreSet((), (), {"a.weight": (2,), "b.weight": (2,)}, Mask({"b.weight": None}))
assert FORMATS["names"].write(core) == "b.weight\\n"
assert "names" in export_command.params[1].type.choices
""",
    "new-family": """
from trace_transfer.families.registry import load_families
family = load_families().by_model_type["my_model_type"]
assert family.components.keys() >= {"attention.query", "mlp.gate"}, family
""",
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
