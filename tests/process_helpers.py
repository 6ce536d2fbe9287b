"""Processes forked from the tests', which has imported everything: runs that may die, and several ranks."""

import logging
import multiprocessing
import os
import socket
import sys

from accelerate.state import AcceleratorState, GradientState, PartialState


def forked(task, *arguments, timeout: float = 120) -> int:
    """The exit code of a process that runs `task(*arguments)`; minus the signal's number if one ended it."""
    return _join([_start(task, *arguments)], timeout)[0]


def forked_ranks(task, ranks: int = 2) -> list[int]:
    """The exit codes of `task(rank)` in processes that find each other as those of `accelerate launch` do."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1])}

    def start(rank: int) -> None:
        names = ("RANK", "LOCAL_RANK")
        os.environ.update(address | dict.fromkeys(names, str(rank)) | {"WORLD_SIZE": str(ranks)})
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        task(rank)

    return _join([_start(start, rank) for rank in range(ranks)])


def _start(task, *arguments) -> multiprocessing.Process:
    def run():
        sys.modules["matplotlib"] = None  # plots would take most of the time of a run
        logging.getLogger().handlers.clear()  # pytest's, which a process of its own writes nowhere
        task(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def _join(processes: list[multiprocessing.Process], timeout: float = 120) -> list[int]:
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            for other in processes:
                other.kill()
            raise TimeoutError("A process hangs.")
    return [process.exitcode for process in processes]
