"""FILE -> FILE: parts, manifest, resume, shards, clusters."""
