"""Scores of a model, obviously correct and slow: one text at a time, without padding, in float64, no code shared."""

from __future__ import annotations

import torch


def plain_text(prompt: str, answer: str, eos: str) -> tuple[str, int]:
    """The plain template's text and where in it the answer begins."""
    return f"{prompt}\n\n{answer}{eos}", len(prompt) + 2


def log_probabilities(model, ids):
    """[t - 1, v]: of the token at t + 1 after those up to t."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(dim=-1)


def answer_tokens(model, tokenizer, text, start, stop, leading):
    """(cross-entropy, was it the likeliest) of each token that ends in text[start:stop]."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [*leading, *encoded["input_ids"]]
    logs = log_probabilities(model, ids)
    found = []
    for place, (_, end) in enumerate(encoded["offset_mapping"]):
        if start < end <= stop:
            at = place + len(leading)
            found.append((-float(logs[at - 1, ids[at]]), int(logs[at - 1].argmax()) == ids[at]))
    return found


def greedy(model, tokenizer, prompt, leading, max_new_tokens, stop_id):
    """The answer's text, by the whole forward pass for each token."""
    ids = [*leading, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    written = []
    while len(written) < max_new_tokens:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == stop_id:
            break
        written.append(token)
    return tokenizer.decode(written)
