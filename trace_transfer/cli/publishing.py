"""Options of the commands that can send what they made to the hub: asked before any work, done after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trace_transfer.publish.hub import Destination


def push_options(what: str) -> Callable[[Any], Any]:
    """`--push-to-hub` and `--private` of a command; `what` is sent."""

    def add(command: Any) -> Any:
        command = click.option("--private", is_flag=True, help="Make the repository a private one, if it is new.")(
            command
        )
        return click.option(
            "--push-to-hub", metavar="REPO",
            help=f"Send {what} to this repository of the hub, owner/name, which is made if it is not there; whether "
            "you are logged in and may write there is asked before anything else.",
        )(command)  # fmt: skip

    return add


def asked_destination(push_to_hub: str | None, private: bool) -> Destination | None:
    """Where to send what will be made; None for nowhere.

    Raises:
        HubError: one cannot write there.
        click.UsageError: `--private` without a repository.
    """
    if push_to_hub is None:
        if private:
            raise click.UsageError("--private: says how the repository of --push-to-hub is made; give that, too")
        return None
    from trace_transfer.publish.hub import destination

    return destination(push_to_hub, private=private)
