"""Where results are kept: a directory with three tables in Parquet.

``runs.parquet`` has a row for each run that came to an end, well or badly; ``relocations.parquet``
and ``requests.parquet`` have one for each relocation and request. Every row has all parameters of
its run, and what it ran on. While an experiment is under way the tables are in parts, of which a
new one is written every few seconds: so not much is lost when it is interrupted, and what is there
is not done again. The order of rows is that of the experiment's runs, whatever order they came in.
"""

from __future__ import annotations

import enum
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from quicferry import __version__
from quicferry.protocol import QuicferryError
from quicferry_lab.evaluation.result import Relocation, Request, Result
from quicferry_lab.evaluation.run import Backend, Peer, Run

TABLES = ("requests", "relocations", "runs")
"""In the order in which their parts are written: a run counts only if it is in the last."""

_SETTINGS = "settings.json"
_PARTS = "parts"
_FLUSH_INTERVAL = 5.0
_FLUSH_ROWS = 200_000
_TYPES = {"int": pl.Int64, "float": pl.Float64}


class StoreError(QuicferryError):
    """A directory cannot be used for results, or has none."""


@dataclass(frozen=True)
class Settings:
    """What all results of a directory have in common.

    Attributes:
        name: Of what was carried out, for example ``"experiment 1"``.
        backend: What it takes place on.
        is_quick: Whether it is an experiment's smaller form.
        seed: Of the first repetition.
        time_scale: What long times were multiplied by.
    """

    name: str
    backend: Backend
    is_quick: bool = False
    seed: int = 1
    time_scale: float = 1.0

    def encode(self) -> dict[str, Any]:
        """Return the settings as what JSON can carry."""
        return asdict(self) | {"backend": self.backend.value}


@dataclass(frozen=True)
class Tables:
    """All results of a directory.

    Attributes:
        folder: The directory.
        settings: What they have in common, as `Settings.encode` returns it.
        runs: One row per run: its parameters, ``failed``, ``problems`` (one line of text) and
            ``lost_clients``.
        relocations: One row per relocation, with the parameters of its run.
        requests: One row per request, with the parameters of its run.
    """

    folder: Path
    settings: dict[str, Any]
    runs: pl.DataFrame
    relocations: pl.DataFrame
    requests: pl.DataFrame

    def only(self, runs: Iterable[Run]) -> Tables:
        """Return the results of some runs: a directory may have more than is wanted."""
        keys = pl.DataFrame({"run": [run.key for run in runs]}, schema={"run": pl.String})
        found = (
            frame.join(keys, on="run", how="semi", maintain_order="left")
            for frame in (self.runs, self.relocations, self.requests)
        )
        return Tables(self.folder, self.settings, *found)


