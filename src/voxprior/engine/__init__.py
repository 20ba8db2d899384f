"""One training loop, its state, its journal, its device."""
