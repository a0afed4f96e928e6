"""A second reader of the container, written from `spec/` alone, to compare with the first."""