class Store:
    """A directory that results are added to; a context manager.

    Args:
        folder: The directory; it is made if there is none.
        settings: What the results will have in common.
        runs: All runs that there will be, in their order.

    Raises:
        StoreError: It has results with other settings, or another process adds to it.
    """

    def __init__(self, folder: Path, settings: Settings, runs: Sequence[Run]) -> None:
        self.folder = folder
        self._settings = settings
        self._runs = {run.key: number for number, run in enumerate(runs)}
        self._context = ExitStack()
        self._waiting: list[Result] = []
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Self:
        (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)
        lock = self._context.enter_context((self.folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._context.close()
            raise StoreError(f"another process is adding results to {self.folder}") from None
        try:
            check_settings(self.folder, self._settings)
        except StoreError:
            self._context.close()
            raise
        (self.folder / _SETTINGS).write_text(
            json.dumps(self._settings.encode(), indent=1) + "\n", encoding="utf-8"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()
        self._context.close()

    def finished(self) -> frozenset[str]:
        """Return the keys of all runs whose results are here."""
        return frozenset(_tables(self.folder)["runs"]["run"])

    def add(self, result: Result) -> None:
        """Keep a result; it is on disk within some seconds and another result, or at the end."""
        self._waiting.append(result)
        rows = sum(len(waiting.requests) for waiting in self._waiting)
        if time.monotonic() - self._flushed_at > _FLUSH_INTERVAL or rows > _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write a part with all results that are not on disk yet."""
        if self._waiting:
            number = 1 + max(map(_number, (self.folder / _PARTS).glob("runs-*.parquet")), default=0)
            for name, frame in _frames(self._waiting).items():
                _write(frame, self.folder / _PARTS / f"{name}-{number:06}.parquet")
            self._waiting.clear()
        self._flushed_at = time.monotonic()

    def complete(self) -> None:
        """Make one file of each table, in the order of the runs."""
        self.flush()
        order = pl.DataFrame(
            {"run": list(self._runs), "_order": list(self._runs.values())},
            schema={"run": pl.String, "_order": pl.Int64},
        )
        tables = _tables(self.folder)
        for name in TABLES:
            frame = tables[name].join(order, on="run", how="left", maintain_order="left")
            frame = frame.sort("_order", nulls_last=True, maintain_order=True).drop("_order")
            _write(frame, self.folder / f"{name}.parquet")
        for part in sorted((self.folder / _PARTS).iterdir()):
            part.unlink()


def check_settings(folder: Path, settings: Settings) -> None:
    """Check that results with some settings can be added to a directory.

    Raises:
        StoreError: It has results with other settings.
    """
    path = folder / _SETTINGS
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.encode().items():
        if found.get(name) != value:
            raise StoreError(
                f"{folder} has results of {found.get('name')} with {name} = {found.get(name)}, "
                f"not {value}; name another directory with --out, or remove that one"
            )


def read(folder: Path) -> Tables:
    """Return what a directory has.

    Raises:
        StoreError: It has no results.
    """
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise StoreError(f"{folder} has no results of `quicferry lab run` or `sweep`") from exc
    tables = _tables(folder)
    return Tables(folder, settings, tables["runs"], tables["relocations"], tables["requests"])


def find(folder: Path) -> list[Path]:
    """Return the directories with results: this one, or those in it, by name."""
    return sorted(
        path.parent
        for path in [folder / _SETTINGS, *folder.glob(f"*/{_SETTINGS}")]
        if path.exists()
    )


@cache
def environment() -> dict[str, str]:
    """Return what a result was found with: versions, the kernel and the machine's size."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "quicferry": __version__,
        "aioquic": version("aioquic"),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "machine": f"{os.cpu_count()} CPUs, {memory:.0f} GB of memory",
    }


def _frames(results: Iterable[Result]) -> dict[str, pl.DataFrame]:
    """Return the rows of some results as the three tables."""
    results = list(results)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    runs: list[dict[str, Any]] = []
    for result in results:
        run = result.run.row()
        runs.append(run)
        rows["runs"].append(
            {
                "run": run["run"],
                "failed": result.has_failed,
                "problems": "\n".join(result.problems),
                "lost_clients": result.lost_clients,
            }
        )
        for name, values in (("requests", result.requests), ("relocations", result.relocations)):
            rows[name] += [{"run": run["run"], **_plain(value)} for value in values]
    parameters = pl.DataFrame(runs, schema={"run": pl.String, **_schema(Run)}).with_columns(
        **{name: pl.lit(value) for name, value in environment().items()}
    )
    own = {
        "requests": _schema(Request),
        "relocations": _schema(Relocation),
        "runs": {"failed": pl.Boolean, "problems": pl.String, "lost_clients": pl.Int64},
    }
    return {
        name: parameters.join(
            pl.DataFrame(rows[name], schema={"run": pl.String, **own[name]}),
            on="run",
            how="right",
            maintain_order="right",
        )
        for name in TABLES
    }


def _tables(folder: Path) -> dict[str, pl.DataFrame]:
    """Return the three tables, of the files that are whole and of the parts."""
    whole, parts = _read_whole(folder), _read_parts(folder)
    # If it was interrupted while the parts were put together, rows may be in both.
    here = whole["runs"].select("run")
    return {
        name: pl.concat(
            [
                whole[name].join(here, on="run", how="semi", maintain_order="left"),
                parts[name]
                .join(parts["runs"].select("run"), on="run", how="semi", maintain_order="left")
                .join(here, on="run", how="anti", maintain_order="left"),
            ]
        )
        for name in TABLES
    }


def _read_whole(folder: Path) -> dict[str, pl.DataFrame]:
    empty = _frames([])
    paths = {name: folder / f"{name}.parquet" for name in TABLES}
    return {
        name: _concat(empty[name], [path] if path.exists() else []) for name, path in paths.items()
    }


def _read_parts(folder: Path) -> dict[str, pl.DataFrame]:
    empty = _frames([])
    found = {}
    for name in TABLES:
        paths = sorted((folder / _PARTS).glob(f"{name}-*.parquet"))
        found[name] = _concat(empty[name], paths)
    return found


def _concat(empty: pl.DataFrame, paths: Iterable[Path]) -> pl.DataFrame:
    """Return what files have. Some are older than the choice of a peer: it was ours."""
    frame = pl.concat([empty, *map(pl.read_parquet, paths)], how="diagonal")
    return frame.with_columns(pl.col("peer").fill_null(Peer.OURS.value))


def _write(frame: pl.DataFrame, path: Path) -> None:
    """Write a file that is there as a whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        frame.write_parquet(file, compression="zstd", statistics=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _number(part: Path) -> int:
    return int(part.stem.rpartition("-")[2])


def _plain(value: Request | Relocation) -> dict[str, Any]:
    return {
        name: each.value if isinstance(each, enum.Enum) else each
        for name, each in vars(value).items()
    }


def _schema(record: type[Run | Request | Relocation]) -> dict[str, Any]:
    return {
        field.name: _TYPES.get(str(field.type).partition(" ")[0], pl.String)
        for field in fields(record)
    }
