"""The command `omnimix`: a module of its own, because an interrupt may come while the package is still imported."""

import os
import signal
import sys


def main() -> None:
    before = signal.signal(signal.SIGINT, _stop)
    from omnimix.cli import load

    run = load()
    signal.signal(signal.SIGINT, before)
    run()


def _stop(*_: object) -> None:
    """An exception would come out of half an import as whatever that makes of it."""
    sys.stderr.write("omnimix: stopped; nothing has run yet\n")
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
