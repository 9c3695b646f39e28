"""All targets, by name."""

from __future__ import annotations

from fuzzing import carried, containers, http3, quic, services
from fuzzing.harness import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in [
        *quic.TARGETS,
        *http3.TARGETS,
        *carried.TARGETS,
        *containers.TARGETS,
        *services.TARGETS,
    ]
}
