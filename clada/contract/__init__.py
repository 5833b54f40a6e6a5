"""What the exporter and the runtime agree on: artefacts and their files, the manifest, pools, engines' records."""
