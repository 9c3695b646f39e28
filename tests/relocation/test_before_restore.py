"""What asks for too much is refused before an engine sees it.

The engines are programs that say what they would, and write down what they are asked for.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from relocation.test_criu_images import ADMIN, credentials, write
from relocation.test_podman_rights import SPEC, archive

from quicferry.relocation.container.engines import Podman, Runc
from quicferry.relocation.errors import EngineError

SAYS = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in
    state*) echo "container does not exist" >&2; exit 1;;
    "container inspect"*) echo "no such container" >&2; exit 1;;
    "image inspect"*) cat {folder}/image.json;;
    info*) echo /var/lib/containers/storage/overlay-containers;;
esac
"""

Asked = Callable[[], str]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Provide what the engines were asked for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("runc", "podman"):
        (programs / name).write_text(SAYS.format(folder=tmp_path))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return lambda: (tmp_path / "asked").read_text()


async def test_runc_is_not_asked_to_restore_more_than_the_bundle_gives(
    tmp_path: Path, asked: Asked
) -> None:
    user = os.getuid()
    config: dict[str, Any] = {
        "process": {"user": {"uid": user, "gid": user}},
        "mounts": [{"destination": "/run/quicferry", "source": str(tmp_path / "run")}],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = tmp_path / "images"
    (images / "final").mkdir(parents=True)
    container = await Runc(tmp_path).destination("site")
    write(images / "final", credentials(user, user, ADMIN))
    with pytest.raises(EngineError, match="CAP_SYS_ADMIN"):
        await container.restore(images)
    assert "restore" not in asked()
    write(images / "final", credentials(user, user, 0))
    await container.restore(images)
    assert "restore --detach" in asked()
    assert asked().splitlines()[-1].endswith(" -- site")


async def test_podman_is_not_asked_to_restore_more_than_the_agent_gives(
    tmp_path: Path, asked: Asked
) -> None:
    image = {"Id": "1", "RepoTags": ["localhost/site:1"], "Config": {"User": "61000:61000"}}
    (tmp_path / "image.json").write_text(json.dumps([image]))
    images = tmp_path / "images"
    images.mkdir()
    container = await Podman("localhost/site:1").destination("site")
    spec = copy.deepcopy(SPEC)
    spec["mounts"].append({"destination": "/mnt", "type": "bind", "source": "/"})
    archive(images / "checkpoint.tar", spec=spec)
    with pytest.raises(EngineError, match="--allow-mount /"):
        await container.restore(images)
    archive(images / "checkpoint.tar", ("checkpoint/core-9.img", b""))
    with pytest.raises(EngineError, match="cannot be understood"):
        await container.restore(images)
    assert "restore" not in asked()
