"""Start the program: allocator settings, one line per error, exit codes."""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["main"]

# glibc hands freed memory back page by page, which can cost half of a CPU training's time; these keep it (read at process start)
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
MARK = "MALLOC_TOP_PAD_"  # where it is set, by us or the user, nothing is
HEAVY = {"train", "masks", "generate", "curate", "evaluate", "bench", "demo", "prior", "studio"}


def _line(text: object) -> None:
    sys.stderr.write(f"error: {' '.join(str(text).split())}\n")


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, the machine's or a card's: torch is not imported to know its own error by."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def main() -> None:
    """Run the command line; exit with 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = sys.argv[1:]
    sys.argv[0] = "anomalydiffusion"
    if words and words[0] in HEAVY and sys.platform == "linux" and MARK not in os.environ and "--help" not in words:
        os.environ.update(ALLOCATOR)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "anomalydiffusion", *words])  # the same again, without ./ to import from
    from anomalydiffusion.app.cli import app
    from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError

    debug = "--debug" in words
    try:
        app(standalone_mode=True, prog_name="anomalydiffusion")
    except ConfigError as error:
        if debug:
            raise
        _line(error)
        sys.exit(2)
    except AnomalyDiffusionError as error:
        if debug:
            raise
        _line(error)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, KeyboardInterrupt) or ended.code == 130:
            _line("interrupted; what was made is saved, type the command again to go on")
            sys.exit(130)
        raise
    except OSError as error:
        if debug:
            raise
        advice = {errno.ENOSPC: "make room and type the command again: it goes on where it was",
                  errno.EACCES: "give a folder that you may write to", errno.EROFS: "give a folder that can be written"}  # fmt: skip
        _line(f"{error.filename or 'disk'}: {error.strerror or error}; {advice.get(error.errno or 0, 'nothing already made is lost')}")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if _out_of_memory(error):
            _line("memory ran out; draw fewer at once (--batch-size), in half of it (--dtype bfloat16), or learn with a smaller [train] "
                  "batch_size or its gradient_checkpointing = true; what was made is saved")  # fmt: skip
        else:
            _line(f"a fault of this program, {type(error).__name__}: {error}; what was made is saved; please report what --debug shows")
        sys.exit(1)
