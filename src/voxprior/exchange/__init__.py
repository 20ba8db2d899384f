"""Other projects' formats: their checkpoints, data folders and model packages, in and out."""
