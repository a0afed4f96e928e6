"""`python -m blobstore` is `blobstore`."""

from blobstore.cli.main import main

main()
