"""Representations as a page, read back from a headless browser without network, as a picture, and in the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.transfer.test_draw import Elements, needs_chromium, rendered, traces_in
from trace_transfer.represent.draw import write_html, write_png
from trace_transfer.represent.embedding import centroid_distances, silhouette, spread
from trace_transfer.represent.representation_page import figure
from trace_transfer.represent.representation_view import (
    COLOURS,
    SYMBOLS,
    Panel,
    Representation,
    colour_of,
    columns_of,
    number,
    symbol_of,
    table_of,
)

NASTY = "</script><b>&amp; $x^2$ {braces}"


def drawn(labels=("base", "tuned"), *, tasks=("math", "code", "law"), size=6, unified=True, words=NASTY):
    total, task_N = size * len(tasks), np.repeat(np.arange(len(tasks)), size)
    panels = []
    for seed, label in enumerate(labels):
        generator = np.random.default_rng(seed)
        points = generator.normal(size=(total, 2)) + 9 * generator.normal(size=(len(tasks), 2))[task_N]
        panels.append(
            Panel(
                label,
                points.astype(np.float32),
                silhouette(points, task_N),
                centroid_distances(points, task_N),
                tuple(spread(points, task_N).tolist()),
            )
        )
    texts = tuple({"id": f"{tasks[task]}:{index}", "words": words} for index, task in enumerate(task_N))
    return Representation(tuple(tasks), (size,) * len(tasks), tuple(panels), texts, unified, "mean over tokens")


def test_every_panel_has_its_points_its_ellipses_and_the_others_in_grey():
    shown = drawn(("a", "b", "c"))
    traces = figure(shown)["data"]
    for index, panel in enumerate(shown.panels):
        own = [trace for trace in traces if trace["xaxis"] == f"x{index + 1}"]
        assert [trace["meta"]["kind"] for trace in own] == ["others"] + ["ellipse"] * 3 + ["points"] * 3
        points = np.concatenate([np.stack([t["x"], t["y"]], 1) for t in own if t["meta"]["kind"] == "points"])
        assert np.allclose(points, panel.points, atol=1e-3)
        assert len(own[0]["x"]) == 2 * len(panel.points)
        for trace in own[1:]:
            colour = trace["line"]["color"] if trace["meta"]["kind"] == "ellipse" else trace["marker"]["color"]
            assert colour == COLOURS[trace["meta"]["task"]]
        assert own[-1]["marker"]["symbol"] == "square"


def test_one_space_has_one_scale_and_separate_ones_their_own():
    together, apart = drawn(), drawn(unified=False)
    assert together.ranges[0] == together.ranges[1]
    assert apart.ranges[0] != apart.ranges[1]
    assert not apart.has_others
    assert not drawn(("alone",)).has_others
    for shown in (together, apart):
        for panel, ellipses, (across, up) in zip(shown.panels, shown.ellipses, shown.ranges, strict=True):
            assert across[1] - across[0] == pytest.approx(up[1] - up[0])
            inside = np.concatenate([panel.points, *(ellipse.outline() for ellipse in ellipses)])
            assert ((inside > [across[0], up[0]]) & (inside < [across[1], up[1]])).all()


def test_panels_are_square_and_do_not_overlap():
    for count in range(1, 8):
        shown = drawn([f"m{i}" for i in range(count)])
        layout = figure(shown)["layout"]
        boxes = [(*layout[f"xaxis{i + 1}"]["domain"], *layout[f"yaxis{i + 1}"]["domain"]) for i in range(count)]
        columns = columns_of(count)
        assert len({box[:2] for box in boxes}) == min(columns, count)
        for index, (left, right, bottom, top) in enumerate(boxes):
            assert -1e-9 <= left < right <= 1 + 1e-9
            assert -1e-9 <= bottom < top <= 1
            for other in boxes[:index]:
                assert left >= other[1] or right <= other[0] or top <= other[2]


def test_the_page_holds_the_numbers_and_refers_to_nothing_outside(tmp_path: Path):
    shown = drawn(("base", NASTY))
    write_html(tmp_path / "page.html", shown)
    text = (tmp_path / "page.html").read_text("utf-8")
    elements = Elements(text).found
    assert {tag for tag, _ in elements} & {"link", "img", "iframe", "object", "base", "b"} == set()
    assert [attributes for _, attributes in elements if {"src", "href", "srcset"} & set(attributes)] == []
    own = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|@import|url\(", own)
    assert "<title>Last-layer representations of math, code and law</title>" in own
    heading, rows = table_of(shown)
    assert heading[:4] == ["model", "silhouette", "S", "math – code"]
    assert rows[0][1] == f"{shown.panels[0].silhouette:.3f}"
    for cell in rows[1][1:]:
        assert f"<td>{cell}</td>" in own
    assert "grey dots are the same texts" in own
    (points, *_) = [trace for trace in traces_in(text) if trace["meta"]["kind"] == "points"]
    assert points["text"][0].startswith("<b>math:0</b><br>&lt;/script&gt;&lt;b&gt;&amp;amp;")


def test_the_page_says_how_panels_compare(tmp_path: Path):
    for shown, expected, absent in (
        (drawn(("one",)), "Each dot is one text", "panels share one space"),
        (drawn(unified=False), "a space of its own", "panels share one space"),
        (drawn(), "panels share one space", "not of one kind"),
    ):
        write_html(tmp_path / "page.html", shown)
        own = re.sub(r"<script.*?</script>", "", (tmp_path / "page.html").read_text("utf-8"), flags=re.DOTALL)
        assert expected in " ".join(own.split())
        assert absent not in " ".join(own.split())


@needs_chromium
def test_the_page_renders_without_network_and_hides_what_is_pressed(tmp_path: Path):
    shown = drawn(("base", NASTY), words="first words")
    write_html(tmp_path / "page.html", shown)
    dom = rendered(
        tmp_path / "page.html", tmp_path, "document.title += ' ' + document.querySelectorAll('.point').length"
    )
    per_panel = 18 + 18  # own and grey
    assert f"<title>Last-layer representations of math, code and law {2 * per_panel}</title>" in dom
    assert re.findall(r'aria-pressed="(\w+)"', dom) == ["true"] * 5
    assert "silhouette" in dom
    script = (
        "document.querySelector('[data-task=\"1\"]').click(); document.querySelector('[data-kind=others]').click();"
        "setTimeout(() => document.title += ' ' + document.querySelectorAll('.point').length, 500);"
    )
    dom = rendered(tmp_path / "page.html", tmp_path, script)
    assert f"law {2 * 12}</title>" in dom
    assert re.findall(r'aria-pressed="(\w+)"', dom) == ["true", "false", "true", "true", "false"]


@pytest.mark.parametrize("labels", [("one",), ("a", "b", NASTY), ("a",) * 5])
def test_the_picture(tmp_path: Path, labels):
    from matplotlib.image import imread

    shown = drawn(labels, tasks=(*"abcdefg", "a$x^2$"))
    write_png(tmp_path / "picture.png", shown)
    pixels = imread(tmp_path / "picture.png")
    assert pixels.shape[1] >= 1000
    assert (pixels[:3].min(), pixels[-3:].min()) == (1.0, 1.0)  # nothing is cut at the edges
    for task in range(7):
        colour = np.array([int(colour_of(task)[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        assert (np.abs(pixels[..., :3] - colour).max(axis=-1) < 0.2).sum() > 50 * len(labels)


def test_many_tasks_look_different_and_are_told_in_short():
    looks = {(colour_of(task), symbol_of(task)) for task in range(len(COLOURS) * len(SYMBOLS))}
    assert len(looks) == 35
    heading, rows = table_of(drawn(tasks=[f"t{i}" for i in range(8)]))
    assert heading[3:5] == ["nearest tasks", "farthest tasks"]
    assert re.fullmatch(r"[\d.]+ \(t\d – t\d\)", rows[0][3])
    assert drawn(tasks=[f"t{i}" for i in range(8)]).title.endswith("of 8 tasks")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.000"), (12.2, "12.20"), (7.1934, "7.193"), (0.0123, "1.23e-02"), (1234.5678, "1234.57")]
)
def test_numbers(value, text):
    assert number(value) == text


def test_points_of_other_texts_are_refused():
    good = drawn()
    with pytest.raises(ValueError, match="expected 12 texts and points"):
        Representation(("math", "code"), (6, 6), good.panels, good.texts, True, "")
