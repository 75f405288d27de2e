"""The data wing: triplet files to rows. Reads files and numbers, never a model."""
