"""`quicferry lab`: the laboratory."""

from __future__ import annotations

import click

from quicferry.cli.help import Elsewhere, Group


@click.group(
    cls=Group,
    examples=(
        "quicferry lab setup",
        "quicferry lab calibrate",
        "quicferry lab calibrate --json | jq '.[] | select(.is_met | not)'",
    ),
    elsewhere={
        "setup": Elsewhere(
            "quicferry_lab.cli.hosts",
            "setup",
            "Make the system that the laboratory's hosts run: Debian with CRIU, runc and Podman.",
        ),
        "calibrate": Elsewhere(
            "quicferry_lab.cli.measure",
            "calibrate_command",
            "Measure the laboratory itself: its links, and its simulation.",
        ),
        "containers": Elsewhere(
            "quicferry_lab.cli.measure",
            "containers",
            "Measure relocations of real containers, beside the thesis's figures.",
        ),
        "clean": Elsewhere(
            "quicferry_lab.cli.hosts",
            "clean",
            "Remove what `quicferry lab setup` has made; no host may be running.",
        ),
        "ratios": Elsewhere(
            "quicferry_lab.cli.ratios",
            "ratios",
            "Compare the techniques that move a container: each one's times as a ratio to cold's.",
        ),
        "run": Elsewhere(
            "quicferry_lab.cli.run", "run", "Carry out experiments of the evaluation, 0 to 6."
        ),
        "sweep": Elsewhere(
            "quicferry_lab.cli.sweep",
            "sweep",
            "Run every combination of lists of parameters, in the simulation.",
        ),
        "report": Elsewhere(
            "quicferry_lab.cli.run",
            "report",
            "Make a page of what `quicferry lab run` has found, beside what the thesis has.",
        ),
        "vm": Elsewhere(
            "quicferry_lab.cli.vm",
            "vm",
            "A virtual machine with Debian's own kernel, for what this machine's kernel cannot do.",
        ),
    },
)
def lab() -> None:
    """Hosts made of namespaces, with emulated links between them: to try and to measure.

    All of it needs root, and leaves nothing behind but a Debian system that is made once and kept
    in /var/cache/quicferry/lab ($QUICFERRY_LAB_DIR names another place).
    """
