"""Video Learning: from an mp4 file to a multi-GPU V-JEPA run.

Nothing is imported here, so that each module can be read, tested and loaded alone:
`from vidlearn.decode import frames_at`. The modules, in the order in which data flows, are
listed in CONTRIBUTING.md and in the book's API reference.
"""

__version__ = "0.1.0"
