"""From an OpenVINO bundle to a folder that OpenVINO Model API opens, with the bundle's verdicts."""
