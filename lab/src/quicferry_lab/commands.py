"""What the laboratory adds to the command line, without importing any of it."""

from quicferry.cli.help import Elsewhere

COMMANDS = {
    "demo": Elsewhere(
        "quicferry_lab.cli.demo",
        "demo",
        "Move a live HTTP/3 server under load, on real sockets, and check that nobody notices.",
    ),
    "bench": Elsewhere(
        "quicferry_lab.cli.bench", "bench", "Measure, and compare with what is promised."
    ),
    "soak": Elsewhere(
        "quicferry_lab.cli.soak",
        "soak",
        "Play migrations and handovers again and again, and name what fails.",
    ),
    "lab": Elsewhere(
        "quicferry_lab.cli.lab",
        "lab",
        "Hosts made of namespaces, with emulated links between them: to try and to measure.",
    ),
}
