"""The command line: `lossd serve`, `lossd losses`, `lossd warmup`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
from types import FrameType

from pydantic import ValidationError
from pydantic_settings import CliApp
from rich.console import Console

from lossd import __version__
from lossd.settings import Settings
from lossd.tracing import NOT_TRACED, Tracing


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; its exit status."""
    parser = argparse.ArgumentParser(prog="lossd", description="A loss daemon.")
    parser.add_argument("--version", action="version", version=f"lossd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer over HTTP until told to stop", add_help=False)
    commands.add_parser("warmup", help="compile the kernels into the cache", add_help=False)
    losses = commands.add_parser("losses", help="list the losses, or describe one")
    losses.add_argument("name", nargs="?", help="a loss or an alias")
    # Options of serve and warmup are the settings, read by pydantic-settings.
    known, rest = parser.parse_known_args(arguments)
    # An idle OpenMP worker that spins costs its neighbours a processor; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if known.command == "losses":
        if rest:
            parser.error(f"unknown option {rest[0]}")
        return _losses(known.name)
    try:
        settings = CliApp.run(Settings, cli_args=rest)
    except ValidationError as error:
        return _refuse_settings(error)
    return _serve(settings) if known.command == "serve" else _warmup(settings)


def _serve(settings: Settings) -> int:
    if not _is_loopback(settings.host) and not settings.allow_anonymous:
        sys.stderr.write(
            f"lossd: {settings.host} can be reached from elsewhere and no key would be asked for; "
            "listen on 127.0.0.1 or say --allow-anonymous\n"
        )
        return 2
    try:
        tracing = _open_tracing(settings)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"lossd: --tracing {settings.tracing} needs {error.name}; "
            "install it with: pip install 'lossd[telemetry]'\n"
        )
        return 2
    # torch takes seconds to import, which other commands need not wait for.
    import uvicorn  # noqa: PLC0415

    from lossd.app import create_app  # noqa: PLC0415
    from lossd.engine import Engine  # noqa: PLC0415
    from lossd.logs import configure_logs  # noqa: PLC0415

    configure_logs(settings)
    engine = Engine(settings, tracing)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Not uvicorn's own, which dies of the signal after all was drained: that is no failure.
            del frame
            engine.announce_drain()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    config = uvicorn.Config(
        create_app(settings, engine),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        loop="asyncio",  # with bodies of megabytes it receives faster than uvloop
        http="httptools",
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        server_header=False,
    )
    server = Server(config)

    def end_process() -> None:
        server.should_exit = True

    engine.on_failure = end_process
    try:
        server.run()
    finally:
        tracing.close()
    return 1 if engine.state == "failed" else 0


def _open_tracing(settings: Settings) -> Tracing:
    """What the setting names.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if settings.tracing == "off":
        return NOT_TRACED
    from lossd.spans import export_spans  # noqa: PLC0415 - an extra that may not be installed

    return export_spans()


def _warmup(settings: Settings) -> int:
    import torch  # noqa: PLC0415 - as in _serve

    from lossd.core import compiled  # noqa: PLC0415
    from lossd.engine import choose_device  # noqa: PLC0415
    from lossd.logs import configure_logs  # noqa: PLC0415

    configure_logs(settings)
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    if compiled.choose_mode(device) == "eager":
        sys.stderr.write("lossd: there is no C++ compiler; the kernels will run eagerly\n")
        return 1
    cache = compiled.cache_folder(settings.cache_dir, device)
    if settings.cache_seed_dir is not None:
        compiled.seed_cache(cache, settings.cache_seed_dir)
    compiled.compile_kernels(device, cache)
    return 0


def _losses(name: str | None) -> int:
    from lossd.catalogue import describe  # noqa: PLC0415 - as in _serve
    from lossd.listing import print_loss, print_losses  # noqa: PLC0415
    from lossd_client.errors import UnknownLossError  # noqa: PLC0415

    console = Console()
    if name is None:
        print_losses(console)
        return 0
    try:
        print_loss(console, describe(name))
    except UnknownLossError as error:
        sys.stderr.write(f"lossd: {error}\n")
        return 1
    return 0


def _refuse_settings(error: ValidationError) -> int:
    for entry in error.errors(include_url=False):
        name = str(entry["loc"][0])
        flag, variable = f"--{name.replace('_', '-')}", f"LOSSD_{name.upper()}"
        sys.stderr.write(f"lossd: {flag} ({variable}): {entry['msg']}, got {entry['input']!r}\n")
    return 2


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def entry() -> None:
    """The `lossd` command."""
    # A pipe that closes early (lossd losses | head) is not an error worth a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())


if __name__ == "__main__":
    entry()
