"""A core set in transformers' Trainer and all that stand on it (TRL's, Axolotl's): frozen, proved and saved by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError
from trace_transfer.patch.patches import SUFFIX
from trace_transfer.trainers.frozen import CoreTraining, freeze_except, require_no_fsdp1


def _keeps_full_states(args: Any) -> bool:
    """Whether checkpoints hold optimizer states by the names of whole tensors; FULL_STATE_DICT is the default."""
    kind = args.fsdp_config.get("state_dict_type", "FULL_STATE_DICT")
    return str(kind) == "FULL_STATE_DICT" and args.save_strategy != "no" and not args.save_only_model


class CoreCallback(TrainerCallback):
    """Trains a core set alone: `SFTTrainer(model, ..., callbacks=[tt.CoreCallback("math.core.json")])`.

    Freezes the model when the trainer is made; when its training ends, proves that nothing else moved, and writes
    `TASK.patch.safetensors` into `output_dir`.

    Args:
        core: as `freeze_except` takes it.
        base: likewise.
        dtype: of the patch, as of `CoreTraining.save_patch`.

    Attributes:
        trained: the model in training, once the trainer is made.
    """

    def __init__(
        self, core: CoreFile | Path | str, *, base: Path | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.core, self.base, self.dtype = core, base, dtype
        self.trained: CoreTraining | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        self.trained = freeze_except(model, self.core, base=self.base)
        if args.fsdp and self.trained.mask.sliced and _keeps_full_states(args):
            raise UserError(
                "rows are core, and FSDP's checkpoints are FULL_STATE_DICT, from which torch cannot resume rows; say "
                "`state_dict_type: SHARDED_STATE_DICT` in `fsdp_config`, or `save_only_model: true`"
            )
        loads_on_meta = args.fsdp and str(args.fsdp_config.get("cpu_ram_efficient_loading")).lower() == "true"
        if args.fsdp and not loads_on_meta and (tied := self.trained.tied_parts):
            raise UserError(
                f"{tied[0]}: rows of it are core, and it is tied to another tensor, which accelerate's FSDP takes for "
                "two; say `cpu_ram_efficient_loading: true` in `fsdp_config`, or train it with ZeRO or DDP"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trained = self._frozen()
        require_no_fsdp1(trained.model)
        trained.print_trainable_parameters()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trained = self._frozen()
        trained.verify()
        trained.save_patch(Path(args.output_dir) / f"{trained.task}{SUFFIX}", dtype=self.dtype)

    def _frozen(self) -> CoreTraining:
        if self.trained is None:
            raise UserError(
                "CoreCallback was added to a trainer that was there already, and its model may have an optimizer; give "
                "it when the trainer is made: callbacks=[CoreCallback(...)]"
            )
        return self.trained
