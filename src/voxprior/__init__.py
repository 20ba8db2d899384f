"""voxprior: which self-supervised pretraining saves voxel labels."""
