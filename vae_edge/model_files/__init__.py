"""What a model file may contain, read and checked before a runtime sees it."""
