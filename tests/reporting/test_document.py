"""The report of a made-up run, read back: its structure, its numbers, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.run_files import METHODS, TASKS, write_run
from trace_transfer.reporting import numbers, summary_tables
from trace_transfer.reporting.blocks import Bullets, Cells, Code, Paragraph, Varying, code, strong, varying
from trace_transfer.reporting.contents import ReportContents
from trace_transfer.reporting.html import block_html
from trace_transfer.reporting.markdown import BEGIN, END, block_markdown
from trace_transfer.reporting.plots import COLOURS, first_shown, styles
from trace_transfer.reporting.reporting import read_contents, write_report
from trace_transfer.tables import Number

SECTIONS = (
    "answers", "run", "table", "matrices", "forgetting", "sweeps", "layers", "importance", "overlap", "moved", "costs",
    "measures", "record",
)  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "img", "link", "input"}
MOST_BYTES = 8_000_000


@dataclass
class Page(HTMLParser):
    """What a page is made of; raises where tags do not close each other."""

    sections: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    tables: list[dict] = field(default_factory=list)
    plots: dict[str, list[dict]] = field(default_factory=dict)
    steady: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict]] = []

    @classmethod
    def of(cls, text: str) -> Page:
        page = cls()
        page.feed(text)
        page.close()
        assert not page.open, f"never closed: {page.open}"
        return page

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        for name in ("src", "href", "action", "data", "poster"):
            if name in given:
                (self.links if given[name].startswith(("#", "data:")) else self.outside).append(given[name])
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "table":
            self.tables.append({"section": self.sections[-1], "caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append((tag, given.get("scope"), []))
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "script" in tags:
            if self.open[-1][1].get("type") == "application/json":
                figure = next(given["id"] for tag, given in self.open if tag == "figure")
                self.plots[figure] = json.loads(data)
        elif "style" not in tags:
            self.text.append(data)
            if "caption" in tags:
                self.tables[-1]["caption"] += data
            if tags and ("td" in tags or "th" in tags):
                self.tables[-1]["rows"][-1][-1][2].append(data)
        if "varies" not in [given.get("class") for _, given in self.open]:
            self.steady.append(data)

    def rows(self, caption: str) -> list[list[str]]:
        """Texts of the table whose caption begins so."""
        (found,) = [table for table in self.tables if table["caption"].startswith(caption)]
        return [["".join(texts) for _, _, texts in row] for row in found["rows"]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweeps = {"ratio": (["trace-lf"], [0.01, 0.1]), "order": (["trace-lf"], [list(TASKS), list(reversed(TASKS))])}
    directory = write_run(
        tmp_path_factory.mktemp("runs") / "study", sweeps=sweeps, untaught=["general"], metrics={"law": "loss"}
    )
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def contents(written: Path) -> ReportContents:
    return read_contents(written)


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page.of((written / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return (written / "report.md").read_text("utf-8")


def test_every_section_is_there_once_and_linked(page: Page) -> None:
    assert tuple(page.sections) == SECTIONS
    assert len(set(page.ids)) == len(page.ids)
    assert [link for link in page.links if link.startswith("#")] == [f"#{name}" for name in SECTIONS]


def test_it_needs_nothing_else(written: Path, page: Page) -> None:
    assert page.outside == []
    whole = (written / "report.html").read_text("utf-8")
    own = re.sub(r"<script>.*?</script>", "", whole, flags=re.DOTALL)  # plotly.js names addresses that it does not use
    assert not re.search(r"https?://|url\(|@import", own)
    assert len(whole.encode()) < MOST_BYTES
    assert whole.count("plotly.js v") == 1
    assert sorted(file.name for file in written.iterdir()) == ["report.html", "report.md", "run.json", "steps"]


def test_every_table_has_headings_and_every_row_its_cells(page: Page) -> None:
    assert len(page.tables) > 20
    for table in page.tables:
        head, *rows = table["rows"]
        assert rows, table["caption"]
        assert all((tag, scope) == ("th", "col") for tag, scope, _ in head), table["caption"]
        assert all("".join(texts) for _, _, texts in head), table["caption"]
        for row in rows:
            assert len(row) == len(head), table["caption"]
            assert row[0][:2] == ("th", "row"), table["caption"]


def test_the_numbers_are_the_summarys(contents: ReportContents, page: Page) -> None:
    summary = contents.summary
    for table in (
        summary_tables.scores(summary),
        summary_tables.measures(summary),
        summary_tables.differences(summary),
        *summary_tables.matrices(summary),
        *summary_tables.sweeps(summary),
        summary_tables.times(summary),
    ):
        head, *rows = page.rows(table.title)
        assert head == list(table.header)
        assert rows == [[cell.text if isinstance(cell, Number) else cell for cell in row] for row in table.rows]
    first = summary.methods[0]
    (row,) = [row for row in page.rows("Scores after the last task") if row[0] == first.name]
    # maths is told in percent, law, a loss, in its own unit
    assert row[2] == numbers.interval(first.final["maths-test"], lambda value: f"{100 * value:.1f}")
    assert row[4] == numbers.interval(first.final["law-test"], lambda value: f"{value:.3f}")


def test_matrices_are_coloured_by_what_is_better(contents: ReportContents, written: Path) -> None:
    """The best of a column is the darkest; of a loss that is the least."""
    whole = (written / "report.html").read_text("utf-8")
    part = whole[whole.index('id="matrices"') : whole.index('id="forgetting"')]
    found: dict[int, dict[float, str]] = {}
    for row in re.findall(r'<tr><th scope="row">.*?</tr>', part):
        cells = re.findall(r'<td style="background:(#\w{6});color:(#\w+)">(-?[\d.]+)</td>', row)
        for column, (colour, _, value) in enumerate(cells):
            found.setdefault(column, {})[float(value)] = colour
    names = contents.summary.matrices[0].evaluations
    assert len(found) == len(names) == 4
    for column, name in enumerate(names):
        if name != "general":  # all the same
            best = max if contents.evaluation_of[name].higher_is_better else min
            worst = min if best is max else max
            assert found[column][best(found[column])] == "#084585"
            assert found[column][worst(found[column])] == "#eff6fc"


def test_plots_hold_the_points_of_the_summary(contents: ReportContents, page: Page) -> None:
    assert set(page.plots) >= {"plot-curves", "plot-sweep-ratio", "plot-sweep-order", "plot-layers", "plot-importance"}
    (plot,) = page.plots["plot-curves"]
    curve = next(one for one in contents.summary.curves if (one.method, one.task) == ("sequential", "maths"))
    trace = next(one for one in plot["data"] if (one["legendgroup"], one["xaxis"]) == ("sequential", "x"))
    assert trace["y"] == pytest.approx([100 * point.mean for point in curve.points], rel=1e-5)
    highs = [y + more for y, more in zip(trace["y"], trace["error_y"]["array"], strict=True)]
    assert highs == pytest.approx([100 * (p.mean if p.high is None else p.high) for p in curve.points], rel=1e-4)
    assert [round(x) for x in trace["x"]] == list(range(len(curve.points)))
    (plot,) = page.plots["plot-sweep-ratio"]
    trace = next(one for one in plot["data"] if one["legendgroup"] == "trace-lf" and one["xaxis"] == "x")
    points = contents.summary.sweeps[0].points
    assert trace["x"] == [0.01, 0.1]
    # a loss takes part in the average, so that it is no share
    assert trace["y"] == pytest.approx([p.methods[0].measures["average"].mean for p in points], rel=1e-5)
    titles = {plot["layout"][key]["title"]["text"] for key in plot["layout"] if re.match("[xy]axis", key)}
    assert titles == {"ratio", "average score", "exact_match, % (more is better)", "loss (less is better)"}


def test_the_layer_match_shows_the_matrix_and_the_pairs(contents: ReportContents, page: Page) -> None:
    (plot,) = page.plots["plot-layers"]
    cells = next(trace for trace in plot["data"] if trace["type"] == "heatmap")
    found = contents.matches[0]
    assert cells["z"] == [[pytest.approx(value, abs=1e-4) for value in row] for row in found.similarity.tolist()]
    marks = next(trace for trace in plot["data"] if trace.get("name") == "chosen pair")
    pairs = list(zip(marks["y"], marks["x"], strict=True))
    assert pairs == [(pair.source, pair.target) for pair in found.match.pairs]


def test_core_sets_of_source_target_and_carried_are_drawn_and_compared(page: Page) -> None:
    shown = [plot["title"] for plot in page.plots["plot-importance"]]
    assert "maths, identified on the source" in shown
    assert "maths, identified on the target" in shown
    assert "law, carried to the target (Transfer-LF)" in shown
    rows = page.rows("Carried core sets against those that were identified on the target")
    # the made-up run draws both alike
    assert ["maths", "Transfer-LF", "LF", "1.00", "1.00"] in [row[:5] for row in rows]
    assert ["1 of 17", "5.88%"] in [row[4:6] for row in page.rows("Sizes of the core sets")]


def test_what_moved_is_counted(contents: ReportContents, page: Page) -> None:
    rows = {row[0]: row for row in page.rows("Parameters (elements)")}
    counts = next(one.counts for one in contents.verified if one.uses[0].method == "transfer-lf")
    moved = counts["core moved"]
    assert rows["Transfer-LF"][1:3] == ["5", f"{moved.parameters:,} ({moved.elements:,})"]
    assert rows["Transfer-LF"][5] == "0 (0)"
    assert "Nothing moved that was frozen." in page.text


def test_everything_that_made_it_is_told(contents: ReportContents, page: Page) -> None:
    steps = next(
        [["".join(texts) for _, _, texts in row] for row in table["rows"]]
        for table in page.tables
        if table["section"] == "record" and len(table["rows"][0]) == 6
    )
    assert [(row[1], row[2]) for row in steps[1:]] == [(step.address, place) for place, step in contents.steps.items()]
    assert ["torch", "2.13.0"] in page.rows("Versions.")
    assert ["processor", "made up"] in page.rows("Machine.")
    assert "trace-transfer run run.yaml --out " in "".join(page.text)
    formulas = next(table for table in page.tables if table["section"] == "measures")["rows"]
    told = ["".join("".join(texts) for _, _, texts in row) for row in formulas]
    for measure in contents.summary.measures:
        assert any(measure.formula in row and measure.source in row for row in told)


def test_markdown_has_the_same_sections_and_numbers_in_valid_tables(
    contents: ReportContents, page: Page, text: str
) -> None:
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(headings) == len(SECTIONS)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == len(page.tables)
    for table, drawn in zip(tables, page.tables, strict=True):
        head, rule, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()
        ]
        assert all(re.fullmatch("---:?", cell) for cell in rule)
        assert {len(head), len(rule), *map(len, rows)} == {len(drawn["rows"][0])}
        plainly = [[re.sub(f"{BEGIN}|{END}|`|\\*\\*|\\\\", "", cell) for cell in row] for row in rows]
        assert plainly == [["".join(texts) for _, _, texts in row] for row in drawn["rows"][1:]]
    assert text.count(BEGIN) == text.count(END) > 0


def without_varying(text: str) -> str:
    return re.sub(f"{BEGIN}.*?{END}", "", text, flags=re.DOTALL)


def test_two_reports_of_the_same_numbers_differ_in_times_alone(written: Path, tmp_path: Path, text: str) -> None:
    """The steps' costs and the machine are others; another report of the same files is the same to the byte."""
    other = Path(shutil.copytree(written, tmp_path / "study"))
    write_report(other)  # which names the directory that it is in
    whole = (other / "report.html").read_bytes()
    write_report(other)
    assert (other / "report.html").read_bytes() == whole
    for file in other.glob("steps/*/step.json"):
        data = json.loads(file.read_text("utf-8"))
        data["cost"] = {**data["cost"], "seconds": data["cost"]["seconds"] * 1.7 + 3, "peak_bytes": 123, "bytes": 7}
        file.write_text(json.dumps(data), encoding="utf-8")
    run = json.loads((other / "run.json").read_text("utf-8"))
    (other / "run.json").write_text(json.dumps({**run, "machine": dict.fromkeys(run["machine"], "other")}), "utf-8")
    write_report(other)
    changed = (other / "report.html").read_bytes()
    assert changed != whole
    assert Page.of(changed.decode()).steady == Page.of(whole.decode()).steady
    again = (other / "report.md").read_text("utf-8")
    assert again != text
    assert without_varying(again) == without_varying(text)


