"""Where verdicts go: lines, tables, overlays, annotated videos."""
