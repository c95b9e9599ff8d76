"""Video Learning: from an mp4 file to a multi-GPU V-JEPA run.

Nothing is imported here, so that each module can be loaded alone; CONTRIBUTING.md and the book's
API reference list them. One name is found when it is asked for: `vidlearn.load_pretrained`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load_pretrained":
        raise AttributeError(f"module 'vidlearn' has no attribute {name!r}")
    return import_module("vidlearn.pretrained").load_pretrained
