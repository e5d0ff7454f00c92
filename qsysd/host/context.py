"""The host on which operations work."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from qsysd import paths
from qsysd.errors import RUN_AS_ROOT, HostError, QsysdError
from qsysd.host.progress import Progress
from qsysd.paths import Scope
from qsysd.store import Store
from qsysd.systemd import Systemd

if TYPE_CHECKING:
    from qsysd.images.catalog import Images


class Host:
    """One scope of one host: its systemd, definitions and images, and the receiver of progress."""

    def __init__(
        self,
        scope: Scope | None = None,
        *,
        systemd: Systemd | None = None,
        store: Store | None = None,
        images: Images | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.scope = scope or Scope()
        self.systemd = systemd or Systemd()  # connects at its first call
        self.store = store or Store(self.scope)
        self.progress = progress or Progress()
        self._images = images

    @cached_property
    def images(self) -> Images:
        """The base images."""
        if self._images is not None:
            return self._images
        # A seam: few verbs use images, and the package is large.
        from qsysd.images.catalog import Images

        return Images(self.scope)

    def require_root(self) -> None:
        """Raise QsysdError for every user except root."""
        if os.geteuid() != 0:
            raise QsysdError("root privileges are required", hint=RUN_AS_ROOT)

    def require_ready(self) -> None:
        """Raise QsysdError for every user except root, and HostError on a host that is not set up."""
        self.require_root()
        unit = os.path.join(self.scope.unit_dir, paths.UNIT_TEMPLATE)
        if not os.path.exists(unit):
            raise HostError(f"this host is not set up: {unit} does not exist", hint="qsysd setup")
