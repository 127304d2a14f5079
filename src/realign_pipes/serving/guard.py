"""Runs a server, and ends it with all its processes when the process that asked for it ends, however that ends.

    python -m realign_pipes.serving.guard <process id of who asks> <command of the server>

vLLM starts processes of its own, which would outlive a kill of its first one and keep the GPU's memory. All of them are
in one process group, so the guard can end them together. It looks for the process that asked instead of waiting for a
word from it: `kill -9` leaves no time for one.
"""

import os
import signal
import subprocess
import sys
import time

from realign_pipes.runtime.processes import end_with_parent

INTERVAL = 0.2
"""Seconds between two looks."""
GRACE = 20.0
"""Seconds that the server's processes have to end by themselves, and to clear what they keep in shared memory."""


def main() -> None:
    """Run the server until it ends, the process that asked ends, or SIGTERM comes; then end the whole group."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    asked_to_end = False

    def ask_to_end(number: int, frame: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    signal.signal(signal.SIGTERM, ask_to_end)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},  # that is for us
        process_group=0,
        preexec_fn=end_with_parent,  # noqa: PLW1509  this process has one thread
    )
    while server.poll() is None and os.getppid() == parent and not asked_to_end:
        time.sleep(INTERVAL)
    server.terminate()  # its first process ends the others; this does nothing to a process that has ended
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and _is_alive(server):
        time.sleep(INTERVAL)
    if _is_alive(server):
        print(f"vLLM did not end within {GRACE:.0f} s, so it is killed", file=sys.stderr, flush=True)
        os.killpg(server.pid, signal.SIGKILL)


def _is_alive(server: subprocess.Popen[bytes]) -> bool:
    """Whether the server's group has a process left."""
    server.poll()  # so that its first process counts no more once it has ended
    try:
        os.killpg(server.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
