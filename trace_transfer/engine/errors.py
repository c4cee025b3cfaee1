"""What can stop a training that the user can mend."""

from trace_transfer.errors import UserError


class TrainingError(UserError):
    """A training cannot go on: NaN, data without supervised tokens, a full disk, a checkpoint of something else."""
