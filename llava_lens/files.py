"""What a file is before it is opened; the files of a folder."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST_DEPTH = 64  # of folders


def check_file(path, most_bytes: int, follow_links: bool = True) -> None:
    """Raise ValueError unless `path` is a plain file of at most `most_bytes`, before it is opened:
    to open a pipe would wait for ever. Raises OSError if there is none."""
    about = os.stat(path, follow_symlinks=follow_links)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is a link or no file")
    if about.st_size > most_bytes:
        raise ValueError(f"it has more than {most_bytes >> 20} MiB")


def files_under(folder, is_left_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """The paths of all files at or under `folder`, but for folders that are left out; links to
    folders are not followed. Raises ValueError where folders go more than MOST_DEPTH deep."""
    for where, folders, files in os.walk(folder):
        here = Path(where)
        if len(here.parts) - len(Path(folder).parts) > MOST_DEPTH:
            raise ValueError(f"{str(folder)!r} has folders more than {MOST_DEPTH} deep.")
        folders[:] = [name for name in folders if not is_left_out(here / name)]
        yield from (here / name for name in files)


@contextmanager
def locked(folder):
    """Hold a folder for one run, all of whose processes are launched within.

    Its file `lock` has the number of the process that holds it; the lock of one that is gone is
    taken over. Raises ValueError if another run holds it.
    """
    lock, mine = Path(folder) / "lock", str(os.getpid())
    lock.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(lock):
        if holder := _holder_of(lock):
            raise ValueError(
                f"Another run (process {holder}) is writing to {str(folder)!r}: wait for its end, "
                f"or choose another folder (or delete {str(lock)!r} if there is no such run)."
            )
        lock.unlink()
    with open(lock, "x") as file:  # fails if another run has just made it
        file.write(mine)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # the folder was deleted meanwhile
            if lock.read_text() == mine:
                lock.unlink()


def _holder_of(lock: Path) -> int | None:
    """The process that holds a lock; None for one that is gone, this one, or what is no number."""
    try:
        check_file(lock, 20, follow_links=False)
        number = int(re.fullmatch(rb"[1-9]\d{0,8}", lock.read_bytes())[0])
        os.kill(number, 0)  # only asks whether it is there
    except PermissionError:  # it is, and another user's
        return number
    except (ValueError, TypeError, ProcessLookupError):
        return None
    return None if number == os.getpid() else number
