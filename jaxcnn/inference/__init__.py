"""What a run has learned, put to use: on files of images, and as a program of its own."""
