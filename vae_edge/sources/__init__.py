"""Where pictures come from: files, watched folders, videos, cameras, streams, paths from standard input."""
