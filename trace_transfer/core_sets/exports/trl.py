"""A Python program for trl's trainers, or any other on top of transformers' Trainer: the core set trains, no more.

How they read it: what does not require a gradient when the trainer is made gets no optimizer state and does not move.
Parts of parameters have no such switch.
"""

from __future__ import annotations

import ast

from trace_transfer.core_sets.exports.core_set import WHOLE_ONLY, CoreSet, require_exact, require_whole

PROGRAM = '''\
{header}
#
#     python FILE DATA.jsonl OUT

import sys

MODEL = {model!r}
REVISION = {revision!r}
NUM_PARAMETERS = {num_parameters}
CORE = [
{names}
]


def freeze_all_but_core(model):
    """Call it before the trainer is made, and before any wrapper (PEFT, FSDP) is put around the model."""
    names = {{name for name, _ in model.named_parameters()}}
    missing = [name for name in CORE if name not in names]
    if missing or len(names) != NUM_PARAMETERS:
        raise ValueError(
            f"not the model that this core set was made for: {{len(names)}} parameters, expected {{NUM_PARAMETERS}}; "
            f"without {{len(missing)}} of the core set: {{missing[:5]}}"
        )
    core = set(CORE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in core)
    return model


def main(data, out):
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    # float32 as trl loads by default: in bf16 alone small updates are rounded away.
    model = AutoModelForCausalLM.from_pretrained(MODEL, revision=REVISION, dtype="float32")
    trainer = SFTTrainer(
        model=freeze_all_but_core(model),
        # Learning rate, epochs and batches are set here.
        args=SFTConfig(output_dir=out, use_cpu=not torch.accelerator.is_available()),
        train_dataset=load_dataset("json", data_files=data, split="train"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
'''


def write_trl(core: CoreSet) -> str:
    """The program.

    Raises:
        ExportError: parts of parameters are core.
    """
    require_whole(
        core, "trl",
        "a parameter requires a gradient or not; with a hook that zeroes some rows' gradients AdamW's weight decay "
        f"would move them, and under ZeRO 3 or FSDP hooks see no rows; {WHOLE_ONLY}",
    )  # fmt: skip
    text = PROGRAM.format(
        header="\n".join(f"# {line}" for line in core.header("trl")), model=core.model.id,
        revision=core.model.revision, num_parameters=len(core.shapes),
        names="\n".join(f"    {name!r}," for name in core.names),
    )  # fmt: skip
    listed = next(
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CORE"
    )
    require_exact(core.names, (name for name in core.shapes if name in set(listed)), "trl")
    return text
