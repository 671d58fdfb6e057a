"""What picture files say before they are decoded, which files of a folder are pictures, and what names mean."""
