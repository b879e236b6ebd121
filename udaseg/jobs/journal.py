"""The phases that are done of a job that has several, so that a resumed one repeats none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from udaseg.data.storage import exists, join, read_bytes, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError


class Journal:
    """What a command's file `<command>.json` in its directory says: the settings, and each phase's time and result.

    Raises ConfigError where the directory holds such a job that is not to be resumed, or is of other settings.
    """

    def __init__(self, out: str, command: str, settings: Mapping[str, Any], resume: bool) -> None:
        self._uri = join(out, f"{command}.json")
        settings = json.loads(json.dumps(settings))
        self._content: dict[str, Any] = {"settings": settings, "phases": {}}
        if exists(self._uri):
            if not resume:
                raise ConfigError(f"{out}: exists; go on with it by --resume, or choose another --out")
            self._content = json.loads(read_bytes(self._uri))
            theirs = self._content["settings"]
            if changed := [name for name in settings if theirs.get(name) != settings[name]]:
                raise ConfigError(f"{out}: was begun with other settings ({', '.join(changed)}); choose another --out")

    def phase(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do the work unless it is done; returns its result, which JSON can hold."""
        phases = self._content["phases"]
        if name not in phases:
            print(f"== {name}", flush=True)
            start = time.monotonic()
            result = json.loads(dump_json(work(*arguments)))  # as a resumed job reads it
            phases[name] = {"seconds": round(time.monotonic() - start, 2), "result": result}
            write_bytes(self._uri, dump_json(self._content).encode())
        print(f"== {name}: done in {phases[name]['seconds']:.1f} s", flush=True)
        return phases[name]["result"]

    def seconds(self) -> dict[str, float]:
        """Wall time per phase."""
        return {name: entry["seconds"] for name, entry in self._content["phases"].items()}
