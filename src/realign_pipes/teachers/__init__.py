"""Where the fused teacher's hidden states come from: both models at every step, or a cache on disk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realign_pipes.teachers.signals import OnlineTeacher

__all__ = ["OnlineTeacher"]


def __getattr__(name: str) -> Any:
    """Imports torch only when it is needed: Kedro reads `teachers.parameters` when it starts."""
    if name != "OnlineTeacher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from realign_pipes.teachers.signals import OnlineTeacher

    return OnlineTeacher
