"""The heatmap as a page, read back from a headless browser that has no network, and as a picture."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.run_files import SOURCE, TARGET, layer_match
from trace_transfer.errors import ArtefactError
from trace_transfer.records import to_json
from trace_transfer.transfer.draw import MATCH, SIMILARITY, figure_of, read_similarities, write_heatmap
from trace_transfer.transfer.policies import argmax
from trace_transfer.transfer.records import LayerMatch, LayerPair, rated

SHAPES = [(4, 30), (30, 24), (80, 94)]
WITH_GAP = (30, 24)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = "MAP * ~NOTFOUND"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def heatmap(shape: tuple[int, int], target: str = "a/large-8B") -> tuple[LayerMatch, dict]:
    """Two ridges near the diagonal; each source layer chooses its best target, or nothing if it has no values."""
    depth = np.linspace(0, 1, shape[0])[:, None] - np.linspace(0, 1, shape[1])[None]
    similarities = {}
    for seed, name in enumerate(("update", "stream")):
        similarities[name] = 0.9 * np.exp(-8 * depth**2) + np.random.default_rng(seed).normal(0, 0.03, shape)
        if shape == WITH_GAP:
            similarities[name][3] = np.nan
    used = similarities["update"]
    models = [
        one.model_copy(update={"id": name, "num_layers": count})
        for one, name, count in zip((SOURCE, TARGET), ("small-135M", target), shape, strict=True)
    ]
    flips = {layer: 0.3 * (layer % 5 == 0) for layer in range(shape[0])}
    told = {
        "source": models[0], "target": models[1], "policy": "argmax", "chosen_by": "source",
        "pairs": rated(argmax(used), used, by_target=False, flip_rates=flips),
    }  # fmt: skip
    return layer_match(0)[0].model_copy(update=told), similarities


def pairs_in(match: LayerMatch, similarities: dict, name: str) -> tuple[LayerPair, ...]:
    """What is drawn of a representation."""
    return match.pairs if name == "update" else rated(argmax(similarities[name]), similarities[name], by_target=False)


def plots_in(page: str) -> list[dict]:
    """The plots that the page chooses from."""
    found = re.search(r'<script type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def rendered(page: Path, folder: Path, script: str = "") -> str:
    """The document after a browser without network has run it, and then `script`."""
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


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LayerMatch, dict, Path]:
    """Drawn from the files of a match."""
    match, similarities = heatmap(request.param)
    place = tmp_path_factory.mktemp("heatmap")
    (place / MATCH).write_text(to_json(match), "utf-8")
    save_file(
        {f"similarity.{name}": one for name, one in similarities.items()} | {"similarity": similarities["update"]},
        place / SIMILARITY,
    )
    files = write_heatmap(place)
    assert files == [place / "heatmap.html", place / "heatmap.png"]
    assert {file.name for file in place.iterdir()} == {MATCH, SIMILARITY, "heatmap.html", "heatmap.png"}
    return match, similarities, files[0]


def test_page_holds_all_cells_and_pairs(written: tuple[LayerMatch, dict, Path]) -> None:
    match, similarities, page = written
    plots = plots_in(page.read_text("utf-8"))
    assert [plot["title"].split(":")[0] for plot in plots] == ["update", "stream"]
    for (name, similarity), plot in zip(similarities.items(), plots, strict=True):
        pairs = pairs_in(match, similarities, name)
        cells = next(trace for trace in plot["data"] if trace["type"] == "heatmap" and "text" in trace)
        assert np.allclose(np.array(cells["z"], float), similarity, atol=1e-4, equal_nan=True)
        drawn = {}
        for trace in plot["data"]:
            if trace["type"] == "scatter":
                drawn.setdefault(trace["name"], set()).update(zip(trace["y"], trace["x"], strict=True))
        chosen = {(p.source, p.target) for p in pairs}
        ambiguous = {(p.source, p.target) for p in pairs if p.is_ambiguous}
        assert drawn["matched pair"] == chosen - ambiguous and drawn.get("ambiguous pair", set()) == ambiguous
        assert drawn["runner-up"] == {(p.source, p.runner_up) for p in pairs} - chosen
        assert bool(ambiguous) == (name == "update")
        for p in pairs:
            told = f"CKA {similarity[p.source, p.target]:.3f}, matched, margin {p.margin:.3f}"
            told += ", ambiguous" * p.is_ambiguous
            first = f"source layer {p.source} → target layer {p.target}"
            assert cells["text"][p.source][p.target].split("<br>")[:2] == [first, told]
        if similarity.shape == WITH_GAP:
            assert cells["text"][3][0].endswith("no CKA")


def test_a_matrix_alone_or_of_other_models(tmp_path: Path) -> None:
    """Earlier versions wrote the one of the match alone."""
    match, similarities = heatmap((4, 30))
    save_file({"similarity": similarities["update"].T.copy()}, tmp_path / SIMILARITY)
    with pytest.raises(ArtefactError, match=r"\[30, 4\], but the layer match is of \[4, 30\] layers"):
        read_similarities(tmp_path / SIMILARITY, match)
    save_file({"similarity": similarities["update"]}, tmp_path / SIMILARITY)
    found = read_similarities(tmp_path / SIMILARITY, match)
    assert list(found) == ["update"] and np.array_equal(found["update"], similarities["update"])
    assert [row.name for row in figure_of(match, found).rows] == ["update: what each layer adds"]
