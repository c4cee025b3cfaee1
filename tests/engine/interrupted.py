"""Trains in forks of one process that has everything imported, interrupted at drawn operations on files.

    python -m tests.engine.interrupted MODEL PLACE

Prints, as JSON, for each interruption what was left and whether the run after it ended with the same bits.
"""

import gc
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch's threads and transformers' do not survive a fork together

import torch
from safetensors.torch import save_file

from tests.engine.made_up import make_task, run
from tests.interrupted_runs import WATCHED

CASES = {"float32": {}, "bfloat16": {"precision": "bfloat16"}}
NUM_KILLS, NUM_INTERRUPTS = 4, 1


def train_in_fork(model: Path, place: Path, options: dict, at_event: int | None = None, number: int = 0) -> int:
    """Train in a child process; it signals itself just before the n-th operation on a file. Returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = train_and_save(model, place, options, at_event, number)
        except KeyboardInterrupt:
            code = 130
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_and_save(model: Path, place: Path, options: dict, at_event: int | None, number: int) -> int:
    count = 0

    def note(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in WATCHED and any(str(one).startswith(str(place / "run")) for one in arguments[:2]):
            count += 1
            if count == at_event:
                os.kill(os.getpid(), number)

    place.mkdir(exist_ok=True)
    sys.addaudithook(note)
    _, values = run(model, place / "run", batch_size=5, checkpoint_minutes=0, **options)
    (place / "events").write_text(str(count))
    save_file(values, place / "values.safetensors")
    return 0


def main(model: Path, place: Path) -> None:
    found = []
    for case, options in CASES.items():
        whole = place / case
        assert train_in_fork(model, whole, options) == 0
        num_events = int((whole / "events").read_text())
        draw = random.Random(case)
        for number in [signal.SIGKILL] * NUM_KILLS + [signal.SIGINT] * NUM_INTERRUPTS:
            event = draw.randint(1, num_events)
            cut = place / f"{case}-{number}-{event}"
            first = train_in_fork(model, cut, options, event, number)
            left = sorted(path.name for path in (cut / "run").rglob(".*.part"))
            second = train_in_fork(model, cut, options)
            files = ("values.safetensors", "run/loss.csv")
            same = [second == 0 and (cut / file).read_bytes() == (whole / file).read_bytes() for file in files]
            at = f"{case}, {number.name} at operation {event} of {num_events}"
            names = sorted(path.name for path in (cut / "run").iterdir())
            found.append({"at": at, "first": first, "left": left, "second": second, "same": same, "names": names})
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, case in CASES.items():  # so that all is imported before the first fork
        run(Path(sys.argv[1]), Path(sys.argv[2]) / f"{name}-first", make_task(2), **case)
    gc.freeze()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
