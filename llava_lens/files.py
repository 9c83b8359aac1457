"""Files: what one is before it is opened, those of a folder, and one written whole."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_lens.text import require


def check_file(path, most_bytes: int, follow_links: bool = True) -> None:
    """Raise ValueError unless `path` is a plain file of at most `most_bytes`, OSError if there is
    none. Checked before opening, because opening a named pipe blocks."""
    status = os.stat(path, follow_symlinks=follow_links)
    require(stat.S_ISREG(status.st_mode), "it is a link or no file")
    require(status.st_size <= most_bytes, f"it has more than {most_bytes >> 20} MiB")


def inside(folder, name: str) -> Path:
    """What is called `name` in `folder`. Raises ValueError for a link: it leads elsewhere."""
    path = Path(folder) / name
    require(not path.is_symlink(), f"{str(path)!r} is a link, which is not followed: remove it.")
    return path


@contextmanager
def explained(path, remedy: str) -> Iterator[None]:
    """Make an OSError within one sentence that names `path`, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"{str(path)!r} can't be used ({reason}): {remedy}.") from error


def files_under(folder, is_left_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """The paths of all files at or under `folder`, if there is one, except in folders that are left
    out; links to folders are not followed. Raises OSError, which names a folder that can't be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            with explained(error.filename, "change its permissions, or move it elsewhere"):
                raise error

    for where, folders, files in os.walk(folder, onerror=refuse):
        if not os.access(where, os.X_OK):
            refuse(PermissionError(0, "its files can't be opened", where))
        folders[:] = [name for name in folders if not is_left_out(Path(where, name))]
        yield from (Path(where, name) for name in files)


def write_whole(path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it to `path`, never through a link: so it is
    whole or absent. Raises OSError, with the remedy, if it can't be written, as to a full disk."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with explained(path, "make room or choose another folder; what was saved before stays"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
