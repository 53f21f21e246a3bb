"""The same training steps by jaxcnn and by its peers, timed in one run: `jaxcnn bench`."""
