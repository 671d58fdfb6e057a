"""What is chosen by the data: image size, light, scoring."""
