"""The command line: `lossd-client qa`."""

import argparse
import signal
import sys

from lossd_client._version import __version__

_NEEDED = frozenset({"PIL", "yaml", "rich"})


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; its exit status."""
    parser = argparse.ArgumentParser(prog="lossd-client", description="A client of lossd.")
    parser.add_argument("--version", action="version", version=f"lossd-client {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    qa = commands.add_parser("qa", help="rank annotated images by how doubtful they are")
    try:
        from lossd_client.qa.command import describe, run  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        sys.stderr.write(
            f"lossd-client: qa needs {error.name}; "
            "install it with: pip install 'lossd-client[qa]'\n"
        )
        return 2
    describe(qa)
    return run(parser.parse_args(arguments))


def entry() -> None:
    """The `lossd-client` command."""
    if hasattr(signal, "SIGPIPE"):
        # A pipe that closes early (lossd-client qa … | head) is not an error worth a traceback.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())


if __name__ == "__main__":
    entry()
