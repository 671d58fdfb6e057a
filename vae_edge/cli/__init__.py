"""The device's command line: `vae-edge`, and `vae-train`, `vae-export`, `vae-run` and `vae-bench` as shortcuts."""
