"""Video Learning: from an mp4 file to a multi-GPU V-JEPA run.

Nothing is imported here, so that each module can be read, tested and loaded alone:
`from vidlearn.decode import frames_at`. The modules, in the order in which data flows, are
listed in CONTRIBUTING.md and in the book's API reference. One name is found here when it is
asked for: `vidlearn.load_pretrained`, which reads published weights.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load_pretrained":
        raise AttributeError(f"module 'vidlearn' has no attribute {name!r}")
    return import_module("vidlearn.pretrained").load_pretrained
