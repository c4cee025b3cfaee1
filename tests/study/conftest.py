"""The server that steps are forked from has DeepSpeed imported, too: else each training takes seconds for it."""

import multiprocessing

import pytest


@pytest.fixture(scope="session", autouse=True)
def _server_with_everything() -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.study.preloaded"])
    first = context.Process(target=int)  # the server is begun, and stays for all runs
    first.start()
    first.join()
