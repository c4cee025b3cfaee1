"""Settings are strict, and a profile yields to what is said explicitly."""

from trace_transfer.transfer.settings import PROFILES, MapSettings


def test_paper_profile_and_explicit_options_on_top():
    paper = MapSettings.of("paper")
    assert (paper.rows, paper.similarity, paper.representation, paper.match, paper.carry, paper.transform) == (
        "example", "cka", "stream", "argmax", "core", "none",
    )  # fmt: skip
    mixed = MapSettings.of("paper", rows="word", ratio=0.1)
    assert (mixed.rows, mixed.ratio, mixed.similarity) == ("word", 0.1, "cka")
    assert set(PROFILES["paper"]) <= MapSettings.names()
