"""parameters_push.yml: where trained checkpoints are uploaded."""

from typing import Annotated

from pydantic import Field

from realign_pipes.errors import InputError
from realign_pipes.runtime.parameters import Parameters


class Push(Parameters):
    """parameters_push.yml: where trained checkpoints are uploaded."""

    to_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None
    """A repository on the hub, `org/name`. It is made if there is none, and is private then."""
    only: str | None
    """The name of one checkpoint, such as trra-1.5 or inra; null: all of them."""

    def repository(self) -> str:
        """`to_hub`. InputError if it is not given."""
        if self.to_hub is None:
            raise InputError("push.to_hub does not say where to upload: kedro run --pipelines push "
                             "--params push.to_hub=org/name")  # fmt: skip
        return self.to_hub
