"""Parts of the report's page: markup, axes, charts, tables, style and script."""
