"""What is decided before anything is made: disciplines, the recipe, what is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts import Backend, Lab, LabError, rootfs
from quicferry_lab.hosts.rootfs import Recipe
from quicferry_lab.hosts.veth import disciplines


def test_a_transparent_path_needs_no_discipline() -> None:
    assert disciplines(PathSpec(), Backend.VETH) == []
    assert disciplines(PathSpec(), Backend.NETEM) == []


def test_a_rate_becomes_a_token_bucket_with_a_queue() -> None:
    (bucket,) = disciplines(PathSpec(rate_mbit=1000, queue_ms=5), Backend.VETH)
    assert bucket == "root handle 1: tbf rate 1000mbit burst 125000 latency 5ms"


def test_a_bucket_never_holds_less_than_two_packets() -> None:
    (bucket,) = disciplines(PathSpec(rate_mbit=1), Backend.VETH)
    assert " burst 3028 " in bucket


@pytest.mark.parametrize(
    "path", [PathSpec(rtt_ms=18), PathSpec(loss_percent=1), PathSpec(jitter_ms=1)]
)
def test_virtual_ethernet_alone_refuses_delay_and_loss(path: PathSpec) -> None:
    with pytest.raises(LabError, match="connect the hosts with such a path"):
        disciplines(path, Backend.VETH)


def test_the_emulator_follows_the_rate() -> None:
    path = PathSpec(rtt_ms=18, rate_mbit=100, loss_percent=1.5, jitter_ms=2, seed=3)
    bucket, emulator = disciplines(path, Backend.NETEM)
    assert bucket.startswith("root handle 1: tbf rate 100mbit ")
    assert emulator.startswith("parent 1: handle 2: netem ")
    # netem adds its jitter to both sides of the delay, a path to one.
    assert " delay 10ms 1ms " in emulator
    assert emulator.endswith(" loss random 1.5% seed 4")


def test_another_recipe_makes_another_system() -> None:
    recipe = Recipe.of_this_quicferry()
    assert any(need.startswith("aioquic") for need in recipe.dependencies)
    assert recipe.name == Recipe.of_this_quicferry().name
    for changed in (
        replace(recipe, packages=(*recipe.packages, "strace")),
        replace(recipe, dependencies=()),
        replace(recipe, version=recipe.version + 1),
    ):
        assert changed.name != recipe.name


def test_without_a_system_the_error_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(rootfs.ROOT_VARIABLE, raising=False)
    monkeypatch.setenv(rootfs.DIRECTORY_VARIABLE, str(tmp_path))
    (tmp_path / "unfinished").mkdir()  # a half-made one does not count
    with pytest.raises(LabError, match="quicferry lab setup"):
        Lab()


def test_clean_removes_what_was_made_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "lab"
    monkeypatch.setenv(rootfs.DIRECTORY_VARIABLE, str(lab))
    rootfs.clean()
    (lab / "root-x" / "bin").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    rootfs.clean()
    assert not (lab / "root-x").exists()
    assert (tmp_path / "other").exists()


def test_another_root_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rootfs.ROOT_VARIABLE, str(tmp_path))
    assert rootfs.find() == tmp_path


async def test_a_laboratory_has_to_be_open(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="async with"):
        await Lab(tmp_path).add_host("a")
