"""What makes regions of photos: the grid, detectors, backbones, and the loop that writes a region store."""
