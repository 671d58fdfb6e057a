"""The report as a page, as Markdown and in the terminal: tables and charts of its figures."""
