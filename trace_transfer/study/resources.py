"""What a kind of step asks for: GPUs on this machine, and all that a job of a cluster's scheduler is submitted with.

    resources:
      default: {hours: 2, cpus: 8, memory_gb: 64, partition: gpu, account: lab}
      train: {gpus: 8, hours: 12, constraint: h100, sbatch: {qos: long}}

A kind has what `default` says wherever it says nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt

from trace_transfer.records import Name
from trace_transfer.settings import Count, Settings, setting

DEFAULT = "default"
LATEST_SIGNAL = 300  # s before the end of its time at which a job is told to save …
SHARE = 0.25  # … or a share of its time, where that is less


class Resources(Settings):
    """What a step of one kind has."""

    gpus: Annotated[int, Ge(0)] | None = setting(None, "Of each node; a training has a process on each.")
    nodes: Count = setting(1, "More than one for trainings only.")
    cpus: Count | None = setting(None, "Cores of each node.")
    memory_gb: Annotated[float, Gt(0)] | None = setting(None, "Main memory of each node, GB.")
    hours: Annotated[float, Gt(0)] = setting(
        12.0, "Time limit of a job; before it is up, a training saves and is requeued."
    )
    partition: Name | None = setting(None, "Of the cluster.")
    account: Name | None = setting(None, "Whom the cluster charges.")
    constraint: Name | None = setting(None, "Features that a node must have.")
    sbatch: Mapping[str, str | int | float | bool] = setting(dict, "Further options of sbatch, without their dashes.")

    def contradictions(self) -> list[str]:
        own = {"gpus-per-node": "gpus", "nodes": "nodes", "cpus-per-task": "cpus", "mem": "memory_gb", "time": "hours",
               "partition": "partition", "account": "account", "constraint": "constraint"}  # fmt: skip
        ours = (
            "job-name",
            "dependency",
            "kill-on-invalid-dep",
            "array",
            "output",
            "error",
            "ntasks",
            "ntasks-per-node",
        )
        names = {key.replace("_", "-").lstrip("-"): key for key in self.sbatch}
        found = [f"sbatch: {key}: is `{own[name]}` here" for name, key in names.items() if name in own]
        found += [f"sbatch: {key}: is set by the run" for name, key in names.items() if name in ours]
        return found + [f"sbatch: {key}: leave it out" for key, value in self.sbatch.items() if value is False]

    @property
    def num_gpus(self) -> int | None:
        """Of all nodes."""
        return None if self.gpus is None else self.gpus * self.nodes

    @property
    def signal_s(self) -> int:
        """Seconds before the end of its time at which a job is told."""
        return int(min(LATEST_SIGNAL, SHARE * 3600 * self.hours))

    def submitted(self, launched: bool) -> dict[str, Any]:
        """As submitit takes them; options that it does not know are in `additional_parameters`.

        Args:
            launched: whether several processes may share the step, and with them several nodes.
        """
        found = {
            "nodes": self.nodes if launched else 1, "ntasks_per_node": 1, "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem": f"{round(self.memory_gb * 1024)}M" if self.memory_gb else None,
            "time": max(1, round(60 * self.hours)), "partition": self.partition, "account": self.account,
            "constraint": self.constraint,
        }  # fmt: skip
        # B: the batch script is told, which is the program itself. As a job of any kind may be requeued, so may this.
        more = {"signal": f"B:USR2@{self.signal_s}", "requeue": True, **self.sbatch}
        return {**{name: value for name, value in found.items() if value is not None}, "additional_parameters": more}


def merged(default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a kind says, over what all say."""
    both = {**default, **own}
    if isinstance(default.get("sbatch"), Mapping) and isinstance(own.get("sbatch"), Mapping):
        both["sbatch"] = {**default["sbatch"], **own["sbatch"]}
    return both
