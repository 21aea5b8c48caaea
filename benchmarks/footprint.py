"""The memory of another process, as Linux tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

_KIB: Final = 1 << 10
_FORGET_THE_PEAK: Final = "5"


@dataclass(frozen=True)
class Footprint:
    """A process whose resident memory is watched."""

    pid: int

    def resident_bytes(self) -> int:
        """What is resident now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The most that was resident since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """From now on the peak counts anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text(_FORGET_THE_PEAK, encoding="ascii")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
        return int(next(values)) * _KIB
