"""Labels of a text whose pieces are marked by hand, token after token, by what has been read when the token ends."""

from collections.abc import Sequence
from typing import Any

from trace_transfer.data.examples import IGNORED


def labels_by_hand(ids: Sequence[int], pieces: Sequence[tuple[str, bool]], tokenizer: Any) -> tuple[int, ...]:
    """Labels of `ids`, which must read as the pieces in sequence; a piece's flag says whether it is to be learned."""
    assert tokenizer.decode(ids) == "".join(text for text, _ in pieces)
    labels = []
    for last, token in enumerate(ids):
        length = len(tokenizer.decode(ids[: last + 1]))  # characters of which something was read
        end = 0
        for text, learned in pieces:
            end += len(text)
            if length <= end:
                labels.append(token if learned else IGNORED)
                break
    return tuple(labels)
