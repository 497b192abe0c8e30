"""`featx` and `python -m featx`: Ctrl-C ends them from the first moment on, while the command line is imported too."""

from __future__ import annotations

import os
import signal


def main() -> None:
    if (before := signal.getsignal(signal.SIGINT)) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing is open yet
    from featx.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
