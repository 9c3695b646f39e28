"""What a process gets of CRIU's images is held against what its container gives."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quicferry.relocation.container.engines.criu_images import Rights, check_rights
from quicferry.relocation.container.engines.runc import Bundle
from quicferry.relocation.errors import EngineError

USER = 61000
RIGHTS = Rights(USER, (USER,), frozenset({"CAP_NET_BIND_SERVICE", "CAP_IPC_LOCK"}), False)
BIND, LOCK, ADMIN = 1 << 10, 1 << 14, 1 << 21
ALLOWED = BIND | LOCK

Message = Mapping[int, "int | bytes | str | list[int] | Message"]


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def encode(message: Message) -> bytes:
    """Return a Protocol Buffers message."""
    data = b""
    for number, value in message.items():
        if isinstance(value, Mapping):
            value = encode(value)
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, bytes):
            data += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            for each in value if isinstance(value, list) else [value]:
                data += varint(number << 3) + varint(each)
    return data


def credentials(
    user: int = USER, group: int = USER, capabilities: int = ALLOWED, **fields: int
) -> dict[int, int | list[int]]:
    words = [capabilities & 0xFFFFFFFF, capabilities >> 32]
    content: dict[int, int | list[int]] = {
        **dict.fromkeys((1, 3, 5, 7), user),
        **dict.fromkeys((2, 4, 6, 8), group),
        **dict.fromkeys(range(9, 13), words),
        13: 0,
    }
    return content | {int(name.removeprefix("f")): value for name, value in fields.items()}


def write(
    folder: Path,
    creds: Message,
    name: str = "core-1.img",
    thread: Message | None = None,
    *,
    is_thread: bool = False,
) -> None:
    """Write the image of a process, or of a further thread of one, as CRIU does."""
    of_thread = {1: 2**63, 2: 12, 3: 0, 10: creds, **(thread or {})}
    of_task: Message = {} if is_thread else {3: {1: 1, 2: 0, 6: "python3"}}
    core = encode({1: 1, 2: b"registers", **of_task, 5: of_thread})
    (folder / name).write_bytes(struct.pack("<III", 0x54564319, 0x55053847, len(core)) + core)


def problem_of(folder: Path, rights: Rights = RIGHTS) -> str:
    with pytest.raises(EngineError) as caught:
        check_rights(folder, rights)
    return str(caught.value)


def test_processes_that_have_what_they_may_have(tmp_path: Path) -> None:
    write(tmp_path, credentials())
    write(tmp_path, credentials(capabilities=0), "core-2.img")
    write(tmp_path, {**credentials(), 14: [USER]}, "core-3.img")
    check_rights(tmp_path, RIGHTS)


def test_an_image_that_criu_has_written(tmp_path: Path) -> None:
    """Of a thread of root with two capabilities in its bounding set (CRIU 4.2.1)."""
    image = (Path(__file__).parent / "recorded" / "criu-core.img").read_bytes()
    (tmp_path / "core-18.img").write_bytes(image)
    check_rights(tmp_path, Rights(0, (0,), RIGHTS.capabilities, is_filtered=False))
    assert "would be of user 0" in problem_of(tmp_path)
    without = Rights(0, (0,), frozenset({"CAP_IPC_LOCK"}), is_filtered=False)
    assert "CAP_NET_BIND_SERVICE" in problem_of(tmp_path, without)


@pytest.mark.parametrize("field", [1, 3, 5, 7])
def test_another_user(tmp_path: Path, field: int) -> None:
    """Also only one of the four: the saved one is as good as the effective one."""
    write(tmp_path, credentials())
    write(tmp_path, {**credentials(), field: 0}, "core-7.img")
    problem = problem_of(tmp_path)
    assert "would be of user 0" in problem
    assert "core-7.img" in problem


@pytest.mark.parametrize("field", [2, 4, 6, 8, 14])
def test_another_group(tmp_path: Path, field: int) -> None:
    write(tmp_path, {**credentials(), field: 0})
    assert "would be of group 0" in problem_of(tmp_path)


def test_groups_that_the_container_gives(tmp_path: Path) -> None:
    write(tmp_path, {**credentials(), 14: [USER, 7]})
    check_rights(tmp_path, Rights(USER, (USER, 7), RIGHTS.capabilities, False))
    write(tmp_path, {**credentials(), 14: varint(USER) + varint(8)})  # packed
    assert "8" in problem_of(tmp_path, Rights(USER, (USER, 7), RIGHTS.capabilities, False))


@pytest.mark.parametrize("field", [9, 10, 11, 12, 19])
@pytest.mark.parametrize(
    ("mask", "name"), [(ADMIN, "CAP_SYS_ADMIN"), (1 << 39, "CAP_BPF"), (1 << 60, "60")]
)
def test_another_capability(tmp_path: Path, field: int, mask: int, name: str) -> None:
    more = ALLOWED | mask
    write(tmp_path, {**credentials(), field: [more & 0xFFFFFFFF, more >> 32]})
    assert f"would have the capability {name} " in problem_of(tmp_path)


def test_who_can_become_anybody_may_be(tmp_path: Path) -> None:
    """A server that begins as root and gives that up, for example."""
    root = Rights(0, (0,), frozenset(), is_filtered=False)
    can_set = Rights(USER, (USER,), frozenset({"CAP_SETUID", "CAP_SETGID"}), is_filtered=False)
    write(tmp_path, credentials(user=33, group=33, capabilities=0))
    check_rights(tmp_path, root)
    check_rights(tmp_path, can_set)
    write(tmp_path, credentials(user=33, group=33, capabilities=ADMIN))
    for rights in (root, can_set):
        assert "CAP_SYS_ADMIN" in problem_of(tmp_path, rights)


def test_a_filter_that_is_left_out(tmp_path: Path) -> None:
    filtered = Rights(USER, (USER,), RIGHTS.capabilities, is_filtered=True)
    write(tmp_path, credentials())
    assert "no filter of system calls" in problem_of(tmp_path, filtered)
    write(tmp_path, credentials(), thread={11: 2, 12: 0})
    check_rights(tmp_path, filtered)
    write(tmp_path, credentials(), thread={11: 1})
    assert "no filter of system calls" in problem_of(tmp_path, filtered)
    write(tmp_path, credentials(), thread={11: 2, 12: 0})
    write(tmp_path, credentials(), "core-2.img", is_thread=True)
    check_rights(tmp_path, filtered)
    write(tmp_path, credentials(), "core-2.img", {11: 0}, is_thread=True)
    assert "no filter of system calls" in problem_of(tmp_path, filtered)


def test_a_process_that_has_ended_and_one_that_says_so(tmp_path: Path) -> None:
    def core(content: Message) -> None:
        data = encode(content)
        image = struct.pack("<III", 0x54564319, 0x55053847, len(data)) + data
        (tmp_path / "core-1.img").write_bytes(image)

    core({1: 1, 3: {1: 6, 2: 0}})
    check_rights(tmp_path, RIGHTS)
    core({1: 1, 3: {1: 1, 2: 0}})
    assert "cannot be understood" in problem_of(tmp_path)
    core({1: 1, 3: {1: 6, 2: 0}, 5: {10: {**credentials(), 1: 0}}})
    assert "would be of user" in problem_of(tmp_path)


def test_what_stands_there_twice(tmp_path: Path) -> None:
    """CRIU would merge the two: what comes last counts."""
    for doubled in (
        encode({5: {10: credentials()}}) + encode({5: {10: credentials(user=0)}}),
        encode({5: encode({10: credentials()}) + encode({10: credentials(user=0)})}),
        encode({5: {10: encode(credentials()) + encode({1: 0})}}),
    ):
        data = encode({1: 1, 3: {1: 1}}) + doubled
        image = struct.pack("<III", 0x54564319, 0x55053847, len(data)) + data
        (tmp_path / "core-1.img").write_bytes(image)
        assert "cannot be understood" in problem_of(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    assert "cannot be understood" in problem_of(tmp_path)


def test_no_image_is_accepted_with_more_rights_however_it_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, credentials())
    path = tmp_path / "core-1.img"
    good = path.read_bytes()

    @settings(max_examples=500, deadline=None, database=None)
    @given(st.integers(0, len(good) - 1), st.binary(max_size=3), st.integers(0, 3))
    def damage(place: int, new: bytes, removed: int) -> None:
        path.write_bytes(good[:place] + new + good[place + removed :])
        try:
            check_rights(tmp_path, RIGHTS)
        except EngineError:
            return

    damage()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        problem_of(tmp_path)


def test_what_a_bundle_gives(tmp_path: Path) -> None:
    config = {
        "process": {
            "user": {"uid": USER, "gid": 7, "additionalGids": [8]},
            "capabilities": {"bounding": ["CAP_NET_BIND_SERVICE"], "ambient": ["CAP_IPC_LOCK"]},
        },
        "mounts": [{"destination": "/run/quicferry", "source": "/run/quicferry/site"}],
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Bundle(tmp_path).rights == Rights(USER, (7, 8), RIGHTS.capabilities, is_filtered=True)
    del config["process"], config["linux"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Bundle(tmp_path).rights == Rights(0, (0,), frozenset(), is_filtered=False)
