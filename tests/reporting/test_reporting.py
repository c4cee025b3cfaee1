"""`report`: what it refuses, what it leaves out, where it writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.run_files import edit, write_run
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.reporting.records import RunFile
from trace_transfer.reporting.reporting import read_contents, write_report

METHODS = ("sequential", "trace-lf", "transfer-lf", "random")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "study", methods=METHODS, seeds=(0, 1, 2))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "study"))


def step_of(run: Path, kind: str, method: str = "transfer-lf", seed: int = 0) -> Path:
    record = RunFile.model_validate_json((run / "run.json").read_text("utf-8"))
    cell = next(one for one in record.cells if (one.method, one.seed) == (method, seed))
    return run / cell.steps[kind]


def test_no_directory_and_no_run_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory; expected that of a run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no run\.json in it, so this is not the directory of a run"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"run\.json:1: not valid JSON"):
        write_report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_all_missing_and_changed_files_are_told_at_once_and_nothing_is_written(run: Path) -> None:
    gone = [
        step_of(run, "map") / "similarity.safetensors",
        step_of(run, "train", "sequential") / "verification.json",
        step_of(run, "evaluate", "random", 2) / "scores.json",
        step_of(run, "identify", "trace-lf") / "law.core.json",
    ]
    for file in gone:
        file.unlink()
    changed = step_of(run, "map", seed=1) / "layer_match.json"
    changed.write_text(changed.read_text("utf-8").replace("coverage", "argmax"), encoding="utf-8")
    with pytest.raises(ArtefactError, match=re.escape("law.core.json: missing")) as told:
        write_report(run)
    for file in gone:
        assert f"{file.relative_to(run)}: missing" in str(told.value)
    assert f"{changed.relative_to(run)}: was changed after its step was finished" in str(told.value)
    assert str(told.value).count("\n  - ") == 5
    assert not (run / "report.html").exists() and not (run / "report.md").exists()


def test_a_broken_record_of_a_step_is_told_and_not_taken_for_unfinished(run: Path) -> None:
    edit(step_of(run, "train") / "step.json", lambda data: data.pop("cost"))
    with pytest.raises(ArtefactError, match=r"step\.json: 1 problem"):
        write_report(run)


def test_a_similarity_of_another_shape_is_refused(run: Path) -> None:
    from hashlib import sha256

    import numpy as np
    from safetensors.numpy import save_file

    place = step_of(run, "map")
    save_file({"similarity": np.zeros((2, 2))}, place / "similarity.safetensors")
    digest = sha256((place / "similarity.safetensors").read_bytes()).hexdigest()
    edit(place / "step.json", lambda data: data["files"].update({"similarity.safetensors": digest}))
    with pytest.raises(ArtefactError, match=r"similarity\.safetensors: no tensor 'similarity' of shape \[3, 4\]"):
        write_report(run)


def test_a_run_that_is_not_complete_is_reported_and_says_so(run: Path) -> None:
    places = [step_of(run, "evaluate", "transfer-lf", 2), step_of(run, "train", "transfer-lf", 2)]
    for place in places:
        shutil.rmtree(place)
    written = write_report(run)
    assert set(written.unfinished) == {str(place.relative_to(run)) for place in places}
    page, text = (file.read_text("utf-8") for file in written.files)
    told = r"This run is not complete: 2 steps are not finished .* 1 of 12 trained models are left out"
    for found in (page, text):
        assert re.search(told, found)
        assert all(place.name in found for place in places)
    contents = read_contents(run)
    seeds = {one.method: one.seeds for one in contents.summary.methods}
    assert seeds["transfer-lf"] == (0, 1) and seeds["random"] == (0, 1, 2)
    assert page.index("not complete") < page.index('id="answers"')


def test_without_the_reference_another_method_takes_its_place(run: Path) -> None:
    for seed in range(3):
        shutil.rmtree(step_of(run, "evaluate", "random", seed))
    contents = read_contents(run)
    assert contents.summary.reference == contents.run.reference == "sequential"


def test_nothing_finished_is_refused_with_the_steps_that_are_missing(run: Path) -> None:
    shutil.rmtree(run / "steps")
    with pytest.raises(UserError, match=r"nothing of the main comparison is finished(?s:.*)steps/train-"):
        write_report(run)


def test_patches_that_were_let_go_of_are_not_missed(run: Path) -> None:
    place = step_of(run, "train")
    removed = [file.name for file in place.glob("*.patch.safetensors")]
    edit(place / "step.json", lambda data: data.update(removed=removed))
    for name in removed:
        (place / name).unlink()
    assert write_report(run).unfinished == ()


def test_a_whole_run_says_nothing_of_the_kind(run: Path) -> None:
    assert "not complete" not in write_report(run).files[0].read_text("utf-8")


def test_frozen_parameters_that_moved_stand_out(run: Path) -> None:
    from hashlib import sha256

    place = step_of(run, "train")
    file = place / "verification.json"

    def moved(data: dict) -> None:
        frozen = next(one for one in data["parameters"] if one["frozen"])
        frozen["frozen_moved"] = 3

    edit(file, moved)
    digest = sha256(file.read_bytes()).hexdigest()
    edit(place / "step.json", lambda data: data["files"].update({"verification.json": digest}))
    page = write_report(run).files[0].read_text("utf-8")
    assert "In 1 model frozen parameters moved: their masks did not hold." in page
    assert "Nothing moved that was frozen" not in page


def test_the_representation_of_the_run_is_shown_with_its_numbers(run: Path) -> None:
    from hashlib import sha256

    from tests.run_files import LIBRARIES, TARGET, digest
    from trace_transfer.records import to_json
    from trace_transfer.reporting.records import Cost, StepFile
    from trace_transfer.represent.records import RepresentationFile, RepresentedModel

    png = b"\x89PNG\r\n\x1a\n" + b"0" * 100
    place = run / "steps" / "represent-0123456789ab"
    place.mkdir()
    model = RepresentedModel(
        label="base", model=TARGET, fingerprint=digest("base"), silhouette=0.394,
        distances=((0.0, 12.5, 3.0), (12.5, 0.0, 4.0), (3.0, 4.0, 0.0)), spread=(1.0, 2.0, 3.0),
    )  # fmt: skip
    found = RepresentationFile(
        tasks=("maths", "code", "law"), num_texts=(9, 9, 9), data_sha256=("a", "b", "c"), models=(model,)
    )
    (place / "representation.json").write_text(to_json(found), encoding="utf-8")
    (place / "representation.png").write_bytes(png)
    files = {file.name: sha256(file.read_bytes()).hexdigest() for file in place.iterdir()}
    step = StepFile(
        kind="represent", address="0123456789ab" + "0" * 52, settings={}, inputs={}, files=files,
        cost=Cost(seconds=1, peak_bytes=1, bytes=1), libraries=LIBRARIES,
    )  # fmt: skip
    (place / "step.json").write_text(to_json(step), encoding="utf-8")
    edit(run / "run.json", lambda data: data["settings"].update(represent_step="steps/represent-0123456789ab"))
    page, text = (file.read_text("utf-8") for file in write_report(run).files)
    assert 'id="representations"' in page and "data:image/png;base64,iVBORw0KGgo" in page
    assert "<td>0.394</td><td>12.5</td><td>3.000</td><td>4.000</td>" in page
    assert "](steps/represent-0123456789ab/representation.png)" in text
    shutil.rmtree(place)
    assert write_report(run).unfinished == ("steps/represent-0123456789ab",)


def test_importance_by_length_of_the_warm_start_is_drawn_side_by_side(tmp_path: Path) -> None:
    """The form of the paper's figure 6, where the warm start's epochs are swept."""
    from hashlib import sha256

    sweep = {"warm_start_epochs": (["trace-lf"], [2, 3])}
    run = write_run(tmp_path / "study", methods=("sequential", "trace-lf", "random"), seeds=(0, 1, 2), sweeps=sweep)
    record = json.loads((run / "run.json").read_text("utf-8"))
    for cell in record["cells"]:
        if cell.get("axis"):
            place = run / cell["steps"]["identify"]
            for file in place.glob("*.core.json"):
                edit(file, lambda data, epochs=cell["value"]: data["method"].update(epochs=epochs))
            files = {name: sha256((place / name).read_bytes()).hexdigest() for name in
                     [one.name for one in place.iterdir() if one.name != "step.json"]}  # fmt: skip
            edit(place / "step.json", lambda data, files=files: data.update(files=files))
    page = write_report(run).files[0].read_text("utf-8")
    assert 'id="plot-importance-maths"' in page
    part = page[page.index('id="plot-importance-maths"') :].split("</figure>")[0]
    assert all(f"<b>{length}<\\/b>" in part for length in ("1 epoch", "2 epochs", "3 epochs"))


def test_pictures_are_found_from_another_directory(run: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    place = step_of(run, "map")
    (place / "heatmap.png").write_bytes(b"\x89PNG")
    edit(place / "step.json", lambda data: data["files"].update({"heatmap.png": sha256(b"\x89PNG").hexdigest()}))
    target = tmp_path / "elsewhere" / "deeper"
    written = write_report(run, target)
    assert written.files == (target / "report.html", target / "report.md")
    assert not (run / "report.html").exists()
    (path,) = re.findall(r"!\[.*?\]\((.*?heatmap\.png)\)", written.files[1].read_text("utf-8"))
    assert (target / path).resolve() == (place / "heatmap.png").resolve()
