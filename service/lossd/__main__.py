"""The command line: `lossd serve`, `lossd keys`, `lossd losses`, `lossd warmup`."""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from pydantic import ValidationError
from pydantic_settings import CliApp
from rich.console import Console
from rich.table import Table

from lossd import __version__
from lossd.callers import Allowance
from lossd.keys import NAME_PATTERN, KeysError, add_key, limit_key, read_keys, revoke_key
from lossd.settings import Settings
from lossd.tracing import NOT_TRACED, Tracing

_DEFAULT = "default"
_YOUNG_OBJECTS = 10_000
"""How many more containers there may be before the garbage collector looks through them."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; its exit status."""
    parser = argparse.ArgumentParser(prog="lossd", description="A loss daemon.")
    parser.add_argument("--version", action="version", version=f"lossd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer over HTTP until told to stop", add_help=False)
    commands.add_parser("warmup", help="compile the kernels into the cache", add_help=False)
    losses = commands.add_parser("losses", help="list the losses, or describe one")
    losses.add_argument("name", nargs="?", help="a loss or an alias")
    _describe_keys(commands.add_parser("keys", help="keys of callers: add, limit, list, revoke"))
    # Options of serve and warmup are the settings, read by pydantic-settings.
    known, rest = parser.parse_known_args(arguments)
    # An idle OpenMP worker that spins costs its neighbours a processor; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if known.command in ("losses", "keys"):
        if rest:
            parser.error(f"unknown option {rest[0]}")
        return _losses(known.name) if known.command == "losses" else _keys(known)
    try:
        settings = CliApp.run(Settings, cli_args=rest)
    except ValidationError as error:
        return _refuse_settings(error)
    return _serve(settings) if known.command == "serve" else _warmup(settings)


def _serve(settings: Settings) -> int:
    from lossd.loopback import is_loopback  # noqa: PLC0415 - as below

    keyless = settings.keys_file is None and not settings.allow_anonymous
    if keyless and not is_loopback(settings.host):
        sys.stderr.write(
            f"lossd: {settings.host} can be reached from elsewhere and no key would be asked for; "
            "name a --keys-file, listen on 127.0.0.1 or say --allow-anonymous\n"
        )
        return 2
    try:
        _check_grpc(settings)
        tracing = _open_tracing(settings)
    except ModuleNotFoundError as error:
        return _refuse_extra(error, settings)
    # torch takes seconds to import, which other commands need not wait for.
    from lossd.app import create_app  # noqa: PLC0415
    from lossd.engine import Engine  # noqa: PLC0415
    from lossd.http_protocol import HttpServer, http_config  # noqa: PLC0415
    from lossd.logs import configure_logs  # noqa: PLC0415

    engine = Engine(settings, tracing)
    try:
        app = create_app(settings, engine)
    except KeysError as error:
        sys.stderr.write(f"lossd: --keys-file (LOSSD_KEYS_FILE): {error}\n")
        return 2
    configure_logs(settings)

    class Server(HttpServer):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Not uvicorn's own, which dies of the signal after all was drained: that is no failure.
            del frame
            engine.announce_drain()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    server = Server(http_config(app, settings))

    def end_process() -> None:
        server.should_exit = True

    engine.on_failure = end_process
    engine.on_prepared = _settle_memory
    # A caller who hangs up in the middle of an answer must fail that write, not end the process.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        server.run()
    finally:
        tracing.close()
    return 1 if engine.state == "failed" else 0


def _settle_memory() -> None:
    """Takes modules and kernels out of what the garbage collector looks through again and again.

    What requests leave behind in circles is little, and waits for more of its like.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def _refuse_extra(error: ModuleNotFoundError, settings: Settings) -> int:
    extra = "grpc" if error.name == "grpc" else "telemetry"
    flag = "--grpc-port" if error.name == "grpc" else f"--tracing {settings.tracing}"
    sys.stderr.write(
        f"lossd: {flag} needs {error.name}; install it with: pip install 'lossd[{extra}]'\n"
    )
    return 2


def _check_grpc(settings: Settings) -> None:
    """Looks for what the other door needs, before anything is started.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if settings.grpc_port is not None and find_spec("grpc") is None:
        raise ModuleNotFoundError(name="grpc")


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

    from lossd.core.compiled import choose_mode  # noqa: PLC0415
    from lossd.kernels import choose_device, load_find, load_kernels  # noqa: PLC0415
    from lossd.logs import configure_logs  # noqa: PLC0415

    configure_logs(settings)
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    if choose_mode(device) == "eager":
        sys.stderr.write("lossd: there is no C++ compiler; the kernels will run eagerly\n")
        return 1
    load_kernels(settings, device, "compiled")
    load_find(settings, device, "compiled")
    return 0


