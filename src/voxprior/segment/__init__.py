"""The segmentation network and tiled inference."""