def test_text_is_never_read_as_marks() -> None:
    evil = "a<b> & 'c' | *d* _e_ `f`\n[g](h)"
    cells = Cells("", (evil, "x"), ((evil, code("k")),))
    assert "a&lt;b&gt; &amp; 'c' | *d*" in block_html(cells)
    found = block_markdown(cells)
    assert found.count("\n") == 2
    assert len(re.findall(r"(?<!\\)\|", found)) == 9
    assert r"a\<b\> & 'c' \| \*d\* \_e\_ \`f\`<br>\[g\](h)" in found
    assert block_html(Paragraph((strong("<"), varying("5 s")))) == (
        '<p><strong>&lt;</strong><span class="varies">5 s</span></p>'
    )
    assert block_markdown(Bullets((("x ", varying("5 s")),))) == f"- x {BEGIN}5 s{END}"
    assert block_markdown(Varying((Paragraph("x"),))) == f"{BEGIN}\n\nx\n\n{END}"
    assert block_markdown(Code("a\n```\nb")) == "````\na\n```\nb\n````"


def test_a_row_that_does_not_fit_its_headings_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="sizes: a row of 1 cells below 2 headings"):
        Cells("sizes", ("a", "b"), (("1",),))


def test_no_two_methods_look_alike() -> None:
    names = [f"method-{number}" for number in range(20)]
    looks = [json.dumps(look, sort_keys=True) for look in styles(names).values()]
    assert len(set(looks)) == len(names)
    assert len(set(COLOURS)) == len(COLOURS)
    assert first_shown(names[:8]) == tuple(names[:8])
    assert first_shown([*METHODS]) == (
        "sequential", "joint", "dmt", "lora", "trace-lf", "transfer-lf", "random", "depth-map",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (numbers.seconds(numbers.one(0.5)), "0.5 s"),
        (numbers.seconds(numbers.one(90)), "1.5 min"),
        (numbers.seconds(numbers.one(7200)), "2 h"),
        (numbers.size(numbers.one(0)), "0 B"),
        (numbers.size(numbers.one(2_500_000)), "2.5 MB"),
        (numbers.count(134_500_000), "134.5 million"),
        (numbers.count(8_030_261_248), "8.0 billion"),
        (numbers.count(1832), "1,832"),
        (numbers.value(-0.0001), "0.000"),
        (numbers.signed(0.0), "0.000"),
        (numbers.signed(-0.25), "-0.250"),
        (numbers.signed(0.031, True), "+3.1"),
        (numbers.value(1234.5), "1,234.5"),
        (numbers.listed(["a", "b", "c"]), "a, b and c"),
        (numbers.listed([]), ""),
        (numbers.several(1, "seed"), "1 seed"),
        (numbers.p_value(0.0004), "< 0.001"),
    ],
)
def test_numbers_are_written_for_people(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_without_network_draws_every_plot(written: Path, tmp_path: Path, page: Page) -> None:
    """And switches to another core set when that is chosen."""
    script = """<script>
      const list = document.querySelector("#plot-importance select");
      list.value = "3"; list.dispatchEvent(new Event("change"));
      setTimeout(() => {
        const drawn = [...document.querySelectorAll(".plot")].map(plot =>
          [plot.parentElement.parentElement.id, plot.querySelectorAll(".main-svg").length,
           plot.querySelectorAll(".traces, .hm").length]);
        const wide = document.documentElement.scrollWidth > innerWidth;
        document.body.insertAdjacentHTML("beforeend", `<pre id="found">${JSON.stringify({drawn, wide})}</pre>`);
      }, 500);
    </script>"""
    copy = tmp_path / "report.html"
    body, end = (written / "report.html").read_text("utf-8").rsplit("</body>", 1)
    copy.write_text(f"{body}{script}</body>{end}", "utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=480,900",
        f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=8000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.findall(r'<pre id="found">(.*?)</pre>', done.stdout)[-1])
    assert {name for name, *_ in found["drawn"]} == set(page.plots)
    assert all(svgs and traces for _, svgs, traces in found["drawn"]), found["drawn"]
    assert not found["wide"]  # on a narrow screen tables and plots scroll, the page does not
