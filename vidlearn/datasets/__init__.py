"""Where videos are and what they are called: manifests, folders, and the table of public sets.

Input: a folder, a manifest or a published list. Output: a Manifest of rows. Traded: see the
modules. Taught in the chapter "Video datasets and what they cost".
"""

from vidlearn.datasets.cost import parts_ms, pictures_to_decode, plan, upkeep
from vidlearn.datasets.files import read_manifest, write_manifest
from vidlearn.datasets.folder import folder_manifest, open_data
from vidlearn.datasets.manifest import Manifest, Row
from vidlearn.datasets.quarantine import Quarantine, deadly
from vidlearn.datasets.shuffle import shuffled
from vidlearn.datasets.specs import COLUMN_NOTES, SPECS, Cell, DatasetSpec, table

__all__ = [
    "COLUMN_NOTES",
    "SPECS",
    "Cell",
    "DatasetSpec",
    "Manifest",
    "Quarantine",
    "Row",
    "deadly",
    "folder_manifest",
    "open_data",
    "parts_ms",
    "pictures_to_decode",
    "plan",
    "read_manifest",
    "shuffled",
    "table",
    "upkeep",
    "write_manifest",
]
