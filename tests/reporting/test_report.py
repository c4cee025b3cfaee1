"""The report of a made-up run, read back: its structure and its numbers; what is left out, and what is refused."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.run_files import LIBRARIES, TARGET, TASKS, digest, edit, leave, write_run
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.records import to_json
from trace_transfer.reporting import summary_tables
from trace_transfer.reporting.finished_run import FinishedRun, read_run
from trace_transfer.reporting.records import Cost, RunFile, StepFile, Summary
from trace_transfer.reporting.report import write_report
from trace_transfer.reporting.summarising import summarise
from trace_transfer.represent.draw import table_of
from trace_transfer.represent.records import RepresentationFile, RepresentedModel
from trace_transfer.tables import Number

BEGIN, END = "<!-- varies -->", "<!-- /varies -->"
SECTIONS = (
    "In plain words", "What was run", "Main table", "Score matrices", "Forgetting curves", "Sweeps", "Layer match",
    "Core sets: where they lie", "Core sets: what they have in common", "What moved", "Cost of each method",
    "What the measures are", "How it was made, and how to make it again",
)  # fmt: skip
SOME_METHODS = ("sequential", "trace-lf", "transfer-lf", "random")
MOST_BYTES = 8_000_000


def rows_of(text: str, caption: str) -> list[list[str]]:
    """Cells of the table in Markdown whose caption begins so, the headings first."""
    (table,) = re.findall(rf"^{re.escape(caption)}.*\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    head, rule, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines())
    assert all(re.fullmatch("---:?", cell) for cell in rule)
    assert {len(rule), *map(len, rows)} == {len(head)} and rows
    return [[re.sub(rf"{BEGIN}|{END}|`|\*\*|\\", "", cell) for cell in row] for row in (head, *rows)]


def plots_of(page: str) -> dict[str, list[dict]]:
    found = re.findall(r'<figure id="(.*?)">.*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(spec) for name, spec in found}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweeps = {"ratio": (["trace-lf"], [0.01, 0.1]), "order": (["trace-lf"], [list(TASKS), list(reversed(TASKS))])}
    directory = write_run(
        tmp_path_factory.mktemp("runs") / "study", sweeps=sweeps, untaught=["general"], metrics={"law": "loss"}
    )
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def finished(written: Path) -> FinishedRun:
    return read_run(written)


@pytest.fixture(scope="module")
def summary(finished: FinishedRun) -> Summary:
    return summarise(finished)


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return (written / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return (written / "report.md").read_text("utf-8")


def test_every_section_is_there_and_what_the_run_says_comes_first(summary: Summary, page: str, text: str) -> None:
    assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == SECTIONS
    ids = re.findall(r' id="(.*?)"', page)
    assert len(set(ids)) == len(ids) and re.findall(r'<section id="(.*?)"', page) == re.findall('href="#(.*?)"', page)
    assert summary.headline.startswith("Whether Transfer-LF forgets less than Sequential fine-tuning is open, no diff")
    assert text.index(summary.headline.partition(":")[0]) < text.index("## In plain words")


def test_it_needs_nothing_else(written: Path, page: str) -> None:
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly.js names addresses that it does not use
    assert not re.search(r"https?://|url\(|@import", own)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r' (?:src|href|action|poster)="(.*?)"', own))
    assert len(page.encode()) < MOST_BYTES
    assert page.count("plotly.js v") == 1
    assert sorted(file.name for file in written.iterdir()) == ["report.html", "report.md", "run.json", "steps"]


def test_the_numbers_are_the_summarys(summary: Summary, text: str) -> None:
    for table in (
        summary_tables.scores(summary),
        summary_tables.questions(summary),
        summary_tables.differences(summary),
        *summary_tables.matrices(summary),
        *(summary_tables.sweep(summary, one) for one in summary.sweeps),
        summary_tables.times(summary),
    ):
        head, *rows = rows_of(text, table.title)
        assert head == list(table.header)
        assert rows == [[cell.text if isinstance(cell, Number) else cell for cell in row] for row in table.rows]
    first = summary.methods[0]
    (row,) = [row for row in rows_of(text, "Scores after the last task") if row[0] == first.name]
    # maths is told in percent, law, a loss, in its own unit
    assert row[2].startswith(f"{100 * first.final['maths-test'].mean:.1f} [")
    assert row[4].startswith(f"{first.final['law-test'].mean:.3f} [")


def test_plots_hold_the_points_of_the_summary(summary: Summary, page: str) -> None:
    plots = plots_of(page)
    assert set(plots) >= {"plot-curves", "plot-sweep-ratio", "plot-sweep-order", "plot-layers", "plot-importance"}
    (plot,) = plots["plot-curves"]
    curve = next(one for one in summary.curves if (one.method, one.task) == ("sequential", "maths"))
    trace = next(one for one in plot["data"] if (one["legendgroup"], one["xaxis"]) == ("Sequential fine-tuning", "x"))
    assert trace["y"] == pytest.approx([100 * point.mean for point in curve.points], rel=1e-5)
    highs = [y + more for y, more in zip(trace["y"], trace["error_y"]["array"], strict=True)]
    assert highs == pytest.approx([100 * (p.mean if p.high is None else p.high) for p in curve.points], rel=1e-4)
    assert [round(x) for x in trace["x"]] == list(range(len(curve.points)))


def test_core_sets_are_drawn_and_compared_and_what_moved_is_counted(
    finished: FinishedRun, page: str, text: str
) -> None:
    shown = [plot["title"] for plot in plots_of(page)["plot-importance"]]
    assert {"maths, identified on the source, by LF", "maths, identified on the target, by LF"} < {*shown}
    assert any(re.fullmatch(r"law, carried to the target, by LF \(Transfer-LF.*\)", title) for title in shown)
    rows = rows_of(text, "Carried core sets against those that were identified on the target")
    # the made-up run draws both alike
    assert ["maths", "Transfer-LF", "LF", "1.00", "1.00"] in [row[:5] for row in rows]
    assert ["1 of 17", "5.88%"] in [row[4:6] for row in rows_of(text, "Sizes of the core sets")]
    (row,) = (row for row in rows_of(text, "Tensors (parameters)") if row[0] == "Transfer-LF")
    moved = next(one.counts for uses, one in finished.verified if uses[0].method == "transfer-lf")["core moved"]
    assert (row[1:3], row[5]) == (["5", f"{moved.parameters:,} ({moved.elements:,})"], "0 (0)")
    assert "Nothing moved that was frozen." in text


def without_varying(text: str) -> str:
    return re.sub(f"{BEGIN}.*?{END}", "", text, flags=re.DOTALL)


def test_two_reports_of_the_same_numbers_differ_in_times_alone(written: Path, tmp_path: Path) -> None:
    """The steps' costs and the machine are others; another report of the same files is the same to the byte."""
    other = Path(shutil.copytree(written, tmp_path / "study"))
    first, again = ([file.read_bytes() for file in write_report(other).files] for _ in range(2))
    assert first == again
    for file in other.glob("steps/*/step.json"):
        edit(file, lambda step: step["cost"].update(seconds=step["cost"]["seconds"] * 1.7 + 3, peak_bytes=123, bytes=7))
    edit(other / "run.json", lambda run: run.update(machine=dict.fromkeys(run["machine"], "other")))
    for file, before in zip(write_report(other).files, first, strict=True):
        assert file.read_bytes() != before
        assert without_varying(file.read_text("utf-8")) == without_varying(before.decode())


