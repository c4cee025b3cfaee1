"""vllm and sglang as lm-evaluation-harness uses them, played by transformers: it has no GPU's engine here.

The harness' own classes for them are the real ones. What they import and call is written to a directory as a package
with the metadata that they look for; it refuses what the real one does not take.
"""

from __future__ import annotations

from pathlib import Path

COMMON = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Played:
    def __init__(self, directory, dtype):
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=kinds[dtype]).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    @torch.no_grad()
    def likelihoods(self, ids):
        logs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return [None, *(logs[place, token].item() for place, token in enumerate(ids[1:]))], logs

    @torch.no_grad()
    def write(self, ids, most, stop, stop_ids, skip_special):
        written = []
        while len(written) < most:
            token = int(self.model(torch.tensor([[*ids, *written]])).logits[0, -1].argmax())
            if token in stop_ids:
                break
            written.append(token)
            text = self.tokenizer.decode(written, skip_special_tokens=skip_special)
            for one in stop:
                if one and one in text:
                    return text.partition(one)[0]
        return self.tokenizer.decode(written, skip_special_tokens=skip_special)
"""
VLLM = """
import types
from .played import Played


class SamplingParams:
    def __init__(self, *, temperature=1.0, max_tokens=16, stop=None, stop_token_ids=None, prompt_logprobs=None,
                 detokenize=True, skip_special_tokens=True, spaces_between_special_tokens=True):
        self.__dict__ |= locals()


def TokensPrompt(*, prompt_token_ids):
    return prompt_token_ids


class LLM:
    made = []

    def __init__(self, model, *, tokenizer=None, tokenizer_mode="auto", trust_remote_code=False, revision=None,
                 tokenizer_revision=None, tensor_parallel_size=1, dtype="auto", quantization=None, seed=0,
                 max_model_len=None, max_num_seqs=None, enable_lora=False, max_lora_rank=16,
                 gpu_memory_utilization=0.9):
        assert not trust_remote_code
        LLM.made.append((model, dtype, tensor_parallel_size, gpu_memory_utilization, seed))
        self.played = Played(model, dtype)
        self.longest = max_model_len or self.played.model.config.max_position_embeddings
        self.llm_engine = types.SimpleNamespace(model_config=types.SimpleNamespace(max_model_len=self.longest))

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        found = []
        for ids, how in zip(prompts, sampling_params, strict=True):
            assert 0 < len(ids) and len(ids) + how.max_tokens <= self.longest
            if how.prompt_logprobs:
                values, _ = self.played.likelihoods(ids)
                logs = [value if value is None else {token: value} for token, value in zip(ids, values, strict=True)]
                found.append(types.SimpleNamespace(prompt_logprobs=logs))
                continue
            assert how.temperature == 0 and how.detokenize
            text = self.played.write(ids, how.max_tokens, how.stop or (), how.stop_token_ids or (),
                                     how.skip_special_tokens)
            found.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text)]))
        return found
"""
SGLANG = """
import types
from .played import Played


class Engine:
    made = []

    def __init__(self, *, model_path, tokenizer_path, tokenizer_mode, load_format, trust_remote_code, dtype,
                 kv_cache_dtype, device, mem_fraction_static, tp_size, dp_size, chunked_prefill_size, random_seed):
        assert not trust_remote_code
        Engine.made.append((model_path, dtype, tp_size, mem_fraction_static, random_seed))
        self.played = Played(model_path, dtype)
        longest = self.played.model.config.max_position_embeddings
        self.tokenizer_manager = types.SimpleNamespace(tokenizer=self.played.tokenizer, context_len=longest)

    def generate(self, *, input_ids, sampling_params, return_logprob, top_logprobs_num, logprob_start_len):
        found = []
        for ids, how in zip(input_ids, sampling_params, strict=True):
            if return_logprob:
                values, logs = self.played.likelihoods(ids)
                best = [None, *([(float(row.max()), int(row.argmax()), None)] for row in logs[:-1])]
                own = [(value, token, None) for value, token in zip(values, ids, strict=True)]
                found.append({"meta_info": {"input_token_logprobs": own, "input_top_logprobs": best}})
                continue
            assert how["temperature"] == 0
            text = self.played.write(ids, how["max_new_tokens"], how["stop"], how.get("stop_token_ids", ()),
                                     how["skip_special_tokens"])
            found.append({"text": text})
        return found
"""
FILES = {
    "vllm/__init__.py": VLLM,
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": "class LoRARequest: pass",
    "vllm/renderers/__init__.py": "",
    "vllm/renderers/hf.py": "def resolve_chat_template(tokenizer, chat_template, tools, *, model_config):\n"
    "    return chat_template or tokenizer.chat_template",
    "vllm/tokenizers.py": "from transformers import AutoTokenizer\n"
    "def get_tokenizer(name, *, tokenizer_mode, trust_remote_code, revision, **more):\n"
    "    return AutoTokenizer.from_pretrained(name, **more)",
    "sglang/__init__.py": SGLANG,
    "vllm/played.py": COMMON,
    "sglang/played.py": COMMON,
    "vllm-0.11.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.11.0\n",
    "sglang-0.5.4.dist-info/METADATA": "Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.4\n",
}


def write_engines(directory: Path) -> Path:
    """Both packages, in a directory that goes onto `sys.path`."""
    for name, text in FILES.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory
