"""Manifests: what `blobstore pack` reads and `blobstore unpack` writes."""
