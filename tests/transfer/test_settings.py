"""Settings are strict, and a profile yields to what is said explicitly."""

import pytest

from trace_transfer.errors import UserError
from trace_transfer.models.content import cache_directory
from trace_transfer.transfer.settings import PROFILES, MapSettings


def test_paper_profile_and_explicit_options_on_top():
    paper = MapSettings.of("paper")
    assert (paper.rows, paper.similarity, paper.representation, paper.match, paper.carry, paper.transform) == (
        "example", "cka", "stream", "argmax", "core", "none",
    )  # fmt: skip
    mixed = MapSettings.of("paper", rows="word", ratio=0.1)
    assert (mixed.rows, mixed.ratio, mixed.similarity) == ("word", 0.1, "cka")
    assert set(PROFILES["paper"]) <= MapSettings.names()


def test_all_problems_at_once_with_what_was_meant():
    with pytest.raises(UserError, match=r"settings that cannot be used") as refused:
        MapSettings(rows="words", match="hungarian", ratio=1.5, batch_size=0, max_length=3)
    message = str(refused.value)
    for expected in (
        "rows: 'words' is none of boundary, word, example; did you mean word?",
        "match: 'hungarian' is none of argmax, one-to-one, monotone, coverage, depth, shuffled",
        "ratio: found 1.5, expected less than or equal to 1",
        "batch_size: found 0, expected",
        "max_length: found 3, expected greater than or equal to 8",
    ):
        assert expected in message


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACE_TRANSFER_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("TRACE_TRANSFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "trace-transfer"