def _describe_keys(parser: argparse.ArgumentParser) -> None:
    file = argparse.ArgumentParser(add_help=False)
    variable = os.environ.get("LOSSD_KEYS_FILE")
    file.add_argument(
        "--keys-file",
        type=Path,
        default=variable,
        required=variable is None,
        help="file of keys; LOSSD_KEYS_FILE if not given",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    options = _allowance_options()
    add = actions.add_parser(
        "add", parents=[file, options], help="make a key and print it, only this once"
    )
    add.add_argument("name", type=_key_name, help="whose it is: a-z, 0-9 and -, at most 40")
    limit = actions.add_parser(
        "limit", parents=[file, options], help="change what the owner of a key may use"
    )
    limit.add_argument("name", help="its name or id")
    actions.add_parser("list", parents=[file], help="name, id, day and allowance of every key")
    revoke = actions.add_parser("revoke", parents=[file], help="refuse a key from now on")
    revoke.add_argument("name", help="its name or id")


def _allowance_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = options.add_argument_group(
        "what the owner may use", f"{_DEFAULT} takes a number away: what holds for all holds again"
    )
    for name, field in Allowance.model_fields.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=partial(_allowance_value, name),
            metavar="N",
            help=field.description,
        )
    return options


def _allowance_value(name: str, text: str) -> float | None:
    if text == _DEFAULT:
        return None
    try:
        allowance = Allowance.model_validate({name: text})
    except ValidationError as error:
        msg = f"{error.errors()[0]['msg']}, got {text!r}"
        raise argparse.ArgumentTypeError(msg) from error
    value: float = allowance.model_dump()[name]
    return value


def _changed(allowance: Allowance, known: argparse.Namespace) -> Allowance:
    """What is allowed after the options; those not given change nothing."""
    options = {name: said for name, said in vars(known).items() if name in Allowance.model_fields}
    values = allowance.model_dump(exclude_defaults=True) | options
    return Allowance(**{name: value for name, value in values.items() if value is not None})


def _key_name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        msg = f"{text!r} is not 1 to 40 of a-z, 0-9 and -"
        raise argparse.ArgumentTypeError(msg)
    return text


def _keys(known: argparse.Namespace) -> int:
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "add": _add_key,
        "limit": _limit_key,
        "list": _list_keys,
        "revoke": _revoke_key,
    }
    try:
        actions[known.action](known)
    except KeysError as error:
        sys.stderr.write(f"lossd: {error}\n")
        return 1
    return 0


def _add_key(known: argparse.Namespace) -> None:
    key = add_key(known.keys_file, known.name, _changed(Allowance(), known))
    sys.stderr.write(f"lossd: this is the key of {known.name}; it is shown only now\n")
    sys.stdout.write(f"{key}\n")


def _limit_key(known: argparse.Namespace) -> None:
    key = limit_key(known.keys_file, known.name, lambda allowance: _changed(allowance, known))
    sys.stderr.write(f"lossd: {key.name} ({key.id}) may use: {_said(key.allowance)}\n")


def _list_keys(known: argparse.Namespace) -> None:
    table = Table("name", "id", "created", "allowance", box=None, pad_edge=False)
    for key in read_keys(known.keys_file).keys:
        table.add_row(key.name, key.id, key.created.isoformat(), _said(key.allowance))
    Console().print(table)


def _said(allowance: Allowance) -> str:
    said = allowance.model_dump(exclude_defaults=True)
    return ", ".join(f"{name} {value}" for name, value in said.items()) or _DEFAULT


def _revoke_key(known: argparse.Namespace) -> None:
    key = revoke_key(known.keys_file, known.name)
    sys.stderr.write(f"lossd: the key {key.name} ({key.id}) is revoked\n")


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


def entry() -> None:
    """The `lossd` command."""
    # A pipe that closes early (lossd losses | head) is not an error worth a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())


if __name__ == "__main__":
    entry()
