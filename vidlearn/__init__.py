"""Video Learning: from an mp4 file to a multi-GPU V-JEPA run."""
