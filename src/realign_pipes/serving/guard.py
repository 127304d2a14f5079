"""Runs a server, and ends it with all its processes when the process that asked for it ends, however it ends.

    python -m realign_pipes.serving.guard <process id of who asks> <command of the server>

vLLM starts processes of its own, which a kill of its first one would leave running, with the GPU's memory. All of them
stay in the process group of this guard, which kills the group as the last thing it does. It looks for the process that
asked instead of trusting it to say goodbye: nobody says goodbye after `kill -9`.
"""

import os
import signal
import subprocess
import sys
import time

from realign_pipes.runtime.processes import end_with_parent

INTERVAL = 0.2
"""Seconds between two looks."""
GRACE = 20
"""Seconds that the server has to end by itself, and to remove what it keeps in shared memory."""


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    asked_to_end = False

    def ask_to_end(number: int, frame: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    signal.signal(signal.SIGTERM, ask_to_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
    while server.poll() is None and os.getppid() == parent and not asked_to_end:
        time.sleep(INTERVAL)
    server.terminate()  # does nothing to one that has ended
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        print(f"vLLM did not end within {GRACE} s and is killed", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
