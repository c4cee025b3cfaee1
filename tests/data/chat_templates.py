"""What the published chat templates do, written anew, and others that are odd in the same ways; small tokenizers."""

import string
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import TEXTS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3.2: its own beginning of text, today's date in a system turn that is always there, trimmed texts, one call of a
# tool in a turn.
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n\n{% endfor %}{% endif %}{{ system }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one tool-call at once!') }}"
    "{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Mistral 7B v0.3: the system message goes into the last turn if that is the user's, so that no finished one has it.
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and system is defined %}"
    "{{ system + '\n\n' }}{% endif %}{{ m.content | trim }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
# Phi-3: the end of a turn takes the line break behind it, and the end of text stands where no answer is asked for.
PHI3 = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% else %}{{ eos_token }}{% endif %}"
)
# Qwen 3: thoughts behind the last question only, an empty one in the last turn if it has none.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% elif m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}{% else %}"
    "{% set content = m.content %}{% set thought = '' %}{% if m.reasoning_content is string %}"
    "{% set thought = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{{ content.lstrip('\n') }}{% else %}{{ content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if content }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The distils of DeepSeek-R1: everything up to </think> is cut, and the prompt of generation opens a thought.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
# Llama 2: no prompt for an answer, the beginning-of-text token written by the template, contents stripped.
LLAMA2 = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('Only user and assistant turns!') }}{% endif %}"
    "{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} </s>{% endif %}"
    "{% endfor %}"
)
# DeepSeek-R1: the prompt for an answer opens a thought that no written turn has.
OPENED = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}User:{{ m.content }}{% else %}Assistant:{{ m.content }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:<think>\n{% endif %}"
)
# No prompt for an answer though there is a header, and an end only behind the last turn.
LAST_ENDS = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ '</s>' if loop.last else '\n' }}{% endfor %}"
)
# A header, and no prompt for an answer.
HEADED = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ '</s>' if m.role == 'assistant' }}\n{% endfor %}"
)
DATED = "\nToday is {{ strftime_now('%d %b %Y') }}.\n" + CHATML  # its first character is a line break, which must stay


@dataclass(frozen=True)
class Family:
    """A template and the tokens beside letters; `added` are not special, `stripping` take the white space behind."""

    template: str | None
    bos: str
    eos: str
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    stripping: tuple[str, ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token for each byte, and the family's own; puts the beginning of text before each text."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([self.bos, self.eos, *self.special])
        tokenizer.add_special_tokens([AddedToken(one, rstrip=True, special=True) for one in self.stripping])
        tokenizer.add_tokens([AddedToken(one, normalized=False) for one in self.added])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{self.bos} $A", special_tokens=[(self.bos, tokenizer.token_to_id(self.bos))]
        )
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=self.bos, eos_token=self.eos)
        wrapped.chat_template = self.template
        return wrapped


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "plain": Family(None, "<s>", "</s>"),
    "chatml": Family(CHATML, "<s>", "<|im_end|>", ("<|im_start|>",)),
    "chatml-added": Family(CHATML, "<s>", "</s>", (), ("<|im_start|>", "<|im_end|>")),
    "chatml-letters": Family(CHATML, "<s>", "</s>"),
    "llama3": Family(LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", HEADERS),
    "gemma": Family(GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral": Family(MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]")),
    "phi3": Family(PHI3, "<s>", "<|endoftext|>", (), (), ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "qwen3": Family(QWEN3, "<|endoftext|>", "<|im_end|>", ("<|im_start|>",), ("<think>", "</think>")),
    "r1": Family(
        R1, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
    ),
}  # fmt: skip


# ---- tokenizers that merge letters

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]


def chat_tokenizer(template: str | None = CHATML, eos: str | None = "<|im_end|>") -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts `<s>` before each text and, as it should not, `</s>` behind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer, 450, alphabet)
    return _wrapped(tokenizer, template, eos)


def metaspace_tokenizer(template: str | None = None, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """As Llama 2's: `▁` for a space and one before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    _train(
        tokenizer, trainers.BpeTrainer, 400, [*string.printable, *{character for text in TEXTS for character in text}]
    )
    return _wrapped(tokenizer, template, eos)


def _train(tokenizer: Tokenizer, kind: type, size: int, alphabet: list[str]) -> None:
    trainer = kind(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )


def _wrapped(tokenizer: Tokenizer, template: str | None, eos: str | None) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token="<s>")
    wrapped.chat_template = template
    return wrapped
