"""Examples of different lengths for tiny models."""

import random

from trace_transfer.data.examples import IGNORED, Example
from trace_transfer.families.registry import load_families

LAYER_PATHS = {kind: family.layer_path for kind, family in load_families().by_model_type.items()}


def layer_path(family: str) -> str:
    return LAYER_PATHS[family]


def draw_examples(num: int, seed: int = 0, longest: int = 24, rows: int = 40) -> list[Example]:
    """Few different tokens, so that many repeat in a text, the padding token (0) among them; prompts without loss."""
    rng = random.Random(seed)
    examples = []
    for index in range(num):
        ids = tuple(rng.randrange(rows) for _ in range(rng.randint(3, longest)))
        prompt = rng.randint(1, len(ids) - 1)
        labels = tuple(IGNORED if place < prompt else token for place, token in enumerate(ids))
        examples.append(Example(f"drawn:{index}", ids, labels))
    return examples