def test_names_are_never_read_as_marks(tmp_path: Path) -> None:
    evil = "a<b> & 'c' | *d* _e_ `f` --> </script><img src=x> ## [g](javascript:h) $x$"
    run = write_run(tmp_path / "study", methods=SOME_METHODS, seeds=(0, 1, 2))

    def spoil(data: dict) -> None:
        data["name"] = data["methods"][0]["title"] = data["methods"][0]["what"] = evil
        data["settings"]["evil"] = data["machine"]["evil"] = evil

    edit(run / "run.json", spoil)
    write_report(run)
    page = re.sub(r"<script.*?</script>", "", (run / "report.html").read_text("utf-8"), flags=re.DOTALL)
    assert page.count(html.escape(evil, quote=False)) > 8
    assert "<img src=x>" not in page and "<a<b>" not in page and page.count("<section") == len(SECTIONS) - 1
    for table in re.findall("<table.*?</table>", page, re.DOTALL):
        assert len({len(re.findall("<t[hd]", row)) for row in re.findall("<tr>.*?</tr>", table, re.DOTALL)}) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "study", methods=SOME_METHODS, seeds=(0, 1, 2))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "study"))


def step_of(run: Path, kind: str, method: str = "transfer-lf", seed: int = 0) -> Path:
    record = RunFile.model_validate_json((run / "run.json").read_text("utf-8"))
    return run / next(one for one in record.cells if (one.method, one.seed) == (method, seed)).steps[kind]


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
        assert re.search(f"{file.relative_to(run)}: missing", str(told.value))
    assert f"{changed.relative_to(run)}: was changed after its step was finished" in str(told.value)
    assert str(told.value).count("\n  - ") == 5
    assert not (run / "report.html").exists() and not (run / "report.md").exists()


