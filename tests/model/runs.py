"""A whole run in a process of its own, which can be killed at any step.

What runs here is forked from a server (Python's `forkserver`) that has imported this module and
done nothing else. A fork of the tests' own process would inherit locks and pools without the
threads that belong to them: torch's pool then waits for ever, and so does tqdm's lock once a
process was killed while it drew a bar.
"""

import multiprocessing
import os
import resource
import signal
import socket

import torch
from accelerate import notebook_launcher
from tqdm import tqdm

from llava_lens import store
from llava_lens.model.images import read_images

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def run_in_process(arguments, first=None, seconds=None, processes=1):
    """Run `read_images` with `arguments`, after `first` there, and kill all of it after `seconds`:
    `(exit status, error)`, the status -9 if it was killed. Raises TimeoutError after a minute."""
    receiver, sender = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_run, args=(sender, arguments, first, processes))
    child.start()
    sender.close()
    child.join(60 if seconds is None else seconds)
    is_late = child.exitcode is None
    if is_late:
        kill_group(child.pid)
        child.join()
    if is_late and seconds is None:
        raise TimeoutError("a run that takes a minute hangs")
    try:
        error = receiver.recv() if receiver.poll() else ""
    except EOFError:  # killed
        error = ""
    return child.exitcode, error


def kill_group(pid: int) -> None:
    """Kill a process with those that it launched, also before it has made its group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _run(sender, arguments, first, processes) -> None:
    os.setpgid(0, 0)  # so that the processes that it launches can be killed with it
    os.environ["ACCELERATE_USE_CPU"] = "1"
    try:
        if first:
            first()
        store.Results(arguments[2]).continue_from()
        notebook_launcher(read_images, arguments, num_processes=processes, use_port=_free_port())
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")
        os._exit(1)


def _free_port() -> str:
    """Not the same one for every attempt: that of one that was killed may be held for a while."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


def die_at(step: int) -> None:
    """Make this process kill itself at its `step`-th step of saving: whenever a file is to be
    written, to be renamed or has been renamed."""
    steps, (save, fsync, replace) = iter(range(step + 1)), (store.save, os.fsync, os.replace)

    def dying(function, after=False):
        def die_or_do(*arguments, **named):
            done = function(*arguments, **named) if after else None
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return done if after else function(*arguments, **named)

        return die_or_do

    store.save, os.fsync, os.replace = dying(save), dying(fsync), dying(replace, after=True)


def limit_files(size: int) -> None:
    """A limit on the size of files fails in the middle of a write, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def die_drawing() -> None:
    """Make this process kill itself while it draws a bar, for which it holds tqdm's lock."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    tqdm.display = die


def use_torch() -> None:
    """What a reader may do in a notebook before: what is forked then has torch's pool without its
    threads, and would wait for them without an end."""
    torch.set_num_threads(2)
    numbers = torch.ones(2_000_000)
    assert (numbers + numbers).sum() == 4_000_000
