"""Every random choice of the connections from one seed, so that a run happens again byte for byte.

aioquic draws connection IDs, path challenges, tickets and TLS randoms from `os.urandom`, and its
key pairs from the `cryptography` package; it asks the wall clock for the date of tickets and
certificates and for the times in its logs; and it keeps streams that wait for their turn in a set,
which is ordered by memory address. Inside `seeded` all of them are replaced; outside nothing is.
"""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from aioquic import tls
from aioquic.quic import logger
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives.asymmetric import ec, x25519

TODAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""The date in every simulation."""


@contextmanager
def seeded(seed: int, clock: Callable[[], float]) -> Iterator[None]:
    """Make the connections' randomness a function of `seed`, and their logs' times `clock`'s.

    Key exchange uses X25519 only: its keys can be chosen, and the handshake costs a fraction of
    what it costs with a P-384 key pair that is made for each connection and never used.
    """
    generator = random.Random(f"connections {seed}")
    context_init = tls.Context.__init__

    def x25519_key() -> x25519.X25519PrivateKey:
        return x25519.X25519PrivateKey.from_private_bytes(generator.randbytes(32))

    def ec_key(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(generator.getrandbits(curve.key_size - 1) | 1, curve)

    def x25519_context(self: tls.Context, *args: Any, **kwargs: Any) -> None:
        context_init(self, *args, **kwargs)
        self._supported_groups = [tls.Group.X25519]

    x25519_module = SimpleNamespace(**vars(x25519))
    x25519_module.X25519PrivateKey = SimpleNamespace(generate=x25519_key)
    ec_module = SimpleNamespace(**vars(ec))
    ec_module.generate_private_key = ec_key

    with ExitStack() as stack:
        for target, name, replacement in (
            (os, "urandom", generator.randbytes),
            (tls, "utcnow", lambda: TODAY),
            (tls, "x25519", x25519_module),
            (tls, "ec", ec_module),
            (tls.Context, "__init__", x25519_context),
            (logger, "time", SimpleNamespace(time=clock)),
            (QuicStream, "__hash__", lambda stream: hash(stream.stream_id)),
        ):
            stack.callback(partial(setattr, target, name, getattr(target, name)))
            setattr(target, name, replacement)
        yield
