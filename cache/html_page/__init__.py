"""One page with the images of a cache, to browse, filter and compare without a server."""
