"""The ways of moving a server, and which of them somebody asks for."""

from __future__ import annotations

from quicferry.relocation.container.engines import Runc, Technique
from quicferry.relocation.container.engines.podman import Podman
from quicferry.relocation.errors import EngineError

from .finding import Way

REBIND = "rebind"
HANDOVER = "handover"
RUNC = Runc.name
PODMAN = Podman.name

CONTAINER_TECHNIQUES = tuple(technique.value for technique in Technique)
TECHNIQUES = (REBIND, HANDOVER, *CONTAINER_TECHNIQUES)

ENGINES: dict[str, frozenset[Technique]] = {
    RUNC: Runc.techniques,
    PODMAN: Podman.techniques,
}
"""What each engine can do."""

WITHOUT_ENGINE = (Way(REBIND), Way(HANDOVER))
ALL_WAYS = WITHOUT_ENGINE + tuple(
    Way(technique.value, engine)
    for technique in Technique
    for engine, techniques in ENGINES.items()
    if technique in techniques
)


def ways(technique: str | None = None, engine: str | None = None) -> list[Way]:
    """Return the ways that somebody asks for.

    Args:
        technique: Only this one; None for all.
        engine: Only this one, and no technique that needs none; None for all.

    Raises:
        EngineError: If there is no such way.
    """
    chosen = [
        way
        for way in ALL_WAYS
        if technique in (None, way.technique) and engine in (None, way.engine)
    ]
    if chosen:
        return chosen
    if Way(technique or "") in WITHOUT_ENGINE:
        raise EngineError(f"{technique} needs no container engine; leave the engine out")
    engines = [name for name, able in ENGINES.items() if technique in {each.value for each in able}]
    raise EngineError(
        f"{engine or 'no engine'} cannot do {technique}; "
        + (f"use {' or '.join(engines)}" if engines else f"choose of {', '.join(TECHNIQUES)}")
    )


def wanted(technique: str | None = None, engine: str | None = None) -> list[frozenset[str]]:
    """Return what has to work for a host to be healthy; one technique of each set.

    Args:
        technique: The one that somebody asks for; None for the usual: rebind, handover, and any
            technique that moves a container.
        engine: The one that is asked for; without a technique, any of its techniques will do.
    """
    if technique is not None:
        return [frozenset({technique})]
    container = frozenset(CONTAINER_TECHNIQUES)
    if engine is not None:
        return [container]
    return [frozenset({REBIND}), frozenset({HANDOVER}), container]