def test_a_run_that_is_not_finished_is_reported_and_says_so(run: Path) -> None:
    """A cell, then all of the reference, of which another method takes the place, then all."""
    for kind in ("train", "evaluate"):
        shutil.rmtree(step_of(run, kind, "transfer-lf", 2))
    written = write_report(run)
    assert len(written.unfinished) == 2
    told = "This run is not complete: 2 steps are not finished, so 1 of 12 trained models are missing"
    for file in written.files:
        found = file.read_text("utf-8")
        assert told in found[: found.index("In plain words")]
    found = summarise(read_run(run))
    assert {one.method: one.seeds for one in found.methods} == {
        **dict.fromkeys(SOME_METHODS, (0, 1, 2)), "transfer-lf": (0, 1),
    }  # fmt: skip
    assert "Not all methods have all 3 seeds: Transfer-LF (2 seeds); pairs are of the shared ones." in found.notes
    for seed in range(3):
        shutil.rmtree(step_of(run, "evaluate", "random", seed))
    assert (found := read_run(run)).record.reference == summarise(found).reference == "sequential"
    write_report(run)
    shutil.rmtree(run / "steps")
    with pytest.raises(UserError, match="no model of the main comparison is finished"):
        write_report(run)


def test_a_sweep_of_a_method_that_the_main_comparison_has_not_yet(tmp_path: Path) -> None:
    sweeps = {"ratio": (["trace-lf"], [0.1, 0.2])}
    run = write_run(tmp_path, methods=("sequential", "trace-lf", "random"), seeds=(0,), sweeps=sweeps, files=False)
    shutil.rmtree(step_of(run, "evaluate", "trace-lf", 0))
    assert "plot-sweep-ratio" in write_report(run).files[0].read_text("utf-8")


def test_patches_that_were_let_go_of_are_not_missed(run: Path) -> None:
    place = step_of(run, "train")
    removed = [file.name for file in place.glob("*.patch.safetensors")]
    edit(place / "step.json", lambda data: data.update(removed=removed))
    for name in removed:
        (place / name).unlink()
    assert write_report(run).unfinished == ()


def test_frozen_tensors_that_moved_stand_out(run: Path) -> None:
    def moved(data: dict) -> None:
        next(one for one in data["parameters"] if one["frozen"])["frozen_moved"] = 3

    leave(step_of(run, "train") / "verification.json", moved)
    page = write_report(run).files[0].read_text("utf-8")
    assert "In 1 model frozen tensors moved: their masks did not hold." in page
    assert "Nothing moved that was frozen" not in page


def test_the_representation_of_the_run_is_shown_with_its_numbers(run: Path) -> None:
    place = run / "steps" / "represent-0123456789ab"
    place.mkdir()
    model = RepresentedModel(
        label="base", model=TARGET, fingerprint=digest("base"), silhouette=0.394,
        distances=((0.0, 12.5, 3.0), (12.5, 0.0, 4.0), (3.0, 4.0, 0.0)), spread=(1.0, 2.0, 3.0),
    )  # fmt: skip
    found = RepresentationFile(
        tasks=("maths", "code", "law"), num_texts=(9, 9, 9), data_sha256=("a", "b", "c"), models=(model,)
    )
    step = StepFile(
        kind="represent", address="0123456789ab" + "0" * 52, settings={}, inputs={}, files={},
        cost=Cost(seconds=1, peak_bytes=1, bytes=1), libraries=LIBRARIES,
    )  # fmt: skip
    (place / "step.json").write_text(to_json(step), encoding="utf-8")
    leave(place / "representation.json", to_json(found).encode())
    leave(place / "representation.png", b"\x89PNG\r\n\x1a\n" + b"0" * 100)
    edit(run / "run.json", lambda data: data["settings"].update(represent_step="steps/represent-0123456789ab"))
    page, text = (file.read_text("utf-8") for file in write_report(run).files)
    assert 'id="representations"' in page and "data:image/png;base64,iVBORw0KGgo" in page
    assert all(f"{cell}</t" in page for cell in table_of(found).rows[0])
    assert "](steps/represent-0123456789ab/representation.png)" in text
    shutil.rmtree(place)
    assert write_report(run).unfinished == ("steps/represent-0123456789ab",)


def test_pictures_are_found_from_another_directory(run: Path, tmp_path: Path) -> None:
    place = step_of(run, "map")
    leave(place / "heatmap.png", b"\x89PNG")
    target = tmp_path / "elsewhere" / "deeper"
    written = write_report(run, target).files
    assert written == (target / "report.html", target / "report.md")
    assert not (run / "report.html").exists()
    (path,) = re.findall(r"!\[.*?\]\((.*?heatmap\.png)\)", written[1].read_text("utf-8"))
    assert (target / path).resolve() == (place / "heatmap.png").resolve()
