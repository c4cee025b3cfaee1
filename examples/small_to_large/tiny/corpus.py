"""The texts on which the tiny models are trained: prose and code of pinned packages, and lines about words.

Prose is the paragraphs of docstrings; code is the sources themselves. An eighth of the files and a fifth of the words
are held out: the tasks of the study are made of them, so that no task repeats what a model was trained on.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("networkx", "scipy", "sklearn")  # pure Python with long docstrings; their versions are in constraints.txt
HELD_OUT = {"files": 8, "words": 5}  # one of so many
CHARACTERS = 3_000_000  # of prose, and of code
WORD = re.compile(r"\b[a-z]{4,9}\b")
NO_PROSE = re.compile(r"--|[^\w\s.,;:()'-]")  # headings, formulas, code
SKILLS = {  # what a model may know about words before the first task; the tasks ask for something else
    "copy": lambda word: word,
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "upper": str.upper,
}


def sources(held_out: bool) -> list[str]:
    """The sources of the packages in ASCII, in an order that depends on their names alone."""
    found = []
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"the package {package} is not installed: pip install networkx scipy scikit-learn")
        root = Path(spec.submodule_search_locations[0])
        for file in sorted(root.rglob("*.py")):
            name = f"{package}/{file.relative_to(root).as_posix()}"
            drawn = hashlib.sha256(name.encode()).digest()
            if "/tests/" not in name and (drawn[0] % HELD_OUT["files"] == 0) == held_out:
                found.append((drawn, file.read_text("utf-8").encode("ascii", "ignore").decode()))
    return [text for _, text in sorted(found)]


def paragraphs(source: str) -> Iterator[str]:
    """The paragraphs of the docstrings of a source that read as prose, each on one line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                line = " ".join(paragraph.split())
                if len(line) >= 60 and line[0].isupper() and line[-1] == "." and not NO_PROSE.search(line):
                    yield line


def sentences(held_out: bool) -> list[str]:
    """Every sentence of the prose once, in the order in which they stand."""
    found = (sentence for source in sources(held_out) for line in paragraphs(source) for sentence in line.split(". "))
    return list(dict.fromkeys(sentence.strip(". ") for sentence in found))


def words(held_out: bool) -> list[str]:
    """Words of four to nine letters, in the order of their first use; each is either held out or not."""
    every = dict.fromkeys(WORD.findall(" ".join(sentences(False) + sentences(True)).lower()))
    return [word for word in every if (hashlib.sha256(word.encode()).digest()[0] % HELD_OUT["words"] == 0) == held_out]


def corpus(seed: int = 0) -> list[str]:
    """Documents in a drawn order: of prose, of code, and of lines about words, by characters about 3 : 3 : 1."""
    drawn = random.Random(seed)
    prose = ["\n".join(paragraphs(source)) for source in sources(held_out=False)]
    known = words(held_out=False)
    skills = []
    for _ in range(CHARACTERS // 3 // 400):
        lines = []
        for _ in range(20):
            skill, word = drawn.choice(sorted(SKILLS)), drawn.choice(known)
            lines.append(f"{skill}: {word} = {SKILLS[skill](word)}")
        skills.append("\n".join(lines))
    documents = [*_cut(prose), *_cut(sources(held_out=False)), *skills]
    drawn.shuffle(documents)
    return documents


def _cut(texts: list[str]) -> list[str]:
    """Pieces of at most 2,000 characters, CHARACTERS together at most."""
    pieces = [text[start : start + 2_000] for text in texts for start in range(0, len(text), 2_000)]
    taken, size = [], 0
    for piece in pieces:
        if size >= CHARACTERS:
            break
        taken.append(piece)
        size += len(piece)
    return taken
