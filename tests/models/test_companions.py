"""What a written model has beside its weights: all that the base has, and nothing that is true of the base alone."""

from tests.patch_files import state_of
from trace_transfer.patch.model_state import write_model
from trace_transfer.progress import Silent

BELONGS = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "tekken.json", "vocab.json",
    "tokenizer.model", "tokenizer.model.v3", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/tools.jinja",
    "generation_config.json", "qwen.tiktoken", "merges.txt", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md",
    "special_tokens_map.json", "added_tokens.json", "custom_generate/generate.py", "modeling_mine.py",
)  # fmt: skip
LEFT = (
    "README.md", "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "tf_model.h5",
    "model.onnx", "flax_model.msgpack", "other.gguf", "adapter_config.json",
    "adapter_model.safetensors", "optimizer.pt",
    "trainer_state.json", "training_args.bin", "scheduler.pt", "rng_state_0.pth", "all_results.json", ".gitattributes",
    ".git/config", "checkpoint-500/optimizer.pt", "runs/events.json", "original/params.json", "tokenizer.bin",
    "custom_generate/.hidden", "data.jsonl", "picture.png",
)  # fmt: skip


def test_a_written_model_has_what_belongs_to_its_base_and_nothing_else(copy_of, tmp_path):
    base = copy_of("llama")
    for name in (*BELONGS, *(name for name in LEFT if not name.startswith("adapter_"))):  # that is refused elsewhere
        (base / name).parent.mkdir(exist_ok=True)
        if not (base / name).exists():
            (base / name).write_text("{}" if name.endswith(".json") else f"the content of {name}")
    write_model(state_of(base), tmp_path / "out", Silent())
    names = {*BELONGS, "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes(), name
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {name for name in found if "safetensors" not in name} == names | {"config.json"}
