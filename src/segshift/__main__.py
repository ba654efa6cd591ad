"""The entry of the command line: exit codes, and nothing that takes time to import.

0 done, 1 finished with frames that failed (listed), 2 wrong input, 70 a defect of segshift, 130 interrupted
by Ctrl-C, 143 ended by SIGTERM (`execution.draining`): what was in hand is finished, the next start goes on.
Under torchrun, which stops all processes when one ends in another code than 0, failed frames are listed and
the code is 0.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED, STOPPED = 130, 143
CONTINUE = {
    INTERRUPTED: "interrupted: run the same command again to continue",
    STOPPED: "asked to end: run the same command again to continue",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` without the program's name, None for those of the
    process.
    """
    try:
        from segshift.commands import run_command

        return run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print(CONTINUE[INTERRUPTED], file=sys.stderr)
        return INTERRUPTED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # as rich ends it
            return 0
        if error.code != STOPPED:
            raise
        from segshift import execution

        if execution.current().first:  # one line, not one of each process
            print(CONTINUE[STOPPED], file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # nobody reads on, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def script() -> None:
    """What the installed command starts."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as by nohup
        signal.signal(signal.SIGINT, _interrupt)
    code = main()
    if code in CONTINUE:  # without waiting for threads that read or write ahead
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _leave(_number: int, frame: FrameType | None) -> None:
    """A scheduler's request to end, where no stage drains: unfinished files are removed on the way out."""
    _leave_an_import(frame, STOPPED)
    raise SystemExit(STOPPED)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Ctrl-C."""
    _leave_an_import(frame, INTERRUPTED)
    raise KeyboardInterrupt


def _leave_an_import(frame: FrameType | None, code: int) -> None:
    """End the process at once where it imports something: an exception inside the initialisation of a C
    extension would abort it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, f"{CONTINUE[code]}\n".encode())
            os._exit(code)
        frame = frame.f_back


if __name__ == "__main__":
    script()
