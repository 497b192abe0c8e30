"""`featx` and `python -m featx`: Ctrl-C ends them at any time, also while the command line is being imported."""

from __future__ import annotations

import os
import signal


def main() -> None:
    if was_default := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no file is open yet
    from featx.cli import main as run

    if was_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:  # no traceback if Ctrl-C comes while Python ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
