"""A Python program for TRL: the core set is trained alone, rows and columns too, proved, and made a patch."""

from __future__ import annotations

from trace_transfer.core_sets.exports.core_set import CoreSet, ExportError

PROGRAM = """\
{header}
#
#     python FILE DATA.jsonl OUT        (or `accelerate launch FILE DATA.jsonl OUT`)

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import trace_transfer as tt


def main(data, out):
    trainer = SFTTrainer(
        model={model!r},
        # Learning rate, epochs and batches are set here. In bf16 alone small updates would be rounded away.
        args=SFTConfig(
            output_dir=out,
            use_cpu=not torch.accelerator.is_available(),
            model_init_kwargs={{"revision": {revision!r}, "dtype": "float32"}},
        ),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        callbacks=[tt.CoreCallback({file!r})],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def write_trl(core: CoreSet) -> str:
    """The program; it reads the core file where it is now.

    Raises:
        ExportError: several core files are to be one.
    """
    if len(core.files) > 1:
        raise ExportError(f"a program for trl trains the core set of one core file; {len(core.files)} were given")
    return PROGRAM.format(
        header="\n".join(f"# {line}" for line in core.header("trl")), model=core.model.id,
        revision=core.model.revision or "main", file=core.files[0],
    )  # fmt: skip
