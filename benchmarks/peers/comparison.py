"""Starts the systems, checks their answers, loads them in turns."""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.peers import environments
from benchmarks.peers.cases import CASES, Case
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.frame import Answer
from benchmarks.peers.measurements import Measurement, measured
from benchmarks.peers.processes import CONNECTIONS, Server, Start, Turn, started
from benchmarks.peers.reference import WrongAnswerError, check, reference
from benchmarks.peers.servers import settings
from benchmarks.peers.systems import LOSSD, System

_QUICK_SHARE = 0.3

Measurements = Mapping[str, Mapping[str, Measurement]]
"""By case, then by system."""


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    environments: Path
    peers: Sequence[System]
    cores: Sequence[settings.Core]
    threads: int
    rounds: int
    kernels: str
    quick: bool

    def cases(self) -> list[Case]:
        """The cases; shorter if it has to be quick."""
        share = _QUICK_SHARE if self.quick else 1.0
        return [replace(case, seconds=case.seconds * share) for case in CASES]


@dataclass(frozen=True)
class Refusal:
    """A system that could not be compared."""

    system: str
    core: settings.Core
    reason: str


@dataclass
class Comparison:
    """Everything that was seen."""

    cases: Sequence[Case]
    measurements: dict[settings.Core, Measurements] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    first_errors: dict[str, str] = field(default_factory=dict)
    """By system and core: the first that was not an answer 200."""
    versions: dict[str, str] = field(default_factory=dict)


def compare(options: Options, say: Callable[[str], None]) -> Comparison:
    """All systems with all cases: with each core behind the peers.

    Args:
        options: what to compare.
        say: told what goes on.

    Raises:
        UnavailableError: lossd itself does not start.
        WrongAnswerError: lossd itself answers wrongly.
    """
    seen = Comparison(options.cases())
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as name:
        trial = _Trial(options, seen, Path(name), say)
        with ExitStack() as stack:
            lossd = trial.open(LOSSD, Path(sys.executable), "lossd", stack)
            for core in options.cores:
                with ExitStack() as peers:
                    servers = [lossd, *trial.open_peers(core, peers)]
                    seen.measurements[core] = trial.measure(servers)
    return seen


class _Trial:
    """One comparison under way."""

    def __init__(
        self, options: Options, seen: Comparison, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._seen = seen
        self._folder = folder
        self._say = say
        self._samples = {case.name: case.samples() for case in seen.cases}
        self._references = {
            name: [reference(sample) for sample in samples]
            for name, samples in self._samples.items()
        }

    def open_peers(self, core: settings.Core, stack: ExitStack) -> list[Server]:
        """Those peers that can be installed, start, and answer rightly."""
        servers = []
        for system in self._options.peers:
            try:
                python = environments.prepare(self._options.environments, system)
                if core == "lossd":
                    environments.add_lossd(python, system)
                servers.append(self._open_alone(system, python, core, stack))
            except (UnavailableError, WrongAnswerError) as error:
                self._say(f"{system.name} with {core}: left out, {error}")
                self._seen.refusals.append(Refusal(system.name, core, str(error)))
        return servers

    def open(self, system: System, python: Path, core: settings.Core, stack: ExitStack) -> Server:
        """A server that has answered every case rightly; the stack stops it.

        Raises:
            UnavailableError: it does not start.
            WrongAnswerError: an answer is wrong.
        """
        self._say(f"{system.name} with {core}: starting")
        start = Start(system, python, core, self._options.threads, self._options.kernels)
        home = self._folder / f"{system.name}-{core}"
        home.mkdir()
        server = stack.enter_context(started(start, home))
        found = environments.versions(python, system.distribution, "torch", "numpy")
        self._seen.versions |= {
            f"{system.name} {name}".replace(
                f"{system.name} {system.distribution}", system.name
            ): version
            for name, version in found.items()
        }
        server.wait(self._requests(server, self._seen.cases[0]))
        for case in self._seen.cases:
            self._check(server, case)
        server.pause()
        return server

    def measure(self, servers: Sequence[Server]) -> Measurements:
        """Every server with every case, in turns."""
        turns: defaultdict[str, defaultdict[str, list[Turn]]]
        turns = defaultdict(lambda: defaultdict(list))
        for number in range(self._options.rounds):
            for case in self._seen.cases:
                self._say(f"round {number + 1} of {self._options.rounds}: {case.name}")
                # Another one first in every round, so that none is always after the same one.
                first = number % len(servers)
                for server in [*servers[first:], *servers[:first]]:
                    folder = self._requests(server, case)
                    with server.awake():
                        turn = server.load(folder, seconds=case.seconds)
                    turns[case.name][server.system.name].append(turn)
                    self._note(server, turn)
        return {
            case.name: {
                system: measured(own, connections=CONNECTIONS, seconds=case.seconds)
                for system, own in turns[case.name].items()
            }
            for case in self._seen.cases
        }

    def _open_alone(
        self, system: System, python: Path, core: settings.Core, stack: ExitStack
    ) -> Server:
        """Likewise, and stopped at once if it is left out."""
        with ExitStack() as own:
            server = self.open(system, python, core, own)
            stack.push(own.pop_all())
        return server

    def _requests(self, server: Server, case: Case) -> Path:
        """Folder of a case's requests as the server takes them."""
        folder = self._folder / server.system.name / case.name
        if not folder.exists():
            folder.mkdir(parents=True)
            for number, sample in enumerate(self._samples[case.name]):
                content = server.system.wire.request(sample)
                (folder / f"{number}.request").write_bytes(content)
        return folder

    def _check(self, server: Server, case: Case) -> None:
        folder = self._requests(server, case)
        turn = server.ask_each(folder)
        if turn.errors:
            raise UnavailableError(f"{case.name}: {turn.first_error}")
        for number, expected in enumerate(self._references[case.name]):
            try:
                check(self._answer(server, folder, number), expected)
            except (WrongAnswerError, LookupError, ValueError) as error:
                raise WrongAnswerError(f"{case.name}: {error}") from error

    def _answer(self, server: Server, folder: Path, number: int) -> Answer:
        head, body = (folder / f"{number}.{part}" for part in ("head", "body"))
        return server.system.wire.decode(head.read_bytes(), body.read_bytes())

    def _note(self, server: Server, turn: Turn) -> None:
        if turn.errors:
            self._seen.first_errors.setdefault(
                f"{server.system.name} with {server.core}", turn.first_error
            )
