"""Which requests a client sends: the same ones on every backend, for the same seed.

A client takes one `Wanted` after the other from its own `Requests`, and carries it out on what
`quicferry_lab.demo.app` serves:

| request | on the wire |
|---|---|
| fixed | ``POST /echo`` with 1,024 bytes, which are echoed |
| GET of the distribution | ``GET /bytes/N?seed=S``, without a body |
| POST of the distribution | ``POST /upload``; what it is answered with counts as nothing |

Nothing here depends on the time or on anybody's answers: request *n* of client *c* in a run with
seed *s* is a function of (*s*, *c*, *n*). Arms that are compared see the same requests.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate

from quicferry_lab.evaluation.run import Workload

ECHO_SIZE = 1024
GET_PROBABILITY = 0.78
_GET_SIZES = "http_get_response_body_sizes.csv"
_POST_SIZES = "http_post_body_sizes.csv"


@dataclass(frozen=True)
class Wanted:
    """One request that a client is to send.

    Attributes:
        method: GET or POST.
        path: Of what, with the query.
        upload: Bytes of its body.
        download: Bytes of the response's body. That of an upload is not counted.
        body_seed: What the bytes of the body are made of, in whichever direction it goes: see
            `quicferry_lab.demo.content.body`. That of an echo goes both ways.
    """

    method: str
    path: str
    upload: int
    download: int
    body_seed: int

    @property
    def is_upload(self) -> bool:
        """Whether the response has no body that counts."""
        return self.path == "/upload"


class Requests(Iterator[Wanted]):
    """The requests of one client, one after the other, without an end.

    Args:
        workload: Of which kind.
        seed: Of the run.
        client: Which client, from 1. Each has requests of its own.
    """

    def __init__(self, workload: Workload, seed: int, client: int) -> None:
        self._workload = workload
        self._random = _generator("requests", seed, client)

    def __next__(self) -> Wanted:
        body_seed = self._random.getrandbits(31)
        if self._workload is Workload.FIXED:
            return Wanted("POST", "/echo", ECHO_SIZE, ECHO_SIZE, body_seed)
        if self._random.random() < GET_PROBABILITY:
            size = get_sizes().draw(self._random)
            return Wanted("GET", f"/bytes/{size}?seed={body_seed}", 0, size, body_seed)
        size = post_sizes().draw(self._random)
        return Wanted("POST", "/upload", size, 0, body_seed)


def stagger(seed: int, client: int) -> float:
    """Return when a client connects, if many do, as a share of the time that they take for it."""
    return _generator("stagger", seed, client).random()


def phase(seed: int, client: int) -> float:
    """Return when a client sends its first request, as a share of the pause between two.

    Without it all clients of a run would send at the same instant, again and again.
    """
    return _generator("phase", seed, client).random()


@dataclass(frozen=True)
class Sizes:
    """A distribution of sizes of bodies.

    Attributes:
        values: The sizes, bytes.
        cumulated: For each the probability of it or a smaller one.
    """

    values: tuple[int, ...]
    cumulated: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The size to expect, bytes."""
        below = (0.0, *self.cumulated[:-1])
        shares = (share - less for share, less in zip(self.cumulated, below, strict=True))
        return sum(value * share for value, share in zip(self.values, shares, strict=True))

    def draw(self, generator: random.Random) -> int:
        """Return a size."""
        return generator.choices(self.values, cum_weights=self.cumulated)[0]


def get_sizes() -> Sizes:
    """Return the distribution of sizes of responses to GET."""
    return _sizes(_GET_SIZES)


def post_sizes() -> Sizes:
    """Return the distribution of sizes of what is sent by POST."""
    return _sizes(_POST_SIZES)


@cache
def _sizes(name: str) -> Sizes:
    """Return the distribution in one of the files in ``data/``."""
    file = resources.files(__package__) / "data" / name
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    return Sizes(
        values=tuple(int(row["bytes"]) for row in rows),
        cumulated=tuple(accumulate(float(row["probability"]) for row in rows)),
    )


def _generator(purpose: str, seed: int, client: int) -> random.Random:
    # From text, so that neighbouring seeds and clients have nothing in common.
    return random.Random(f"{purpose} {seed} {client}")
