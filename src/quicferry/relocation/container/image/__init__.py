"""Makes of an ASGI application what a container engine runs, so that it can be moved with it."""

from .application import (
    DEFAULT_BIND,
    DEFAULT_MEMORY,
    DEFAULT_PROCESSES,
    Application,
    default_user,
)
from .bundle import Bundle, make_bundle
from .errors import ImageError
from .podman import PodmanImage, import_bundle, make_podman_image

__all__ = [
    "DEFAULT_BIND",
    "DEFAULT_MEMORY",
    "DEFAULT_PROCESSES",
    "Application",
    "Bundle",
    "ImageError",
    "PodmanImage",
    "default_user",
    "import_bundle",
    "make_bundle",
    "make_podman_image",
]
