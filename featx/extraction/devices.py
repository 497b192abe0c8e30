"""Spread the batches of a run over the GPUs of this machine, one process each.

A process computes its batches by `forward.stream`, writes their rows to the file, and reports which images have rows.
It inherits the run's file handle and with it the lock: as long as one process of a killed run is alive, no other run
can write to that file. Everything else goes over a socket, which ends when the other side does. Both sides of the
socket are in this file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.spawn import get_executable
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from featx.backbones import Backbone
from featx.errors import FeatxError
from featx.extraction.shares import Share, batch_starts, pickled, portable, share_of
from featx.forward import Block, decoders, release, stream
from featx.store import KEPT, Recipe, RowFile, disk_errors

_LEAST_BATCHES = 32  # per GPU; with fewer, the seconds that a process takes to start are not recovered

_log = logging.getLogger("featx")


def places(images: Sequence[Any], recipe: Recipe, todo: np.ndarray) -> list[str]:
    """The devices of a run: all GPUs of the current one's kind, as far as there are batches for them.

    On another kind of GPU the last bits of the numbers would differ.
    """
    # pickling decodes PIL images in this process, and loses the rotation that their files record
    mixed = images if isinstance(images, list | tuple) else images[:1]  # arrays and remote images are of one kind
    if recipe.device != "cuda" or any(isinstance(image, Image.Image) for image in mixed):
        return [recipe.device]
    current = torch.cuda.current_device()
    others = [number for number in range(torch.cuda.device_count()) if number != current]
    name = torch.cuda.get_device_name
    alike = [current, *(number for number in others if name(number) == name(current))]
    most = len(batch_starts(recipe, todo)) // _LEAST_BATCHES
    return [f"cuda:{number}" for number in alike[: max(1, most)]]


def spread(
    images: Sequence[Any],
    recipe: Recipe,
    backbone: Backbone,
    *,
    places: Sequence[str],
    workers: int | str,
    todo: np.ndarray,
    rows: RowFile,
    computed: Iterable[Block] = (),
) -> Generator[Block, None, None]:
    """Run images through a recipe in several processes; see `forward.stream`.

    Parameters
    ----------
    images : n paths or uint8 arrays
    recipe : Recipe
        Its rows do not depend on the number of processes.
    backbone : Backbone, the recipe's
    places : "cuda:0", "cuda:1", ...; or "cpu" several times
    workers : decoding threads of all processes together, or "auto"
    todo : (n,) bool, the images to do
    rows : RowFile, where rows are written; rows of other images are not touched
    computed : blocks of this recipe that have been computed already

    Yields
    ------
    Block
        In the order of arrival; rows that are computed here are in the file already. All processes have ended when the
        generator ends, for whatever reason. A process waits while its socket is full.

    Raises
    ------
    FeatxError
        A process was killed.
    BackboneError, StoreError, ...
        Errors of the processes.
    """
    threads = decoders(workers)
    todo = todo.copy()
    for block in computed:
        todo[block.start : block.stop] = False
        yield block
    try:
        network = pickled(backbone)
    except Exception as error:  # of many types: locks, open files, exported programs
        reason = f"{type(error).__name__}: {error}"
    else:
        release()
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(_child(place, rows)) for place in places]
            shares = _deal(images, recipe, places, -(-threads // len(places)), todo, rows)
            for child, share in zip(children, map(pickle.dumps, shares), strict=True):
                child.send(network)
                child.send(share)
            refusals = [child.receive() for child in children]
            if not any(refusals):
                yield from _received(children)
                return
        reason = next(filter(None, refusals))
    _log.info("running in one process: the network cannot be handed to another (%s)", reason)
    yield from stream(images, recipe, backbone, device=places[0].partition(":")[0], workers=threads, todo=todo)


def _received(children: Sequence[_Child]) -> Iterator[Block]:
    busy = list(children)
    while busy:
        ready = wait([child.connection for child in busy])
        for child in [child for child in busy if child.connection in ready]:
            message = child.receive()
            if isinstance(message, BaseException):
                raise message
            if message is None:
                busy.remove(child)
            else:
                yield message


@dataclass(frozen=True)
class _Work:
    """The work of one process."""

    place: str
    share: Share
    rows: RowFile

    def blocks(self, backbone: Backbone) -> Iterator[Block]:
        """The blocks of the share; their rows are in the file."""
        device, _, number = self.place.partition(":")
        if number:
            torch.cuda.set_device(int(number))  # from now on "cuda" means this one
        for block in self.share.blocks(backbone, device):
            is_wanted = self.share.wanted(block.indices)
            with disk_errors(self.rows.output, lambda: KEPT):
                for name, values in block.rows.items():
                    self.rows.write(name, block.indices[is_wanted], values[is_wanted])
            yield replace(block, rows={}, in_file=tuple(block.rows))


def _deal(
    images: Sequence[Any], recipe: Recipe, places: Sequence[str], workers: int, todo: np.ndarray, rows: RowFile
) -> Iterator[_Work]:
    """Deal batches in turns, so that neighbours are done at about the same time; shares are made one at a time."""
    starts = batch_starts(recipe, todo)
    for number, place in enumerate(places):
        # on a CPU their number decides the last bits
        threads = recipe.threads if place == "cpu" else max(1, recipe.threads // len(places))
        own = starts[number :: len(places)]
        yield _Work(place, share_of(images, recipe, own, todo, workers=workers, threads=threads), rows)


@dataclass(frozen=True)
class _Child:
    """A process of `spread`, as the run sees it.

    stderr : file that collects its error output
    """

    place: str
    process: subprocess.Popen
    connection: Connection
    stderr: IO[bytes]

    def send(self, content: bytes) -> None:
        try:
            self.connection.send_bytes(content)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _died(self) -> FeatxError:
        code = self.process.wait()
        self.stderr.seek(0)
        words = self.stderr.read()[-2000:].decode(errors="replace").split("\n")
        last = "".join(f": {line.strip()}" for line in [line for line in words if line.strip()][-1:])
        killed = " (killed; was there too little memory?)" if code == -signal.SIGKILL else ""
        return FeatxError(f"the process on {self.place} ended with exit code {code}{killed}{last}; {KEPT}")


@contextlib.contextmanager
def _child(place: str, rows: RowFile) -> Iterator[_Child]:
    """A new process that shares no state with this one, and ends with the context.

    multiprocessing would run the user's script again in each.
    """
    ours, theirs = Pipe()
    with ours, theirs, tempfile.TemporaryFile() as stderr:
        path = [folder for folder in sys.path if isinstance(folder, str)]
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"sys.path[:] = {path!r}; from featx.extraction.devices import work; work({theirs.fileno()}, {os.getpid()})"
        )
        process = subprocess.Popen(
            [get_executable(), "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[theirs.fileno(), rows.handle],
            process_group=0,  # Ctrl-C is for the run, which ends its processes
        )
        try:
            theirs.close()
            yield _Child(place, process, ours, stderr)
        finally:
            process.kill()
            process.wait()


def work(handle: int, run: int) -> None:
    """The life of one process of `spread`.

    Parameters
    ----------
    handle : file descriptor of the socket to the run
    run : process id of the run
    """
    code = 1
    try:
        connection = Connection(handle)
        with contextlib.suppress(EOFError, OSError):  # the run is gone
            for message in _messages(connection, run):
                connection.send(message)
        code = 0
    except BaseException:
        traceback.print_exc()  # the run reports the last line
    finally:
        sys.stdout.flush()
        os._exit(code)  # at once, even if threads are running


def _messages(connection: Connection, run: int) -> Iterator[Any]:
    """First the reason why this process cannot begin, or None; then blocks; then None, or an error."""
    network, content = connection.recv_bytes(), connection.recv_bytes()
    threading.Thread(target=_end_with, args=(connection, run), daemon=True).start()
    work: _Work = pickle.loads(content)
    try:
        backbone = pickle.loads(network)
    except Exception as error:  # unpickling may import a module of the user's, which may raise anything
        yield f"{type(error).__name__}: {error}"
        return
    yield None
    try:
        yield from work.blocks(backbone)
    except (Exception, SystemExit) as error:
        yield portable(error, work.place)
    else:
        yield None


def _end_with(connection: Connection, run: int) -> None:
    """End this process when the run has ended: the run sends nothing more, so any message is the end."""
    with contextlib.suppress(OSError):
        # another process may have been forked that holds the other side open
        while os.getppid() == run and not connection.poll(0.5):
            pass
    os._exit(1)
