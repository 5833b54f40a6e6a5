"""Contract between exporter and runtime: artifacts and their files, the manifest, pools, engine records."""
