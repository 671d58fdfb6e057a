"""What a frozen, pretrained backbone sees in an image: the backbone, and where its weights come from."""
