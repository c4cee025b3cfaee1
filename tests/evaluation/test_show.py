"""What `evaluate` prints: one row per score, and what counts as wrong is said."""

from trace_transfer.evaluation.records import EvaluationFile, Score
from trace_transfer.evaluation.show import render_evaluation
from trace_transfer.records import ModelIdentity

MODEL = ModelIdentity(
    id="small", family="llama", model_type="llama", num_layers=4, num_parameters=39, num_elements=1000,
    names_sha256="0" * 64,
)  # fmt: skip


def test_scores_in_rows():
    scores = (
        Score(
            name="nats", kind="loss", metric="loss", value=1.23456, higher_is_better=False, stderr=0.1,
            num_examples=1234, seconds=3.04,
        ),
        Score(
            name="code", kind="humaneval", metric="pass@1", value=0.25, higher_is_better=True, num_examples=4,
            num_errors=3, seconds=60,
        ),
    )  # fmt: skip
    file = EvaluationFile(model=MODEL, fingerprint="1", suite="mine", scores=scores)
    text = render_evaluation(file)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "mine: small (llama, 4 layers)"
    assert "nats loss loss 1.2346 0.1000 ↓ 1,234 3.0" in lines and "↓: lower is better" in lines
    assert "code humaneval pass@1 0.2500 - 4 60.0" in lines
    assert "! code: 3 programs were killed; they count as wrong" in lines
    assert max(map(len, text.splitlines())) <= 100
