"""`represent` on the command line: its options, its output, its refusals."""

from click.testing import CliRunner

from tests.patch_files import make_patch, mask_of, state_of
from tests.task_files import write_tasks
from trace_transfer.cli.evaluate import represent_command


def call(*arguments):
    return CliRunner().invoke(represent_command, list(map(str, arguments)), catch_exceptions=False)


def test_models_labels_and_patches_end_in_a_table(tiny, tmp_path):
    base = state_of(tiny("llama"))
    patch = make_patch(base, tmp_path / "math.patch.safetensors", mask_of(base), 0)
    result = call(
        tiny("llama"), "--label", f"tuned [b]={tiny('llama')}", "--patch", f"tuned [b]={patch.path}",
        "--tasks", write_tasks(tmp_path / "tasks"), "--out", tmp_path / "out", "--perplexity", 6, "--max-length", 12,
    )  # fmt: skip
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any("tuned [b]" in line for line in lines)
    assert "t-SNE: one space for all models" in lines
    assert "! llama: 30 of 30 texts were cut at 12 tokens" in result.stdout
    for name in ("representation.json", "representation.html", "representation.png", "embeddings.safetensors"):
        assert f"  {tmp_path / 'out' / name}" in lines
        assert (tmp_path / "out" / name).stat().st_size
