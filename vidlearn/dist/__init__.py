"""Many processes as one run: who is who, who is dead or hung, what their time goes to (chapter 3).

`launchers` reads the environment, `group` joins the processes, `watch` looks after them.
"""

from vidlearn.dist.group import Dist, agree, init_distributed, shutdown
from vidlearn.dist.launchers import find_place, first_host, tasks_per_node
from vidlearn.dist.watch import Watch, clock, shares

__all__ = [
    "Dist", "Watch", "agree", "clock", "find_place", "first_host", "init_distributed", "shares",
    "shutdown", "tasks_per_node",
]  # fmt: skip
