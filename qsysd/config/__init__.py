"""YAML and plain mappings ↔ model, with all errors at once."""
