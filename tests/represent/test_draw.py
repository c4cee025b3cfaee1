"""Representations as a page, read back from a headless browser without network, as a picture, and in the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.run_files import TARGET
from tests.transfer.test_draw import plots_in
from trace_transfer.figures import plot, write_figure
from trace_transfer.represent.draw import centroid_distances, figure, silhouette, spread, table_of
from trace_transfer.represent.records import RepresentationFile, RepresentedModel

NASTY = "</script><b>&amp; $x^2$ {braces}"


def drawn(labels=("base", "tuned"), *, tasks=("math", "code", "law"), size=6, unified=True, words=NASTY):
    total, task_N = size * len(tasks), np.repeat(np.arange(len(tasks)), size)
    models, coordinates = [], []
    for seed, label in enumerate(labels):
        generator = np.random.default_rng(seed)
        points = generator.normal(size=(total, 2)) + 9 * generator.normal(size=(len(tasks), 2))[task_N]
        coordinates.append(points.astype(np.float32))
        models.append(
            RepresentedModel(
                label=label, model=TARGET, fingerprint="f", silhouette=silhouette(points, task_N),
                distances=tuple(map(tuple, centroid_distances(points, task_N).tolist())),
                spread=tuple(spread(points, task_N).tolist()),
            )
        )  # fmt: skip
    settings = {"space": "unified" if unified else "separate", "perplexity": 30.0, "seed": 0, "pool": "mean"}
    file = RepresentationFile(
        tasks=tasks, num_texts=(size,) * len(tasks), data_sha256=tasks, models=tuple(models), settings=settings
    )
    return file, coordinates, [{"id": f"{tasks[task]}:{index}", "words": words} for index, task in enumerate(task_N)]


def test_every_panel_has_its_points_its_ellipses_and_the_others_in_grey():
    shown = drawn(("a", "b", "c"))
    traces = plot(figure(*shown).rows[0]).spec["data"]
    for index, coordinates in enumerate(shown[1]):
        own = [trace for trace in traces if trace["xaxis"] == f"x{index + 1 if index else ''}"]
        names = ["95 % ellipses"] * 3 + ["other models", "math", "code", "law"]
        assert [trace["name"] for trace in own] == names
        points = np.concatenate([np.stack([t["x"], t["y"]], 1) for t in own[4:]])
        assert np.allclose(points, coordinates, rtol=1e-3, atol=1e-3)
        assert len(own[3]["x"]) == 2 * len(coordinates)


def test_the_page_holds_the_numbers(tmp_path: Path):
    shown = drawn(("base", NASTY))
    write_figure(tmp_path / "page", figure(*shown))
    text = (tmp_path / "page.html").read_text("utf-8")
    own = " ".join(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).split())
    assert "<title>Last-layer representations of math, code, law</title>" in own
    table = table_of(shown[0])
    assert table.header[:4] == ("model", "silhouette", "S", "math – code")
    assert table.rows[0][1] == f"{shown[0].models[0].silhouette:.3f}"
    assert all(f">{cell}</td>" in own for cell in table.rows[1][1:])
    points = next(trace for trace in plots_in(text)[0]["data"] if trace["name"] == "math")
    assert points["text"][0].startswith("<b>math:0</b><br>&lt;/script&gt;&lt;b&gt;&amp;amp;")


def test_the_picture(tmp_path: Path):
    shown = drawn(("a", "b", "c", NASTY), tasks=(*"abcdefg", "a$x^2$"))
    for name in ("picture", "same"):
        write_figure(tmp_path / name, figure(*shown))
    assert (tmp_path / "picture.png").read_bytes() == (tmp_path / "same.png").read_bytes()


def test_of_many_tasks_the_extremes_are_told():
    table = table_of(drawn(tasks=tuple(f"t{i}" for i in range(8)))[0])
    assert table.header[3:5] == ("nearest tasks", "farthest tasks")
    assert re.fullmatch(r"[\d.e+-]+ \(t\d – t\d\)", table.rows[0][3])
