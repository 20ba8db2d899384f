"""Scans from their source to a chunked cache, a split and a stream of regions."""
