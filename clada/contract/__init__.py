"""Contract between exporter and runtime: artefacts and their files, the manifest, pools, engine records."""
