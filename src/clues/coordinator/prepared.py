"""What the coordinator has made of public rows for a score request, kept until the silos have answered.

Silos may take hours. Whoever starts the coordinator again meanwhile does not score anchors, and their
damaged copies, once more.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from clues.atomic import atomic_write_bytes, make_folder, read_bytes
from clues.errors import CluesError
from clues.selection.weighing import Controls
from clues.wall.messages import ScoreRequest, from_bytes

Prepared = tuple[ScoreRequest, Controls | None]


@dataclass(frozen=True)
class Kept:
    """Where it lies.

    Attributes:
        folder: of the coordinator, for this alone.
        key: hash of all that it depends on.
    """

    folder: Path
    key: str

    def of(self, domain: str, *, recipe_hash: str, compute: Callable[[], Prepared]) -> Prepared:
        """A domain's request and damaged copies, from an earlier call where that was made of the same.

        Args:
            domain: whose public rows.
            recipe_hash: what the request is to carry; another rule for the threshold changes it and
                nothing else.
            compute: does the work.
        """
        found = self._read(domain)
        if found is None:
            found = compute()
            self._write(domain, *found)
        request, controls = found
        return replace(request, recipe_hash=recipe_hash), controls

    def forget(self) -> None:
        """Remove all of it."""
        for path in self.folder.glob("*"):
            path.unlink()

    def _places(self, domain: str) -> tuple[Path, Path]:
        name = f"{self.key}-{domain}"
        return self.folder / f"{name}.clues", self.folder / f"{name}.json"

    def _read(self, domain: str) -> Prepared | None:
        message, copies = self._places(domain)
        if not message.exists():
            return None
        try:
            data = read_bytes(message)
            request = from_bytes(
                data, allowed={ScoreRequest.kind: ScoreRequest}, sender=str(message)
            )
            content = json.loads(read_bytes(copies))
            return request, None if content is None else Controls.from_json(content)
        except (CluesError, ValueError, KeyError, TypeError, AttributeError):
            # Half-written or damaged: made again.
            return None

    def _write(self, domain: str, request: ScoreRequest, controls: Controls | None) -> None:
        message, copies = self._places(domain)
        make_folder(self.folder)
        # The message last: where it lies, both do.
        content = None if controls is None else controls.to_json()
        atomic_write_bytes(copies, json.dumps(content).encode())
        atomic_write_bytes(message, request.to_bytes())
