"""A folder of checkpoints, each of them whole or not there.

latest            the tag that was saved last
TAG/              what torch.distributed.checkpoint wrote
.TAG.partial/     a save under way, or one that was killed
.TAG.previous/    what TAG was, until its successor is in its place
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from accel.errors import CheckpointError, close_matches

T = TypeVar("T")


def write(folder: Path, tag: str, state: dict[str, Any]) -> Path:
    """Every rank's entries; then, all at once, ``folder / tag`` is what was written."""
    if not tag or tag.startswith(".") or tag == "latest" or Path(tag).name != tag:
        raise CheckpointError(f"a tag is the name of a folder, and not 'latest'; found {tag!r}")
    partial = folder / f".{tag}.partial"
    with _errors_as_ours(f"{folder / tag} cannot be written"), _one_process_is_fine():
        _on_first_rank(lambda: _clear(folder))
        save(state, storage_writer=FileSystemWriter(partial))
        _on_first_rank(lambda: _put_in_place(partial, folder / tag))
    return folder / tag


def read(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same names with what was saved: in the tensors given, where there are any."""
    with _errors_as_ours(f"{path} cannot be read"), _one_process_is_fine():
        load(state, storage_reader=FileSystemReader(path))
        return {k: _unpacked(v) if isinstance(v, io.BytesIO) else v for k, v in state.items()}


def packed(value: Any) -> io.BytesIO:
    """Anything as one entry: torch.distributed.checkpoint would take a dict for many."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer


def _unpacked(buffer: io.BytesIO) -> Any:
    """Its tensors on the host, wherever they were."""
    buffer.seek(0)
    return torch.load(buffer, map_location=lambda storage, _: storage, weights_only=False)


def find(folder: Path, tag: str | None) -> Path:
    """The checkpoint with this tag, by default the latest, on every rank the same."""
    return _on_first_rank(lambda: _find(folder, tag))


def metadata_of(path: Path) -> Metadata:
    """What a checkpoint says of itself; CheckpointError if any of its files is torn."""
    return _on_first_rank(lambda: _read_metadata(path))


def _on_first_rank(action: Callable[[], T]) -> T:
    """What the action returns or raises on rank 0, on every rank."""
    if not dist.is_initialized():
        return action()
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = action()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return cast(T, found[0])


def _clear(folder: Path) -> None:
    """Make the folder, and remove what killed saves left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial)


def _put_in_place(partial: Path, path: Path) -> None:
    """Each line leaves a folder from which this checkpoint or the one before can be loaded."""
    previous = _previous(path)
    _sync(partial)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    partial.rename(path)
    _sync(path.parent)
    _write_latest(path)
    shutil.rmtree(previous, ignore_errors=True)


def _write_latest(path: Path) -> None:
    latest = path.parent / "latest"
    beside = path.parent / ".latest"
    beside.write_text(path.name, encoding="utf-8")
    _sync(beside)
    beside.replace(latest)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _find(folder: Path, tag: str | None) -> Path:
    if tag is None:
        latest = folder / "latest"
        if not latest.is_file():
            raise CheckpointError(f"{folder} has no file 'latest': nothing was saved there")
        tag = latest.read_text(encoding="utf-8").strip()
    path = folder / tag
    if not path.is_dir():  # a save was killed between the two names
        path = _previous(folder / tag)
    if not path.is_dir():
        tags = [p.name for p in folder.glob("[!.]*") if p.is_dir()]
        raise CheckpointError(f"{folder} has no checkpoint {tag!r}; {close_matches(tag, tags)}")
    return path


def _read_metadata(path: Path) -> Metadata:
    if not (path / ".metadata").is_file():
        raise CheckpointError(f"{path} is torn or no checkpoint: it has no file '.metadata'")
    try:
        metadata = FileSystemReader(path).read_metadata()
    except Exception as error:  # whatever unpickling torn bytes raises
        raise CheckpointError(f"{path} is torn: '.metadata' cannot be read ({error})") from error
    ends: dict[str, int] = defaultdict(int)
    for part in metadata.storage_data.values():
        ends[part.relative_path] = max(ends[part.relative_path], part.offset + part.length)
    for name, expected in sorted(ends.items()):
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != expected:
            has = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{path} is torn: {name!r} {has}, of {expected} bytes written")
    return metadata


@contextmanager
def _errors_as_ours(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:  # which is no Exception
        raise CheckpointError(f"{what}: {error}") from error


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
