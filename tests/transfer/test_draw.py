"""The heatmap as a page, read back from a headless browser that has no network, and as a picture."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trace_transfer.figures import write_html, write_png
from trace_transfer.transfer.draw import Heatmap, View, figure_of

SHAPES = [(4, 30), (30, 24), (32, 64), (80, 94)]
WITH_GAP = (30, 24)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = "MAP * ~NOTFOUND"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def view(name: str, shape: tuple[int, int], seed: int, used: bool) -> View:
    """A ridge near the diagonal; each source layer chooses its best target, or nothing if it has no values."""
    num_source, num_target = shape
    depth = np.linspace(0, 1, num_source)[:, None] - np.linspace(0, 1, num_target)[None]
    similarity = 0.9 * np.exp(-8 * depth**2) + np.random.default_rng(seed).normal(0, 0.03, shape)
    if shape == WITH_GAP:
        similarity[3] = np.nan
    rows = [source for source in range(num_source) if not np.isnan(similarity[source]).any()]
    order = {source: np.argsort(similarity[source]).tolist() for source in rows}
    pairs = tuple((source, order[source][-1]) for source in rows)
    runner_ups = tuple((source, order[source][-2]) for source in rows)
    margins = {
        best: float(similarity[best] - similarity[second]) for best, second in zip(pairs, runner_ups, strict=True)
    }
    return View(name, similarity, pairs, runner_ups, margins, used, ambiguous=frozenset(pairs[::5]))


def heatmap(shape: tuple[int, int], source: str = "small-135M", target: str = "large-8B") -> Heatmap:
    views = (view("update", shape, 0, used=True), view("stream", shape, 1, used=False))
    return Heatmap(source, target, views, "cka-debiased, boundary rows, argmax", "usable: every layer is")


def plots_in(page: str) -> list[dict]:
    """The plots that the page chooses from."""
    found = re.search(r'<script type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def rendered(page: Path, folder: Path, script: str = "") -> str:
    """The document after a browser without network has run it (and then `script`)."""
    if script:
        text = page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>")
        page = folder / "with_script.html"
        page.write_text(text, "utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
        f"--user-data-dir={folder / 'profile'}", f"--host-resolver-rules={OFFLINE}", "--virtual-time-budget=8000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Heatmap, Path]:
    drawn = heatmap(request.param)
    page = tmp_path_factory.mktemp("heatmap") / "heatmap.html"
    write_html(page, figure_of(drawn))
    return drawn, page


def test_page_holds_all_cells_and_pairs(written: tuple[Heatmap, Path]) -> None:
    drawn, page = written
    assert [file.name for file in page.parent.iterdir()] == ["heatmap.html"]
    plots = plots_in(page.read_text("utf-8"))
    assert [plot["title"].split(":")[0] for plot in plots] == ["update", "stream"]
    for one, plot in zip(drawn.views, plots, strict=True):
        cells = next(trace for trace in plot["data"] if trace["type"] == "heatmap" and "text" in trace)
        rings = [trace for trace in plot["data"] if trace.get("name") == "ambiguous pair"]
        chosen = next(trace for trace in plot["data"] if trace.get("name") == "matched pair")
        second = next(trace for trace in plot["data"] if trace.get("name") == "runner-up")
        assert np.allclose(np.array(cells["z"], float), one.similarity, atol=1e-4, equal_nan=True)
        assert set(zip(chosen["y"], chosen["x"], strict=True)) == set(one.pairs) - one.ambiguous
        assert {pair for ring in rings for pair in zip(ring["y"], ring["x"], strict=True)} == set(one.ambiguous)
        assert {ring["marker"]["symbol"] for ring in rings} == {"circle-open"}
        assert set(zip(second["y"], second["x"], strict=True)) == set(one.other_runner_ups)
        for source, target in one.pairs:
            value, margin = one.similarity[source, target], one.margins[source, target]
            told = f"CKA {value:.3f}, matched, margin {margin:.3f}"
            told += ", ambiguous" if (source, target) in one.ambiguous else ""
            first = f"source layer {source} → target layer {target}"
            assert cells["text"][source][target].split("<br>") == [first, told]
        if one.similarity.shape == WITH_GAP:
            assert cells["text"][3][0].endswith("no CKA: a degenerate layer")


class Elements(HTMLParser):
    """All elements of a page with their attributes; what a script holds is text to a browser too."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def num_marks(view: View) -> int:
    """Of an ambiguous pair a ring and its rim are drawn."""
    return len(view.pairs) + len(view.ambiguous) + len(view.other_runner_ups)


@needs_chromium
@pytest.mark.parametrize("written", [(4, 30), WITH_GAP], indirect=True, ids=str)
def test_page_renders_without_network(written: tuple[Heatmap, Path], tmp_path: Path) -> None:
    drawn, page = written
    fetched = (
        "document.title += ' fetched ' + performance.getEntriesByType('resource')"
        ".filter(entry => !/^(data|blob):/.test(entry.name)).length"
    )
    dom = rendered(page, tmp_path, fetched)
    assert "<title>Layer match: small-135M → large-8B fetched 0</title>" in dom
    assert "<h1>Layer match: small-135M → large-8B</h1>" in dom
    assert len(re.findall(r'<image [^>]*xlink:href="data:image/png;base64,', dom)) >= 1
    assert dom.count('<path class="point"') == num_marks(drawn.used)
    assert "<p>usable: every layer is</p>" in dom
    assert re.findall(r'aria-pressed="(\w+)"', dom) == ["true", "false"]
    for text in ("target layer of large-8B →", ">CKA<", ">equal depth<"):
        assert text in dom
    ticks = [[int(tick) for tick in re.findall(rf'class="{axis}tick"><text[^>]*>(\d+)<', dom)] for axis in "yx"]
    assert [axis[0] for axis in ticks] == [0, 0]
    assert all(3 <= len(axis) <= count for axis, count in zip(ticks, drawn.used.similarity.shape, strict=True))


@needs_chromium
def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = '<b id="x">&amp;</script><script>document.title="broken"</script> $a$'
    page = tmp_path / "heatmap.html"
    write_html(page, figure_of(heatmap((32, 64), source=name, target="plain")))
    dom = rendered(page, tmp_path)
    assert '<h1>Layer match: &lt;b id="x"&gt;&amp;amp;&lt;/script&gt;&lt;script&gt;' in dom
    assert "<title>broken" not in dom
    assert '<b id="x">' not in dom
    assert len(re.findall(r'<image [^>]*xlink:href="data:image/png', dom)) == 1


@pytest.mark.parametrize("shape", [(4, 30), (80, 94)], ids=str)
def test_picture(shape: tuple[int, int], tmp_path: Path) -> None:
    from PIL import Image

    drawn = heatmap(shape, target="x" * 200 + "$y^{$")
    write_png(tmp_path / "one.png", figure_of(drawn))
    write_png(tmp_path / "same.png", figure_of(drawn))
    fewer = View("update", drawn.used.similarity, drawn.used.pairs[1:], drawn.used.runner_ups, {}, used=True)
    other = Heatmap(drawn.source_name, drawn.target_name, (fewer,), drawn.subtitle)
    write_png(tmp_path / "fewer.png", figure_of(other))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fewer.png", "one.png", "same.png"]
    with Image.open(tmp_path / "one.png") as image:
        image.load()
        assert image.format == "PNG"
        assert 900 <= image.width <= 1800 and 450 <= image.height <= 1150
        border = np.asarray(image.convert("L"))[:, [0, -1]]
    assert (border == 255).all(), "something is cut off at the edge"
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "fewer.png").read_bytes()
