"""The cache's images in other formats, out and in: files from elsewhere are data, never trusted."""
