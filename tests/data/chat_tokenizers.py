"""Small tokenizers with and without chat templates, each template odd in a way that those of real models are."""

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import TEXTS

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]

# Qwen, SmolLM: a header for each turn, a line break behind its end, a system message of the template's own.
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 2: no prompt for an answer, the beginning-of-text token written by the template, contents stripped.
LLAMA2 = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('Only user and assistant turns!') }}{% endif %}"
    "{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} </s>{% endif %}"
    "{% endfor %}"
)
# Qwen 3: thinking, empty if there is none, in the last turn only.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{% set thought = m.content.split('</think>')[0].replace('<think>', '') if '</think>' in m.content else '' %}"
    "<think>\n{{ thought | trim }}\n</think>\n\n{% endif %}{{ answer }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
SHOUTING = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")


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
