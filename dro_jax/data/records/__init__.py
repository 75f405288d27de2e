"""Records of files: their formats, fields and rewards."""
