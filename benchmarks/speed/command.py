"""Question 7: seconds until ``curerec --help`` answers, modules that it loads, and the demo's peak memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

from common import alternating, done, options, write


def main() -> None:
    """Two rows."""
    parser = options(__doc__ or "")
    parser.add_argument("--demo", action="store_true", help="run the demo for its peak memory (minutes)")
    args = parser.parse_args()
    help_ = [sys.executable, "-c", "from curerec.cli import main; main()", "--help"]
    key: dict[str, object] = {"question": "command", "what": "help"}
    if not done(args.results, key):
        run = {"help": lambda: subprocess.run(help_, check=True, capture_output=True)}
        run["python"] = lambda: subprocess.run([sys.executable, "-c", ""], check=True, capture_output=True)
        write(args.results, key, {"seconds": alternating(run, 1 if args.tiny else args.repeats)}, args.note)
    key = {"question": "command", "what": "demo"}
    if args.demo and not done(args.results, key):
        with tempfile.TemporaryDirectory() as folder:
            command = [*help_[:-1], "demo", "--out", f"{folder}/demo"]
            subprocess.run(command, check=True, capture_output=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        write(args.results, key, {"peak_bytes": peak}, args.note)


if __name__ == "__main__":
    main()
