"""Relocations of real containers between the laboratory's hosts, with real clients."""

from .settings import Settings
from .site import Site, SiteError
from .trial import Trial, run_trial

__all__ = ["Settings", "Site", "SiteError", "Trial", "run_trial"]
