"""`featx` and `python -m featx`: Ctrl-C ends them at any time, also while the command line is being imported."""

from __future__ import annotations

import atexit
import os
import signal
import sys

INTERRUPTED = 130  # the exit code of programs that Ctrl-C ended


def main() -> None:
    if was_default := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # no file is open yet
    code: object = 0

    def end() -> None:
        # Python would end by the signal, not with this code, if a library's C code had seen the KeyboardInterrupt
        if code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)

    atexit.register(end)  # the first to be registered is the last to run
    from featx.cli import main as run

    if was_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise SystemExit(code) from None
    except SystemExit as error:
        code = error.code
        raise
    finally:  # no traceback if Ctrl-C comes while Python ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
