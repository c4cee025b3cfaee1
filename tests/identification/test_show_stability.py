"""What is printed of how far core sets depend on the seed."""

from tests.commands import done
from tests.run_files import TARGET
from trace_transfer.identification.records import MethodStability, StabilityFile, TaskStability
from trace_transfer.records import to_json

SURE = TaskStability(
    task="math", within_tensors=0.9, within_elements=0.45, between_tensors=0.3, between_elements=0.15,
    highest_between=0.35, clear=True,
)  # fmt: skip
DOUBTFUL = TaskStability(
    task="code", within_tensors=0.45, within_elements=0.2, between_tensors=0.52, between_elements=0.26,
    highest_between=0.57, clear=False,
)  # fmt: skip


def shown(tmp_path, *tasks):
    method = MethodStability(method="lf", ratio=0.05, unit="tensors", chance=0.03, tasks=tasks)
    (tmp_path / "stability.json").write_text(to_json(StabilityFile(model=TARGET, methods=[method], reliability={})))
    return " ".join(done("inspect", tmp_path / "stability.json").stdout.split())


def test_a_single_task_has_nothing_to_be_compared_with_and_a_doubtful_set_is_told(tmp_path):
    alone = shown(tmp_path, TaskStability(task="math", within_tensors=0.9, within_elements=0.45))
    assert "lf 5 % of tensors math 0.90 0.45 - - 0.03 -" in alone and "!" not in alone
    text = shown(tmp_path, SURE, DOUBTFUL)
    assert "lf 5 % of tensors math 0.90 0.45 0.30 0.15 0.03 yes" in text
    assert "code 0.45 against up to 0.57" in text.partition("! lf: ")[2]
