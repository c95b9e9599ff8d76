"""Many processes as one run: who is who, who is dead or hung, what many give (chapter 3).

`launchers` reads the environment, `group` joins the processes, `watch` looks after them, `scaling`
predicts. Traded: a name is loaded when it is asked for, since torch takes two seconds to load and
`vidlearn plan --help` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidlearn.dist.group import Dist, agree, init_distributed, shutdown
    from vidlearn.dist.launchers import find_place, first_host, tasks_per_node
    from vidlearn.dist.watch import Watch, clock, shares

_HOMES = {
    "group": ("Dist", "agree", "init_distributed", "shutdown"),
    "launchers": ("find_place", "first_host", "tasks_per_node"),
    "watch": ("Watch", "clock", "shares"),
}
__all__ = [
    "Dist", "Watch", "agree", "clock", "find_place", "first_host", "init_distributed", "shares",
    "shutdown", "tasks_per_node",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"vidlearn.dist.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
