"""What a file is before it is opened; the files of a folder."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

MOST_DEPTH = 64  # of folders


def check_file(path, most_bytes: int, follow_links: bool = True) -> None:
    """Raise ValueError unless `path` is a plain file of at most `most_bytes`.

    Checked before opening, because opening a named pipe blocks. Raises OSError if there is none.
    """
    status = os.stat(path, follow_symlinks=follow_links)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a link or no file")
    if status.st_size > most_bytes:
        raise ValueError(f"it has more than {most_bytes >> 20} MiB")


def files_under(folder, is_left_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """The paths of all files at or under `folder`, except in folders that are left out.

    Links to folders are not followed. Raises ValueError where folders are nested more than
    MOST_DEPTH deep.
    """
    for where, folders, files in os.walk(folder):
        parent = Path(where)
        if len(parent.parts) - len(Path(folder).parts) > MOST_DEPTH:
            raise ValueError(f"{str(folder)!r} has folders more than {MOST_DEPTH} deep.")
        folders[:] = [name for name in folders if not is_left_out(parent / name)]
        yield from (parent / name for name in files)
